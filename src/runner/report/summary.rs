//! What is shown when all tests have ended: what failed and why, and one line of counts.

use std::fmt::Write;

use super::paint::Paint;
use super::text;
use crate::runner::outcome::{Action, Outcome, TestResult};

/// Lines of output that are shown of each failure.
const TAIL: usize = 12;

/// Lines of a complaint of the kernel that are shown instead.
const COMPLAINT: usize = 24;

/// Cases that are shown of each failure.
const CASES: usize = 20;

/// The end of it all, for people. Without failures it is one line.
pub fn text(outcome: &Outcome, paint: Paint) -> String {
    let mut page = String::new();
    let bad: Vec<&TestResult> = outcome.tests.iter().filter(|test| !test.status.is_good()).collect();
    for test in &bad {
        page += &failure(test, paint);
        page.push('\n');
    }
    if !outcome.not_run.is_empty() {
        let names: Vec<String> = outcome.not_run.iter().map(|id| text::line(id)).collect();
        let _ = writeln!(page, "not run: {}\n", names.join(", "));
    }
    page + &counts(outcome) + "\n"
}

/// `12 tests: 10 passed, 2 failed; 240 cases: 240 passed; 3.2 s`.
fn counts(outcome: &Outcome) -> String {
    let tests = outcome.counts();
    let mut line = format!("{}: {}", text::number(tests.total(), "test"), text::counts(&tests));
    if !outcome.not_run.is_empty() {
        let _ = write!(line, ", {} not run", outcome.not_run.len());
    }
    let cases = outcome.case_counts();
    if cases.total() > 0 {
        let _ = write!(line, "; {}: {}", text::number(cases.total(), "case"), text::counts(&cases));
    }
    line + "; " + &text::duration(outcome.seconds)
}

fn failure(test: &TestResult, paint: Paint) -> String {
    let status = paint.status(test.status, test.status.name());
    let took = paint.dim(&text::duration(test.seconds));
    let mut page = format!("{status}  {}  {took}\n", paint.bold(&text::line(&test.id)));
    let mut add = |line: &str| page += &format!("    {line}\n");
    let is_splat = |reason: &&String| test.splats.iter().any(|splat| splat.title == **reason);
    if let Some(reason) = test.reason.as_ref().filter(|reason| !is_splat(reason)) {
        add(&text::line(reason));
    }
    for splat in test.splats.iter().filter(|splat| splat.action != Action::Ignore) {
        let word = if splat.action == Action::Warn { "warning: " } else { "" };
        let place = match splat.lines {
            (0, 0) => String::new(),
            (first, last) => format!(" (console.log, lines {first} to {last})"),
        };
        // The reason may be just this.
        if test.reason.as_ref() != Some(&splat.title) || !place.is_empty() {
            add(&format!("{word}{}{place}", text::line(&splat.title)));
        }
    }
    for note in &test.notes {
        add(&text::line(note));
    }
    let bad = || test.cases.iter().filter(|case| !case.status.is_good());
    for case in bad().take(CASES) {
        let message = case.message.as_deref().or_else(|| case.log.lines().next()).unwrap_or_default();
        let colon = if message.is_empty() { "" } else { ": " };
        let status = paint.status(case.status, case.status.name());
        add(&format!("{status} {}{colon}{}", text::line(&case.name()), text::line(message.trim())));
    }
    let more = bad().count().saturating_sub(CASES);
    if more > 0 {
        add(&format!("and {}", text::number(u64::try_from(more).unwrap_or(u64::MAX), "more case")));
    }
    let complaint = test.splats.iter().find(|splat| splat.action == Action::Fail && splat.text != splat.title);
    let log = match complaint {
        Some(splat) => text::first_lines(&splat.text, COMPLAINT),
        None => text::last_lines(&test.tail, TAIL),
    };
    for line in log.lines() {
        add(&format!("{} {line}", paint.dim("|")));
    }
    if let Some(artifacts) = &test.artifacts {
        add(&format!("kept in: {}", text::line(&artifacts.display().to_string())));
    }
    add(&format!("repeat:  {}", text::line(&test.reproduce)));
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::outcome::Status;
    use crate::runner::report::sample;

    #[test]
    fn failures_say_all_that_is_needed() {
        let page = text(&sample::outcome(), Paint::NONE);
        let crash = "\
crash  mainline/cpus=4/planted  4.5 s
    Kernel panic - not syncing: Fatal exception
    KASAN: slab-use-after-free in uaf_write (console.log, lines 812 to 861)
    warning: WARNING in hrtimer_forward (console.log, lines 870 to 884)
    Kernel panic: Fatal exception (console.log, lines 890 to 893)
    crash planted/uaf: the kernel died
    | BUG: KASAN";
        assert!(page.contains(crash), "{page}");
        assert!(
            page.contains("    kept in: artifacts/6.12/cpus=1/kunit\n    repeat:  belljar test --filter"),
            "{page}"
        );
        assert!(page.contains("    fail example/add: # add: EXPECTATION FAILED at lib/kunit"), "{page}");
        assert!(page.contains("not run: mainline/cpus=4/mqueue, "), "{page}");
        assert_eq!(page.matches("\nfail  ").count() + usize::from(page.starts_with("fail  ")), 2, "{page}");
        assert!(!page.contains("hotplug"), "skipped tests are no failures: {page}");
        assert!(!page.contains(|c: char| c.is_control() && c != '\n'));
        let last = page.lines().last().unwrap();
        assert!(
            last.starts_with("21 tests: 14 passed, 1 skipped, 1 failed as expected, 2 failed, 1 timed out"),
            "{last}"
        );
        assert!(last.ends_with("; 3 min 04 s"), "{last}");
    }

    #[test]
    fn success_is_one_line_and_floods_are_cut() {
        let mut outcome = sample::outcome();
        outcome.not_run.clear();
        outcome.tests.truncate(2);
        let line = "2 tests: 2 passed; 12 cases: 12 passed; 3 min 04 s\n";
        assert_eq!(text(&outcome, Paint::NONE), line);
        let mut test = sample::test("k", "m", "t", Status::Fail);
        test.cases = vec![sample::case(&["c"], Status::Fail, "no", ""); 50];
        test.tail = "line\n".repeat(1_000);
        outcome.tests = vec![test];
        let page = text(&outcome, Paint::NONE);
        assert!(page.contains("    and 30 more cases\n"), "{page}");
        assert_eq!(page.matches("    | line\n").count(), TAIL);
    }
}
