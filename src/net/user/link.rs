//! The guest's neighbours on the wire: ARP (RFC 826), neighbour discovery and router advertisements (RFC 4861, 8106).

use std::net::{IpAddr, Ipv6Addr};

use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, Icmpv6Packet, Icmpv6Repr, IpAddress,
    IpProtocol, NdiscNeighborFlags, NdiscRepr,
};

use super::addresses::{DNS, DNS6, GATEWAY, GATEWAY6, MAC, NETWORK6, PREFIX6, ROUTER6, Role, role};
use super::context::{Context, is_guests, is_link_local};
use super::frame::{self, Datagram, Frame, Route};

/// Hop limit of neighbour discovery (RFC 4861, section 7.1): nobody beyond the link could send it.
const LINK_HOPS: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
const ALL_NODES_MAC: EthernetAddress = EthernetAddress([0x33, 0x33, 0, 0, 0, 1]);
/// Seconds for which a router, a prefix and a resolver are good: the most that the field has (RFC 8319), since they do
/// not change while the guest runs.
const ROUTER_LIFETIME: u16 = 65535;
const FOR_EVER: u32 = u32::MAX;

/// Answers an ARP request for an address of ours.
pub(super) fn arp(context: &mut Context, request: &Frame<'_>) -> Option<()> {
    let packet = ArpPacket::new_checked(request.payload).ok()?;
    let ArpRepr::EthernetIpv4 { operation, source_hardware_addr, source_protocol_addr, target_protocol_addr, .. } =
        ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    if is_guests(source_protocol_addr.into()) {
        context.neighbours.learn(source_protocol_addr.into(), source_hardware_addr);
    }
    if operation != ArpOperation::Request || ![GATEWAY, DNS].contains(&target_protocol_addr) {
        return Some(());
    }
    let reply = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: MAC,
        source_protocol_addr: target_protocol_addr,
        target_hardware_addr: source_hardware_addr,
        target_protocol_addr: source_protocol_addr,
    };
    let frame = frame::ethernet(request.from, EthernetProtocol::Arp, reply.buffer_len(), |bytes| {
        reply.emit(&mut ArpPacket::new_unchecked(bytes));
    });
    context.send(Some(frame));
    Some(())
}

/// Answers solicitations of neighbours and routers. None if it is something else, or not valid.
pub(super) fn discovery(context: &mut Context, datagram: &Datagram<'_>) -> Option<()> {
    let (IpAddr::V6(source), IpAddr::V6(target)) = (datagram.source, datagram.target) else { return None };
    let packet = Icmpv6Packet::new_checked(datagram.payload).ok()?;
    let Icmpv6Repr::Ndisc(message) = Icmpv6Repr::parse(&source, &target, &packet, &frame::checksums()).ok()? else {
        return None;
    };
    let known = source.is_unspecified() || is_link_local(source.into()) || is_guests(source.into());
    if datagram.hops != LINK_HOPS || !known || !packet.verify_checksum(&source, &target) {
        return None;
    }
    // Who has no address yet hears what is for all.
    let (to, back) = if source.is_unspecified() { (ALL_NODES_MAC, ALL_NODES) } else { (datagram.from, source) };
    match message {
        NdiscRepr::NeighborSolicit { target_addr, .. } if [GATEWAY6, DNS6, ROUTER6].contains(&target_addr) => {
            let mut flags = NdiscNeighborFlags::ROUTER | NdiscNeighborFlags::OVERRIDE;
            flags.set(NdiscNeighborFlags::SOLICITED, !source.is_unspecified());
            let advert = NdiscRepr::NeighborAdvert { flags, target_addr, lladdr: Some(MAC.into()) };
            let route = Route { to, source: target_addr.into(), target: back.into() };
            let advert = Icmpv6Repr::Ndisc(advert);
            context.send(frame::ip_with_hops(
                route,
                IpProtocol::Icmpv6,
                LINK_HOPS,
                advert.buffer_len(),
                |bytes, _, _| {
                    advert.emit(&target_addr, &back, &mut Icmpv6Packet::new_unchecked(bytes), &frame::checksums());
                },
            ));
        }
        NdiscRepr::RouterSolicit { .. } => {
            let route = Route { to, source: ROUTER6.into(), target: back.into() };
            let advert = router_advertisement();
            context.send(frame::ip_with_hops(route, IpProtocol::Icmpv6, LINK_HOPS, advert.len(), |bytes, from, to| {
                bytes.copy_from_slice(&advert);
                if let (IpAddress::Ipv6(from), IpAddress::Ipv6(to)) = (from, to) {
                    Icmpv6Packet::new_unchecked(bytes).fill_checksum(from, to);
                }
            }));
        }
        _ => {}
    }
    if is_link_local(source.into()) || role(source.into()) == Role::Guest {
        context.neighbours.learn(source.into(), datagram.from);
    }
    Some(())
}

/// Type 134 with the router's Ethernet address, the prefix and the resolver. The checksum is zero. The MTU is the card's.
fn router_advertisement() -> Vec<u8> {
    let mut bytes = vec![134, 0, 0, 0, 64, 0];
    bytes.extend(ROUTER_LIFETIME.to_be_bytes());
    // Reachable and retransmission times: not said.
    bytes.extend([0; 8]);
    bytes.extend([1, 1]);
    bytes.extend(MAC.0);
    // On this link, and good to make addresses from.
    bytes.extend([3, 4, PREFIX6, 0xc0]);
    bytes.extend(FOR_EVER.to_be_bytes());
    bytes.extend(FOR_EVER.to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(NETWORK6.octets());
    bytes.extend([25, 3, 0, 0]);
    bytes.extend(FOR_EVER.to_be_bytes());
    bytes.extend(DNS6.octets());
    bytes
}
