//! An outcome with one of everything, for the tests of reports.

use std::path::PathBuf;

use crate::machine::verdict::Verdict;
use crate::run::Stages;
use crate::runner::outcome::{Action, Case, Outcome, Splat, SplatKind, Status, TestResult};

/// What a hostile guest prints: the language of each report, and of terminals.
pub(super) const HOSTILE: &str = "</pre></details><script>alert(1)</script>\" onload='x' &amp; ]]> \u{1b}[31mred\u{1b}]0;t\u{7}\u{0}\u{8}\u{fffe}\r\n\
                                  ::error file=a::b\n##[error]c\n::set-env name=A::b\nsection_start:1:evil\r\u{1b}[0Kx\n%0A::warning::d";

/// Two kernels, two machines; each status, splats, cases, timings and hostile text.
pub(super) fn outcome() -> Outcome {
    let mut tests = Vec::new();
    for (kernel, release) in [("6.12", "6.12.117-cloud-amd64"), ("mainline", "6.19.0-rc4-00123-gdeadbeef")] {
        for machine in ["cpus=1", "cpus=4"] {
            tests.push(TestResult { cases: passed_cases(), ..test(kernel, machine, "kselftest-timers", Status::Pass) });
            tests.push(TestResult { cases: passed_cases(), ..test(kernel, machine, "kselftest-futex", Status::Pass) });
            tests.push(TestResult { release: Some(release.into()), ..test(kernel, machine, "boot", Status::Pass) });
        }
    }
    tests.extend([failed(), crashed(), timed_out(), skipped(), expected(), infrastructure()]);
    tests.extend((1..=2).map(|number| TestResult {
        id: format!("mainline/cpus=1/stress#{number}"),
        ..test("mainline", "cpus=1", "stress", Status::Pass)
    }));
    tests.push(hostile());
    Outcome {
        version: "0.1.0",
        began: 1_795_392_000,
        seconds: 184.25,
        tests,
        not_run: vec!["mainline/cpus=4/mqueue".into(), "mainline/cpus=4/<b>".into()],
    }
}

/// A test that passed, or ended with another status, with all the rest of a usual run.
pub(super) fn test(kernel: &str, machine: &str, name: &str, status: Status) -> TestResult {
    TestResult {
        id: format!("{kernel}/{machine}/{name}"),
        kernel: kernel.into(),
        machine: machine.into(),
        test: name.into(),
        status,
        reason: None,
        cases: Vec::new(),
        splats: Vec::new(),
        verdict: Some(Verdict::Finished { status: u8::from(!status.is_good()) }),
        attempt: 1,
        start: 1.25,
        seconds: 4.5,
        stages: Some(Stages {
            first_instruction: Some(0.05),
            first_console_byte: Some(0.4),
            init: Some(1.1),
            command: Some(1.2),
            first_output: Some(1.3),
            command_end: Some(4.2),
            end: 4.5,
        }),
        engine: Some("soft".into()),
        release: None,
        notes: Vec::new(),
        tail: "[    1.100000] Run /init as init process\nTAP version 13\nok 1 all is well\n".into(),
        artifacts: Some(PathBuf::from(format!("artifacts/{kernel}/{machine}/{name}"))),
        reproduce: format!("belljar test --filter '{kernel}/{machine}/{name}'"),
    }
}

/// A case of `suite/name`.
pub(super) fn case(path: &[&str], status: Status, message: &str, log: &str) -> Case {
    Case {
        path: path.iter().map(|name| name.to_string()).collect(),
        status,
        message: (!message.is_empty()).then(|| message.to_string()),
        seconds: Some(0.125),
        log: log.into(),
    }
}

fn passed_cases() -> Vec<Case> {
    (1..=6).map(|number| case(&["timers", &format!("case_{number}")], Status::Pass, "", "")).collect()
}

fn failed() -> TestResult {
    let log = "    # add: EXPECTATION FAILED at lib/kunit/kunit-example-test.c:29\n    Expected 1 + 1 == 3, but\n        1 + 1 == 2 (0x2)\n";
    TestResult {
        reason: Some("1 of 4 cases failed".into()),
        verdict: Some(Verdict::PoweredOff),
        cases: vec![
            case(&["example", "simple"], Status::Pass, "", ""),
            case(&["example", "add"], Status::Fail, "", log),
            case(&["example", "skipped"], Status::Skip, "needs CONFIG_X", ""),
            case(&["example", "broken"], Status::Xfail, "known since 6.1", ""),
        ],
        tail: format!("[    0.912345] KTAP version 1\n{log}    not ok 2 add\nnot ok 1 example\n"),
        release: Some("6.12.117-cloud-amd64".into()),
        ..test("6.12", "cpus=1", "kunit", Status::Fail)
    }
}

fn crashed() -> TestResult {
    let trace = "BUG: KASAN: slab-use-after-free in uaf_write+0x5a/0x90 [planted]\nWrite of size 1 at addr ffff888004a3b208 by task insmod/71\nCall Trace:\n dump_stack_lvl+0x53/0x70 (lib/dump_stack.c:123)\n kasan_report+0xce/0x100 (mm/kasan/report.c:603)\n uaf_write+0x5a/0x90 [planted] (drivers/misc/planted.c:41)\n planted_init+0x12/0xff0 [planted] (drivers/misc/planted.c:77)\n";
    let splat = |kind, title: &str, action, lines, text: &str| Splat {
        kind,
        title: title.into(),
        action,
        case: Some("planted/uaf".into()),
        lines,
        text: text.into(),
    };
    TestResult {
        reason: Some("Kernel panic - not syncing: Fatal exception".into()),
        verdict: Some(Verdict::Panicked { message: Some("Fatal exception".into()) }),
        cases: vec![
            case(&["planted", "first"], Status::Pass, "", ""),
            case(&["planted", "uaf"], Status::Crash, "the kernel died", ""),
        ],
        splats: vec![
            splat(SplatKind::Kasan, "KASAN: slab-use-after-free in uaf_write", Action::Fail, (812, 861), trace),
            splat(
                SplatKind::Warning,
                "WARNING in hrtimer_forward",
                Action::Warn,
                (870, 884),
                "WARNING: CPU: 0 PID: 71 at kernel/time/hrtimer.c:1027 hrtimer_forward+0xaa/0xc0\n",
            ),
            splat(
                SplatKind::Panic,
                "Kernel panic: Fatal exception",
                Action::Fail,
                (890, 893),
                "Kernel panic - not syncing: Fatal exception\n",
            ),
        ],
        stages: Some(Stages { command_end: None, ..test("", "", "", Status::Pass).stages.unwrap_or_default() }),
        tail: format!(
            "{trace}Kernel panic - not syncing: Fatal exception\n---[ end Kernel panic - not syncing: Fatal exception ]---\n"
        ),
        ..test("mainline", "cpus=4", "planted", Status::Crash)
    }
}

fn timed_out() -> TestResult {
    TestResult {
        reason: Some("time limit reached: the guest printed nothing for 30 s".into()),
        verdict: Some(Verdict::Silent { seconds: 30 }),
        cases: vec![case(&["mqueue", "hangs"], Status::Timeout, "did not end", "")],
        seconds: 31.0,
        ..test("6.12", "cpus=4", "mqueue", Status::Timeout)
    }
}

fn skipped() -> TestResult {
    let reason = Some("the machine has no second CPU".into());
    TestResult { reason, ..test("6.12", "cpus=1", "hotplug", Status::Skip) }
}

fn expected() -> TestResult {
    TestResult { reason: Some("expected: known bug".into()), ..test("6.12", "cpus=1", "rseq", Status::Xfail) }
}

fn infrastructure() -> TestResult {
    TestResult {
        reason: Some("Cannot open the root: No such file or directory; give its path with root".into()),
        verdict: None,
        stages: None,
        engine: None,
        artifacts: None,
        attempt: 3,
        tail: String::new(),
        ..test("mainline", "cpus=1", "wrong-root", Status::Error)
    }
}

fn hostile() -> TestResult {
    let splat = Splat {
        kind: SplatKind::Bug,
        title: format!("BUG: {HOSTILE}"),
        action: Action::Fail,
        case: Some(HOSTILE.into()),
        lines: (1, 2),
        text: HOSTILE.into(),
    };
    TestResult {
        reason: Some(format!("printed {HOSTILE}")),
        release: Some(HOSTILE.into()),
        cases: vec![
            case(&[HOSTILE, "", "a.b/c d"], Status::Fail, HOSTILE, HOSTILE),
            case(&[HOSTILE], Status::Pass, "", ""),
        ],
        splats: vec![splat],
        tail: format!("{HOSTILE}\n").repeat(4),
        reproduce: HOSTILE.into(),
        ..test("mainline", "cpus=4", "hostile", Status::Fail)
    }
}
