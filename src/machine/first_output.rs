//! Notices the first byte that a guest prints: how long, and how many exits, it took to get there.

use std::sync::{Arc, OnceLock};

use crate::devices::console_output::ConsoleWatcher;
use crate::engine::{ExitCounters, ExitStats};
use crate::host::clock;

/// Watches the consoles of one machine.
#[derive(Debug, Default)]
pub struct FirstOutput {
    counters: OnceLock<Vec<Arc<ExitCounters>>>,
    seen: OnceLock<Seen>,
}

/// The first output.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// When, on the monotonic clock in nanoseconds.
    pub at: u64,
    /// Exits to user space of all vCPUs until then, the printing itself included.
    pub exits: u64,
}

impl FirstOutput {
    /// The counters to read when it happens. Once, before the CPUs run.
    pub fn count(&self, counters: Vec<Arc<ExitCounters>>) {
        // A second call has nothing to add: a machine has one set of CPUs.
        let _ = self.counters.set(counters);
    }

    /// The first output, if there was any.
    pub fn seen(&self) -> Option<Seen> {
        self.seen.get().copied()
    }
}

impl ConsoleWatcher for FirstOutput {
    fn output(&self, _source: &str, _bytes: &[u8]) {
        self.seen.get_or_init(|| {
            let mut sum = ExitStats::default();
            self.counters.get().into_iter().flatten().for_each(|counters| sum += counters.stats());
            Seen { at: clock::monotonic_nanos(), exits: sum.total() }
        });
    }
}
