//! Members of a switch, in one process.

use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::mem::buffers::Buffers;
use crate::mem::{Backing, Ram};

/// A new member of the switch in `directory`; files of others there do not matter.
pub(crate) fn port(directory: &Path) -> Switch {
    let place = directory.join("switch");
    let _ = std::fs::create_dir(&place);
    Switch::join_at(&place).unwrap()
}

/// A packet of `len` bytes with its virtio header on top, between cards that are told by numbers (255: all).
pub(crate) fn packet(to: u8, from: u8, len: usize) -> Vec<u8> {
    let address = |card: u8| if card == 255 { [255; 6] } else { [2, 0, 0, 0, 0, card] };
    let mut packet = [&[0; HEADER_LEN][..], &address(to), &address(from)].concat();
    packet.extend((0..len - 12).map(|i| (i % 250) as u8 ^ from));
    packet
}

struct Card {
    port: Arc<Switch>,
    ram: Ram,
}

impl Card {
    fn new(directory: &Path) -> Self {
        Self::of(port(directory))
    }

    fn of(port: Switch) -> Self {
        Self { port: Arc::new(port), ram: Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap() }
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.ram.write(0, packet).unwrap();
        let mut list = Buffers::new(self.ram.clone());
        list.push(0, 5).unwrap();
        list.push(5, packet.len() as u64 - 5).unwrap();
        self.port.send(list.list())
    }

    fn receive(&self) -> Option<Vec<u8>> {
        let mut list = Buffers::new(self.ram.clone());
        list.push(0x80_000, 3).unwrap();
        list.push(0x80_003, 70_000).unwrap();
        let len = self.port.receive(list.list()).ok()?;
        Some(super::super::contents(list.list(), len))
    }

    fn members(&self) -> usize {
        self.port.state().members.len()
    }
}

#[test]
fn frames_go_to_all_until_it_is_known_where_to() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, c] = [0; 3].map(|_| Card::new(dir.path()));
    assert!(a.receive().is_none() && b.receive().is_none(), "they hear of those who came later");
    a.send(&packet(255, 1, 60)).unwrap();
    assert_eq!(b.receive(), Some(packet(255, 1, 60)));
    assert_eq!(c.receive(), Some(packet(255, 1, 60)));
    b.send(&packet(1, 2, 64_000)).unwrap();
    assert_eq!(a.receive(), Some(packet(1, 2, 64_000)));
    assert_eq!(c.receive(), None, "b knows who card 1 is");
    a.send(&packet(2, 1, 61)).unwrap();
    assert_eq!(b.receive(), Some(packet(2, 1, 61)));
    a.send(&packet(9, 1, 62)).unwrap();
    assert!(b.receive().is_some() && c.receive().is_some(), "nobody is known to be card 9");
    assert!([&a, &b, &c].iter().all(|card| card.receive().is_none() && card.members() == 2));
}

#[test]
fn members_come_and_go_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (Card::new(dir.path()), Card::new(dir.path()));
    b.send(&packet(255, 2, 60)).unwrap();
    assert!(a.receive().is_some());
    drop(b);
    a.send(&packet(2, 1, 60)).unwrap();
    assert!(a.receive().is_none());
    assert_eq!(a.members(), 0, "b left");
    // One whose process was killed leaves its socket behind.
    let switch = dir.path().join("switch");
    let stale = switch.join("1-0");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    let c = Card::new(dir.path());
    a.send(&packet(255, 1, 60)).unwrap();
    assert!(a.receive().is_none(), "hears of c");
    c.send(&packet(1, 3, 60)).unwrap();
    assert_eq!(a.receive(), Some(packet(1, 3, 60)));
    a.send(&packet(3, 1, 61)).unwrap();
    assert_eq!(c.receive(), Some(packet(3, 1, 61)));
    drop((a, c));
    let left: Vec<_> = std::fs::read_dir(&switch).unwrap().flatten().map(|entry| entry.path()).collect();
    assert!(left.iter().all(|path| *path == stale), "{left:?}");
}

#[test]
fn many_who_come_at_once_are_connected_once_each() {
    let dir = tempfile::tempdir().unwrap();
    let cards: Vec<_> = std::thread::scope(|scope| {
        let joining: Vec<_> = (0..8).map(|_| scope.spawn(|| Card::new(dir.path()))).collect();
        joining.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(cards.iter().all(|card| card.receive().is_none() && card.members() == 7));
}

#[test]
fn who_does_not_listen_hinders_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let [a, b, deaf] = [0; 3].map(|_| Card::new(dir.path()));
    assert!(a.receive().is_none());
    for round in 0..1000 {
        a.send(&packet(255, 1, 1500)).unwrap();
        assert!(b.receive().is_some(), "round {round}");
    }
    deaf.send(&packet(255, 3, 60)).unwrap();
    assert!(a.receive().is_some());
    let refused = a.send(&packet(3, 1, 1500)).unwrap_err();
    assert_ne!(refused.kind(), io::ErrorKind::WouldBlock, "it is dropped rather than kept");
    deaf.port.drain();
    assert!(deaf.receive().is_none());
    a.send(&packet(3, 1, 1500)).unwrap();
    assert!(deaf.receive().is_some(), "and gets packets again");
}

#[test]
fn what_no_member_sends_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (Card::new(dir.path()), Card::new(dir.path()));
    let mut segments = packet(1, 2, 100);
    segments[1] = 1;
    b.send(&segments).unwrap();
    b.send(&packet(1, 2, 13)[..20]).unwrap();
    b.send(&packet(1, 2, 60)).unwrap();
    assert_eq!(a.receive(), Some(packet(1, 2, 60)));
}
