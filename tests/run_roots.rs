//! `belljar run`: what becomes the guest's root, which kernels do, who may. Little here depends on the engine: scripts/test
//! has most of it run on the software CPU only.

mod common;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::planted::{LOAD, OOPS, Planted};
use common::run::Runner;
use common::{BOOT, Session, asset, belljar, host, scratch};

/// A directory that is enough of a root: busybox and a file.
fn small_root() -> Option<tempfile::TempDir> {
    let dir = scratch();
    let busybox = asset("busybox")?;
    // What a read-only root must have: there things are mounted.
    for name in ["bin", "dev", "proc", "run", "sbin", "sys", "tmp"] {
        fs::create_dir_all(dir.path().join("root").join(name)).unwrap();
    }
    fs::copy(busybox, dir.path().join("root/bin/busybox")).unwrap();
    for name in ["sh", "cat", "uname", "touch", "id", "ls", "sleep", "stat"] {
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
    let (Some(runner), Some(older), Some(dir)) = (Runner::new("6.12-cloud"), Runner::new("6.1-cloud"), small_root())
    else {
        return;
    };
    fs::hard_link(dir.path().join("root/hello"), dir.path().join("root/other")).unwrap();
    fs::write(dir.path().join("root").join(OsStr::from_bytes(b"odd\xff")), "odd\n").unwrap();
    let script = "cd $1/root && tar czf ../root.tgz . && find . | cpio --quiet -o -H newc | gzip > ../root.cpio.gz";
    host("sh", &["-c", script, "-", dir.path().to_str().unwrap()]);
    let look = "cat /hello /odd$(printf '\\377'); touch /made; echo \"names=$(stat -c %h /other)\"";
    for (runner, name) in [(&runner, "root.tgz"), (&older, "root.cpio.gz")] {
        let outcome = runner.clone().arg("--root", dir.path().join(name)).run(&["sh", "-c", look]);
        assert_eq!(outcome.code(0).console, "from the root\nodd\nnames=2\n", "{name}");
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

/// Makes a disk image of `root` beside it, if there is a program that does.
fn image(dir: &Path, filesystem: &str) -> Option<PathBuf> {
    let image = dir.join(filesystem);
    let script = match filesystem {
        "qcow2" => "mke2fs -q -t ext4 -d root below 32M >/dev/null; qemu-img create -q -f qcow2 -b below -F raw $1",
        "squashfs" => "mksquashfs root $1 -quiet -no-progress",
        "erofs" => "mkfs.erofs $1 root >/dev/null",
        "btrfs" => "truncate -s 200M $1; mkfs.btrfs -q --rootdir root $1 >/dev/null 2>&1",
        // All that its program takes is a list.
        "xfs" => {
            "{ echo /dev/null 0 0 d--755 0 0
               for name in dev proc run sys tmp; do echo $name d--755 0 0 $; done; echo bin d--755 0 0
               for name in root/bin/*; do case $name in */busybox) echo busybox ---755 0 0 $name ;;
               *) echo ${name##*/} l--777 0 0 busybox ;; esac; done; echo $; echo hello ---644 0 0 root/hello $; } >list
             truncate -s 300M $1; mkfs.xfs -q -p list $1"
        }
        other => panic!("{other}"),
    };
    let program = match filesystem {
        "qcow2" => "qemu-img".to_owned(),
        "squashfs" => "mksquashfs".to_owned(),
        other => format!("mkfs.{other}"),
    };
    if Command::new("sh").args(["-c", "command -v $0 >/dev/null", &program]).status().is_ok_and(|s| !s.success()) {
        println!("\nSKIPPED: no {program} here");
        return None;
    }
    let status = Command::new("sh").args(["-ec", script, "-"]).arg(&image).current_dir(dir).status().unwrap();
    assert!(status.success(), "{filesystem}");
    Some(image)
}

#[test]
fn disks_may_have_any_file_system() {
    let (Some(runner), Some(dir)) = (Runner::new("6.12-cloud"), small_root()) else { return };
    for (filesystem, access) in [("squashfs", "--overlay"), ("erofs", "--ro"), ("btrfs", "--rw"), ("xfs", "--rw")] {
        let Some(image) = image(dir.path(), filesystem) else { continue };
        let look = "cat /hello; touch /made 2>/dev/null && echo written; while read -r _ on type _; do
            [ $on != / ] || echo \"type=$type\"; done </proc/mounts";
        let outcome = runner.with(&[access]).arg("--disk-root", image).run(&["sh", "-c", look]);
        assert!(outcome.code(0).console.starts_with("from the root\n"), "{outcome}");
        assert_eq!(outcome.console.contains("written"), access != "--ro", "{outcome}");
        outcome.has("type", if access == "--overlay" { "overlay" } else { filesystem });
    }
}

#[test]
fn a_packed_disk_and_an_init_of_its_own() {
    let (Some(runner), Some(dir)) = (Runner::new("6.12-cloud"), small_root()) else { return };
    let init = dir.path().join("root/sbin/init");
    fs::write(&init, "#!/bin/sh\necho process $$ >/run/by-init\nwhile :; do sleep 1; done\n").unwrap();
    fs::set_permissions(&init, PermissionsExt::from_mode(0o755)).unwrap();
    let Some(image) = image(dir.path(), "qcow2") else { return };
    let runner = runner.with(&["--rw"]).arg("--disk-root", &image);
    let look =
        "until [ -s /run/by-init ]; do sleep 1; done; cat /run/by-init /proc/1/cmdline; echo kept >/made; exit 4";
    let outcome = runner.with(&["--init", "/sbin/init"]).run(&["sh", "-c", look]);
    assert_eq!(outcome.code(4).console, "process 1\n/bin/sh\0/sbin/init\0", "{outcome}");
    // What was written is in the layer.
    assert_eq!(runner.run(&["cat", "/made"]).code(0).console, "kept\n");
}

#[test]
fn a_distributions_init_serves_beside_the_command() {
    let (Some(runner), Some(image)) = (Runner::new("6.12-cloud"), asset("rootfs-systemd")) else { return };
    let image = if image.is_dir() { image.join("rootfs.ext4") } else { image };
    let wait = "until systemctl is-system-running | grep -qE 'running|degraded'; do sleep 1; done
        cat /proc/1/comm; systemctl is-active multi-user.target; exit 3";
    let runner = runner.arg("--disk-root", image).with(&["--init", "/sbin/init", "--boot-timeout", "250"]).limit(270);
    let mut session = runner.start(&["sh", "-c", wait]);
    session.close_input();
    assert_eq!(session.finish(Duration::from_secs(280)).code(3).console, "systemd\nactive\n");
}

#[test]
fn an_oops_is_a_panic_unless_it_shall_not_be() {
    let (Some(runner), Some(oops)) = (Runner::new("6.12-cloud"), Planted::new("kernel-6.12-cloud", OOPS)) else {
        return;
    };
    let runner = runner.arg("-v", oops.volume());
    let load = ["sh", "-c", &format!("{LOAD}; echo \"loader=$?\"; exit 5")];
    runner.run(&load).code(120).says("Kernel panic - not syncing: Fatal exception").says("RIP:");
    runner.with(&["--no-panic-on-oops"]).run(&load).code(5).has("loader", "139");
}

#[test]
fn a_second_serial_port_does_where_nothing_else_is() {
    let (Some(copy), Some(dir)) = (kernel_without(&["vmw_vsock_virtio_transport", "virtio_console"]), small_root())
    else {
        return;
    };
    let Some(runner) = Runner::with_path(copy.path()) else { return };
    let runner = runner.arg("--root", dir.path().join("root"));
    runner.with(&["--dry-run"]).run(&["true"]).code(0).shows("channel to the agent: a console on the serial port");
    let content: String = (0..20_000).map(|number: u32| format!("{number}\n")).collect();
    let mut child = runner.command(&["sh", "-c", "cat; echo apart >&2; exit 9"]);
    let mut child = child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut input, sent) = (child.stdin.take().unwrap(), content.clone());
    let writer = std::thread::spawn(move || input.write_all(sent.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!((output.status.code(), &*output.stderr), (Some(9), &b"apart\n"[..]));
    assert!(output.stdout == content.as_bytes(), "{} bytes", output.stdout.len());
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

/// A copy of Debian's 6.1 cloud kernel without some of its modules.
fn kernel_without(modules: &[&str]) -> Option<tempfile::TempDir> {
    let (kernel, copy) = (asset("kernel-6.1-cloud")?, scratch());
    host("cp", &["-rL", &format!("{}/.", kernel.display()), copy.path().to_str().unwrap()]);
    for module in modules {
        let found = host("find", &[copy.path().to_str().unwrap(), "-name", &format!("{module}.ko*")]);
        assert!(!found.is_empty(), "{module}");
        found.lines().for_each(|path| fs::remove_file(path).unwrap());
    }
    Some(copy)
}

#[test]
fn a_directory_is_packed_where_there_is_no_virtio_fs() {
    let (Some(copy), Some(dir)) = (kernel_without(&["virtiofs"]), small_root()) else { return };
    let Some(runner) = Runner::with_path(copy.path()) else { return };
    let root = dir.path().join("root");
    let outcome = runner.clone().arg("--root", &root).run(&["sh", "-c", "cat /hello; touch /made"]);
    assert_eq!(outcome.code(0).console, "from the root\n");
    outcome.says_one_line("is packed into the guest's memory instead");
    assert!(!root.join("made").exists());
    runner.run(&["true"]).code(125).says_one_line("CONFIG_VIRTIO_FS");
}

/// What a guest's HTTP server on a published port gives, once it serves.
fn fetch(port: u16, path: &str) -> String {
    let limit = Instant::now() + BOOT;
    loop {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        client.set_read_timeout(Some(BOOT)).unwrap();
        client.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).unwrap();
        let mut answer = String::new();
        if client.read_to_string(&mut answer).is_ok() && !answer.is_empty() {
            return answer;
        }
        assert!(Instant::now() < limit, "nobody serves");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn an_ordinary_user_needs_and_gets_nothing() {
    const NOBODY: u32 = 65534;
    let (Some(runner), Some(kernel), Some(busybox)) =
        (Runner::new("6.12-cloud"), asset("kernel-6.12-cloud"), asset("busybox"))
    else {
        return;
    };
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
    fs::copy(busybox, path("home/busybox")).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let published = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        client.set_read_timeout(Some(BOOT)).unwrap();
        let asked = client.read(&mut [0; 1000]).unwrap();
        client.write_all(b"HTTP/1.0 200 OK\r\n\r\nserved\n").unwrap();
        assert!(asked > 0);
    });
    let script = format!(
        "id -u; cat /etc/shadow || echo hidden; touch /etc/mine && echo changed; echo made > /mnt/made
        ls /root || echo closed; PATH=/mnt:$PATH; busybox wget -q -O - http://10.0.2.2:{port}/
        busybox httpd -p 80 -h /mnt; until [ -e /mnt/enough ]; do sleep 0.1; done"
    );
    let mut command = Command::new(path("belljar"));
    command.args(["run", "--engine", runner.engine, "--timeout", "110", "--net", "user,host=on"]);
    command.args(["-p", &format!("{published}:80"), "--kernel"]).arg(path("kernel"));
    command.arg("-v").arg(format!("{}:/mnt", path("home").display())).args(["--", "sh", "-c", &script]);
    // Who may use KVM is in its group.
    let group = if runner.engine == "kvm" { fs::metadata("/dev/kvm").unwrap().gid() } else { NOBODY };
    command.current_dir("/").env_remove("XDG_RUNTIME_DIR").env("HOME", path("home")).uid(NOBODY).gid(group);
    let mut session = Session::start(command);
    session.close_input();
    session.expect("served");
    assert!(fetch(published, "/made").ends_with("\r\n\r\nmade\n"));
    fs::write(path("home/enough"), "").unwrap();
    let outcome = session.finish(BOOT);
    assert_eq!(outcome.code(0).console, "0\nhidden\nchanged\nclosed\nserved\n", "{outcome}");
    server.join().unwrap();
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
