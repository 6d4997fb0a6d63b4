//! A set of interrupt vectors: what IRR, ISR and TMR are (SDM volume 3, 12.8.4).

use serde::{Deserialize, Serialize};

/// Vectors 0 to 255, a bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine::soft) struct Vectors([u32; 8]);

impl Vectors {
    pub(super) fn insert(&mut self, vector: u8) {
        self.set(vector, true);
    }

    pub(super) fn remove(&mut self, vector: u8) {
        self.set(vector, false);
    }

    pub(super) fn set(&mut self, vector: u8, on: bool) {
        if let Some(word) = self.0.get_mut(usize::from(vector >> 5)) {
            let bit = 1 << (vector & 31);
            *word = if on { *word | bit } else { *word & !bit };
        }
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.word(usize::from(vector >> 5)) >> (vector & 31) & 1 != 0
    }

    /// The vector with the highest priority.
    pub(super) fn highest(&self) -> Option<u8> {
        let (index, word) = self.0.iter().enumerate().rev().find(|(_, word)| **word != 0)?;
        Some((index * 32) as u8 + (31 - word.leading_zeros()) as u8)
    }

    /// Sets the register of vectors 32 * `index` and up.
    pub(super) fn set_word(&mut self, index: usize, value: u32) {
        if let Some(word) = self.0.get_mut(index) {
            *word = value;
        }
    }

    /// Vectors 32 * `index` and up, as the register shows them.
    pub(super) fn word(&self, index: usize) -> u32 {
        self.0.get(index).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_of_vectors() {
        let mut set = Vectors::default();
        assert_eq!(set.highest(), None);
        for vector in [0, 31, 32, 255, 100] {
            set.insert(vector);
            assert!(set.contains(vector));
        }
        assert_eq!((set.highest(), set.word(0), set.word(1), set.word(7)), (Some(255), 1 << 31 | 1, 1, 1 << 31));
        set.remove(255);
        assert_eq!((set.highest(), set.contains(255), set.contains(101)), (Some(100), false, false));
    }
}
