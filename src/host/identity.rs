//! As whom a thread uses files (setfsuid(2)), for a file server that runs as root: files that a guest's user makes belong
//! to that user from the beginning. Every other thread of the process is left as it is.

// UNSAFETY: setfsuid and setfsgid are plain system calls without safe wrappers.
#![expect(unsafe_code)]

use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// What lets a thread pass checks of permission that somebody else has made already.
const PASS: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

fn set_fs_uid(uid: u32) -> Result<(), Errno> {
    // SAFETY: changes an attribute of the calling thread and touches no memory; all ones only ask for the value.
    let now = unsafe {
        libc::setfsuid(uid);
        libc::setfsuid(u32::MAX)
    };
    if now as u32 == uid { Ok(()) } else { Err(Errno::PERM) }
}

fn set_fs_gid(gid: u32) -> Result<(), Errno> {
    // SAFETY: as above.
    let now = unsafe {
        libc::setfsgid(gid);
        libc::setfsgid(u32::MAX)
    };
    if now as u32 == gid { Ok(()) } else { Err(Errno::PERM) }
}

/// Calls `work` on a thread whose new files belong to `uid` and `gid`. It keeps the right to pass checks of permission,
/// if it has it. Meant for threads of root.
pub fn with_owner<T>(uid: u32, gid: u32, work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if (uid, gid) == own {
        return work();
    }
    let before = capabilities(None)?;
    let _back = Back { uid: own.0, gid: own.1 };
    set_fs_gid(gid)?;
    set_fs_uid(uid)?;
    // Leaving root's user ID dropped all that has to do with files.
    let now = capabilities(None)?;
    let effective = now.effective | (before.effective & PASS);
    set_capabilities(None, CapabilitySets { effective, ..now })?;
    work()
}

/// Puts the thread back when `work` has returned, or panicked. The kernel gives root its capabilities back by itself.
struct Back {
    uid: u32,
    gid: u32,
}

impl Drop for Back {
    fn drop(&mut self) {
        // Cannot fail: these are the thread's own.
        let _ = set_fs_uid(self.uid);
        let _ = set_fs_gid(self.gid);
    }
}

/// Calls `work` on a thread that may not keep set-user-ID and set-group-ID when it writes to a file.
pub fn without_keeping_set_id<T>(work: impl FnOnce() -> Result<T, Errno>) -> Result<T, Errno> {
    let before = capabilities(None)?;
    if !before.effective.contains(CapabilitySet::FSETID) {
        return work();
    }
    set_capabilities(None, CapabilitySets { effective: before.effective - CapabilitySet::FSETID, ..before })?;
    let result = work();
    set_capabilities(None, before)?;
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[test]
    fn files_belong_to_whom_they_shall_and_the_thread_is_root_again() {
        if !is_root() {
            return println!("\nSKIPPED: only root has other identities");
        }
        let dir = tempfile::TempDir::new().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o700)).unwrap();
        let before = capabilities(None).unwrap();
        let make = |name: &str| fs::write(dir.path().join(name), "").map_err(|e| Errno::from_io_error(&e).unwrap());
        with_owner(1234, 567, || make("theirs")).unwrap();
        make("ours").unwrap();
        let owner = |name: &str| fs::metadata(dir.path().join(name)).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!((owner("theirs"), owner("ours")), ((1234, 567), (0, 0)));
        let after = capabilities(None).unwrap();
        assert_eq!(after.effective, before.effective);
        assert_eq!(with_owner(1, 1, || Err::<(), _>(Errno::EXIST)), Err(Errno::EXIST));
        make("ours too").unwrap();
        assert_eq!(owner("ours too"), (0, 0));
    }

    #[test]
    fn writing_takes_set_user_id_away() {
        let dir = tempfile::TempDir::new().unwrap();
        let path = dir.path().join("program");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
        let write = || fs::write(&path, "new").map_err(|e| Errno::from_io_error(&e).unwrap());
        without_keeping_set_id(write).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o755);
    }
}
