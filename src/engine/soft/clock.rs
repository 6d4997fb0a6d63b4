//! Guest time: nanoseconds since the VM was made. The time-stamp counter runs at exactly 1 GHz, so that it is guest time
//! plus what the guest added itself; the timers of local APICs run on guest time too.

use std::sync::atomic::{AtomicU64, Ordering};

use super::cpu::Cpu;
use crate::host::clock::monotonic_nanos;

/// Frequency of the time-stamp counter.
pub(super) const TSC_KHZ: u32 = 1_000_000;

/// The clock of a VM; all its vCPUs read the same one.
#[derive(Debug)]
pub(super) struct Clock {
    /// The host's monotonic clock at guest time zero; wraps below zero for guests older than the host.
    start: AtomicU64,
}

impl Clock {
    /// Guest time zero is now.
    pub(super) fn new() -> Self {
        Self { start: AtomicU64::new(monotonic_nanos()) }
    }

    /// Guest time.
    pub(super) fn now(&self) -> u64 {
        monotonic_nanos().wrapping_sub(self.start.load(Ordering::Relaxed))
    }

    /// Saved state is restored that was saved at guest time `time`: goes on from there. Never goes back, so that CPUs
    /// that are restored one after the other agree.
    pub(super) fn advance_to(&self, time: u64) {
        let ahead = time.saturating_sub(self.now());
        self.start.fetch_sub(ahead, Ordering::Relaxed);
    }
}

impl Cpu {
    /// Guest time in nanoseconds. Everything that this CPU does by time asks here: a mode in which time is counted in
    /// instructions needs to change this alone.
    pub(super) fn guest_time(&self) -> u64 {
        self.shared.clock.now()
    }

    /// The time-stamp counter.
    pub(super) fn guest_tsc(&self) -> u64 {
        self.guest_time().wrapping_add(self.system.msrs.tsc_adjust)
    }

    /// When the time-stamp counter will be `value`, as guest time; now if it is already.
    pub(super) fn time_of_tsc(&self, value: u64) -> u64 {
        let now = self.guest_time();
        let ahead = value.saturating_sub(now.wrapping_add(self.system.msrs.tsc_adjust));
        now.saturating_add(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_from_where_it_was_saved() {
        let clock = Clock::new();
        let first = clock.now();
        assert!(first < 60_000_000_000);
        let saved = monotonic_nanos() * 2;
        clock.advance_to(saved);
        let then = clock.now();
        assert!((saved..saved + 60_000_000_000).contains(&then));
        clock.advance_to(saved - 5);
        assert!(clock.now() >= then, "never back");
    }
}
