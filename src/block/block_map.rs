//! Which blocks of a disk are in the overlay: a bitmap that costs memory only where the guest wrote.

use std::collections::BTreeMap;

/// Bytes per bit.
pub(super) const BLOCK: u64 = 4096;

/// Words per leaf: one leaf is 4 KiB of memory for 128 MiB of disk, so that a guest can make the host use at most
/// 1/32768 of the disk's size (32 MiB for 1 TiB written all over).
const LEAF_WORDS: usize = 512;
const LEAF_BLOCKS: u64 = LEAF_WORDS as u64 * 64;

/// A set of block numbers.
#[derive(Debug, Default)]
pub(super) struct BlockMap(BTreeMap<u64, Box<[u64; LEAF_WORDS]>>);

impl BlockMap {
    /// Whether `block` is in the set.
    pub(super) fn has(&self, block: u64) -> bool {
        let (word, bit) = place(block);
        self.0.get(&(block / LEAF_BLOCKS)).and_then(|leaf| leaf.get(word)).is_some_and(|w| w & bit != 0)
    }

    /// Adds `count` blocks from `first` on.
    pub(super) fn add(&mut self, first: u64, count: u64) {
        for block in first..first.saturating_add(count) {
            let (word, bit) = place(block);
            let leaf = self.0.entry(block / LEAF_BLOCKS).or_insert_with(|| Box::new([0; LEAF_WORDS]));
            if let Some(word) = leaf.get_mut(word) {
                *word |= bit;
            }
        }
    }

    /// How many blocks from `first` on, at most `limit`, are alike, and whether they are in the set.
    pub(super) fn run(&self, first: u64, limit: u64) -> (bool, u64) {
        let inside = self.has(first);
        let mut end = first + 1;
        while end < first.saturating_add(limit) {
            let leaf = end / LEAF_BLOCKS;
            if !self.0.contains_key(&leaf) {
                if inside {
                    break;
                }
                end = (leaf + 1) * LEAF_BLOCKS;
                continue;
            }
            if self.has(end) != inside {
                break;
            }
            end += 1;
        }
        (inside, (end - first).min(limit))
    }
}

fn place(block: u64) -> (usize, u64) {
    let index = block % LEAF_BLOCKS;
    ((index / 64) as usize, 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn empty_stretches_are_skipped_fast() {
        let mut map = BlockMap::default();
        let last = (1 << 50) / BLOCK;
        assert_eq!(map.run(0, last), (false, last));
        map.add(last - 1, 1);
        assert_eq!(map.run(0, last), (false, last - 1));
        assert_eq!(map.run(last - 1, 100), (true, 1));
    }

    proptest! {
        #[test]
        fn behaves_like_a_list_of_flags(ranges in prop::collection::vec((0u64..70_000, 1u64..2000), 0..20)) {
            let mut model = vec![false; 72_000];
            let mut map = BlockMap::default();
            for (first, count) in ranges {
                map.add(first, count);
                model[first as usize..(first + count) as usize].fill(true);
            }
            let mut at = 0;
            while at < model.len() {
                let (inside, count) = map.run(at as u64, (model.len() - at) as u64);
                prop_assert!(count > 0);
                let end = at + count as usize;
                prop_assert!(model[at..end].iter().all(|&m| m == inside));
                prop_assert!(end == model.len() || model[end] != inside);
                at = end;
            }
        }
    }
}
