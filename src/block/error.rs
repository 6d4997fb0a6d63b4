//! Why a disk image cannot be used: one line each, with the remedy.

use std::io;
use std::path::{Path, PathBuf};

/// A disk image cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such file.
    #[error("Disk image {0} does not exist: check the path, or make one: truncate -s 10G {0}")]
    Missing(PathBuf),
    /// It is something that no disk can be.
    #[error("{path} is {what}, not a disk image: give a file or a block device")]
    NotAnImage {
        /// The path.
        path: PathBuf,
        /// E.g. `a directory`.
        what: &'static str,
    },
    /// This user may not open it.
    #[error("No permission to open disk image {path} for {mode}: {remedy}")]
    Denied {
        /// The path.
        path: PathBuf,
        /// `reading` or `writing`.
        mode: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// It may be read but not written.
    #[error(
        "Disk image {0} can only be read: add readonly=on, or snapshot=on to let the guest write without keeping the changes"
    )]
    OnlyReadable(PathBuf),
    /// Another machine or program uses it.
    #[error(
        "Disk image {path} is in use{by}: stop that first, add readonly=on wherever it is used, or give this machine a \
         copy on write: qemu-img create -f qcow2 -b IMAGE -F FORMAT NEW"
    )]
    Locked {
        /// The path.
        path: PathBuf,
        /// ` by NAME (pid N)`, or nothing.
        by: String,
    },
    /// The host itself uses the block device.
    #[error("Block device {0} is in use by the host: unmount it first, or add readonly=on")]
    Mounted(PathBuf),
    /// No bytes in it.
    #[error("Disk image {0} is empty: give it a size: truncate -s 10G {0}")]
    Empty(PathBuf),
    /// A format that is not supported.
    #[error("Disk image {path} looks like a {format} file: first do: {remedy}; or say format=raw to show these bytes")]
    Foreign {
        /// The path.
        path: PathBuf,
        /// What it looks like.
        format: &'static str,
        /// Command that makes it usable.
        remedy: &'static str,
    },
    /// Said to be qcow2, but is not, or is damaged.
    #[error("Disk image {path} is not a usable qcow2 image: {reason}; look at it with: qemu-img check {path}")]
    Corrupt {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A qcow2 feature that is refused.
    #[error("Disk image {path} {what}")]
    Refused {
        /// The path.
        path: PathBuf,
        /// What it has and what to do about it.
        what: String,
    },
    /// A backing file cannot be used.
    #[error("Backing file of disk image {image}: {source}")]
    Backing {
        /// The image that names it.
        image: PathBuf,
        /// Why not.
        source: Box<Error>,
    },
    /// Direct I/O is not possible.
    #[error("Disk image {path} cannot be used with direct=on: {reason}")]
    Direct {
        /// The path.
        path: PathBuf,
        /// Why, and what to do.
        reason: String,
    },
    /// The host refused something.
    #[error("Cannot {action} disk image {path}: {source}")]
    Host {
        /// What was being done.
        action: &'static str,
        /// The path.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
}

impl Error {
    /// Wraps the host's refusal to do `action` to `path`.
    pub(super) fn host(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Error::Host { action, path, source }
    }
}
