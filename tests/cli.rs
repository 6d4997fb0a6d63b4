//! The command line as a user meets it, wrong input above all: every mistake gets one line that names the thing and what
//! to do, and a documented exit code. No guest runs here.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use assert_cmd::assert::OutputAssertExt;
use tempfile::TempDir;

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn belljar(args: &[&str]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_belljar"));
    command.args(args).env_remove("BELLJAR_LOG");
    let output = assert_cmd::Command::from_std(command).timeout(Duration::from_secs(30)).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Said { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

/// `belljar boot` with `args` must fail with `code` and one line on stderr that has all of `words`.
#[track_caller]
fn refuses(args: &[&str], code: i32, words: &[&str]) {
    let said = belljar(&[&["boot"], args].concat());
    assert_eq!(said.code, code, "{args:?}: {}", said.err);
    assert!(!said.err.contains("panicked"), "{}", said.err);
    for word in words {
        assert!(said.err.contains(word), "{args:?}: `{word}` is not in: {}", said.err);
    }
    assert_eq!(said.err.trim_end().lines().count(), 1, "not one line: {}", said.err);
}

fn file(dir: &TempDir, name: &str, content: &[u8]) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_string()
}

#[test]
fn help_names_every_flag_and_device_key() {
    let said = belljar(&["boot", "--help"]);
    assert_eq!(said.code, 0);
    for flag in ["--kernel", "--initrd", "--append", "--cmdline", "--cpus", "--memory", "--engine", "--transport"] {
        assert!(said.out.contains(flag), "{flag}");
    }
    for flag in ["--spec", "--timeout", "--log", "--report", "--stats", "--timing", "--dry-run"] {
        assert!(said.out.contains(flag), "{flag}");
    }
    for kind in belljar::devices::KINDS {
        assert!(said.out.contains(&format!("--{}", kind.name())), "{}", kind.name());
        for key in kind.keys() {
            assert!(said.out.contains(key.name), "{}: {}", kind.name(), key.name);
        }
    }
}

#[test]
fn wrong_flags_are_usage_errors() {
    refuses(&["--no-such-flag"], 2, &["--no-such-flag", "--help"]);
    refuses(&["--kernel", "k", "--cpus", "0"], 2, &["--cpus 0", "from 1 to"]);
    refuses(&["--kernel", "k", "--cpus", "many"], 2, &["many", "--cpus"]);
    refuses(&["--kernel", "k", "--memory", "1"], 2, &["--memory 1", "512M"]);
    refuses(&["--kernel", "k", "--memory", "lots"], 2, &["lots", "512M"]);
    refuses(&["--kernel", "k", "--cpu-quota", "0"], 2, &["--cpu-quota", "`0`", "50%, 200%"]);
    refuses(&["--kernel", "k", "--timeout", "0"], 2, &["--timeout 0"]);
    refuses(&["--kernel", "k", "--engine", "tcg"], 2, &["tcg", "auto, kvm, soft"]);
    let repeat = |more: &[&'static str], words: &[&str]| {
        refuses(&[&["--kernel", "k", "--deterministic"], more].concat(), 2, words);
    };
    repeat(&["--engine", "kvm"], &["--deterministic", "--engine soft"]);
    repeat(&["--cpus", "2"], &["--deterministic", "--cpus 2"]);
    repeat(&["--net", "tap=vm0"], &["--net", "--deterministic"]);
    repeat(&["--vsock", "vm.vsock"], &["--vsock", "--deterministic"]);
    repeat(&["--console", "pty"], &["--console to=pty", "--deterministic"]);
    repeat(&["--serial", "socket=s"], &["--serial to=", "--deterministic"]);
    repeat(&["--balloon", "stats=1"], &["--balloon stats", "--deterministic"]);
    repeat(&["--disk", "x,bw=1M"], &["--disk bw or ops", "--deterministic"]);
    repeat(&["--seed", "many"], &["many", "--seed"]);
    refuses(&["--kernel", "k", "--seed", "1"], 2, &["--seed", "--deterministic"]);
    refuses(&["--kernel", "k", "--engine", "kvm", "--trace", "t"], 2, &["--trace", "--engine soft"]);
    refuses(&["--kernel", "k", "--trace", "t,last=1,all"], 2, &["--trace", "choose one"]);
    refuses(&["--kernel", "k", "--trace", "t,lines=1"], 2, &["trace", "lines"]);
    refuses(&["--kernel", "k", "--append", "a", "--cmdline", "b"], 2, &["--append", "--cmdline", "one of the two"]);
    refuses(&[], 2, &["No kernel", "--kernel FILE"]);
    assert_eq!(belljar(&[]).code, 2);
    assert_eq!(belljar(&["fly"]).code, 2);
}

#[test]
fn wrong_device_options_name_the_device_and_the_key() {
    refuses(&["--kernel", "k", "--disk", "x,colour=red"], 2, &["--disk", "unknown key `colour`", "readonly"]);
    refuses(&["--kernel", "k", "--disk", ""], 2, &["--disk", "path= is missing"]);
    refuses(&["--kernel", "k", "--disk", "x,readonly=maybe"], 2, &["--disk", "readonly=maybe", "on or off"]);
    refuses(&["--kernel", "k", "--disk", "x,bw=0"], 2, &["--disk", "bw=0", "leave it out"]);
    refuses(&["--kernel", "k", "--net", "tap=t,ops=few"], 2, &["--net", "ops=few", "from 1"]);
    refuses(&["--kernel", "k", "--serial", "sideways"], 2, &["--serial", "sideways", "stdio"]);
    refuses(&["--kernel", "k", "--serial", "null", "--serial", "null"], 2, &["--serial", "only one"]);
}

/// The same for what is found out once the engine is open, before any guest runs: then any `/dev/kvm` will do.
#[track_caller]
fn refuses_on_kvm(args: &[&str], words: &[&str]) {
    refuses(&[args, &["--engine", "kvm"]].concat(), 125, words);
}

/// Files are opened after the engine; without any KVM that fails first.
fn no_kvm() -> bool {
    let missing = std::fs::File::open("/dev/kvm").is_err();
    if missing {
        println!("\nSKIPPED: no /dev/kvm");
    }
    missing
}

#[test]
fn kernels_that_are_none() {
    if no_kvm() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let boot = |path: &str, words: &[&str]| refuses_on_kvm(&["--kernel", path, "--serial", "null"], words);
    boot("/nonexistent/vmlinuz", &["/nonexistent/vmlinuz", "No such file"]);
    boot(dir.path().to_str().unwrap(), &["directory"]);
    boot(&file(&dir, "text", b"This is not a kernel.\n"), &["text", "not a kernel", "bzImage"]);
    boot(&file(&dir, "empty", b""), &["empty file"]);
    boot(&file(&dir, "elf", b"\x7fELF\x02\x01\x01"), &["elf"]);
    let mut arm = vec![0; 64];
    arm[..6].copy_from_slice(b"\x7fELF\x02\x01");
    arm[6] = 1;
    arm[16] = 2;
    arm[18] = 183;
    boot(&file(&dir, "aarch64", &arm), &["aarch64"]);
}

#[test]
fn disks_that_are_none() {
    if no_kvm() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let disk = |option: &str, words: &[&str]| {
        refuses_on_kvm(&["--kernel", "k", "--serial", "null", "--disk", option], words);
    };
    disk("/nonexistent/disk.img", &["/nonexistent/disk.img", "does not exist", "truncate -s"]);
    disk(dir.path().to_str().unwrap(), &["directory"]);
    let broken = file(&dir, "broken.qcow2", b"QFI\xfb\0\0\0\x03 and then nothing");
    disk(&broken, &["broken.qcow2"]);
}

#[test]
fn specification_files() {
    let dir = TempDir::new().unwrap();
    let spec = |text: &str, words: &[&str]| {
        let path = file(&dir, "machine.toml", text.as_bytes());
        refuses(&["--spec", &path], 2, &[&["machine.toml"], words].concat());
    };
    spec("cpus = \"two\"", &["cpus"]);
    spec("colour = 1", &["unknown key `colour`"]);
    spec("kernel = ", &["line 1"]);
    refuses(&["--spec", "/nonexistent.toml"], 125, &["/nonexistent.toml", "No such file"]);
}

#[test]
fn a_dry_run_prints_a_specification_that_means_the_same() {
    let dir = TempDir::new().unwrap();
    let flags =
        ["boot", "--kernel", "/k", "--cpus", "3", "--memory", "1G", "--disk", "/d,readonly", "--rng", "--dry-run"];
    let first = belljar(&flags);
    assert_eq!(first.code, 0, "{}", first.err);
    assert!(first.out.contains("cpus = 3") && first.out.contains("kernel command line: "), "{}", first.out);
    let path = file(&dir, "machine.toml", first.out.as_bytes());
    let second = belljar(&["boot", "--spec", &path, "--dry-run"]);
    assert_eq!(second.out, first.out);
    let changed = belljar(&["boot", "--spec", &path, "--cpus", "2", "--dry-run"]);
    assert!(changed.out.contains("cpus = 2"), "flags win over the file: {}", changed.out);
}

#[test]
fn version_and_help_go_to_standard_output() {
    let version = belljar(&["--version"]);
    assert_eq!((version.code, version.out.trim()), (0, concat!("belljar ", env!("CARGO_PKG_VERSION"))));
    Command::new(env!("CARGO_BIN_EXE_belljar")).arg("--help").assert().success();
}

#[test]
fn the_binary_needs_no_libraries() {
    let header = std::fs::read(Path::new(env!("CARGO_BIN_EXE_belljar"))).unwrap();
    // A dynamic executable has a PT_INTERP program header that names the loader.
    let has_interpreter = header.windows(9).take(4096).any(|window| window == b"/ld-linux");
    assert!(!has_interpreter, "the binary is not static");
}

#[test]
fn machines_that_cannot_be() {
    let k = ["--kernel", "k"];
    let usage = |more: &[&str], words: &[&str]| refuses(&[&k[..], more].concat(), 2, words);
    usage(&["--cpus", "-1"], &["-1"]);
    usage(&["--cpus", "255"], &["--cpus 255", "from 1 to 254"]);
    usage(&["--memory", "100E"], &["100E", "512M"]);
    usage(&["--timeout", "5s"], &["5s", "--timeout"]);
    usage(&["--entry", "efi"], &["efi", "auto, linux, pvh"]);
    usage(&["--entry", "pvh", "--self-extract"], &["--entry pvh", "--self-extract"]);
    usage(&["--port", "a,to=pty", "--port", "a,to=pty"], &["--port name=a is given twice"]);
    usage(&["--net", "vm0", "--net", "vm0"], &["--net tap=vm0 is given twice"]);
    usage(&["--net", "a/b"], &["--net", "a/b"]);
    usage(&["extra"], &["extra", "--help"]);
    usage(&["--memori", "1G"], &["--memori", "--memory"]);
}

#[test]
fn more_memory_than_the_host_has() {
    let words = ["--memory 90000G: this host has", "of memory and swap in all"];
    refuses(&["--kernel", "k", "--memory", "90000G"], 125, &words);
}

#[test]
fn places_that_cannot_be_written() {
    let dir = TempDir::new().unwrap();
    let dir = dir.path().to_str().unwrap();
    refuses(&["--kernel", "k", "--report", "/nonexistent/r"], 125, &["report", "/nonexistent/r", "check the path"]);
    refuses(&["--kernel", "k", "--report", dir], 125, &["report", dir, "give a file"]);
    if no_kvm() {
        return;
    }
    refuses_on_kvm(&["--kernel", "k", "--log", "/nonexistent/l"], &["log", "/nonexistent/l", "check the path"]);
    for flag in [["--serial", "file=/nonexistent/x"], ["--console", "socket=/nonexistent/x"]] {
        refuses_on_kvm(&["--kernel", "k", flag[0], flag[1]], &["/nonexistent/x", "check the path"]);
    }
    refuses_on_kvm(&["--kernel", "k", "--vsock", "/nonexistent/x"], &["--vsock", "/nonexistent/x", "check the path"]);
    refuses_on_kvm(&["--kernel", "k", "--balloon", "10G"], &["--balloon", "10240 MiB", "512 MiB"]);
}

#[test]
fn files_that_are_something_else_or_incomplete() {
    if no_kvm() {
        return;
    }
    let dir = TempDir::new().unwrap();
    let mut bzimage = vec![0; 4096];
    bzimage[0x1f1] = 4;
    bzimage[0x1fe..0x200].copy_from_slice(b"\x55\xaa");
    bzimage[0x202..0x206].copy_from_slice(b"HdrS");
    refuses_on_kvm(&["--kernel", &file(&dir, "old", &bzimage), "--serial", "null"], &["old"]);
    refuses(&["--spec", &file(&dir, "binary", &[0xff; 100])], 2, &["binary is not a text"]);
    let header = |cluster_bits: u8| {
        let mut header = vec![0; 104];
        header[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        header[23] = cluster_bits;
        header[24..32].copy_from_slice(&(64u64 << 20).to_be_bytes());
        header[39] = 1;
        header[40..48].copy_from_slice(&0x3_0000u64.to_be_bytes());
        header[48..56].copy_from_slice(&0x1_0000u64.to_be_bytes());
        header[59] = 1;
        header[99] = 4;
        header[103] = 104;
        header
    };
    let truncated = file(&dir, "cut.qcow2", &header(16));
    refuses_on_kvm(&["--kernel", "k", "--serial", "null", "--disk", &truncated], &["cut.qcow2", "qemu-img check"]);
}

#[test]
fn a_disk_that_another_machine_uses() {
    if no_kvm() {
        return;
    }
    // The same machine twice is the simplest other one: the first disk holds the lock.
    let dir = TempDir::new().unwrap();
    let disk = file(&dir, "disk.img", &[0; 4096]);
    let twice = ["--kernel", "k", "--serial", "null", "--disk", &disk, "--disk", &disk];
    refuses_on_kvm(&twice, &["disk.img is in use by belljar", "readonly=on"]);
}

/// Only root can make itself somebody else.
#[test]
fn files_and_devices_of_other_users() {
    let dir = TempDir::new().unwrap();
    let program = dir.path().join("belljar");
    std::fs::copy(env!("CARGO_BIN_EXE_belljar"), &program).unwrap();
    let modes = [(dir.path().to_path_buf(), 0o755), (file(&dir, "secret.toml", b"").into(), 0o600)];
    for (path, mode) in modes {
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    }
    let secret = dir.path().join("secret.toml");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    let probe = command.arg("--version").output();
    if !probe.is_ok_and(|output| output.status.success()) {
        println!("\nSKIPPED: only root can try what other users may");
        return;
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
    let output = command.args(["boot", "--spec"]).arg(secret).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("secret.toml: Permission denied: let this user open it"), "{said}");
    assert_eq!(said.trim_end().lines().count(), 1, "{said}");
    if std::fs::metadata("/dev/kvm").is_ok_and(|kvm| std::os::unix::fs::MetadataExt::mode(&kvm) & 0o006 == 0) {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&program);
        let said = command.args(["doctor"]).output().unwrap().stdout;
        let said = String::from_utf8_lossy(&said).into_owned();
        let wanted = "missing  KVM: /dev/kvm: permission denied; remedy: add yourself to group kvm";
        assert!(said.starts_with(wanted), "{said}");
    }
}

/// `belljar doctor --json` with a cache directory of its own: the exit code, and what it prints.
fn doctor(cache: &str) -> (i32, serde_json::Value) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_belljar"));
    command.args(["doctor", "--json"]).env("BELLJAR_CACHE", cache);
    let output = assert_cmd::Command::from_std(command).timeout(Duration::from_secs(30)).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    (output.status.code().unwrap_or(-1), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn the_doctor_tells_the_same_to_people_and_scripts() {
    let dir = TempDir::new().unwrap();
    let (code, json) = doctor(dir.path().to_str().unwrap());
    let said = belljar(&["doctor"]);
    assert_eq!(said.code, code);
    assert_eq!(code, if json["engine"].is_null() { 125 } else { 0 }, "{json}");
    let items = json["items"].as_array().unwrap();
    let names: Vec<_> = items.iter().map(|item| item["item"].as_str().unwrap()).collect();
    let wanted = ["KVM", "software CPU", "CPU level", "tap interfaces", "user namespaces", "huge pages", "io_uring"];
    assert_eq!(names, [&wanted[..], &["memory", "cache"]].concat());
    let lines: Vec<_> = said.out.lines().collect();
    assert_eq!(lines.len(), items.len() + 1, "{}", said.out);
    for (item, line) in items.iter().zip(&lines) {
        let mark = item["mark"].as_str().unwrap();
        assert!(["ok", "limited", "missing"].contains(&mark), "{item}");
        assert!(line.starts_with(&format!("{mark:<8} {}: ", item["item"].as_str().unwrap())), "{line}");
        assert_eq!(line.contains("; remedy: "), mark != "ok", "{line}");
    }
    assert!(lines[items.len()].starts_with("guests "), "{}", said.out);
    let kvm_works = items[0]["mark"] == "ok";
    assert_eq!(json["engine"] == "kvm", kvm_works, "{json}");
    assert!(kvm_works || items[0]["found"].as_str().unwrap().starts_with("/dev/kvm"), "{json}");
    let left = dir.path().join("kernels");
    assert_eq!(std::fs::read_dir(left).unwrap().count(), 0, "what was tried is gone");
}

#[test]
fn the_doctor_finds_a_cache_that_cannot_be_used() {
    let (code, json) = doctor("/proc/belljar");
    let cache = &json["items"][8];
    assert_eq!((&cache["item"], &cache["mark"]), (&"cache".into(), &"limited".into()), "{cache}");
    assert!(cache["found"].as_str().unwrap().contains("/proc/belljar/kernels"), "{cache}");
    assert!(cache["remedy"].as_str().unwrap().contains("BELLJAR_CACHE"), "{cache}");
    assert_eq!(code, if json["engine"].is_null() { 125 } else { 0 }, "guests run without a cache");
    let said = belljar(&["doctor", "--jason"]);
    assert!(said.code == 2 && said.err.contains("belljar doctor --help"), "{}", said.err);
}

/// What the doctor says of the engine is what a start does.
#[test]
fn a_machine_gets_the_engine_that_the_doctor_found() {
    let (_, json) = doctor("/proc/belljar");
    let kernel = ["--kernel", "/nonexistent/vmlinuz", "--serial", "null"];
    match json["engine"].as_str() {
        None => refuses(&kernel, 125, &["KVM: /dev/kvm"]),
        Some(_) => refuses(&kernel, 125, &["/nonexistent/vmlinuz"]),
    }
}

/// Every test with a guest fails if the software CPU has met an instruction that it offers and has not.
#[test]
#[should_panic(expected = "unimplemented instruction at 0x1000")]
fn a_guest_that_meets_an_unimplemented_instruction_fails_its_test() {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("echo ' WARN {} at 0x1000: monitor' >&2", belljar::engine::UNIMPLEMENTED)]);
    common::Session::start(command).finish(Duration::from_secs(30));
}
