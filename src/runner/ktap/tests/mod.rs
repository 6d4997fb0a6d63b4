mod totals;

use proptest::prelude::*;

use super::record::CASE_LIMIT;
use super::*;
use crate::runner::console::Lines;
use crate::runner::outcome::{Outcome, TestResult};

/// Reads a whole text, a line a second.
fn read(text: &str, how: End) -> Ktap {
    let mut parser = Parser::new();
    for (line, at) in text.lines().zip(0u32..) {
        parser.line(line, f64::from(at));
    }
    parser.finish(how)
}

/// Names and statuses.
fn cases(ktap: &Ktap) -> Vec<String> {
    ktap.cases.iter().map(|case| format!("{} {}", case.name(), case.status.name())).collect()
}

fn log(name: &str) -> &'static str {
    totals::LOGS.iter().find(|(other, ..)| *other == name).expect("a log").1
}

#[test]
fn a_case_has_its_suites_its_message_its_time_and_its_log() {
    let ktap = read(log("kunit"), End::Whole);
    let names = ["sums/add fail", "sums/take pass", "sums/many/value 1 pass", "sums/many/value 2 skip"];
    assert_eq!(cases(&ktap)[..4], names);
    let [add, _, _, skipped, ..] = ktap.cases.as_slice() else { panic!("{ktap:?}") };
    let message = "EXPECTATION FAILED at lib/sums-test.c:7: Expected 1 + 1 == 3, but 1 + 1 == 2 (0x2)";
    assert_eq!(add.message.as_deref(), Some(message));
    // By the kernel's clock, which the prefix tells.
    assert_eq!(add.seconds, Some(0.1));
    assert!(add.log.starts_with("    # add: initializing\n") && add.log.ends_with("(0x2)\n"), "{add:?}");
    assert_eq!(skipped.message.as_deref(), Some("too large"));
    assert!(ktap.problems.is_empty(), "{ktap:?}");
    // By the host's clock where there is no prefix.
    assert_eq!(read("KTAP version 1\n1..2\n\nok 1 a\n\n\nok 2 b\n", End::Whole).cases[1].seconds, Some(3.0));
}

#[test]
fn suites_without_a_name_get_it_at_their_end() {
    let names: Vec<_> = read(log("no names of suites"), End::Whole).cases.iter().map(Case::name).collect();
    let expected = ["outer/inner/one", "outer/two", "second/three", "second/four", "third/five", "third/six"];
    assert_eq!(names, expected);
}

#[test]
fn events_tell_what_goes_on() {
    let mut parser = Parser::new();
    let path = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>();
    assert_eq!(parser.line("KTAP version 1", 0.0), []);
    assert_eq!(parser.current(), None);
    assert_eq!(parser.line("1..1", 0.0), [Event::Plan { path: vec![], count: 1 }]);
    let named = |from: &str, to: &str| Event::Named { from: from.into(), to: to.into() };
    assert_eq!(parser.line("    # Subtest: s", 0.0), [named("test 1", "s"), Event::Started(path(&["s"]))]);
    assert_eq!(parser.line("    1..2", 0.0), [Event::Plan { path: path(&["s"]), count: 2 }]);
    assert_eq!(parser.current().as_deref(), Some("s/test 1"));
    let started = Event::Started(path(&["s", "a"]));
    assert_eq!(parser.line("    # a: initializing", 0.0), [named("s/test 1", "s/a"), started]);
    assert_eq!(parser.current().as_deref(), Some("s/a"));
    assert!(
        matches!(parser.line("    ok 1 a", 1.0).as_slice(), [Event::Ended(case)] if case.path == path(&["s", "a"]))
    );
    let last = parser.line("    ok 2 b", 1.0);
    assert!(matches!(last.as_slice(), [name, Event::Ended(_)] if *name == named("s/test 2", "s/b")), "{last:?}");
    assert_eq!(parser.current().as_deref(), Some("s"));
    assert!(!parser.is_complete());
    assert_eq!(parser.line("ok 1 s", 1.0), []);
    assert!(parser.is_complete());
    assert_eq!(parser.current(), None);
}

#[test]
fn results_without_a_plan_may_be_too_few() {
    for how in [End::Whole, End::Died] {
        let ktap = read("KTAP version 1\nok 1 a\n", how);
        assert_eq!((cases(&ktap), ktap.problems.len()), (vec!["a pass".to_owned()], 1), "{ktap:?}");
        assert!(ktap.problems[0].contains("no plan"), "{ktap:?}");
    }
    assert!(read("KTAP version 1\n1..1\nok 1 a\n", End::Whole).problems.is_empty());
}

#[test]
fn what_was_guessed_is_named_later() {
    let mut parser = Parser::new();
    let text = "KTAP version 1\n1..1\n  KTAP version 1\n  1..1\n  # guess: of a program\n  ok 1 case\nok 1 suite\n";
    let events: Vec<_> = text.lines().flat_map(|line| parser.line(line, 0.0)).collect();
    let names = events.iter().filter_map(|event| match event {
        Event::Named { from, to } => Some((from.as_str(), to.as_str())),
        _ => None,
    });
    let expected = [("test 1/test 1", "test 1/guess"), ("test 1/guess", "test 1/case"), ("test 1", "suite")];
    assert_eq!(names.collect::<Vec<_>>(), expected);
}

#[test]
fn what_is_under_way_at_the_end_dies_with_it() {
    let text = log("the end is missing");
    let died = read(text, End::Died);
    let expected =
        ["first/a pass", "second/a pass", "second/b crash", "second/test 3 crash", "test 3 crash", "test 4 crash"];
    assert_eq!(cases(&died), expected);
    assert!(died.cases[2].log.contains("NULL pointer") && died.cases[3].log.is_empty(), "{died:?}");
    assert_eq!(died.cases[2].message.as_deref(), Some("the kernel died while it was under way"));
    let late = read(text, End::TimedOut);
    assert_eq!((cases(&late)[2].as_str(), late.status()), ("second/b timeout", Status::Timeout));
    // Without a plan nobody misses anything, but a suite or a case that has begun.
    let begun = "KTAP version 1\n  # Subtest: s\n  ok 1 a\n  # b: initializing\n";
    assert_eq!(cases(&read(begun, End::Died)), ["s/a pass", "s/b crash"]);
    assert_eq!(cases(&read(begun, End::Whole)), ["s/a pass"]);
    assert_eq!(cases(&read("TAP version 13\nok 1 a\nsomething\n", End::TimedOut)), ["a pass"]);
    let selftest = "TAP version 13\n1..2\n# selftests: x: y\n# a: b\n";
    assert_eq!(cases(&read(selftest, End::TimedOut)), ["selftests: x: y timeout", "test 2 timeout"]);
}

#[test]
fn what_is_wrong_is_said() {
    let problems = |name| read(log(name), End::Whole).problems;
    assert_eq!(
        problems("wrong numbers"),
        ["b has number 1 where 2 was expected", "c has number 7 where 3 was expected"]
    );
    assert_eq!(problems("a result too few"), ["s: 2 of 3 planned results are missing"]);
    assert_eq!(problems("a suite without an end")[0], "s: its own result is missing");
    let suite = "KTAP version 1\n1..1\n  # Subtest: s\n  1..1\n  ok 1 a\nnot ok 1 s\n";
    let ktap = read(suite, End::Whole);
    assert_eq!((cases(&ktap).as_slice(), ktap.status()), (&["s/a pass".to_owned()][..], Status::Fail));
    assert_eq!(ktap.problems, ["s failed, though none of its cases did"]);
    assert_eq!(read("KTAP version 9\n1..0\n", End::Whole).problems[0], "KTAP version 9: not a version that is known");
    let error = read("kunit executor: error in filter_glob\n", End::Whole);
    assert_eq!((error.found, error.problems.as_slice()), (false, &["KUnit says: error in filter_glob".to_owned()][..]));
    assert_eq!(read("TAP version 13\n1..0 # SKIP no root\n", End::Whole).status(), Status::Skip);
    assert_eq!(read("TAP version 13\n1..0\n", End::Whole).status(), Status::Fail);
}

#[test]
fn results_of_two_sources_do_not_mix() {
    let text = "\
[    1.000000] KTAP version 1
[    1.000000] 1..2
TAP version 13
1..3
[    1.000000]     # Subtest: kernel
[    1.000000]     1..2
ok 1 first
[    1.000000]     ok 1 a
ok 2 second
[    1.000000] a word of the kernel
not ok 3 third
[    1.000000]     ok 2 b
[    1.000000] ok 1 kernel
[    1.000000] ok 2 last
";
    let expected = ["first pass", "kernel/a pass", "second pass", "third fail", "kernel/b pass", "last pass"];
    let ktap = read(text, End::Whole);
    assert_eq!(cases(&ktap), expected);
    assert!(ktap.problems.is_empty(), "{ktap:?}");
    let threads = "\
[    1.000000][  T100] KTAP version 1
[    1.000000][  T100] 1..2
[    1.000000][  T200] KTAP version 1
[    1.000000][  T200] 1..1
[    1.000000][  T100] ok 1 a
[    1.000000][  T200] ok 1 x
[    1.000000][  T100] ok 2 b
";
    assert_eq!(cases(&read(threads, End::Whole)), ["a pass", "x pass", "b pass"]);
}

#[test]
fn documents_follow_one_another_and_plans_may_come_last() {
    let planned = "KTAP version 1\n1..1\nok 1 a\nother words\nKTAP version 1\n1..2\nok 1 b\n";
    assert_eq!(cases(&read(planned, End::Whole)), ["a pass", "b pass", "test 2 crash"]);
    let open = "KTAP version 1\nok 1 a\nKTAP version 1\n1..1\nok 1 b\n";
    assert_eq!(cases(&read(open, End::Whole)), ["a pass", "b pass"]);
    let last = read("TAP version 13\nok 1 a\nok 2 # SKIP no device\n1..3\n", End::Whole);
    assert_eq!(cases(&last), ["a pass", "no device skip", "test 3 crash"]);
    assert_eq!(cases(&read("KTAP version 1\n1..2\nok 1 a\n1..7\nok 2 b\n", End::Whole)), ["a pass", "b pass"]);
}

#[test]
fn a_guest_that_prints_forever_is_bounded() {
    let ktap = read("KTAP version 1\n1..18446744073709551615\nok 1 a\n", End::Died);
    assert_eq!((ktap.cases.len(), ktap.status()), (CASE_LIMIT, Status::Crash));
    assert!(ktap.problems.last().unwrap().contains("more cases"), "{:?}", ktap.problems);
    let deep: String = (0..1000).map(|_| "# Subtest: s\n1..1\n").collect();
    let ktap = read(&format!("KTAP version 1\n{deep}"), End::Whole);
    assert!(ktap.cases.iter().all(|case| case.path.len() < 40), "{:?}", cases(&ktap));
    let mut parser = Parser::new();
    parser.line("KTAP version 1", 0.0);
    let words = "x".repeat(10_000);
    for _ in 0..10_000 {
        parser.line(&words, 0.0);
        parser.line(&format!("not ok 1 {words}"), 0.0);
    }
    let ktap = parser.finish(End::Whole);
    let size: usize = ktap.cases.iter().map(|case| case.log.len() + case.name().len()).sum();
    assert!(size < 64 << 20 && ktap.cases.len() == 10_000, "{size}");
    assert!(ktap.problems.len() < 200 && ktap.problems.iter().all(|problem| problem.len() <= 500));
}

fn outcome(tests: Vec<TestResult>) -> Outcome {
    Outcome { version: "1", began: 0, seconds: 1.0, tests, not_run: vec!["k2/m/later".into()] }
}

fn test(id: &str, status: Status, cases: &[(&str, Status)]) -> TestResult {
    let parts: Vec<_> = id.split('/').collect();
    let case = |&(name, status): &(&str, Status)| Case {
        path: vec!["suite".into(), name.into()],
        status,
        message: (!status.is_good()).then(|| "Kernel panic - not syncing: VFS: # SKIP no root".into()),
        seconds: None,
        log: "Subtest: x\nok 1 y\nreboot: System halted".into(),
    };
    TestResult {
        id: id.into(),
        kernel: parts[0].into(),
        machine: parts[1].into(),
        test: parts[2].split('#').next().unwrap_or_default().into(),
        status,
        reason: (!status.is_good()).then(|| "a reason".into()),
        cases: cases.iter().map(case).collect(),
        splats: vec![],
        verdict: None,
        attempt: 1,
        start: 0.0,
        seconds: 1.0,
        stages: None,
        engine: None,
        release: None,
        notes: Vec::new(),
        tail: "last words".into(),
        artifacts: None,
        reproduce: String::new(),
    }
}

/// A document with everything that could be misunderstood.
fn written() -> String {
    use Status::{Crash, Error, Fail, Pass, Skip, Timeout, Xfail};
    document(&outcome(vec![
        test("k1/m/kunit", Fail, &[("a #1", Pass), ("b", Fail), ("c", Skip), ("d", Xfail), ("e", Timeout)]),
        test("k1/m/splat", Fail, &[("a", Pass)]),
        test("k2/m/m", Pass, &[]),
        test("k2/m/suite/x", Pass, &[("x", Pass)]),
        test("k1/m2/boot#2", Crash, &[]),
        test("k1/m2/net", Error, &[]),
    ]))
}

#[test]
fn what_is_written_can_be_read() {
    let text = written();
    let ktap = read(&text, End::Whole);
    let expected = [
        "k1/m/kunit/suite/a -1 pass",
        "k1/m/kunit/suite/b fail",
        "k1/m/kunit/suite/c skip",
        "k1/m/kunit/suite/d xfail",
        "k1/m/kunit/suite/e timeout",
        "k1/m/splat/suite/a pass",
        "k1/m/splat/the test as a whole fail",
        "k1/m2/boot run 2 fail",
        "k1/m2/net fail",
        "k2/m/m pass",
        "k2/m/suite/suite/x pass",
        "k2-m-later skip",
    ];
    let expected = expected.map(|name| name.replace("k2-m-later", "k2/m/later"));
    assert_eq!(cases(&ktap), expected, "{text}");
    assert!(ktap.problems.is_empty(), "{:?}\n{text}", ktap.problems);
    assert_eq!(ktap.cases[8].message.as_deref(), Some("ERROR a reason"));
    assert!(text.starts_with("KTAP version 1\n1..3\n  KTAP version 1\n  # Subtest: k1\n  1..2\n"), "{text}");
}

fn any_line() -> impl Strategy<Value = String> {
    let text = prop::sample::select(vec![
        "KTAP version 1",
        "TAP version 14",
        "# Subtest: s",
        "1..2",
        "ok 1 a",
        "ok 1 s",
        "not ok 2 b # TIMEOUT",
        "ok 3 # SKIP c",
        "# a: initializing",
        "noise",
    ]);
    let prefix = prop::sample::select(vec!["", "    ", "[    1.000000] ", "[    1.000000][   T1]     ", "<6>"]);
    (prefix, text).prop_map(|(prefix, text)| format!("{prefix}{text}"))
}

proptest! {
    #[test]
    fn pieces_do_not_matter(lines in prop::collection::vec(any_line(), 0..60), size in 1usize..40) {
        let text = lines.join("\r\n");
        let (mut parser, mut split) = (Parser::new(), Lines::default());
        for piece in text.as_bytes().chunks(size) {
            split.add(piece, |line| drop(parser.line(line, 0.0)));
        }
        split.finish(|line| drop(parser.line(line, 0.0)));
        let mut whole = Parser::new();
        let mut ended = 0;
        for line in text.lines() {
            ended += whole.line(line, 0.0).iter().filter(|event| matches!(event, Event::Ended(_))).count();
        }
        let whole = whole.finish(End::Died);
        prop_assert!(ended <= whole.cases.len());
        prop_assert_eq!(parser.finish(End::Died), whole);
    }
}
