//! A FUSE server that shares a directory of the host: what is behind virtio-fs ([`crate::devices::fs`]).
//!
//! | file | what it is |
//! | --- | --- |
//! | `protocol`, `answer` | requests and answers of FUSE 7.38, field by field |
//! | `server` | negotiation, and which request is served where |
//! | `inodes`, `handles` | what the guest knows, and what it has open |
//! | `names`, `attributes`, `files`, `directories`, `xattrs` | the requests |
//! | `owners`, `sealed` | whose files are whose; what is not shown |
//!
//! Everything runs on the event loop of the device, which waits for the host's file system and for nothing else.
//! Data goes straight between guest RAM and files.
//!
//! # What a guest may reach
//!
//! The server has the rights of the process. No name that a guest gives is more than one component, no symbolic link is
//! followed, and nothing but regular files and directories is ever opened: so nothing outside of the shared directory is
//! reached, and no device of the host is touched. A directory that somebody on the host moves out of the shared one
//! while the guest uses it stays usable for as long as the host keeps its descriptor, as for any program that is in it.

mod answer;
mod attributes;
mod directories;
mod files;
mod handles;
mod inodes;
mod names;
mod owners;
pub mod protocol;
mod sealed;
mod server;
#[cfg(test)]
pub(crate) mod testing;
mod xattrs;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

pub use inodes::Limits;
pub use server::{Answer, Data, Server};

/// For how long the guest may believe what it was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Not at all: changes on the host are seen at once, data is read from the host each time.
    Never,
    /// For a second; data until the file is opened and was changed meanwhile.
    Auto,
    /// For as long as it likes: nobody else changes anything.
    Always,
}

impl Cache {
    /// How long names and attributes are good.
    fn valid(self) -> Duration {
        match self {
            Cache::Never => Duration::ZERO,
            Cache::Auto => Duration::from_secs(1),
            Cache::Always => Duration::from_secs(86_400),
        }
    }
}

/// A directory that is shared; it outlives resets of the device.
#[derive(Debug)]
pub struct Share {
    root: Arc<OwnedFd>,
    /// `/proc/self/fd`: the only way to open what a descriptor stands for.
    descriptors: OwnedFd,
    writable: bool,
    cache: Cache,
    limits: Limits,
    owners: owners::Owners,
    /// Permissions that this process takes from new files.
    umask: u32,
}

/// A directory cannot be shared.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory itself.
    #[error("cannot share {path}: {source}", path = .path.display())]
    Open {
        /// Which one.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// What is needed to open files in it.
    #[error("sharing directories needs /proc: mount it ({0})")]
    Proc(std::io::Error),
}

impl Share {
    /// Shares the directory `path`.
    pub fn open(path: &Path, writable: bool, cache: Cache, limits: Limits) -> Result<Self, Error> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(path, flags, Mode::empty());
        let root = root.map_err(|e| Error::Open { path: path.into(), source: e.into() })?;
        let descriptors = open("/proc/self/fd", flags, Mode::empty()).map_err(|e| Error::Proc(e.into()))?;
        Ok(Self {
            root: Arc::new(root),
            descriptors,
            writable,
            cache,
            limits,
            owners: owners::Owners::of_process(),
            umask: umask(),
        })
    }

    /// EROFS if the guest may change nothing.
    fn check_writable(&self) -> Result<(), Errno> {
        if self.writable { Ok(()) } else { Err(Errno::ROFS) }
    }
}

/// The process's umask, which can be read here without changing it.
fn umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o777)
}
