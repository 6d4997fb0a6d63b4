//! The guest's root: mounted, perhaps under an overlay, and made the root of everything; then what is mounted in it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::mounts::why;
use super::{Notes, make_directory};
use crate::protocol::{Access, Mount, Root};
use crate::serve::reason;
use crate::sys::{self, MNT_DETACH, MS_MOVE, MS_NODEV, MS_NOSUID, MS_RDONLY};

/// In the initramfs.
const LOWER: &str = "/belljar/lower";
const CHANGES: &str = "/belljar/changes";
const MERGED: &str = "/belljar/root";
/// File systems that a disk may have, the likely ones first.
const KINDS: &[&str] = &["ext4", "xfs", "btrfs", "erofs", "squashfs", "f2fs", "ext3", "ext2", "vfat", "iso9660"];
/// How long a disk may take to appear.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(10);

/// The initramfs stays the root; what was only for the agent goes.
pub fn stay() {
    // Not worth a word if it does not work.
    let _ = fs::remove_dir_all("/belljar");
}

/// Mounts `root` and moves into it. What mounts there were before are gone.
pub fn change(root: &Root, notes: &mut Notes) -> Result<(), String> {
    let (access, lower) = match root {
        Root::Initramfs => return Ok(()),
        Root::Fs { access, .. } | Root::Disk { access, .. } => (*access, Path::new(LOWER)),
    };
    make_directory(lower)?;
    let flags = if access == Access::ReadWrite { 0 } else { MS_RDONLY };
    match root {
        Root::Fs { tag, .. } => share(tag, lower, flags)?,
        Root::Disk { device, fstype, .. } => disk(device, fstype.as_deref(), lower, flags)?,
        Root::Initramfs => {}
    }
    let merged = if access == Access::Overlay { overlay(lower, notes) } else { lower.into() };
    enter(&merged).map_err(|e| format!("cannot make {} the root: {}", merged.display(), reason(&e)))
}

fn share(tag: &str, place: &Path, flags: u64) -> Result<(), String> {
    sys::mount_at(tag, place, "virtiofs", flags, "")
        .map_err(|e| format!("cannot mount the shared directory {tag}: {}", why("virtiofs", &e)))
}

fn disk(device: &str, kind: Option<&str>, place: &Path, flags: u64) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    while !Path::new(device).exists() {
        if Instant::now() >= end {
            return Err(format!("there is no disk {device} in the guest"));
        }
        sleep(PAUSE);
    }
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let known = |kind: &&str| known.lines().any(|line| line.split_whitespace().last() == Some(kind));
    let mut kinds: Vec<&str> = match kind {
        Some(kind) => vec![kind],
        None => KINDS.iter().copied().filter(known).collect(),
    };
    // A kernel can have file systems as modules, which nobody would ask for.
    kinds.dedup();
    let mut last = None;
    for kind in &kinds {
        match sys::mount_at(device, place, kind, flags, "") {
            Ok(()) => return Ok(()),
            // Another kind of file system.
            Err(e) if e.raw_os_error() == Some(sys::EINVAL) => {}
            Err(e) => last = Some(format!("as {kind}: {}", why(kind, &e))),
        }
    }
    let partitions = partitions(device);
    Err(match (last, partitions.is_empty()) {
        (Some(why), true) => format!("cannot mount {device} {why}"),
        (_, false) => format!("{device} has no file system but partitions: say which ({})", partitions.join(", ")),
        _ => format!("{device} has none of the file systems that this kernel knows ({})", kinds.join(", ")),
    })
}

fn partitions(device: &str) -> Vec<String> {
    let name = device.rsplit('/').next().unwrap_or_default();
    let entries = fs::read_dir(format!("/sys/class/block/{name}")).into_iter().flatten().flatten();
    let parts = entries.filter(|entry| entry.path().join("partition").exists());
    let mut names: Vec<String> = parts.map(|part| format!("/dev/{}", part.file_name().to_string_lossy())).collect();
    names.sort();
    names
}

/// Changes to `lower` in the guest's memory. A kernel without overlays gets the root as it is, read-only.
fn overlay(lower: &Path, notes: &mut Notes) -> PathBuf {
    let changes = Path::new(CHANGES);
    let attempt = || {
        make_directory(changes)?;
        make_directory(Path::new(MERGED))?;
        sys::mount_at("changes", changes, "tmpfs", MS_NODEV & MS_NOSUID, "mode=0755").map_err(|e| why("tmpfs", &e))?;
        make_directory(&changes.join("upper"))?;
        make_directory(&changes.join("work"))?;
        let options = format!("lowerdir={LOWER},upperdir={CHANGES}/upper,workdir={CHANGES}/work");
        sys::mount_at("overlay", Path::new(MERGED), "overlay", 0, &options).map_err(|e| why("overlay", &e))
    };
    match attempt() {
        Ok(()) => PathBuf::from(MERGED),
        Err(why) => {
            notes.push(format!("the root cannot be changed except in /tmp and /run: {why}"));
            lower.into()
        }
    }
}

/// As switch_root(8) does it: the initramfs cannot be unmounted, so it is emptied, and hidden under the new root.
fn enter(root: &Path) -> io::Result<()> {
    for path in ["/dev/pts", "/dev", "/sys", "/proc"] {
        // The next root gets its own.
        let _ = sys::unmount(Path::new(path), MNT_DETACH);
    }
    std::env::set_current_dir(root)?;
    let device = fs::metadata("/")?.dev();
    empty(Path::new("/"), device);
    sys::mount_at(".", Path::new("/"), "", MS_MOVE, "")?;
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")
}

/// Frees the initramfs: everything that is on `device`, which is in memory.
fn empty(directory: &Path, device: u64) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match fs::symlink_metadata(&path) {
            Ok(about) if about.dev() != device => {}
            Ok(about) if about.is_dir() => {
                empty(&path, device);
                // Fails for those above a mount.
                let _ = fs::remove_dir(&path);
            }
            _ => drop(fs::remove_file(&path)),
        }
    }
}

/// Mounts what the host shares besides.
pub fn volumes(mounts: &[Mount]) -> Result<(), String> {
    for Mount { tag, path, read_only } in mounts {
        let place = Path::new(path);
        let flags = if *read_only { MS_RDONLY } else { 0 };
        make_directory(place)?;
        sys::mount_at(tag, place, "virtiofs", flags, "")
            .map_err(|e| format!("cannot mount the shared directory {tag} at {path}: {}", why("virtiofs", &e)))?;
    }
    Ok(())
}
