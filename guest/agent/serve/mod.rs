//! Serving requests: one loop that waits for the host, for the streams of commands and for children that end. Nothing
//! in it blocks, and the agent has no other thread.

mod link;
mod session;
mod spawn;
mod users;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::time::Instant;

pub use link::Link;
pub use spawn::reason;

use crate::protocol::{Exec, Frame, Message};
use crate::sys::{self, PollFd};
use session::{Part, Session};

/// Why serving ended.
#[derive(Debug)]
pub enum End {
    /// The host asked for it.
    Shutdown,
    /// The host is gone, or speaks another language.
    Lost,
}

/// The loop's state.
#[derive(Debug)]
pub struct Server {
    link: Link,
    children: File,
    sessions: BTreeMap<u32, Session>,
}

/// What a descriptor in the wait belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Link,
    Children,
    Session(u32, Part),
}

impl Server {
    /// Serves `link`; `children` is from [`sys::children`], made before the first child.
    pub fn new(link: Link, children: File) -> Self {
        Self { link, children, sessions: BTreeMap::new() }
    }

    /// Serves until the host wants no more. What is left to be sent is sent.
    pub fn run(&mut self) -> End {
        loop {
            match self.turn() {
                Ok(None) => {}
                Ok(Some(end)) => {
                    self.link.finish();
                    return end;
                }
                Err(_) => return End::Lost,
            }
        }
    }

    fn turn(&mut self) -> io::Result<Option<End>> {
        self.link.flush()?;
        for (source, fd) in self.wait()?.into_iter().filter(|(_, fd)| fd.ready()) {
            match source {
                Source::Link => {
                    self.link.fill()?;
                    while let Some(frame) = self.link.next()? {
                        if frame.message == Message::Shutdown {
                            return Ok(Some(End::Shutdown));
                        }
                        self.hear(frame)?;
                    }
                }
                Source::Children => self.reap(),
                Source::Session(id, part) => {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.ready(part, fd.broken(), &mut self.link);
                    }
                }
            }
        }
        let (full, link) = (self.link.is_full(), &mut self.link);
        self.sessions.retain(|_, session| !session.finish(full, link));
        Ok(None)
    }

    fn wait(&mut self) -> io::Result<Vec<(Source, PollFd)>> {
        let mut sources = vec![Source::Link, Source::Children];
        let mut fds = vec![self.link.poll(), PollFd::new(&self.children, sys::IN)];
        let full = self.link.is_full();
        for (&id, session) in &self.sessions {
            session.poll(full, |part, fd| {
                sources.push(Source::Session(id, part));
                fds.push(fd);
            });
        }
        let deadline = self.sessions.values().filter_map(|session| session.deadline(full)).min();
        sys::wait(&mut fds, deadline.map(|at| at.saturating_duration_since(Instant::now())))?;
        Ok(sources.into_iter().zip(fds).collect())
    }

    /// Takes all children that have ended: commands, and orphans that nobody else takes.
    fn reap(&mut self) {
        // What the signals say is found out below; they only have to be taken.
        let _ = self.children.read(&mut [0; 1024]);
        while let Ok((pid, exit)) = sys::reap() {
            self.sessions.values_mut().for_each(|session| session.reaped(pid, exit));
        }
    }

    fn hear(&mut self, frame: Frame) -> io::Result<()> {
        let (id, link) = (frame.session, &mut self.link);
        if let Message::Exec(exec) = frame.message {
            self.start(id, &exec);
            return Ok(());
        }
        // What belongs to a command that has just ended is late.
        let Some(session) = self.sessions.get_mut(&id) else { return Ok(()) };
        match frame.message {
            Message::Data { bytes, .. } => session.take_input(&bytes, link)?,
            Message::End { .. } => session.end_input(link),
            Message::Credit { stream, bytes } => session.credit(stream, bytes),
            Message::Close { stream } => session.close(stream, link),
            Message::Signal { number } => session.signal(number),
            Message::Resize(size) => session.resize(size),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(())
    }

    fn start(&mut self, id: u32, exec: &Exec) {
        match spawn::spawn(exec) {
            Ok(spawned) => drop(self.sessions.insert(id, Session::new(id, spawned))),
            Err(outcome) => self.link.say(id, Message::Ended(outcome)),
        }
    }
}
