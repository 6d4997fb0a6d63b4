//! Reads along what the consoles of a guest print while a test runs: cases that the kernel itself tells of (KUnit), and
//! its complaints. On the threads that print: a line costs them some microseconds.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::console::Lines;
use super::ktap::{End, Event, Ktap, Parser};
use super::outcome::{Case, Splat};
use super::splat::{Policy, Scanner};
use super::tail::Tail;
use crate::devices::console_output::ConsoleWatcher;

/// Complaints that are kept: a kernel that complains all the time says nothing new.
const SPLATS: usize = 100;

/// Hears of each case as it ends.
pub(super) type OnCase = Arc<dyn Fn(&Case) + Send + Sync>;

/// Name of the case that the command's output says is under way.
pub(super) type UnderWay = Arc<Mutex<Option<String>>>;

/// See the module's head.
pub(super) struct Consoles {
    began: Instant,
    policy: Policy,
    on_case: OnCase,
    under_way: UnderWay,
    readers: Mutex<BTreeMap<String, Reader>>,
}

/// What one console printed.
#[derive(Clone)]
struct Reader {
    lines: Lines,
    count: u64,
    parser: Parser,
    scanner: Scanner,
    splats: Vec<Splat>,
    tail: Tail,
}

/// What was read.
pub(super) struct Heard {
    pub ktap: Ktap,
    pub splats: Vec<Splat>,
    pub tail: String,
}

impl Consoles {
    /// For a test that begins now.
    pub(super) fn new(policy: &Policy, under_way: UnderWay, on_case: OnCase) -> Arc<Self> {
        let (began, policy, readers) = (Instant::now(), policy.clone(), Mutex::default());
        Arc::new(Self { began, policy, on_case, under_way, readers })
    }

    /// Whether a console has printed all results that it announced.
    pub(super) fn is_complete(&self) -> bool {
        self.lock().values().any(|reader| reader.parser.is_complete())
    }

    /// Ends the reading. A kernel prints to several consoles what it can: the one that heard most counts.
    pub(super) fn finish(&self, end: End) -> Heard {
        let readers = std::mem::take(&mut *self.lock());
        self.heard(readers, end)
    }

    /// What [`Consoles::finish`] would give now; the reading goes on.
    pub(super) fn so_far(&self) -> Heard {
        let readers = self.lock().clone();
        self.heard(readers, End::Whole)
    }

    fn heard(&self, readers: BTreeMap<String, Reader>, end: End) -> Heard {
        let most = readers.into_values().max_by_key(|reader| reader.count);
        let mut reader = most.unwrap_or_else(|| Reader::new(&self.policy));
        let rest = reader.last_line();
        rest.iter().for_each(|line| reader.line(line, self));
        // Those that were held back, as more might have belonged to them.
        while let Some(splat) = reader.scanner.finish() {
            reader.keep(Some(splat));
        }
        Heard { ktap: reader.parser.finish(end), splats: reader.splats, tail: reader.tail.text() }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Reader>> {
        self.readers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConsoleWatcher for Consoles {
    fn output(&self, source: &str, bytes: &[u8]) {
        let mut readers = self.lock();
        if !readers.contains_key(source) {
            readers.insert(source.into(), Reader::new(&self.policy));
        }
        let Some(reader) = readers.get_mut(source) else { return };
        let mut lines = Vec::new();
        reader.lines.add(bytes, |line| lines.push(line.to_string()));
        lines.iter().for_each(|line| reader.line(line, self));
    }
}

impl Reader {
    fn new(policy: &Policy) -> Self {
        Self {
            lines: Lines::default(),
            count: 0,
            parser: Parser::new(),
            scanner: Scanner::new(policy.clone()),
            splats: Vec::new(),
            tail: Tail::default(),
        }
    }

    fn last_line(&mut self) -> Option<String> {
        let mut last = None;
        self.lines.finish(|line| last = Some(line.to_string()));
        last
    }

    fn keep(&mut self, splat: Option<Splat>) {
        if self.splats.len() < SPLATS {
            self.splats.extend(splat);
        }
    }

    fn line(&mut self, line: &str, around: &Consoles) {
        self.count += 1;
        self.tail.add(line);
        let under_way = around.under_way.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let case = self.parser.current().or(under_way);
        let splat = self.scanner.line(line, self.count, case.as_deref());
        self.keep(splat);
        for event in self.parser.line(line, around.began.elapsed().as_secs_f64()) {
            if let Event::Ended(case) = &event {
                (around.on_case)(case);
            }
        }
    }
}
