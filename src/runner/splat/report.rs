//! One report while it is being printed.

use std::sync::LazyLock;

use regex::Regex;

use super::machinery::{is_allocator, is_machinery};
use super::patterns::{End, Function, Head, Pattern};
use super::{policy, shapes, title};
use crate::runner::outcome::{Action, Splat, SplatKind};

/// Lines of a report that are kept, and their bytes: one with the traces of many CPUs goes on for long.
const LINES: usize = 2000;
const BYTES: usize = 128 << 10;
const CUT_OFF: &str = "\n[..]";
/// Lines between a cut or `=====` and the line that says what it is.
const UNNAMED_LINES: usize = 10;
/// What lost memory before its module was unloaded.
const UNLOADED: &str = "an unloaded module";
/// Threads and CPUs that take part in one report.
const CALLERS: usize = 64;

/// What goes on after the trace of a stall: single lines, and lines after which there is another trace.
static MORE: LazyLock<Regex> = LazyLock::new(|| {
    shapes::fixed(
        r"(?x)^(?: \d+\ locks?\ held\ by | no\ locks\ held | \ \#\d+:\  | Showing\ all\ locks\ held | =+$
        | INFO:\ lockdep\ is\ turned\ off | NMI\ backtrace\ for\ cpu\ \d+\ skipped )",
    )
});
static AGAIN: LazyLock<Regex> =
    LazyLock::new(|| shapes::fixed(r"^(?:rcu: |Sending NMI |NMI backtrace for|task:\S|CPU: \d|RCU )"));

/// A line of a console, without the kernel's prefix.
#[derive(Debug, Clone, Copy)]
pub(super) struct Line<'a> {
    pub(super) number: u64,
    /// Who printed it, if the kernel says.
    pub(super) caller: Option<&'a str>,
    /// Whether the kernel says when.
    pub(super) timed: bool,
    pub(super) text: &'a str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// A cut or `=====` was seen and not yet what it is.
    Unnamed,
    /// Before the call trace, after so many lines.
    Before(usize),
    /// In the call trace.
    Trace,
    /// At its end, where a panic may follow.
    Ended,
}

/// What a report says to a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// It is a part of it.
    Mine,
    /// It is not.
    NotMine,
    /// It shows that this is no report.
    NoReport,
}

#[derive(Debug, Clone)]
pub(super) struct Report {
    stage: Stage,
    pattern: Option<&'static Pattern>,
    title: String,
    /// What the title names; if it stays unknown, what the kernel guesses; and if that does, what else was seen.
    function: Option<String>,
    guess: Option<String>,
    makeshift: Option<String>,
    /// What a sanitizer of addresses caught.
    access: Option<&'static str>,
    in_interrupt: bool,
    callers: Vec<Option<String>>,
    timed: bool,
    banner: bool,
    case: Option<String>,
    lines: (u64, u64),
    count: usize,
    text: String,
}

impl Report {
    /// One that begins with `line`: a cut, `=====`, or what says what it is.
    pub(super) fn begin(line: &Line<'_>, head: Option<&Head<'_>>, case: Option<&str>) -> Self {
        let mut report = Self {
            stage: Stage::Unnamed,
            pattern: None,
            title: String::new(),
            function: None,
            guess: None,
            makeshift: None,
            access: None,
            in_interrupt: false,
            callers: vec![line.caller.map(str::to_owned)],
            timed: line.timed,
            banner: shapes::is_banner(line.text),
            case: case.map(str::to_owned),
            lines: (line.number, line.number),
            count: 0,
            text: String::new(),
        };
        report.push(line);
        if let Some(head) = head {
            report.name(head);
        }
        report
    }

    fn name(&mut self, head: &Head<'_>) {
        self.pattern = Some(head.pattern);
        self.title = title::title(head.pattern.title, &head.captures);
        self.stage = Stage::Before(0);
        if let Some(function) = head.captures.name("f") {
            self.consider(function.as_str());
        }
        if head.pattern.end == End::Lines(1) {
            self.stage = Stage::Ended;
        }
    }

    /// Whether who printed `line` prints this report, in the same way: nothing of a program's output is part of it.
    pub(super) fn hears(&self, line: &Line<'_>) -> bool {
        self.timed == line.timed && self.callers.iter().any(|caller| caller.as_deref() == line.caller)
    }

    pub(super) fn is_ended(&self) -> bool {
        self.stage == Stage::Ended
    }

    pub(super) fn last_line(&self) -> u64 {
        self.lines.1
    }

    /// Whether traces of other CPUs belong to this report.
    pub(super) fn gathers(&self) -> bool {
        use SplatKind::*;
        matches!(self.kind(), Some(RcuStall | SoftLockup | HardLockup | HungTask))
    }

    /// From here on `line`'s printer is heard, too.
    pub(super) fn admit(&mut self, line: &Line<'_>) {
        if !self.hears(line) && self.callers.len() < CALLERS {
            self.callers.push(line.caller.map(str::to_owned));
        }
    }

    /// The case that was called `from` is called `to`.
    pub(super) fn rename(&mut self, from: &str, to: &str) {
        self.case = policy::renamed(self.case.take(), from, to);
    }

    /// What is reported, if that was said.
    pub(super) fn kind(&self) -> Option<SplatKind> {
        self.pattern.map(|pattern| pattern.kind)
    }

    /// Takes a line that the kernel printed while it died of this.
    pub(super) fn take_last_words(&mut self, line: &Line<'_>) {
        self.push(line);
        let over = line.text.starts_with("---[ end Kernel panic") || self.count >= LINES;
        self.stage = if over { Stage::Ended } else { Stage::Before(0) };
    }

    /// Takes `line`, which begins with `head` if that is something, as its part or not.
    pub(super) fn offer(&mut self, line: &Line<'_>, head: Option<&Head<'_>>) -> Answer {
        if self.is_summed_up(head) {
            self.push(line);
            self.stage = Stage::Ended;
            return Answer::Mine;
        }
        match (self.stage, self.pattern) {
            (Stage::Ended, _) => self.offer_more(line, head),
            (_, None) => self.offer_name(line, head),
            (_, Some(pattern)) => {
                let begins = head.is_some() || shapes::is_cut(line.text) || self.is_strange_banner(pattern, line);
                if begins && !absorbs(pattern, head) {
                    self.stage = Stage::Ended;
                    return Answer::NotMine;
                }
                self.go_on(pattern, line)
            }
        }
    }

    /// After what is lost, kmemleak says how much that is. Mostly it says nothing else.
    fn is_summed_up(&self, head: Option<&Head<'_>>) -> bool {
        self.pattern.is_some_and(|pattern| pattern.function == Function::Leak)
            && head.is_some_and(|head| head.pattern.kind == SplatKind::Kmemleak && head.pattern.end == End::Lines(1))
    }

    /// A banner that does not end it.
    fn is_strange_banner(&self, pattern: &Pattern, line: &Line<'_>) -> bool {
        shapes::is_banner(line.text) && !(pattern.end == End::Banner || self.banner && pattern.end == End::Mark)
    }

    fn offer_name(&mut self, line: &Line<'_>, head: Option<&Head<'_>>) -> Answer {
        let limit = if self.banner { 1 } else { UNNAMED_LINES };
        if head.is_none() && (self.count > limit || shapes::is_cut(line.text) || shapes::is_banner(line.text)) {
            return Answer::NoReport;
        }
        self.push(line);
        if let Some(head) = head {
            self.name(head);
        }
        Answer::Mine
    }

    fn go_on(&mut self, pattern: &Pattern, line: &Line<'_>) -> Answer {
        let text = shapes::untagged(line.text);
        let indented = text.starts_with([' ', '\t', '[']);
        let over = match (pattern.end, self.stage) {
            (End::Trace(_), Stage::Trace) => !shapes::in_trace(text),
            (End::Trace(most) | End::Lines(most), Stage::Before(count)) => count >= most,
            (End::Indented, _) => !indented,
            _ => self.count >= LINES,
        };
        if over {
            self.stage = Stage::Ended;
            return self.offer_more(line, None);
        }
        self.push(line);
        self.note(pattern, text);
        self.stage = match self.stage {
            _ if self.is_last(pattern, text) => Stage::Ended,
            Stage::Before(_) if text.starts_with("Call Trace:") => Stage::Trace,
            Stage::Before(count) => Stage::Before(count + 1),
            other => other,
        };
        Answer::Mine
    }

    fn is_last(&self, pattern: &Pattern, text: &str) -> bool {
        match pattern.end {
            End::Mark => shapes::is_end(text) || self.banner && shapes::is_banner(text),
            End::Banner => shapes::is_banner(text),
            // Panics take last words.
            End::Panic | End::Trace(_) | End::Lines(_) | End::Indented => false,
        }
    }

    /// Lines after its end: more of a stall.
    fn offer_more(&mut self, line: &Line<'_>, head: Option<&Head<'_>>) -> Answer {
        if !self.gathers() || head.is_some() {
            return Answer::NotMine;
        }
        if !MORE.is_match(line.text) {
            if !AGAIN.is_match(line.text) {
                return Answer::NotMine;
            }
            self.stage = Stage::Before(0);
        }
        self.push(line);
        Answer::Mine
    }

    fn push(&mut self, line: &Line<'_>) {
        self.lines.1 = line.number;
        self.count += 1;
        if self.count > LINES || self.text.len() + line.text.len() >= BYTES {
            if !self.text.ends_with(CUT_OFF) {
                self.text.push_str(CUT_OFF);
            }
            return;
        }
        if !self.text.is_empty() {
            self.text.push('\n');
        }
        self.text.push_str(line.text.trim_end());
    }

    /// Looks for what the title names.
    fn note(&mut self, pattern: &Pattern, text: &str) {
        if pattern.kind == SplatKind::Kasan {
            let access = [" Read", " Write"].into_iter().find(|access| {
                text.strip_prefix(access.trim_start()).is_some_and(|rest| rest.starts_with(" of size "))
            });
            self.access = self.access.or(access);
        }
        if self.function.is_some() || pattern.function == Function::None {
            return;
        }
        match text.trim() {
            "<IRQ>" | "<NMI>" => self.in_interrupt = true,
            "</IRQ>" | "</NMI>" => self.in_interrupt = false,
            _ => {}
        }
        if pattern.function == Function::Leak && text.trim_start().starts_with("0x") {
            // The module is gone, and with it its symbols: below are those who called it.
            self.function = Some(UNLOADED.into());
            return;
        }
        let lock = (pattern.function == Function::Lock).then(|| shapes::place(text)).flatten();
        if let Some(function) = lock.or_else(|| shapes::pointer(text)).or_else(|| shapes::frame(text)) {
            self.consider(function);
        } else if let Some(function) = shapes::guess(text).filter(|function| !is_machinery(function)) {
            self.guess.get_or_insert_with(|| title::function(function));
        }
    }

    fn consider(&mut self, function: &str) {
        let wants = self.pattern.map(|pattern| pattern.function);
        let aside = is_machinery(function)
            || wants == Some(Function::Leak) && is_allocator(function)
            || wants == Some(Function::Stalled) && self.in_interrupt;
        let place = if aside { &mut self.makeshift } else { &mut self.function };
        place.get_or_insert_with(|| title::function(function));
    }

    /// The whole; none if what it is was never said.
    pub(super) fn finish(self) -> Option<Splat> {
        let pattern = self.pattern?;
        let function = self.function.or(self.guess).or(self.makeshift).filter(|_| pattern.function != Function::None);
        let title = format!("{}{}", self.title, self.access.unwrap_or_default());
        let title = function.map_or(title.clone(), |function| format!("{title} in {function}"));
        let (kind, action) = (pattern.kind, Action::Fail);
        Some(Splat { kind, title, action, case: self.case, lines: self.lines, text: self.text })
    }
}

/// An oops is announced in several ways one after another, and what goes wrong while it is reported follows from it.
fn absorbs(pattern: &Pattern, head: Option<&Head<'_>>) -> bool {
    match pattern.kind {
        SplatKind::Oops => true,
        SplatKind::Bug => head.is_some_and(|head| head.pattern.kind == SplatKind::Oops),
        _ => false,
    }
}
