//! The file systems that programs expect: first in the initramfs, as far as the agent itself needs them, then in the
//! guest's root.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{Notes, make_directory};
use crate::protocol::Root;
use crate::serve::reason;
use crate::sys::{self, MS_NODEV, MS_NOEXEC, MS_NOSUID, S_IFCHR};

/// A file system, where it goes, its flags and options.
struct Standard(&'static str, &'static str, u64, &'static str);

const SAFE: u64 = MS_NOSUID | MS_NODEV | MS_NOEXEC;

const PROC: Standard = Standard("proc", "/proc", SAFE, "");
const SYS: Standard = Standard("sysfs", "/sys", SAFE, "");
const DEV: Standard = Standard("devtmpfs", "/dev", MS_NOSUID, "mode=0755");
/// After these three.
const REST: &[Standard] = &[
    Standard("devpts", "/dev/pts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666"),
    Standard("tmpfs", "/dev/shm", MS_NOSUID | MS_NODEV, "mode=1777"),
    Standard("tmpfs", "/run", MS_NOSUID | MS_NODEV, "mode=0755"),
    Standard("tmpfs", "/tmp", MS_NOSUID | MS_NODEV, "mode=1777"),
    Standard("cgroup2", "/sys/fs/cgroup", SAFE, "nsdelegate"),
    Standard("debugfs", "/sys/kernel/debug", SAFE, "mode=0700"),
];
/// Those that nobody misses in a kernel without them.
const OPTIONAL: &[&str] = &["cgroup2", "debugfs"];

/// Nodes that there must be if the kernel makes none: name, numbers.
const NODES: &[(&str, u64, u64)] = &[
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
    ("console", 5, 1),
    ("ptmx", 5, 2),
    ("ttyS0", 4, 64),
    ("ttyS1", 4, 65),
];

/// Links that udev would make.
const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

impl Standard {
    fn mount(&self) -> io::Result<()> {
        let Self(kind, path, flags, options) = *self;
        match sys::mount_at(kind, Path::new(path), kind, flags, options) {
            // Somebody was here before: a kernel that mounts /dev by itself.
            Err(e) if e.raw_os_error() == Some(sys::EBUSY) => Ok(()),
            Err(e) if e.raw_os_error() == Some(sys::EINVAL) && !options.is_empty() => {
                sys::mount_at(kind, Path::new(path), kind, flags, "")
            }
            result => result,
        }
    }

    fn told(&self) -> Result<(), String> {
        make_directory(Path::new(self.1))?;
        self.mount().map_err(|e| format!("cannot mount {} at {}: {}", self.0, self.1, why(self.0, &e)))
    }
}

/// What the agent needs to find its way.
pub fn early() -> Result<(), String> {
    PROC.told()?;
    SYS.told()?;
    devices()
}

/// All of them, in the root that the guest has now; with [`Root::Initramfs`] the first three are there already.
pub fn standard(root: &Root, notes: &mut Notes) -> Result<(), String> {
    if !matches!(root, Root::Initramfs) {
        early()?;
    }
    for standard in REST {
        // Not every kernel has all of these, and not every root has a place for them.
        if let Err(e) = standard.told()
            && !OPTIONAL.contains(&standard.0)
        {
            notes.push(e);
        }
    }
    for (target, link) in LINKS {
        // There is one already, or /dev cannot be written to.
        let _ = symlink(target, link);
    }
    Ok(())
}

fn devices() -> Result<(), String> {
    make_directory(Path::new(DEV.1))?;
    match DEV.mount() {
        // No devtmpfs in this kernel.
        Err(e) if e.raw_os_error() == Some(sys::ENODEV) => {
            sys::mount_at("dev", Path::new(DEV.1), "tmpfs", MS_NOSUID, DEV.3)
                .map_err(|e| format!("cannot mount tmpfs at {}: {}", DEV.1, reason(&e)))?;
            for (name, major, minor) in NODES {
                sys::make_node(&Path::new(DEV.1).join(name), S_IFCHR | 0o666, *major, *minor)
                    .map_err(|e| format!("cannot make /dev/{name}: {}", reason(&e)))?;
            }
        }
        result => result.map_err(|e| format!("cannot mount devtmpfs at {}: {}", DEV.1, reason(&e)))?,
    }
    for directory in ["/dev/pts", "/dev/shm"] {
        // Fails where it is there already.
        let _ = fs::create_dir(directory);
    }
    Ok(())
}

/// Why a file system cannot be mounted, with what to do about it.
pub fn why(kind: &str, error: &io::Error) -> String {
    let option = match kind {
        "virtiofs" => "CONFIG_VIRTIO_FS",
        "overlay" => "CONFIG_OVERLAY_FS",
        "tmpfs" => "CONFIG_TMPFS",
        "devpts" => "CONFIG_UNIX98_PTYS",
        "ext4" => "CONFIG_EXT4_FS",
        _ => return reason(error),
    };
    match error.raw_os_error() {
        Some(sys::ENODEV) => format!("this kernel has no {kind} ({option})"),
        _ => reason(error),
    }
}
