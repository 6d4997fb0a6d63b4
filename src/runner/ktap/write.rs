//! KTAP of our own, for `--ktap`: kernels, in them machines, in them tests, in them cases.

use std::fmt::Write as _;

use crate::runner::outcome::{Case, Outcome, Status, TestResult};

/// What ends the input of `kunit.py parse` wherever it stands in a line, and what is written instead.
const END_MARKS: [(&str, &str); 3] = [
    ("List of all partitions:", "List of all partitions"),
    ("Kernel panic - not syncing: VFS:", "Kernel panic - not syncing, VFS:"),
    ("reboot: System halted", "reboot, system halted"),
];

/// Lines of a log that are written for what went wrong.
const LOG_LINES: usize = 20;

/// The case that says that a test is not well though its cases are.
const WHOLE: &str = "the test as a whole";

/// All that came of the tests as one document, valid input for `kunit.py parse`.
///
/// A test whose cases are all well though it is not has one more case that says so: who counts cases shall see it.
pub fn document(outcome: &Outcome) -> String {
    let kernels = groups(outcome.tests.iter().collect(), |test| &test.kernel);
    let mut text = String::new();
    let mut top = Nest { text: &mut text, depth: 0, next: 1 };
    top.begin(None, kernels.len() + outcome.not_run.len());
    for tests in kernels {
        kernel(&tests, &mut top);
    }
    for id in &outcome.not_run {
        top.result(&name(id), Status::Skip, Some("not run"), "");
    }
    text
}

fn kernel(tests: &[&TestResult], top: &mut Nest<'_>) {
    let label = name(tests.first().map_or("", |test| &test.kernel));
    let machines = groups(tests.to_vec(), |test| &test.machine);
    let mut nest = top.within();
    nest.begin(Some(&label), machines.len());
    for tests in &machines {
        machine(tests, &mut nest);
    }
    top.result(&label, worst(tests), None, "");
}

fn machine(tests: &[&TestResult], above: &mut Nest<'_>) {
    let label = name(tests.first().map_or("", |test| &test.machine));
    let mut nest = above.within();
    let is_told_apart = tests.iter().all(|test| test_name(test) != label);
    nest.begin(is_told_apart.then_some(&label), tests.len());
    for test in tests {
        self::test(test, &mut nest);
    }
    above.result(&label, worst(tests), None, "");
}

fn test(test: &TestResult, above: &mut Nest<'_>) {
    let label = test_name(test);
    let reason = test.reason.as_deref();
    if test.cases.is_empty() {
        let log = if test.status.is_good() { "" } else { &test.tail };
        above.result(&label, test.status, reason, log);
        return;
    }
    let whole = !test.status.is_good() && test.cases.iter().all(|case| case.status.is_good());
    let mut nest = above.within();
    // A case of the same name would be taken for the line that ends the test.
    let is_told_apart = label != WHOLE && test.cases.iter().all(|case| case_name(case) != label);
    nest.begin(is_told_apart.then_some(&label), test.cases.len() + usize::from(whole));
    for case in &test.cases {
        let log = if case.status.is_good() { "" } else { &case.log };
        nest.result(&case_name(case), case.status, case.message.as_deref(), log);
    }
    if whole {
        nest.result(WHOLE, test.status, reason, &test.tail);
    }
    above.result(&label, test.status, reason, "");
}

/// Tests by what they have in common, in the order of the first of each.
fn groups<'a>(tests: Vec<&'a TestResult>, of: impl Fn(&'a TestResult) -> &'a str) -> Vec<Vec<&'a TestResult>> {
    let mut groups: Vec<Vec<&TestResult>> = Vec::new();
    for test in tests {
        match groups.iter_mut().find(|group| group.first().is_some_and(|first| of(first) == of(test))) {
            Some(group) => group.push(test),
            None => groups.push(vec![test]),
        }
    }
    groups
}

fn worst(tests: &[&TestResult]) -> Status {
    tests.iter().map(|test| test.status).max().unwrap_or(Status::Pass)
}

/// One of several runs of a test has its number.
fn test_name(test: &TestResult) -> String {
    match test.id.rsplit_once('#') {
        Some((_, run)) if !run.is_empty() && run.bytes().all(|byte| byte.is_ascii_digit()) => {
            name(&format!("{} run {run}", test.test))
        }
        _ => name(&test.test),
    }
}

fn case_name(case: &Case) -> String {
    name(&case.name())
}

/// On one line, and without what means something there.
fn plain(text: &str) -> String {
    let mut line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    for (mark, instead) in END_MARKS {
        if line.contains(mark) {
            line = line.replace(mark, instead);
        }
    }
    line.trim().to_owned()
}

/// As a name: `#` would begin a note, and a dash is no part of it.
fn name(text: &str) -> String {
    let name = plain(&text.replace('#', "-"));
    let name = name.trim_start_matches(['-', ' ']);
    if name.is_empty() { "unnamed".to_owned() } else { name.to_owned() }
}

/// Tests within a test, or the document.
struct Nest<'a> {
    text: &'a mut String,
    depth: usize,
    /// Number of the next result.
    next: usize,
}

impl Nest<'_> {
    fn within(&mut self) -> Nest<'_> {
        Nest { text: self.text, depth: self.depth + 1, next: 1 }
    }

    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        // Writing to a String does not fail.
        let _ = writeln!(self.text, "{:1$}{line}", "", self.depth * 2);
    }

    /// Without a name, the line that ends it tells which it was.
    fn begin(&mut self, name: Option<&String>, count: usize) {
        self.line(format_args!("KTAP version 1"));
        if let Some(name) = name {
            self.line(format_args!("# Subtest: {name}"));
        }
        self.line(format_args!("1..{count}"));
    }

    fn result(&mut self, name: &str, status: Status, reason: Option<&str>, log: &str) {
        let lines = log.lines().count();
        for line in log.lines().skip(lines.saturating_sub(LOG_LINES)) {
            // Three blanks: `# Subtest:` in a log stays a part of the log.
            self.line(format_args!("#   {}", plain(line)));
        }
        let ok = if status.is_good() { "ok" } else { "not ok" };
        let directive = match status {
            Status::Pass => "",
            Status::Skip => "SKIP ",
            Status::Xfail => "XFAIL ",
            Status::Timeout => "TIMEOUT ",
            Status::Error => "ERROR ",
            // No directives, but no reason can be taken for one after them.
            Status::Fail => "failed: ",
            Status::Crash => "crashed: ",
        };
        let reason = reason.filter(|_| status != Status::Pass).map(|text| plain(&text.replace('#', "-")));
        let note = match reason {
            Some(reason) => format!("{directive}{reason}"),
            None => directive.to_owned(),
        };
        let note = note.trim_end_matches([' ', ':']);
        let mark = if note.is_empty() { "" } else { " # " };
        let number = self.next;
        self.line(format_args!("{ok} {number} {name}{mark}{note}"));
        self.next += 1;
    }
}
