//! What a test's command prints: kept in a file, and read along for the cases that it tells of (KTAP on its standard
//! output). On the threads that pump output.

use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::console::Lines;
use super::consoles::{Consoles, OnCase};
use super::ktap::{End, Event, Ktap, Parser};
use super::tail::Tail;
use crate::agent::{Input, Io, Output};
use crate::run::kept::Kept;

/// Both outputs of a command.
#[derive(Clone)]
pub(super) struct Printed(Arc<Mutex<State>>);

struct State {
    file: Kept,
    began: Instant,
    parser: Parser,
    tail: Tail,
    lines: [Lines; 2],
    consoles: Arc<Consoles>,
    on_case: OnCase,
}

/// Which of the two.
#[derive(Clone, Copy)]
enum Stream {
    Output = 0,
    Errors = 1,
}

impl Printed {
    /// Kept in the new file `path`. `consoles` hear of what is under way.
    pub(super) fn new(path: &Path, consoles: Arc<Consoles>, on_case: OnCase) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(State {
            file: Kept::create(path)?,
            began: Instant::now(),
            parser: Parser::new(),
            tail: Tail::default(),
            lines: Default::default(),
            consoles,
            on_case,
        }))))
    }

    /// For the command: no input, both outputs to here.
    pub(super) fn io(&self) -> Io {
        let writer = |stream| Output::Writer(Box::new(Writer(self.clone(), stream)));
        Io { stdin: Input::None, stdout: writer(Stream::Output), stderr: writer(Stream::Errors) }
    }

    /// Ends the reading: cases, and the last lines.
    pub(super) fn finish(&self, end: End) -> (Ktap, String) {
        let mut state = self.lock();
        for stream in [Stream::Output, Stream::Errors] {
            let mut last = None;
            state.lines_of(stream).finish(|line| last = Some(line.to_string()));
            last.iter().for_each(|line| state.line(line, stream));
        }
        let parser = std::mem::replace(&mut state.parser, Parser::new());
        (parser.finish(end), state.tail.text())
    }

    /// The cases so far; the reading goes on.
    pub(super) fn so_far(&self) -> Ktap {
        let parser = self.lock().parser.clone();
        parser.finish(End::Whole)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lines_of(&mut self, stream: Stream) -> &mut Lines {
        let [output, errors] = &mut self.lines;
        match stream {
            Stream::Output => output,
            Stream::Errors => errors,
        }
    }

    fn line(&mut self, line: &str, stream: Stream) {
        self.tail.add(line);
        if matches!(stream, Stream::Errors) {
            return;
        }
        for event in self.parser.line(line, self.began.elapsed().as_secs_f64()) {
            match &event {
                Event::Named { from, to } => self.consoles.named(from, to),
                Event::Ended(case) => (self.on_case)(case),
                Event::Plan { .. } | Event::Started(_) => {}
            }
        }
        self.consoles.under_way(self.parser.current());
    }
}

struct Writer(Printed, Stream);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock();
        state.file.write_all(bytes)?;
        let mut lines = Vec::new();
        state.lines_of(self.1).add(bytes, |line| lines.push(line.to_string()));
        lines.iter().for_each(|line| state.line(line, self.1));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
