//! Moves packets between the queues and the connections; accepts and makes connections on the host's side.

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::connection::{Connection, Ports, State, Verdict};
use super::handshake::{Handshake, Progress};
use super::packet::{HEADER_LEN, HOST_CID, Header, STREAM, op};
use super::table::{Slot, Table};
use crate::host::alarm::Alarm;
use crate::host::log_limit::LogLimit;
use crate::host::socket::Listening;
use crate::host::vectored::Scatter;
use crate::virtio::queue::Queues;
use crate::virtio::{Broken, Chain, Handler, Interest};

/// The queues (section 5.10.2), from the guest's point of view.
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;

/// Tokens of descriptors; those of slots follow.
const LISTENER: u32 = 0;
const ALARM: u32 = 1;
const FIRST_SLOT: u32 = 2;

/// Resets that wait for the guest's buffers. A guest that causes more without offering buffers does not hear of them.
const MOST_RESETS: usize = 256;
/// Programs accepted before others on the loop get their turn.
const MOST_ACCEPTED: usize = 16;
/// When to look again after no program could be accepted (too many open files).
const RETRY: Duration = Duration::from_millis(100);

/// What bounds the resources of one guest.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most connections, together with programs that are about to make one.
    pub connections: usize,
    /// How long each side has to answer the other.
    pub patience: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        // Linux waits 8 s for the other side to agree to an end.
        Self { connections: 1024, patience: Duration::from_secs(8) }
    }
}

pub(super) struct VsockHandler {
    listener: Arc<Listening>,
    path: PathBuf,
    cid: u64,
    limits: Limits,
    alarm: Alarm,
    table: Table,
    /// Slots of connections that have packets for the guest.
    ready: VecDeque<usize>,
    /// Packets that belong to no connection (any more).
    resets: VecDeque<Header>,
    /// A buffer for which there was no packet after all.
    spare: Option<Chain>,
    scatter: Scatter,
    /// The listener is not watched.
    paused: bool,
    /// No program could be accepted just now.
    failed: bool,
}

impl VsockHandler {
    pub(super) fn new(listener: Arc<Listening>, path: PathBuf, cid: u64, alarm: Alarm, limits: Limits) -> Self {
        Self {
            listener,
            path,
            cid,
            limits,
            alarm,
            table: Table::new(limits.connections),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            spare: None,
            scatter: Scatter::default(),
            paused: false,
            failed: false,
        }
    }

    /// A time by which somebody must have answered.
    fn deadline(&self) -> Instant {
        self.alarm.set(self.limits.patience);
        Instant::now() + self.limits.patience
    }

    // Packets from the guest.

    fn transmit(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        while let Some(mut chain) = queues.queue(TRANSMIT).pop()? {
            let mut header = [0; HEADER_LEN];
            chain.read_exact(&mut header)?;
            self.packet(&Header::parse(&header), &mut chain, queues);
            queues.queue(TRANSMIT).push(chain, 0)?;
        }
        Ok(())
    }

    fn packet(&mut self, header: &Header, chain: &mut Chain, queues: &mut Queues) {
        static SPOOFED: LogLimit = LogLimit::new();
        if header.src_cid != self.cid {
            if SPOOFED.allow() {
                tracing::debug!("vsock packet dropped: it is from {}, not from the guest", header.src_cid);
            }
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let known = header.dst_cid == HOST_CID && header.kind == STREAM;
        let slot = if known { self.table.find(ports) } else { None };
        let complete = header.len as usize <= chain.readable_len();
        match slot {
            Some(slot) => {
                chain.limit_readable(header.len as usize);
                let Some(connection) = self.table.connection(slot) else { return };
                let verdict = if complete { connection.packet(header, chain) } else { Verdict::Reset };
                self.follow(slot, verdict, queues);
            }
            None if header.op == op::RST => {}
            None if known && complete && header.op == op::REQUEST => self.request(header, queues),
            None => self.reset(header.reset()),
        }
    }

    fn request(&mut self, header: &Header, queues: &mut Queues) {
        static FULL: LogLimit = LogLimit::new();
        let full = self.table.is_full();
        if full && FULL.allow() {
            tracing::warn!("vsock: a connection of the guest is refused: it has {} already", self.limits.connections);
        }
        let stream = if full { None } else { self.connect(header.dst_port) };
        let connection = stream.map(|stream| Connection::accepted(header, stream, self.table.backlog()));
        match connection.and_then(|connection| self.table.insert(Slot::Connection(Box::new(connection)))) {
            Some(slot) => self.follow(slot, Verdict::Keep, queues),
            None => self.reset(header.reset()),
        }
    }

    /// The program of the host that serves `port`.
    fn connect(&self, port: u32) -> Option<OwnedFd> {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{port}"));
        let address = SocketAddrUnix::new(&path).ok()?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
        match connect(&stream, &address) {
            Ok(()) => Some(stream),
            Err(e) => {
                tracing::debug!("guest's connection to port {port}: {}: {e}", PathBuf::from(path).display());
                None
            }
        }
    }

    fn reset(&mut self, header: Header) {
        if self.resets.len() < MOST_RESETS {
            self.resets.push_back(header);
        }
    }

    // What follows from a change of a connection.

    fn follow(&mut self, slot: usize, verdict: Verdict, queues: &mut Queues) {
        if verdict != Verdict::Keep {
            return self.end(slot, verdict, queues);
        }
        let deadline = self.limits.patience;
        let Some(connection) = self.table.connection(slot) else { return };
        if connection.state == State::Closing && connection.deadline.is_none() {
            connection.deadline = Some(Instant::now() + deadline);
            self.alarm.set(deadline);
        }
        if let Some(stream) = connection.take_stream() {
            queues.unwatch(stream.as_raw_fd());
            connection.watched = None;
        }
        if connection.has_packet() && !connection.queued {
            connection.queued = true;
            self.ready.push_back(slot);
        }
        let (Some(fd), wanted) = (connection.fd(), connection.interest()) else { return };
        if wanted == connection.watched {
            return;
        }
        connection.watched = wanted;
        let Some(interest) = wanted else { return queues.unwatch(fd) };
        if let Err(e) = queues.watch(fd, FIRST_SLOT + slot as u32, interest) {
            static UNWATCHED: LogLimit = LogLimit::new();
            if UNWATCHED.allow() {
                tracing::warn!("vsock connection ended: its socket cannot be watched: {e}");
            }
            self.end(slot, Verdict::Reset, queues);
        }
    }

    fn end(&mut self, slot: usize, verdict: Verdict, queues: &mut Queues) {
        match self.table.remove(slot) {
            Some(Slot::Connection(connection)) => {
                if let Some(fd) = connection.fd() {
                    queues.unwatch(fd);
                }
                if connection.queued {
                    self.ready.retain(|&other| other != slot);
                }
                if verdict == Verdict::Reset {
                    let Ports { host: src_port, guest: dst_port } = connection.ports();
                    let (src_cid, dst_cid, kind, op) = (HOST_CID, self.cid, STREAM, op::RST);
                    self.reset(Header { src_cid, dst_cid, src_port, dst_port, kind, op, ..Header::default() });
                }
            }
            Some(Slot::Handshake(handshake)) => queues.unwatch(handshake.stream().as_raw_fd()),
            None => {}
        }
    }

    // Packets for the guest.

    /// Fills the guest's buffers as long as there are both packets and buffers. Connections take turns.
    fn receive(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        while !self.resets.is_empty() || !self.ready.is_empty() {
            let Some(mut chain) = self.buffer(queues)? else { return Ok(()) };
            if let Some(header) = self.resets.pop_front() {
                give(chain, &header, queues)?;
                continue;
            }
            let slot = self.ready.pop_front();
            let Some((slot, connection)) = slot.and_then(|slot| Some((slot, self.table.connection(slot)?))) else {
                self.spare = Some(chain);
                continue;
            };
            connection.queued = false;
            match connection.next_packet(&mut chain, &mut self.scatter) {
                Some(header) => give(chain, &Header { dst_cid: self.cid, ..header }, queues)?,
                None => self.spare = Some(chain),
            }
            let verdict = connection.after_packet();
            self.follow(slot, verdict, queues);
        }
        Ok(())
    }

    fn buffer(&mut self, queues: &mut Queues) -> Result<Option<Chain>, Broken> {
        if let Some(chain) = self.spare.take() {
            return Ok(Some(chain));
        }
        let Some(mut chain) = queues.queue(RECEIVE).pop()? else { return Ok(None) };
        if chain.writable_len() <= HEADER_LEN {
            return Err(Broken(format!("a receive buffer of {} bytes has no room for data", chain.writable_len())));
        }
        chain.take_header(HEADER_LEN)?;
        Ok(Some(chain))
    }

    // The host's side.

    fn accept(&mut self, queues: &mut Queues) {
        for count in 0..MOST_ACCEPTED {
            if self.table.is_full() {
                return;
            }
            let Some(stream) = self.listener.accept() else {
                // Nobody there although the listener is ready: too many open files, which would wake us over and over.
                self.failed = count == 0;
                if self.failed {
                    self.alarm.set(RETRY);
                }
                return;
            };
            let fd = stream.as_fd().as_raw_fd();
            let handshake = Handshake::new(stream, self.deadline());
            let Some(slot) = self.table.insert(Slot::Handshake(handshake)) else { return };
            if queues.watch(fd, FIRST_SLOT + slot as u32, Interest::Read).is_err() {
                self.table.remove(slot);
            }
        }
    }

    fn slot_ready(&mut self, slot: usize, queues: &mut Queues) {
        let progress = match self.table.get(slot) {
            None => return,
            Some(Slot::Connection(connection)) => {
                let verdict = connection.event();
                return self.follow(slot, verdict, queues);
            }
            Some(Slot::Handshake(handshake)) => handshake.advance(),
        };
        match progress {
            Progress::More => {}
            Progress::Wrong => self.end(slot, Verdict::Forget, queues),
            Progress::Port(guest) => {
                let Some(Slot::Handshake(handshake)) = self.table.remove(slot) else { return };
                queues.unwatch(handshake.stream().as_raw_fd());
                let ports = self.table.new_ports(guest);
                let (stream, backlog) = (handshake.into_stream(), self.table.backlog());
                let connection = Connection::requested(ports, stream, backlog, self.deadline());
                if let Some(slot) = self.table.insert(Slot::Connection(Box::new(connection))) {
                    self.follow(slot, Verdict::Keep, queues);
                }
            }
        }
    }

    fn alarmed(&mut self, queues: &mut Queues) {
        self.alarm.stop();
        self.failed = false;
        let now = Instant::now();
        for slot in self.table.overdue(now) {
            // A guest that has agreed to nothing so far may still think that there is a connection.
            let requested = self.table.connection(slot).is_some_and(|c| c.state == State::Requested);
            self.end(slot, if requested { Verdict::Reset } else { Verdict::Forget }, queues);
        }
        if let Some(next) = self.table.next_deadline() {
            self.alarm.set(next.saturating_duration_since(now));
        }
    }

    /// Lets programs wait outside as long as there is no room for them.
    fn pace(&mut self, queues: &mut Queues) {
        let paused = self.failed || self.table.is_full();
        if paused != self.paused {
            static WAITING: LogLimit = LogLimit::new();
            self.paused = paused;
            if paused && WAITING.allow() {
                let why = if self.failed { "the host has no file descriptors left" } else { "it has all it may have" };
                tracing::warn!("vsock: programs of the host wait for a connection to the guest: {why}");
            }
            queues.pause(LISTENER, paused);
        }
    }
}

fn give(mut chain: Chain, header: &Header, queues: &mut Queues) -> Result<(), Broken> {
    chain.set_header(&header.bytes());
    let written = chain.written();
    queues.queue(RECEIVE).push(chain, written)
}

impl Handler for VsockHandler {
    fn fds(&self) -> Vec<(RawFd, u32)> {
        vec![(self.listener.as_raw_fd(), LISTENER), (self.alarm.as_raw_fd(), ALARM)]
    }

    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        if index == TRANSMIT {
            self.transmit(queues)?;
        }
        self.receive(queues)?;
        self.pace(queues);
        Ok(())
    }

    fn on_fd(&mut self, token: u32, queues: &mut Queues) -> Result<(), Broken> {
        match token {
            LISTENER => self.accept(queues),
            ALARM => self.alarmed(queues),
            _ => self.slot_ready(token.saturating_sub(FIRST_SLOT) as usize, queues),
        }
        self.receive(queues)?;
        self.pace(queues);
        Ok(())
    }
}
