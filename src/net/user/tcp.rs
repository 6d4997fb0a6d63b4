//! TCP: every connection of the guest ends here, in a socket of smoltcp, and goes on in a socket of the host.
//!
//! The guest's SYN waits until the host's connection stands, so that it hears of a refusal as if it were there itself.
//! Packets for the guest are only made when it has room for them ([`Tcp::make_frame`]); until then bytes wait in the
//! buffer of their connection, and when that is full in the host's socket. `connection` moves the bytes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with, sockopt};
use smoltcp::iface::{Interface, SocketSet};
use smoltcp::wire::TcpPacket;

use super::addresses::{GATEWAY, GUEST};
use super::context::{Context, back};
use super::counters::count;
use super::frame::Datagram;
use super::icmp::{self, QUOTE, Unreachable};
use super::poller::{Event, Source};
use super::udp::Ends;

mod connection;
mod wire;

use connection::Connection;
pub(super) use wire::Offload;
use wire::Wire;

/// Most connections, those that are being made included.
const MOST: usize = 2048;
/// Bytes that wait each way of a connection, as long as there are few connections, and when there are many: in all no
/// more than 280 MiB.
const BUFFER: usize = 512 << 10;
const FEW: usize = 32;
const SMALL_BUFFER: usize = 64 << 10;
/// Most times in the list, those that are out of date included.
const MOST_TIMES: usize = 8 * MOST;
/// Ports that clients of published ports seem to have.
const FIRST_PORT: u16 = 49152;
/// When a connection that should send something and does not is looked at again.
const LATER: Duration = Duration::from_millis(10);
/// What a connection wants to send at its end it sends sooner than this: it is longer than acknowledgements wait, and
/// shorter than the time for which TCP remembers connections.
const SOON: Duration = Duration::from_millis(100);

/// All connections.
pub(super) struct Tcp {
    interface: Interface,
    offload: Offload,
    began: Instant,
    connections: HashMap<u64, Connection>,
    ids: HashMap<Ends, u64>,
    /// Those that may have something for the guest.
    ready: VecDeque<u64>,
    /// When which connection wants to be looked at. May be out of date: a connection knows its own time.
    times: BinaryHeap<Reverse<(Instant, u64)>>,
    next: u64,
    next_port: u16,
    /// Where packets are made.
    room: Vec<u8>,
}

impl Tcp {
    pub(super) fn new(now: Instant) -> std::io::Result<Self> {
        let offload = Offload::default();
        Ok(Self {
            interface: wire::interface(offload)?,
            offload,
            began: now,
            connections: HashMap::new(),
            ids: HashMap::new(),
            ready: VecDeque::new(),
            times: BinaryHeap::new(),
            next: 0,
            next_port: FIRST_PORT,
            room: vec![0; wire::ROOM],
        })
    }

    /// What packets for the guest may leave to it from now on.
    pub(super) fn set_offload(&mut self, offload: Offload) -> std::io::Result<()> {
        self.interface = wire::interface(offload)?;
        self.offload = offload;
        Ok(())
    }

    /// Whether connections wait to be looked at.
    pub(super) fn has_work(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether one more connection can be made.
    pub(super) fn has_room(&self) -> bool {
        self.connections.len() < MOST
    }

    /// A packet of a connection that exists. False if there is none.
    pub(super) fn input(&mut self, context: &mut Context, datagram: &Datagram<'_>, ends: Ends) -> bool {
        let Some(id) = self.ids.get(&ends).copied() else { return false };
        let Some(connection) = self.connections.get_mut(&id) else { return false };
        if let Some(sockets) = connection.sockets() {
            let mut wire = Wire::new(Some(datagram.packet), &mut self.room, self.offload);
            self.interface.poll_ingress_single(wire::instant(self.began, context.now), &mut wire, sockets);
            let answer = wire.frame(back(datagram).to);
            if answer.is_some() {
                context.send(answer);
            }
            self.attend(context, id);
        } else if TcpPacket::new_checked(datagram.payload).is_ok_and(|packet| packet.rst()) {
            self.remove(id);
        }
        true
    }

    /// Answers a packet that no connection is for as if nobody listened.
    pub(super) fn refuse(&mut self, context: &mut Context, datagram: &Datagram<'_>) {
        let mut wire = Wire::new(Some(datagram.packet), &mut self.room, self.offload);
        let mut none = SocketSet::new(Vec::new());
        self.interface.poll_ingress_single(wire::instant(self.began, context.now), &mut wire, &mut none);
        let answer = wire.frame(back(datagram).to);
        if answer.is_some() {
            context.send(answer);
        }
    }

    /// The guest begins a connection with its SYN `datagram`, and the rules let it go to `to`.
    pub(super) fn connect(&mut self, context: &mut Context, datagram: &Datagram<'_>, ends: Ends, to: SocketAddr) {
        match open(to) {
            Ok(socket) => self.begin(context, datagram, ends, socket),
            Err(error) => self.fail(context, datagram.packet, ends, error),
        }
    }

    /// The guest begins a connection, which goes on in `socket`.
    pub(super) fn begin(&mut self, context: &mut Context, datagram: &Datagram<'_>, ends: Ends, socket: OwnedFd) {
        if !self.has_room() {
            count(&context.counters.over_limit);
            return self.refuse(context, datagram);
        }
        let syn = datagram.packet.get(..QUOTE.min(datagram.packet.len())).unwrap_or_default();
        if let Err(e) = self.insert(context, Connection::outward(ends, socket, syn.to_vec())) {
            tracing::debug!("cannot watch a connection: {e}");
            self.refuse(context, datagram);
        }
    }

    /// A client of a published port wants to talk to port `to` of the guest.
    pub(super) fn welcome(&mut self, context: &mut Context, socket: OwnedFd, to: u16) {
        let Some(ends) = self.free_ends(SocketAddr::new(GUEST.into(), to)) else { return };
        let size = self.buffer_size();
        let cx = self.interface.context();
        if let Some(connection) = Connection::inward(ends, socket, size, cx)
            && let Ok(id) = self.insert(context, connection)
        {
            count(&context.counters.tcp_connections);
            self.attend(context, id);
        }
    }

    fn free_ends(&mut self, guest: SocketAddr) -> Option<Ends> {
        for _ in FIRST_PORT..=u16::MAX {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            let ends = Ends { guest, outside: SocketAddr::new(GATEWAY.into(), port) };
            if !self.ids.contains_key(&ends) {
                return Some(ends);
            }
        }
        None
    }

    fn buffer_size(&self) -> usize {
        if self.connections.len() < FEW { BUFFER } else { SMALL_BUFFER }
    }

    fn insert(&mut self, context: &Context, connection: Connection) -> std::io::Result<u64> {
        let id = self.next;
        context.poller.watch(connection.socket(), Source::Tcp(id))?;
        self.next += 1;
        self.ids.insert(connection.ends, id);
        self.connections.insert(id, connection);
        Ok(id)
    }

    fn remove(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            self.ids.remove(&connection.ends);
        }
    }

    /// The host's socket of a connection became ready for something.
    pub(super) fn ready(&mut self, context: &mut Context, id: u64, event: Event) {
        let size = self.buffer_size();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.set_ready(event.readable, event.writable);
        if connection.is_connecting() {
            if !event.writable {
                return;
            }
            let failed = match sockopt::socket_error(connection.socket()) {
                Ok(Ok(())) => None,
                Ok(Err(error)) | Err(error) => Some(error),
            };
            let (ends, syn) = (connection.ends, connection.open(size));
            if let Some(error) = failed {
                self.remove(id);
                return self.fail(context, &syn, ends, error);
            }
            count(&context.counters.tcp_connections);
            self.accept(context, id, &syn);
        }
        self.attend(context, id);
    }

    /// The host's connection stands: now the guest's SYN is heard.
    fn accept(&mut self, context: &Context, id: u64, syn: &[u8]) {
        let Some(sockets) = self.connections.get_mut(&id).and_then(Connection::sockets) else { return };
        let mut wire = Wire::new(Some(syn), &mut self.room, self.offload);
        self.interface.poll_ingress_single(wire::instant(self.began, context.now), &mut wire, sockets);
    }

    /// The host could not connect: the guest hears why.
    fn fail(&mut self, context: &mut Context, syn: &[u8], ends: Ends, error: Errno) {
        count(&context.counters.tcp_failed);
        tracing::debug!("connection of the guest with {} failed: {error}", ends.outside);
        match Unreachable::because(error) {
            Unreachable::Port => self.reset(context, syn, ends),
            _ if error == Errno::CONNRESET || error == Errno::MFILE || error == Errno::NFILE => {
                self.reset(context, syn, ends);
            }
            why => icmp::unreachable(context, ends.guest.ip(), ends.outside.ip(), syn, why),
        }
    }

    fn reset(&mut self, context: &mut Context, syn: &[u8], ends: Ends) {
        let Some(route) = context.route(ends.outside.ip(), ends.guest.ip()) else { return };
        let mut wire = Wire::new(Some(syn), &mut self.room, self.offload);
        let mut none = SocketSet::new(Vec::new());
        self.interface.poll_ingress_single(wire::instant(self.began, context.now), &mut wire, &mut none);
        let frame = wire.frame(route.to);
        context.send(frame);
    }

    /// Moves the bytes of a connection, and sees what it wants next.
    fn attend(&mut self, context: &mut Context, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        connection.transfer(&context.counters);
        self.schedule(context.now, id, false);
    }

    /// Puts a connection where it is looked at in time. `in_vain`: it had nothing to say although it should.
    fn schedule(&mut self, now: Instant, id: u64, in_vain: bool) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let Some(sockets) = connection.sockets() else { return };
        let at = self.interface.poll_at(wire::instant(self.began, now), sockets);
        let at = at.map(|at| self.began + Duration::from_micros(at.total_micros().max(0).cast_unsigned()));
        if connection.is_over(at.is_some_and(|at| at <= now + SOON)) {
            return self.remove(id);
        }
        let Some(at) = at else { return };
        if at <= now && !in_vain {
            if connection.enqueue() {
                self.ready.push_back(id);
            }
            return;
        }
        let at = if in_vain { at.max(now + LATER) } else { at };
        if connection.wants_earlier(at) {
            self.times.push(Reverse((at, id)));
            self.tidy_times();
        }
    }

    /// Drops times that are out of date before there are too many.
    fn tidy_times(&mut self) {
        if self.times.len() > MOST_TIMES {
            let times = self.connections.iter().filter_map(|(id, connection)| Some(Reverse((connection.time()?, *id))));
            self.times = times.collect();
        }
    }

    /// Looks at the connections whose time has come.
    pub(super) fn expire(&mut self, context: &mut Context) {
        while let Some(Reverse((at, id))) = self.times.peek().copied()
            && at <= context.now
        {
            self.times.pop();
            if let Some(connection) = self.connections.get_mut(&id)
                && connection.time_came(at)
                && connection.enqueue()
            {
                self.ready.push_back(id);
            }
        }
    }

    /// When [`Tcp::expire`] has something to do.
    pub(super) fn next_time(&self) -> Option<Instant> {
        self.times.peek().map(|Reverse((at, _))| *at)
    }

    /// Makes the next packet for the guest, for [`Tcp::frame`]; returns its length. Connections take turns.
    pub(super) fn make_frame(&mut self, context: &mut Context) -> Option<usize> {
        let mut made = None;
        while made.is_none() {
            let id = self.ready.pop_front()?;
            let Some(connection) = self.connections.get_mut(&id) else { continue };
            connection.dequeue();
            let ends = connection.ends;
            let Some(route) = context.route(ends.outside.ip(), ends.guest.ip()) else { continue };
            let Some(sockets) = connection.sockets() else { continue };
            let mut wire = Wire::new(None, &mut self.room, self.offload);
            self.interface.poll_egress(wire::instant(self.began, context.now), &mut wire, sockets);
            made = wire.finish(route.to);
            self.schedule(context.now, id, made.is_none());
        }
        made
    }

    /// The packet that was made last.
    pub(super) fn frame(&self, len: usize) -> &[u8] {
        self.room.get(..len).unwrap_or_default()
    }
}

/// A socket that connects with `to`.
fn open(to: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, SocketType::STREAM, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
    // The guest has decided already what goes into one packet.
    sockopt::set_tcp_nodelay(&socket, true)?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}

/// Both ends of a segment, and whether it begins a connection.
pub(super) fn ends(datagram: &Datagram<'_>) -> Option<(Ends, bool)> {
    let packet = TcpPacket::new_checked(datagram.payload).ok()?;
    let end = |address: IpAddr, port: u16| (port != 0).then_some(SocketAddr::new(address, port));
    let ends =
        Ends { guest: end(datagram.source, packet.src_port())?, outside: end(datagram.target, packet.dst_port())? };
    Some((ends, packet.syn() && !packet.ack() && !packet.rst() && !packet.fin()))
}
