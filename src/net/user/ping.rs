//! Pings of hosts outside, by the host's ICMP sockets for everybody (`net.ipv4.ping_group_range`).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, ipproto, recv, send, socket_with,
};

use super::context::Context;
use super::counters::count;
use super::frame::Datagram;
use super::icmp::{self, ECHO_HEADER, Echo, Unreachable};
use super::poller::Source;

/// Most ping programs at work at once, and how long one may pause.
const MOST: usize = 64;
const IDLE: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    guest: IpAddr,
    outside: IpAddr,
    identifier: u16,
}

struct Ping {
    key: Key,
    socket: OwnedFd,
    last: Instant,
}

/// The pings that are under way.
#[derive(Default)]
pub(super) struct Pings {
    pings: HashMap<u64, Ping>,
    ids: HashMap<Key, u64>,
    next: u64,
    told: bool,
}

impl Pings {
    /// The guest pings a host outside.
    pub(super) fn request(&mut self, context: &mut Context, datagram: &Datagram<'_>, echo: &Echo<'_>) {
        if !context.rules.permits_ping(datagram.target) {
            context.counters.deny(format!("ping {}", datagram.target));
            return icmp::complain(context, datagram, Unreachable::Prohibited);
        }
        let key = Key { guest: datagram.source, outside: datagram.target, identifier: echo.identifier };
        let message = icmp::echo_message(key.outside, true, echo);
        let sent = self.socket(context, key).and_then(|socket| send(socket, &message, SendFlags::NOSIGNAL));
        match sent {
            Ok(_) => count(&context.counters.pings),
            Err(error @ (Errno::ACCESS | Errno::PERM)) => {
                self.tell(error);
                icmp::complain(context, datagram, Unreachable::Prohibited);
            }
            Err(error) => icmp::complain(context, datagram, Unreachable::because(error)),
        }
    }

    fn tell(&mut self, error: Errno) {
        if !std::mem::replace(&mut self.told, true) {
            tracing::warn!(
                "the guest cannot ping hosts outside: {error}; let users do it: \
                 sysctl net.ipv4.ping_group_range=\"0 2147483647\""
            );
        }
    }

    fn socket(&mut self, context: &Context, key: Key) -> Result<&OwnedFd, Errno> {
        let id = match self.ids.get(&key) {
            Some(id) => *id,
            None => self.open(context, key)?,
        };
        let ping = self.pings.get_mut(&id).ok_or(Errno::NOENT)?;
        ping.last = context.now;
        Ok(&ping.socket)
    }

    fn open(&mut self, context: &Context, key: Key) -> Result<u64, Errno> {
        if self.pings.len() >= MOST
            && let Some(oldest) = self.pings.iter().min_by_key(|(_, ping)| ping.last).map(|(id, _)| *id)
        {
            self.remove(oldest);
        }
        let (family, protocol) = match key.outside {
            IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP),
            IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6),
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::DGRAM, flags, Some(protocol))?;
        connect(&socket, &SocketAddr::new(key.outside, 0))?;
        let id = self.next;
        context.poller.watch(&socket, Source::Ping(id)).map_err(|_| Errno::NOMEM)?;
        self.next += 1;
        self.ids.insert(key, id);
        self.pings.insert(id, Ping { key, socket, last: context.now });
        Ok(id)
    }

    fn remove(&mut self, id: u64) {
        if let Some(ping) = self.pings.remove(&id) {
            self.ids.remove(&ping.key);
        }
    }

    /// A socket has answers.
    pub(super) fn ready(&mut self, context: &mut Context, id: u64, room: &mut [u8]) {
        let Some(ping) = self.pings.get_mut(&id) else { return };
        ping.last = context.now;
        let key = ping.key;
        loop {
            match recv(&ping.socket, &mut *room, RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    let Some((header, data)) = room.get(..len).and_then(|m| m.split_first_chunk::<ECHO_HEADER>())
                    else {
                        continue;
                    };
                    let sequence = u16::from_be_bytes([header[6], header[7]]);
                    // The host has put an identifier of its own in place of the guest's.
                    icmp::reply(context, key.guest, key.outside, &Echo { identifier: key.identifier, sequence, data });
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Somebody on the way says that it does not arrive: the error is read once, then others may follow.
                Err(_) => return,
            }
        }
    }

    /// Forgets those that pause for too long.
    pub(super) fn expire(&mut self, now: Instant) {
        let old: Vec<u64> = self.pings.iter().filter(|(_, ping)| now >= ping.last + IDLE).map(|(id, _)| *id).collect();
        old.into_iter().for_each(|id| self.remove(id));
    }

    /// Whether there is anything that can expire.
    pub(super) fn is_empty(&self) -> bool {
        self.pings.is_empty()
    }
}
