//! `belljar boot` with real kernels: every kind of image, every way to end, CPUs and memory.

mod common;

use common::{BOOT, Guest};
use rustix::process::Signal;

/// What a guest says about itself.
const REPORT: &str = "uname -r; nproc; grep MemTotal /proc/meminfo";

#[test]
fn a_shell_answers_typed_commands() {
    let mut guest = guest!("6.12-cloud").start();
    guest.expect("belljar-guest: init");
    guest.expect("#");
    assert!(guest.shell("echo $((6 * 7))").contains("\n42\n"));
    assert!(guest.shell("false").ends_with("end 1\n"));
    guest.send("exit");
    guest.finish(BOOT).code(0);
}

/// As from a pipe: before the guest's first instruction.
fn early_input(kernel: &str, flags: &[&str]) {
    let mut guest = guest!(kernel).args(flags).start();
    guest.send("echo first-$((6 * 7))");
    guest.send("echo second-$((7 * 7)); exit");
    guest.expect("first-42");
    guest.expect("second-49");
    guest.finish(BOOT).code(0);
}

#[test]
fn early_input_on_the_serial_port() {
    early_input("6.12-cloud/vmlinux", &[]);
    early_input("6.1-cloud/vmlinux", &[]);
}

#[test]
fn early_input_on_both_consoles() {
    early_input("6.12-cloud/vmlinux", &["--console"]);
    early_input("6.1-cloud/vmlinux", &["--console"]);
}

#[test]
fn the_pvh_entry() {
    for image in ["6.12-cloud/vmlinux", "6.12-cloud"] {
        let outcome = guest!(image).args(["--entry", "pvh", "--cpus", "2"]).script(REPORT).run();
        outcome.code(0).shows("belljar-guest: status 0").shows("\n2\n");
    }
}

/// Also: a hardware watchpoint works; a CPU that speculates nothing needs no protection from itself.
fn boots(kernel: &str, version: &str) {
    let guest = guest!(kernel).with_tool();
    let soft = guest.engine == "soft";
    let script = format!("{REPORT}; guest-tool watchpoint; cd /sys/devices/system/cpu/vulnerabilities; grep -H . *");
    let outcome = guest.script(&script).run();
    outcome.code(0).shows("belljar-guest: status 0").shows(&format!("\n{version}."));
    for (key, value) in [("stopped", "true"), ("trapped", "true"), ("watchpoint", "1"), ("ended", "true")] {
        outcome.has(key, value);
    }
    let open: Vec<_> = outcome.console.lines().filter(|line| line.contains(":Vulnerable")).collect();
    assert!(!soft || open.is_empty(), "{open:?}");
}

#[test]
fn debian_6_12_cloud_bzimage() {
    boots("6.12-cloud", "6.12");
}

#[test]
fn debian_6_12_cloud_vmlinux() {
    boots("6.12-cloud/vmlinux", "6.12");
}

#[test]
fn debian_6_1_cloud_bzimage() {
    boots("6.1-cloud", "6.1");
}

#[test]
fn debian_6_1_cloud_vmlinux() {
    boots("6.1-cloud/vmlinux", "6.1");
}

#[test]
fn debian_6_1_full_bzimage() {
    boots("6.1", "6.1");
}

#[test]
fn debian_6_1_full_vmlinux() {
    boots("6.1/vmlinux", "6.1");
}

#[test]
fn a_bzimage_that_extracts_itself() {
    let outcome = guest!("6.12-cloud").args(["--self-extract"]).script(REPORT).run();
    outcome.code(0).shows("belljar-guest: status 0");
}

fn resources(cpus: u32, memory: &str, least_mib: u64) {
    let guest = guest!("6.12-cloud/vmlinux").arg("--cpus", cpus.to_string()).arg("--memory", memory);
    let outcome = guest.script(REPORT).run();
    outcome.code(0).shows(&format!("\n{cpus}\n"));
    let total = outcome.console.split("MemTotal:").nth(1).and_then(|rest| rest.split_whitespace().next());
    let mib = total.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) / 1024;
    assert!(mib >= least_mib, "{mib} MiB seen\n{outcome}");
}

#[test]
fn one_cpu_128_mib() {
    resources(1, "128M", 80);
}

#[test]
fn two_cpus_2_gib() {
    resources(2, "2G", 1900);
}

#[test]
fn four_cpus_5_gib_across_the_hole() {
    resources(4, "5G", 4800);
}

fn ends(how: &str) -> Option<common::Outcome> {
    Some(Guest::new("6.12-cloud/vmlinux")?.append(&format!("bj.end={how}")).script("true").run())
}

#[test]
fn poweroff_ends_with_0() {
    let Some(outcome) = ends("poweroff") else { return };
    outcome.code(0);
}

#[test]
fn reboot_ends_with_0_and_says_so() {
    let Some(outcome) = ends("reboot") else { return };
    outcome.code(0).says("the guest rebooted");
}

#[test]
fn reboot_through_acpi_or_the_keyboard_controller() {
    for how in ["acpi", "kbd"] {
        let outcome = guest!("6.12-cloud/vmlinux").append(&format!("reboot={how} bj.end=reboot")).script("true").run();
        outcome.code(0).says("the guest rebooted");
    }
}

#[test]
fn halt_ends_with_0_and_says_so() {
    let Some(outcome) = ends("halt") else { return };
    outcome.code(0).says("the guest halted");
}

#[test]
fn panic_ends_with_120_and_its_message() {
    let Some(outcome) = ends("panic") else { return };
    outcome.code(120).says("Kernel panic - not syncing: sysrq triggered crash");
}

#[test]
fn panic_without_reboot_ends_with_120_too() {
    let outcome = guest!("6.12-cloud/vmlinux").append("panic=0 bj.end=panic").script("true").run();
    outcome.code(120);
}

#[test]
fn no_root_file_system_is_a_panic() {
    let outcome = guest!("6.12-cloud/vmlinux").append("rdinit=/nonexistent").run();
    outcome.code(120).says("VFS: Unable to mount root fs");
}

#[test]
fn triple_fault_ends_with_121_and_registers() {
    // Rebooting by a triple fault is what the kernel does when told so.
    let outcome = guest!("6.12-cloud/vmlinux").append("reboot=t bj.end=reboot").script("true").run();
    outcome.code(121).says("triple fault");
}

#[test]
fn the_time_limit_ends_with_124() {
    let guest = guest!("6.12-cloud/vmlinux");
    // It must have booted by then, in scripts/nested too.
    let limit = if guest.engine == "kvm" { 40 } else { 20 };
    let mut guest = guest.limit(limit).append("bj.end=none").script("true").start();
    guest.expect("belljar-guest: status 0");
    guest.finish(BOOT).code(124).says("time limit");
}

#[test]
fn sigterm_asks_the_guest_and_a_second_one_ends_it() {
    let mut guest = guest!("6.12-cloud/vmlinux").append("bj.end=none").script("true").start();
    guest.expect("belljar-guest: status 0");
    guest.signal(Signal::TERM);
    std::thread::sleep(std::time::Duration::from_secs(2));
    assert!(guest.child.try_wait().unwrap().is_none(), "nobody in this guest handles the power button");
    guest.signal(Signal::TERM);
    guest.finish(BOOT).code(143);
}

#[test]
fn the_report_is_json() {
    let path = std::env::temp_dir().join(format!("belljar-report-{}", std::process::id()));
    let guest = guest!("6.12-cloud/vmlinux");
    let engine = guest.engine;
    let outcome = guest.arg("--report", &path).append("bj.end=reboot").script("true").run();
    outcome.code(0);
    let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!((&report["verdict"], &report["exit_code"]), (&"rebooted".into(), &0.into()));
    assert_eq!(report["engine"], engine);
    assert!(report["exits"]["port_out"].as_u64().unwrap() > 0);
}
