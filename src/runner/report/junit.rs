//! JUnit's XML, as CI servers read it: valid by the schema `junit-10.xsd` of Jenkins' xunit plugin.

use std::time::Duration;

use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::text;
use crate::runner::outcome::{Action, Case, Outcome, Status, TestResult};

/// The outcome as JUnit's XML: a suite for each kernel and machine, with its tests and the cases within them as cases.
/// Failures are what tests say of the kernel; errors are time-outs, crashes, and what is not the test's fault.
pub fn junit(outcome: &Outcome) -> String {
    let mut report = Report::new("belljar");
    report.set_time(duration(outcome.seconds));
    let mut places: Vec<String> = Vec::new();
    for test in &outcome.tests {
        let place = test.place();
        if !places.contains(&place) {
            report.add_test_suite(suite(outcome, &place));
            places.push(place);
        }
    }
    if !outcome.not_run.is_empty() {
        report.add_test_suite(not_run(&outcome.not_run));
    }
    match report.to_string() {
        // The schema has no such attribute of the whole.
        Ok(text) => text.replacen(&format!(" skipped=\"{}\"", report.skipped), "", 1),
        // Writing to memory does not fail; if it did, an empty report must not look like a good one.
        Err(error) => format!("<!-- {} -->\n", text::line(&error.to_string()).replace("--", "- -")),
    }
}

fn suite(outcome: &Outcome, place: &str) -> TestSuite {
    let mut suite = TestSuite::new(text::line(place));
    let tests = || outcome.tests.iter().filter(|test| test.place() == place);
    suite.set_timestamp(text::moment(outcome.began, tests().map(|test| test.start).fold(f64::MAX, f64::min)));
    suite.set_time(duration(tests().map(|test| test.seconds).sum()));
    suite.add_property(("belljar", outcome.version));
    for (name, value) in [
        ("engine", tests().find_map(|test| test.engine.as_deref())),
        ("kernel", tests().map(|test| test.kernel.as_str()).next()),
        ("release", tests().find_map(|test| test.release.as_deref())),
        ("machine", tests().map(|test| test.machine.as_str()).next()),
    ] {
        if let Some(value) = value {
            suite.add_property((name, text::line(value).as_str()));
        }
    }
    for test in tests() {
        suite.add_test_case(of_test(test));
        suite.add_test_cases(test.cases.iter().map(|case| of_case(test, case)));
    }
    suite
}

fn of_test(test: &TestResult) -> TestCase {
    let mut status = status(test.status);
    let titles: Vec<String> =
        test.splats.iter().filter(|splat| splat.action == Action::Fail).map(|splat| text::line(&splat.title)).collect();
    let reason = test.reason.iter().map(|reason| text::line(reason));
    let message = reason.chain(titles).collect::<Vec<_>>().join("; ");
    if !message.is_empty() {
        status.set_message(message);
    }
    let splats: Vec<String> = test.splats.iter().map(|splat| text::lines(&splat.text)).collect();
    let repeat = format!("to repeat it: {}", text::line(&test.reproduce));
    status.set_description(splats.into_iter().chain([repeat]).collect::<Vec<_>>().join("\n\n"));
    let mut case = TestCase::new(text::line(test.name()), status);
    case.set_classname(text::line(&test.place())).set_time(duration(test.seconds));
    if !test.tail.is_empty() {
        case.set_system_out(text::lines(&test.tail));
    }
    case
}

fn of_case(test: &TestResult, case: &Case) -> TestCase {
    let mut status = status(case.status);
    if let Some(message) = &case.message {
        status.set_message(text::line(message));
    }
    let (name, suites) = case.path.split_last().map_or(("", &[][..]), |(name, suites)| (name.as_str(), suites));
    // With kernel and machine: some servers look at nothing but this and the name.
    let class = [&test.id].into_iter().chain(suites).map(|part| text::line(part)).collect::<Vec<_>>().join("/");
    let mut written = TestCase::new(text::or(&text::line(name), "unnamed"), status);
    written.set_classname(class);
    if let Some(seconds) = case.seconds {
        written.set_time(duration(seconds));
    }
    if !case.log.is_empty() {
        written.set_system_out(text::lines(&case.log));
    }
    written
}

fn status(status: Status) -> TestCaseStatus {
    let (mut written, kind) = match status {
        Status::Pass => return TestCaseStatus::success(),
        Status::Skip | Status::Xfail => (TestCaseStatus::skipped(), status.name()),
        Status::Fail => (TestCaseStatus::non_success(NonSuccessKind::Failure), status.name()),
        Status::Timeout | Status::Crash => (TestCaseStatus::non_success(NonSuccessKind::Error), status.name()),
        Status::Error => (TestCaseStatus::non_success(NonSuccessKind::Error), "infrastructure"),
    };
    written.set_type(kind);
    written
}

fn not_run(ids: &[String]) -> TestSuite {
    let mut suite = TestSuite::new("not run");
    suite.add_test_cases(ids.iter().map(|id| {
        let mut status = TestCaseStatus::skipped();
        status.set_type("not-run").set_message("not run");
        let mut case = TestCase::new(text::line(id), status);
        case.set_classname("not run");
        case
    }));
    suite
}

/// Seconds that may be nonsense; XML has room for a year.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.clamp(0.0, 365.0 * 86_400.0)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::report::sample;

    fn report() -> (String, Report) {
        let written = junit(&sample::outcome());
        let report = Report::deserialize_from_str(&written).unwrap();
        (written, report)
    }

    #[test]
    fn each_status_has_its_element() {
        let (_, report) = report();
        let all = || report.test_suites.iter().flat_map(|suite| &suite.test_cases);
        let kind = |name: &str| match &all().find(|case| case.name.as_str() == name).unwrap().status {
            TestCaseStatus::Success { .. } => "success".to_string(),
            TestCaseStatus::NonSuccess { kind, ty, .. } => format!("{kind:?} {}", ty.as_ref().unwrap().as_str()),
            TestCaseStatus::Skipped { ty, .. } => format!("skipped {}", ty.as_ref().unwrap().as_str()),
        };
        assert_eq!(
            ["boot", "kunit", "planted", "mqueue", "wrong-root", "hotplug", "rseq", "add", "stress#2"].map(kind),
            [
                "success",
                "Failure fail",
                "Error crash",
                "Error timeout",
                "Error infrastructure",
                "skipped skip",
                "skipped xfail",
                "Failure fail",
                "success"
            ]
        );
        let add = all().find(|case| case.name.as_str() == "add").unwrap();
        assert_eq!(add.classname.as_ref().unwrap().as_str(), "6.12/cpus=1/kunit/example");
        assert!(add.system_out.as_ref().unwrap().contains("EXPECTATION FAILED at lib/kunit"));
        let skipped: usize = report.test_suites.iter().map(|suite| suite.skipped).sum();
        let counted = (report.failures, report.errors, skipped);
        assert_eq!(counted, (4, 5, 6), "of tests, cases and what did not run");
    }

    #[test]
    fn messages_have_reason_and_splats() {
        let (_, report) = report();
        let crash =
            report.test_suites.iter().flat_map(|suite| &suite.test_cases).find(|c| c.name.as_str() == "planted");
        let TestCaseStatus::NonSuccess { message, description, .. } = &crash.unwrap().status else {
            panic!("a crash is no success");
        };
        assert_eq!(
            message.as_ref().unwrap().as_str(),
            "Kernel panic - not syncing: Fatal exception; KASAN: slab-use-after-free in uaf_write; Kernel panic: Fatal \
             exception"
        );
        assert!(description.as_ref().unwrap().contains("drivers/misc/planted.c:41"));
        assert!(description.as_ref().unwrap().contains("to repeat it: belljar test"));
        let properties = &report.test_suites.first().unwrap().properties;
        let names: Vec<&str> = properties.iter().map(|property| property.name.as_str()).collect();
        assert_eq!(names, ["belljar", "engine", "kernel", "release", "machine"]);
    }

    #[test]
    fn nothing_is_outside_the_schema() {
        let (written, _) = report();
        let root = written.split_once("<testsuites ").and_then(|(_, rest)| rest.split_once('>')).unwrap().0;
        let names: Vec<&str> = root.split("=\"").filter_map(|part| part.rsplit([' ', '"']).next()).collect();
        assert_eq!(&names[..names.len() - 1], ["name", "tests", "failures", "errors", "time"]);
        let odd = |c: char| c.is_control() && c != '\n' || c == '\u{fffe}' || c == '\u{ffff}';
        assert!(!written.contains(odd), "{written}");
        assert!(!written.contains("<script"));
        // What elements of cases have, as far as the schema goes.
        for tag in written.split('<').filter(|tag| tag.starts_with("testcase ")) {
            for attribute in tag.split("=\"").filter_map(|part| part.rsplit_once("\" ")).map(|(_, name)| name) {
                assert!(["name", "classname", "time"].contains(&attribute), "{tag}");
            }
        }
    }
}
