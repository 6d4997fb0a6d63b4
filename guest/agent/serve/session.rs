//! One command: its streams, what waits for it, and its end.

use std::fs::File;
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use super::link::Link;
use super::spawn::Spawned;
use crate::protocol::wire::Wire;
use crate::protocol::{CHUNK, Message, Outcome, Size, Stream, WINDOW};
use crate::sys::{self, Exit, PollFd};

/// A command that has ended may have left others behind that hold its output. Theirs is taken until they are quiet for
/// this long,
const QUIET: Duration = Duration::from_millis(300);
/// and not for longer than this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Control-D: the end of input on a terminal.
const END_OF_INPUT: u8 = 4;

#[derive(Debug)]
pub struct Session {
    id: u32,
    pid: i32,
    report: Option<File>,
    /// Why it never became the command.
    failure: Option<Outcome>,
    stdin: Option<Input>,
    outputs: [Option<Output>; 2],
    terminal: bool,
    exit: Option<(Exit, Instant)>,
    /// When output was last seen after that.
    heard: Instant,
}

#[derive(Debug)]
struct Input {
    file: File,
    waiting: Vec<u8>,
    /// How much of it was written.
    done: usize,
    ended: bool,
}

#[derive(Debug)]
struct Output {
    file: File,
    stream: Stream,
    credit: u32,
}

/// What of a session a descriptor belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Report,
    Input,
    Output(usize),
}

impl Session {
    pub fn new(id: u32, spawned: Spawned) -> Self {
        let output = |file, stream| Output { file, stream, credit: WINDOW };
        Self {
            id,
            pid: spawned.pid,
            report: Some(spawned.report),
            failure: None,
            stdin: spawned.stdin.map(|file| Input { file, waiting: Vec::new(), done: 0, ended: false }),
            outputs: [
                Some(output(spawned.stdout, Stream::Stdout)),
                spawned.stderr.map(|file| output(file, Stream::Stderr)),
            ],
            terminal: spawned.terminal,
            exit: None,
            heard: Instant::now(),
        }
    }

    /// What there is to wait for. With `full`, output is left where it is.
    pub fn poll(&self, full: bool, mut wait: impl FnMut(Part, PollFd)) {
        if let Some(report) = &self.report {
            wait(Part::Report, PollFd::new(report, sys::IN));
        }
        if let Some(input) = &self.stdin {
            // With no events asked for, the end of the reader is still told.
            let events = if input.waiting.is_empty() { 0 } else { sys::OUT };
            if events != 0 || !self.terminal {
                wait(Part::Input, PollFd::new(&input.file, events));
            }
        }
        for (index, output) in self.outputs.iter().enumerate() {
            if let Some(output) = output.as_ref().filter(|output| !full && output.credit > 0) {
                wait(Part::Output(index), PollFd::new(&output.file, sys::IN));
            }
        }
    }

    /// When this session wants to be looked at again although nothing happens.
    pub fn deadline(&self, full: bool) -> Option<Instant> {
        let (_, at) = self.exit?;
        let waits = self.outputs.iter().any(Option::is_some) && !self.waits_for_host(full);
        waits.then(|| (self.heard + QUIET).min(at + PATIENCE))
    }

    /// Whether there may be output that the host has no room for.
    fn waits_for_host(&self, full: bool) -> bool {
        self.outputs.iter().flatten().any(|output| full || output.credit == 0)
    }

    /// Something happened to `part`; `broken`: its other end is gone.
    pub fn ready(&mut self, part: Part, broken: bool, link: &mut Link) {
        match part {
            Part::Report => self.read_report(link),
            Part::Input if broken => self.close_input(link),
            Part::Input => self.write_input(link),
            Part::Output(index) => self.read_output(index, link),
        }
    }

    fn read_report(&mut self, link: &mut Link) {
        let (mut bytes, Some(report)) = (Vec::new(), &mut self.report) else { return };
        // One short message, written at once, or nothing but the end.
        match report.read_to_end(&mut bytes) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && bytes.is_empty() => return,
            _ => self.report = None,
        }
        match Outcome::get(&mut bytes.as_slice()) {
            Ok(outcome) => self.failure = Some(outcome),
            Err(_) => link.say(self.id, Message::Started { pid: self.pid.unsigned_abs() }),
        }
    }

    /// Input from the host.
    pub fn take_input(&mut self, bytes: &[u8], link: &mut Link) -> io::Result<()> {
        let Some(input) = &mut self.stdin else { return Ok(()) };
        if input.ended || input.waiting.len() + bytes.len() > 2 * WINDOW as usize {
            return Err(io::ErrorKind::InvalidData.into());
        }
        input.waiting.extend_from_slice(bytes);
        self.write_input(link);
        Ok(())
    }

    /// No more comes from the host.
    pub fn end_input(&mut self, link: &mut Link) {
        let Some(input) = &mut self.stdin else { return };
        if !std::mem::replace(&mut input.ended, true) && self.terminal {
            input.waiting.push(END_OF_INPUT);
        }
        self.write_input(link);
    }

    fn write_input(&mut self, link: &mut Link) {
        let Some(input) = &mut self.stdin else { return };
        let closed = loop {
            let Some(rest) = input.waiting.get(input.done..).filter(|rest| !rest.is_empty()) else {
                input.waiting.clear();
                input.done = 0;
                break input.ended && !self.terminal;
            };
            match input.file.write(rest) {
                Ok(n) => {
                    input.done += n;
                    if !input.ended {
                        link.say(self.id, Message::Credit { stream: Stream::Stdin, bytes: n as u32 });
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    input.waiting.drain(..input.done);
                    input.done = 0;
                    break false;
                }
                Err(_) => break true,
            }
        };
        if closed {
            self.close_input(link);
        }
    }

    fn close_input(&mut self, link: &mut Link) {
        if self.stdin.take().is_some_and(|input| !input.ended) {
            link.say(self.id, Message::Close { stream: Stream::Stdin });
        }
    }

    fn read_output(&mut self, index: usize, link: &mut Link) {
        let Some(Some(output)) = self.outputs.get_mut(index) else { return };
        let mut buffer = [0; CHUNK];
        let room = CHUNK.min(output.credit as usize);
        match output.file.read(buffer.get_mut(..room).unwrap_or_default()) {
            Ok(n) if n > 0 => {
                output.credit -= n as u32;
                self.heard = Instant::now();
                link.say_data(self.id, output.stream, buffer.get(..n).unwrap_or_default());
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            // The end of a pipe; a terminal that nobody has open any more says EIO.
            _ => self.close_output(index, link),
        }
    }

    fn close_output(&mut self, index: usize, link: &mut Link) {
        if let Some(output) = self.outputs.get_mut(index).and_then(Option::take) {
            link.say(self.id, Message::End { stream: output.stream });
        }
    }

    /// The host reads no more of `stream`: closing the pipe is what tells the command.
    pub fn close(&mut self, stream: Stream, link: &mut Link) {
        let found = self.outputs.iter().position(|output| output.as_ref().is_some_and(|one| one.stream == stream));
        if let Some(index) = found {
            self.close_output(index, link);
        }
    }

    /// The host has taken so many bytes.
    pub fn credit(&mut self, stream: Stream, bytes: u32) {
        for output in self.outputs.iter_mut().flatten().filter(|output| output.stream == stream) {
            // While the host was behind, nothing could be heard.
            if let Some((_, at)) = self.exit.as_mut().filter(|_| output.credit == 0) {
                *at = Instant::now();
                self.heard = *at;
            }
            output.credit = output.credit.saturating_add(bytes).min(WINDOW);
        }
    }

    /// Sends a signal to the command's group, or while it has none to the process alone.
    pub fn signal(&self, number: u8) {
        if self.exit.is_none() && sys::send_signal(-self.pid, number.into()).is_err() {
            // Fails if it has just ended.
            let _ = sys::send_signal(self.pid, number.into());
        }
    }

    pub fn resize(&self, size: Size) {
        if let Some(Some(output)) = self.outputs.first().filter(|_| self.terminal) {
            // Fails if everybody has left the terminal.
            let _ = sys::set_window_size(&output.file, size.columns, size.rows);
        }
    }

    /// Process `pid` has ended: perhaps this one.
    pub fn reaped(&mut self, pid: i32, exit: Exit) {
        if self.exit.is_none() && self.pid == pid {
            self.heard = Instant::now();
            self.exit = Some((exit, self.heard));
        }
    }

    /// Looks whether it is over, and says so.
    pub fn finish(&mut self, full: bool, link: &mut Link) -> bool {
        let Some((exit, at)) = self.exit else { return false };
        self.read_report(link);
        let now = Instant::now();
        if full {
            self.heard = now;
        } else if !self.waits_for_host(full) && (now >= self.heard + QUIET || now >= at + PATIENCE) {
            // Perhaps it was this machine that stood still, and not those who print.
            (0..self.outputs.len()).for_each(|index| self.read_output(index, link));
            if now >= self.heard + QUIET || now >= at + PATIENCE {
                (0..self.outputs.len()).for_each(|index| self.close_output(index, link));
            }
        }
        if self.report.is_some() || self.outputs.iter().any(Option::is_some) {
            return false;
        }
        self.close_input(link);
        let outcome = self.failure.take().unwrap_or(match exit {
            Exit::Status(status) => Outcome::Exited(status),
            Exit::Signal(number) => Outcome::Signalled(number),
        });
        link.say(self.id, Message::Ended(outcome));
        true
    }
}
