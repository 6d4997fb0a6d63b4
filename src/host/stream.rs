//! A two-way stream of characters between devices and a place on the host: bounded buffers, and a part on the event
//! loop (`pump`) that reads, and writes what could not be written at once.
//!
//! Devices write from vCPU threads or the event loop and never wait. Lines are written whole where that is asked for:
//! a guest that sends one character at a time would else cost a system call each. Several devices may share a stream
//! (early messages of a serial port and a virtio console on one terminal); the last that claimed the input gets it.
//!
//! Lock order: whatever a device holds, then `output` or `input` (never both), then the alarm's.

//!
//! On a loop in step a stream never acts at a time of its own: input from a file or pipe is read whole before the guest
//! starts, listeners hear nothing, and output waits for its reader instead of letting the guest wait.

mod preload;
mod pump;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::time::Timespec;

use crate::host::alarm::Alarm;
use crate::host::chardev::{Pty, Sink, Target, stdin};
use crate::host::escape::EscapeKeys;
use crate::host::event_loop::LoopHandle;
use crate::host::log_limit::LogLimit;
use crate::host::socket::Listening;
use crate::host::terminal::{self, Terminal, WindowSize};

/// Bytes kept for a reader that is slower than the guest; memory is taken only then.
pub const OUTPUT_CAPACITY: usize = 64 << 10;
/// Bytes kept for a guest that is slower than its input.
pub const INPUT_CAPACITY: usize = 4 << 10;
/// A line longer than this is written in pieces.
const LINE: usize = 1 << 10;
/// How long a piece of a line waits for the rest: too short to be seen when typing.
const FLUSH_DELAY: Duration = Duration::from_millis(4);

/// A place cannot be opened.
#[derive(Debug, thiserror::Error)]
#[error("{name}: cannot use {target}: {source}")]
pub struct OpenError {
    name: String,
    target: Target,
    source: io::Error,
}

/// Told by the event loop. Holds no locks of a stream meanwhile.
pub trait Listener: Send + Sync {
    /// Input arrived, output can go on after a pause, or somebody connected or left.
    fn ready(&self);
    /// The terminal's window may have another size.
    fn resized(&self) {}
}

/// What to do with output for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// Take only what there is room for, and tell the listener when there is room again; but see [`Style::patience`].
    Wait,
    /// Count it as lost.
    Drop,
}

/// How a stream behaves.
#[derive(Clone)]
pub struct Style {
    /// Collect pieces of lines for a few milliseconds.
    pub lines: bool,
    /// How long [`WhenFull::Wait`] waits for a reader that takes nothing at all (none: for ever). After that output is
    /// lost until the reader goes on: a Linux guest spins with interrupts off while it waits for its console.
    pub patience: Option<Duration>,
    /// Called when the user typed the keys that quit (only on a terminal), on the event loop.
    pub quit: Arc<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Style {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Style").field("lines", &self.lines).field("patience", &self.patience).finish_non_exhaustive()
    }
}

/// An open place. Clones are the same place.
#[derive(Debug, Clone)]
pub struct Stream(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    name: String,
    lines: bool,
    patience: Option<Duration>,
    alarm: Alarm,
    output: Mutex<Output>,
    input: Mutex<Input>,
    /// The terminal, if it is one that the user sits at.
    terminal: Option<OwnedFd>,
    /// See [`Stream::in_step`].
    in_step: bool,
}

#[derive(Debug, Default)]
struct Output {
    sink: Option<Sink>,
    /// The sink failed; the pump takes it away.
    broken: bool,
    pending: Vec<u8>,
    /// When the sink last took something, if it does not take more now.
    blocked: Option<Instant>,
    /// It has taken nothing for too long.
    stalled: bool,
    lost: u64,
}

#[derive(Default)]
struct Input {
    buffer: VecDeque<u8>,
    /// The pump reads no more until there is room.
    paused: bool,
    claims: Vec<(u64, Weak<dyn Listener>)>,
    next: u64,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("waiting", &self.buffer.len())
            .field("paused", &self.paused)
            .finish_non_exhaustive()
    }
}

/// What belongs to the event loop's side of a stream.
#[derive(Debug, Default)]
struct Source {
    reader: Option<OwnedFd>,
    listening: Option<Listening>,
    /// The other side of a pseudo-terminal, kept open.
    keep: Option<OwnedFd>,
    /// Looks for keys that are for belljar: on a terminal.
    keys: Option<EscapeKeys>,
    terminal: Option<Terminal>,
}

impl Stream {
    /// Opens `target` for the device called `name` and puts its pump on `events`.
    pub fn open(name: &str, target: &Target, style: Style, events: &LoopHandle) -> Result<Self, OpenError> {
        let fail = |source| OpenError { name: name.into(), target: target.clone(), source };
        let (sink, mut source, terminal) = open(name, target).map_err(fail)?;
        let input = match &source.reader {
            Some(reader) if events.in_step() && terminal.is_none() && source.keep.is_none() => {
                Some(preload::whole(reader).map_err(fail)?)
            }
            _ => None,
        };
        if input.is_some() {
            source.reader = None;
        }
        let stream = Self::start(name, (sink, source, terminal), style, events).map_err(fail)?;
        stream.0.input().buffer.extend(input.into_iter().flatten());
        Ok(stream)
    }

    fn start(
        name: &str,
        (sink, source, terminal): (Option<Sink>, Source, Option<OwnedFd>),
        style: Style,
        events: &LoopHandle,
    ) -> io::Result<Self> {
        let quiet = sink.is_none() && source.reader.is_none() && source.listening.is_none();
        let stream = Self(Arc::new(Shared {
            name: name.into(),
            lines: style.lines,
            patience: style.patience,
            alarm: Alarm::new()?,
            output: Mutex::new(Output { sink, ..Output::default() }),
            input: Mutex::default(),
            in_step: events.in_step() && terminal.is_none(),
            terminal,
        }));
        if !quiet {
            let pump = pump::Pump::new(stream.0.clone(), source, style.quit);
            events.add(Box::new(pump)).map_err(io::Error::other)?;
        }
        Ok(stream)
    }

    /// Writes without waiting; returns how many bytes were taken (all of them with [`WhenFull::Drop`]).
    pub fn write(&self, bytes: &[u8], when_full: WhenFull) -> usize {
        let mut output = self.0.output();
        if self.0.in_step {
            output.put_patiently(&self.0, bytes);
            return bytes.len();
        }
        let mut taken = 0;
        for piece in bytes.chunks(LINE) {
            let n = output.put(&self.0, piece);
            taken += n;
            if n < piece.len() {
                if when_full == WhenFull::Wait && !output.stalled {
                    return taken;
                }
                output.lost += (bytes.len() - taken) as u64;
                break;
            }
        }
        bytes.len()
    }

    /// Whether a byte written now is kept for the reader, not lost. The listeners hear of it when that changes.
    pub fn has_room(&self) -> bool {
        let output = self.0.output();
        output.sink.is_some() && !output.broken && output.pending.len() < OUTPUT_CAPACITY
    }

    /// Whether what its device sees depends on the guest alone: all input is there from the beginning, and nobody is ever
    /// told of anything.
    pub fn in_step(&self) -> bool {
        self.0.in_step
    }

    /// Claims the input until the claim is dropped; `listener` hears of input and of room for output.
    pub fn claim(&self, listener: Weak<dyn Listener>) -> Claim {
        let mut input = self.0.input();
        let id = input.next;
        input.next = input.next.wrapping_add(1);
        input.claims.push((id, listener));
        drop(input);
        self.0.alarm.set(Duration::ZERO);
        Claim { stream: self.clone(), id }
    }

    /// Whether anybody can read what is written.
    pub fn connected(&self) -> bool {
        let output = self.0.output();
        output.sink.is_some() && !output.broken
    }

    /// Size of the user's terminal window, if this is one.
    pub fn window_size(&self) -> Option<WindowSize> {
        terminal::window_size(self.0.terminal.as_ref()?)
    }

    /// Writes what is left, waiting for a slow reader for at most `time`. For the end of a machine.
    pub fn finish(&self, time: Duration) {
        let end = Instant::now() + time;
        let mut output = self.0.output();
        loop {
            output.drain(&self.0);
            let left = end.saturating_duration_since(Instant::now());
            let wait = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
            let more = output.sink.as_ref().is_some_and(|sink| !output.pending.is_empty() && sink.wait(wait));
            if output.broken || left.is_zero() || !more {
                break;
            }
        }
        output.lost += output.pending.len() as u64;
        output.pending = Vec::new();
        output.report(&self.0.name);
    }
}

/// The right to a stream's input, and a listener for it.
#[derive(Debug)]
pub struct Claim {
    stream: Stream,
    id: u64,
}

impl Claim {
    /// Takes waiting input, if no later claim exists; returns how many bytes.
    pub fn take(&self, into: &mut [u8]) -> usize {
        let mut input = self.stream.0.input();
        if input.claims.last().is_none_or(|(id, _)| *id != self.id) {
            return 0;
        }
        let n = input.buffer.len().min(into.len());
        for (to, from) in into.iter_mut().zip(input.buffer.drain(..n)) {
            *to = from;
        }
        if input.paused && input.buffer.len() <= INPUT_CAPACITY / 2 {
            self.stream.0.alarm.set(Duration::ZERO);
        }
        n
    }

    /// Bytes of input that wait, whoever gets them.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.stream.0.input().buffer.len()
    }

    /// Puts `bytes`, which were taken last, back to the front of the input.
    pub fn give_back(&self, bytes: &[u8]) {
        let mut input = self.stream.0.input();
        // The pump may have used the room that taking them made, hence more than the usual capacity. Beyond that they
        // cannot all be bytes that were taken.
        let room = (INPUT_CAPACITY + bytes.len()).saturating_sub(input.buffer.len());
        bytes.iter().take(room).rev().for_each(|&byte| input.buffer.push_front(byte));
        if input.claims.last().is_some_and(|(id, _)| *id != self.id) {
            // Whoever owns the input now hears of it.
            self.stream.0.alarm.set(Duration::ZERO);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.stream.0.input().claims.retain(|(id, _)| *id != self.id);
        // Whoever gets the input now may have to be told of what waits.
        self.stream.0.alarm.set(Duration::ZERO);
    }
}

impl Shared {
    fn output(&self) -> MutexGuard<'_, Output> {
        self.output.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn input(&self) -> MutexGuard<'_, Input> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all listeners, or only the owner of the input.
    fn tell(&self, all: bool, what: fn(&dyn Listener)) {
        if self.in_step {
            return;
        }
        let input = self.input();
        let first = if all { 0 } else { input.claims.len().saturating_sub(1) };
        let listeners: Vec<_> = input.claims.iter().skip(first).filter_map(|(_, who)| who.upgrade()).collect();
        drop(input);
        listeners.iter().for_each(|listener| what(listener.as_ref()));
    }
}

impl Output {
    fn put(&mut self, shared: &Shared, bytes: &[u8]) -> usize {
        if self.sink.is_none() || self.broken {
            return bytes.len();
        }
        let taken = bytes.len().min(OUTPUT_CAPACITY.saturating_sub(self.pending.len()));
        let bytes = bytes.get(..taken).unwrap_or_default();
        self.pending.extend_from_slice(bytes);
        if self.blocked.is_none() && taken > 0 {
            match !shared.lines || self.pending.len() >= LINE || bytes.contains(&b'\n') {
                true => self.drain(shared),
                false => shared.alarm.set(FLUSH_DELAY),
            }
        }
        taken
    }

    /// Takes all of `bytes`, and waits for the reader while there is no room; but not for ever.
    fn put_patiently(&mut self, shared: &Shared, bytes: &[u8]) {
        for piece in bytes.chunks(LINE) {
            let mut left = piece;
            loop {
                let taken = self.put(shared, left);
                left = left.get(taken..).unwrap_or_default();
                if left.is_empty() {
                    break;
                }
                let patience = shared.patience.filter(|_| !self.stalled).unwrap_or_default();
                let time =
                    Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: patience.subsec_nanos().into() };
                if self.sink.as_ref().is_some_and(|sink| sink.wait(time)) {
                    self.drain(shared);
                } else {
                    self.stalled = true;
                    self.lost += left.len() as u64;
                    break;
                }
            }
        }
    }

    /// Writes what the sink takes.
    fn drain(&mut self, shared: &Shared) {
        let Some(sink) = &self.sink else { return };
        let mut done = 0;
        while let Some(rest) = self.pending.get(done..).filter(|rest| !rest.is_empty()) {
            match sink.write(rest) {
                Ok(n) if n > 0 => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() != io::ErrorKind::WouldBlock => {
                    // The reader is gone (which is its right) or the disk is full: the guest goes on without.
                    match Errno::from_io_error(&e) {
                        Some(Errno::PIPE | Errno::CONNRESET | Errno::IO) => {}
                        _ => tracing::warn!("{}: output ends here: {e}", shared.name),
                    }
                    self.broken = true;
                    self.pending = Vec::new();
                    shared.alarm.set(Duration::ZERO);
                    return;
                }
                _ => break,
            }
        }
        self.pending.drain(..done.min(self.pending.len()));
        if self.pending.is_empty() {
            self.blocked = None;
            self.stalled = false;
            self.pending.shrink_to(2 * LINE);
        } else if done > 0 || self.blocked.is_none() {
            if self.blocked.replace(Instant::now()).is_none() {
                shared.alarm.set(Duration::ZERO);
            }
            self.stalled = false;
        }
    }

    fn report(&mut self, name: &str) {
        // A guest can cause this as often as it likes: what is not told now is told with the next line.
        static LOST: LogLimit = LogLimit::new();
        if self.lost > 0 && LOST.allow() {
            let lost = std::mem::take(&mut self.lost);
            tracing::warn!("{name}: {lost} bytes of output were lost: its reader is too slow");
        }
    }
}

fn open(name: &str, target: &Target) -> io::Result<(Option<Sink>, Source, Option<OwnedFd>)> {
    let mut source = Source::default();
    let mut terminal = None;
    let sink = match target {
        Target::Null => None,
        Target::File(path) => Some(Sink::file(path)?),
        Target::Stdio => {
            let (reader, is_terminal) = stdin()?;
            if is_terminal {
                source.terminal = Terminal::enter(&reader)?;
                source.keys = Some(EscapeKeys::default());
                terminal = Some(reader.try_clone()?);
            }
            source.reader = Some(reader);
            Some(Sink::stdout()?)
        }
        Target::Stderr => Some(Sink::stderr()?),
        Target::Pty => {
            let pty = Pty::open()?;
            // A closed stderr is no reason to fail.
            let _ = writeln!(io::stderr(), "belljar: {name} is at {}", pty.path.display());
            source.reader = Some(pty.ours.try_clone()?);
            source.keep = Some(pty.theirs);
            Some(Sink::nonblocking(pty.ours))
        }
        Target::Socket(path) => {
            source.listening = Some(Listening::new(path)?);
            None
        }
    };
    Ok((sink, source, terminal))
}

#[cfg(test)]
pub(crate) mod tests;
