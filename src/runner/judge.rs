//! From what was seen of a test to the one status that it gets. No side effects.

use super::config::{Expect, What};
use super::ktap::Ktap;
use super::outcome::{Action, Case, Splat, SplatKind, Status};
use crate::machine::verdict::Verdict;

/// Names of cases in a reason.
const NAMES: usize = 3;

/// What was seen of a test.
#[derive(Debug)]
pub(super) struct Seen<'a> {
    pub what: &'a What,
    /// How the machine or its command ended.
    pub verdict: &'a Verdict,
    /// Cases that were told of, and what was wrong with how.
    pub ktap: &'a Ktap,
    pub splats: &'a [Splat],
}

/// A status and, unless all is well, why.
pub(super) type Judgement = (Status, Option<String>);

/// The status of a test of which something else may be expected than that it passes.
pub(super) fn judge(seen: &Seen<'_>, expect: Expect) -> Judgement {
    let found = without_expectation(seen);
    let missed = |what: &str| match &found.1 {
        Some(reason) => format!("expected {what}, but: {reason}"),
        None => format!("expected {what}, but it passed"),
    };
    let wanted = match expect {
        Expect::Pass => return found,
        Expect::Fail => (found.0 == Status::Fail, Status::Xfail, "a failure"),
        Expect::Crash => (found.0 == Status::Crash, Status::Pass, "a crash"),
        Expect::Timeout => (found.0 == Status::Timeout, Status::Pass, "a time-out"),
        Expect::Status(wanted) => {
            let (is, quiet) = (*seen.verdict == Verdict::Finished { status: wanted }, fatal(seen.splats).is_none());
            let text = missed(&format!("status {wanted}"));
            return if is && quiet { (Status::Pass, None) } else { (found.0.max(Status::Fail), Some(text)) };
        }
    };
    match wanted {
        (true, status, what) => (status, (status == Status::Xfail).then(|| format!("{what}, as expected"))),
        (false, _, what) if found.0.is_good() => (Status::Fail, Some(missed(what))),
        (false, _, what) => (found.0, Some(missed(what))),
    }
}

fn without_expectation(seen: &Seen<'_>) -> Judgement {
    let by_end = by_verdict(seen);
    // What it does to the kernel says more than what it says of itself; that more than a status.
    let candidates = [by_end, by_splats(seen.splats), by_cases(seen.ktap)];
    let worst = candidates.iter().map(|(status, _)| *status).max().unwrap_or(Status::Pass);
    let splat_or_case = candidates.get(1..).unwrap_or_default().iter().find(|(status, _)| *status == worst);
    let found = splat_or_case.or_else(|| candidates.first()).cloned().unwrap_or((Status::Pass, None));
    let skipped = !seen.ktap.cases.is_empty() && seen.ktap.cases.iter().all(|case| case.status == Status::Skip);
    match found.0 {
        Status::Pass if skipped => (Status::Skip, Some(reason_of_skip(&seen.ktap.cases))),
        Status::Pass | Status::Xfail => (Status::Pass, None),
        _ if found.0 < worst => candidates.into_iter().find(|(status, _)| *status == worst).unwrap_or(found),
        _ => found,
    }
}

/// What the end of machine and command says.
fn by_verdict(seen: &Seen<'_>) -> Judgement {
    let bad = |status| (status, Some(seen.verdict.to_string()));
    match seen.verdict {
        Verdict::Panicked { .. } if is_over(seen) => (Status::Pass, None),
        Verdict::Panicked { message: Some(message) } => (Status::Crash, Some(message.clone())),
        Verdict::Panicked { .. } | Verdict::CpuDied { .. } | Verdict::NoVerdict { .. } => bad(Status::Crash),
        Verdict::BootTimedOut { .. } | Verdict::TimedOut | Verdict::Silent { .. } => bad(Status::Timeout),
        Verdict::Finished { status: 0 } => (Status::Pass, None),
        Verdict::Finished { .. } | Verdict::Killed { .. } => bad(Status::Fail),
        Verdict::Failed { .. } | Verdict::NotFound { .. } | Verdict::NotExecutable { .. } => bad(Status::Error),
        Verdict::Quit | Verdict::Signalled { .. } => bad(Status::Error),
        Verdict::PoweredOff | Verdict::Rebooted | Verdict::Halted | Verdict::Exited { .. } => kernel_alone(seen),
    }
}

/// A kernel without user space has ended; only its results count.
fn kernel_alone(seen: &Seen<'_>) -> Judgement {
    if !seen.ktap.cases.is_empty() {
        return (Status::Pass, None);
    }
    let why = "the kernel printed no results; does it have CONFIG_KUNIT, built in, and tests that match?";
    (Status::Error, Some(format!("{}: {why}", seen.verdict)))
}

/// Whether a kernel without user space told all its results, and then found no user space.
pub(super) fn is_over(seen: &Seen<'_>) -> bool {
    let Verdict::Panicked { message: Some(message) } = seen.verdict else { return false };
    matches!(seen.what, What::Kunit { .. }) && seen.ktap.found && is_without_user_space(message)
}

/// Whether a kernel says that there is nothing for it to start.
pub(super) fn is_without_user_space(text: &str) -> bool {
    ["Unable to mount root fs", "No working init found", "Requested init"].iter().any(|words| text.contains(words))
}

fn fatal(splats: &[Splat]) -> Option<&Splat> {
    splats.iter().find(|splat| splat.action == Action::Fail)
}

fn by_splats(splats: &[Splat]) -> Judgement {
    let deadly = |splat: &&Splat| matches!(splat.kind, SplatKind::Panic | SplatKind::Oops);
    let failing = || splats.iter().filter(|splat| splat.action == Action::Fail);
    match (failing().find(deadly), failing().next()) {
        (Some(splat), _) => (Status::Crash, Some(splat.title.clone())),
        (None, Some(splat)) => (Status::Fail, Some(splat.title.clone())),
        (None, None) => (Status::Pass, None),
    }
}

fn by_cases(ktap: &Ktap) -> Judgement {
    let bad: Vec<_> = ktap.cases.iter().filter(|case| !case.status.is_good()).collect();
    let worst = bad.iter().map(|case| case.status).max();
    match (worst, ktap.problems.first()) {
        (Some(worst), _) => (worst, Some(reason_of(&bad, ktap.cases.len()))),
        (None, Some(problem)) if ktap.found => (ktap.status(), Some(problem.clone())),
        _ => (Status::Pass, None),
    }
}

fn reason_of(bad: &[&Case], of: usize) -> String {
    let mut names: Vec<_> = bad.iter().take(NAMES).map(|case| case.name()).collect();
    if bad.len() > NAMES {
        names.push("...".into());
    }
    format!("{} of {of} cases: {}", bad.len(), names.join(", "))
}

fn reason_of_skip(cases: &[Case]) -> String {
    cases.iter().find_map(|case| case.message.clone()).unwrap_or_else(|| "all its cases were skipped".into())
}
