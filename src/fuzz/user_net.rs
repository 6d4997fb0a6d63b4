//! The network of `--net user` against a guest that sends anything. Its rules let it reach one port of this process's
//! own and a resolver that does not exist: no input leaves the host.

use std::net::TcpListener;
use std::sync::OnceLock;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, IpRepr, Ipv4Packet, TcpPacket,
};

use super::Input;
use crate::net::HEADER_LEN;
use crate::net::user::{Config, DNS, DNS6, GATEWAY, GATEWAY6, GUEST, GUEST6, UserNet, config};

/// Frames of one input.
const STEPS: usize = 64;
const BEFORE: usize = HEADER_LEN + 14;
const GUEST_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 1, 2, 3]);
const GATEWAY_MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);
const PROTOCOLS: [IpProtocol; 4] = [IpProtocol::Tcp, IpProtocol::Udp, IpProtocol::Icmp, IpProtocol::Icmpv6];

/// A port where connections can be made: those of earlier inputs are let go of, so that there is always room.
fn port() -> u16 {
    static LISTENER: OnceLock<TcpListener> = OnceLock::new();
    let listener = LISTENER.get_or_init(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    });
    while listener.accept().is_ok() {}
    listener.local_addr().map_or(1, |at| at.port())
}

/// Frames as the input says: any bytes, packets with good headers, answers to what the network has sent.
pub(super) fn frames(data: &[u8]) {
    let allow = config::list(&format!("host.internal:{}+*.example", port())).unwrap();
    let dns = Some("127.0.0.1:1".parse().unwrap());
    let net = UserNet::open(&Config { allow, dns, ..Config::default() }).unwrap();
    let mut input = Input(data);
    let mut last = Vec::new();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let kind = input.byte();
        let frame = match kind % 4 {
            0 => {
                let len = input.below(200);
                input.bytes(len).to_vec()
            }
            1 => answer(&last, &mut input),
            _ => packet(&mut input, kind),
        };
        net.input(&frame);
        for _ in 0..input.byte() % 8 {
            let Some(made) = net.output() else { break };
            assert!(made.len() >= BEFORE, "{made:x?}");
            last = made;
        }
    }
}

/// A packet of the guest's, with valid headers up to IP; its checksums are said to be unfinished.
fn packet(input: &mut Input<'_>, kind: u8) -> Vec<u8> {
    let four = kind & 4 != 0;
    let targets: [IpAddress; 3] = match four {
        true => [GATEWAY.into(), DNS.into(), IpAddress::v4(192, 0, 2, 1)],
        false => [GATEWAY6.into(), DNS6.into(), IpAddress::v6(0xff02, 0, 0, 0, 0, 0, 0, 2)],
    };
    let source: IpAddress = if four { GUEST.into() } else { GUEST6.into() };
    let protocol = PROTOCOLS[input.below(PROTOCOLS.len())];
    let target = targets[input.below(targets.len())];
    let len = input.below(120);
    let mut payload = input.bytes(len).to_vec();
    let ports = [port(), 53, 67];
    if let Some(field) = payload.get_mut(2..4).filter(|_| kind & 8 != 0) {
        field.copy_from_slice(&ports[usize::from(kind >> 4) % ports.len()].to_be_bytes());
    }
    if let Some(field) = payload.get_mut(12).filter(|_| protocol == IpProtocol::Tcp && kind & 16 != 0) {
        *field = 5 << 4;
    }
    ip(source, target, protocol, &payload)
}

fn ip(source: IpAddress, target: IpAddress, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    let repr = IpRepr::new(source, target, protocol, payload.len(), 255);
    let mut frame = vec![0; BEFORE + repr.header_len() + payload.len()];
    frame[0] = 1;
    let mut ethernet = EthernetFrame::new_unchecked(&mut frame[HEADER_LEN..]);
    ethernet.set_src_addr(GUEST_MAC);
    ethernet.set_dst_addr(GATEWAY_MAC);
    let four = matches!(source, IpAddress::Ipv4(_));
    ethernet.set_ethertype(if four { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 });
    repr.emit(&mut frame[BEFORE..], &ChecksumCapabilities::default());
    frame[BEFORE + repr.header_len()..].copy_from_slice(payload);
    frame
}

/// A segment that fits to the last one of the network's: most of what TCP does is only reached by those.
fn answer(last: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let Some(packet) = last.get(BEFORE..).and_then(|bytes| Ipv4Packet::new_checked(bytes).ok()) else {
        return Vec::new();
    };
    let Ok(theirs) = TcpPacket::new_checked(packet.payload()) else { return Vec::new() };
    let len = input.below(100);
    let mut bytes = vec![0; 20];
    bytes.extend(input.bytes(len));
    let mut ours = TcpPacket::new_unchecked(&mut bytes);
    ours.set_src_port(theirs.dst_port());
    ours.set_dst_port(theirs.src_port());
    ours.set_seq_number(theirs.ack_number() + usize::from(input.byte() % 3));
    ours.set_ack_number(theirs.seq_number() + theirs.segment_len() + usize::from(input.byte() % 3));
    ours.set_header_len(20);
    ours.set_window_len(input.u16());
    let flags = input.byte();
    ours.set_ack(flags & 7 != 0);
    ours.set_fin(flags & 8 != 0);
    ours.set_rst(flags & 0x30 == 0x30);
    ours.set_syn(flags & 0xc0 == 0xc0);
    ip(GUEST.into(), packet.src_addr().into(), IpProtocol::Tcp, &bytes)
}

/// A connection that is made, a name that is asked for, DHCP.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    // kind 2|4|8|16, protocol TCP, to the gateway, 20 bytes: a SYN; two frames out; an acknowledgement with data.
    let mut connection =
        vec![30, 0, 0, 0, 0, 20, 0, 0x30, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 4, 0, 0, 0, 0, 0, 2];
    connection.extend([1, 4, 0, b'd', b'a', b't', b'a', 0, 0, 0, 16, 7, 2, 1, 0, 0, 0, 0, 0, 16, 15, 2]);
    let mut name = vec![30, 1, 0, 1, 0, 37, 0, 4, 0, 0, 53, 0, 37, 0, 0, 0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    name.extend(b"\x01a\x07example\x00\x00\x01\x00\x01");
    name.push(3);
    vec![connection, name]
}
