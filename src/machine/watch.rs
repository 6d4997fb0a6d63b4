//! The thread that waits while a machine runs, mostly the main one: for the end, for signals if the program wants that,
//! for the time limit, and for what a [`Companion`] wants to be asked. It notices a guest that has halted for good.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::arch::x86_64::state::{Activity, CpuState};
use crate::host::signal::Signals;
use crate::machine::Machine;
use crate::machine::control::Ending;

/// How often an idle machine is looked at. Machines that use CPU time are never disturbed.
const LOOK: Duration = Duration::from_secs(1);
/// A kernel that panicked and neither reboots nor starts a crash kernel within this time never will.
const AFTER_PANIC: Duration = Duration::from_secs(5);
/// How long a guest may take to power off when the terminal hung up.
const AFTER_HANG_UP: Duration = Duration::from_secs(10);
/// RFLAGS: interrupts enabled.
const IF: u64 = 1 << 9;

/// Who else has a say in when a machine ends, on the watching thread.
pub trait Companion {
    /// A signal came. False: do what is usual, which is to press the power button, and end the machine the second time.
    fn signal(&mut self, signal: i32) -> bool;
    /// Something may have happened, or a second has passed; it may end the machine. Says when it wants to be asked next
    /// at the latest.
    fn look(&mut self) -> Option<Instant>;
}

/// Watches one machine until it ends.
pub struct Watch<'a> {
    machine: &'a Machine,
    signals: Option<&'a Signals>,
    companion: Option<&'a mut dyn Companion>,
    companion_deadline: Option<Instant>,
    deadline: Option<Instant>,
    asked_to_end: bool,
    panic_deadline: Option<Instant>,
    hang_up_deadline: Option<Instant>,
    idle: Idle,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl<'a> Watch<'a> {
    /// A watch over `machine`.
    pub fn new(machine: &'a Machine) -> Self {
        Self {
            machine,
            signals: None,
            companion: None,
            companion_deadline: None,
            deadline: None,
            asked_to_end: false,
            panic_deadline: None,
            hang_up_deadline: None,
            idle: Idle::default(),
        }
    }

    /// Ends the machine after `limit`, from now.
    #[must_use]
    pub fn limit(mut self, limit: Option<Duration>) -> Self {
        self.deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        self
    }

    /// Signals of the process ask the guest to end. Without this they are left alone.
    #[must_use]
    pub fn signals(mut self, signals: Option<&'a Signals>) -> Self {
        self.signals = signals;
        self
    }

    /// Somebody else has a say.
    #[must_use]
    pub fn companion(mut self, companion: &'a mut dyn Companion) -> Self {
        self.companion = Some(companion);
        self
    }

    /// Waits for the end.
    pub fn until_end(mut self) -> Ending {
        loop {
            self.companion_deadline = self.companion.as_mut().and_then(|companion| companion.look());
            self.wait();
            let control = self.machine.control();
            let died = |ending: &Ending| matches!(ending, Ending::CpuDied(_));
            if let Some(ending) = control.ending().filter(|ending| !(died(ending) && control.is_held())) {
                return ending;
            }
            while let Some(signal) = self.signals.and_then(Signals::next) {
                if control.has_ended() {
                    self.let_go();
                } else if !self.companion.as_mut().is_some_and(|companion| companion.signal(signal)) {
                    self.handle(signal);
                }
            }
            self.check_deadlines();
            if !self.is_debugged() && self.idle.is_halted(self.machine) {
                self.machine.control().end(Ending::Halted);
            }
        }
    }

    fn wait(&self) {
        let limits = [self.deadline, self.panic_deadline].into_iter().flatten();
        let limits = limits.flat_map(|at| self.machine.control().extend(at));
        let next = limits.chain(self.hang_up_deadline).chain(self.companion_deadline).min();
        let until = next.map_or(LOOK, |at| at.saturating_duration_since(Instant::now()).min(LOOK));
        let timeout = Timespec { tv_sec: until.as_secs() as i64, tv_nsec: until.subsec_nanos().into() };
        let control = self.machine.control();
        let mut fds = vec![PollFd::new(control.wake_fd(), PollFlags::IN)];
        fds.extend(self.signals.map(|signals| PollFd::new(signals, PollFlags::IN)));
        // An interrupted poll looks at everything once more, which is harmless.
        let _ = poll(&mut fds, Some(&timeout));
        control.awake();
    }

    fn handle(&mut self, signal: i32) {
        if self.asked_to_end {
            self.machine.control().end(Ending::Stopped(Some(signal)));
        } else {
            if signal == libc::SIGHUP {
                // The terminal is gone: nobody is there to send a second signal.
                self.hang_up_deadline = Instant::now().checked_add(AFTER_HANG_UP);
            }
            self.machine.control().comes_at_a_time();
            self.machine.press_power_button();
            tracing::info!("signal {signal}: asked the guest to power off; send it again to end the machine");
            self.asked_to_end = true;
        }
    }

    /// A debugger is attached, or looks at a guest that died: nothing is to be made of CPUs that stand still.
    fn is_debugged(&self) -> bool {
        let control = self.machine.control();
        control.is_held() || control.extend(Instant::now()).is_none()
    }

    /// A dead guest is kept for its debugger no longer.
    fn let_go(&self) {
        self.machine.control().leash().into_iter().for_each(|leash| leash.release());
    }

    fn check_deadlines(&mut self) {
        let now = Instant::now();
        let control = self.machine.control();
        let passed = |at| control.extend(at).is_some_and(|at| now >= at);
        if self.deadline.is_some_and(passed) {
            control.end(Ending::TimedOut);
            self.let_go();
        }
        if self.hang_up_deadline.is_some_and(|at| now >= at) {
            control.end(Ending::Stopped(Some(libc::SIGHUP)));
        }
        if control.panicked() && !control.crash_kernel() && !control.is_held() {
            let at = *self.panic_deadline.get_or_insert(now + AFTER_PANIC);
            if passed(at) {
                control.comes_at_a_time();
                control.end(Ending::Halted);
            }
        }
    }
}

/// Notices that all CPUs have halted with interrupts off: `halt` in the guest, which the engine cannot tell from waiting.
#[derive(Debug, Default)]
struct Idle {
    cpu_time: Duration,
    /// This much CPU time was used when the machine was last found waiting, not halted.
    waiting_at: Option<Duration>,
}

impl Idle {
    fn is_halted(&mut self, machine: &Machine) -> bool {
        let cpus = machine.cpus();
        let before = std::mem::replace(&mut self.cpu_time, cpus.cpu_time());
        if self.cpu_time != before || self.waiting_at == Some(before) {
            return false;
        }
        let halted = (0..cpus.count()).all(|cpu| {
            let state = cpus.with(cpu, |vcpu| vcpu.state());
            matches!(state, Ok(Ok(state)) if is_halted(&state))
        });
        // Asking took CPU time itself: what counts is whether the guest uses more from here on.
        self.cpu_time = cpus.cpu_time();
        self.waiting_at = Some(self.cpu_time);
        halted
    }
}

fn is_halted(state: &CpuState) -> bool {
    match state.activity {
        Activity::Running => false,
        Activity::Halted => state.regs.rflags & IF == 0,
        Activity::WaitForInit | Activity::WaitForSipi => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_cpus_that_nothing_can_wake_are_halted() {
        let state = |activity, rflags| {
            let mut state = CpuState { activity, ..CpuState::default() };
            state.regs.rflags = rflags;
            is_halted(&state)
        };
        assert!(state(Activity::Halted, 0x2));
        assert!(!state(Activity::Halted, 0x202));
        assert!(!state(Activity::Running, 0x2));
        assert!(state(Activity::WaitForSipi, 0x202));
    }
}
