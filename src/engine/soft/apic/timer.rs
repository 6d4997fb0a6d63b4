//! The timer of a local APIC (SDM volume 3, 12.5.4): counts down once, again and again, or waits for the time-stamp
//! counter. Its clock has 1 GHz, so that a count is a nanosecond of guest time.

use serde::{Deserialize, Serialize};

/// Mode bits of the timer's entry in the local vector table.
const MODE: u32 = 3 << 17;
const PERIODIC: u32 = 1 << 17;
const TSC_DEADLINE: u32 = 2 << 17;

/// The timer. Times are guest time in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Timer {
    /// Mode bits, as in the local vector table.
    mode: u32,
    /// Divide configuration register.
    divide: u32,
    /// Initial count register.
    initial: u32,
    /// When it fires next.
    at: Option<u64>,
    /// The deadline as a value of the guest's time-stamp counter; 0 if there is none.
    tsc: u64,
}

impl Timer {
    /// When it fires next.
    pub(super) fn at(&self) -> Option<u64> {
        self.at
    }

    /// Whether it fired up to `now`; sets it up for the next time.
    pub(super) fn fired(&mut self, now: u64) -> bool {
        let Some(at) = self.at.filter(|at| *at <= now) else { return false };
        let period = self.period();
        self.at = if self.mode == PERIODIC && period != 0 {
            // Periods that were missed are not made up for.
            at.checked_add(((now - at) / period + 1).saturating_mul(period))
        } else {
            None
        };
        self.tsc = 0;
        true
    }

    /// Takes the mode out of a new entry of the local vector table. A change to or from TSC-deadline mode stops the timer.
    pub(super) fn set_mode(&mut self, entry: u32) {
        let mode = entry & MODE;
        if (mode == TSC_DEADLINE) != (self.mode == TSC_DEADLINE) {
            (self.at, self.tsc, self.initial) = (None, 0, 0);
        }
        self.mode = mode;
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    /// Starts counting; 0 stops.
    pub(super) fn set_initial(&mut self, count: u32, now: u64) {
        if self.mode != TSC_DEADLINE {
            self.initial = count;
            self.at = if count == 0 { None } else { now.checked_add(self.period()) };
        }
    }

    /// From saved registers: as [`Timer::set_initial`], with `count` left.
    pub(super) fn restore(&mut self, initial: u32, count: u32, now: u64) {
        if self.mode != TSC_DEADLINE {
            self.initial = initial;
            self.at = (count != 0).then(|| now.saturating_add(u64::from(count) * self.divisor()));
        }
    }

    /// The current count.
    pub(super) fn count(&self, now: u64) -> u32 {
        let left = if self.mode == TSC_DEADLINE { 0 } else { self.at.unwrap_or(0).saturating_sub(now) };
        u32::try_from(left.div_ceil(self.divisor())).unwrap_or(u32::MAX)
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    /// Sets the divide configuration; what is left to count is counted at the new pace.
    pub(super) fn set_divide(&mut self, value: u32, now: u64) {
        let left = u64::from(self.count(now));
        self.divide = value & 0xb;
        if self.mode != TSC_DEADLINE && self.at.is_some() {
            self.at = now.checked_add(left * self.divisor());
        }
    }

    /// The deadline as the guest reads it.
    pub(super) fn tsc(&self) -> u64 {
        self.tsc
    }

    /// Sets the deadline: `tsc` as the guest wrote it, which is guest time `at`. Ignored in other modes.
    pub(super) fn set_tsc(&mut self, tsc: u64, at: u64) {
        if self.mode == TSC_DEADLINE {
            self.tsc = tsc;
            self.at = (tsc != 0).then_some(at);
        }
    }

    fn divisor(&self) -> u64 {
        match self.divide >> 1 & 4 | self.divide & 3 {
            7 => 1,
            power => 2 << power,
        }
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divisors() {
        let divisors = [0, 1, 2, 3, 8, 9, 10, 11].map(|divide| Timer { divide, ..Timer::default() }.divisor());
        assert_eq!(divisors, [2, 4, 8, 16, 32, 64, 128, 1]);
    }

    #[test]
    fn one_shot_fires_once() {
        let mut timer = Timer::default();
        timer.set_divide(3, 0);
        timer.set_initial(100, 1000);
        assert_eq!((timer.at(), timer.count(1000), timer.count(1016), timer.count(1017)), (Some(2600), 100, 99, 99));
        assert!(!timer.fired(2599));
        assert!(timer.fired(2600) && !timer.fired(10_000));
        assert_eq!((timer.at(), timer.count(2600), timer.initial()), (None, 0, 100));
        timer.set_initial(100, 3000);
        timer.set_divide(11, 3000 + 50 * 16);
        assert_eq!(timer.at(), Some(3850), "the other half at the new pace");
        timer.set_initial(0, 3001);
        assert_eq!(timer.at(), None);
        timer.set_tsc(77, 77);
        assert_eq!((timer.at(), timer.tsc()), (None, 0), "not in this mode");
    }

    #[test]
    fn periodic_goes_on_and_misses_what_it_missed() {
        let mut timer = Timer { divide: 11, ..Timer::default() };
        timer.set_mode(PERIODIC);
        timer.set_initial(10, 100);
        assert!(timer.fired(110));
        assert_eq!(timer.at(), Some(120));
        assert!(timer.fired(155) && !timer.fired(155));
        assert_eq!((timer.at(), timer.count(155)), (Some(160), 5));
        timer.set_initial(u32::MAX, u64::MAX - 1);
        assert_eq!(timer.at(), None, "never");
    }

    #[test]
    fn deadlines() {
        let mut timer = Timer::default();
        timer.set_mode(TSC_DEADLINE | 0x1_00ef);
        timer.set_initial(5, 0);
        assert_eq!(timer.at(), None);
        timer.set_tsc(5000, 400);
        assert_eq!((timer.at(), timer.tsc(), timer.count(0)), (Some(400), 5000, 0));
        assert!(timer.fired(400) && !timer.fired(401));
        assert_eq!(timer.tsc(), 0, "spent");
        timer.set_tsc(5000, 400);
        timer.set_tsc(0, 0);
        assert_eq!(timer.at(), None, "disarmed");
        timer.set_tsc(5000, 400);
        timer.set_mode(0);
        assert_eq!((timer.at(), timer.tsc()), (None, 0));
    }
}
