//! Frames as no honest guest sends them, and what the network says without being a party to a connection.

use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, Icmpv4Packet, Icmpv6Packet, IpAddress, IpProtocol, IpRepr, TcpControl, TcpPacket,
    TcpRepr, TcpSeqNumber, UdpPacket, UdpRepr,
};

use super::*;
use crate::net::user::frame;

/// A frame from the guest, with an IP packet between these addresses.
fn packet(
    source: &str,
    target: &str,
    protocol: IpProtocol,
    len: usize,
    fill: impl FnOnce(&mut [u8], &IpAddress, &IpAddress),
) -> Vec<u8> {
    let (source, target): (IpAddr, IpAddr) = (source.parse().unwrap(), target.parse().unwrap());
    let (from, to) = (IpAddress::from(source), IpAddress::from(target));
    let repr = IpRepr::new(from, to, protocol, len, if protocol == IpProtocol::Icmpv6 { 255 } else { 64 });
    let mut frame = vec![0; BEFORE + repr.header_len() + len];
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[HEADER_LEN..]);
    ethernet.set_src_addr(GUEST_MAC);
    ethernet.set_dst_addr(MAC);
    ethernet.set_ethertype(if source.is_ipv4() { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 });
    repr.emit(&mut frame[BEFORE..], &frame::checksums());
    fill(&mut frame[BEFORE + repr.header_len()..], &from, &to);
    frame
}

fn syn(source: &str, target: &str, port: u16) -> Vec<u8> {
    let repr = TcpRepr {
        src_port: port,
        dst_port: 80,
        control: TcpControl::Syn,
        seq_number: TcpSeqNumber(1),
        ack_number: None,
        window_len: 1000,
        window_scale: None,
        max_seg_size: Some(1460),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    packet(source, target, IpProtocol::Tcp, repr.buffer_len(), |bytes, from, to| {
        repr.emit(&mut TcpPacket::new_unchecked(bytes), from, to, &frame::checksums());
    })
}

fn datagram(source: &str, target: &str, port: u16) -> Vec<u8> {
    let repr = UdpRepr { src_port: 1234, dst_port: port };
    packet(source, target, IpProtocol::Udp, repr.header_len() + 4, |bytes, from, to| {
        repr.emit(&mut UdpPacket::new_unchecked(bytes), from, to, 4, |b| b.fill(7), &frame::checksums());
    })
}

fn network(config: &Config) -> (Stack, Arc<Counters>) {
    let counters = Arc::new(Counters::default());
    (Stack::new(config, counters.clone()).unwrap(), counters)
}

fn dropped(counters: &Counters) -> u64 {
    counters.dropped.load(std::sync::atomic::Ordering::Relaxed)
}

/// The payload of the IP packet in a frame.
fn payload(frame: &[u8]) -> &[u8] {
    &frame[BEFORE + if frame[BEFORE] >> 4 == 4 { 20 } else { 40 }..]
}

#[test]
fn frames_that_are_none_are_dropped() {
    let (mut stack, counters) = network(&open());
    let good = syn("10.0.2.15", "10.0.2.2", 1);
    let mut bad: Vec<Vec<u8>> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
    let mut change = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        bad.push(frame);
    };
    // Datagram segments, another receiver, a sender that is a group, no IP, version, header length, a fragment, a
    // checksum of each header.
    [(1, 3), (12, 2), (18, 1), (24, 0x88), (26, 0x65), (26, 0x44), (32, 0x20), (33, 1), (36, 1), (62, 1)]
        .into_iter()
        .for_each(|(at, value)| change(at, value));
    for (frame, number) in bad.iter().zip(1..) {
        stack.input(frame);
        assert!(stack.output().is_none(), "{frame:x?}");
        assert_eq!(dropped(&counters), number, "{frame:x?}");
    }
    stack.input(&good);
    assert_eq!(dropped(&counters), bad.len() as u64);
}

#[test]
fn addresses_that_are_not_the_guests_are_not_served() {
    let (mut stack, counters) = network(&open());
    let others = ["10.0.2.2", "10.0.2.3", "10.0.2.0", "10.0.2.255", "10.0.3.15", "127.0.0.1", "0.0.0.0", "224.0.0.1"];
    for (source, number) in others.iter().zip(1..) {
        stack.input(&syn(source, "10.0.2.2", 1));
        assert!(stack.output().is_none(), "{source}");
        assert_eq!(dropped(&counters), number, "{source}");
    }
    for source in ["fd62:656c:6c6a::2", "fe80::5", "::1", "2001:db8::1"] {
        stack.input(&syn(source, "fd62:656c:6c6a::2", 1));
        assert!(stack.output().is_none(), "{source}");
    }
}

#[test]
fn the_hosts_loopback_is_out_of_reach() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (mut stack, counters) = network(&open());
    for target in ["127.0.0.1", "127.1.2.3", "0.0.0.0", "255.255.255.255", "169.254.169.254"] {
        stack.input(&syn("10.0.2.15", target, listener.local_addr().unwrap().port()));
        if let Some(frame) = stack.output() {
            assert_eq!(payload(frame)[13] & 4, 4, "{target}: a reset");
        }
    }
    for target in ["::1", "::", "::ffff:127.0.0.1", "::ffff:7f00:1", "fe80::1"] {
        stack.input(&syn("fd62:656c:6c6a::15", target, 1));
        stack.output();
    }
    assert_eq!(counters.tcp_connections.load(std::sync::atomic::Ordering::Relaxed), 0);
    listener.set_nonblocking(true).unwrap();
    assert!(listener.accept().is_err());
}

#[test]
fn a_flood_of_connections_is_bounded() {
    limits::raise_open_files();
    // Somebody who takes no clients: connections stay where they are.
    let (mut stack, counters) = network(&Config::default());
    for port in 1..=5000 {
        stack.input(&syn("10.0.2.15", "192.0.2.1", port));
    }
    let over = counters.over_limit.load(std::sync::atomic::Ordering::Relaxed);
    let failed = counters.tcp_failed.load(std::sync::atomic::Ordering::Relaxed);
    assert!(over + failed >= 5000 - 2048, "{over} {failed}");
    // No more answers wait than there is room for.
    let mut answers = 0;
    while stack.output().is_some() {
        answers += 1;
    }
    assert!(answers <= 512 + 2048, "{answers}");
}

#[test]
fn what_cannot_be_reached_is_said_by_icmp() {
    let (mut stack, _) = network(&Config::default());
    let sent = datagram("10.0.2.15", "10.0.2.2", 7);
    // Forbidden, nobody at this address, nothing at this port.
    for (target, port, code) in [("10.0.2.2", 7, 13), ("127.0.0.1", 7, 13), ("10.0.2.77", 7, 1), ("10.0.2.3", 7, 3)] {
        stack.input(&datagram("10.0.2.15", target, port));
        let frame = stack.output().unwrap().to_vec();
        let message = payload(&frame);
        assert_eq!(message[..2], [3, code], "{target}");
        assert!(Icmpv4Packet::new_checked(message).unwrap().verify_checksum());
        assert_eq!(message[8..], datagram("10.0.2.15", target, port)[BEFORE..]);
        assert!(frame.len() <= sent.len() + 28, "no answer is much longer than what it is about");
    }
    stack.input(&datagram("fd62:656c:6c6a::15", "fd62:656c:6c6a::3", 7));
    assert_eq!(payload(stack.output().unwrap())[..2], [1, 4]);
}

#[test]
fn a_port_of_the_host_that_is_closed_is_said_by_icmp() {
    let closed = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut guest = guest(&open());
    let sent = datagram("10.0.2.15", "10.0.2.2", closed);
    guest.cable.stack.input(&sent);
    let mut answer = None;
    let start = Instant::now();
    while answer.is_none() {
        assert!(start.elapsed() < LIMIT);
        answer = guest.cable.stack.output().map(<[u8]>::to_vec);
    }
    let answer = answer.unwrap();
    assert_eq!(payload(&answer)[..2], [3, 3]);
    assert_eq!(payload(&answer)[8..], sent[BEFORE..]);
}

#[test]
fn the_gateway_answers_pings() {
    let (mut stack, _) = network(&Config::default());
    for target in ["10.0.2.2", "10.0.2.3"] {
        stack.input(&packet("10.0.2.15", target, IpProtocol::Icmp, 64, |bytes, _, _| {
            bytes[..8].copy_from_slice(&[8, 0, 0, 0, 1, 2, 0, 9]);
            Icmpv4Packet::new_unchecked(bytes).fill_checksum();
        }));
        let reply = stack.output().unwrap();
        assert_eq!((payload(reply)[0], &payload(reply)[4..8], payload(reply).len()), (0, &[1, 2, 0, 9][..], 64));
        assert!(Icmpv4Packet::new_checked(payload(reply)).unwrap().verify_checksum());
    }
    stack.input(&packet("fd62:656c:6c6a::15", "fd62:656c:6c6a::2", IpProtocol::Icmpv6, 16, |bytes, from, to| {
        bytes[..8].copy_from_slice(&[128, 0, 0, 0, 1, 2, 0, 9]);
        let (IpAddress::Ipv6(from), IpAddress::Ipv6(to)) = (from, to) else { unreachable!() };
        Icmpv6Packet::new_unchecked(bytes).fill_checksum(from, to);
    }));
    assert_eq!(payload(stack.output().unwrap())[0], 129);
}

#[test]
fn pings_of_others_go_out_if_the_host_lets_them() {
    use rustix::net::{AddressFamily, SocketType, ipproto, socket};
    if socket(AddressFamily::INET, SocketType::DGRAM, Some(ipproto::ICMP)).is_err() {
        eprintln!("\nSKIPPED: the host's users cannot ping");
        return;
    }
    // The host's own address, other than loopback.
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    let Ok(IpAddr::V4(own)) = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()).map(|at| at.ip()) else {
        eprintln!("\nSKIPPED: the host has no way out");
        return;
    };
    let (mut stack, counters) = network(&Config::default());
    stack.input(&packet("10.0.2.15", &own.to_string(), IpProtocol::Icmp, 64, |bytes, _, _| {
        bytes[..8].copy_from_slice(&[8, 0, 0, 0, 1, 2, 0, 9]);
        Icmpv4Packet::new_unchecked(bytes).fill_checksum();
    }));
    let start = Instant::now();
    let reply = loop {
        assert!(start.elapsed() < LIMIT);
        if let Some(reply) = stack.output() {
            break reply.to_vec();
        }
    };
    assert_eq!((payload(&reply)[0], &payload(&reply)[4..8]), (0, &[1, 2, 0, 9][..]), "{reply:x?}");
    assert_eq!(counters.pings.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn a_router_tells_of_the_network() {
    let (mut stack, _) = network(&Config::default());
    stack.input(&packet("fe80::5", "ff02::2", IpProtocol::Icmpv6, 8, |bytes, from, to| {
        bytes[0] = 133;
        let (IpAddress::Ipv6(from), IpAddress::Ipv6(to)) = (from, to) else { unreachable!() };
        Icmpv6Packet::new_unchecked(bytes).fill_checksum(from, to);
    }));
    let frame = stack.output().unwrap().to_vec();
    let advert = payload(&frame);
    assert_eq!((advert[0], frame[BEFORE + 7]), (134, 255));
    let (from, to) = ("fe80::2".parse().unwrap(), "fe80::5".parse().unwrap());
    assert!(Icmpv6Packet::new_checked(advert).unwrap().verify_checksum(&from, &to));
    let prefix = advert.windows(4).position(|w| w == [3, 4, 64, 0xc0]).unwrap();
    assert_eq!(advert[prefix + 16..prefix + 22], [0xfd, 0x62, 0x65, 0x6c, 0x6c, 0x6a]);
    let resolver = advert.windows(4).position(|w| w == [25, 3, 0, 0]).unwrap();
    assert_eq!(advert[resolver + 8 + 15], 3);
    // From beyond the link it would be a forgery.
    let mut forged = packet("fe80::5", "ff02::2", IpProtocol::Icmpv6, 8, |bytes, from, to| {
        bytes[0] = 133;
        let (IpAddress::Ipv6(from), IpAddress::Ipv6(to)) = (from, to) else { unreachable!() };
        Icmpv6Packet::new_unchecked(bytes).fill_checksum(from, to);
    });
    forged[BEFORE + 7] = 64;
    stack.input(&forged);
    assert!(stack.output().is_none());
}
