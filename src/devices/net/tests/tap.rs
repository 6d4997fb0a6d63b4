//! The network card on real tap interfaces, each test in a network of its own.

use std::io::Write;

use super::{LIMIT, RX, SOON, TX, offer};
use crate::devices::net::Net;
use crate::net::HEADER_LEN;
use crate::net::mac::Mac;
use crate::net::tap::Tap;
use crate::net::tap::tests::{in_own_network, ip};
use crate::virtio::kit::{Kit, Part};

/// A request for the hardware address of 10.9.9.1, as 10.9.9.2.
fn arp_request(mac: [u8; 6]) -> Vec<u8> {
    let mut packet = vec![0; HEADER_LEN];
    packet.extend([0xff; 6]);
    packet.extend(mac);
    packet.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    packet.extend(mac);
    packet.extend([10, 9, 9, 2, 0, 0, 0, 0, 0, 0, 10, 9, 9, 1]);
    packet
}

/// Asks the host for its address and returns the answer. The host drops what it sends until it has noticed that
/// somebody holds the other end of the cable, which takes it up to a second: so asks again and again.
fn resolve(kit: &mut Kit, rx: usize, tx: usize, mac: [u8; 6]) -> Vec<u8> {
    let start = std::time::Instant::now();
    while start.elapsed() < LIMIT {
        kit.request(tx, &[&arp_request(mac)], &[]);
        while let Some(used) = kit.used_within(rx, 3 * SOON) {
            if used.data[24..26] == [8, 6] && used.data[32..34] == [0, 2] {
                return used.data;
            }
        }
    }
    panic!("the host does not answer");
}

fn tap_network(queues: usize) -> (Kit, u64, [u8; 6]) {
    let multi_queue = if queues > 1 { " multi_queue" } else { "" };
    ip(&format!("tuntap add t0 mode tap{multi_queue}"));
    ip("link set t0 address 52:54:00:00:00:99");
    ip("addr add 10.9.9.1/24 dev t0");
    ip("link set t0 up");
    let tap = Tap::open("t0", queues).unwrap();
    let mac: Mac = "52:54:00:00:00:02".parse().unwrap();
    let net = Net::new(tap.queues, mac, Some(1500), true);
    let features = net.features;
    (Kit::new(Box::new(net)), features, mac.bytes())
}

#[test]
fn a_real_tap_answers_and_may_go_away() {
    in_own_network(|| {
        let (mut kit, features, mac) = tap_network(1);
        for _ in 0..2 {
            kit.activate_on_loop(features);
            offer(&mut kit, RX, 100, 1536);
            kit.notify(RX);
            let reply = resolve(&mut kit, RX, TX, mac);
            assert_eq!(reply[10..18], [1, 0, 0x52, 0x54, 0, 0, 0, 2]);
            assert_eq!(reply[40..44], [10, 9, 9, 1]);
            kit.reset();
        }
        // A packet in the wrong state is refused by the host, not by us.
        kit.activate(features);
        ip("link set t0 down");
        kit.request(TX, &[&arp_request(mac)], &[]);
        ip("link del t0");
        kit.add(RX, &[Part::In(1536)]);
        kit.notify(RX);
        kit.poll_fds(SOON);
        assert!(!kit.poll_fds(SOON), "a tap that is gone is not watched");
        kit.request(TX, &[&arp_request(mac)], &[]);
        assert!(!kit.is_broken());
    });
}

#[test]
fn a_real_tap_with_several_queues_uses_those_that_are_on() {
    in_own_network(|| {
        let (mut kit, features, mac) = tap_network(2);
        kit.activate_on_loop(features);
        offer(&mut kit, 2, 100, 1536);
        kit.notify(2);
        assert_eq!(kit.request(4, &[&[4, 0, 2, 0]], &[1]).data, [0]);
        // Answers come by the queue that the address was last seen on.
        resolve(&mut kit, 2, 3, mac);
        assert_eq!(kit.request(4, &[&[4, 0, 1, 0]], &[1]).data, [0]);
        offer(&mut kit, RX, 100, 1536);
        kit.notify(RX);
        resolve(&mut kit, RX, TX, mac);
    });
}

#[test]
fn a_real_tap_gives_long_segments_of_a_host_connection() {
    in_own_network(|| {
        let (mut kit, features, mac) = tap_network(1);
        kit.activate_on_loop(features);
        offer(&mut kit, RX, 200, 1536);
        kit.notify(RX);
        resolve(&mut kit, RX, TX, mac);
        let hex: Vec<_> = mac.iter().map(|byte| format!("{byte:02x}")).collect();
        ip(&format!("neigh replace 10.9.9.2 lladdr {} dev t0", hex.join(":")));
        let listener = std::net::TcpListener::bind("10.9.9.1:7").unwrap();
        // The guest opens a connection by hand: SYN, then ACKs; the host answers with segments longer than the MTU.
        let segment = |flags: u8, seq: u32, ack: u32| tcp_segment(mac, flags, seq, ack);
        kit.request(TX, &[&segment(2, 1, 0)], &[]);
        let syn = next_tcp(&mut kit);
        let theirs = u32::from_be_bytes([syn[50], syn[51], syn[52], syn[53]]).wrapping_add(1);
        kit.request(TX, &[&segment(0x10, 2, theirs)], &[]);
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream.write_all(&[0x5a; 5000]).unwrap();
        let long = next_tcp(&mut kit);
        assert!(long.len() > 1600, "{} bytes: no segmentation offload", long.len());
        assert_eq!(long[1], 1, "TCP over IPv4");
    });
}

/// Bytes of a TCP segment without data from 10.9.9.2:9 to 10.9.9.1:7; the checksum of TCP is left to the host.
fn tcp_segment(mac: [u8; 6], flags: u8, seq: u32, ack: u32) -> Vec<u8> {
    // NEEDS_CSUM, header of 34 bytes before TCP, checksum at 16 within it.
    let mut packet = vec![1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0];
    packet.extend([0x52, 0x54, 0, 0, 0, 0x99]);
    packet.extend(mac);
    packet.extend([8, 0]);
    let mut header = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0, 10, 9, 9, 2, 10, 9, 9, 1];
    let sum = checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(&header);
    packet.extend([0, 9, 0, 7]);
    packet.extend(seq.to_be_bytes());
    packet.extend(ack.to_be_bytes());
    packet.extend([0x50, flags, 0xff, 0xff]);
    // The pseudo header's sum, not inverted, as NEEDS_CSUM wants it.
    let pseudo = !checksum(&[10, 9, 9, 2, 10, 9, 9, 1, 0, 6, 0, 20]);
    packet.extend(pseudo.to_be_bytes());
    packet.extend([0, 0]);
    packet
}

fn checksum(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    !(((sum & 0xffff) + (sum >> 16)) as u16)
}

/// The next TCP packet for the guest, in however many buffers.
fn next_tcp(kit: &mut Kit) -> Vec<u8> {
    loop {
        let mut packet = kit.wait_used(RX).data;
        for _ in 1..packet[10] {
            packet.extend(kit.wait_used(RX).data);
        }
        if packet[24..26] == [8, 0] && packet[35] == 6 {
            return packet;
        }
    }
}
