//! A command in the guest, as seen from the host.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Instant;

use super::connection::Connection;
use super::io::Input;
use super::protocol::{Message, Stream};
use super::pump;
use super::session::{Session, State};
use super::{Error, Exec, Io, Outcome, Size};

/// A command that was started. Dropping it lets the command go on; its output is still taken.
#[derive(Debug)]
pub struct Process {
    connection: Arc<Connection>,
    session: Arc<Session>,
}

impl Process {
    pub(super) fn start(connection: &Arc<Connection>, exec: &Exec, io: Io) -> Result<Self, Error> {
        let exec = Exec { stdin: !matches!(io.stdin, Input::None), ..exec.clone() };
        let session = connection.open()?;
        let id = session.id;
        if let Err(e) = connection.send(id, Message::Exec(exec)) {
            connection.forget(id);
            return Err(e);
        }
        let ends = pump::Ends { connection: connection.clone(), session: session.clone() };
        ends.output(Stream::Stdout, io.stdout)?;
        ends.output(Stream::Stderr, io.stderr)?;
        ends.input(io.stdin)?;
        Ok(Self { connection: connection.clone(), session })
    }

    /// Waits until the command runs: its number in the guest, and when that was known here. None if it ended without.
    pub fn started(&self, deadline: Option<Instant>) -> Result<Option<(u32, Instant)>, Error> {
        let found = self.session.wait(deadline, |state| match (&state.started, &state.end) {
            (Some(started), _) => Some(Ok(Some(*started))),
            (None, Some(Err(why))) => Some(Err(why.clone())),
            (None, Some(Ok(_))) => Some(Ok(None)),
            (None, None) => None,
        });
        found.unwrap_or(Err(Error::TimedOut))
    }

    /// Waits for the end of the command, and until all its output is written. [`Error::TimedOut`] at the deadline: the
    /// command goes on, or a reader is slow, and this may be called again.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<Outcome, Error> {
        let end = |state: &mut State| state.end.clone().filter(|_| state.outputs.iter().all(|output| output.written));
        self.session.wait(deadline, end).unwrap_or(Err(Error::TimedOut))
    }

    /// How it ended, if it has.
    pub fn ended(&self) -> Option<Result<Outcome, Error>> {
        self.session.state().end.clone()
    }

    /// When output came last.
    pub fn last_output(&self) -> Option<Instant> {
        self.session.state().heard.map(|(_, last)| last)
    }

    /// When output came first.
    pub fn first_output(&self) -> Option<Instant> {
        self.session.state().heard.map(|(first, _)| first)
    }

    /// Sends a signal to the command's process group.
    pub fn signal(&self, number: u8) -> Result<(), Error> {
        self.connection.send(self.session.id, Message::Signal { number })
    }

    /// Gives the command's terminal another size.
    pub fn resize(&self, size: Size) -> Result<(), Error> {
        self.connection.send(self.session.id, Message::Resize(size))
    }
}

/// Readable once the command has ended; its last output may still be under way.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.session.over()
    }
}
