//! One connection: the guest's end in a socket of smoltcp, the other end in a socket of the host, and the bytes between.
//!
//! Each direction ends by itself: an end of the stream on one side is passed on when all bytes before it have been. A
//! reset on one side resets the other.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown, send, shutdown, sockopt};
use smoltcp::iface::{Context, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};

use crate::net::user::counters::{Counters, add};
use crate::net::user::udp::Ends;

/// A guest that says nothing for so long, although it should, is gone; it is asked now and then.
const PATIENCE: Duration = Duration::from_secs(300);
const QUESTION: Duration = Duration::from_secs(75);
/// The same for a guest that a client wants to connect with.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);
/// How long an acknowledgement of less than a whole segment waits. A guest whose program writes little by little sends
/// what came together meanwhile in one packet, rather than each piece in its own; the world's hosts wait far longer.
const ACK_DELAY: Duration = Duration::from_millis(2);

/// How far it is.
enum Stage {
    /// The host connects; this is the guest's SYN.
    Connecting(Vec<u8>),
    /// The guest's end.
    Open(SocketSet<'static>, SocketHandle),
}

pub(super) struct Connection {
    pub ends: Ends,
    socket: OwnedFd,
    stage: Stage,
    /// What the host's socket is ready for, as far as is known.
    readable: bool,
    writable: bool,
    /// The world has sent its last byte.
    world_ended: bool,
    /// The guest has; what it sent before may not have gone on.
    guest_ending: bool,
    /// The world knows that.
    guest_ended: bool,
    /// The host's socket has failed.
    failed: bool,
    /// It waits for its turn to send.
    queued: bool,
    /// When it wants to be looked at.
    time: Option<Instant>,
}

impl Connection {
    /// One that the guest begins.
    pub(super) fn outward(ends: Ends, socket: OwnedFd, syn: Vec<u8>) -> Self {
        Self {
            ends,
            socket,
            stage: Stage::Connecting(syn),
            readable: false,
            writable: false,
            world_ended: false,
            guest_ending: false,
            guest_ended: false,
            failed: false,
            queued: false,
            time: None,
        }
    }

    /// One that a client of a published port begins.
    pub(super) fn inward(ends: Ends, socket: OwnedFd, buffer: usize, context: &mut Context) -> Option<Self> {
        let mut tcp = new_socket(buffer, CONNECT_PATIENCE);
        tcp.connect(context, ends.guest, ends.outside).ok()?;
        let mut connection = Self::outward(ends, socket, Vec::new());
        connection.stage = stage(tcp);
        Some(connection)
    }

    /// The host's connection stands: the guest's end begins to listen for the SYN, which is returned.
    pub(super) fn open(&mut self, buffer: usize) -> Vec<u8> {
        let mut tcp = new_socket(buffer, PATIENCE);
        // It has a port, as everything that gets here.
        let _ = tcp.listen(self.ends.outside);
        match std::mem::replace(&mut self.stage, stage(tcp)) {
            Stage::Connecting(syn) => syn,
            Stage::Open(..) => Vec::new(),
        }
    }

    pub(super) fn is_connecting(&self) -> bool {
        matches!(self.stage, Stage::Connecting(_))
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// The guest's end, once there is one.
    pub(super) fn sockets(&mut self) -> Option<&mut SocketSet<'static>> {
        match &mut self.stage {
            Stage::Open(sockets, _) => Some(sockets),
            Stage::Connecting(_) => None,
        }
    }

    pub(super) fn set_ready(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Joins the queue of those who may send; false if it is there.
    pub(super) fn enqueue(&mut self) -> bool {
        !std::mem::replace(&mut self.queued, true)
    }

    pub(super) fn dequeue(&mut self) {
        self.queued = false;
    }

    /// It wants to be looked at `at`; false if it will be earlier.
    pub(super) fn wants_earlier(&mut self, at: Instant) -> bool {
        let earlier = self.time.is_none_or(|time| at < time);
        if earlier {
            self.time = Some(at);
        }
        earlier
    }

    pub(super) fn time(&self) -> Option<Instant> {
        self.time
    }

    /// The time `at`, at which it once wanted to be looked at, has come; false if that is out of date.
    pub(super) fn time_came(&mut self, at: Instant) -> bool {
        let current = self.time == Some(at);
        if current {
            self.time = None;
        }
        current
    }

    /// Moves bytes both ways, as far as there are any, and room for them.
    pub(super) fn transfer(&mut self, counters: &Counters) {
        let Stage::Open(sockets, handle) = &mut self.stage else { return };
        let tcp = sockets.get_mut::<Socket<'_>>(*handle);
        if tcp.timeout() == Some(CONNECT_PATIENCE.into()) && tcp.state() == State::Established {
            tcp.set_timeout(Some(PATIENCE.into()));
        }
        let done = to_world(tcp, &self.socket, &mut self.writable, counters);
        let done = done.and_then(|()| to_guest(tcp, &self.socket, &mut self.readable, &mut self.world_ended, counters));
        if done.is_err() {
            self.failed = true;
            tcp.abort();
            return;
        }
        if self.world_ended && tcp.send_queue() == 0 {
            // Not earlier: smoltcp 0.14 overlooks that a window opens once both ends have been said.
            tcp.close();
        }
        let ending = [State::CloseWait, State::LastAck, State::Closing, State::TimeWait];
        self.guest_ending |= ending.contains(&tcp.state());
        if self.guest_ending && !tcp.may_recv() && !std::mem::replace(&mut self.guest_ended, true) {
            // It may have been reset just now, which the next read will tell.
            let _ = shutdown(&self.socket, Shutdown::Write);
        }
    }

    /// Whether nothing more will happen; `busy`: there is something to be sent soon. If the guest did not end it in peace, the
    /// world hears so when this is dropped.
    pub(super) fn is_over(&self, busy: bool) -> bool {
        let Stage::Open(sockets, handle) = &self.stage else { return false };
        let tcp = sockets.get::<Socket<'_>>(*handle);
        match tcp.state() {
            // Nothing can be lost on this wire, so there is nothing to wait for after the last packet.
            State::TimeWait => self.guest_ended && tcp.recv_queue() == 0 && !busy,
            State::Closed if tcp.remote_endpoint().is_some() => false,
            State::Closed if self.world_ended && self.guest_ending && !self.failed => self.guest_ended,
            State::Closed => true,
            _ => false,
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        let peaceful = self.is_connecting() || (self.world_ended && self.guest_ended);
        if !peaceful {
            // Closing it now resets it.
            let _ = sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
        }
    }
}

fn stage(tcp: Socket<'static>) -> Stage {
    let mut sockets = SocketSet::new(Vec::with_capacity(1));
    let handle = sockets.add(tcp);
    Stage::Open(sockets, handle)
}

/// A socket with so many bytes of room each way, whose memory costs nothing until it is used.
fn new_socket(buffer: usize, patience: Duration) -> Socket<'static> {
    let mut tcp = Socket::new(SocketBuffer::new(vec![0; buffer]), SocketBuffer::new(vec![0; buffer]));
    tcp.set_ack_delay(Some(ACK_DELAY.into()));
    tcp.set_nagle_enabled(false);
    tcp.set_timeout(Some(patience.into()));
    tcp.set_keep_alive(Some(QUESTION.into()));
    tcp
}

/// Bytes of the guest's go to the world.
fn to_world(tcp: &mut Socket<'_>, socket: &OwnedFd, writable: &mut bool, counters: &Counters) -> Result<(), Errno> {
    while *writable && tcp.can_recv() {
        let mut sent = Ok(0);
        let taken = tcp.recv(|bytes| {
            sent = send(socket, bytes, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
            (sent.unwrap_or(0), ())
        });
        match sent {
            Ok(len) => add(&counters.sent_bytes, len),
            Err(Errno::AGAIN) => *writable = false,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if taken.is_err() {
            break;
        }
    }
    Ok(())
}

/// Bytes of the world's go to the guest, as far as there is room before it has acknowledged others.
fn to_guest(
    tcp: &mut Socket<'_>,
    socket: &OwnedFd,
    readable: &mut bool,
    ended: &mut bool,
    counters: &Counters,
) -> Result<(), Errno> {
    while *readable && !*ended && tcp.can_send() {
        let mut received = Ok(0);
        let room = tcp.send(|room| {
            received = rustix::io::read(socket, &mut *room);
            (received.unwrap_or(0), ())
        });
        match received {
            Ok(0) => (*readable, *ended) = (false, true),
            Ok(len) => add(&counters.received_bytes, len),
            Err(Errno::AGAIN) => *readable = false,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
        if room.is_err() {
            break;
        }
    }
    Ok(())
}
