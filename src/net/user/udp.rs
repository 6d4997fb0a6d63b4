//! UDP: each pair of ends has a connected socket of the host's, so that only answers from there come in, or belongs to a
//! published port. Flows are forgotten when they have been still for a while.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with};
use smoltcp::wire::{IpProtocol, UdpPacket, UdpRepr};

use super::addresses::{GATEWAY, GUEST};
use super::context::Context;
use super::counters::{add, count};
use super::frame::{self, Datagram};
use super::icmp::{self, QUOTE, Unreachable};
use super::poller::Source;

/// Most flows; then the one that has been still for the longest makes room.
const MOST: usize = 1024;
/// How long a flow may be still (RFC 4787, section 4.3).
const IDLE: Duration = Duration::from_secs(120);
/// Datagrams taken from a published port before others get their turn.
const MOST_AT_ONCE: usize = 64;
/// Ports of ours that clients of published ports seem to have.
const FIRST_PORT: u16 = 49152;

/// Both ends of a flow as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ends {
    pub guest: SocketAddr,
    pub outside: SocketAddr,
}

enum Way {
    /// The guest has begun; the socket is connected with the other end.
    Out(OwnedFd),
    /// A client of the published port with this number has.
    In { port: u64, client: SocketAddr },
}

struct Flow {
    ends: Ends,
    way: Way,
    /// How the guest's first packet began, to be sent back if nobody is there.
    quote: Vec<u8>,
    last: Instant,
}

/// All flows.
pub(super) struct Udp {
    flows: HashMap<u64, Flow>,
    ids: HashMap<Ends, u64>,
    clients: HashMap<(u64, SocketAddr), u64>,
    next: u64,
    next_port: u16,
}

impl Udp {
    pub(super) fn new() -> Self {
        let (flows, ids, clients) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { flows, ids, clients, next: 0, next_port: FIRST_PORT }
    }

    /// The guest sends to `to`, which the rules permit.
    pub(super) fn output(&mut self, context: &mut Context, datagram: &Datagram<'_>, ends: Ends, to: SocketAddr) {
        let Ok(udp) = UdpPacket::new_checked(datagram.payload) else { return };
        let payload = udp.payload();
        let id = match self.ids.get(&ends) {
            Some(id) => *id,
            None => match open(context, to, self.next) {
                Ok(socket) => {
                    let quote = datagram.packet.get(..QUOTE.min(datagram.packet.len())).unwrap_or_default().to_vec();
                    self.insert(context, Flow { ends, way: Way::Out(socket), quote, last: context.now })
                }
                Err(error) => return icmp::complain(context, datagram, Unreachable::because(error)),
            },
        };
        let Some(flow) = self.flows.get_mut(&id) else { return };
        flow.last = context.now;
        let Way::Out(socket) = &flow.way else { return };
        let mut sent = send(socket, payload, SendFlags::NOSIGNAL);
        if sent == Err(Errno::CONNREFUSED) {
            // That was about an earlier datagram.
            icmp::complain(context, datagram, Unreachable::Port);
            sent = send(socket, payload, SendFlags::NOSIGNAL);
        }
        match sent {
            Ok(len) => add(&context.counters.sent_bytes, len),
            // No room: UDP may be lost.
            Err(Errno::AGAIN | Errno::NOBUFS | Errno::INTR) => count(&context.counters.dropped),
            Err(error) => icmp::complain(context, datagram, Unreachable::because(error)),
        }
    }

    /// The client of a published port to whom the guest answers, if `ends` are of such a flow: the port's number, and
    /// where to.
    pub(super) fn client(&mut self, context: &Context, ends: Ends) -> Option<(u64, SocketAddr)> {
        let flow = self.flows.get_mut(self.ids.get(&ends)?)?;
        flow.last = context.now;
        match flow.way {
            Way::In { port, client } => Some((port, client)),
            Way::Out(_) => None,
        }
    }

    fn insert(&mut self, context: &Context, flow: Flow) -> u64 {
        if self.flows.len() >= MOST
            && let Some(oldest) = self.flows.iter().min_by_key(|(_, flow)| flow.last).map(|(id, _)| *id)
        {
            count(&context.counters.over_limit);
            self.remove(oldest);
        }
        let id = self.next;
        self.next += 1;
        self.ids.insert(flow.ends, id);
        if let Way::In { port, client } = flow.way {
            self.clients.insert((port, client), id);
        }
        self.flows.insert(id, flow);
        count(&context.counters.udp_flows);
        id
    }

    fn remove(&mut self, id: u64) {
        let Some(flow) = self.flows.remove(&id) else { return };
        self.ids.remove(&flow.ends);
        if let Way::In { port, client } = flow.way {
            self.clients.remove(&(port, client));
        }
    }

    /// The socket of a flow has datagrams, or an error.
    pub(super) fn ready(&mut self, context: &mut Context, id: u64, room: &mut [u8]) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        let Way::Out(socket) = &flow.way else { return };
        loop {
            match recv(socket, &mut *room, RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    flow.last = context.now;
                    deliver(context, flow.ends, room.get(..len).unwrap_or_default());
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(error) => {
                    let Ends { guest, outside } = flow.ends;
                    let why = Unreachable::because(error);
                    return icmp::unreachable(context, guest.ip(), outside.ip(), &flow.quote, why);
                }
            }
        }
    }

    /// Clients have sent to a published port. False if there may be more.
    pub(super) fn arrived(
        &mut self,
        context: &mut Context,
        port: u64,
        socket: &UdpSocket,
        to: u16,
        room: &mut [u8],
    ) -> bool {
        for _ in 0..MOST_AT_ONCE {
            match socket.recv_from(room) {
                Ok((len, client)) => {
                    let known = self.clients.get(&(port, client)).copied();
                    let Some(id) = known.or_else(|| self.welcome(context, port, client, to)) else { continue };
                    let Some(flow) = self.flows.get_mut(&id) else { continue };
                    flow.last = context.now;
                    let ends = flow.ends;
                    deliver(context, ends, room.get(..len).unwrap_or_default());
                }
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return true,
                // An error about an earlier datagram.
                Err(_) => {}
            }
        }
        false
    }

    /// A new client of a published port.
    fn welcome(&mut self, context: &Context, port: u64, client: SocketAddr, to: u16) -> Option<u64> {
        let guest = SocketAddr::new(GUEST.into(), to);
        for _ in FIRST_PORT..=u16::MAX {
            let ours = self.next_port;
            self.next_port = ours.checked_add(1).unwrap_or(FIRST_PORT);
            let ends = Ends { guest, outside: SocketAddr::new(GATEWAY.into(), ours) };
            if !self.ids.contains_key(&ends) {
                let way = Way::In { port, client };
                return Some(self.insert(context, Flow { ends, way, quote: Vec::new(), last: context.now }));
            }
        }
        None
    }

    /// Forgets flows that have been still for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let old: Vec<u64> = self.flows.iter().filter(|(_, flow)| now >= flow.last + IDLE).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.remove(id));
    }

    /// Whether there is anything that can expire.
    pub(super) fn is_empty(&self) -> bool {
        self.flows.is_empty()
    }
}

fn open(context: &Context, to: SocketAddr, id: u64) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::DGRAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    connect(&socket, &to)?;
    context.poller.watch(&socket, Source::Udp(id)).map_err(|_| Errno::NOMEM)?;
    Ok(socket)
}

/// Gives the guest a datagram from the other end.
fn deliver(context: &mut Context, ends: Ends, payload: &[u8]) {
    add(&context.counters.received_bytes, payload.len());
    let frame = datagram_frame(context, ends.outside, ends.guest, payload);
    context.send(frame);
}

/// A frame with a datagram from `source` for the guest at `target`.
pub(super) fn datagram_frame(
    context: &Context,
    source: SocketAddr,
    target: SocketAddr,
    payload: &[u8],
) -> Option<Vec<u8>> {
    let route = context.route(source.ip(), target.ip())?;
    let udp = UdpRepr { src_port: source.port(), dst_port: target.port() };
    frame::ip(route, IpProtocol::Udp, udp.header_len() + payload.len(), |bytes, from, to| {
        let mut packet = UdpPacket::new_unchecked(bytes);
        udp.emit(&mut packet, from, to, payload.len(), |room| room.copy_from_slice(payload), &frame::checksums());
    })
}

/// Both ends of a datagram of the guest's.
pub(super) fn ends(datagram: &Datagram<'_>) -> Option<Ends> {
    let udp = UdpPacket::new_checked(datagram.payload).ok()?;
    let end = |address: IpAddr, port: u16| (port != 0).then_some(SocketAddr::new(address, port));
    Some(Ends { guest: end(datagram.source, udp.src_port())?, outside: end(datagram.target, udp.dst_port())? })
}
