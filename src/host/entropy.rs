//! Random numbers of the host's, a buffer at a time: a system call for each would cost a guest that wants many.
//!
//! Each number is given out once. A process that is copied (fork) copies its buffer, so whoever forks takes a new one.

use rustix::rand::{GetRandomFlags, getrandom};

/// Numbers for one system call: what the kernel gives at once, never cut short by a signal (getrandom(2)).
const NUMBERS: usize = 32;

/// Numbers that were not given out yet.
#[derive(Default)]
pub struct Entropy(Vec<u64>);

impl std::fmt::Debug for Entropy {
    /// What is to come stays a secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entropy").finish_non_exhaustive()
    }
}

impl Entropy {
    /// The next number; none if the host has none now, early in its life. Never blocks.
    pub fn next_u64(&mut self) -> Option<u64> {
        if self.0.is_empty() {
            let mut bytes = [0; NUMBERS * 8];
            let got = getrandom(&mut bytes, GetRandomFlags::NONBLOCK).unwrap_or(0);
            let whole = bytes.get(..got).unwrap_or_default().chunks_exact(8);
            self.0.extend(whole.filter_map(|chunk| chunk.first_chunk().map(|number| u64::from_le_bytes(*number))));
        }
        self.0.pop()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_do_not_repeat() {
        let mut entropy = Entropy::default();
        let numbers: std::collections::BTreeSet<_> =
            (0..NUMBERS * 3 + 1).map(|_| entropy.next_u64().unwrap()).collect();
        assert_eq!(numbers.len(), NUMBERS * 3 + 1);
        assert_eq!(format!("{entropy:?}"), "Entropy { .. }");
    }
}
