//! Serves the socket of a running machine (see `control`): commands that other processes of the user want in it. A thread
//! that accepts, and one for each client.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use super::control::Line;
use super::guest::Guest;
use crate::agent::protocol::Message;
use crate::agent::{Exec, Input, Io, Outcome, Output, Process};
use crate::host::socket::Listening;

/// Clients at a time.
const CLIENTS: usize = 64;

/// Serves until it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Listens at `path`.
    pub(super) fn start(path: &Path, guest: Arc<Guest>) -> io::Result<Self> {
        let listener = Listening::new(path)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let end = stop.clone();
        let thread =
            std::thread::Builder::new().name("control".into()).spawn(move || accept(&listener, &guest, &end))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Cannot fail: the counter goes from 0 to 1.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        // A thread that panicked has said so on its own.
        self.thread.take().map(JoinHandle::join);
    }
}

fn accept(listener: &Listening, guest: &Arc<Guest>, stop: &Arc<OwnedFd>) {
    let clients = Arc::new(AtomicUsize::new(0));
    loop {
        let mut fds = [PollFd::new(&**stop, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return tracing::warn!("no other command can reach this machine: {e}"),
        }
        let [stopped, _] = fds;
        if !stopped.revents().is_empty() {
            return;
        }
        let Some(client) = listener.accept() else { continue };
        if clients.fetch_add(1, Ordering::AcqRel) >= CLIENTS {
            clients.fetch_sub(1, Ordering::AcqRel);
            continue;
        }
        let (guest, stop, count) = (guest.clone(), stop.clone(), clients.clone());
        let serve = move || {
            if let Err(e) = Client::new(client, &guest).and_then(|client| client.serve(&stop)) {
                tracing::debug!("a client of this machine: {e}");
            }
            count.fetch_sub(1, Ordering::AcqRel);
        };
        if let Err(e) = std::thread::Builder::new().name("control-client".into()).spawn(serve) {
            tracing::warn!("cannot serve a client of this machine: {e}");
            clients.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

struct Client<'a> {
    line: Line,
    guest: &'a Guest,
    process: Option<Process>,
}

impl<'a> Client<'a> {
    fn new(stream: OwnedFd, guest: &'a Guest) -> io::Result<Self> {
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(false)?;
        Ok(Self { line: Line::new(stream), guest, process: None })
    }

    /// Until the client leaves, its command has ended, or `stop` is readable and it has none.
    fn serve(mut self, stop: &OwnedFd) -> io::Result<()> {
        loop {
            let other = self.process.as_ref().map_or(stop.as_fd(), AsFd::as_fd);
            let mut fds = [PollFd::new(&self.line, PollFlags::IN), PollFd::from_borrowed_fd(other, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                other => other?,
            };
            let [said, over] = fds.map(|fd| !fd.revents().is_empty());
            if over {
                return self.ended();
            }
            if said {
                let Some(message) = self.line.receive()? else { return self.left() };
                self.hear(message)?;
                while let Some(message) = self.line.received()? {
                    self.hear(message)?;
                }
            }
        }
    }

    fn hear(&mut self, message: Message) -> io::Result<()> {
        match (message, &self.process) {
            (Message::Exec(exec), None) => return self.exec(&exec),
            (Message::Shutdown, _) => self.guest.stop(),
            (Message::Dump, None) => return self.dump(),
            // A command that is gone, and its guest, need neither.
            (Message::Signal { number }, Some(process)) => drop(process.signal(number)),
            (Message::Resize(size), Some(process)) => drop(process.resize(size)),
            _ => return Err(io::Error::other("it says what makes no sense")),
        }
        Ok(())
    }

    fn exec(&mut self, exec: &Exec) -> io::Result<()> {
        let stdin = if exec.stdin { self.line.descriptor().map(Input::Fd) } else { None };
        let mut output = || self.line.descriptor().map_or(Output::Null, Output::Fd);
        let io = Io { stdin: stdin.unwrap_or(Input::None), stdout: output(), stderr: output() };
        match self.guest.agent().and_then(|agent| agent.exec(exec, io)) {
            Ok(process) => {
                self.process = Some(process);
                Ok(())
            }
            Err(e) => self.line.send(Message::Failed { what: e.to_string() }, &[]),
        }
    }

    fn dump(&mut self) -> io::Result<()> {
        let file = self.line.descriptor().ok_or_else(|| io::Error::other("it wants a dump and gives no file"))?;
        let client = self.line.as_fd().try_clone_to_owned()?;
        let message = match self.guest.dumps().write(file.into(), move || !is_gone(&client)) {
            Ok(()) => Message::Ended(Outcome::Exited(0)),
            Err(e) => Message::Failed { what: e.with_cause() },
        };
        self.line.send(message, &[])
    }

    fn ended(mut self) -> io::Result<()> {
        let Some(process) = self.process.take() else { return Ok(()) };
        let message = match process.wait(None) {
            Ok(outcome) => Message::Ended(outcome),
            Err(e) => Message::Failed { what: e.to_string() },
        };
        self.line.send(message, &[])
    }

    /// Nobody waits for the command any more: as when a terminal hangs up.
    fn left(self) -> io::Result<()> {
        self.process.iter().for_each(|process| drop(process.signal(libc::SIGHUP as u8)));
        Ok(())
    }
}

/// Whether nobody is at the other end of a connection any more.
fn is_gone(stream: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(stream, PollFlags::RDHUP)];
    poll(&mut fds, Some(&Timespec::default())).is_ok_and(|ready| ready > 0)
}
