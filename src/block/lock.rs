//! A disk image is used by one writer or by any number of readers; whoever comes second is refused.
//!
//! The protocol is that of QEMU and its tools (their `docs/` call it "image locking"), so that an image that a
//! QEMU guest or `qemu-img` works on is refused here, and the other way round. Each user holds shared locks on
//! single bytes far from anything that a plain file lock would use: byte 100+n says "I do n", byte 200+n says
//! "nobody else may do n", with n = 0 for consistent reads, 1 for writes, 3 for resizing.
//!
//! A writer here takes all those bytes exclusively, which is atomic: of two that start at once, one wins.
//! The locks belong to the open file and end with it.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::host::file_lock::{Kind, others_lock, try_lock};

const READS: u64 = 100;
const WRITES: u64 = 101;
const RESIZES: u64 = 103;
const FORBIDS_READS: u64 = 200;
const FORBIDS_WRITES: u64 = 201;
const FORBIDS_RESIZES: u64 = 203;

/// Bytes that a writer keeps from everybody else.
const ALL: [std::ops::Range<u64>; 2] = [100..104, 200..204];

/// What became of an attempt to lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The lock is held as long as the file is open.
    Locked,
    /// Somebody else uses the image in a way that does not go together with ours.
    Busy,
    /// The file system knows no locks.
    Unsupported,
}

/// How long somebody else may take to let go of an image: a machine that is just ending, or a process between fork
/// and exec that shares our own open files for a moment.
const PATIENCE: Duration = Duration::from_millis(300);

/// Locks `file`: for writing alone, or for reading together with other readers.
pub fn lock(file: &File, write: bool) -> io::Result<Outcome> {
    let start = Instant::now();
    loop {
        let outcome = try_once(file, write)?;
        if outcome != Outcome::Busy || start.elapsed() > PATIENCE {
            return Ok(outcome);
        }
        std::thread::sleep(PATIENCE / 30);
    }
}

fn try_once(file: &File, write: bool) -> io::Result<Outcome> {
    let locked = if write { lock_writer(file) } else { lock_reader(file) };
    match locked {
        Ok(true) => Ok(Outcome::Locked),
        Ok(false) => Ok(Outcome::Busy),
        Err(e) => match e.raw_os_error() {
            Some(libc::ENOLCK | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS) => Ok(Outcome::Unsupported),
            _ => Err(e),
        },
    }
}

fn lock_writer(file: &File) -> io::Result<bool> {
    for range in ALL {
        if !try_lock(file, Kind::Exclusive, range)? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn lock_reader(file: &File) -> io::Result<bool> {
    for byte in [READS, FORBIDS_WRITES, FORBIDS_RESIZES] {
        if !try_lock(file, Kind::Shared, byte..byte + 1)? {
            return Ok(false);
        }
    }
    for byte in [WRITES, RESIZES, FORBIDS_READS] {
        if others_lock(file, byte..byte + 1)? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Which processes hold locks on `file` through another opening of it, as far as this user may see, e.g.
/// `qemu-img (pid 42)`; at most three. Locks of this kind belong to no process, so this is a search among all that
/// have the file open, made only for a message.
pub fn holders(file: &File) -> Option<String> {
    let wanted = file.metadata().ok()?;
    let mut found = Vec::new();
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().filter(|n| n.bytes().all(|b| b.is_ascii_digit())) else { continue };
        let own = pid.parse() == Ok(std::process::id());
        // Of those that it got before it met the other's, this opening has locks too.
        let except = if own { file.as_raw_fd().to_string() } else { String::new() };
        if holds(&process.path(), &wanted, &except) {
            let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            let own = if own { ", this machine's other disk" } else { "" };
            found.push(format!("{} (pid {pid}{own})", command.trim()));
        }
        if found.len() == 3 {
            break;
        }
    }
    (!found.is_empty()).then(|| found.join(", "))
}

/// Whether `process` (its directory in /proc) has a lock on the file that is `wanted`, other than by its descriptor
/// `except`. The kernel lists the locks of an open file with its descriptor (proc_pid_fdinfo(5)).
fn holds(process: &Path, wanted: &std::fs::Metadata, except: &str) -> bool {
    let Ok(descriptors) = std::fs::read_dir(process.join("fd")) else { return false };
    let same = |path| std::fs::metadata(path).is_ok_and(|m| m.dev() == wanted.dev() && m.ino() == wanted.ino());
    let locked = |name: &std::ffi::OsStr| {
        let info = std::fs::read_to_string(process.join("fdinfo").join(name)).unwrap_or_default();
        info.lines().any(|line| line.starts_with("lock:") && (line.contains("OFDLCK") || line.contains("POSIX")))
    };
    descriptors.flatten().any(|d| d.file_name() != except && same(d.path()) && locked(&d.file_name()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path, write: bool) -> File {
        File::options().read(true).write(write).open(path).unwrap()
    }

    #[test]
    fn one_writer_or_many_readers() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        std::fs::write(&image, b"x").unwrap();
        let reader = open(&image, false);
        assert_eq!(lock(&reader, false).unwrap(), Outcome::Locked);
        let second = open(&image, false);
        assert_eq!(lock(&second, false).unwrap(), Outcome::Locked);
        let writer = open(&image, true);
        assert_eq!(lock(&writer, true).unwrap(), Outcome::Busy);
        drop((reader, second, writer));
        let writer = open(&image, true);
        assert_eq!(lock(&writer, true).unwrap(), Outcome::Locked);
        assert_eq!(lock(&open(&image, false), false).unwrap(), Outcome::Busy);
        assert_eq!(lock(&open(&image, true), true).unwrap(), Outcome::Busy);
        // Other tests start programs, which share our files until they have become something else.
        let deadline = Instant::now() + Duration::from_secs(10);
        while holders(&writer).is_some() {
            assert!(Instant::now() < deadline, "our own only use is not somebody else's: {:?}", holders(&writer));
        }
    }

    #[test]
    fn who_holds_a_lock_is_named_and_nobody_else() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let locked = open(image.path(), false);
        assert_eq!(lock(&locked, false).unwrap(), Outcome::Locked);
        let mut other =
            std::process::Command::new("sleep").arg("60").stdin(locked).spawn().expect("sleep is part of every system");
        // Only looks at it.
        let mut reader =
            std::process::Command::new("sleep").arg("60").stdin(open(image.path(), false)).spawn().unwrap();
        let ours = open(image.path(), false);
        let deadline = Instant::now() + Duration::from_secs(10);
        let wanted = format!("sleep (pid {})", other.id());
        // Between fork and exec processes still have our name and descriptors.
        while holders(&ours).as_deref() != Some(&wanted) {
            assert!(Instant::now() < deadline, "{:?}", holders(&ours));
            std::thread::sleep(Duration::from_millis(10));
        }
        for child in [&mut other, &mut reader] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
