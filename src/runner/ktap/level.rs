//! A document, or a test that has tests within: what has come of it so far.

use super::notes::Notes;
use super::record::short;
use crate::runner::outcome::Status;

/// When a line was printed.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Moment {
    /// When it came, in seconds since the test began.
    pub at: f64,
    /// When it was printed, if the kernel says, in seconds since its start: nearer to the truth.
    pub printk: Option<f64>,
}

impl Moment {
    /// Seconds, to the microsecond.
    pub(super) fn since(self, earlier: Self) -> f64 {
        let seconds = match (self.printk, earlier.printk) {
            (Some(now), Some(then)) => now - then,
            _ => self.at - earlier.at,
        };
        (seconds.max(0.0) * 1e6).round() / 1e6
    }
}

/// What a level waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// The line that names it, directly after its version.
    Header,
    Plan,
    Tests,
    /// The line with its own result.
    Result,
}

/// A document, or a test that has tests within.
#[derive(Debug, Clone)]
pub(super) struct Level {
    /// None for a document, and for tests that are named by their result only.
    pub name: Option<String>,
    /// Which it is within the level above, from 1.
    pub number: u64,
    pub step: Step,
    pub plan: Option<u64>,
    /// Number that the next test within should have.
    pub next: u64,
    /// Of the case that is under way.
    pub notes: Notes,
    pub begin: Moment,
    /// When the last test within ended.
    pub mark: Moment,
    /// Where its cases begin in the record.
    pub first: usize,
    /// The worst of the cases within; none if none counts.
    pub worst: Option<Status>,
}

impl Level {
    /// Which begins now, the test with this number in the level above.
    pub(super) fn new(number: u64, step: Step, now: Moment, first: usize) -> Self {
        let notes = Notes::default();
        Self { name: None, number, step, plan: None, next: 1, notes, begin: now, mark: now, first, worst: None }
    }

    /// Its name, or its number.
    pub(super) fn label(&self) -> String {
        self.name.as_deref().map_or_else(|| unnamed(self.number), short)
    }

    /// What the case that is under way is called, as far as that is known.
    pub(super) fn case(&self, hint: Option<&str>) -> String {
        hint.map_or_else(|| unnamed(self.next), short)
    }

    /// Planned tests that have not come.
    pub(super) fn missing(&self) -> u64 {
        self.plan.map_or(0, |plan| (plan.saturating_add(1)).saturating_sub(self.next))
    }

    /// What was printed for the case that is under way, which ends.
    pub(super) fn notes(&mut self) -> Notes {
        std::mem::take(&mut self.notes)
    }
}

/// What is called nothing, or not yet.
pub(super) fn unnamed(number: u64) -> String {
    format!("test {number}")
}
