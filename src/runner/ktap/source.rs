//! Tests within tests, as one source prints them.

use super::level::{Level, Moment, Step, unnamed};
use super::line::{Line, Outcome};
use super::notes::Notes;
use super::record::{Record, short};
use super::{End, Event};
use crate::runner::outcome::{Case, Status};

/// Suites within suites that are told apart.
const DEPTH_LIMIT: usize = 32;

/// One source of results.
#[derive(Debug, Clone)]
pub(super) struct Source {
    index: usize,
    /// Bytes before each line that belong to somebody else's prefix.
    skip: usize,
    /// Blanks before the document's first line.
    indent: usize,
    /// The document and what is open within it; empty between documents.
    levels: Vec<Level>,
    now: Moment,
    events: Vec<Event>,
}

impl Source {
    /// The one with this number; each of its lines begins with so many bytes that are somebody else's.
    pub(super) fn new(index: usize, skip: usize) -> Self {
        Self { index, skip, indent: 0, levels: Vec::new(), now: Moment::default(), events: Vec::new() }
    }

    /// Whether no document is under way.
    pub(super) fn is_done(&self) -> bool {
        self.levels.is_empty()
    }

    /// Whether a line begins as far left as the document.
    pub(super) fn is_beside(&self, text: &str) -> bool {
        blanks(text) <= self.indent
    }

    /// Names of what is under way.
    pub(super) fn current(&self) -> Vec<String> {
        let mut path = self.path();
        if let Some(level) = self.levels.last().filter(|level| level.step == Step::Tests) {
            path.push(level.case(level.notes.hint()));
        }
        path
    }

    fn path(&self) -> Vec<String> {
        self.levels.iter().skip(1).map(Level::label).collect()
    }

    /// Takes a line that is nothing but a part of the log.
    pub(super) fn note(&mut self, text: &str) -> Vec<Event> {
        self.log(text);
        std::mem::take(&mut self.events)
    }

    fn log(&mut self, text: &str) {
        let Some(level) = self.levels.last_mut() else { return };
        let before = level.notes.hint().map(str::to_owned);
        if level.notes.add(text) && level.step == Step::Tests && level.notes.hint() != level.name.as_deref() {
            let before = level.case(before.as_deref());
            self.named(&before, self.current());
            self.events.push(Event::Started(self.current()));
        }
    }

    /// What was called `before`, in the innermost level or as it, is at the path `now`.
    fn named(&mut self, before: &str, now: Vec<String>) {
        let Some((name, above)) = now.split_last() else { return };
        if name != before {
            let from = above.iter().map(String::as_str).chain([before]).collect::<Vec<_>>().join("/");
            self.events.push(Event::Named { from, to: now.join("/") });
        }
    }

    /// Takes a line, and hands out what it tells.
    pub(super) fn line(&mut self, text: &str, now: Moment, record: &mut Record) -> Vec<Event> {
        self.now = now;
        let text = text.get(self.skip..).unwrap_or_default();
        let line = Line::of(text);
        if let Line::Version { known: false } = line {
            record.complain(format!("{}: not a version that is known", text.trim()));
        }
        let next_document = matches!(line, Line::Version { .. }) && self.is_beside(text) && self.is_open_ended();
        if next_document {
            self.close(None, record);
        }
        if self.levels.is_empty() {
            if let Line::Version { .. } = line {
                self.indent = blanks(text);
                self.levels.push(Level::new(1, Step::Plan, now, record.next()));
            }
        } else {
            while !self.step(line, text, record) {}
        }
        std::mem::take(&mut self.events)
    }

    /// Whether only the document is open, and has no plan that says where it ends.
    fn is_open_ended(&self) -> bool {
        matches!(self.levels.as_slice(), [level] if level.step == Step::Tests && level.plan.is_none())
    }

    /// Lets the innermost level take a line. False if that came to its end and the line is for the next one.
    fn step(&mut self, line: Line<'_>, text: &str, record: &mut Record) -> bool {
        let depth = self.levels.len();
        let Some(level) = self.levels.last_mut() else { return true };
        match (level.step, line) {
            (Step::Header, Line::Header(name)) => self.name(name),
            (Step::Header, _) => {
                level.step = Step::Plan;
                return false;
            }
            (_, Line::Other) => self.log(text),
            (Step::Plan, Line::Plan { count, skipped }) => self.plan(count, skipped.is_some(), record),
            (Step::Plan, _) => {
                level.step = Step::Tests;
                return false;
            }
            (Step::Tests, Line::Plan { count, .. }) if level.plan.is_none() => self.plan(count, false, record),
            (Step::Tests, Line::Result(outcome)) if depth > 1 && level.name.as_deref() == Some(outcome.name) => {
                self.miss(End::Whole, record);
                return false;
            }
            (Step::Tests, Line::Result(outcome)) => self.leaf(&outcome, record),
            (Step::Tests, Line::Version { .. } | Line::Header(_)) if depth <= DEPTH_LIMIT => self.open(line, record),
            (Step::Tests, _) => self.log(text),
            (Step::Result, Line::Result(outcome)) if level.name.as_deref().is_none_or(|name| name == outcome.name) => {
                self.close(Some(&outcome), record);
            }
            (Step::Result, _) => {
                self.close(None, record);
                return self.levels.is_empty();
            }
        }
        true
    }

    /// The innermost level is called so.
    fn name(&mut self, name: &str) {
        if let Some(level) = self.levels.last_mut() {
            let before = level.label();
            level.name = Some(name.to_owned());
            level.step = Step::Plan;
            self.named(&before, self.path());
        }
        self.events.push(Event::Started(self.path()));
    }

    /// The innermost level has so many tests.
    fn plan(&mut self, count: u64, skipped: bool, record: &mut Record) {
        if skipped && count == 0 && self.levels.len() == 1 {
            record.judge(Status::Skip);
        }
        if let Some(level) = self.levels.last_mut() {
            level.plan = Some(count);
            level.step = Step::Tests;
            // What was printed before is about the suite.
            level.notes();
            self.events.push(Event::Plan { path: self.path(), count });
        }
        self.settle(record);
    }

    /// A test with tests within begins.
    fn open(&mut self, line: Line<'_>, record: &Record) {
        let Some(above) = self.levels.last() else { return };
        self.levels.push(Level::new(above.next, Step::Header, self.now, record.next()));
        if let Line::Header(name) = line {
            self.name(name);
        }
    }

    /// A case came to its end.
    fn leaf(&mut self, outcome: &Outcome<'_>, record: &mut Record) {
        let Some(level) = self.levels.last_mut() else { return };
        let notes = level.notes();
        let seconds = self.now.since(level.mark);
        let (before, expected) = (level.case(notes.hint()), level.next);
        let mut path = self.path();
        path.push(short(&name_of(outcome)));
        self.named(&before, path);
        self.check_number(outcome, expected, record);
        self.ended(outcome, &notes, seconds, record);
        self.advance(record);
    }

    /// Keeps a case of the innermost level.
    fn ended(&mut self, outcome: &Outcome<'_>, notes: &Notes, seconds: f64, record: &mut Record) {
        let (status, reason) = outcome.status();
        let failure = if status.is_good() { None } else { notes.failure() };
        let message = failure.or_else(|| reason.map(str::to_owned));
        self.keep(
            name_of(outcome),
            Case { path: self.path(), status, message, seconds: Some(seconds), log: notes.log() },
            record,
        );
    }

    fn keep(&mut self, name: String, mut case: Case, record: &mut Record) {
        case.path.push(name);
        if let Some(level) = self.levels.last_mut() {
            level.worst = level.worst.max(Some(case.status));
        }
        self.events.extend(record.add(self.index, case).map(Event::Ended));
    }

    fn check_number(&self, outcome: &Outcome<'_>, expected: u64, record: &mut Record) {
        if outcome.number != expected {
            let (name, number) = (self.within(outcome.name), outcome.number);
            record.complain(format!("{name} has number {number} where {expected} was expected"));
        }
    }

    /// A name in the innermost level, with what it is in.
    fn within(&self, name: &str) -> String {
        let mut path = self.path();
        path.push(name.to_owned());
        path.join("/")
    }

    /// The innermost level goes on to its next test.
    fn advance(&mut self, record: &mut Record) {
        if let Some(level) = self.levels.last_mut() {
            level.next = level.next.saturating_add(1);
            level.mark = self.now;
        }
        self.settle(record);
    }

    /// Ends the innermost level's tests if all have come.
    fn settle(&mut self, record: &mut Record) {
        let depth = self.levels.len();
        let Some(level) = self.levels.last_mut().filter(|level| level.plan.is_some() && level.missing() == 0) else {
            return;
        };
        level.step = Step::Result;
        if depth == 1 {
            self.close(None, record);
        }
    }

    /// Planned tests of the innermost level will not come any more.
    fn miss(&mut self, how: End, record: &mut Record) {
        let path = self.path();
        let Some(level) = self.levels.last_mut() else { return };
        level.step = Step::Result;
        let (missing, first) = (level.missing(), level.next);
        level.next = first.saturating_add(missing);
        if missing > 0 {
            let place = if path.is_empty() { "the whole".to_owned() } else { path.join("/") };
            let plan = level.plan.unwrap_or_default();
            record.complain(format!("{place}: {missing} of {plan} planned results are missing"));
        }
        let mut number = first;
        while number < first.saturating_add(missing) && record.has_room() {
            self.lost(number, number == first, how, record);
            number += 1;
        }
        record.lose(first.saturating_add(missing) - number, lost_status(how));
    }

    /// A case of the innermost level without a result; `begun` if it was under way.
    fn lost(&mut self, number: u64, begun: bool, how: End, record: &mut Record) {
        let (path, now) = (self.path(), self.now);
        let Some(level) = self.levels.last_mut() else { return };
        let notes = if begun { level.notes() } else { Notes::default() };
        let message = notes.failure().unwrap_or_else(|| lost_message(how, begun).to_owned());
        let name = notes.hint().map_or_else(|| unnamed(number), str::to_owned);
        let seconds = begun.then(|| now.since(level.mark));
        let case = Case { path, status: lost_status(how), message: Some(message), seconds, log: notes.log() };
        self.keep(name, case, record);
    }

    /// Ends the innermost level, with the line of its result if there is one.
    fn close(&mut self, outcome: Option<&Outcome<'_>>, record: &mut Record) {
        let Some(mut level) = self.levels.pop() else { return };
        if self.levels.is_empty() {
            // Within a document that is nothing to tell: KUnit's parameters have none.
            if level.plan.is_none() && level.next > 1 {
                record.complain("there is no plan, so that missing results cannot be told".to_owned());
            }
            return;
        }
        match outcome {
            Some(outcome) => self.check_number(outcome, level.number, record),
            None => record.complain(format!("{}: its own result is missing", self.within(&level.label()))),
        }
        if let Some(outcome) = outcome.filter(|outcome| !outcome.name.is_empty() && level.name.is_none()) {
            record.rename(self.index, level.first, self.levels.len() - 1, outcome.name);
            let (before, mut path) = (level.label(), self.path());
            level.name = Some(outcome.name.to_owned());
            path.push(level.label());
            self.named(&before, path);
        }
        match level.worst {
            Some(worst) => self.judge(worst, &level, outcome, record),
            None => self.close_empty(&mut level, outcome, record),
        }
        if let Some(above) = self.levels.last_mut() {
            above.worst = above.worst.max(level.worst);
            above.notes();
        }
        self.advance(record);
    }

    /// A suite whose own result is worse than those of its cases.
    fn judge(&self, worst: Status, level: &Level, outcome: Option<&Outcome<'_>>, record: &mut Record) {
        let Some((status, reason)) = outcome.map(Outcome::status) else { return };
        if !status.is_good() && worst.is_good() {
            record.judge(status);
            let name = self.within(&level.label());
            let reason = reason.map(str::to_owned).or_else(|| level.notes.failure()).unwrap_or_default();
            record.complain(format!("{name} failed, though none of its cases did {reason}").trim_end().to_owned());
        }
    }

    /// A suite in which nothing ran is a case itself if it failed or was skipped, or had suites within.
    fn close_empty(&mut self, level: &mut Level, outcome: Option<&Outcome<'_>>, record: &mut Record) {
        let name = level.label();
        let had_suites = level.next > 1;
        let notes = level.notes();
        let seconds = self.now.since(level.begin);
        match outcome {
            Some(outcome) if had_suites || !outcome.ok || outcome.status().0 == Status::Skip => {
                self.ended(&Outcome { name: &name, ..*outcome }, &notes, seconds, record);
            }
            None if had_suites => {
                let message = Some(lost_message(End::Whole, true).to_owned());
                let case = Case { path: self.path(), status: Status::Crash, message, seconds: None, log: notes.log() };
                self.keep(name, case, record);
            }
            _ => record.complain(format!("{}: no test ran", self.within(&name))),
        }
    }

    /// No more lines come.
    pub(super) fn finish(&mut self, how: End, record: &mut Record) {
        let mut under_way = how != End::Whole;
        while let Some(level) = self.levels.last() {
            let told = self.levels.len() > 1 || level.notes.hint().is_some();
            match level.step {
                Step::Result => {}
                _ if level.plan.is_some() => self.miss(how, record),
                // Without a plan nobody knows what else would have come, but something was under way.
                _ if under_way && told => self.lost(level.next, true, how, record),
                _ => {}
            }
            under_way = false;
            self.close(None, record);
        }
        self.events.clear();
    }
}

/// What a case is called by the line of its result.
fn name_of(outcome: &Outcome<'_>) -> String {
    match (outcome.name, outcome.status().1) {
        // kselftest.h prints a name where others have the reason.
        ("", Some(reason)) => reason.to_owned(),
        ("", None) => unnamed(outcome.number),
        (name, _) => name.to_owned(),
    }
}

fn lost_status(how: End) -> Status {
    match how {
        End::Whole | End::Died => Status::Crash,
        End::TimedOut => Status::Timeout,
    }
}

fn lost_message(how: End, begun: bool) -> &'static str {
    match (how, begun) {
        (End::Whole, _) => "planned, but it has no result",
        (End::Died, true) => "the kernel died while it was under way",
        (End::Died, false) => "planned, but the kernel died before",
        (End::TimedOut, true) => "it did not end in time",
        (End::TimedOut, false) => "planned, but there was no time left",
    }
}

/// How far a text is indented.
fn blanks(text: &str) -> usize {
    text.len() - text.trim_start().len()
}
