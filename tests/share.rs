//! Shared directories of real guests: what programs rely on in a file system, both sides at once, ordinary users.

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;

use common::{BOOT, Session, base64, scratch};

const KERNEL: &str = "6.12-cloud/vmlinux";

fn share(dir: &Path, more: &str) -> String {
    format!("{},{more}", dir.display())
}

#[test]
fn it_is_a_file_system_in_every_way_to_cache() {
    let guest = guest!(KERNEL);
    let dir = scratch();
    let mut guest = guest.with_tool().args(["--cpus", "2"]);
    for cache in ["auto", "always", "never"] {
        fs::create_dir(dir.path().join(cache)).unwrap();
        let options = format!("tag={cache},mode=rw,cache={cache},queues=2");
        guest = guest.arg("--fs", share(&dir.path().join(cache), &options));
    }
    // Groups and owners are only root's to give.
    let root = rustix::process::geteuid().is_root();
    let script = "
        for cache in auto always never; do
            mkdir /$cache && mount -t virtiofs $cache /$cache && mkdir /$cache/posix && guest-tool posix /$cache/posix
            umount /$cache && mount -t virtiofs $cache /$cache && echo $cache again: $(ls /$cache)
        done";
    let outcome = guest.script(script).run();
    outcome.code(0);
    for cache in ["auto", "always", "never"] {
        outcome.shows(&format!("{cache} again: posix"));
    }
    let failed: Vec<_> = outcome.console.lines().filter(|line| line.starts_with("not ok ")).collect();
    let expected = ["sticky", "set-group-ID", "chown"];
    let allowed = |line: &str| !root && expected.iter().any(|name| line.starts_with(&format!("not ok {name}")));
    assert!(failed.iter().all(|line| allowed(line)), "{outcome}");
    assert_eq!(outcome.console.matches("ok memory").count(), 3, "{outcome}");
}

#[test]
fn each_side_sees_what_the_other_does() {
    let guest = guest!(KERNEL);
    let (dir, beside) = (scratch(), scratch());
    let path = |name: &str| dir.path().join(name);
    fs::write(beside.path().join("secret"), "secret").unwrap();
    fs::create_dir(path("dir")).unwrap();
    fs::write(path("dir/file"), "from the host").unwrap();
    fs::write(path("large"), vec![b'x'; 5_000_000]).unwrap();
    symlink(beside.path().join("secret"), path("link")).unwrap();
    symlink("dir/file", path("inside")).unwrap();
    let guest = guest.arg("--fs", share(dir.path(), "tag=rw,mode=rw")).arg("--fs", share(dir.path(), "tag=ro"));
    let mut session = guest.start();
    session.expect("/ # ");
    session.shell("mkdir /rw /ro; mount -t virtiofs rw /rw; mount -t virtiofs ro /ro");
    let says = |session: &mut Session, command: &str, answer: &str| {
        let shown = session.shell(command);
        assert!(shown.contains(answer), "{command}: {shown}");
    };
    says(&mut session, "cat /rw/dir/file; echo", "from the host");
    says(&mut session, "cat /rw/inside; echo", "from the host");
    says(&mut session, "cat /rw/link", "No such file");
    says(&mut session, "wc -c /rw/large", "5000000 ");
    says(&mut session, "mount -t virtiofs none /mnt", "failed");
    session.shell("echo from the guest >/rw/new; mkdir /rw/made; mv /rw/dir/file /rw/made/moved; rm /rw/inside");
    assert_eq!(fs::read_to_string(path("new")).unwrap(), "from the guest\n");
    assert_eq!(fs::read_to_string(path("made/moved")).unwrap(), "from the host");
    assert!(!path("dir/file").exists() && fs::symlink_metadata(path("inside")).is_err());
    // Names and attributes are good for a second.
    fs::write(path("new"), "changed by the host, and longer").unwrap();
    fs::rename(path("made"), path("renamed")).unwrap();
    says(&mut session, "sleep 1.2; cat /rw/new; echo", "changed by the host, and longer");
    says(&mut session, "cat /rw/renamed/moved; ls /rw/made", "/rw/made: No such file");
    says(&mut session, "touch /ro/x; rm /ro/new; echo >/ro/new; mkdir /ro/y; chmod 0 /ro/new", "Read-only file system");
    says(&mut session, "cat /ro/new; echo; umount /ro /rw && echo unmounted", "unmounted");
    assert_eq!(fs::read_to_string(path("new")).unwrap(), "changed by the host, and longer");
    session.send("exit");
    session.finish(BOOT).code(0);
}

/// belljar as an ordinary user, which the host's root can become.
#[test]
fn an_ordinary_user_shares_what_is_theirs() {
    let guest = guest!(KERNEL);
    if !rustix::process::geteuid().is_root() || guest.engine != "soft" {
        return println!("\nSKIPPED: only root can become somebody else, and only the software CPU needs no device");
    }
    let dir = scratch();
    let path = |name: &str| dir.path().join(name);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Where the user can read them.
    fs::copy(common::belljar(), path("belljar")).unwrap();
    fs::copy(common::asset("kernel-6.12-cloud").unwrap().join("vmlinux"), path("vmlinux")).unwrap();
    let initramfs = common::asset("initramfs-6.12-cloud").unwrap();
    fs::copy(initramfs, path("initrd")).unwrap();
    fs::create_dir(path("shared")).unwrap();
    fs::write(path("shared/mine"), "mine\n").unwrap();
    fs::write(path("shared/root's"), "secret\n").unwrap();
    fs::set_permissions(path("shared/root's"), fs::Permissions::from_mode(0o600)).unwrap();
    chown(path("shared"), Some(1000), Some(1000)).unwrap();
    chown(path("shared/mine"), Some(1000), Some(1000)).unwrap();
    let script = "mkdir /m /host; mount -t virtiofs m /m; mount -t virtiofs host /host; cd /m
        stat -c '%n: %u %g' mine root\\'s; cat mine; cat root\\'s; cat /host/etc/shadow
        mkdir new; echo x >new/file; chown 0:0 new/file && echo chown to root; chown 5 new/file; chmod 640 new/file
        dd if=/dev/zero of=big bs=1M seek=62 count=3; ls -l big
        mknod device c 1 3; rm root\\'s && echo removed; ls /host/proc | wc -l";
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "1000", "--regid", "1000", "--clear-groups"]);
    // 64 MiB: a guest that goes beyond gets an error, and nobody dies.
    command.args(["sh", "-c", "ulimit -f 131072; exec \"$@\"", "sh", "env"]);
    command.arg(format!("HOME={}", path("shared").display())).arg(path("belljar"));
    command.args(["boot", "--engine", "soft", "--timeout", "110", "--kernel"]).arg(path("vmlinux"));
    command.arg("--initrd").arg(path("initrd"));
    command.args(["--append", &format!("quiet bj.cmd={}", base64(script.as_bytes()))]);
    command.arg("--fs").arg(share(&path("shared"), "tag=m,mode=rw")).args(["--fs", "/,tag=host"]);
    let outcome = Session::start(command).finish(BOOT);
    outcome.code(0);
    for line in ["mine: 0 0", "root's: 0 0", "\nmine\n", "can't open 'root's': Permission denied", "chown to root"] {
        outcome.shows(line);
    }
    outcome.shows("can't open '/host/etc/shadow': Permission denied");
    outcome.shows("chown: new/file: Operation not permitted");
    outcome.shows("dd: error writing 'big': File too large");
    outcome.shows("mknod: device: Operation not permitted");
    // In a directory of the user's own, as on the host.
    outcome.shows("removed\n0\n");
    let meta = fs::metadata(path("shared/new/file")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o777), (1000, 1000, 0o640));
}

/// Debian's 6.1 has virtio-fs as modules, and an older protocol.
#[test]
fn an_older_kernel() {
    let guest = guest!("6.1-cloud/vmlinux");
    let dir = scratch();
    fs::write(dir.path().join("file"), "content").unwrap();
    let script = "mkdir /m && mount -t virtiofs m /m && cat /m/file && mkdir /m/posix && guest-tool posix /m/posix";
    let outcome = guest.with_tool().arg("--fs", share(dir.path(), "tag=m,mode=rw")).script(script).run();
    outcome.code(0).shows("content");
    assert!(outcome.console.contains("posix: 0 of") || !rustix::process::geteuid().is_root(), "{outcome}");
}
