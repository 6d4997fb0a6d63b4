//! docs/test.md: `belljar test` with real guests: what comes of tests, and what is told of it.

mod common;

use common::pty::{self, OnTerminal};
use common::verb::{Bench, OF_QEMU, test};
use rustix::process::{Pid, Signal};

/// Returns from the test if there is nothing to run it on.
macro_rules! bench {
    ($kernel:expr) => {
        match Bench::new($kernel) {
            Some(bench) => bench,
            None => return,
        }
    };
}

#[test]
fn a_command_is_a_test() {
    let bench = bench!("tree-small");
    let known = ["--ignore-splat", OF_QEMU];
    let passed = bench.on_kernel(&[&known[..], &["--", "sh", "-c", "echo fine"]].concat());
    passed.code(0);
    assert!(passed.errors.contains("pass") && passed.errors.contains("1 test: 1 passed"), "{passed}");
    assert_eq!(passed.console, "", "standard output is for KTAP");
    let script = "echo said; echo more >&2; exit 3";
    let failed = bench.on_kernel(&[&known[..], &["--artifacts", "kept", "--", "sh", "-c", script]].concat());
    failed.code(1);
    for text in ["status 3", "| said", "| more", "kept in: kept/sh", "repeat: "] {
        assert!(failed.errors.contains(text), "no `{text}`: {failed}");
    }
    // Which comes first is nobody's business: they are two streams.
    let mut kept: Vec<_> = bench.read("kept/sh/output.log").lines().map(str::to_string).collect();
    kept.sort();
    assert_eq!(kept, ["more", "said"]);
    assert!(bench.read("kept/sh/console.log").contains("Linux version"));
    assert!(bench.read("kept/sh/run.toml").contains("command = "));
    let again = bench.repeat("kept/sh");
    again.code(1);
    assert!(again.errors.contains("status 3") && again.errors.contains("| said\n"), "{again}");
}

#[test]
fn every_end_has_its_status_and_code() {
    let bench = bench!("tree-small");
    let suite = r#"
[defaults]
kernel = "KERNEL"
timeout = 60
[[test]]
name = "crash"
command = "echo c >/proc/sysrq-trigger; sleep 60"
[[test]]
name = "hang"
command = ["sleep", "1000"]
timeout = 4
[[test]]
name = "silent"
command = ["sleep", "1000"]
idle-timeout = 2
[[test]]
name = "gone"
command = "echo o >/proc/sysrq-trigger; sleep 60"
[[test]]
name = "killed"
command = "kill -9 $$"
[[test]]
name = "no-such"
command = ["/no/such/program"]
[[test]]
name = "no-root"
root = "/no/such/root"
command = ["true"]
[[test]]
name = "cases"
command = "printf 'KTAP version 1\n1..3\nok 1 a\nnot ok 2 b\nok 3 c # SKIP no device\n'"
[[test]]
name = "known"
command = "printf 'KTAP version 1\n1..2\nok 1 a\nnot ok 2 b\n'"
expected-failures = ["b"]
[[test]]
name = "short"
command = "printf 'KTAP version 1\n1..3\nok 1 a\n'"
[[test]]
name = "no-plan"
command = "printf 'KTAP version 1\nok 1 a\n'"
[[test]]
name = "as-expected"
command = "exit 4"
expect = { status = 4 }
[[test]]
name = "crash-expected"
command = "echo c >/proc/sysrq-trigger; sleep 60"
expect = "crash"
[[test]]
name = "skipped"
command = "echo 'KTAP version 1'; echo '1..0 # SKIP nothing here'"
"#;
    let (outcome, report) = bench.suite(suite, &["--jobs", "2"]);
    outcome.code(3);
    for (id, status, reason) in [
        ("crash", "crash", "sysrq triggered crash"),
        ("hang", "timeout", "time limit"),
        ("silent", "timeout", "printed nothing for 2 s"),
        ("gone", "crash", "before its command ended"),
        ("killed", "fail", "signal 9"),
        ("no-such", "error", "/no/such/program"),
        ("no-root", "error", "/no/such/root"),
        ("cases", "fail", "1 of 3 cases: b"),
        ("known", "pass", ""),
        ("short", "crash", ""),
        ("no-plan", "pass", ""),
        ("as-expected", "pass", ""),
        ("crash-expected", "pass", ""),
    ] {
        let found = test(&report, id);
        assert_eq!(found["status"], status, "{id}: {found:#}");
        let said = found["reason"].as_str().unwrap_or_default();
        assert!(said.contains(reason), "{id}: `{said}` has no `{reason}`");
    }
    assert_ne!(test(&report, "skipped")["status"], "fail", "{report:#}");
    assert_eq!(report["exit_code"], 3);
    assert_eq!(report["tests"].as_array().unwrap().len(), 14);
    let panic = &test(&report, "crash")["splats"][0];
    assert!(panic["kind"] == "panic" && panic["title"] == "kernel panic: sysrq triggered crash", "{panic:#}");
    // As the kernel's own reader has it: no failure, but something to say.
    assert!(test(&report, "no-plan")["notes"][0].as_str().unwrap().contains("no plan"));
    let cases = test(&report, "cases")["cases"].as_array().unwrap().clone();
    let statuses: Vec<_> = cases.iter().map(|case| case["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["pass", "fail", "skip"]);
}

#[test]
fn exit_codes_tell_what_was_worst() {
    let bench = bench!("tree-small");
    bench.on_kernel(&["--", "false"]).code(1);
    bench.on_kernel(&["--", "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 9"]).code(3);
    bench.run(&["--kernel", bench.kernel(), "--timeout", "3", "--", "sleep", "100"]).code(4);
    bench.on_kernel(&["--root", "/no/such/root", "--", "true"]).code(125);
    bench.run(&["--kernel", "/no/such/kernel", "--", "true"]).code(125);
    // Kernels that never get as far as their first test: one finds no init, one is too slow.
    bench.on_kernel(&["--append", "rdinit=/no/such/init", "--", "true"]).code(3);
    bench.on_kernel(&["--cpu-quota", "1%", "--boot-timeout", "1", "--", "true"]).code(4);
    for (words, code) in [(&["true"][..], 0), (&["false"], 1), (&["/no/such/program"], 125)] {
        bench.on_kernel(&[&["--bisect", "--"], words].concat()).code(code);
    }
    bench.run(&["--bisect", "--kernel", "/no/such/kernel", "--", "true"]).code(125);
    bench.run(&["--bisect", "--no-such-flag"]).code(125);
    bench.run(&["--no-such-flag"]).code(2);
}

#[test]
fn kunit_needs_no_user_space_and_counts_as_the_kernels_own_reader() {
    let bench = bench!("tree-small");
    let outcome = bench.on_kernel(&["--kunit", "--json", "result.json", "--artifacts", "kept", "--ktap"]);
    outcome.code(0);
    let report: serde_json::Value = serde_json::from_str(&bench.read("result.json")).unwrap();
    let counts = &report["case_counts"];
    assert!(counts["pass"].as_u64().unwrap() > 100 && counts["fail"] == 0, "{counts}");
    bench.write("ours.ktap", &outcome.console);
    let Some(tool) = common::asset("tree-test").map(|tree| tree.join("tools/testing/kunit/kunit.py")) else { return };
    let parse = |file: &str| {
        let mut python = std::process::Command::new("python3");
        let output = python.arg("-B").arg(&tool).arg("parse").arg(bench.path(file)).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().rev().find(|line| line.contains("Testing complete.")).expect("a line of totals");
        line.split_once("Testing complete.").unwrap().1.trim().to_string()
    };
    let expected = format!(
        "Ran {} tests: passed: {}, skipped: {}",
        counts["pass"].as_u64().unwrap() + counts["skip"].as_u64().unwrap(),
        counts["pass"],
        counts["skip"]
    );
    assert_eq!(parse("kept/kunit/console.log"), expected);
    assert_eq!(parse("ours.ktap"), expected);
    let filtered = bench.on_kernel(&["--kunit=example.example_simple_test"]);
    assert!(filtered.code(0).errors.contains("1 case: 1 passed"), "{filtered}");
    let nothing = bench.on_kernel(&["--kunit=no_such_suite"]);
    assert!(nothing.code(125).errors.contains("printed no results"), "{nothing}");
}

#[test]
fn reports_are_written_for_everybody() {
    let bench = bench!("tree-small");
    let mut command = bench.command(&[
        "--kernel",
        bench.kernel(),
        "--junit",
        "r.xml",
        "--html",
        "r.html",
        "--kcidb",
        "r.json",
        "--ktap",
        "--",
        "sh",
        "-c",
        "printf 'KTAP version 1\\n1..1\\nnot ok 1 <b>&\\n'; echo '::error::from the guest'",
    ]);
    command.env("GITHUB_ACTIONS", "true").env("GITHUB_STEP_SUMMARY", bench.path("summary.md"));
    let outcome = common::run::runs(command);
    outcome.code(1);
    let junit = bench.read("r.xml");
    assert!(junit.contains("<testsuite ") && junit.contains("&lt;b&gt;&amp;"), "{junit}");
    let page = bench.read("r.html");
    assert!(page.contains("<!doctype html>") || page.contains("<!DOCTYPE html>"), "{page}");
    assert!(!page.contains("<b>&"), "the guest's text stays text");
    let kcidb: serde_json::Value = serde_json::from_str(&bench.read("r.json")).unwrap();
    assert_eq!(kcidb["version"]["major"], 5);
    assert!(outcome.console.starts_with("KTAP version 1\n"), "{outcome}");
    assert!(outcome.errors.contains("::stop-commands::") && outcome.errors.contains("\n::error "), "{outcome}");
    assert!(bench.read("summary.md").contains('|'));
}

#[test]
fn files_say_what_is_wrong_where() {
    let bench = bench!("tree-small");
    let wrong = |text: &str| {
        bench.write("belljar.toml", text);
        let outcome = bench.run(&[]);
        outcome.code(2);
        outcome.errors
    };
    let said = wrong("[[test]]\nname = \"x\"\ncomand = [\"true\"]\n");
    assert!(said.contains("belljar.toml:3:1: unknown key `comand`") && said.contains("`command`"), "{said}");
    assert!(wrong("[[test]\n").contains("belljar.toml:1:"));
    assert!(wrong("[[test]]\nname = \"x\"\nkunit = true\ncpus = \"many\"\n").contains("belljar.toml:4:"));
    std::fs::remove_file(bench.path("belljar.toml")).unwrap();
    let none = bench.run(&[]);
    assert!(none.code(2).errors.contains("belljar.toml: there is no such file"), "{none}");
}

#[test]
fn parts_of_a_suite_run_and_run_again() {
    let bench = bench!("tree-small");
    let suite = r#"
[defaults]
timeout = 60
[[kernel]]
name = "one"
kernel = "KERNEL"
[[kernel]]
name = "two"
kernel = "KERNEL"
append = "debug"
[[machine]]
cpus = 1
[[machine]]
cpus = 2
[[test]]
name = "good"
command = "test $(nproc) -ge 1"
[[test]]
name = "bad"
command = "cat /proc/cmdline; test $(nproc) -gt 1"
artifacts = ["/etc/hostname"]
"#;
    let (outcome, report) = bench.suite(suite, &["--jobs", "2", "--artifacts", "kept"]);
    outcome.code(1);
    let bad: Vec<_> = report["tests"].as_array().unwrap().iter().filter(|test| test["status"] != "pass").collect();
    let ids: Vec<_> = bad.iter().map(|test| test["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["one/1cpu/bad", "two/1cpu/bad"], "{report:#}");
    assert!(bench.path("kept/one/2cpus/bad/artifacts/hostname").exists());
    let list = |words: &[&str]| bench.run(&[&["--list"], words].concat()).console;
    assert_eq!(list(&[]).lines().count(), 8);
    assert_eq!(list(&["--rerun-failed", "result.json"]), "one/1cpu/bad\ntwo/1cpu/bad\n");
    assert_eq!(list(&["--filter", "two/*", "--filter", "!bad"]), "two/1cpu/good\ntwo/2cpus/good\n");
    let parts = [list(&["--shard", "1/3"]), list(&["--shard", "2/3"]), list(&["--shard", "3/3"])].concat();
    assert_eq!(parts.lines().collect::<std::collections::BTreeSet<_>>().len(), 8);
    let words = "said=\"it's  $HOME\"";
    let flags = ["--fail-fast", "--jobs", "1", "--filter", "one/1cpu", "--repeat", "2", "--artifacts", "again"];
    let (outcome, report) = bench.suite(suite, &[&flags[..], &["--append", words]].concat());
    outcome.code(1);
    assert_eq!(report["tests"].as_array().unwrap().len() + report["not_run"].as_array().unwrap().len(), 4);
    assert_eq!(report["tests"].as_array().unwrap().len(), 2, "{report:#}");
    // Alone, and with what was said beside the file.
    let alone = bench.repeat("again/one/1cpu/bad#1");
    alone.code(1);
    assert!(alone.errors.contains("1 test: 1 failed") && alone.errors.contains(words), "{alone}");
}

#[test]
fn git_bisect_finds_the_commit() {
    let bench = bench!("tree-small");
    let dir = bench.path("history");
    std::fs::create_dir(&dir).unwrap();
    let belljar = common::belljar();
    let script = format!(
        "set -e; git init -q .; git config user.email a@b; git config user.name n\n\
         for n in 1 2 3 4 5 6; do\n\
           if [ $n -ge 4 ]; then echo 'exit 1' >repro; else echo 'exit 0' >repro; fi\n\
           echo $n >number; git add .; git commit -qm \"change $n\"; done\n\
         git bisect start HEAD HEAD~5\n\
         git bisect run {} test --engine {} --bisect -k {} -v $PWD:/mnt:ro -- sh /mnt/repro\n\
         git show -s --format=%s refs/bisect/bad",
        belljar.display(),
        common::engine().unwrap(),
        bench.kernel()
    );
    let output = std::process::Command::new("sh").args(["-c", &script]).current_dir(&dir).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success() && text.contains("\nchange 4\n"), "{text}");
}

/// What a test with planted faults came to: its status, and one complaint of each kind with a title that begins so.
#[track_caller]
fn complains(report: &serde_json::Value, id: &str, status: &str, splats: &[(&str, &str)]) {
    let found = test(report, id);
    assert_eq!(found["status"], status, "{id}: {found:#}");
    let list = found["splats"].as_array().unwrap();
    for (kind, title) in splats {
        let is =
            |splat: &&serde_json::Value| splat["kind"] == *kind && splat["title"].as_str().unwrap().starts_with(title);
        assert_eq!(list.iter().filter(is).count(), 1, "{id}: {kind}, {title}: {list:#?}");
    }
}

/// A kernel that looks for faults, and a module that has them. What does not kill the kernel shares a machine.
#[test]
fn planted_faults_are_named() {
    let bench = bench!("tree-test");
    let suite = r#"
[defaults]
kernel = "KERNEL"
timeout = 100
volumes = ["KERNEL/planted:/mnt:ro"]
[[test]]
name = "goes-on"
memory = "256M"
append = "kasan_multi_shot kmemleak=on kmemleak.verbose=1"
command = """
for fault in rcu-use sleep-in-atomic lock-order warn shift use-after-free out-of-bounds double-free; do
    insmod /mnt/planted.ko fault=$fault
    rmmod planted
done
insmod /mnt/planted.ko fault=leak
# Younger than five seconds is not lost, nor is what an old pointer on some stack still finds: so it loses more.
until grep planted_leak /sys/kernel/debug/kmemleak; do
    rmmod planted
    insmod /mnt/planted.ko fault=leak
    sleep 1
    echo scan >/sys/kernel/debug/kmemleak
done
"""
[[test]]
name = "null"
command = "insmod /mnt/planted.ko fault=null"
[[test]]
name = "bug"
command = "insmod /mnt/planted.ko fault=bug"
"#;
    let (outcome, report) = bench.suite(suite, &["--jobs", "2"]);
    outcome.code(3);
    let going_on = [
        ("lockdep", "WARNING: suspicious RCU usage in planted_rcu_use"),
        ("lockdep", "BUG: sleeping function called from invalid context in planted_sleep_in_atomic"),
        ("lockdep", "possible deadlock in planted_lock_order"),
        ("warning", "WARNING in planted_warn"),
        ("ubsan", "UBSAN: shift-out-of-bounds in planted_shift"),
        ("kasan", "KASAN: slab-use-after-free Write in planted_use_after_free"),
        ("kasan", "KASAN: slab-out-of-bounds Write in planted_out_of_bounds"),
        ("kasan", "KASAN: double-free in planted_double_free"),
        ("taint", "tainted: B ("),
    ];
    complains(&report, "goes-on", "fail", &going_on);
    let null = "BUG: unable to handle kernel NULL pointer dereference in planted_null";
    complains(&report, "null", "crash", &[("oops", null)]);
    complains(&report, "bug", "crash", &[("bug", "kernel BUG in planted_bug")]);
    assert_eq!(test(&report, "bug")["reason"], "kernel BUG in planted_bug");
    let goes_on = test(&report, "goes-on");
    let list = goes_on["splats"].as_array().unwrap();
    // As many as were found; of which it can tell the function as long as the module is there.
    let leaks = list.iter().filter(|splat| splat["kind"] == "kmemleak" && splat["action"] == "fail");
    let titles: Vec<_> = leaks.map(|splat| splat["title"].as_str().unwrap()).collect();
    assert!(titles.contains(&"memory leak in planted_leak"), "{titles:?}");
    let trace = list.iter().find(|splat| splat["kind"] == "kasan").unwrap()["text"].as_str().unwrap();
    for place in ["planted.c:", "mm/kasan/report.c:"] {
        assert!(trace.contains(place), "no {place} in\n{trace}");
    }
    // Which module it was is no complaint.
    let taint = list.iter().find(|splat| splat["kind"] == "taint").unwrap();
    assert!(taint["action"] == "warn" && !taint["title"].as_str().unwrap().contains("module"), "{taint:#}");
    assert!(goes_on["notes"].to_string().contains("O (module from outside of the tree"), "{goes_on:#}");
}

/// The same for a kernel that does not get on.
#[test]
fn planted_stalls_are_named() {
    let bench = bench!("tree-test");
    let suite = r#"
[defaults]
kernel = "KERNEL"
timeout = 100
cpus = 2
append = "nmi_watchdog=1"
volumes = ["KERNEL/planted:/mnt:ro"]
[[test]]
name = "rcu-stall"
command = """
# Lock checking adds five seconds.
echo 3 >/sys/module/rcupdate/parameters/rcu_cpu_stall_timeout
insmod /mnt/planted.ko fault=rcu-stall seconds=12
"""
[[test]]
name = "lockups"
command = """
echo 2 >/proc/sys/kernel/hung_task_timeout_secs
insmod /mnt/planted.ko fault=hung-task seconds=8
rmmod planted
echo 1 >/proc/sys/kernel/watchdog_thresh
insmod /mnt/planted.ko fault=hard-lockup seconds=6
rmmod planted
insmod /mnt/planted.ko fault=soft-lockup seconds=6
"""
"#;
    let (outcome, report) = bench.suite(suite, &["--jobs", "2"]);
    outcome.code(1);
    complains(&report, "rcu-stall", "fail", &[("rcu-stall", "INFO: rcu detected stall in planted_")]);
    let lockups = [
        ("hung-task", "INFO: task hung in planted_"),
        ("hard-lockup", "hard lockup in planted_"),
        ("soft-lockup", "BUG: soft lockup in planted_soft_lockup"),
    ];
    complains(&report, "lockups", "fail", &lockups);
}

/// A suite of which one case kills the kernel, or never ends.
#[test]
fn a_suite_that_is_cut_short_has_a_case_to_blame() {
    let bench = bench!("tree-test");
    let suite = r#"
[defaults]
kernel = "KERNEL"
append = "kunit.enable=1 kunit.filter_glob=planted*"
volumes = ["KERNEL/planted:/mnt:ro"]
timeout = 120
[[test]]
name = "whole"
command = "insmod /mnt/planted_kunit.ko"
[[test]]
name = "oops"
command = "insmod /mnt/planted_kunit.ko fault=oops"
[[test]]
name = "hang"
command = "insmod /mnt/planted_kunit.ko fault=hang"
timeout = 40
"#;
    let (outcome, report) = bench.suite(suite, &["--jobs", "2"]);
    outcome.code(3);
    let statuses = |id: &str| -> Vec<(String, String)> {
        let cases = test(&report, id)["cases"].as_array().unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_string();
        cases.iter().map(|case| (text(&case["path"].as_array().unwrap()[1]), text(&case["status"]))).collect()
    };
    let of = |list: &[(String, String)], name: &str| list.iter().find(|(case, _)| case == name).map(|(_, s)| s.clone());
    let whole = statuses("whole");
    assert_eq!(
        (of(&whole, "passes").as_deref(), of(&whole, "fails").as_deref()),
        (Some("pass"), Some("fail")),
        "{whole:?}"
    );
    assert_eq!(
        (of(&whole, "skips").as_deref(), of(&whole, "faulty").as_deref()),
        (Some("skip"), Some("pass")),
        "{whole:?}"
    );
    assert_eq!(test(&report, "whole")["status"], "fail");
    for (id, status) in [("oops", "crash"), ("hang", "timeout")] {
        assert_eq!(test(&report, id)["status"], status, "{:#}", test(&report, id));
        let cases = statuses(id);
        assert!(cases.iter().any(|(_, of_case)| of_case == status), "{id}: {cases:?}");
        assert_eq!(of(&cases, "passes").as_deref(), Some("pass"), "{id}: {cases:?}");
    }
    // It never came to say its name; the kernel's last trace does.
    assert_eq!(of(&statuses("oops"), "faulty").as_deref(), Some("crash"));
    assert_eq!(test(&report, "oops")["splats"][0]["case"], "planted/faulty", "{report:#}");
}

#[test]
fn selftests_of_the_kernel_run_in_a_matrix() {
    let bench = bench!("tree-small");
    let (Some(tree), Some(cloud)) = (common::asset("tree-test"), common::asset("kernel-6.12-cloud")) else { return };
    let suite = r#"
[defaults]
timeout = 200
kselftest-dir = "TREE/kselftest"
[[kernel]]
name = "small"
kernel = "KERNEL"
expected-failures = ["selftests: mqueue: *"]     # it has no queues, for which the program has no word but failure
[[kernel]]
name = "debian"
kernel = "DEBIAN"
[[machine]]
cpus = 1
[[machine]]
cpus = 2
[[test]]
name = "self"
kselftest = ["size", "timers:nanosleep", "mqueue:mq_open_tests"]
[[test]]
name = "futex"
kselftest = "futex"
kernels = ["debian"]
machines = ["2cpus"]
"#;
    let suite = suite.replace("TREE", tree.to_str().unwrap()).replace("DEBIAN", cloud.to_str().unwrap());
    let (outcome, report) = bench.suite(&suite, &["--jobs", "2", "--junit", "r.xml"]);
    outcome.code(0);
    let tests = report["tests"].as_array().unwrap();
    assert_eq!(tests.len(), 13, "{report:#}");
    for (id, status) in [
        ("small/1cpu/self.size", "pass"),
        ("debian/2cpus/self.timers", "pass"),
        ("debian/1cpu/self.mqueue", "pass"),
        ("small/2cpus/self.mqueue", "xfail"),
        ("debian/2cpus/futex", "pass"),
    ] {
        let cases = test(&report, id)["cases"].as_array().unwrap();
        assert!(!cases.is_empty() && cases.iter().all(|case| case["status"] == status), "{id}: {cases:?}");
    }
    assert_eq!(bench.read("r.xml").matches("<testsuite ").count(), 4);
}

/// A terminal has a shell in the guest of each test that failed, whatever says so, and of no other.
#[test]
fn the_guest_of_a_failed_test_has_a_shell() {
    let bench = bench!("tree-small");
    let suite = r#"
[defaults]
kernel = "KERNEL"
timeout = 100
[[test]]
name = "by-status"
command = "echo by status >/tmp/mark; exit 3"
[[test]]
name = "by-case"
command = "echo by case >/tmp/mark; printf 'KTAP version 1\n1..1\nnot ok 1 planted\n'"
[[test]]
name = "good"
command = "true"
[[test]]
name = "as-expected"
command = "false"
expect = "fail"
"#;
    bench.write("belljar.toml", &suite.replace("KERNEL", bench.kernel()));
    let mut command = bench.command(&["--shell-on-fail", "--json", "result.json"]);
    command.env("TERM", "xterm");
    let mut session = OnTerminal::start(command, 33, 101);
    for (mark, size) in [("by status", [40, 120]), ("by case", [33, 101])] {
        session.talk.expect("this shell is in its guest");
        assert!(session.talk.shell("cat /tmp/mark").contains(mark));
        pty::resize(&session.user, size[0], size[1]);
        // The test is not in the foreground of this terminal, whose signal therefore comes from here.
        rustix::process::kill_process(Pid::from_child(&session.child), Signal::WINCH).unwrap();
        let [rows, columns] = size;
        session.talk.send(&format!("until [ \"$(stty size)\" = '{rows} {columns}' ]; do sleep 0.1; done; echo fi''ts"));
        session.talk.expect("fits");
        session.talk.send("exit 0");
    }
    assert_eq!(session.child.wait().unwrap().code(), Some(1), "{}", session.talk.seen);
    let report = serde_json::from_str(&bench.read("result.json")).unwrap();
    let result = |id: &str| {
        let test = test(&report, id);
        (test["status"].clone(), test["reason"].as_str().unwrap_or_default().to_string(), test["notes"].clone())
    };
    for (id, status, reason) in [
        ("by-status", "fail", "status 3"),
        ("by-case", "fail", "1 of 1 cases: planted"),
        ("good", "pass", ""),
        ("as-expected", "xfail", "as expected"),
    ] {
        let (found, why, notes) = result(id);
        assert!(found == status && why.contains(reason), "{id}: {why}");
        assert!(notes.is_null(), "{id}: {notes}");
    }
}
