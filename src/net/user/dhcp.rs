//! DHCP for IPv4 (RFC 2131): whoever asks gets the guest's one address, for as long as it likes.

use std::net::Ipv4Addr;

use smoltcp::wire::{DhcpMessageType, DhcpPacket, DhcpRepr, EthernetAddress, IpProtocol, UdpPacket, UdpRepr};

use super::addresses::{DNS, GATEWAY, GUEST};
use super::context::Context;
use super::frame::{self, Datagram, Route};

/// The server's port and the client's.
pub(super) const SERVER: u16 = 67;
const CLIENT: u16 = 68;
/// Seconds; clients renew after half of it.
const LEASE: u32 = 86400;
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 0);

/// Answers a message of a client. None if there is nothing to say to it.
pub(super) fn answer(context: &mut Context, datagram: &Datagram<'_>) -> Option<()> {
    let udp = UdpPacket::new_checked(datagram.payload).ok()?;
    let packet = DhcpPacket::new_checked(udp.payload()).ok()?;
    let request = DhcpRepr::parse(&packet).ok()?;
    // A client that chose another server, or asks for one that is not us.
    if request.server_identifier.is_some_and(|server| server != GATEWAY) {
        return Some(());
    }
    let wanted = request.requested_ip.filter(|ip| !ip.is_unspecified());
    let wanted = wanted.or(Some(request.client_ip).filter(|ip| !ip.is_unspecified()));
    let kind = match request.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if wanted.is_none_or(|ip| ip == GUEST) => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return Some(()),
    };
    reply(context, datagram, &request, kind)
}

fn reply(context: &mut Context, datagram: &Datagram<'_>, request: &DhcpRepr<'_>, kind: DhcpMessageType) -> Option<()> {
    let refused = kind == DhcpMessageType::Nak;
    let informed = request.message_type == DhcpMessageType::Inform;
    let answer = DhcpRepr {
        message_type: kind,
        transaction_id: request.transaction_id,
        secs: 0,
        client_hardware_address: request.client_hardware_address,
        client_ip: if refused { Ipv4Addr::UNSPECIFIED } else { request.client_ip },
        your_ip: if refused || informed { Ipv4Addr::UNSPECIFIED } else { GUEST },
        server_ip: GATEWAY,
        router: (!refused).then_some(GATEWAY),
        subnet_mask: (!refused).then_some(MASK),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: request.broadcast,
        requested_ip: None,
        client_identifier: request.client_identifier,
        server_identifier: Some(GATEWAY),
        parameter_request_list: None,
        dns_servers: (!refused).then(|| [DNS].into_iter().collect()),
        max_size: None,
        lease_duration: (!refused && !informed).then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: &[],
    };
    // A client without an address hears a broadcast, if nothing else (section 4.1).
    let has_address = !request.client_ip.is_unspecified() && !refused;
    let (to, target) = match has_address {
        true => (datagram.from, request.client_ip),
        false => (EthernetAddress::BROADCAST, Ipv4Addr::BROADCAST),
    };
    if !refused {
        context.neighbours.learn(GUEST.into(), datagram.from);
    }
    let udp = UdpRepr { src_port: SERVER, dst_port: CLIENT };
    let len = answer.buffer_len();
    let route = Route { to, source: GATEWAY.into(), target: target.into() };
    let frame = frame::ip(route, IpProtocol::Udp, udp.header_len() + len, |bytes, from, to| {
        let mut packet = UdpPacket::new_unchecked(bytes);
        let write = |payload: &mut [u8]| {
            // It fits: the room was made for it.
            let _ = answer.emit(&mut DhcpPacket::new_unchecked(payload));
        };
        udp.emit(&mut packet, from, to, len, write, &frame::checksums());
    });
    context.send(frame);
    Some(())
}
