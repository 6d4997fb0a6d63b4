//! All connections, and programs of the host that are about to make one. Their numbers ("slots") name them on the event
//! loop.

use std::collections::BTreeMap;
use std::time::Instant;

use super::connection::{Connection, Ports};
use super::handshake::Handshake;

/// First port given to the host's ends of connections that it makes; guests expect services at lower ones.
const FIRST_PORT: u32 = 1 << 30;
/// Connections whose backlogs may be large. Together with the small ones this bounds the memory that a guest can make
/// us use while programs of the host do not read: 16 MiB for either kind.
const LARGE: usize = 64;
/// Bytes of a large backlog: what Linux uses for its sockets.
const LARGE_BACKLOG: u32 = 256 << 10;
const SMALL_BACKLOG: u32 = 16 << 10;

/// What a slot holds.
#[derive(Debug)]
pub(super) enum Slot {
    Handshake(Handshake),
    Connection(Box<Connection>),
}

impl Slot {
    fn deadline(&self) -> Option<Instant> {
        match self {
            Self::Handshake(handshake) => Some(handshake.deadline),
            Self::Connection(connection) => connection.deadline,
        }
    }
}

#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    ports: BTreeMap<Ports, usize>,
    next_port: u32,
    most: usize,
}

impl Table {
    /// A table with at most `most` slots.
    pub(super) fn new(most: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), ports: BTreeMap::new(), next_port: FIRST_PORT, most }
    }

    pub(super) fn is_full(&self) -> bool {
        self.slots.len() - self.free.len() >= self.most
    }

    /// Puts something in a free slot. None if there is none.
    pub(super) fn insert(&mut self, slot: Slot) -> Option<usize> {
        if self.is_full() {
            return None;
        }
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.set(index, slot);
        Some(index)
    }

    fn set(&mut self, index: usize, slot: Slot) {
        if let Slot::Connection(connection) = &slot {
            self.ports.insert(connection.ports(), index);
        }
        if let Some(place) = self.slots.get_mut(index) {
            *place = Some(slot);
        }
    }

    pub(super) fn get(&mut self, index: usize) -> Option<&mut Slot> {
        self.slots.get_mut(index)?.as_mut()
    }

    pub(super) fn connection(&mut self, index: usize) -> Option<&mut Connection> {
        match self.get(index) {
            Some(Slot::Connection(connection)) => Some(connection),
            _ => None,
        }
    }

    /// The slot of the connection between these ports.
    pub(super) fn find(&self, ports: Ports) -> Option<usize> {
        self.ports.get(&ports).copied()
    }

    pub(super) fn remove(&mut self, index: usize) -> Option<Slot> {
        let slot = self.slots.get_mut(index)?.take()?;
        if let Slot::Connection(connection) = &slot {
            self.ports.remove(&connection.ports());
        }
        self.free.push(index);
        Some(slot)
    }

    /// A port for the host's end of a new connection to port `guest`.
    pub(super) fn new_ports(&mut self, guest: u32) -> Ports {
        // Ends: there are more ports than connections.
        loop {
            let ports = Ports { host: self.next_port, guest };
            self.next_port = self.next_port.checked_add(1).filter(|&port| port < u32::MAX).unwrap_or(FIRST_PORT);
            if !self.ports.contains_key(&ports) {
                return ports;
            }
        }
    }

    /// How many bytes a new connection may keep for the host.
    pub(super) fn backlog(&self) -> u32 {
        if self.ports.len() < LARGE { LARGE_BACKLOG } else { SMALL_BACKLOG }
    }

    /// Slots whose time is over.
    pub(super) fn overdue(&self, now: Instant) -> Vec<usize> {
        let due = |slot: &Option<Slot>| slot.as_ref().and_then(Slot::deadline).is_some_and(|deadline| deadline <= now);
        self.slots.iter().enumerate().filter(|(_, slot)| due(slot)).map(|(index, _)| index).collect()
    }

    /// The earliest time at which a slot will be overdue.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.slots.iter().flatten().filter_map(Slot::deadline).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::vsock::packet::Header;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn slot(ports: Ports) -> Slot {
        let request = Header { dst_port: ports.host, src_port: ports.guest, ..Header::default() };
        Slot::Connection(Box::new(Connection::accepted(&request, UnixStream::pair().unwrap().0.into(), 1)))
    }

    #[test]
    fn slots_and_ports_are_reused_when_free() {
        let mut table = Table::new(2);
        table.next_port = u32::MAX - 1;
        let first = table.new_ports(5);
        assert_eq!(table.insert(slot(first)), Some(0));
        let second = table.new_ports(5);
        assert_eq!((first.host, second.host), (u32::MAX - 1, FIRST_PORT));
        assert_eq!(table.insert(slot(second)), Some(1));
        assert!(table.is_full() && table.insert(slot(first)).is_none());
        table.next_port = FIRST_PORT;
        assert_eq!(table.new_ports(5).host, FIRST_PORT + 1, "taken ones are passed over");
        assert_eq!(table.find(first), Some(0));
        assert!(table.remove(0).is_some() && table.remove(0).is_none() && table.remove(9).is_none());
        assert_eq!(table.find(first), None);
        assert_eq!(table.insert(slot(first)), Some(0));
    }

    #[test]
    fn deadlines_are_found() {
        let mut table = Table::new(10);
        let now = Instant::now();
        assert_eq!(table.next_deadline(), None);
        for seconds in [3, 1, 2] {
            let stream = UnixStream::pair().unwrap().0.into();
            table.insert(Slot::Handshake(Handshake::new(stream, now + Duration::from_secs(seconds))));
        }
        table.insert(slot(Ports { host: 1, guest: 1 }));
        assert_eq!(table.next_deadline(), Some(now + Duration::from_secs(1)));
        assert_eq!(table.overdue(now), [0; 0]);
        assert_eq!(table.overdue(now + Duration::from_secs(2)), [1, 2]);
    }

    #[test]
    fn many_connections_get_small_backlogs() {
        let mut table = Table::new(1000);
        for guest in 0..LARGE as u32 {
            assert_eq!(table.backlog(), LARGE_BACKLOG);
            table.insert(slot(Ports { host: 1, guest }));
        }
        assert_eq!(table.backlog(), SMALL_BACKLOG);
    }
}
