//! Which Ethernet address is behind which member, learned from what members send (IEEE 802.1Q, section 8.7).

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long an address is remembered after its last packet: the usual time.
const AGE: Duration = Duration::from_secs(300);
/// Most addresses. A guest can make up as many as it likes; packets for those that found no room go to all.
const MOST: usize = 1024;

/// The table of one member.
#[derive(Debug, Default)]
pub(super) struct Table(HashMap<[u8; 6], Entry>);

#[derive(Debug)]
struct Entry {
    member: u64,
    seen: Instant,
}

impl Table {
    /// `member` sent a packet as `address`.
    pub(super) fn learn(&mut self, address: [u8; 6], member: u64, now: Instant) {
        if is_group(address) {
            return;
        }
        if !self.0.contains_key(&address) && self.0.len() >= MOST {
            self.0.retain(|_, entry| now.saturating_duration_since(entry.seen) < AGE);
            if self.0.len() >= MOST {
                return;
            }
        }
        self.0.insert(address, Entry { member, seen: now });
    }

    /// The member with this address; none if unknown, forgotten, or the address of a group.
    pub(super) fn find(&self, address: [u8; 6], now: Instant) -> Option<u64> {
        let entry = self.0.get(&address)?;
        (now.saturating_duration_since(entry.seen) < AGE).then_some(entry.member)
    }

    /// `member` has left.
    pub(super) fn forget(&mut self, member: u64) {
        self.0.retain(|_, entry| entry.member != member);
    }
}

/// Whether it is a broadcast or multicast address.
fn is_group([first, ..]: [u8; 6]) -> bool {
    first & 1 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> [u8; 6] {
        let [a, b, c, d] = number.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    #[test]
    fn addresses_are_learned_move_and_age() {
        let (mut table, start) = (Table::default(), Instant::now());
        table.learn(address(1), 1, start);
        assert_eq!(table.find(address(1), start), Some(1));
        table.learn(address(1), 2, start);
        assert_eq!(table.find(address(1), start), Some(2), "it moved");
        assert_eq!(table.find(address(1), start + AGE), None, "too long ago");
        table.learn([0xff; 6], 1, start);
        assert_eq!(table.find([0xff; 6], start), None, "groups are nobody's");
        table.forget(2);
        assert_eq!(table.find(address(1), start), None);
    }

    #[test]
    fn a_flood_of_addresses_is_bounded_and_passes() {
        let (mut table, start) = (Table::default(), Instant::now());
        (0..10_000).for_each(|number| table.learn(address(number), 1, start));
        assert_eq!(table.0.len(), MOST);
        table.learn(address(1), 3, start);
        assert_eq!(table.find(address(1), start), Some(3), "known ones may still move");
        table.learn(address(20_000), 2, start + AGE);
        assert_eq!(table.find(address(20_000), start + AGE), Some(2), "old ones make room");
    }
}
