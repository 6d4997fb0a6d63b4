//! Totals of logs in all forms, and whether the kernel's own reader comes to the same.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{cases, read};
use crate::runner::ktap::End;
use crate::runner::outcome::{Counts, Status};

/// A log, and how many cases pass, fail, crash and are skipped, as `kunit.py parse` of Linux 6.12 counts them.
type Log = (&'static str, &'static str, [u64; 4]);

pub(super) const LOGS: &[Log] = &[
    ("kunit", KUNIT, [4, 1, 0, 1]),
    ("four blanks", FOUR_BLANKS, [3, 0, 0, 1]),
    ("callers", CALLERS, [2, 0, 0, 0]),
    ("kselftest", KSELFTEST, [1, 2, 0, 1]),
    ("no names of suites", NAMELESS, [4, 1, 0, 1]),
    ("the end is missing", TRUNCATED, [2, 0, 4, 0]),
    ("no plan", "KTAP version 1\n    # Subtest: s\n    ok 1 a\n    not ok 2 b\nnot ok 1 s\n", [1, 1, 0, 0]),
    ("wrong numbers", "KTAP version 1\n1..3\nok 1 a\nok 1 b\nok 7 c\n", [3, 0, 0, 0]),
    ("a result too few", "KTAP version 1\n1..1\n  # Subtest: s\n  1..3\n  ok 1 a\nok 1 s\n", [1, 0, 2, 0]),
    ("a result too many", "KTAP version 1\n1..2\n  # Subtest: s\n  1..1\n  ok 1 a\n  ok 2 b\nok 1 s\n", [2, 0, 0, 0]),
    ("a suite without an end", "KTAP version 1\n1..2\n  # Subtest: s\n  1..1\n  ok 1 a\nok 2 t\n", [2, 0, 0, 0]),
    ("empty suites", EMPTY_SUITES, [1, 1, 0, 1]),
    ("nothing", "boots\nok 1 with no version\n1..2\n", [0, 0, 0, 0]),
    ("no tests", "TAP version 14\n1..0\n", [0, 0, 0, 0]),
    ("another prefix", "x\n12:01 | KTAP version 1\n12:01 | 1..2\n12:02 | ok 1 a\n12:02 | not ok 2 b\n", [1, 1, 0, 0]),
    ("no results", "KTAP version 1\n1..2\nok 1 a#b\nok two\n# ok 1 c\n", [0, 0, 2, 0]),
];

const KUNIT: &str = "\
[    0.100000] Linux version 6.12
[    0.200000] KTAP version 1
[    0.200000] 1..2
[    0.200000]     KTAP version 1
[    0.200000]     # Subtest: sums
[    0.200000]     # module: sums_test
[    0.200000]     1..3
[    0.250000]     # add: initializing
[    0.250000]     # add: EXPECTATION FAILED at lib/sums-test.c:7
[    0.250000]     Expected 1 + 1 == 3, but
[    0.250000]         1 + 1 == 2 (0x2)
[    0.300000]     not ok 1 add
[    0.300000] clocksource: Switched to clocksource tsc
[    0.400000]     ok 2 take
[    0.400000]         KTAP version 1
[    0.400000]         # Subtest: many
[    0.400000]     # many: initializing
[    0.500000]         ok 1 value 1
[    0.500000]         ok 2 value 2 # SKIP too large
[    0.500000]     # many: pass:1 fail:0 skip:1 total:2
[    0.500000]     ok 3 many
[    0.500000] # sums: pass:2 fail:1 skip:0 total:3
[    0.500000] # Totals: pass:2 fail:1 skip:1 total:4
[    0.500000] not ok 1 sums
[    0.500000]     KTAP version 1
[    0.500000]     # Subtest: words
[    0.500000]     1..2
[    0.600000]     ok 1 find
[    0.600000]     # find_slow.speed: slow
[    0.700000]     ok 2 find_slow
[    0.700000] ok 2 words
[    0.800000] reboot: System halted
";

const FOUR_BLANKS: &str = "\
TAP version 14
1..2
    # Subtest: old-one
    1..2
    ok 1 - a
    # b: initializing
    ok 2 - b # SKIP not here
ok 1 - old-one
\t# Subtest: old-two
\t1..2
random: crng init done
\tok 1 - a
\tok 2 - b
kunit old-two: all tests passed
ok 2 - old-two
";

const CALLERS: &str = "\
[    0.100000][    T0] Linux version 6.12
[    0.200000][    T1] KTAP version 1
[    0.200000][    T1] 1..1
[    0.200000][    T1]     KTAP version 1
[    0.200000][    T1]     # Subtest: s
[    0.200000][    T1]     1..2
[    0.250000][   T17]     # a: initializing
[    0.250000][    C0] watchdog: something
[    0.300000][    T1]     ok 1 a
[    0.300000][    T1]     ok 2 b
[    0.300000][    T1] ok 1 s
";

const KSELFTEST: &str = "\
TAP version 13
1..4
# timeout set to 45
# selftests: timers: posix_timers
# TAP version 13
# 1..2
# ok 1 inner one
# not ok 2 inner two
ok 1 selftests: timers: posix_timers
# selftests: timers: rtcpie
not ok 2 selftests: timers: rtcpie # TIMEOUT 45 seconds
# selftests: timers: mqueue-lat
not ok 3 selftests: timers: mqueue-lat # exit=1
# selftests: timers: set-tz
ok 4 selftests: timers: set-tz # SKIP
";

const NAMELESS: &str = "\
KTAP version 1
1..3
  KTAP version 1
  1..2
    KTAP version 1
    1..1
    # one: started
    ok 1 one
  ok 1 inner
  ok 2 two
ok 1 outer
  KTAP version 1
  1..2
  not ok 1 three # ERROR no memory
  ok 2 four # SKIP no device
not ok 2 second
  KTAP version 1
  1..2
  ok 1 five
  ok 2 six # rcode=0
ok 3 third
";

const TRUNCATED: &str = "\
KTAP version 1
1..4
    KTAP version 1
    # Subtest: first
    1..1
    ok 1 a
ok 1 first
    KTAP version 1
    # Subtest: second
    1..3
    ok 1 a
    # b: initializing
BUG: kernel NULL pointer dereference, address: 0000000000000000
Kernel panic - not syncing: Fatal exception
";

const EMPTY_SUITES: &str = "\
KTAP version 1
1..4
    KTAP version 1
    # Subtest: faults
    # module:
    1..0
ok 1 faults # SKIP
    # Subtest: broken
    1..0
not ok 2 broken
    # Subtest: none
    1..0
ok 3 none
    # Subtest: outer
    1..1
        # Subtest: inner
        1..0
    ok 1 inner
ok 4 outer
";

/// As the kernel's reader counts: it has no other statuses.
fn totals(text: &str) -> [u64; 4] {
    let counts: Counts = read(text, End::Whole).cases.iter().map(|case| case.status).collect();
    [counts.pass + counts.xfail, counts.fail + counts.timeout, counts.crash, counts.skip]
}

#[test]
fn logs_of_all_forms_are_counted() {
    for (name, text, expected) in LOGS {
        assert_eq!(totals(text), *expected, "{name}: {:#?}", cases(&read(text, End::Whole)));
    }
    assert_eq!(read(KUNIT, End::Whole).status(), Status::Fail);
    assert_eq!(read(FOUR_BLANKS, End::Whole).status(), Status::Pass);
    assert_eq!(read(KSELFTEST, End::Whole).status(), Status::Timeout);
    assert_eq!(read(TRUNCATED, End::Whole).status(), Status::Crash);
}

/// Lines of the kernel's totals, for files that are named on standard input.
const KUNIT_PY: &str = "
import kunit_parser, sys
told = print
kunit_parser.stdout.print_with_timestamp = lambda text: None
for name in sys.stdin.read().splitlines():
    counts = kunit_parser.parse_run_tests(open(name)).counts
    told(counts.passed, counts.failed, counts.crashed, counts.skipped)
";

/// Totals by the kernel's own reader, in `tool`, of files.
fn by_kunit_py(tool: &Path, files: &[PathBuf]) -> Vec<[u64; 4]> {
    let mut python = Command::new("python3");
    let python = python.args(["-B", "-c", KUNIT_PY]).env("PYTHONPATH", tool);
    let mut child = python.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
    let names: String = files.iter().map(|file| format!("{}\n", file.display())).collect();
    child.stdin.take().unwrap().write_all(names.as_bytes()).unwrap();
    let told = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    let numbers = |line: &str| -> Vec<u64> { line.split(' ').map(|number| number.parse().unwrap()).collect() };
    told.lines().map(|line| numbers(line).try_into().unwrap()).collect()
}

#[test]
fn the_kernels_own_reader_counts_the_same() {
    let Some(tool) = std::env::var_os("BELLJAR_ASSET_TREE_TEST").map(PathBuf::from) else {
        return println!("\nSKIPPED: no asset tree-test: run scripts/test");
    };
    let tool = tool.join("tools/testing/kunit");
    let dir = tempfile::tempdir().unwrap();
    let mut files: Vec<_> = tool.join("test_data").read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|ending| ending == "log"));
    assert!(files.len() > 20, "{files:?}");
    let ours = LOGS.iter().map(|(_, text, _)| (*text).to_owned()).chain([super::written()]);
    for (number, text) in ours.enumerate() {
        let file = dir.path().join(format!("{number}.log"));
        std::fs::write(&file, text).unwrap();
        files.push(file);
    }
    let told = by_kunit_py(&tool, &files);
    assert_eq!(told.len(), files.len());
    for (file, expected) in files.iter().zip(told) {
        let text = String::from_utf8_lossy(&std::fs::read(file).unwrap()).into_owned();
        assert_eq!(totals(&text), expected, "{}", file.display());
    }
}
