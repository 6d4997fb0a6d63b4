//! What a machine and a debugger outside of it know of each other: when the CPUs stop for it, and how long. See `debug`.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use super::cpus::Remote;
use crate::engine::debug::Stop;

/// Shared by the debugger's thread, those of the vCPUs and the one that watches the machine.
#[derive(Debug)]
pub struct Leash {
    cpus: Remote,
    wants_crashes: bool,
    state: Mutex<State>,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct State {
    stops: Vec<(usize, Stop)>,
    /// The guest died, and the debugger has not looked at it yet.
    crashed: bool,
    /// The debugger has not let the dead guest go.
    holds: bool,
    breaks: Breaks,
}

impl Leash {
    /// On these CPUs. `wants_crashes`: they stop when the guest dies, whether somebody is attached or not.
    pub(crate) fn new(cpus: Remote, wants_crashes: bool) -> std::io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { cpus, wants_crashes, state: Mutex::default(), wake })
    }

    /// The CPUs.
    pub(crate) fn cpus(&self) -> &Remote {
        &self.cpus
    }

    /// vCPU `index` has stopped for its debugger, so all do. On its thread.
    pub(super) fn stopped(&self, index: usize, stop: Stop) {
        self.lock().stops.push((index, stop));
        self.cpus.brake();
        self.wake();
    }

    /// The guest died. If somebody wants to look at it, all CPUs stop. On any thread.
    pub(super) fn crashed(&self) {
        let mut state = self.lock();
        if self.wants_crashes || state.breaks.why.contains(&Break::Debugger) {
            (state.crashed, state.holds) = (true, true);
            drop(state);
            self.cpus.brake();
            self.wake();
        }
    }

    /// Whether a dead guest is still looked at.
    pub(crate) fn holds(&self) -> bool {
        self.lock().holds
    }

    /// Nobody looks at a dead guest any longer.
    pub(crate) fn release(&self) {
        self.lock().holds = false;
    }

    /// Time does not count from here on.
    pub(crate) fn begin_break(&self, why: Break) {
        self.lock().breaks.begin(why, Instant::now());
    }

    /// Time counts again, if nobody else is in the way.
    pub(crate) fn end_break(&self, why: Break) {
        self.lock().breaks.end(why, Instant::now());
    }

    /// When the time limit `at` is reached, with the time that did not count; none while it does not.
    pub(super) fn extend(&self, at: Instant) -> Option<Instant> {
        self.lock().breaks.extend(at)
    }

    /// vCPUs that stopped since the last call, and why.
    pub(crate) fn take_stops(&self) -> Vec<(usize, Stop)> {
        std::mem::take(&mut self.lock().stops)
    }

    /// Whether the guest has died since the last call.
    pub(crate) fn take_crash(&self) -> bool {
        std::mem::take(&mut self.lock().crashed)
    }

    /// Readable when there is something to take.
    pub(crate) fn wake_fd(&self) -> &OwnedFd {
        &self.wake
    }

    /// Makes [`Leash::wake_fd`] readable.
    pub(crate) fn wake(&self) {
        // Only a counter at its limit refuses: then it is readable anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Makes [`Leash::wake_fd`] unreadable.
    pub(crate) fn awake(&self) {
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why time does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Break {
    /// A debugger is attached, or waited for before the first instruction.
    Debugger,
    /// A dump is written.
    Dump,
    /// The user looks around in the guest.
    Shell,
}

/// Times that do not count.
#[derive(Debug, Default)]
struct Breaks {
    past: Vec<(Instant, Instant)>,
    since: Option<Instant>,
    why: BTreeSet<Break>,
}

impl Breaks {
    fn begin(&mut self, why: Break, now: Instant) {
        self.why.insert(why);
        self.since.get_or_insert(now);
    }

    fn end(&mut self, why: Break, now: Instant) {
        self.why.remove(&why);
        if self.why.is_empty() {
            self.past.extend(self.since.take().map(|since| (since, now)));
        }
    }

    fn extend(&self, at: Instant) -> Option<Instant> {
        if self.since.is_some() {
            return None;
        }
        self.past.iter().try_fold(at, |at, &(from, to)| if from <= at { at.checked_add(to - from) } else { Some(at) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn breaks_move_the_deadlines_after_them() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut breaks = Breaks::default();
        breaks.begin(Break::Debugger, at(10));
        breaks.begin(Break::Dump, at(12));
        breaks.end(Break::Dump, at(15));
        assert_eq!(breaks.extend(at(60)), None);
        breaks.end(Break::Debugger, at(20));
        breaks.end(Break::Debugger, at(21));
        assert_eq!(breaks.extend(at(60)), Some(at(70)));
        assert_eq!(breaks.extend(at(5)), Some(at(5)), "it had passed");
        breaks.begin(Break::Shell, at(65));
        breaks.end(Break::Shell, at(165));
        assert_eq!(breaks.extend(at(60)), Some(at(170)), "the first break moved it behind the second");
    }
}
