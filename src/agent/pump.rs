//! The threads between a command's streams and the user's files. They are the only ones that wait for the user.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, poll};

use super::Error;
use super::connection::Connection;
use super::io::{Input, Output};
use super::protocol::{CHUNK, Message, Stream};
use super::session::{Session, State};

/// What a pump works between.
#[derive(Debug, Clone)]
pub(super) struct Ends {
    pub(super) connection: Arc<Connection>,
    pub(super) session: Arc<Session>,
}

impl Ends {
    /// Starts the thread that writes `stream` to `to`.
    pub(super) fn output(&self, stream: Stream, to: Output) -> Result<(), Error> {
        let ends = self.clone();
        let to: Box<dyn Write + Send> = match to {
            Output::Null => Box::new(io::sink()),
            Output::Fd(fd) => Box::new(Patient(fd.into())),
            Output::Writer(writer) => writer,
        };
        let name = if stream == Stream::Stdout { "agent-stdout" } else { "agent-stderr" };
        thread(name, move || {
            let index = usize::from(stream == Stream::Stderr);
            ends.write(stream, index, to);
            ends.session
                .change(|state| state.outputs.get_mut(index).into_iter().for_each(|output| output.written = true));
        })
    }

    /// Starts the thread that sends what `from` gives.
    pub(super) fn input(&self, from: Input) -> Result<(), Error> {
        let ends = self.clone();
        match from {
            Input::None => Ok(()),
            Input::Fd(fd) => thread("agent-stdin", move || {
                let file = Patient(fd.into());
                ends.read(|buffer| if file.wait(&ends.session)? { (&file.0).read(buffer) } else { Ok(0) });
            }),
            Input::Reader(mut reader) => thread("agent-stdin", move || ends.read(|buffer| reader.read(buffer))),
        }
    }

    fn write(&self, stream: Stream, index: usize, mut to: Box<dyn Write + Send>) {
        let take = |state: &mut State| {
            let output = state.outputs.get_mut(index)?;
            output.taken = output.bytes.len();
            let ready = output.taken > 0 || output.ended;
            ready.then(|| std::mem::take(&mut output.bytes))
        };
        let (id, mut broken) = (self.session.id, false);
        loop {
            let bytes = self.session.wait(None, take).unwrap_or_default();
            if bytes.is_empty() {
                return;
            }
            if !broken && to.write_all(&bytes).and_then(|()| to.flush()).is_err() {
                // What is under way is thrown away, so that the command reaches its next write, and fails.
                broken = true;
                let _ = self.connection.send(id, Message::Close { stream });
            }
            self.session.state().outputs.get_mut(index).into_iter().for_each(|output| output.taken = 0);
            let bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
            // If that fails the connection is gone, and the rest is still to be written.
            let _ = self.connection.send(id, Message::Credit { stream, bytes });
        }
    }

    fn read(&self, mut from: impl FnMut(&mut [u8]) -> io::Result<usize>) {
        let room = |state: &mut State| match (state.end.is_some() || state.stdin_closed, state.credit) {
            (true, _) => Some(None),
            (false, 0) => None,
            (false, credit) => Some(Some(credit as usize)),
        };
        let mut buffer = vec![0; CHUNK];
        while let Some(room) = self.session.wait(None, room).flatten() {
            let limit = room.min(CHUNK);
            match from(buffer.get_mut(..limit).unwrap_or_default()) {
                Ok(0) => break,
                Ok(n) => {
                    let n = n.min(limit);
                    let mut state = self.session.state();
                    state.credit = state.credit.saturating_sub(n as u32);
                    drop(state);
                    if self.connection.send_data(self.session.id, buffer.get(..n).unwrap_or_default()).is_err() {
                        return;
                    }
                }
                Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {}
                // A terminal that hung up, a directory: nothing more comes.
                Err(_) => break,
            }
        }
        let _ = self.connection.send(self.session.id, Message::End { stream: Stream::Stdin });
    }
}

/// A file that may have been made non-blocking by somebody who shares it.
struct Patient(File);

impl Patient {
    /// Waits until there is something to read. False: the command has ended.
    fn wait(&self, session: &Session) -> io::Result<bool> {
        let over = session.over();
        let mut fds = [PollFd::new(&over, PollFlags::IN), PollFd::new(&self.0, PollFlags::IN)];
        poll(&mut fds, None)?;
        let [over, _] = fds;
        Ok(over.revents().is_empty())
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    poll(&mut [PollFd::new(&self.0.as_fd(), PollFlags::OUT)], None)?;
                }
                result => return result,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(super) fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    let started = std::thread::Builder::new().name(name.into()).spawn(work);
    started.map(drop).map_err(|e| Error::Host("start a thread", Arc::new(e)))
}
