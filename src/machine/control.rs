//! How a running machine is told to end, by its guest, its devices, its CPUs or the host.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use crate::devices::{GuestEvent, Notify};
use crate::host::event_loop::Failed;
use crate::machine::leash::Leash;

/// Why a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest switched its power off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// All CPUs halted with interrupts off.
    Halted,
    /// The guest wrote a status to the exit port.
    ExitPort(u8),
    /// A CPU cannot go on; what is known about it.
    CpuDied(String),
    /// The engine or the host failed.
    Failed(String),
    /// The time limit passed.
    TimedOut,
    /// The guest agent did not answer within so many seconds.
    BootTimedOut(u64),
    /// Nothing was printed for so many seconds.
    Silent(u64),
    /// The user quit, or a signal asked for the end (its number).
    Stopped(Option<i32>),
}

/// Collects the reasons to end; the first one counts. Shared by all threads.
#[derive(Debug)]
pub struct Control {
    ending: Mutex<Option<Ending>>,
    panicked: AtomicBool,
    panic_message: OnceLock<String>,
    crash_kernel: AtomicBool,
    timed: AtomicBool,
    leash: OnceLock<Arc<Leash>>,
    wake: OwnedFd,
}

impl Control {
    /// A control nobody has used yet.
    pub fn new() -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            ending: Mutex::default(),
            panicked: AtomicBool::new(false),
            panic_message: OnceLock::new(),
            crash_kernel: AtomicBool::new(false),
            timed: AtomicBool::new(false),
            leash: OnceLock::new(),
            wake: eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?,
        }))
    }

    /// Ends the machine, unless it is ending already. From any thread; never blocks for long.
    pub fn end(&self, ending: Ending) {
        let mut first = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        if first.is_none() {
            let dies = matches!(ending, Ending::CpuDied(_));
            *first = Some(ending);
            if let Some(leash) = self.leash().filter(|_| dies) {
                leash.crashed();
            }
            self.wake();
        }
    }

    /// A debugger has the machine, before it starts.
    pub(crate) fn set_leash(&self, leash: Arc<Leash>) {
        // Only one can be started for a machine.
        let _ = self.leash.set(leash);
    }

    /// What a debugger has the machine by, if there is one.
    pub(crate) fn leash(&self) -> Option<&Arc<Leash>> {
        self.leash.get()
    }

    /// When a time limit that was to be reached at `at` is reached: a debugger makes it later. None while one is attached.
    pub fn extend(&self, at: Instant) -> Option<Instant> {
        self.leash().map_or(Some(at), |leash| leash.extend(at))
    }

    /// Whether a debugger still looks at a guest that died.
    pub(super) fn is_held(&self) -> bool {
        self.leash().is_some_and(|leash| leash.holds())
    }

    /// Whether the machine ends.
    pub fn has_ended(&self) -> bool {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Why the machine ends, if it does.
    pub fn ending(&self) -> Option<Ending> {
        self.ending.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A signal or the time of day has a part in what follows.
    pub fn comes_at_a_time(&self) {
        self.timed.store(true, Ordering::Release);
    }

    /// Whether a signal, a key or the time of day had a part in when the machine ended: the next run may end elsewhere.
    pub fn timed(&self) -> bool {
        let timed = matches!(self.ending(), Some(Ending::TimedOut | Ending::Stopped(_)));
        timed || self.timed.load(Ordering::Acquire)
    }

    /// Whether the guest kernel panicked. If so, that is the verdict, however the machine ends.
    pub fn panicked(&self) -> bool {
        self.panicked.load(Ordering::Acquire)
    }

    /// The guest kernel printed that it panicked; `line` is what it said.
    pub fn panicked_with(&self, line: &str) {
        self.panic_message.get_or_init(|| line.trim().to_string());
        self.on_guest_event(GuestEvent::Panicked);
    }

    /// What the guest kernel said when it panicked.
    pub fn panic_message(&self) -> Option<&str> {
        self.panic_message.get().map(String::as_str)
    }

    /// Whether a crash kernel runs after the panic, and takes its time.
    pub fn crash_kernel(&self) -> bool {
        self.crash_kernel.load(Ordering::Acquire)
    }

    /// Readable when something happened since [`Control::awake`].
    pub fn wake_fd(&self) -> &OwnedFd {
        &self.wake
    }

    /// The main thread is about to look at everything; false if nothing had happened.
    pub fn awake(&self) -> bool {
        rustix::io::read(&self.wake, &mut [0; 8]).is_ok()
    }

    /// For devices: turns guest events into endings.
    pub fn notify(self: &Arc<Self>) -> Notify {
        let control = self.clone();
        Arc::new(move |event| control.on_guest_event(event))
    }

    /// For event loops: a machine whose devices are not served any more ends.
    pub fn failed(self: &Arc<Self>) -> Failed {
        let control = self.clone();
        Arc::new(move |what| control.end(Ending::Failed(what)))
    }

    fn on_guest_event(&self, event: GuestEvent) {
        match event {
            GuestEvent::PowerOff => self.end(Ending::PowerOff),
            GuestEvent::Reset => self.end(Ending::Reset),
            GuestEvent::ExitPort(status) => self.end(Ending::ExitPort(status)),
            GuestEvent::UserQuit => self.end(Ending::Stopped(None)),
            GuestEvent::Panicked => self.on_panic(),
            GuestEvent::CrashLoaded => {
                self.crash_kernel.store(true, Ordering::Release);
                self.on_panic();
            }
        }
    }

    /// A guest can say so as often as it likes: only the first time wakes the main thread.
    fn on_panic(&self) {
        if !self.panicked.swap(true, Ordering::AcqRel) {
            self.leash().into_iter().for_each(|leash| leash.crashed());
            self.wake();
        }
    }

    /// Makes the watching thread look at everything. From any thread.
    pub fn wake(&self) {
        if let Err(e) = rustix::io::write(&self.wake, &1u64.to_ne_bytes()) {
            // Only a counter at its limit refuses: then it is readable anyway.
            tracing::debug!("waking the main thread: {e}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts_and_panics_are_remembered() {
        let control = Control::new().unwrap();
        let notify = control.notify();
        notify(GuestEvent::Panicked);
        assert!(control.panicked() && control.ending().is_none());
        assert!(control.awake() && !control.awake());
        notify(GuestEvent::Panicked);
        assert!(!control.awake(), "said before");
        notify(GuestEvent::Reset);
        notify(GuestEvent::PowerOff);
        assert_eq!(control.ending(), Some(Ending::Reset));
    }
}
