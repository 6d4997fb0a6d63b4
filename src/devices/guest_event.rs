//! What ends or restarts a machine from inside: devices tell it, the machine decides what follows.

use std::sync::Arc;

/// Something that happened inside a machine and concerns the machine as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestEvent {
    /// The guest switched its power off (ACPI S5).
    PowerOff,
    /// The guest asked for a reset (ACPI reset register, keyboard controller).
    Reset,
    /// The guest kernel panicked (pvpanic).
    Panicked,
    /// The guest kernel panicked and a crash kernel runs in it now (pvpanic).
    CrashLoaded,
    /// The guest wrote this status to the exit port.
    ExitPort(u8),
    /// The user typed the keys that quit.
    UserQuit,
}

/// Takes events to the machine. Called on vCPU threads and on the event loop, so it must not block.
pub type Notify = Arc<dyn Fn(GuestEvent) + Send + Sync>;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::Mutex;

    /// A [`Notify`] and what it was told.
    pub(crate) fn recorded() -> (Notify, impl Fn() -> Vec<GuestEvent>) {
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = events.clone();
        (Arc::new(move |event| events.lock().unwrap().push(event)), move || seen.lock().unwrap().clone())
    }
}
