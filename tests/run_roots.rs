//! `belljar run`: what becomes the guest's root, which kernels do, who may. Nothing here depends on the engine, so it runs
//! on the software CPU only.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::run::{Runner, runs};
use common::{Session, asset, belljar, host, scratch};

/// A directory that is enough of a root: busybox and a file.
fn small_root() -> Option<tempfile::TempDir> {
    let dir = scratch();
    let busybox = asset("busybox")?;
    // What a read-only root must have: there things are mounted.
    for name in ["bin", "dev", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(dir.path().join("root").join(name)).unwrap();
    }
    fs::copy(busybox, dir.path().join("root/bin/busybox")).unwrap();
    for name in ["sh", "cat", "uname", "touch", "id", "ls"] {
        symlink("busybox", dir.path().join("root/bin").join(name)).unwrap();
    }
    fs::write(dir.path().join("root/hello"), "from the root\n").unwrap();
    Some(dir)
}

#[test]
fn a_directory_is_written_through_or_not() {
    let (Some(runner), Some(dir)) = (Runner::new("6.12-cloud"), small_root()) else { return };
    let root = dir.path().join("root");
    let runner = runner.arg("--root", &root);
    let write = ["sh", "-c", "cat /hello; echo new > /made && cat /made"];
    assert_eq!(runner.run(&write).code(0).console, "from the root\nnew\n");
    assert!(!root.join("made").exists(), "the overlay is thrown away");
    let refused = runner.with(&["--ro"]).run(&write);
    refused.code(1).says("Read-only file system");
    assert_eq!(runner.with(&["--rw"]).run(&write).code(0).console, "from the root\nnew\n");
    assert_eq!(fs::read_to_string(root.join("made")).unwrap(), "new\n");
}

#[test]
fn archives_become_the_root() {
    let (Some(runner), Some(dir)) = (Runner::new("6.12-cloud"), small_root()) else { return };
    let script = "cd $1/root && tar czf ../root.tgz . && find . | cpio --quiet -o -H newc | gzip > ../root.cpio.gz";
    host("sh", &["-c", script, "-", dir.path().to_str().unwrap()]);
    for name in ["root.tgz", "root.cpio.gz"] {
        let outcome = runner.clone().arg("--root", dir.path().join(name)).run(&["sh", "-c", "cat /hello; touch /made"]);
        assert_eq!(outcome.code(0).console, "from the root\n", "{name}");
    }
    let damaged = dir.path().join("damaged.tgz");
    fs::write(&damaged, &fs::read(dir.path().join("root.tgz")).unwrap()[..2000]).unwrap();
    runner.arg("--root", damaged).run(&["true"]).code(125).says_one_line("damaged.tgz");
}

#[test]
fn a_disk_becomes_the_root() {
    let (Some(runner), Some(image)) = (Runner::new("6.12-cloud"), asset("rootfs-systemd")) else { return };
    let image = if image.is_dir() { image.join("rootfs.ext4") } else { image };
    let outcome = runner.arg("--disk-root", image).run(&["sh", "-c", "cat /etc/debian_version; touch /made; id -un"]);
    outcome.code(0);
    assert!(outcome.console.starts_with("12.") && outcome.console.ends_with("\nroot\n"), "{outcome}");
}

#[test]
fn debians_kernels_need_no_preparation() {
    for (kernel, release) in [("6.1-cloud", "6.1."), ("6.1", "6.1.")] {
        let Some(runner) = Runner::new(kernel) else { return };
        let outcome = runner.run(&["uname", "-r"]);
        assert!(outcome.code(0).is_silent().console.starts_with(release), "{outcome}");
    }
}

#[test]
fn a_small_kernel_says_what_it_lacks() {
    let (Some(runner), Some(dir)) = (Runner::with_kernel("tree-small"), small_root()) else { return };
    let runner = runner.arg("--root", dir.path().join("root"));
    runner
        .with(&["--dry-run"])
        .run(&["true"])
        .code(0)
        .shows("# channel to the agent: virtio consoles (CONFIG_VIRTIO_CONSOLE)");
    let outcome = runner.run(&["uname", "-r"]);
    assert!(outcome.code(0).is_silent().console.starts_with("6.12."), "{outcome}");
    let refused = runner.with(&["--net", "user"]).run(&["true"]);
    refused.code(125).says_one_line("this kernel has no virtio network interfaces (CONFIG_VIRTIO_NET)");
}

#[test]
fn a_directory_is_packed_where_there_is_no_virtio_fs() {
    let (Some(_), Some(kernel), Some(dir)) = (Runner::new("6.1-cloud"), asset("kernel-6.1-cloud"), small_root()) else {
        return;
    };
    let copy = dir.path().join("kernel");
    host("cp", &["-rL", kernel.to_str().unwrap(), copy.to_str().unwrap()]);
    host("find", &[copy.to_str().unwrap(), "-name", "virtiofs.ko*", "-delete"]);
    let runner = Runner::with_path(&copy).unwrap();
    let root = dir.path().join("root");
    let outcome = runner.clone().arg("--root", &root).run(&["sh", "-c", "cat /hello; touch /made"]);
    assert_eq!(outcome.code(0).console, "from the root\n");
    outcome.says_one_line("is packed into the guest's memory instead");
    assert!(!root.join("made").exists());
    runner.run(&["true"]).code(125).says_one_line("CONFIG_VIRTIO_FS");
}

#[test]
fn an_ordinary_user_needs_and_gets_nothing() {
    const NOBODY: u32 = 65534;
    let (Some(runner), Some(kernel)) = (Runner::new("6.12-cloud"), asset("kernel-6.12-cloud")) else { return };
    if !rustix::process::getuid().is_root() {
        println!("\nSKIPPED: only root can become another user");
        return;
    }
    let dir = scratch();
    let path = |name: &str| dir.path().join(name);
    // Where everybody may look.
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::copy(belljar(), path("belljar")).unwrap();
    host("cp", &["-rL", kernel.to_str().unwrap(), path("kernel").to_str().unwrap()]);
    host("chmod", &["-R", "a+rX", dir.path().to_str().unwrap()]);
    fs::create_dir(path("home")).unwrap();
    std::os::unix::fs::chown(path("home"), Some(NOBODY), Some(NOBODY)).unwrap();
    let script = "id -u; cat /etc/shadow || echo hidden; touch /etc/mine && echo changed; echo made > /mnt/made
        ls /root || echo closed; ip -4 -o addr show eth0";
    let mut command = Command::new(path("belljar"));
    command.args(["run", "--engine", runner.engine, "--timeout", "110", "-p", "0:80", "--kernel"]).arg(path("kernel"));
    command.arg("-v").arg(format!("{}:/mnt", path("home").display())).args(["--", "sh", "-c", script]);
    command.current_dir("/").env_remove("XDG_RUNTIME_DIR").env("HOME", path("home")).uid(NOBODY).gid(NOBODY);
    let outcome = runs(command);
    outcome.code(0);
    let lines: Vec<_> = outcome.console.lines().collect();
    assert_eq!(lines[..4], ["0", "hidden", "changed", "closed"], "{outcome}");
    assert!(outcome.console.contains("10.0.2.15/24"), "{outcome}");
    assert_eq!(fs::metadata(path("home/made")).unwrap().uid(), NOBODY);
    assert!(!Path::new("/etc/mine").exists());
}

#[test]
fn the_example_runs() {
    let (Some(runner), Some(kernel)) = (Runner::new("6.12-cloud"), asset("kernel-6.12-cloud")) else { return };
    // Cargo builds examples with all tests, not with one.
    let example = Path::new(env!("CARGO_BIN_EXE_belljar")).with_file_name("examples/run_command");
    if !example.exists() {
        println!("\nSKIPPED: no example is built: run cargo build --examples");
        return;
    }
    let mut command = Command::new(example);
    command.arg(kernel).arg(runner.engine);
    // It is built without optimisation, and so is the software CPU in it.
    let outcome = Session::start(command).finish(Duration::from_secs(280));
    outcome
        .code(7)
        .shows("stdout: Linux x86_64")
        .shows("stderr: root")
        .shows("verdict: the command ended with status 7");
}
