//! KTAP: results of tests within output of any kind (Documentation/dev-tools/ktap.rst), read as they are printed, and
//! written.
//!
//! | file | what it is |
//! | --- | --- |
//! | `line` | what a line is, by itself |
//! | `notes` | log of the case under way, and what that tells |
//! | `level` | a document, or a test that has tests within |
//! | `source` | tests within tests, as one source prints them |
//! | `record` | what was found, with limits |
//! | `write` | KTAP of our own: `--ktap` |
//!
//! The kernel's own reader, `tools/testing/kunit/kunit_parser.py`, is the authority on what counts: names and plans tell
//! what is within what, indentation does not. Totals are the same, but for these, where it is stricter than KTAP or TAP
//! allow, or goes wrong:
//!
//! - a result needs no name (`ok 3 # SKIP no device`, as kselftest.h prints it), directives no capitals;
//! - a plan may come last, and a second one is a line of the log;
//! - several documents may follow one another (KUnit modules), or be mixed where their prefixes tell them apart;
//! - a document of nothing but empty suites has no cases, and no crash.

mod level;
mod line;
mod notes;
mod record;
mod source;
mod write;

#[cfg(test)]
mod tests;

pub use write::document;

use self::level::Moment;
use self::line::{Line, version_within};
use self::record::Record;
use self::source::Source;
use super::console::Prefix;
use super::outcome::{Case, Status};

/// Sources that are told apart: more are counted to the last one.
const SOURCE_LIMIT: usize = 8;

/// Something that a line told.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// How many tests there will be within the one at this path, which is empty for a whole document.
    Plan {
        /// Names from the outermost suite down.
        path: Vec<String>,
        /// How many.
        count: u64,
    },
    /// A suite, or a case whose name was told before its result, is under way.
    Started(Vec<String>),
    /// What is at the path `from`, joined by `/`, turns out to be called `to`: [`Parser::current`] guessed. The same goes
    /// for what is within it.
    Named {
        /// As it was called until now.
        from: String,
        /// As it is called.
        to: String,
    },
    /// A case came to its end. Suites that are named by their last line only are called `test N` here.
    Ended(Case),
}

/// How the output came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Whole,
    /// The kernel died.
    Died,
    /// It took too long.
    TimedOut,
}

/// What an output told in all.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ktap {
    /// Whether there was KTAP in it.
    pub found: bool,
    /// Cases in the order of their ends. Cases that a plan announced and that have no result are among them.
    pub cases: Vec<Case>,
    /// What was not as it should be, such as a missing plan; a sentence each.
    pub problems: Vec<String>,
    status: Option<Status>,
}

impl Ktap {
    /// The worst of all cases, and of suites that failed though their cases did not. If all is well: passed, if anything
    /// did. Where nothing ran: failed, unless it was skipped as a whole.
    pub fn status(&self) -> Status {
        self.status.unwrap_or(Status::Fail)
    }

    /// What two outputs of one test told together.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.found |= other.found;
        self.cases.extend(other.cases);
        self.problems.extend(other.problems);
        self.status = match (self.status, other.status) {
            (Some(one), Some(two)) if one.is_good() && two.is_good() => Some(one.min(two)),
            (one, two) => one.max(two),
        };
        self
    }
}

/// Who printed a line, as far as its prefix tells.
#[derive(Debug, Clone, PartialEq)]
struct Voice {
    kernel: bool,
    caller: Option<String>,
}

/// Reads KTAP line by line.
#[derive(Debug, Clone, Default)]
pub struct Parser {
    sources: Vec<(Voice, Source)>,
    /// Which source spoke last.
    last: usize,
    record: Record,
}

impl Parser {
    /// One that has read nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a line, without its end; `at` is when it came, in seconds since the test began.
    pub fn line(&mut self, line: &str, at: f64) -> Vec<Event> {
        let (prefix, text) = Prefix::split(line.trim_end());
        let kernel = prefix != Prefix::default();
        let voice = Voice { kernel, caller: prefix.caller.map(str::to_owned) };
        let now = Moment { at, printk: prefix.time };
        let Some(index) = self.source(voice, text) else {
            if let Some((_, error)) = text.split_once("kunit executor: ") {
                self.record.complain(format!("KUnit says: {error}"));
            }
            return Vec::new();
        };
        let Some((voice, source)) = self.sources.get_mut(index) else { return Vec::new() };
        if voice.kernel == kernel {
            self.last = index;
            source.line(text, now, &mut self.record)
        } else {
            // Somebody else's, but it may tell why a case failed.
            source.note(text)
        }
    }

    /// Which source a line belongs to, a new one if need be.
    fn source(&mut self, voice: Voice, text: &str) -> Option<usize> {
        let same = self.sources.iter().position(|(other, source)| *other == voice && !source.is_done());
        let kin = || self.sources.iter().rposition(|(other, source)| other.kernel == voice.kernel && !source.is_done());
        let known = same.or_else(kin);
        let is_version = matches!(Line::of(text), Line::Version { .. });
        let begins = match known.and_then(|index| self.sources.get(index)) {
            // A thread or CPU of its own that prints as far left as the known one.
            Some((_, source)) => is_version && same.is_none() && source.is_beside(text),
            None => is_version,
        };
        let is_first = !self.sources.iter().any(|(other, _)| other.kernel == voice.kernel);
        let skip = if is_first && !begins { version_within(text) } else { None };
        if !begins && skip.is_none() {
            return known.or_else(|| self.sources.iter().rposition(|(_, source)| !source.is_done()));
        }
        let done = self.sources.iter().position(|(other, source)| other.kernel == voice.kernel && source.is_done());
        let index = done.unwrap_or(self.sources.len());
        if index == SOURCE_LIMIT {
            return known;
        }
        let source = (voice, Source::new(index, skip.unwrap_or(0)));
        match self.sources.get_mut(index) {
            Some(place) => *place = source,
            None => self.sources.push(source),
        }
        Some(index)
    }

    /// Names of what is under way, outermost first, joined by `/`; none before the first and after the last. The case
    /// itself is called `test N` where nothing was printed yet that names it; [`Event::Named`] tells its name later.
    pub fn current(&self) -> Option<String> {
        let (_, source) = self.sources.get(self.last).filter(|(_, source)| !source.is_done())?;
        Some(source.current().join("/")).filter(|name| !name.is_empty())
    }

    /// Whether all that was announced has come: a kernel that only runs KUnit has nothing more to say. Never true of
    /// output that has no plan.
    pub fn is_complete(&self) -> bool {
        !self.sources.is_empty() && self.sources.iter().all(|(_, source)| source.is_done())
    }

    /// Ends it. What was announced and did not come has crashed, or timed out if that is how it ended.
    pub fn finish(mut self, how: End) -> Ktap {
        for (_, source) in &mut self.sources {
            source.finish(how, &mut self.record);
        }
        let found = !self.sources.is_empty();
        let (cases, problems, status) = self.record.finish();
        Ktap { found, cases, problems, status }
    }
}
