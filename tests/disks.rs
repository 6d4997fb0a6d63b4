//! Disks of real guests: file systems that outlive the machine, locks, sizes, space, and what happens when it runs out.

mod common;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{BOOT, Guest, asset, host, scratch};

const KERNEL: &str = "6.12-cloud/vmlinux";
const MIB: u64 = 1 << 20;

/// Mounts raw, qcow2, snapshot and readonly disks.
const MOUNT: &str = "
    mkdir /raw /qcow2 /snapshot /readonly
    mount -t ext4 /dev/vda /raw && mount -t ext4 /dev/vdb /qcow2 && mount -t ext4 /dev/vdc /snapshot || exit
    mount -t ext4 -o ro /dev/vdd /readonly || exit
    sums() { for at in raw qcow2 snapshot; do echo \"$at=$(sha256sum </$at/data | cut -c1-64)\"; done; }
";

/// A machine with those disks, from images in `dir`; `aio` is for the raw one.
fn four_disks(guest: Guest, dir: &Path, aio: &str) -> Guest {
    let disk = |name: &str, options: &str| format!("{},{options}", dir.join(name).display());
    guest
        .arg("--disk", disk("plain.ext4", &format!("serial=first,queues=2,{aio}")))
        .arg("--disk", disk("over.qcow2", "format=qcow2"))
        .arg("--disk", disk("base.ext4", "snapshot"))
        .arg("--disk", disk("base.ext4", "readonly"))
        .args(["--cpus", "2"])
}

#[test]
fn file_systems_outlive_the_machine() {
    let (guest, again) = (guest!(KERNEL), guest!(KERNEL));
    let (dir, images) = (scratch(), asset("disks").expect("scripts/test makes it"));
    for name in ["plain.ext4", "base.ext4", "over.qcow2"] {
        fs::copy(images.join(name), dir.path().join(name)).unwrap();
    }
    let script = "
        for at in raw qcow2 snapshot; do dd if=/dev/urandom of=/$at/data bs=1M count=2 conv=fsync 2>/dev/null; done
        sums
        echo serial=$(cat /sys/block/vda/serial)
        echo named=$(cat /sys/block/vdb/serial)
        echo queues=$(ls /sys/block/vda/mq | wc -l)
        echo ro=$(cat /sys/block/vda/ro)$(cat /sys/block/vdd/ro)
        (echo x >/dev/vdd) 2>/dev/null || echo refused=yes
        umount /raw /qcow2 /snapshot
        awk '{ if ($16 > 0) print \"flushed=yes\" }' /sys/block/vda/stat
        dmesg | grep -E 'vd[abcd]' | grep -iE 'error|recover'";
    let guest = four_disks(guest, dir.path(), "aio=io_uring,direct").arg("--transport", "pci");
    let before = guest.script(&[MOUNT, script].concat()).run();
    before.code(0).has("serial", "first").has("named", "over.qcow2").has("queues", "2");
    before.has("ro", "01").has("refused", "yes").has("flushed", "yes");

    let script = "
        rm -f /snapshot/data && cp /raw/data /snapshot/
        sums
        umount /raw /qcow2
        dmesg | grep -E 'vd[abcd]' | grep -iE 'error|recover'
        echo complaints=$?";
    let guest = four_disks(again, dir.path(), "aio=sync").arg("--transport", "mmio");
    let after = guest.script(&[MOUNT, "[ ! -e /snapshot/data ] && echo forgotten=yes\n", script].concat()).run();
    after.code(0).has("complaints", "1").has("forgotten", "yes");
    after.has("raw", before.value("raw")).has("qcow2", before.value("qcow2"));
    assert_ne!(before.value("raw"), before.value("qcow2"));
    assert_eq!(after.value("raw"), after.value("snapshot"));

    let path = |name: &str| dir.path().join(name).display().to_string();
    host("e2fsck", &["-fn", &path("plain.ext4")]);
    host("qemu-img", &["check", "-q", &path("over.qcow2")]);
    let same = fs::read(dir.path().join("base.ext4")).unwrap() == fs::read(images.join("base.ext4")).unwrap();
    assert!(same, "the image below snapshot and qcow2 was changed");
}

/// Bytes that a file takes.
fn space(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[test]
fn space_is_taken_and_given_back_and_grows() {
    let guest = guest!(KERNEL).with_tool();
    let dir = scratch();
    let path = dir.path().join("big.img");
    File::create(&path).unwrap().set_len(3 << 40).unwrap();
    let script = "
        echo size=$(cat /sys/block/vda/size)
        dd if=/dev/urandom of=/tmp/a bs=1M count=1 2>/dev/null
        dd if=/tmp/a of=/dev/vda bs=1M seek=3145727 oflag=direct 2>/dev/null
        dd if=/dev/vda bs=1M skip=3145727 iflag=direct 2>/dev/null | cmp - /tmp/a && echo end=same
        dd if=/dev/urandom of=/dev/vda bs=1M count=24 oflag=direct 2>/dev/null
        left() { dd if=/dev/vda bs=1M count=24 iflag=direct 2>/dev/null | tr -d '\\0' | wc -c; }
        echo; echo written; read
        guest-tool zero /dev/vda 0 8388608 && [ $(left) -lt 16777216 ] && echo zeroed=yes
        blkdiscard -o 8388608 -l 8388608 /dev/vda && echo discarded=yes
        guest-tool punch /dev/vda 16777216 8388608 && echo punched=yes
        echo left=$(left)
        echo; echo emptied; read
        echo 'write through' >/sys/block/vda/queue/write_cache
        echo cache=$(cat /sys/block/vda/queue/write_cache)
        dd if=/tmp/a of=/dev/vda bs=64k count=4 2>/dev/null && dd if=/dev/vda bs=64k count=4 iflag=direct 2>/dev/null | cmp -n 262144 - /tmp/a && echo through=same
        until [ $(cat /sys/block/vda/size) = 8589934592 ]; do usleep 100000; done
        echo; echo grown";
    let mut guest = guest.arg("--disk", &path).script(script).start();
    guest.expect("\nwritten");
    assert!((25 * MIB..30 * MIB).contains(&space(&path)), "{}", space(&path));

    // A machine that writes is the only one.
    let second = guest!(KERNEL).arg("--disk", &path).run();
    second.code(125).says("is in use by belljar (pid ");
    assert_eq!((second.errors.lines().count(), second.console.as_str()), (1, ""), "{second}");

    guest.send("");
    guest.expect("\nemptied");
    assert!((MIB..10 * MIB).contains(&space(&path)), "{}", space(&path));
    File::options().write(true).open(&path).unwrap().set_len(4 << 40).unwrap();
    guest.send("");
    guest.expect("\ngrown");
    let outcome = guest.finish(BOOT);
    outcome.code(0).has("size", &(3 * 1024 * 1024 * 2048u64).to_string()).has("end", "same");
    outcome.has("zeroed", "yes").has("discarded", "yes").has("punched", "yes").has("left", "0");
    outcome.has("cache", "write through").has("through", "same");
}

/// A small file system of its own, if this user may have one.
struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    fn new(size: &str) -> Option<Self> {
        let dir = scratch();
        let path = dir.path().display().to_string();
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs", &path])
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            println!("\nSKIPPED: only root can mount a tmpfs");
        }
        mounted.then_some(Self(dir))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_host_is_an_io_error_in_the_guest() {
    let guest = guest!(KERNEL);
    let Some(tmpfs) = Tmpfs::new("8M") else { return };
    let path = tmpfs.0.path().join("small.img");
    File::create(&path).unwrap().set_len(64 * MIB).unwrap();
    let script = "
        dd if=/dev/zero bs=1M count=1 2>/dev/null | tr '\\0' x >/tmp/a
        for n in $(seq 16); do cat /tmp/a; done | dd of=/dev/vda bs=1M oflag=direct 2>/dev/null || echo full=yes
        dd if=/dev/vda bs=1M count=1 iflag=direct 2>/dev/null | cmp - /tmp/a && echo kept=yes
        blkdiscard /dev/vda && dd if=/tmp/a of=/dev/vda bs=1M count=1 seek=60 oflag=direct 2>/dev/null && echo again=yes";
    let outcome = guest.arg("--disk", &path).script(script).run();
    outcome.code(0).has("full", "yes").has("kept", "yes").has("again", "yes").says("No space left on device");
    assert!(outcome.errors.lines().count() < 10, "{outcome}");
}
