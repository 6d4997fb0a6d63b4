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
    // Of equals: what it does to the kernel says more than what it says of itself, and that more than a status.
    let found = [by_splats(seen.splats), by_cases(seen.ktap), by_verdict(seen)];
    let worst = found.into_iter().reduce(|worst, next| if next.0 > worst.0 { next } else { worst });
    let cases = &seen.ktap.cases;
    let skipped = !cases.is_empty() && cases.iter().all(|case| case.status == Status::Skip);
    match worst.unwrap_or((Status::Pass, None)) {
        (Status::Pass, _) if skipped => (Status::Skip, Some(reason_of_skip(cases))),
        (Status::Pass, _) => (Status::Pass, None),
        bad => bad,
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
    let deadly = |splat: &&Splat| is_deadly(splat);
    let failing = || splats.iter().filter(|splat| splat.action == Action::Fail);
    match (failing().find(deadly), failing().next()) {
        (Some(splat), _) => (Status::Crash, Some(splat.title.clone())),
        (None, Some(splat)) => (Status::Fail, Some(splat.title.clone())),
        (None, None) => (Status::Pass, None),
    }
}

/// Whether the kernel died of it, or only went on because it was told to.
fn is_deadly(splat: &Splat) -> bool {
    match splat.kind {
        SplatKind::Panic | SplatKind::Oops => true,
        // BUG() is an oops.
        SplatKind::Bug if splat.title.starts_with("kernel BUG") => true,
        _ => splat.text.contains("Kernel panic - not syncing: "),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::ktap::{End, Parser};

    fn ktap(text: &str) -> Ktap {
        let mut parser = Parser::new();
        text.lines().for_each(|line| drop(parser.line(line, 0.0)));
        parser.finish(End::Whole)
    }

    fn splat(kind: SplatKind, action: Action) -> Splat {
        Splat { kind, title: format!("{kind:?} in f"), action, case: None, lines: (1, 2), text: String::new() }
    }

    /// What comes of a command that ended like this.
    fn of(verdict: &Verdict, cases: &str, splats: &[Splat], expect: Expect) -> (Status, String) {
        let ktap = ktap(cases);
        let seen = Seen { what: &What::Command, verdict, ktap: &ktap, splats };
        let (status, reason) = judge(&seen, expect);
        (status, reason.unwrap_or_default())
    }

    const DONE: Verdict = Verdict::Finished { status: 0 };
    const FAILED: Verdict = Verdict::Finished { status: 3 };
    const GOOD: &str = "KTAP version 1\n1..2\nok 1 a\nok 2 b # SKIP none\n";
    const BAD: &str = "KTAP version 1\n1..2\nok 1 a\nnot ok 2 b\n";

    #[test]
    fn the_gravest_counts_and_says_why() {
        let plain = |verdict, cases, splats: &[Splat]| of(&verdict, cases, splats, Expect::Pass);
        assert_eq!(plain(DONE, "", &[]), (Status::Pass, String::new()));
        assert_eq!(plain(DONE, GOOD, &[]), (Status::Pass, String::new()));
        assert_eq!(plain(DONE, BAD, &[]), (Status::Fail, "1 of 2 cases: b".into()));
        assert_eq!(plain(FAILED, GOOD, &[]), (Status::Fail, "the command ended with status 3".into()));
        assert_eq!(plain(DONE, "KTAP version 1\n1..1\nok 1 a # SKIP none\n", &[]).0, Status::Skip);
        let warning = splat(SplatKind::Warning, Action::Fail);
        assert_eq!(plain(FAILED, BAD, &[warning]), (Status::Fail, "Warning in f".into()));
        assert_eq!(plain(DONE, "", &[splat(SplatKind::Warning, Action::Warn)]).0, Status::Pass);
        assert_eq!(plain(DONE, "", &[splat(SplatKind::Oops, Action::Fail)]), (Status::Crash, "Oops in f".into()));
        let panicked = || Verdict::Panicked { message: Some("Kernel panic".into()) };
        assert_eq!(plain(panicked(), BAD, &[]), (Status::Crash, "Kernel panic".into()));
        // What it died of says more than how.
        let bug = Splat { title: "kernel BUG in f".into(), ..splat(SplatKind::Bug, Action::Fail) };
        assert_eq!(plain(panicked(), "", &[bug]), (Status::Crash, "kernel BUG in f".into()));
        let text = "BUG: KASAN: x\nKernel panic - not syncing: kasan.fault=panic set".to_owned();
        let kasan = || Splat { text: text.clone(), ..splat(SplatKind::Kasan, Action::Fail) };
        assert_eq!(plain(panicked(), "", &[kasan()]), (Status::Crash, "Kasan in f".into()));
        assert_eq!(plain(panicked(), "", &[Splat { action: Action::Ignore, ..kasan() }]).0, Status::Crash);
        assert_eq!(plain(DONE, "", &[splat(SplatKind::Bug, Action::Fail)]).0, Status::Fail);
        assert_eq!(plain(Verdict::TimedOut, "", &[]).0, Status::Timeout);
        assert_eq!(plain(Verdict::NotFound { reason: "no x".into() }, "", &[]), (Status::Error, "no x".into()));
    }

    #[test]
    fn what_is_expected_is_good_and_anything_else_is_not() {
        let status = |verdict: Verdict, expect| of(&verdict, "", &[], expect).0;
        let crash = || Verdict::Panicked { message: None };
        assert_eq!(status(FAILED, Expect::Fail), Status::Xfail);
        assert_eq!(status(DONE, Expect::Fail), Status::Fail);
        assert_eq!(status(crash(), Expect::Fail), Status::Crash);
        assert_eq!((status(crash(), Expect::Crash), status(DONE, Expect::Crash)), (Status::Pass, Status::Fail));
        assert_eq!(status(Verdict::TimedOut, Expect::Timeout), Status::Pass);
        assert_eq!(
            (status(FAILED, Expect::Status(3)), status(FAILED, Expect::Status(4))),
            (Status::Pass, Status::Fail)
        );
        assert_eq!(of(&DONE, "", &[], Expect::Crash).1, "expected a crash, but it passed");
    }

    #[test]
    fn kernels_without_user_space_count_by_their_results() {
        let of = |message: &str, cases: &str| {
            let verdict = Verdict::Panicked { message: Some(message.into()) };
            let ktap = ktap(cases);
            let what = What::Kunit { filter: None };
            judge(&Seen { what: &what, verdict: &verdict, ktap: &ktap, splats: &[] }, Expect::Pass).0
        };
        let no_root = "Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)";
        assert_eq!((of(no_root, GOOD), of(no_root, BAD)), (Status::Pass, Status::Fail));
        assert_eq!((of("Kernel panic - not syncing: Oops", GOOD), of(no_root, "")), (Status::Crash, Status::Crash));
        let ktap = ktap("");
        let what = What::Kunit { filter: None };
        let seen = Seen { what: &what, verdict: &Verdict::PoweredOff, ktap: &ktap, splats: &[] };
        let (status, reason) = judge(&seen, Expect::Pass);
        assert!(status == Status::Error && reason.unwrap().contains("CONFIG_KUNIT"));
    }
}
