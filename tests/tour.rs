//! The documents as their readers use them: every ```` ```sh ```` block of a page is really run, with real guests, in
//! a directory of its own. Conventions of the pages:
//!
//! - ```` ```sh ````: run by a shell that stops at the first error. `scripts/assets`, `sudo` and `belljar` are there.
//! - ```` ```sh guest ````: typed into the guests of the block before, then `exit`, which ends them. Without it, only `exit`.
//! - ```` ```text ````: lines that the block before must show, in this order; the parts around `..` must.
//! - anything else is not run: `docs.rs` sees to it that no belljar command hides there.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};

/// Lines with these words are left out, for these reasons.
const NOT_RUN: &[(&str, &str)] = &[
    ("scripts/assets rootfs-systemd", "a login prompt throws typed-ahead input away; tests/userland.rs boots it"),
    ("/dev/vg0/guest", "needs a volume group; tests/disks.rs uses `direct` with a file"),
    ("--serial pty", "needs somebody who reads the path of the terminal; tests/devices.rs does"),
    ("screen /dev/pts", "needs a terminal"),
    ("nft ", "changes the firewall of the host"),
    ("sysctl ", "changes the routing of the host"),
    ("qemu-img convert", "needs an image of another program"),
    ("apt-get download", "needs Debian's archive; src/kernel/package/tests.rs makes packages"),
    ("linux-image-*.deb", "the same"),
];

/// How long a block may take.
const BLOCK: Duration = Duration::from_secs(240);

struct Block {
    kind: String,
    text: String,
    line: usize,
}

/// The fenced blocks of a page.
fn blocks(page: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut open: Option<Block> = None;
    for (number, line) in page.lines().enumerate() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(kind), None) => open = Some(Block { kind: kind.into(), text: String::new(), line: number + 1 }),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some(block)) => block.text.extend([line, "\n"]),
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block does not end");
    blocks
}

fn is_run(line: &str) -> bool {
    !NOT_RUN.iter().any(|(words, _)| line.contains(words))
}

/// Where a page is tried: a directory with what its commands expect to find.
struct Place {
    dir: tempfile::TempDir,
    engine: &'static str,
    /// With its modules.
    kernel: PathBuf,
}

impl Place {
    fn new(engine: &'static str, kernel: &Path, initramfs: &[PathBuf]) -> Self {
        let place = Self { dir: common::scratch(), engine, kernel: kernel.into() };
        for name in ["bin", "scripts"] {
            fs::create_dir(place.dir.path().join(name)).unwrap();
        }
        let known = "case $1 in kernel-6.12-cloud) echo \"$KERNEL\" ;; initramfs-6.12-cloud) echo \"$INITRAMFS\" ;; \
                     tree-small) echo \"$BELLJAR_ASSET_TREE_SMALL\" ;; *) echo \"no asset $1 here\" >&2; exit 1 ;; esac";
        place.program("scripts/assets", known);
        // By its path, because busybox prefers its own to what PATH says, and that makes no taps.
        let ip = path_of("ip").unwrap_or_default();
        place.program("bin/sudo", &format!("[ \"$1\" = ip ] || exec \"$@\"\nshift; exec {} \"$@\"", ip.display()));
        // Somebody sits at the keyboard of each guest whose input does not come from elsewhere; and waits for no guest
        // for ever. Pages do not say which engine; this test run does.
        let typing = "case $1 in run) shift; set -- run --engine \"$ENGINE\" --kernel \"$KERNEL_ASSET\" \"$@\" ;; \
                      test) shift; set -- test --engine \"$ENGINE\" --ignore-splat \"$KNOWN\" \"$@\" ;; esac\n\
                      if [ \"$(readlink /proc/self/fd/0)\" = \"$KEYBOARD\" ]; then exec <\"$KEYBOARD\"; fi\n\
                      case \"$*\" in [!b]* | *--timeout* | *--dry-run*) ;; *) set -- \"$@\" --timeout 100 ;; esac\n\
                      case \"$*\" in *--engine*) ;; boot\\ *) set -- \"$@\" --engine \"$ENGINE\" ;; esac\n\
                      exec \"$BELLJAR_REAL\" \"$@\"";
        place.program("bin/belljar", typing);
        for name in ["bzImage", "vmlinux", "config", "modules"] {
            std::os::unix::fs::symlink(kernel.join(name), place.dir.path().join(name)).unwrap();
        }
        // One after the other they are one initramfs to a kernel.
        let mut initrd = File::create(place.dir.path().join("initrd")).unwrap();
        for part in initramfs {
            std::io::copy(&mut File::open(part).unwrap(), &mut initrd).unwrap();
        }
        place
    }

    fn program(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs `script` with `typed` at the keyboard; what it prints. It must succeed.
    fn run(&self, what: &str, script: &str, typed: &str) -> String {
        let (keyboard, output) = (self.dir.path().join("keyboard"), self.dir.path().join("output"));
        fs::write(&keyboard, format!("{typed}exit\n")).unwrap();
        let out = File::create(&output).unwrap();
        let path = std::env::var("PATH").unwrap_or_default();
        let mut child = Command::new("sh")
            .args(["-ec", script])
            .current_dir(&self.dir)
            .env("PATH", format!("{}:{path}", self.dir.path().join("bin").display()))
            .env("K", self.dir.path())
            .env("I", self.dir.path().join("initrd"))
            .envs([("KERNEL", self.dir.path()), ("INITRAMFS", &self.dir.path().join("initrd"))])
            .env("XDG_DATA_HOME", self.dir.path().join("data"))
            .env("KEYBOARD", &keyboard)
            .env("KERNEL_ASSET", &self.kernel)
            .env("BELLJAR_REAL", common::belljar())
            .env("ENGINE", self.engine)
            .env("KNOWN", common::verb::OF_QEMU)
            .env("USER", "root")
            .stdin(File::open(&keyboard).unwrap())
            .stdout(out.try_clone().unwrap())
            .stderr(Stdio::from(out))
            .process_group(0)
            .spawn()
            .unwrap();
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if start.elapsed() > BLOCK {
                break None;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        if status.is_none() {
            // What the block has started is in its group.
            let _ = kill_process_group(Pid::from_child(&child), Signal::KILL);
            let _ = child.wait();
        }
        let shown = String::from_utf8_lossy(&fs::read(output).unwrap()).replace('\r', "");
        println!("{what}: {:.1} s", start.elapsed().as_secs_f32());
        assert!(!shown.contains(common::UNIMPLEMENTED), "{what}\n--- shows\n{shown}");
        assert!(status.is_some_and(|status| status.success()), "{what}: {status:?}\n{script}\n--- shows\n{shown}");
        shown
    }
}

/// The program that PATH leads to.
fn path_of(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// Each line of `wanted` must be in `shown`, one after the other.
fn check(what: &str, shown: &str, wanted: &str) {
    let mut rest = shown;
    for line in wanted.lines().filter(|line| !line.is_empty()) {
        for part in line.split("..").filter(|part| !part.is_empty()) {
            let Some(at) = rest.find(part) else { panic!("{what}: `{part}` does not come\n--- shows\n{shown}") };
            rest = &rest[at + part.len()..];
        }
    }
}

fn tour(name: &str, page: &str) {
    tour_of_guests_with(&[], name, page);
}

/// The same with more in the guests' initramfs: these assets.
fn tour_of_guests_with(more: &[&str], name: &str, page: &str) {
    let Some(engine) = common::engine() else { return };
    let (Some(kernel), Some(initramfs)) = (common::asset("kernel-6.12-cloud"), common::asset("initramfs-6.12-cloud"))
    else {
        return;
    };
    let more: Vec<_> = more.iter().map(|name| common::asset(name).expect("scripts/test makes it")).collect();
    let place = Place::new(engine, &kernel, &[&[initramfs], &more[..]].concat());
    let blocks = blocks(page);
    let mut ran = 0;
    for (index, block) in blocks.iter().enumerate().filter(|(_, block)| block.kind == "sh") {
        let script: String = block.text.split_inclusive('\n').filter(|line| is_run(line)).collect();
        if script.trim().is_empty() {
            continue;
        }
        let mut following = blocks[index + 1..].iter().take_while(|block| block.kind != "sh");
        let mut next = |kind: &str| following.find(|block| block.kind == kind).map_or("", |block| &block.text);
        let what = format!("{name}:{}", block.line);
        let shown = place.run(&what, &script, next("sh guest"));
        let mut following = blocks[index + 1..].iter().take_while(|block| block.kind != "sh");
        if let Some(wanted) = following.find(|block| block.kind == "text") {
            check(&what, &shown, &wanted.text);
        }
        ran += 1;
    }
    assert!(ran > 0, "{name} has nothing to run");
}

/// The same for a page whose commands make network interfaces: in a network of its own.
fn tour_with_network(test: &str, name: &str, page: &str) {
    if std::env::var_os("BELLJAR_OWN_NETWORK").is_some() {
        return tour(name, page);
    }
    let unshare = || {
        let mut command = Command::new("unshare");
        command.args(["-n", "--"]);
        command
    };
    let mut probe = unshare();
    probe.arg(path_of("ip").unwrap_or_default()).args(["tuntap", "add", "probe0", "mode", "tap"]);
    if !probe.status().is_ok_and(|status| status.success()) {
        println!("\nSKIPPED: only root can make tap interfaces");
        return;
    }
    let status = unshare()
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("BELLJAR_OWN_NETWORK", "1")
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn readme() {
    tour_with_network("readme", "README.md", include_str!("../README.md"));
}

#[test]
fn doctor() {
    tour("doctor.md", include_str!("../docs/doctor.md"));
}

#[test]
fn kernels() {
    tour("kernels.md", include_str!("../docs/kernels.md"));
}

#[test]
fn disks() {
    tour("disks.md", include_str!("../docs/disks.md"));
}

#[test]
fn consoles() {
    tour("consoles.md", include_str!("../docs/consoles.md"));
}

#[test]
fn network() {
    tour_with_network("network", "network.md", include_str!("../docs/network.md"));
}

#[test]
fn vsock() {
    tour_of_guests_with(&["guest-socat"], "vsock.md", include_str!("../docs/vsock.md"));
}

#[test]
fn share() {
    tour("share.md", include_str!("../docs/share.md"));
}

#[test]
fn balloon() {
    tour("balloon.md", include_str!("../docs/balloon.md"));
}

#[test]
fn limits() {
    tour("limits.md", include_str!("../docs/limits.md"));
}

#[test]
fn debug() {
    tour("debug.md", include_str!("../docs/debug.md"));
}

#[test]
fn engines() {
    tour("engines.md", include_str!("../docs/engines.md"));
}

#[test]
fn deterministic() {
    tour("deterministic.md", include_str!("../docs/deterministic.md"));
}

#[test]
fn run() {
    tour("run.md", include_str!("../docs/run.md"));
}

#[test]
fn test() {
    tour("test.md", include_str!("../docs/test.md"));
}
