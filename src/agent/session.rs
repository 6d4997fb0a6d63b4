//! What is known of one command: what the reading thread learns, and what the pumps and those who wait want to know.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rustix::event::{EventfdFlags, eventfd};

use super::Error;
use super::protocol::{Malformed, Message, Outcome, Stream, WINDOW};

/// A command that was started.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) id: u32,
    state: Mutex<State>,
    changed: Condvar,
    /// Readable once it has ended.
    over: OwnedFd,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) started: Option<(u32, Instant)>,
    /// How it ended, or why that will never be known.
    pub(super) end: Option<Result<Outcome, Error>>,
    /// Bytes of input that may be sent.
    pub(super) credit: u32,
    /// Nobody in the guest reads any more.
    pub(super) stdin_closed: bool,
    pub(super) outputs: [Received; 2],
    /// When output came first, and last.
    pub(super) heard: Option<(Instant, Instant)>,
}

/// Output that was received and not yet written.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) bytes: Vec<u8>,
    /// Taken by the pump, but no credit was given for it yet.
    pub(super) taken: usize,
    pub(super) ended: bool,
    /// The pump has finished.
    pub(super) written: bool,
}

impl Session {
    pub(super) fn new(id: u32) -> std::io::Result<Self> {
        let state = State {
            started: None,
            end: None,
            credit: WINDOW,
            stdin_closed: false,
            outputs: <_>::default(),
            heard: None,
        };
        let over = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { id, state: Mutex::new(state), changed: Condvar::new(), over })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `until` finds something, or returns None at the deadline.
    pub(super) fn wait<T>(
        &self,
        deadline: Option<Instant>,
        mut until: impl FnMut(&mut State) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(found) = until(&mut state) {
                return Some(found);
            }
            state = match deadline.map(|at| at.saturating_duration_since(Instant::now())) {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) if left.is_zero() => return None,
                Some(left) => self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
    }

    /// Changes the state, and tells those who wait.
    pub(super) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    /// Readable once the command has ended.
    pub(super) fn over(&self) -> BorrowedFd<'_> {
        self.over.as_fd()
    }

    /// The connection ended.
    pub(super) fn abandon(&self, why: &Error) {
        let mut state = self.state();
        if state.end.is_none() {
            self.finish(&mut state, Err(why.clone()));
        }
    }

    fn finish(&self, state: &mut State, end: Result<Outcome, Error>) {
        state.end = Some(end);
        state.outputs.iter_mut().for_each(|output| output.ended = true);
        // Cannot fail: the counter goes from 0 to 1.
        let _ = rustix::io::write(&self.over, &1u64.to_ne_bytes());
        self.changed.notify_all();
    }

    /// On the reading thread: what the guest says of this session. Returns whether it is over.
    pub(super) fn hear(&self, message: Message) -> Result<bool, Malformed> {
        let mut state = self.state();
        match message {
            Message::Started { pid } => {
                state.started.get_or_insert((pid, Instant::now()));
            }
            Message::Data { stream, bytes } => state.receive(stream, bytes)?,
            Message::End { stream } => state.output(stream)?.ended = true,
            Message::Credit { stream: Stream::Stdin, bytes } => {
                let credit = state.credit.checked_add(bytes).filter(|&credit| credit <= WINDOW);
                state.credit = credit.ok_or(Malformed)?;
            }
            Message::Close { stream: Stream::Stdin } => state.stdin_closed = true,
            Message::Ended(outcome) => {
                self.finish(&mut state, Ok(outcome.printable()));
                return Ok(true);
            }
            _ => return Err(Malformed),
        }
        self.changed.notify_all();
        Ok(false)
    }
}

impl State {
    fn output(&mut self, stream: Stream) -> Result<&mut Received, Malformed> {
        let [stdout, stderr] = &mut self.outputs;
        match stream {
            Stream::Stdin => Err(Malformed),
            Stream::Stdout => Ok(stdout),
            Stream::Stderr => Ok(stderr),
        }
    }

    fn receive(&mut self, stream: Stream, bytes: Vec<u8>) -> Result<(), Malformed> {
        let now = Instant::now();
        self.heard = Some((self.heard.map_or(now, |(first, _)| first), now));
        let output = self.output(stream)?;
        let under_way = output.bytes.len() + output.taken + bytes.len();
        if output.ended || under_way > WINDOW as usize {
            return Err(Malformed);
        }
        if output.bytes.is_empty() {
            output.bytes = bytes;
        } else {
            output.bytes.extend_from_slice(&bytes);
        }
        Ok(())
    }
}

impl Outcome {
    /// With nothing in its texts that could do anything to a terminal.
    fn printable(self) -> Self {
        match self {
            Self::NotFound(text) => Self::NotFound(printable(&text)),
            Self::NotExecutable(text) => Self::NotExecutable(printable(&text)),
            Self::Failed(text) => Self::Failed(printable(&text)),
            other => other,
        }
    }
}

/// A guest's words, bounded and without control characters.
pub(super) fn printable(text: &str) -> String {
    text.chars().take(1000).map(|c| if c.is_control() { '?' } else { c }).collect()
}
