//! The user's terminal as that of a command: raw, and with the same size.

use std::io::stdin;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};

use super::pump::thread;
use super::{Error, Process, Size};
use crate::host::terminal::{Terminal, resizes, resizes_fd, window_size};

/// Keeps the terminal raw, so that every key reaches the command, until it is dropped.
#[derive(Debug)]
pub struct Attached(#[expect(dead_code, reason = "for its end")] Option<Terminal>);

impl Attached {
    /// The size of the terminal at standard input, for [`super::Exec::terminal`]. None: it is no terminal.
    pub fn size() -> Option<Size> {
        let size = window_size(stdin())?;
        Some(Size { columns: size.columns, rows: size.rows })
    }

    /// Attaches standard input's terminal to `process`, which was started with a terminal. Where there is none, nothing
    /// happens.
    pub fn enter(process: &Arc<Process>) -> Result<Self, Error> {
        let fail = |e| Error::Host("use the terminal", Arc::new(e));
        let Some(terminal) = Terminal::enter(stdin()).map_err(fail)? else { return Ok(Self(None)) };
        let (process, resized, fd) = (process.clone(), resizes().map_err(fail)?, resizes_fd().map_err(fail)?);
        thread("agent-resize", move || {
            loop {
                let mut fds = [PollFd::new(&process, PollFlags::IN), PollFd::new(&fd, PollFlags::IN)];
                let waited = poll(&mut fds, None);
                let [over, _] = fds;
                // Interrupted by a signal is no end.
                if waited.is_err_and(|e| e != rustix::io::Errno::INTR) || over.revents().contains(PollFlags::IN) {
                    return;
                }
                // Empty it; how often it was written does not matter.
                let _ = resized.read();
                if let Some(size) = Self::size()
                    && process.resize(size).is_err()
                {
                    return;
                }
            }
        })?;
        Ok(Self(Some(terminal)))
    }
}
