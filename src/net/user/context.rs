//! What all parts of the network share: the way to the guest, the rules, the poller, the counters.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use smoltcp::wire::EthernetAddress;

use super::addresses::{ROUTER6, Role, role};
use super::counters::{Counters, count};
use super::frame::{Datagram, Route};
use super::poller::Poller;
use super::rules::Rules;
use crate::host::alarm::Alarm;

/// Most frames that wait for the guest to have room, beside the streams: those wait in their own buffers.
const MOST_WAITING: usize = 512;
/// Most addresses of guests whose Ethernet address is known: as many as there are in the IPv4 network.
const MOST_NEIGHBOURS: usize = 256;

pub(super) struct Context {
    pub poller: Poller,
    pub alarm: Alarm,
    pub rules: Rules,
    pub counters: Arc<Counters>,
    pub neighbours: Neighbours,
    /// When this turn began.
    pub now: Instant,
    outbox: VecDeque<Vec<u8>>,
}

impl Context {
    pub(super) fn new(rules: Rules, counters: Arc<Counters>) -> io::Result<Self> {
        let (poller, alarm) = (Poller::new()?, Alarm::new()?);
        let (neighbours, now) = (Neighbours::default(), Instant::now());
        Ok(Self { poller, alarm, rules, counters, neighbours, now, outbox: VecDeque::new() })
    }

    /// Sends a frame to the guest, when it has room. Too many, or none: it is dropped.
    pub(super) fn send(&mut self, frame: Option<Vec<u8>>) {
        match frame {
            Some(frame) if self.outbox.len() < MOST_WAITING => self.outbox.push_back(frame),
            _ => count(&self.counters.dropped),
        }
    }

    /// The next of these frames.
    pub(super) fn next_frame(&mut self) -> Option<Vec<u8>> {
        self.outbox.pop_front()
    }

    /// Whether frames wait.
    pub(super) fn has_frames(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Forgets the frames that wait.
    pub(super) fn clear(&mut self) {
        self.outbox.clear();
    }

    /// How a packet from `source` gets to the guest that has the address `target`.
    pub(super) fn route(&self, source: IpAddr, target: IpAddr) -> Option<Route> {
        let to = self.neighbours.find(target)?;
        Some(Route { to, source, target })
    }
}

/// The way back to whoever sent `datagram`, as if from whom it was for.
pub(super) fn back(datagram: &Datagram<'_>) -> Route {
    Route { to: datagram.from, source: datagram.target, target: datagram.source }
}

/// Ethernet addresses of the guest's, by IP address: learned from what it sends.
#[derive(Debug, Default)]
pub(super) struct Neighbours {
    known: HashMap<IpAddr, EthernetAddress>,
    last: Option<EthernetAddress>,
}

impl Neighbours {
    /// The guest has shown its Ethernet address. True the first time.
    pub(super) fn seen(&mut self, address: EthernetAddress) -> bool {
        self.last.replace(address).is_none()
    }

    /// The guest has used `ip`.
    pub(super) fn learn(&mut self, ip: IpAddr, address: EthernetAddress) {
        if self.known.len() < MOST_NEIGHBOURS || self.known.contains_key(&ip) {
            self.known.insert(ip, address);
        }
    }

    fn find(&self, ip: IpAddr) -> Option<EthernetAddress> {
        self.known.get(&ip).copied().or(self.last)
    }

    /// Whether frames can be sent to the guest.
    pub(super) fn any(&self) -> bool {
        self.last.is_some()
    }
}

/// Whether a guest may have the address `ip` as a source of packets to others than its neighbours.
pub(super) fn is_guests(ip: IpAddr) -> bool {
    role(ip) == Role::Guest
}

/// Whether it is a link-local address of a guest.
pub(super) fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6 != ROUTER6 && v6.segments()[0] & 0xffc0 == 0xfe80)
}
