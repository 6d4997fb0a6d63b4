//! One connection: a UNIX socket on the host's side, packets with credit on the guest's (section 5.10.6.3).
//!
//! Towards the host, bytes go from guest RAM straight into the socket. What the socket does not take is kept in a
//! backlog, no longer than the credit that the guest has been given. Towards the guest, bytes are read from the socket
//! straight into its buffers, no more than it has given credit for; the rest stays in the socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use rustix::net::{SendFlags, Shutdown};

use super::packet::{HOST_CID, Header, NO_MORE, NO_RECEIVE, NO_SEND, STREAM, op};
use crate::host::vectored::{self, Scatter};
use crate::virtio::{Chain, Interest};

/// Names a connection: ports of host and guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ports {
    pub host: u32,
    pub guest: u32,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// We asked the guest and wait for its answer.
    Requested,
    /// Data may flow.
    Open,
    /// We are done and wait for the guest to agree; the host's end is closed.
    Closing,
}

/// What shall become of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Keep,
    /// It is at an end; the guest is to be told.
    Reset,
    /// It is at an end, and the guest knows.
    Forget,
}

/// Control packets that are due, as bits.
type Due = u8;
const DUE_REQUEST: Due = 1;
const DUE_RESPONSE: Due = 2;
const DUE_SHUTDOWN: Due = 4;
const DUE_CREDIT_REQUEST: Due = 8;
const DUE_CREDIT_UPDATE: Due = 16;

#[derive(Debug)]
pub(super) struct Connection {
    ports: Ports,
    pub state: State,
    /// None once nothing more can come or go.
    stream: Option<OwnedFd>,
    /// Until when the guest has time to answer.
    pub deadline: Option<Instant>,
    /// Waits in the list of those that have packets for the guest.
    pub queued: bool,
    /// What the descriptor is watched for now.
    pub watched: Option<Interest>,
    due: Due,
    /// The socket may have something to read; until it is known to be empty nobody waits for that.
    readable: bool,
    /// The host's end is gone for good; what it sent may still be there.
    hung_up: bool,
    /// `NO_SEND`, `NO_RECEIVE` as the guest said.
    guest_done: u32,
    /// The same of the host.
    host_done: u32,
    /// Bytes from the guest that the socket did not take yet.
    backlog: VecDeque<u8>,
    /// Most bytes of `backlog`, as told to the guest.
    buf_alloc: u32,
    /// Bytes from the guest, and those of them that the socket has taken, modulo 2^32.
    received: u32,
    forwarded: u32,
    /// What the guest was last told of `forwarded`.
    told: u32,
    /// Bytes sent to the guest, modulo 2^32.
    sent: u32,
    /// The same as `buf_alloc` and `forwarded`, of the guest.
    peer_alloc: u32,
    peer_forwarded: u32,
    /// The guest was asked for credit.
    asked: bool,
}

impl Connection {
    fn new(ports: Ports, stream: OwnedFd, buf_alloc: u32, state: State, due: Due) -> Self {
        Self {
            ports,
            state,
            stream: Some(stream),
            deadline: None,
            queued: false,
            watched: None,
            due,
            readable: false,
            hung_up: false,
            guest_done: 0,
            host_done: 0,
            backlog: VecDeque::new(),
            buf_alloc,
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer_alloc: 0,
            peer_forwarded: 0,
            asked: false,
        }
    }

    /// A connection that the host wants.
    pub(super) fn requested(ports: Ports, stream: OwnedFd, buf_alloc: u32, deadline: Instant) -> Self {
        let connection = Self::new(ports, stream, buf_alloc, State::Requested, DUE_REQUEST);
        Self { deadline: Some(deadline), ..connection }
    }

    /// A connection that the guest wants with `request`, and that the host has accepted.
    pub(super) fn accepted(request: &Header, stream: OwnedFd, buf_alloc: u32) -> Self {
        let ports = Ports { host: request.dst_port, guest: request.src_port };
        let mut connection = Self::new(ports, stream, buf_alloc, State::Open, DUE_RESPONSE);
        connection.take_credit(request);
        connection
    }

    pub(super) fn ports(&self) -> Ports {
        self.ports
    }

    /// The descriptor, while there is one.
    pub(super) fn fd(&self) -> Option<RawFd> {
        self.stream.as_ref().map(AsRawFd::as_raw_fd)
    }

    fn take_credit(&mut self, header: &Header) {
        (self.peer_alloc, self.peer_forwarded) = (header.buf_alloc, header.fwd_cnt);
        self.asked &= self.credit() == 0;
    }

    /// Bytes that the guest has room for. A guest that counts wrongly gets nothing.
    fn credit(&self) -> usize {
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded)) as usize
    }

    /// Whether what the socket has is still wanted.
    fn reads(&self) -> bool {
        self.state == State::Open && self.host_done & NO_SEND == 0 && self.guest_done & NO_RECEIVE == 0
    }

    /// Whether there is a packet for the guest.
    pub(super) fn has_packet(&self) -> bool {
        self.due != 0 || self.readable && self.reads() && (self.credit() > 0 || !self.asked)
    }

    /// A packet from the guest, whose payload is what is left to read of `chain`.
    pub(super) fn packet(&mut self, header: &Header, chain: &mut Chain) -> Verdict {
        if header.op != op::RST {
            self.take_credit(header);
        }
        match (header.op, self.state) {
            (op::RST, _) => Verdict::Forget,
            (op::RESPONSE, State::Requested) => self.answered(),
            (op::RW, State::Open | State::Closing) => self.data(chain),
            (op::SHUTDOWN, State::Closing) => Verdict::Reset,
            (op::SHUTDOWN, State::Open) => {
                self.guest_done |= header.flags & NO_MORE;
                self.stop_directions()
            }
            (op::CREDIT_UPDATE, _) => Verdict::Keep,
            (op::CREDIT_REQUEST, _) => {
                self.due |= DUE_CREDIT_UPDATE;
                Verdict::Keep
            }
            _ => Verdict::Reset,
        }
    }

    /// The guest accepted: the host's program learns its port and may begin.
    fn answered(&mut self) -> Verdict {
        let line = format!("OK {}\n", self.ports.host);
        (self.state, self.deadline) = (State::Open, None);
        self.backlog.extend(line.as_bytes());
        // The line is none of the guest's bytes and must not count as such: a new socket has room for it.
        match self.write_backlog() {
            Ok(()) if self.backlog.is_empty() => Verdict::Keep,
            _ => Verdict::Reset,
        }
    }

    fn data(&mut self, chain: &mut Chain) -> Verdict {
        let len = chain.readable_len();
        if self.backlog.len() + len > self.buf_alloc as usize || self.guest_done & NO_SEND != 0 {
            return Verdict::Reset;
        }
        self.received = self.received.wrapping_add(len as u32);
        let mut gone = 0;
        if self.backlog.is_empty() && self.host_done & NO_RECEIVE == 0 {
            while let Some(stream) = self.stream.as_ref().filter(|_| chain.readable_len() > 0) {
                match vectored::send(stream, chain.readable()) {
                    Ok(count) => {
                        chain.skip_readable(count);
                        gone += count;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => {
                        self.host_closed(NO_RECEIVE);
                        break;
                    }
                }
            }
        }
        if self.host_done & NO_RECEIVE != 0 || self.stream.is_none() {
            // Nobody will ever read it; as far as the guest is concerned it is delivered.
            gone = len;
        } else {
            self.keep(chain);
        }
        self.forward(gone);
        self.stop_directions()
    }

    /// Appends the rest of `chain` to the backlog.
    fn keep(&mut self, chain: &mut Chain) {
        let mut piece = [0; 4096];
        loop {
            let count = chain.read(&mut piece);
            if count == 0 {
                return;
            }
            self.backlog.extend(piece.get(..count).unwrap_or_default());
        }
    }

    /// `count` bytes more of the guest's have left. Tells the guest before it has to wait.
    fn forward(&mut self, count: usize) {
        self.forwarded = self.forwarded.wrapping_add(count as u32);
        let believed = self.buf_alloc.saturating_sub(self.received.wrapping_sub(self.told));
        if self.told != self.forwarded && believed < self.buf_alloc / 2 {
            self.due |= DUE_CREDIT_UPDATE;
        }
    }

    /// The host's end is closed in these directions.
    fn host_closed(&mut self, directions: u32) {
        if directions & !self.host_done != 0 {
            self.host_done |= directions;
            self.due |= DUE_SHUTDOWN;
        }
        if directions & NO_RECEIVE != 0 {
            let lost = std::mem::take(&mut self.backlog).len();
            self.forward(lost);
        }
    }

    fn write_backlog(&mut self) -> io::Result<()> {
        let Some(stream) = &self.stream else { return Ok(()) };
        while !self.backlog.is_empty() {
            let (first, _) = self.backlog.as_slices();
            match rustix::net::send(stream, first, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(count) => drop(self.backlog.drain(..count)),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
        // Most connections never need it again.
        self.backlog = VecDeque::new();
        Ok(())
    }

    /// The socket is ready for what it was watched for, or its other end is gone.
    pub(super) fn event(&mut self) -> Verdict {
        if !self.backlog.is_empty() {
            let before = self.backlog.len();
            let written = self.write_backlog();
            self.forward(before - self.backlog.len());
            if written.is_err() {
                self.host_closed(NO_RECEIVE);
            }
        }
        match self.watched {
            Some(Interest::Read | Interest::Both) => self.readable = true,
            Some(Interest::Hangup) => self.hung_up = true,
            _ => {}
        }
        if self.hung_up && self.state == State::Requested {
            return Verdict::Reset;
        }
        if self.hung_up && !self.reads() {
            self.host_closed(NO_MORE);
        }
        self.stop_directions()
    }

    /// Closes what is over, after any change.
    fn stop_directions(&mut self) -> Verdict {
        if self.state != State::Open {
            return Verdict::Keep;
        }
        let from_host = !self.reads();
        let from_guest = self.host_done & NO_RECEIVE != 0 || self.guest_done & NO_SEND != 0 && self.backlog.is_empty();
        if from_host && from_guest && self.guest_done == NO_MORE {
            return Verdict::Reset;
        }
        if from_host && from_guest {
            self.host_closed(NO_MORE);
            (self.state, self.readable) = (State::Closing, false);
            return Verdict::Keep;
        }
        if let Some(stream) = &self.stream {
            // These fail only if the other end is gone, which shows by itself.
            if self.guest_done & NO_RECEIVE != 0 {
                let _ = rustix::net::shutdown(stream, Shutdown::Read);
            }
            if from_guest {
                let _ = rustix::net::shutdown(stream, Shutdown::Write);
            }
        }
        Verdict::Keep
    }

    /// Takes the socket of a connection that needs it no more, to be closed.
    pub(super) fn take_stream(&mut self) -> Option<OwnedFd> {
        if self.state == State::Closing { self.stream.take() } else { None }
    }

    /// What to watch the socket for.
    pub(super) fn interest(&self) -> Option<Interest> {
        let read = self.reads() && !self.readable;
        match (read, !self.backlog.is_empty()) {
            (true, true) => Some(Interest::Both),
            (true, false) => Some(Interest::Read),
            (false, true) => Some(Interest::Write),
            // A hang-up is told as long as somebody listens.
            (false, false) => (!self.hung_up).then_some(Interest::Hangup),
        }
    }

    /// The next packet for the guest, its payload in `chain` (behind the header). None if there is none after all;
    /// then `chain` is as before.
    pub(super) fn next_packet(&mut self, chain: &mut Chain, scatter: &mut Scatter) -> Option<Header> {
        let opening = [(DUE_REQUEST, op::REQUEST), (DUE_RESPONSE, op::RESPONSE)];
        if let Some((due, op)) = opening.into_iter().find(|(due, _)| self.due & due != 0) {
            self.due &= !due;
            return Some(self.header(op, 0));
        }
        let read = if self.readable && self.reads() { self.read(chain, scatter) } else { None };
        if let Some(len) = read {
            return Some(self.header(op::RW, len));
        }
        let closing = [
            (DUE_SHUTDOWN, op::SHUTDOWN),
            (DUE_CREDIT_REQUEST, op::CREDIT_REQUEST),
            (DUE_CREDIT_UPDATE, op::CREDIT_UPDATE),
        ];
        let (due, op) = closing.into_iter().find(|(due, _)| self.due & due != 0)?;
        self.due &= !due;
        Some(self.header(op, 0))
    }

    /// Moves bytes from the socket to the guest; returns their number, if there are any.
    fn read(&mut self, chain: &mut Chain, scatter: &mut Scatter) -> Option<u32> {
        let stream = self.stream.as_ref()?;
        let most = self.credit().min(chain.writable_len());
        if most == 0 {
            if !self.asked {
                (self.asked, self.due) = (true, self.due | DUE_CREDIT_REQUEST);
            }
            return None;
        }
        match scatter.up_to(chain.writable(), most, |bufs| vectored::read(stream, bufs)) {
            Ok(0) => {
                self.readable = false;
                let all = if self.hung_up { NO_MORE } else { NO_SEND };
                self.host_closed(all);
                // So that one packet tells everything. A reset cannot follow: then nobody would have read.
                self.stop_directions();
                None
            }
            Ok(count) => {
                chain.skip_writable(count);
                self.readable = count == most;
                self.sent = self.sent.wrapping_add(count as u32);
                Some(count as u32)
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                self.readable = e.kind() == io::ErrorKind::Interrupted;
                None
            }
            Err(_) => {
                self.readable = false;
                self.host_closed(NO_MORE);
                None
            }
        }
    }

    /// Does what follows from what [`Connection::next_packet`] found.
    pub(super) fn after_packet(&mut self) -> Verdict {
        self.stop_directions()
    }

    fn header(&mut self, op: u16, len: u32) -> Header {
        self.told = self.forwarded;
        self.due &= !DUE_CREDIT_UPDATE;
        let flags = if op == op::SHUTDOWN { self.host_done } else { 0 };
        let (buf_alloc, fwd_cnt) = (self.buf_alloc, self.forwarded);
        let Ports { host: src_port, guest: dst_port } = self.ports;
        // The guest's address is filled in by the handler, which knows it.
        Header { src_cid: HOST_CID, dst_cid: 0, src_port, dst_port, len, kind: STREAM, op, flags, buf_alloc, fwd_cnt }
    }
}
