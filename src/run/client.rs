//! A command of another process in a running machine: the client's side of `control`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};

use super::control::Line;
use crate::agent::protocol::Message;
use crate::agent::{Exec, Outcome, Size};
use crate::host::signal::Signals;

/// Why a running machine does not do what is wanted.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RemoteError {
    #[error("Cannot reach the machine; it may just have ended")]
    Unreachable(#[source] io::Error),
    #[error("The machine ended before the command")]
    Gone,
    #[error("{0}")]
    Failed(String),
    #[error("Cannot write the dump {}: {why}", .path.display())]
    Dump { path: PathBuf, why: String },
}

impl From<io::Error> for RemoteError {
    fn from(error: io::Error) -> Self {
        Self::Unreachable(error)
    }
}

/// A connection to a running machine.
#[derive(Debug)]
pub struct Remote {
    pub(super) line: Line,
}

impl Remote {
    /// Connects to the control socket at `path`.
    pub fn connect(path: &Path) -> Result<Self, RemoteError> {
        Ok(Self { line: Line::new(UnixStream::connect(path)?) })
    }

    /// Starts a command there, with these descriptors: input, if `exec` says so, output, messages.
    pub fn exec(&mut self, exec: Exec, descriptors: &[BorrowedFd<'_>]) -> Result<(), RemoteError> {
        Ok(self.line.send(Message::Exec(exec), descriptors)?)
    }

    /// Waits for the end of the command. Meanwhile signals go there, and new sizes of the terminal, as `size` tells when
    /// `resizes` is readable.
    pub fn wait(
        &mut self,
        signals: Option<&Signals>,
        resizes: Option<(BorrowedFd<'_>, &dyn Fn() -> Option<Size>)>,
    ) -> Result<Outcome, RemoteError> {
        loop {
            let never = PollFlags::empty();
            let own = self.line.as_fd();
            let mut fds = [
                PollFd::from_borrowed_fd(own, PollFlags::IN),
                PollFd::from_borrowed_fd(signals.map_or(own, AsFd::as_fd), signals.map_or(never, |_| PollFlags::IN)),
                PollFd::from_borrowed_fd(resizes.map_or(own, |r| r.0), resizes.map_or(never, |_| PollFlags::IN)),
            ];
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.map_err(io::Error::from)?,
            };
            let [said, _, resized] = fds.map(|fd| fd.revents().contains(PollFlags::IN));
            while let Some(signal) = signals.and_then(Signals::next) {
                let number = u8::try_from(signal).unwrap_or_default();
                self.line.send(Message::Signal { number }, &[])?;
            }
            if let (true, Some((fd, size))) = (resized, resizes) {
                // Whoever reads first has the notice.
                let _ = rustix::io::read(fd, &mut [0; 8]);
                if let Some(size) = size() {
                    self.line.send(Message::Resize(size), &[])?;
                }
            }
            if said {
                match self.line.receive()? {
                    None => return Err(RemoteError::Gone),
                    Some(Message::Ended(outcome)) => return Ok(outcome),
                    Some(Message::Failed { what }) => return Err(RemoteError::Failed(what)),
                    Some(_) => {}
                }
            }
        }
    }

    /// Asks the guest to power off; the second time the machine ends at once.
    pub fn stop(&mut self) -> Result<(), RemoteError> {
        Ok(self.line.send(Message::Shutdown, &[])?)
    }
}
