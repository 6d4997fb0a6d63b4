//! The event loop's part of a stream: reads input while somebody has room for it, writes what could not be written at
//! once, accepts clients of a socket.

use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::{INPUT_CAPACITY, Listener, Output, Shared, Source};
use crate::host::chardev::Sink;
use crate::host::escape::{HELP, Wish};
use crate::host::terminal;

/// Bytes read at once.
const READ: usize = 1 << 10;
/// How often a sink that cannot be watched is tried again.
const RETRY: Duration = Duration::from_millis(20);

const INPUT: u32 = 0;
const OUTPUT: u32 = 1;
const ALARM: u32 = 2;
const CLIENT: u32 = 3;
const RESIZE: u32 = 4;

/// The subscriber.
pub(super) struct Pump {
    shared: Arc<Shared>,
    source: Source,
    quit: Arc<dyn Fn() + Send + Sync>,
    reading: Reading,
    /// The sink that is watched for room.
    watched: Option<RawFd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reading {
    Watched,
    Unwatched,
    /// A file that epoll does not take (regular files, /dev/null): always readable.
    Always,
}

impl Pump {
    pub(super) fn new(shared: Arc<Shared>, source: Source, quit: Arc<dyn Fn() + Send + Sync>) -> Self {
        Self { shared, source, quit, reading: Reading::Unwatched, watched: None }
    }

    fn watch_input(&mut self, ops: &mut EventOps) {
        let Some(reader) = self.source.reader.as_ref().filter(|_| self.reading == Reading::Unwatched) else { return };
        self.reading = match ops.add(Events::with_data(reader, INPUT, EventSet::IN)) {
            Ok(()) => Reading::Watched,
            Err(_) => Reading::Always,
        };
    }

    fn unwatch_input(&mut self, ops: &mut EventOps) {
        if let (Reading::Watched, Some(reader)) = (self.reading, &self.source.reader) {
            forget(ops, reader.as_raw_fd());
            self.reading = Reading::Unwatched;
        }
    }

    /// Reads once; true if there may be more.
    fn read(&mut self, ops: &mut EventOps) -> bool {
        let Some(reader) = &self.source.reader else { return false };
        let mut input = self.shared.input();
        let room = INPUT_CAPACITY - input.buffer.len().min(INPUT_CAPACITY);
        // A terminal is read even if nobody has room, for the keys that quit: what is typed then is dropped.
        if room == 0 && self.source.keys.is_none() {
            input.paused = true;
            drop(input);
            self.unwatch_input(ops);
            return false;
        }
        drop(input);
        let mut bytes = [0; READ];
        let wanted = if self.source.keys.is_some() { READ } else { READ.min(room) };
        match rustix::io::read(reader, bytes.get_mut(..wanted).unwrap_or_default()) {
            Ok(n) if n > 0 => self.take(bytes.get(..n).unwrap_or_default(), room),
            Err(Errno::AGAIN | Errno::INTR) => return false,
            _ => {
                self.end_of_input(ops);
                return false;
            }
        }
        true
    }

    fn take(&mut self, bytes: &[u8], room: usize) {
        let mut typed = Vec::new();
        let (bytes, wishes) = match &mut self.source.keys {
            Some(keys) => {
                let wishes = keys.feed(bytes, &mut typed);
                (typed.as_slice(), wishes)
            }
            None => (bytes, Vec::new()),
        };
        self.shared.input().buffer.extend(bytes.iter().take(room));
        if !bytes.is_empty() {
            self.shared.tell(false, |listener: &dyn Listener| listener.ready());
        }
        for wish in wishes {
            match wish {
                Wish::Quit => (self.quit)(),
                // A closed stderr is no reason to fail.
                Wish::Help => _ = write!(io::stderr(), "\r\n{}\r\n", HELP.replace('\n', "\r\n")),
            }
        }
    }

    /// Standard input ended: the guest goes on. A socket's client left: the next one may come.
    fn end_of_input(&mut self, ops: &mut EventOps) {
        self.unwatch_input(ops);
        self.source.reader = None;
        self.reading = Reading::Unwatched;
        if self.source.listening.is_some() {
            self.shared.output().broken = true;
        }
    }

    fn accept(&mut self, ops: &mut EventOps) {
        if self.source.reader.as_ref().is_some_and(hung_up) {
            // The old client has left, only the loop has not heard of it yet.
            self.end_of_input(ops);
            self.settle_output(ops);
        }
        // One client at a time; a second one is told by a closed connection.
        let Some(client) = self.source.listening.as_ref().and_then(|listening| listening.accept()) else { return };
        if self.source.reader.is_some() {
            return;
        }
        let Ok(writer) = client.try_clone() else { return };
        *self.shared.output() = Output { sink: Some(Sink::nonblocking(writer)), ..Output::default() };
        self.source.reader = Some(client);
        self.watch_input(ops);
        self.shared.tell(true, |listener| listener.ready());
    }

    /// Brings the output in order after whatever happened.
    fn settle_output(&mut self, ops: &mut EventOps) {
        let mut output = self.shared.output();
        let was_blocked = output.blocked.is_some();
        output.drain(&self.shared);
        let mut tell = was_blocked && output.blocked.is_none();
        if output.broken || output.blocked.is_none() {
            self.watched.take().into_iter().for_each(|fd| forget(ops, fd));
            output.report(&self.shared.name);
        }
        if output.broken && output.sink.is_some() {
            *output = Output::default();
            tell = true;
        }
        if let (Some(since), Some(sink)) = (output.blocked, &output.sink) {
            if self.watched.is_none() {
                match ops.add(Events::with_data_raw(sink.as_raw_fd(), OUTPUT, EventSet::OUT)) {
                    Ok(()) => self.watched = Some(sink.as_raw_fd()),
                    Err(_) => self.shared.alarm.set(RETRY),
                }
            }
            if let (false, Some(patience)) = (output.stalled, self.shared.patience) {
                match patience.checked_sub(Instant::now().saturating_duration_since(since)) {
                    Some(left) if !left.is_zero() => self.shared.alarm.set(left),
                    _ => (output.stalled, tell) = (true, true),
                }
            }
        }
        let disconnected = output.sink.is_none();
        drop(output);
        if disconnected && self.source.listening.is_some() && self.source.reader.is_some() {
            self.unwatch_input(ops);
            self.source.reader = None;
        }
        if tell {
            self.shared.tell(true, |listener| listener.ready());
        }
    }

    /// Brings the input in order: reads on if there is room again, and tells its owner of what waits.
    fn settle_input(&mut self, ops: &mut EventOps) {
        let mut input = self.shared.input();
        let waiting = !input.buffer.is_empty();
        if input.buffer.len() <= INPUT_CAPACITY / 2 && std::mem::take(&mut input.paused) {
            drop(input);
            self.watch_input(ops);
        } else {
            drop(input);
        }
        if waiting {
            self.shared.tell(false, |listener| listener.ready());
        }
        while self.reading == Reading::Always && !self.shared.input().paused && self.read(ops) {}
    }
}

/// Whether the other side of a socket is closed.
fn hung_up(socket: &OwnedFd) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(socket, PollFlags::RDHUP)], Some(&now)).is_ok_and(|ready| ready > 0)
}

/// Takes `fd` off the loop. Must come before it is closed.
fn forget(ops: &mut EventOps, fd: RawFd) {
    if let Err(e) = ops.remove(Events::empty_raw(fd)) {
        tracing::error!("cannot stop watching a console: {e}");
    }
}

impl MutEventSubscriber for Pump {
    fn init(&mut self, ops: &mut EventOps) {
        let mut fixed = vec![Events::with_data(&self.shared.alarm, ALARM, EventSet::IN)];
        fixed.extend(self.source.listening.as_ref().map(|l| Events::with_data(l, CLIENT, EventSet::IN)));
        if let (Some(_), Ok(resizes)) = (&self.source.terminal, terminal::resizes()) {
            fixed.push(Events::with_data(resizes, RESIZE, EventSet::IN));
        }
        for events in fixed {
            if let Err(e) = ops.add(events) {
                tracing::error!("{}: cannot be watched: {e}", self.shared.name);
            }
        }
        self.watch_input(ops);
        self.settle_input(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match events.data() {
            INPUT => {
                self.read(ops);
            }
            ALARM => self.shared.alarm.stop(),
            CLIENT => self.accept(ops),
            RESIZE => {
                // Nothing to read means that somebody else saw it, which cannot be: one terminal, one pump.
                let _ = terminal::resizes().map(|resizes| rustix::io::read(resizes, &mut [0; 8]));
                self.shared.tell(true, |listener| listener.resized());
            }
            _ => {}
        }
        self.settle_output(ops);
        if events.data() == ALARM {
            self.settle_input(ops);
        }
    }
}
