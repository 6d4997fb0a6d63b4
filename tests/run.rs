//! `belljar run` with real kernels, on both engines: verdicts, streams, files, machines that go on. docs/run.md says which
//! promise each test holds. What does not depend on the engine is in `run_roots.rs`.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::planted::{HANG, LOAD, Planted, TRIPLE_FAULT};
use common::pty::{self, OnTerminal};
use common::run::{Runner, runs};
use common::{BOOT, Session, belljar, scratch, tiny};
use rustix::process::Signal;

#[test]
fn the_status_is_the_commands_own() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    runner.run(&["sh", "-c", "exit 7"]).code(7).is_silent();
    runner.run(&["sh", "-c", "kill -9 $$"]).code(137).is_silent();
    runner.run(&["no-such-command"]).code(127).says_one_line("no-such-command: no such command");
    runner.run(&["/proc/version"]).code(126).says_one_line("cannot be executed in the guest: /proc/version");
}

#[test]
fn a_panic_is_120_with_its_last_words_and_the_whole_log() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let dir = scratch();
    let report = dir.path().join("report.json");
    let runner = runner.arg("--report", &report);
    // What was printed must have left the guest: a kernel that dies takes with it what was on its way.
    let mut session = runner.start(&["sh", "-c", "echo before; read go; echo c > /proc/sysrq-trigger; sleep 60"]);
    session.expect("before\n");
    session.send("go");
    let outcome = session.finish(BOOT);
    outcome.code(120).says("sysrq_handle_crash").says("belljar: the guest kernel panicked: Kernel panic - not syncing");
    assert_eq!(outcome.console, "before\n");
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
    assert_eq!((report["verdict"].as_str(), report["exit_code"].as_u64()), (Some("panicked"), Some(120)));
    let log = report["log"].as_str().unwrap();
    assert!(std::fs::read_to_string(log).unwrap().contains("Call Trace"));
    assert_eq!(std::fs::metadata(log).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::remove_file(log).unwrap();
    let stages = &report["stages"];
    let names = ["first_instruction", "init", "command", "first_output", "end"];
    let times: Vec<_> =
        names.iter().map(|name| stages[name].as_f64().unwrap_or_else(|| panic!("{name}: {stages}"))).collect();
    assert!(times.is_sorted(), "{stages}");
}

#[test]
fn a_guest_that_ends_before_its_command_is_123() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let dir = scratch();
    let log = dir.path().join("log");
    let runner = runner.arg("--log", &log);
    let outcome = runner.run(&["sh", "-c", "echo o > /proc/sysrq-trigger; sleep 60"]);
    outcome.code(123).says("belljar: the guest powered off before its command ended").says(log.to_str().unwrap());
    assert!(std::fs::read_to_string(log).unwrap().contains("Power"));
}

#[test]
fn a_cpu_that_stands_still_or_dies_has_its_verdict() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let planted = |code| Planted::new("kernel-6.12-cloud", code).unwrap();
    let load = ["sh", "-c", &format!("echo before; {LOAD}")];
    let hang = planted(HANG);
    let outcome = runner.clone().arg("-v", hang.volume()).with(&["--idle-timeout", "10"]).run(&load);
    outcome.code(124).says_one_line("the guest printed nothing for 10 s");
    let fault = planted(TRIPLE_FAULT);
    assert_eq!(runner.arg("-v", fault.volume()).run(&load).code(121).says("triple fault").console, "before\n");
}

/// A kernel that does nothing, with interrupts off.
fn hung_kernel() -> Vec<u8> {
    tiny::kernel(&[0xfa, 0xeb, 0xfe])
}

#[test]
fn a_guest_that_hangs_is_ended_by_whatever_limit_comes_first() {
    let Some(engine) = common::tiny_engine() else { return };
    let dir = scratch();
    let kernel = dir.path().join("hung.elf");
    std::fs::write(&kernel, hung_kernel()).unwrap();
    let run = |limit: &str| {
        let mut command = Command::new(belljar());
        command.args(["run", "--engine", engine, limit, "1", "--kernel"]).arg(&kernel).args(["--", "true"]);
        Session::start(command).finish(BOOT)
    };
    run("--timeout").code(124).says("time limit reached");
    run("--boot-timeout").code(122).says("the guest did not start within 1 s");
}

#[test]
fn commands_that_take_too_long_or_say_nothing_are_124() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let outcome = runner.with(&["--idle-timeout", "2"]).run(&["sh", "-c", "echo working; sleep 1000"]);
    outcome.code(124).says_one_line("the guest printed nothing for 2 s");
    assert_eq!(outcome.console, "working\n");
    // A command that does not care, in a guest that is up.
    let mut session = runner.start(&["sh", "-c", "trap 'echo caught' TERM; echo up; while :; do sleep 1; done"]);
    session.expect("up");
    session.signal(Signal::TERM);
    session.expect("caught");
    session.signal(Signal::TERM);
    session.expect("caught");
    session.signal(Signal::TERM);
    session.finish(BOOT).code(143).says("ended by signal 15");
}

#[test]
fn the_commands_surroundings_are_as_asked_for() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let dir = scratch();
    std::fs::write(dir.path().join("env"), "FROM_FILE=file\nTWICE=file\n").unwrap();
    std::fs::create_dir(dir.path().join("ro")).unwrap();
    std::fs::create_dir(dir.path().join("rw")).unwrap();
    std::fs::write(dir.path().join("ro/given"), "given").unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let runner = runner
        .with(&["-e", "PLAIN=a b", "-e", "TWICE=flag", "-e", "INHERITED", "--env-file", &path("env")])
        .with(&["-v", &format!("{}:/mnt/ro:ro", path("ro")), "-v", &format!("{}:/mnt/rw", path("rw"))])
        .with(&["-w", "/mnt/rw", "-u", "1234:4321", "--hostname", "jar", "--name", "surroundings"])
        .env("INHERITED", "from here");
    std::fs::set_permissions(dir.path().join("rw"), PermissionsExt::from_mode(0o777)).unwrap();
    let script = "echo \"plain=$PLAIN\"; echo \"twice=$TWICE\"; echo \"file=$FROM_FILE\"; echo \"inherited=$INHERITED\"
        echo \"cwd=$(pwd)\"; echo \"user=$(id -u):$(id -g)\"; echo \"host=$(hostname)\"; echo \"ro=$(cat /mnt/ro/given)\"
        touch /mnt/ro/new 2>/dev/null || echo refused=yes; echo made > made; echo to-stderr >&2";
    let outcome = runner.run(&["sh", "-c", script]);
    outcome.code(0).has("plain", "a b").has("twice", "flag").has("file", "file").has("inherited", "from here");
    outcome.has("cwd", "/mnt/rw").has("user", "1234:4321").has("host", "jar").has("ro", "given").has("refused", "yes");
    assert_eq!(outcome.errors, "to-stderr\n");
    assert_eq!(std::fs::read_to_string(dir.path().join("rw/made")).unwrap(), "made\n");
}

#[test]
fn megabytes_go_through_unchanged() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let len = 100_000_000;
    let mut state = 1u64;
    let block: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .flatten()
    .take(1_000_003)
    .collect();
    let mut child = runner.command(&["cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let sent = block.clone();
    let writer = std::thread::spawn(move || {
        let mut left = len;
        while left > 0 {
            let piece = &sent[..left.min(sent.len())];
            input.write_all(piece).unwrap();
            left -= piece.len();
        }
    });
    let mut seen = vec![0; block.len()];
    let mut left = len;
    while left > 0 {
        let piece = left.min(block.len());
        output.read_exact(&mut seen[..piece]).unwrap();
        assert!(seen[..piece] == block[..piece], "after {} bytes", len - left);
        left -= piece;
    }
    assert_eq!(output.read(&mut [0; 1]).unwrap(), 0);
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_machine_goes_on_and_is_reached_by_its_name() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let registry = scratch();
    std::fs::set_permissions(registry.path(), PermissionsExt::from_mode(0o700)).unwrap();
    let verb = |args: &[&str]| {
        let mut command = Command::new(belljar());
        command.env("XDG_RUNTIME_DIR", registry.path()).args(args);
        command
    };
    let runner = runner.with(&["--detach"]).env("XDG_RUNTIME_DIR", registry.path().to_str().unwrap());
    let failed = runner.run(&["no-such-command"]);
    assert_eq!(failed.code(127).says_one_line("no such command").console, "", "it never ran");
    let runner = runner.with(&["--name", "goes-on"]);
    let outcome = runner.run(&["sh", "-c", "echo out; echo err >&2; sleep 1000"]);
    assert_eq!(outcome.code(0).console, "goes-on\n");
    // Whatever fails from here on must not leave it behind.
    let _stop = Stop(Some(verb(&["stop", "--timeout", "1", "goes-on"])));
    let listed = runs(verb(&["ps"]));
    assert!(listed.code(0).console.contains("goes-on") && listed.console.contains("sleep 1000"), "{listed}");
    let mut command = verb(&[
        "exec",
        "-e",
        "A=b",
        "-w",
        "/proc",
        "goes-on",
        "--",
        "sh",
        "-c",
        "cat; echo \"$A $(pwd)\"; echo no >&2; exit 3",
    ]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"input\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), &*output.stdout, &*output.stderr),
        (Some(3), &b"input\nb /proc\n"[..], &b"no\n"[..])
    );
    runs(verb(&["exec", "goes-on", "no-such-command"])).code(127);
    std::fs::create_dir(registry.path().join("tree")).unwrap();
    std::fs::write(registry.path().join("tree/file"), "copied").unwrap();
    let here = |name: &str| registry.path().join(name).display().to_string();
    runs(verb(&["cp", &here("tree"), "goes-on:/tmp"])).code(0).is_silent();
    runs(verb(&["cp", "goes-on:/tmp/tree/file", &here("back")])).code(0).is_silent();
    assert_eq!(std::fs::read_to_string(registry.path().join("back")).unwrap(), "copied");
    runs(verb(&["cp", "goes-on:/no/such", &here("back")])).code(125).says("/no/such");
    let count = "while :; do i=$((i+1)); echo $i >/tmp/count; sleep 0.1; done";
    runs(verb(&["exec", "goes-on", "sh", "-c", &format!("({count}) >/dev/null 2>&1 &")])).code(0);
    dumps_are_written_while_it_runs(&verb, &here);
    let counted = "read a </tmp/count; for i in $(seq 600); do read b </tmp/count; [ \"$b\" -gt $((a+2)) ] && exit; sleep 0.1; \
                   done; exit 1";
    runs(verb(&["exec", "goes-on", "sh", "-c", counted])).code(0);
    let logs = runs(verb(&["logs", "goes-on"]));
    assert!(logs.console.contains("out\n") && logs.console.contains("err\n"), "{logs}");
    let taken = runner.run(&["true"]);
    taken.code(125).says("A machine called goes-on runs already");
    let stopped = runs(verb(&["stop", "goes-on"]));
    assert_eq!(stopped.code(0).console, "goes-on\n");
    assert_eq!(runs(verb(&["ps", "--json"])).console, "[]\n");
    runs(verb(&["exec", "goes-on", "true"])).code(125).says("No machine called goes-on runs");
    let left: Vec<_> =
        std::fs::read_dir(registry.path().join("belljar")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".lock"]);
}

/// Two at a time, of the machine `goes-on`; what cannot be written leaves nothing.
fn dumps_are_written_while_it_runs(verb: &dyn Fn(&[&str]) -> Command, here: &dyn Fn(&str) -> String) {
    std::fs::create_dir(here("dumps")).unwrap();
    std::fs::write(here("dumps/second"), "replaced").unwrap();
    let names = ["dumps/first", "dumps/second"].map(here);
    let sessions = names.each_ref().map(|name| Session::start(verb(&["dump", "goes-on", name])));
    for session in sessions {
        session.finish(BOOT).code(0).is_silent();
    }
    names.iter().for_each(|name| is_a_dump(Path::new(name)));
    for (machine, name, why) in [
        ("goes-on", here("dumps"), "something else than a file"),
        ("goes-on", here("none/core"), "Cannot write the dump"),
        ("no-such", here("dumps/third"), "No machine called no-such runs"),
    ] {
        runs(verb(&["dump", machine, &name])).code(125).says_one_line(why);
    }
    assert_eq!(std::fs::read_dir(here("dumps")).unwrap().count(), 2);
}

/// The kernel's VMCOREINFO says where its name and the machine's are, and there they are.
#[track_caller]
fn is_a_dump(path: &Path) {
    use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
    let little = object::LittleEndian;
    let file = File::open(path).unwrap();
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let mut head = vec![0; 8 << 20];
    file.read_exact_at(&mut head, 0).unwrap();
    let elf = ElfFile64::<object::LittleEndian>::parse(&*head).unwrap();
    assert_eq!(elf.elf_header().e_type(little), object::elf::ET_CORE);
    let of_kind = |kind| elf.elf_program_headers().iter().filter(move |header| header.p_type(little) == kind);
    let notes = of_kind(object::elf::PT_NOTE).next().unwrap().data(little, &*head).unwrap();
    let notes = String::from_utf8_lossy(notes);
    let at = notes.split("SYMBOL(init_uts_ns)=").nth(1).and_then(|rest| rest.lines().next()).unwrap();
    let at = u64::from_str_radix(at, 16).unwrap();
    let from = |load: &&_| -> Option<u64> {
        let load: &object::elf::ProgramHeader64<_> = load;
        at.checked_sub(load.p_vaddr(little)).filter(|&from| from < load.p_filesz(little))
    };
    let load = of_kind(object::elf::PT_LOAD).find(|load| from(load).is_some()).unwrap();
    let mut names = [0; 512];
    file.read_exact_at(&mut names, load.p_offset(little) + from(&load).unwrap()).unwrap();
    let names = String::from_utf8_lossy(&names);
    assert!(names.contains("Linux\0") && names.contains("goes-on\0"), "{names:?}");
}

/// Ends a machine whatever the test comes to.
struct Stop(Option<Command>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.take().map(|mut command| command.stderr(Stdio::null()).output());
    }
}

#[test]
fn a_terminal_has_its_size_and_follows_it() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let script = "stty size; read line; stty size; test -t 1; exit $?";
    let mut session = OnTerminal::start(runner.with(&["-it"]).command(&["sh", "-c", script]), 33, 101);
    session.talk.expect("33 101");
    pty::resize(&session.user, 50, 132);
    // The test is not in the foreground of this terminal, whose signal therefore comes from here.
    rustix::process::kill_process(rustix::process::Pid::from_child(&session.child), Signal::WINCH).unwrap();
    let limit = Instant::now() + Duration::from_secs(1);
    while Instant::now() < limit {
        std::thread::sleep(Duration::from_millis(100));
    }
    session.talk.send("");
    session.talk.expect("50 132");
    assert!(session.child.wait().unwrap().success(), "{}", session.talk.seen);
}
