//! A bound on log lines that a guest can cause: otherwise it could fill the host's disk.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Lines in one period.
const LINES: u64 = 8;
/// Length of a period in seconds.
const PERIOD: u64 = 10;

/// Lets a few lines through every few seconds. Meant as a `static` at the place that logs.
#[derive(Debug, Default)]
pub struct LogLimit(AtomicU64);

impl LogLimit {
    /// A limit that has seen no line yet.
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Whether one more line may be written now.
    pub fn allow(&self) -> bool {
        self.allow_at(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs()))
    }

    fn allow_at(&self, seconds: u64) -> bool {
        let period = seconds / PERIOD;
        // High part: the period; low byte: lines in it so far.
        let count = |state: u64| if state >> 8 == period { state & 0xff } else { 0 };
        self.0
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| {
                (count(state) < LINES).then(|| period << 8 | (count(state) + 1))
            })
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_cut_and_the_next_period_starts_afresh() {
        let limit = LogLimit::new();
        assert_eq!((0..100).filter(|_| limit.allow_at(1000)).count() as u64, LINES);
        assert!(!limit.allow_at(1009));
        assert!(limit.allow_at(1010));
    }
}
