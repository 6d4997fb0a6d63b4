//! What was found, with limits: a guest may print forever.

use crate::runner::outcome::{Case, Status};

/// Cases that are kept; the kernel has some ten thousand in all.
pub(super) const CASE_LIMIT: usize = 100_000;
/// Bytes of names and messages that are kept.
const TEXT_LIMIT: usize = 64 << 20;
/// Bytes of logs that are kept. Those of cases that are well may take half of it.
const LOGS_LIMIT: usize = 32 << 20;
/// Characters of a name.
const NAME_LIMIT: usize = 300;
/// Problems that are told, and characters of each.
const PROBLEM_LIMIT: usize = 100;
const PROBLEM_LENGTH: usize = 500;

/// Cases and complaints of all sources.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    /// Each with the number of its source.
    cases: Vec<(usize, Case)>,
    text: usize,
    logs: usize,
    /// Cases that were not kept.
    lost: u64,
    problems: Vec<String>,
    more_problems: u64,
    /// The worst of all, lost ones and suites included.
    worst: Option<Status>,
    passed: bool,
}

impl Record {
    /// Where the next case will be.
    pub(super) fn next(&self) -> usize {
        self.cases.len()
    }

    /// Whether another case can be kept.
    pub(super) fn has_room(&self) -> bool {
        self.cases.len() < CASE_LIMIT && self.text < TEXT_LIMIT
    }

    /// Keeps a case and gives it back as it was kept, unless there is no room.
    pub(super) fn add(&mut self, source: usize, mut case: Case) -> Option<Case> {
        self.judge(case.status);
        if !self.has_room() {
            self.lost += 1;
            return None;
        }
        case.path.iter_mut().for_each(|name| *name = short(name));
        case.message = case.message.map(|message| short(&message));
        self.text += case.path.iter().chain(&case.message).map(String::len).sum::<usize>();
        let limit = if case.status.is_good() { LOGS_LIMIT / 2 } else { LOGS_LIMIT };
        if self.logs + case.log.len() > limit {
            case.log.clear();
        }
        self.logs += case.log.len();
        self.cases.push((source, case.clone()));
        Some(case)
    }

    /// Cases that are not even made, for lack of room.
    pub(super) fn lose(&mut self, count: u64, status: Status) {
        self.lost = self.lost.saturating_add(count);
        if count > 0 {
            self.judge(status);
        }
    }

    /// Counts a status for the whole, without a case.
    pub(super) fn judge(&mut self, status: Status) {
        self.worst = self.worst.max(Some(status));
        self.passed |= status == Status::Pass;
    }

    /// Of all: the worst, but skipped cases and those that fail as expected do not count beside one that passes.
    fn status(&self) -> Option<Status> {
        self.worst.map(|worst| if worst.is_good() && self.passed { Status::Pass } else { worst })
    }

    /// Names the suite at a depth in a source's cases since the one at `first`: its name comes after its cases.
    pub(super) fn rename(&mut self, source: usize, first: usize, depth: usize, name: &str) {
        let name = short(name);
        let cases = self.cases.iter_mut().skip(first).filter(|(by, _)| *by == source);
        for (_, case) in cases {
            if let Some(old) = case.path.get_mut(depth) {
                self.text += name.len();
                old.clone_from(&name);
            }
        }
    }

    /// Notes that the output is not as it should be.
    pub(super) fn complain(&mut self, problem: String) {
        if self.problems.len() < PROBLEM_LIMIT {
            self.problems.push(problem.chars().take(PROBLEM_LENGTH).collect());
        } else {
            self.more_problems += 1;
        }
    }

    /// Cases, problems, and the status of all if there is any.
    pub(super) fn finish(mut self) -> (Vec<Case>, Vec<String>, Option<Status>) {
        if self.more_problems > 0 {
            self.problems.push(format!("{} more problems", self.more_problems));
        }
        if self.lost > 0 {
            self.problems.push(format!("{} more cases: too many to be kept", self.lost));
        }
        let status = self.status();
        (self.cases.into_iter().map(|(_, case)| case).collect(), self.problems, status)
    }
}

/// A name of bearable length.
pub(super) fn short(text: &str) -> String {
    text.chars().take(NAME_LIMIT).collect()
}
