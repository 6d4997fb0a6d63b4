//! Frames as they pass between the card and this network: a `struct virtio_net_hdr_v1` (virtio 1.3, section 5.1.6), an
//! Ethernet header, and most often an IP packet.

use std::net::IpAddr;

use smoltcp::phy::{Checksum, ChecksumCapabilities};
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, IpRepr, Ipv4Packet, Ipv6Packet, TcpPacket,
    UdpPacket,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
};

use super::addresses::MAC;
use crate::net::HEADER_LEN;

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: usize = 14;
/// Bytes before the packet in a frame.
pub(super) const BEFORE: usize = HEADER_LEN + ETHERNET;
/// Longest packet that IP can say the length of.
pub(super) const MAX_IP: usize = 65535;
/// Hops that packets of ours may take.
const HOPS: u8 = 64;
/// Bytes of headers without options.
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
/// Where the checksum is in a TCP header.
const TCP_CHECKSUM: u16 = 16;

/// A frame of the guest, taken apart.
pub(super) struct Frame<'a> {
    pub from: EthernetAddress,
    pub protocol: EthernetProtocol,
    pub payload: &'a [u8],
    /// The guest left the checksum to us.
    pub unfinished: bool,
}

/// The parts of a frame, header and all; none if it is no valid one, or not for anybody here.
pub(super) fn parse(bytes: &[u8]) -> Option<Frame<'_>> {
    let (header, frame) = bytes.split_at_checked(HEADER_LEN)?;
    let (flags, segments) = (u32::from(*header.first()?), u32::from(*header.get(1)?));
    // Segments of a stream may come in one piece, those of anything else may not: nobody offered that.
    if !matches!(
        segments & !VIRTIO_NET_HDR_GSO_ECN,
        VIRTIO_NET_HDR_GSO_NONE | VIRTIO_NET_HDR_GSO_TCPV4 | VIRTIO_NET_HDR_GSO_TCPV6
    ) {
        return None;
    }
    let frame = EthernetFrame::new_checked(frame).ok()?;
    let to = frame.dst_addr();
    if (to != MAC && to.is_unicast()) || !frame.src_addr().is_unicast() || frame.src_addr() == MAC {
        return None;
    }
    Some(Frame {
        from: frame.src_addr(),
        protocol: frame.ethertype(),
        payload: frame.payload(),
        unfinished: flags & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0,
    })
}

/// An IP packet of the guest. Its header is valid, it is no fragment, and its checksums are right.
#[derive(Clone, Copy)]
pub(super) struct Datagram<'a> {
    pub from: EthernetAddress,
    pub source: IpAddr,
    pub target: IpAddr,
    pub protocol: IpProtocol,
    pub hops: u8,
    /// The whole packet.
    pub packet: &'a [u8],
    /// What comes after the IP header.
    pub payload: &'a [u8],
}

/// The IP packet in `frame`, if there is a good one.
pub(super) fn datagram<'a>(frame: &Frame<'a>) -> Option<Datagram<'a>> {
    let datagram = match frame.protocol {
        EthernetProtocol::Ipv4 => ipv4(frame)?,
        EthernetProtocol::Ipv6 => ipv6(frame)?,
        _ => return None,
    };
    (frame.unfinished || checksum_is_right(&datagram)).then_some(datagram)
}

fn ipv4<'a>(frame: &Frame<'a>) -> Option<Datagram<'a>> {
    let packet = Ipv4Packet::new_checked(frame.payload).ok()?;
    let header = usize::from(packet.header_len());
    // There are no fragments where packets may be as long as they can be.
    let fragment = packet.more_frags() || packet.frag_offset() != 0;
    if packet.version() != 4 || header < IPV4_HEADER || fragment || !packet.verify_checksum() {
        return None;
    }
    let whole = frame.payload.get(..usize::from(packet.total_len()))?;
    Some(Datagram {
        from: frame.from,
        source: packet.src_addr().into(),
        target: packet.dst_addr().into(),
        protocol: packet.next_header(),
        hops: packet.hop_limit(),
        packet: whole,
        payload: whole.get(header..)?,
    })
}

fn ipv6<'a>(frame: &Frame<'a>) -> Option<Datagram<'a>> {
    let packet = Ipv6Packet::new_checked(frame.payload).ok()?;
    if packet.version() != 6 {
        return None;
    }
    let whole = frame.payload.get(..packet.total_len())?;
    Some(Datagram {
        from: frame.from,
        source: packet.src_addr().into(),
        target: packet.dst_addr().into(),
        protocol: packet.next_header(),
        hops: packet.hop_limit(),
        packet: whole,
        payload: whole.get(IPV6_HEADER..)?,
    })
}

fn checksum_is_right(datagram: &Datagram<'_>) -> bool {
    let (from, to) = (datagram.source.into(), datagram.target.into());
    match datagram.protocol {
        IpProtocol::Tcp => TcpPacket::new_checked(datagram.payload).is_ok_and(|p| p.verify_checksum(&from, &to)),
        IpProtocol::Udp => UdpPacket::new_checked(datagram.payload).is_ok_and(|p| p.verify_checksum(&from, &to)),
        // Others are checked where they are read.
        _ => true,
    }
}

/// A frame with `len` bytes of payload, which `fill` writes; they are zeros before.
pub(super) fn ethernet(
    to: EthernetAddress,
    protocol: EthernetProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let mut bytes = vec![0; BEFORE + len];
    if let Some((head, payload)) = bytes.split_at_mut_checked(BEFORE) {
        write_ethernet(head, to, protocol);
        fill(payload);
    }
    bytes
}

fn write_ethernet(head: &mut [u8], to: EthernetAddress, protocol: EthernetProtocol) {
    if let Some(header) = head.get_mut(HEADER_LEN..BEFORE) {
        let mut frame = EthernetFrame::new_unchecked(header);
        frame.set_src_addr(MAC);
        frame.set_dst_addr(to);
        frame.set_ethertype(protocol);
    }
}

/// Between whom an IP packet goes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Route {
    pub to: EthernetAddress,
    pub source: IpAddr,
    pub target: IpAddr,
}

/// A frame with an IP packet with `len` bytes of payload, which `fill` writes. None if it would be too long, or if the
/// addresses are of different versions.
pub(super) fn ip(
    route: Route,
    protocol: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8], &IpAddress, &IpAddress),
) -> Option<Vec<u8>> {
    ip_with_hops(route, protocol, HOPS, len, fill)
}

/// As [`ip`], with a number of hops: neighbour discovery wants 255.
pub(super) fn ip_with_hops(
    route: Route,
    protocol: IpProtocol,
    hops: u8,
    len: usize,
    fill: impl FnOnce(&mut [u8], &IpAddress, &IpAddress),
) -> Option<Vec<u8>> {
    if route.source.is_ipv4() != route.target.is_ipv4() {
        return None;
    }
    let (source, target) = (IpAddress::from(route.source), IpAddress::from(route.target));
    let repr = IpRepr::new(source, target, protocol, len, hops);
    let total = repr.header_len() + len;
    if total > MAX_IP {
        return None;
    }
    Some(ethernet(route.to, ethertype(route.target), total, |bytes| {
        repr.emit(&mut *bytes, &checksums());
        if let Some(payload) = bytes.get_mut(repr.header_len()..) {
            fill(payload, &source, &target);
        }
    }))
}

fn ethertype(address: IpAddr) -> EthernetProtocol {
    if address.is_ipv4() { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 }
}

/// All are written and none is checked: that was done on arrival.
pub(super) fn checksums() -> ChecksumCapabilities {
    let mut all = ChecksumCapabilities::ignored();
    (all.ipv4, all.udp, all.tcp, all.icmpv4, all.icmpv6) =
        (Checksum::Tx, Checksum::Tx, Checksum::Tx, Checksum::Tx, Checksum::Tx);
    all
}

/// Completes a frame that has an IP packet with a TCP segment after [`BEFORE`] bytes of room: the headers before it, and
/// what the guest does about checksum (`unfinished`: it is the guest's work) and segments.
pub(super) fn finish_tcp(bytes: &mut [u8], to: EthernetAddress, unfinished: bool, segment: Option<u16>) {
    let Some((head, packet)) = bytes.split_at_mut_checked(BEFORE) else { return };
    head.fill(0);
    let Some((header, source, target)) = tcp_parts(packet) else { return };
    write_ethernet(head, to, ethertype(target));
    if !unfinished {
        return;
    }
    let Some(tcp) = packet.get_mut(header..) else { return };
    let sum = pseudo_header_sum(source, target, tcp.len());
    let offset = tcp.get(12).map_or(20, |byte| u16::from(byte >> 4) * 4);
    if let Some(field) = tcp.get_mut(usize::from(TCP_CHECKSUM)..usize::from(TCP_CHECKSUM) + 2) {
        field.copy_from_slice(&sum.to_be_bytes());
    }
    let start = (ETHERNET + header) as u16;
    let kind = segment.map_or(VIRTIO_NET_HDR_GSO_NONE, |_| VIRTIO_NET_HDR_GSO_TCPV4);
    let fields = [start + offset, segment.unwrap_or(0), start, TCP_CHECKSUM];
    if let Some((first, rest)) = head.split_at_mut_checked(2) {
        first.copy_from_slice(&[VIRTIO_NET_HDR_F_NEEDS_CSUM as u8, kind as u8]);
        rest.iter_mut().zip(fields.iter().flat_map(|field| field.to_le_bytes())).for_each(|(to, from)| *to = from);
    }
}

/// Length of the IP header, and between whom the packet goes.
fn tcp_parts(packet: &[u8]) -> Option<(usize, IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => {
            let packet = Ipv4Packet::new_checked(packet).ok()?;
            Some((packet.header_len().into(), packet.src_addr().into(), packet.dst_addr().into()))
        }
        _ => {
            let packet = Ipv6Packet::new_checked(packet).ok()?;
            Some((IPV6_HEADER, packet.src_addr().into(), packet.dst_addr().into()))
        }
    }
}

/// The sum of the pseudo header (RFC 9293, section 3.1), not inverted: to which whoever finishes the checksum adds.
fn pseudo_header_sum(source: IpAddr, target: IpAddr, len: usize) -> u16 {
    let mut sum = len as u64 + u64::from(u8::from(IpProtocol::Tcp));
    let mut add = |octets: &[u8]| {
        for pair in octets.chunks_exact(2) {
            sum += pair.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
    };
    for address in [source, target] {
        match address {
            IpAddr::V4(v4) => add(&v4.octets()),
            IpAddr::V6(v6) => add(&v6.octets()),
        }
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
