//! Debuggers of guests: the protocol on both engines, Debian's gdb and core dumps on the software CPU.

mod common;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::gdb::Debugger;
use common::run::{Runner, runs};
use common::verb::{Bench, test};
use common::{BOOT, Session, asset, belljar, engine, host, scratch, tiny};

/// A kernel that is started under a debugger.
fn boot(kernel: &Path, flags: &[&str]) -> Session {
    let engine = common::tiny_engine().expect("asked before");
    let mut command = Command::new(belljar());
    command.args(["boot", "--engine", engine, "--serial", "null", "--timeout", "100", "--kernel"]).arg(kernel);
    Session::start({
        command.args(flags);
        command
    })
}

/// mov ecx, 3; l: inc eax; loop l; mov [200000h], eax; mov al, 21; out f4h, al; hlt
const CODE: &[u8] = &[0xb9, 3, 0, 0, 0, 0x40, 0xe2, 0xfd, 0xa3, 0, 0, 0x20, 0, 0xb0, 21, 0xe6, 0xf4, 0xf4];

#[test]
fn a_guest_is_debugged_from_its_first_instruction_and_its_status_is_kept() {
    if common::tiny_engine().is_none() {
        return;
    }
    let dir = scratch();
    let (kernel, socket) = (dir.path().join("kernel"), dir.path().join("gdb"));
    std::fs::write(&kernel, tiny::kernel(CODE)).unwrap();
    let at = u64::from(tiny::AT);
    let session = boot(&kernel, &["--gdb", &format!("unix:{}", socket.display())]);
    let mut gdb = Debugger::attach(&socket);
    assert_eq!(gdb.rip(), at);
    assert_eq!(gdb.memory(at, 4), "b9030000");
    gdb.tell("P0=0a00000000000000");
    assert_eq!((gdb.step(1), gdb.register(0), gdb.register(2)), (at + 5, 10, 3));
    let inc = at + 5;
    let rounds = if can_break(common::tiny_engine().unwrap()) { 11..13 } else { 0..0 };
    for round in rounds {
        assert_eq!(gdb.step(1), inc + 1);
        gdb.tell(&format!("Z0,{inc:x},1"));
        assert_eq!(gdb.memory(inc, 1), "40", "the breakpoint is not seen");
        assert!(gdb.ask("vCont;c").starts_with("T05thread:01;swbreak:;"));
        assert_eq!((gdb.rip(), gdb.register(0)), (inc, round));
        gdb.tell(&format!("z0,{inc:x},1"));
    }
    gdb.tell("M200000,4:01020304");
    assert_eq!(gdb.memory(0x20_0000, 4), "01020304");
    assert!(gdb.memory(0xffff_ffff_ffff_0000, 4).starts_with('E'));
    gdb.tell("D");
    drop(gdb);
    session.finish(BOOT).code(21);
}

#[test]
fn packets_that_make_no_sense_cut_gdb_off_and_no_more() {
    if common::tiny_engine().is_none() {
        return;
    }
    let dir = scratch();
    let (kernel, socket) = (dir.path().join("kernel"), dir.path().join("gdb"));
    // jmp $; mov al, 21; out f4h, al; hlt
    std::fs::write(&kernel, tiny::kernel(&[0xeb, 0xfe, 0xb0, 21, 0xe6, 0xf4, 0xf4])).unwrap();
    let session = boot(&kernel, &["--gdb-on-crash", &format!("unix:{}", socket.display())]);
    let at = tiny::AT;
    for packet in [
        "vCont;s",
        "vCont;s:-1",
        "vCont;t",
        "Hg7",
        "G00",
        "P0=01",
        "P99=0000000000000000",
        "p99",
        "mffffffffffffffff,2000",
        "m0,ffffffff",
        "Z0,,",
        "Z2,10,ffffffffffffffff",
        "z0,10,1",
        "Z9,1,1",
        "qRcmd,ff00",
        "qXfer:features:read:target.xml:ffffffff,ffff",
        "M200000,ffff:00",
        "\u{7f}#\u{0}",
    ] {
        let mut gdb = Debugger::attach(&socket);
        gdb.send(packet);
        drop(gdb);
    }
    let mut gdb = Debugger::attach(&socket);
    assert_eq!(gdb.memory(at.into(), 2), "ebfe");
    gdb.tell(&format!("P10={:016x}", (u64::from(at) + 2).swap_bytes()));
    gdb.tell("D");
    session.finish(BOOT).code(21);
}

/// The thread that a stop reply is about.
fn thread(stop: &str) -> u32 {
    let number =
        stop.split("thread:").nth(1).and_then(|rest| rest.split(';').next()).unwrap_or_else(|| panic!("{stop}"));
    u32::from_str_radix(number, 16).unwrap()
}

/// Whether breakpoints work where the tests run: KVM on QEMU's CPU, as in `scripts/nested`, has neither debug registers nor
/// INT3 for a hypervisor (see `src/engine/guests/mod.rs`); nor has that of a paravirtual host.
fn can_break(engine: &str) -> bool {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let real = cpu.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") && !cpu.contains("QEMU TCG CPU");
    let can = engine != "kvm" || real;
    if !can {
        println!("NOT RUN: breakpoints, which this KVM does not have");
    }
    can
}

#[test]
fn a_kernel_stops_at_a_function_and_goes_on() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let dir = scratch();
    let socket = dir.path().join("gdb");
    // Debuggers may come at any time to a machine that waits for one.
    let runner = runner
        .with(&["--cpus", "2", "--memory", "256M", "--name", "debugged"])
        .env("XDG_RUNTIME_DIR", dir.path().to_str().unwrap());
    let runner = runner.arg("--gdb-on-crash", format!("unix:{}", socket.display()));
    let script = "grep -w __x64_sys_newuname /proc/kallsyms; read x; uname >/dev/null; uname >/dev/null; echo got $x; \
                  read x; echo got $x; read y";
    let mut session = runner.start(&["sh", "-c", script]);
    let address = session.until(" T __x64_sys_newuname");
    let address = address.trim();
    let at = u64::from_str_radix(address, 16).unwrap();
    let mut gdb = Debugger::attach(&socket);
    assert_eq!(gdb.ask("qfThreadInfo"), "m01,02");
    let code = gdb.memory(at, 16);
    assert_eq!(code.len(), 32, "{code}");
    session.send("x");
    let cpu = if can_break(runner.engine) {
        gdb.tell(&format!("Z0,{at:x},1"));
        assert_eq!(gdb.memory(at, 16), code);
        let stop = gdb.ask("vCont;c");
        assert!(stop.contains("swbreak:"), "{stop}");
        let cpu = thread(&stop);
        gdb.tell(&format!("Hg{cpu:x}"));
        assert_eq!(gdb.rip(), at);
        let stack = gdb.register(7);
        assert!(stack >> 47 == 0x1ffff, "{stack:x}");
        let back = u64::from_str_radix(&gdb.memory(stack, 8), 16).unwrap().swap_bytes();
        gdb.tell(&format!("z0,{at:x},1"));
        // What RET reads.
        gdb.tell(&format!("Z4,{stack:x},8"));
        let stop = gdb.ask("vCont;c");
        assert!(stop.contains(&format!("awatch:{stack:x};")), "{stop}");
        assert_eq!(gdb.rip(), back);
        gdb.tell(&format!("z4,{stack:x},8"));
        // By the next uname.
        gdb.tell(&format!("Z1,{at:x},1"));
        let stop = gdb.ask("vCont;c");
        assert!(stop.contains("hwbreak:"), "{stop}");
        let cpu = thread(&stop);
        gdb.tell(&format!("Hg{cpu:x}"));
        assert_eq!(gdb.rip(), at);
        gdb.tell(&format!("z1,{at:x},1"));
        cpu
    } else {
        1
    };
    // Somebody who wants a dump meanwhile is not noticed. (A KVM that has breakpoints may be one in Bochs, which takes minutes
    // for dumps; run.rs has one on every KVM.)
    let dump = |name: &str| {
        if runner.engine == "kvm" && can_break("kvm") {
            return;
        }
        let mut command = Command::new(belljar());
        command.env("XDG_RUNTIME_DIR", dir.path()).args(["dump", "debugged"]).arg(dir.path().join(name));
        runs(command).code(0).is_silent();
    };
    let before = gdb.rip();
    dump("stopped");
    assert_eq!(gdb.rip(), before);
    let steps = [0; 3].map(|_| gdb.step(cpu));
    assert!(steps.iter().all(|step| *step != at), "{steps:x?}");
    // It goes on until it is interrupted.
    gdb.send("vCont;c");
    session.expect("got x");
    dump("running");
    session.send("more");
    session.expect("got more");
    gdb.interrupt();
    assert!(gdb.wait().starts_with("T02thread:"));
    gdb.tell("D");
    drop(gdb);
    session.send("y");
    session.finish(BOOT).code(0);
}

/// Debian's gdb with these commands, on a kernel's symbols.
fn gdb(vmlinux: &Path, more: &[&str], commands: &[String]) -> String {
    let mut gdb = Command::new("timeout");
    gdb.args(["100", "gdb", "-q", "-nx", "-batch"]).arg(vmlinux).args(more);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    // Both streams in one, so that the order of what is said stays.
    let (mut text, writer) = std::io::pipe().unwrap();
    let mut child = gdb.stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
    drop(gdb);
    let mut said = String::new();
    text.read_to_string(&mut said).unwrap();
    child.wait().unwrap();
    said
}

/// Each of `wanted` comes after the one before.
#[track_caller]
fn in_order(text: &str, wanted: &[&str]) {
    let mut rest = text;
    for part in wanted {
        let Some(at) = rest.find(part) else { panic!("`{part}` does not come\n{text}") };
        rest = &rest[at + part.len()..];
    }
}

/// A kernel with symbols, on the software CPU.
fn tree() -> Option<(Runner, PathBuf)> {
    if engine() != Some("soft") {
        return None;
    }
    let tree = asset("tree-small")?;
    Some((Runner::with_path(&tree)?, tree.join("vmlinux")))
}

#[test]
fn gdb_follows_a_kernel_from_its_first_instruction() {
    let Some((runner, vmlinux)) = tree() else { return };
    let dir = scratch();
    let socket = dir.path().join("gdb");
    let runner = runner.with(&["--cpus", "2"]).arg("--gdb", format!("unix:{}", socket.display()));
    let session = runner.start(&["sh", "-c", "echo in the guest; exit 7"]);
    while !socket.exists() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let commands = [
        &format!("target remote {}", socket.display()),
        // Not mapped yet.
        "break start_kernel",
        "continue",
        "backtrace",
        "x/s &linux_banner",
        "hbreak kernel_init",
        "continue",
        "backtrace",
        "delete",
        "stepi",
        "info symbol $pc",
        "watch *(long *) &system_state",
        "continue",
        "monitor info",
        "info threads",
        "delete",
        "break __x64_sys_execve",
        "continue",
        "info registers rip cs cr3 k_gs_base",
        "finish",
        "delete",
        "detach",
    ];
    let text = gdb(&vmlinux, &[], &commands.map(str::to_string));
    in_order(
        &text,
        &[
            "Breakpoint 1 at",
            "Breakpoint 1, 0x",
            "in start_kernel ()",
            "#1 ",
            "x86_64_start_kernel",
            "Linux version 6.",
            "Breakpoint 2, 0x",
            "in kernel_init ()",
            "ret_from_fork",
            "kernel_init + ",
            "Hardware watchpoint 3",
            "Hardware watchpoint 3",
            "Old value = ",
            "engine soft, 2 CPUs",
            "CPU 1: ",
            "Thread 1.2 (CPU 1)",
            "Breakpoint 4, 0x",
            "__x64_sys_execve",
            "cs             0x10",
            "in do_syscall_64 ()",
            "detached",
        ],
    );
    let outcome = session.finish(BOOT);
    outcome.code(7);
    assert_eq!(outcome.console, "in the guest\n");
}

#[test]
fn gdb_finds_a_dead_guest_and_opens_its_dump() {
    let Some((runner, vmlinux)) = tree() else { return };
    let dir = scratch();
    let (socket, dump) = (dir.path().join("gdb"), dir.path().join("core"));
    let runner = runner.arg("--gdb-on-crash", format!("unix:{}", socket.display())).arg("--dump", &dump);
    let mut session = runner.with(&["--cpus", "2"]).start(&["sh", "-c", "echo c >/proc/sysrq-trigger"]);
    session.hear("the guest has died and is kept for gdb");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "the socket and the dump, and no draft");
    let symbols = ["info threads", "x/s &linux_banner"].map(str::to_string);
    let attach = format!("target remote {}", socket.display());
    let alive = gdb(&vmlinux, &[], &[&[attach], &symbols[..], &["detach".into()]].concat());
    in_order(&alive, &["(CPU 0)", "(CPU 1)", "Linux version 6.", "detached"]);
    session.finish(BOOT).code(120);
    let dead = gdb(&vmlinux, &[&dump.display().to_string()], &symbols);
    in_order(&dead, &["LWP 1", "LWP 2", "Linux version 6."]);
    // Both CPUs are where they were, in functions that have names.
    let places = |text: &str| -> Vec<String> {
        let threads = text.lines().filter(|line| line.contains("(CPU ") || line.contains("  LWP "));
        threads.map(|line| line.split("0x").nth(1).unwrap_or_else(|| panic!("{text}")).trim().into()).collect()
    };
    assert_eq!(places(&alive), places(&dead), "{alive}\n{dead}");
    assert!(places(&dead).len() == 2 && places(&dead).iter().all(|place| place.ends_with(" ()")), "{dead}");
}

/// A kernel with full debugging information, on the software CPU.
fn full_tree() -> Option<PathBuf> {
    if engine() != Some("soft") {
        return None;
    }
    asset("tree-test")
}

/// Debian's gdb with the scripts of the kernel's build tree, which look for modules in the bench.
fn gdb_with_scripts(tree: &Path, bench: &Bench, more: &[&str], commands: &[&str]) -> String {
    let safe = format!("add-auto-load-safe-path {}", tree.display());
    let here = format!("cd {}", bench.dir.path().display());
    let commands = commands.iter().map(|command| (*command).to_string()).collect::<Vec<_>>();
    gdb(&tree.join("vmlinux"), &[&["-iex", &safe, "-iex", &here], more].concat(), &commands)
}

/// The kernel's own commands, modules, places in the source: in the guest of a test, in a dump of it while it runs, and when
/// its kernel has panicked, which then is what comes of the test.
#[test]
fn gdb_knows_source_lines_tasks_and_modules() {
    let Some(tree) = full_tree() else { return };
    let Some(bench) = Bench::new("tree-test") else { return };
    let (socket, dump) = (bench.path("gdb"), bench.path("core"));
    // gdb does not find the variables of a module whose sections have addresses.
    let module = tree.join("planted/planted.ko").display().to_string();
    let zero = ["--change-section-address", ".data=0", "--change-section-address", ".bss=0", &module];
    host("objcopy", &[&zero[..], &[&bench.path("planted.ko").display().to_string()]].concat());
    let (address, volume) = (format!("unix:{}", socket.display()), format!("{}:/mnt:rw", bench.dir.path().display()));
    let script = "insmod /mnt/planted.ko fault=leak; touch /mnt/loaded; until [ -e /mnt/over ]; do uname >/dev/null; sleep 0.1; done; \
                  echo c >/proc/sysrq-trigger";
    let words =
        ["--timeout", "100", "--gdb-on-crash", &address, "-v", &volume, "--json", "r.json", "--", "sh", "-c", script];
    let kernel = ["--kernel", bench.kernel()];
    let mut command = bench.command(&[&kernel, &words[..]].concat());
    command.env("XDG_RUNTIME_DIR", bench.dir.path());
    let mut session = Session::start(command);
    while !bench.path("loaded").exists() {
        assert!(session.child.try_wait().unwrap().is_none(), "{}", session.finish(BOOT));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let attach = format!("target remote {}", socket.display());
    let commands = [
        &attach,
        "hbreak __do_sys_newuname",
        "continue",
        "backtrace",
        "delete",
        "lx-ps",
        "lx-lsmod",
        "lx-dmesg",
        "lx-symbols",
        "info line planted_warn",
        "p eight + forty",
        "p $lx_current().comm",
        "detach",
    ];
    let text = gdb_with_scripts(&tree, &bench, &[], &commands);
    in_order(
        &text,
        &[
            "Breakpoint 1, __do_sys_newuname (name=0x",
            "kernel/sys.c:",
            "#1 ",
            "do_syscall_64",
            "arch/x86/entry/",
            "   1   init",
            "planted ",
            "Linux version 6.",
            "planted.ko",
            "planted.c\"",
            "= 48",
            "\"uname",
            "detached",
        ],
    );
    let belljar = |words: &[&str]| {
        let mut command = Command::new(belljar());
        command.env("XDG_RUNTIME_DIR", bench.dir.path()).args(words);
        runs(command)
    };
    let machines = belljar(&["ps", "--json"]);
    let machines: serde_json::Value = serde_json::from_str(&machines.code(0).console).unwrap();
    let dumped = dump.display().to_string();
    belljar(&["dump", machines[0]["name"].as_str().unwrap(), &dumped]).code(0).is_silent();
    let commands = ["p init_task.comm", "backtrace", "lx-ps", "lx-symbols", "p eight + forty"];
    let text = gdb_with_scripts(&tree, &bench, &[&dumped], &commands);
    in_order(&text, &["\"swapper", "#1 ", " at ", "   1   init", "planted.ko", "= 48"]);
    std::fs::write(bench.path("over"), "").unwrap();
    session.hear("the guest has died and is kept for gdb");
    let text = gdb_with_scripts(&tree, &bench, &[], &[&attach, "backtrace", "detach"]);
    in_order(&text, &["panic (", "sysrq_handle_crash (", "drivers/tty/sysrq.c:", "write_sysrq_trigger (", "detached"]);
    session.finish(BOOT).code(3);
    let report: serde_json::Value = serde_json::from_str(&bench.read("r.json")).unwrap();
    let test = test(&report, "sh");
    let reason = "kernel panic: sysrq triggered crash";
    assert_eq!((&test["status"], &test["reason"]), (&"crash".into(), &reason.into()), "{test:#}");
}
