//! Where diagnostics go while tests run: to standard error, above the lines that move there.

use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::MultiProgress;

/// The lines that are drawn on standard error now.
static LINES: Mutex<Option<MultiProgress>> = Mutex::new(None);

/// Standard error for diagnostics, from any thread. Without this they would be drawn over.
#[derive(Debug, Clone, Copy, Default)]
pub struct Diagnostics;

/// While this exists, lines are drawn on standard error. One at a time.
#[derive(Debug)]
pub(super) struct Drawn(());

impl Drawn {
    /// These lines.
    pub(super) fn on_stderr(lines: MultiProgress) -> Self {
        *locked() = Some(lines);
        Self(())
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        *locked() = None;
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::ProgressDrawTarget;

    #[test]
    fn who_has_the_terminal_to_himself_is_waited_for_by_nobody_who_has_something_to_say() {
        let lines = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let drawn = Drawn::on_stderr(lines.clone());
        let mut said = false;
        aside(&lines, &mut || {
            let other = std::thread::spawn(|| Diagnostics.write_all(b"").is_ok());
            said = other.join().unwrap();
        });
        assert!(said && locked().is_some());
        drop(drawn);
        assert!(locked().is_none());
    }
}
