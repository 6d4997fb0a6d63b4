//! Locks on ranges of bytes of a file, owned by the open file and not by the process ("open file description
//! locks", fcntl(2)): they end when the last descriptor of that open file is closed, they work between two
//! openings within one process, and closing an unrelated descriptor of the same file does not drop them.
//!
//! Called while disks are opened, on whatever thread does that. Never blocks.

// UNSAFETY: fcntl has no safe wrapper for these locks.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// How a range is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Others may lock it shared too. The file must be open for reading.
    Shared,
    /// Nobody else may lock it. The file must be open for writing.
    Exclusive,
}

/// Locks `range` (bytes, which need not exist) of `file`. False if another open file has a lock in the way.
pub fn try_lock(file: &File, kind: Kind, range: Range<u64>) -> io::Result<bool> {
    let mut lock = describe(kind, range)?;
    match fcntl(file, libc::F_OFD_SETLK, &mut lock) {
        Ok(()) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether another open file holds any lock within `range` of `file`.
pub fn others_lock(file: &File, range: Range<u64>) -> io::Result<bool> {
    let mut lock = describe(Kind::Exclusive, range)?;
    fcntl(file, libc::F_OFD_GETLK, &mut lock)?;
    Ok(i32::from(lock.l_type) != libc::F_UNLCK)
}

fn describe(kind: Kind, range: Range<u64>) -> io::Result<libc::flock> {
    let offset = |n: u64| libc::off_t::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let kind = match kind {
        Kind::Shared => libc::F_RDLCK,
        Kind::Exclusive => libc::F_WRLCK,
    };
    Ok(libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: offset(range.start)?,
        l_len: offset(range.end.saturating_sub(range.start))?,
        l_pid: 0,
    })
}

fn fcntl(file: &File, command: libc::c_int, lock: &mut libc::flock) -> io::Result<()> {
    // SAFETY: both commands take a pointer to one `flock`, which `lock` is for the duration of the call.
    match unsafe { libc::fcntl(file.as_raw_fd(), command, std::ptr::from_mut(lock)) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_belong_to_open_files() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let open = || File::options().read(true).write(true).open(path.path()).unwrap();
        let (a, b) = (open(), open());
        assert!(try_lock(&a, Kind::Exclusive, 100..110).unwrap());
        assert!(!try_lock(&b, Kind::Shared, 105..106).unwrap());
        assert!(try_lock(&b, Kind::Shared, 110..120).unwrap());
        assert!(others_lock(&a, 110..111).unwrap());
        assert!(!others_lock(&a, 100..110).unwrap(), "one's own locks do not count");
        drop(open());
        assert!(others_lock(&b, 100..101).unwrap(), "closing another descriptor drops nothing");
        drop(a);
        assert!(try_lock(&b, Kind::Exclusive, 100..110).unwrap());
        assert!(try_lock(&b, Kind::Exclusive, 0..u64::MAX).is_err());
    }
}
