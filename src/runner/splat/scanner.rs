//! Which line belongs to which report.

use std::collections::VecDeque;

use super::patterns::Head;
use super::policy::{self, Policy};
use super::report::{Answer, Line, Report};
use super::shapes;
use crate::runner::console::Prefix;
use crate::runner::outcome::Splat;

/// Reports at a time: one for each CPU or thread that prints one.
const REPORTS: usize = 16;
/// Lines after the end of a report in which a panic that follows from it is still a part of it.
const PATIENCE: u64 = 100;
/// Different stalls that are remembered.
const STALLS: usize = 64;
/// Bytes of the name of a thread or CPU: real ones have less.
const CALLER: usize = 16;

/// Finds reports in the lines of a console, one after another.
#[derive(Debug, Clone, Default)]
pub struct Scanner {
    policy: Policy,
    /// In the order of their beginnings.
    reports: Vec<Report>,
    done: VecDeque<Splat>,
    /// Stalls that were given, with the case that was under way.
    stalls: Vec<(String, Option<String>)>,
    dead: bool,
}

impl Scanner {
    /// One that judges by `policy`.
    pub fn new(policy: Policy) -> Self {
        Self { policy, ..Self::default() }
    }

    /// Takes the next line, with the kernel's prefix; `number` is its number in the console's log, `case` what was under
    /// way. Gives a report that is over, some lines after its end, because it may go on.
    pub fn line(&mut self, line: &str, number: u64, case: Option<&str>) -> Option<Splat> {
        let (prefix, text) = Prefix::split(line);
        let caller = prefix.caller.filter(|caller| caller.len() <= CALLER);
        self.take(&Line { number, caller, timed: prefix.time.is_some(), text }, case);
        self.done.pop_front()
    }

    /// The case that was called `from` until now is called `to`, whatever was printed while it was under way.
    pub fn rename(&mut self, from: &str, to: &str) {
        self.reports.iter_mut().for_each(|report| report.rename(from, to));
        let known = self.stalls.iter_mut().map(|(_, case)| case);
        known.for_each(|case| *case = policy::renamed(case.take(), from, to));
        self.done.iter_mut().for_each(|splat| self.policy.rename(splat, from, to));
    }

    /// Gives what was not yet given. Call it until there is nothing more.
    pub fn finish(&mut self) -> Option<Splat> {
        while !self.reports.is_empty() {
            self.give(0);
        }
        self.done.pop_front()
    }

    /// Whether the kernel panicked.
    pub fn dead(&self) -> bool {
        self.dead
    }

    fn take(&mut self, line: &Line<'_>, case: Option<&str>) {
        if self.dead {
            // The last report is the one that the kernel died of; nothing new begins.
            if let Some(report) = self.reports.last_mut().filter(|report| !report.is_ended()) {
                report.take_last_words(line);
            }
            return;
        }
        self.give_old(line.number);
        let head = Head::find(shapes::untagged(line.text));
        if let Some(head) = head.as_ref().filter(|head| head.is_panic()) {
            return self.die(line, head, case);
        }
        if self.offer(line, head.as_ref()) {
            return;
        }
        if head.is_some() || shapes::is_cut(line.text) || shapes::is_banner(line.text) {
            self.begin(line, head.as_ref(), case);
        }
    }

    /// Offers a line to who may want it, latest first.
    fn offer(&mut self, line: &Line<'_>, head: Option<&Head<'_>>) -> bool {
        for index in (0..self.reports.len()).rev() {
            let Some(report) = self.reports.get_mut(index) else { continue };
            if report.gathers() && line.text.starts_with("NMI backtrace for cpu") {
                report.admit(line);
            }
            if !report.hears(line) {
                continue;
            }
            match report.offer(line, head) {
                Answer::Mine => return true,
                Answer::NotMine => {}
                Answer::NoReport => drop(self.reports.remove(index)),
            }
        }
        false
    }

    fn begin(&mut self, line: &Line<'_>, head: Option<&Head<'_>>, case: Option<&str>) {
        // What its printer prints from here on belongs to the new one.
        while let Some(index) = self.reports.iter().position(|report| report.is_ended() && report.hears(line)) {
            self.give(index);
        }
        while self.reports.len() >= REPORTS {
            self.give(0);
        }
        self.reports.push(Report::begin(line, head, case));
    }

    /// A panic belongs to the latest report that it can follow from, rather one of its own printer.
    fn die(&mut self, line: &Line<'_>, head: &Head<'_>, case: Option<&str>) {
        self.dead = true;
        let causes = |report: &Report| report.kind().is_some_and(|kind| head.follows_from(kind));
        let own = self.reports.iter().rposition(|report| causes(report) && report.hears(line));
        match own.or_else(|| self.reports.iter().rposition(causes)) {
            Some(index) => {
                let mut report = self.reports.remove(index);
                report.take_last_words(line);
                self.reports.push(report);
            }
            None => self.begin(line, Some(head), case),
        }
    }

    /// Gives those that ended long ago.
    fn give_old(&mut self, number: u64) {
        let old = |report: &Report| report.is_ended() && number.saturating_sub(report.last_line()) > PATIENCE;
        while let Some(index) = self.reports.iter().position(old) {
            self.give(index);
        }
    }

    fn give(&mut self, index: usize) {
        let report = self.reports.remove(index);
        let stall = report.gathers();
        let Some(mut splat) = report.finish() else { return };
        if stall && self.is_known(&splat) {
            return;
        }
        splat.action = self.policy.action(&splat);
        self.done.push_back(splat);
    }

    /// Kernels report a stall again and again while it lasts: it is one fault.
    fn is_known(&mut self, splat: &Splat) -> bool {
        let key = (splat.title.clone(), splat.case.clone());
        let known = self.stalls.contains(&key);
        if !known && self.stalls.len() < STALLS {
            self.stalls.push(key);
        }
        known
    }
}
