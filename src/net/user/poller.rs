//! Readiness of the network's own descriptors: one epoll set, whose descriptor the card's event loop watches.
//!
//! Sockets are watched edge by edge: each has flags of what it is ready for, until it says otherwise.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};

/// What became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The bell: work is left from an earlier turn.
    Bell,
    /// A time came.
    Alarm,
    /// A TCP connection's socket.
    Tcp(u64),
    /// The socket of a flow of UDP.
    Udp(u64),
    /// A socket of pings.
    Ping(u64),
    /// A query to a resolver of the host.
    Query(u64),
    /// A connection of the guest with the DNS relay.
    DnsClient(u64),
    /// A published port.
    Port(u64),
}

const KIND_SHIFT: u32 = 56;

impl Source {
    fn token(self) -> u64 {
        let (kind, id) = match self {
            Self::Bell => (0, 0),
            Self::Alarm => (1, 0),
            Self::Tcp(id) => (2, id),
            Self::Udp(id) => (3, id),
            Self::Ping(id) => (4, id),
            Self::Query(id) => (5, id),
            Self::DnsClient(id) => (6, id),
            Self::Port(id) => (7, id),
        };
        kind << KIND_SHIFT | id
    }

    fn of(token: u64) -> Option<Self> {
        let id = token & ((1 << KIND_SHIFT) - 1);
        Some(match token >> KIND_SHIFT {
            0 => Self::Bell,
            1 => Self::Alarm,
            2 => Self::Tcp(id),
            3 => Self::Udp(id),
            4 => Self::Ping(id),
            5 => Self::Query(id),
            6 => Self::DnsClient(id),
            7 => Self::Port(id),
            _ => return None,
        })
    }
}

/// What a socket became ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Event {
    pub source: Source,
    pub readable: bool,
    pub writable: bool,
}

/// Events taken at once.
const BATCH: usize = 64;

#[derive(Debug)]
pub(super) struct Poller {
    epoll: OwnedFd,
    bell: OwnedFd,
    rung: AtomicBool,
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &bell, epoll::EventData::new_u64(Source::Bell.token()), epoll::EventFlags::IN)?;
        Ok(Self { epoll, bell, rung: AtomicBool::new(false) })
    }

    /// Watches a socket for everything. It is forgotten when it is closed.
    pub(super) fn watch(&self, socket: impl AsFd, source: Source) -> io::Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, socket, epoll::EventData::new_u64(source.token()), flags)?)
    }

    /// Watches what stays ready until it is read.
    pub(super) fn watch_level(&self, fd: impl AsFd, source: Source) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(source.token()), epoll::EventFlags::IN)?)
    }

    /// Rings the bell, or stops it: while it rings the set is readable.
    pub(super) fn ring(&self, on: bool) {
        if self.rung.swap(on, Ordering::Relaxed) == on {
            return;
        }
        // Neither can fail: the counter is 0 or 1, and nobody else uses it.
        if on {
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        } else {
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
    }

    /// Appends what is ready to `events`, without waiting.
    pub(super) fn ready(&self, events: &mut Vec<Event>) {
        let mut list: Vec<epoll::Event> = Vec::with_capacity(BATCH);
        let now = rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 };
        if epoll::wait(&self.epoll, spare_capacity(&mut list), Some(&now)).is_err() {
            return;
        }
        for event in list {
            let flags = event.flags;
            let has = |some| flags.intersects(some);
            let failed = has(epoll::EventFlags::ERR | epoll::EventFlags::HUP);
            if let Some(source) = Source::of(event.data.u64()) {
                let readable = failed || has(epoll::EventFlags::IN | epoll::EventFlags::RDHUP);
                events.push(Event { source, readable, writable: failed || has(epoll::EventFlags::OUT) });
            }
        }
    }
}

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}
