//! What came of tests: plain data, from which all reports are made.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::machine::verdict::Verdict;
use crate::run::Stages;

/// What came of a test, or of a case within one. From best to worst: the worst of several counts for them all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It did what was expected.
    Pass,
    /// It did not run, and says why.
    Skip,
    /// It failed as expected.
    Xfail,
    /// It failed.
    Fail,
    /// It did not end in time.
    Timeout,
    /// The kernel or the CPU died of it, or its results end in the middle.
    Crash,
    /// belljar, the host or the test's description is at fault: no verdict about the kernel.
    Error,
}

impl Status {
    /// As in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Skip => "skip",
            Self::Xfail => "xfail",
            Self::Fail => "fail",
            Self::Timeout => "timeout",
            Self::Crash => "crash",
            Self::Error => "error",
        }
    }

    /// Whether nobody needs to look.
    pub fn is_good(self) -> bool {
        self <= Self::Xfail
    }
}

/// One case within a test, as its output tells (KTAP).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// Names from the outermost suite down to the case.
    pub path: Vec<String>,
    /// What came of it.
    pub status: Status,
    /// Why, if it says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Seconds that it took, if that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// What was printed while it was under way, its last lines if that was much.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub log: String,
}

impl Case {
    /// The path as one text.
    pub fn name(&self) -> String {
        self.path.join("/")
    }
}

/// What kind of complaint a kernel printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SplatKind {
    /// `Kernel panic - not syncing`.
    Panic,
    /// A CPU exception in the kernel: bad addresses, general protection, double faults.
    Oops,
    /// `kernel BUG at`, and other lines that begin with `BUG:`.
    Bug,
    /// `WARNING:`.
    Warning,
    /// Address sanitizer.
    Kasan,
    /// Memory sanitizer: uninitialised memory.
    Kmsan,
    /// Concurrency sanitizer: data races.
    Kcsan,
    /// Sampling memory error detector.
    Kfence,
    /// Undefined behaviour sanitizer.
    Ubsan,
    /// Lock order, lock use, RCU use, sleeping where that is forbidden.
    Lockdep,
    /// A CPU that RCU waits for.
    RcuStall,
    /// A CPU that does not schedule.
    SoftLockup,
    /// A CPU that takes no interrupts.
    HardLockup,
    /// A task that waits for too long.
    HungTask,
    /// Memory that nobody refers to.
    Kmemleak,
    /// The kernel is tainted, and was not before.
    Taint,
}

/// What a complaint of a kernel does to its test.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// The test fails.
    Fail,
    /// It is shown.
    Warn,
    /// Nothing; it stays in the data.
    Ignore,
}

/// A complaint of a kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Splat {
    /// What kind.
    pub kind: SplatKind,
    /// On one line, the same for the same fault: `KASAN: slab-use-after-free in foo_bar`.
    pub title: String,
    /// What it does to the test.
    pub action: Action,
    /// The case that was under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// Numbers of its first and last line in the console's log, counted from 1.
    pub lines: (u64, u64),
    /// Its text, with places in the source where they are known.
    pub text: String,
}

/// What came of one test on one kernel and machine.
#[derive(Debug, Clone, Serialize)]
pub struct TestResult {
    /// Unique among all: `KERNEL/MACHINE/TEST`, with `#N` after it when it is repeated.
    pub id: String,
    /// Label of the kernel.
    pub kernel: String,
    /// Label of the machine.
    pub machine: String,
    /// Name of the test.
    pub test: String,
    /// What came of it.
    pub status: Status,
    /// Why, on one line, unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Cases, if it tells of any.
    pub cases: Vec<Case>,
    /// Complaints of the kernel.
    pub splats: Vec<Splat>,
    /// How the machine, or the command in it, ended; none if it was never started.
    pub verdict: Option<Verdict>,
    /// Which attempt this is, from 1: attempts before it failed for reasons that are not the test's.
    pub attempt: u32,
    /// Seconds since the whole began when the test began.
    pub start: f64,
    /// Seconds that it took.
    pub seconds: f64,
    /// When the machine reached what.
    pub stages: Option<Stages>,
    /// What ran the CPUs.
    pub engine: Option<String>,
    /// What the kernel calls itself.
    pub release: Option<String>,
    /// What was printed last: command's output, or console.
    pub tail: String,
    /// What could not be done beside the test, a sentence each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Directory with all that was kept; see docs/test.md.
    pub artifacts: Option<PathBuf>,
    /// A command line that repeats this test alone.
    pub reproduce: String,
}

impl TestResult {
    /// Kernel and machine that it ran on: the first part of its id.
    pub fn place(&self) -> String {
        format!("{}/{}", self.kernel, self.machine)
    }

    /// The test's name, with which repetition it is if it is repeated: the rest of its id.
    pub fn name(&self) -> &str {
        self.id.strip_prefix(self.place().as_str()).and_then(|rest| rest.strip_prefix('/')).unwrap_or(&self.test)
    }
}

/// How many of each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "as in Status")]
pub struct Counts {
    pub pass: u64,
    pub skip: u64,
    pub xfail: u64,
    pub fail: u64,
    pub timeout: u64,
    pub crash: u64,
    pub error: u64,
}

impl SplatKind {
    /// As in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Panic => "panic",
            Self::Oops => "oops",
            Self::Bug => "BUG",
            Self::Warning => "warning",
            Self::Kasan => "KASAN",
            Self::Kmsan => "KMSAN",
            Self::Kcsan => "KCSAN",
            Self::Kfence => "KFENCE",
            Self::Ubsan => "UBSAN",
            Self::Lockdep => "lockdep",
            Self::RcuStall => "RCU stall",
            Self::SoftLockup => "soft lockup",
            Self::HardLockup => "hard lockup",
            Self::HungTask => "hung task",
            Self::Kmemleak => "kmemleak",
            Self::Taint => "taint",
        }
    }
}

impl Counts {
    /// One more.
    pub fn add(&mut self, status: Status) {
        *match status {
            Status::Pass => &mut self.pass,
            Status::Skip => &mut self.skip,
            Status::Xfail => &mut self.xfail,
            Status::Fail => &mut self.fail,
            Status::Timeout => &mut self.timeout,
            Status::Crash => &mut self.crash,
            Status::Error => &mut self.error,
        } += 1;
    }

    /// How many in all.
    pub fn total(&self) -> u64 {
        self.pass + self.skip + self.xfail + self.fail + self.timeout + self.crash + self.error
    }
}

impl FromIterator<Status> for Counts {
    fn from_iter<I: IntoIterator<Item = Status>>(statuses: I) -> Self {
        let mut counts = Self::default();
        statuses.into_iter().for_each(|status| counts.add(status));
        counts
    }
}

/// What came of all tests.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    /// Version of belljar.
    pub version: &'static str,
    /// When it began, in seconds since 1970 (UTC).
    pub began: u64,
    /// Seconds that it took.
    pub seconds: f64,
    /// Each test, in the order of the plan.
    pub tests: Vec<TestResult>,
    /// Tests that were planned and not run, because an earlier one failed or somebody ended it all.
    pub not_run: Vec<String>,
}

impl Outcome {
    /// How many tests had which status.
    pub fn counts(&self) -> Counts {
        self.tests.iter().map(|test| test.status).collect()
    }

    /// The same for the cases within them.
    pub fn case_counts(&self) -> Counts {
        self.tests.iter().flat_map(|test| &test.cases).map(|case| case.status).collect()
    }

    /// The exit code: 0 all is well, 1 a test failed, 3 a kernel crashed, 4 a test took too long, 125 belljar or the host
    /// failed. Of several the gravest: a crash before a time-out before a failure, and an error only without those.
    pub fn exit_code(&self) -> u8 {
        let counts = self.counts();
        match counts {
            Counts { crash: 1.., .. } => 3,
            Counts { timeout: 1.., .. } => 4,
            Counts { fail: 1.., .. } => 1,
            Counts { error: 1.., .. } => 125,
            _ if !self.not_run.is_empty() => 125,
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_counts() {
        assert_eq!([Status::Skip, Status::Crash, Status::Pass].into_iter().max(), Some(Status::Crash));
        let counts: Counts = [Status::Pass, Status::Fail, Status::Pass].into_iter().collect();
        assert_eq!((counts.pass, counts.fail, counts.total()), (2, 1, 3));
        assert!(Status::Xfail.is_good() && !Status::Fail.is_good());
    }
}
