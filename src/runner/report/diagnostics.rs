//! Where diagnostics go while tests run: to standard error, above the lines that move there.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::MultiProgress;

/// The lines that are drawn on standard error now.
static LINES: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Standard error for diagnostics, from any thread. Without this they would be drawn over.
#[derive(Debug, Clone, Copy, Default)]
pub struct Diagnostics;

/// Lines are drawn on standard error from now on, or none.
pub(super) fn set_lines(lines: Option<MultiProgress>) {
    *locked() = lines;
}

/// Does `work`, which has the terminal to itself: nothing is drawn meanwhile.
pub(super) fn aside(lines: &MultiProgress, work: &mut dyn FnMut()) {
    // What is said meanwhile must not wait.
    let before = locked().take();
    lines.suspend(work);
    *locked() = before;
}

fn locked() -> MutexGuard<'static, Option<MultiProgress>> {
    LINES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Write for Diagnostics {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let lines = locked().clone();
        let write = || io::stderr().write(bytes);
        lines.map_or_else(write, |lines| lines.suspend(write))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
