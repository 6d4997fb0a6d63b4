//! Guest time: nanoseconds since the VM was made. The time-stamp counter runs at exactly 1 GHz, so that it is guest time
//! plus what the guest added itself; the timers of local APICs run on guest time too.
//!
//! In runs that can be repeated guest time is the number of executed instructions, one nanosecond each, plus what was
//! skipped while the CPU had halted.

use std::sync::atomic::{AtomicU64, Ordering};

use super::cpu::Cpu;
use crate::host::clock::monotonic_nanos;

/// Frequency of the time-stamp counter.
pub(super) const TSC_KHZ: u32 = 1_000_000;

/// The clock of a VM; all its vCPUs read the same one.
#[derive(Debug)]
pub(super) enum Clock {
    /// Real time: the host's monotonic clock at guest time zero; wraps below zero for guests older than the host.
    Host(AtomicU64),
    /// Executed instructions and so much more.
    Counted(AtomicU64),
}

impl Clock {
    /// Guest time zero is now.
    pub(super) fn new() -> Self {
        Self::Host(AtomicU64::new(monotonic_nanos()))
    }

    /// Guest time of a CPU that has executed so many instructions.
    pub(super) fn now(&self, instructions: u64) -> u64 {
        match self {
            Self::Host(start) => monotonic_nanos().wrapping_sub(start.load(Ordering::Relaxed)),
            Self::Counted(skipped) => skipped.load(Ordering::Relaxed).wrapping_add(instructions),
        }
    }

    /// Whether time is counted in instructions.
    pub(super) fn is_counted(&self) -> bool {
        matches!(self, Self::Counted(_))
    }

    /// Saved state is restored that was saved at guest time `time`: goes on from there. Never goes back, so that CPUs
    /// that are restored one after the other agree.
    pub(super) fn advance_to(&self, time: u64, instructions: u64) {
        let ahead = time.saturating_sub(self.now(instructions));
        match self {
            Self::Host(start) => start.fetch_sub(ahead, Ordering::Relaxed),
            Self::Counted(skipped) => skipped.fetch_add(ahead, Ordering::Relaxed),
        };
    }
}

impl Cpu {
    /// Guest time in nanoseconds. Everything that this CPU does by time asks here.
    pub(super) fn guest_time(&self) -> u64 {
        self.shared.clock.now(self.instructions)
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
        let first = clock.now(0);
        assert!(first < 60_000_000_000);
        let saved = monotonic_nanos() * 2;
        clock.advance_to(saved, 0);
        let then = clock.now(0);
        assert!((saved..saved + 60_000_000_000).contains(&then));
        clock.advance_to(saved - 5, 0);
        assert!(clock.now(0) >= then, "never back");
    }

    #[test]
    fn counted_time_passes_by_instructions_alone() {
        let clock = Clock::Counted(AtomicU64::new(0));
        assert_eq!((clock.now(0), clock.now(1000)), (0, 1000));
        clock.advance_to(5000, 1000);
        assert_eq!((clock.now(1000), clock.now(1001)), (5000, 5001));
        clock.advance_to(4000, 1001);
        assert_eq!(clock.now(1001), 5001, "never back");
    }
}
