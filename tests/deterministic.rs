//! A real guest whose run can be repeated: Debian's kernel to a shell script, with a disk, random numbers and input, on the
//! software CPU, so on any host. `scripts/test` runs it outside of `scripts/nested`.

mod common;

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use common::tiny;

/// What the guest does: everything that could differ.
const SCRIPT: &str = "\
date
cat /proc/uptime
head -c 16 /dev/hwrng | od -x | head -1
head -c 8 /dev/urandom | od -x | head -1
mkfs.ext2 /dev/vda >/dev/null
mount /dev/vda /mnt
dd if=/dev/urandom of=/mnt/random bs=64k count=4 2>/dev/null
md5sum /mnt/random
umount /mnt
sleep 100
(while :; do echo x; done) | head -c 20000 | md5sum
read line
echo typed: $line
grep -E 'LOC|virtio|ttyS0' /proc/interrupts
date
";

/// What came of a run.
#[derive(PartialEq, Eq)]
struct Result {
    console: String,
    instructions: String,
    ram: String,
    disk: Vec<u8>,
}

/// Boots with `flags` and `input`; none if there is no kernel here.
fn run(dir: &Path, input: &str, flags: &[&str]) -> Option<Result> {
    let kernel = common::asset("kernel-6.12-cloud")?.join("vmlinux");
    let initramfs = common::asset("initramfs-6.12-cloud")?;
    let at = |name: &str| dir.join(name);
    File::create(at("disk")).unwrap().set_len(16 << 20).unwrap();
    fs::write(at("input"), input).unwrap();
    let output = Command::new(common::belljar())
        .args(["boot", "--deterministic", "--rng", "--memory", "256M", "--timeout", "120"])
        .arg("--kernel")
        .arg(kernel)
        .arg("--initrd")
        .arg(initramfs)
        .arg("--disk")
        .arg(format!("{},serial=disk", at("disk").display()))
        .arg("--append")
        .arg(format!("quiet bj.cmd={}", common::base64(SCRIPT.as_bytes())))
        .arg("--log")
        .arg(at("log"))
        .arg("--report")
        .arg(at("report"))
        .args(flags)
        .stdin(Stdio::from(File::open(at("input")).unwrap()))
        .output()
        .unwrap();
    let console = String::from_utf8_lossy(&fs::read(at("log")).unwrap()).into_owned();
    assert!(output.status.success(), "{}\n{console}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), console);
    assert!(!console.contains("unimplemented instruction"), "{console}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(at("report")).unwrap()).unwrap();
    let text = |key: &str| report[key].to_string();
    assert_eq!(text("repeatable"), "true");
    let (instructions, ram) = (text("instructions"), text("ram_sha256"));
    Some(Result { console, instructions, ram, disk: fs::read(at("disk")).unwrap() })
}

#[test]
fn the_same_inputs_give_the_same_run() {
    let dir = common::scratch();
    let again = || run(dir.path(), "hello\n", &["--console"]);
    let Some(first) = again() else { return };
    assert!(
        first.console.contains("Thu Jan  1 00:00:0") && first.console.contains("Thu Jan  1 00:01:4"),
        "{}",
        first.console
    );
    assert!(first.console.contains("typed: hello"), "{}", first.console);
    assert!(first.instructions.parse::<u64>().unwrap() > 100_000_000);
    let second = again().unwrap();
    assert_eq!(first.console, second.console);
    assert_eq!((&first.instructions, &first.ram), (&second.instructions, &second.ram));
    assert!(first.disk == second.disk, "the disk differs");
}

#[test]
fn other_inputs_give_another_run() {
    let dir = common::scratch();
    let Some(first) = run(dir.path(), "hello\n", &[]) else { return };
    let seed = run(dir.path(), "hello\n", &["--seed", "1"]).unwrap();
    assert!(first.console != seed.console && first.ram != seed.ram);
    let input = run(dir.path(), "hallo\n", &[]).unwrap();
    assert!(input.console.contains("typed: hallo"), "{}", input.console);
    assert_ne!((first.instructions, first.ram), (input.instructions, input.ram));
}

/// A guest that loops and is ended by the clock.
#[test]
fn a_run_that_the_clock_ends_is_said_not_to_repeat() {
    let dir = common::scratch();
    let (kernel, report) = (dir.path().join("kernel"), dir.path().join("report"));
    fs::write(&kernel, tiny::kernel(&[0xeb, 0xfe])).unwrap();
    let output = Command::new(common::belljar())
        .args(["boot", "--deterministic", "--memory", "64M", "--serial", "stdio", "--timeout", "1"])
        .arg("--kernel")
        .arg(kernel)
        .arg("--report")
        .arg(&report)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(124), "{said}");
    assert!(said.contains("--deterministic: a signal, a key or a time limit ended this run"), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    assert_eq!(report["repeatable"], false);
}
