//! From a path and options to a [`Disk`]. Called once per disk, before the machine starts.

use std::path::PathBuf;

use super::host_file::{Access, HostFile};
use super::probe::{PROBE_LEN, Probed, probe};
use super::qcow2::Qcow2Disk;
use super::raw::Raw;
use super::snapshot::Snapshot;
use super::{Disk, Error, Format};

/// What the user says of a disk image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// File or block device.
    pub path: PathBuf,
    /// None: tell by the first bytes.
    pub format: Option<Format>,
    /// The guest may not write.
    pub readonly: bool,
    /// The guest may write, but the image stays as it is.
    pub snapshot: bool,
    /// Without the host's page cache.
    pub direct: bool,
}

/// Opens an image. It is locked until the disk is dropped: against everybody if it is written to, else against
/// writers.
pub fn open(options: &DiskOptions) -> Result<Box<dyn Disk>, Error> {
    let write = !options.readonly && !options.snapshot;
    let host = HostFile::open(&options.path, Access { write, direct: options.direct })?;
    let looks = look(&host)?;
    let (format, guessed) = match (options.format, looks) {
        (Some(Format::Raw), Probed::Usable(Format::Qcow2)) => {
            tracing::warn!("{}: a qcow2 image, used as the raw disk that it is said to be", options.path.display());
            (Format::Raw, false)
        }
        (Some(format), _) => (format, false),
        (None, Probed::Usable(format)) => (format, true),
        (None, Probed::Foreign(format, remedy)) => {
            return Err(Error::Foreign { path: options.path.clone(), format, remedy });
        }
    };
    let disk: Box<dyn Disk> = match format {
        Format::Raw => Box::new(Raw::new(host, guessed)?),
        Format::Qcow2 => Box::new(Qcow2Disk::open(host)?),
    };
    if !options.snapshot || options.readonly {
        return Ok(disk);
    }
    Ok(Box::new(Snapshot::new(disk).map_err(Error::host("make a snapshot of", &options.path))?))
}

/// What the first bytes of `host` look like.
pub(super) fn look(host: &HostFile) -> Result<Probed, Error> {
    // With direct I/O even this read must be aligned; a second opening without it would not have the lock.
    let fail = |e| Error::host("read", &host.path)(e);
    let head = super::scratch::Scratch::new(crate::mem::PAGE).map_err(fail)?;
    crate::host::vectored::read_at(&host.file, 0, head.list()).map_err(fail)?;
    Ok(probe(&head.bytes::<PROBE_LEN>(0).map_err(fail)?))
}
