//! ICMP for both versions of IP: pings of our own addresses are answered, and the guest is told what cannot be reached.

use std::net::IpAddr;

use rustix::io::Errno;
use smoltcp::wire::{Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol};

use super::addresses::gateway_like;
use super::context::{Context, back};
use super::frame::{self, Datagram};

/// Bytes before the data of an echo message.
pub(super) const ECHO_HEADER: usize = 8;
const ECHO_REQUEST4: u8 = 8;
const ECHO_REPLY4: u8 = 0;
const ECHO_REQUEST6: u8 = 128;
const ECHO_REPLY6: u8 = 129;
/// Most bytes of a packet that are sent back with a complaint: the least that everybody must take (RFC 1812, section
/// 4.3.2.3), less the headers.
pub(super) const QUOTE: usize = 500;

/// Why something does not arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unreachable {
    Network,
    Host,
    Port,
    Prohibited,
}

impl Unreachable {
    /// What an error of the host's network means for the guest.
    pub(super) fn because(error: Errno) -> Self {
        match error {
            Errno::CONNREFUSED => Self::Port,
            Errno::ACCESS | Errno::PERM => Self::Prohibited,
            Errno::NETUNREACH | Errno::NETDOWN | Errno::ADDRNOTAVAIL | Errno::AFNOSUPPORT => Self::Network,
            _ => Self::Host,
        }
    }

    /// Type and code (RFC 792, RFC 1812 section 5.2.7.1).
    fn code4(self) -> [u8; 2] {
        match self {
            Self::Network => [3, 0],
            Self::Host => [3, 1],
            Self::Port => [3, 3],
            Self::Prohibited => [3, 13],
        }
    }

    /// Type and code (RFC 4443, section 3.1).
    fn code6(self) -> [u8; 2] {
        match self {
            Self::Network => [1, 0],
            Self::Prohibited => [1, 1],
            Self::Host => [1, 3],
            Self::Port => [1, 4],
        }
    }
}

/// Tells the guest at `guest` that its packet, which began with `packet`, did not arrive at `outside`.
pub(super) fn unreachable(context: &mut Context, guest: IpAddr, outside: IpAddr, packet: &[u8], why: Unreachable) {
    let code = if guest.is_ipv4() { why.code4() } else { why.code6() };
    // That there is nothing at a port is said by who has the port, anything else on the way there.
    let source = if why == Unreachable::Port { outside } else { gateway_like(guest) };
    let Some(route) = context.route(source, guest) else { return };
    let quote = packet.get(..QUOTE).unwrap_or(packet);
    let mut message = vec![code[0], code[1], 0, 0, 0, 0, 0, 0];
    message.extend(quote);
    context.send(frame::ip(route, protocol(guest), message.len(), |bytes, from, to| write(&message, bytes, from, to)));
}

/// Complains about a packet of the guest.
pub(super) fn complain(context: &mut Context, datagram: &Datagram<'_>, why: Unreachable) {
    unreachable(context, datagram.source, datagram.target, datagram.packet, why);
}

/// An echo request: the identifier, the sequence number, the data.
pub(super) struct Echo<'a> {
    pub identifier: u16,
    pub sequence: u16,
    pub data: &'a [u8],
}

/// The echo request in `datagram`, if it is one.
pub(super) fn echo<'a>(datagram: &Datagram<'a>) -> Option<Echo<'a>> {
    let message = datagram.payload;
    let valid = match (datagram.source, datagram.target) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            datagram.protocol == IpProtocol::Icmp
                && message.first() == Some(&ECHO_REQUEST4)
                && Icmpv4Packet::new_checked(message).is_ok_and(|packet| packet.verify_checksum())
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            datagram.protocol == IpProtocol::Icmpv6
                && message.first() == Some(&ECHO_REQUEST6)
                && Icmpv6Packet::new_checked(message).is_ok_and(|packet| packet.verify_checksum(&from, &to))
        }
        _ => false,
    };
    let (&[_, 0, _, _, i0, i1, s0, s1], data) = message.split_first_chunk::<ECHO_HEADER>()? else { return None };
    let (identifier, sequence) = (u16::from_be_bytes([i0, i1]), u16::from_be_bytes([s0, s1]));
    valid.then_some(Echo { identifier, sequence, data })
}

/// Answers an echo request to one of our own addresses.
pub(super) fn pong(context: &mut Context, datagram: &Datagram<'_>, echo: &Echo<'_>) {
    let message = echo_message(datagram.source, false, echo);
    let (route, protocol) = (back(datagram), protocol(datagram.source));
    context.send(frame::ip(route, protocol, message.len(), |bytes, from, to| write(&message, bytes, from, to)));
}

/// The guest gets an answer to its ping from `outside`.
pub(super) fn reply(context: &mut Context, guest: IpAddr, outside: IpAddr, echo: &Echo<'_>) {
    let message = echo_message(guest, false, echo);
    let Some(route) = context.route(outside, guest) else { return };
    context.send(frame::ip(route, protocol(guest), message.len(), |bytes, from, to| write(&message, bytes, from, to)));
}

/// An echo message of the version of IP that `like` is of, without its checksum.
pub(super) fn echo_message(like: IpAddr, request: bool, echo: &Echo<'_>) -> Vec<u8> {
    let kind = match (like, request) {
        (IpAddr::V4(_), true) => ECHO_REQUEST4,
        (IpAddr::V4(_), false) => ECHO_REPLY4,
        (IpAddr::V6(_), true) => ECHO_REQUEST6,
        (IpAddr::V6(_), false) => ECHO_REPLY6,
    };
    let mut message = vec![kind, 0, 0, 0];
    message.extend(echo.identifier.to_be_bytes());
    message.extend(echo.sequence.to_be_bytes());
    message.extend(echo.data);
    message
}

fn protocol(like: IpAddr) -> IpProtocol {
    if like.is_ipv4() { IpProtocol::Icmp } else { IpProtocol::Icmpv6 }
}

fn write(message: &[u8], bytes: &mut [u8], from: &IpAddress, to: &IpAddress) {
    bytes.copy_from_slice(message);
    match (from, to) {
        (IpAddress::Ipv6(from), IpAddress::Ipv6(to)) => Icmpv6Packet::new_unchecked(bytes).fill_checksum(from, to),
        _ => Icmpv4Packet::new_unchecked(bytes).fill_checksum(),
    }
}
