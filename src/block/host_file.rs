//! Opening the file or block device behind an image: the checks that every format needs.

use std::fs::{File, FileType};
use std::io;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, OFlags, SeekFrom, StatxFlags};

use super::Error;
use super::lock::{self, Outcome};

/// How a file is to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access {
    /// For writing too; then nobody else may use it.
    pub(super) write: bool,
    /// Without the host's page cache (`O_DIRECT`).
    pub(super) direct: bool,
}

/// What direct I/O needs, in bytes, powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Alignment {
    /// Of addresses.
    pub(super) memory: u64,
    /// Of offsets and lengths.
    pub(super) offset: u64,
}

/// Where the kernel does not tell: right for every common disk.
const USUAL_ALIGNMENT: Alignment = Alignment { memory: 4096, offset: 4096 };

/// An open and locked file.
#[derive(Debug)]
pub(super) struct HostFile {
    /// The file; the lock ends when it is closed.
    pub(super) file: File,
    /// As given by the user.
    pub(super) path: PathBuf,
    /// Open for writing.
    pub(super) write: bool,
    /// What direct I/O needs, if it is used.
    pub(super) direct: Option<Alignment>,
    /// Not a regular file.
    pub(super) block_device: bool,
}

impl HostFile {
    /// Opens and locks the file at `path`.
    pub(super) fn open(path: &Path, access: Access) -> Result<Self, Error> {
        let kind = std::fs::metadata(path).map_err(|e| explain(e, path, access))?.file_type();
        let block_device = check_kind(path, kind)?;
        let file = open_file(path, access, block_device)?;
        // The path may lead elsewhere by now; what counts is what was opened.
        let opened = file.metadata().map_err(Error::host("open", path))?.file_type();
        if check_kind(path, opened)? != block_device {
            return Err(Error::NotAnImage { path: path.into(), what: "not what it was a moment ago" });
        }
        match lock::lock(&file, access.write).map_err(Error::host("lock", path))? {
            Outcome::Locked => {}
            Outcome::Busy => {
                let by = lock::holders(&file).map(|who| format!(" by {who}")).unwrap_or_default();
                return Err(Error::Locked { path: path.into(), by });
            }
            Outcome::Unsupported => tracing::warn!(
                "{}: this file system knows no locks: take care that only one machine writes to the image",
                path.display()
            ),
        }
        let direct = match access.direct {
            true => Some(alignment(&file).map_err(Error::host("examine", path))?),
            false => None,
        };
        Ok(Self { file, path: path.into(), write: access.write, direct, block_device })
    }

    /// Length in bytes now.
    pub(super) fn len(&self) -> io::Result<u64> {
        // Unlike a file's status, this works for block devices too. Nothing uses the file's position.
        Ok(rustix::fs::seek(&self.file, SeekFrom::End(0))?)
    }
}

/// Whether it is a block device; an error if it is neither that nor a regular file.
fn check_kind(path: &Path, kind: FileType) -> Result<bool, Error> {
    let what = match kind {
        k if k.is_file() => return Ok(false),
        k if k.is_block_device() => return Ok(true),
        k if k.is_dir() => "a directory",
        k if k.is_char_device() => "a character device",
        k if k.is_fifo() => "a pipe",
        _ => "a socket",
    };
    Err(Error::NotAnImage { path: path.into(), what })
}

fn open_file(path: &Path, access: Access, block_device: bool) -> Result<File, Error> {
    // Should the path have become a pipe in between, opening it must not wait.
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    if access.direct {
        flags |= OFlags::DIRECT;
    }
    if block_device && access.write {
        // For block devices: fail if it is mounted or otherwise in use by the host.
        flags |= OFlags::EXCL;
    }
    let mut options = File::options();
    options.read(true).write(access.write).custom_flags(flags.bits() as i32);
    let file = options.open(path).map_err(|e| explain(e, path, access))?;
    let rest = match access.direct {
        true => OFlags::DIRECT,
        false => OFlags::empty(),
    };
    rustix::fs::fcntl_setfl(&file, rest).map_err(|e| Error::host("open", path)(e.into()))?;
    Ok(file)
}

/// The error that tells the user what to do about `source`.
fn explain(source: io::Error, path: &Path, access: Access) -> Error {
    let path = path.to_path_buf();
    let readable = || access.write && File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&path).is_ok();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => Error::Missing(path),
        Some(libc::EROFS | libc::ETXTBSY) => Error::OnlyReadable(path),
        Some(libc::EACCES | libc::EPERM) if readable() => Error::OnlyReadable(path),
        Some(libc::EACCES | libc::EPERM) => {
            let mode = if access.write { "reading and writing" } else { "reading" };
            let remedy = match path.starts_with("/dev") {
                true => "add yourself to the group that owns the device (ls -l shows it)",
                false => "change it with chmod or chown, or use a copy",
            };
            Error::Denied { path, mode, remedy }
        }
        Some(libc::EBUSY) => Error::Mounted(path),
        Some(libc::EINVAL) if access.direct => {
            Error::Direct { path, reason: "its file system has no direct I/O; leave direct out".into() }
        }
        _ => Error::Host { action: "open", path, source },
    }
}

/// What direct I/O on `file` needs.
fn alignment(file: &File) -> io::Result<Alignment> {
    let status = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)?;
    let known = status.stx_mask & StatxFlags::DIOALIGN.bits() != 0;
    let (memory, offset) = (u64::from(status.stx_dio_mem_align), u64::from(status.stx_dio_offset_align));
    match known && memory.is_power_of_two() && offset.is_power_of_two() {
        true => Ok(Alignment { memory, offset: offset.max(super::SECTOR) }),
        false => Ok(USUAL_ALIGNMENT),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: Access = Access { write: true, direct: false };
    const READ: Access = Access { write: false, direct: false };

    fn refusal(path: &Path, access: Access) -> String {
        let text = HostFile::open(path, access).unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text}");
        text
    }

    #[test]
    fn what_is_no_image_is_refused_with_a_remedy() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refusal(&dir.path().join("none"), READ).contains("does not exist"));
        assert!(refusal(dir.path(), WRITE).contains("is a directory"));
        assert!(refusal(Path::new("/dev/null"), WRITE).contains("a character device"));
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(refusal(&pipe, READ).contains("is a pipe"));
    }

    #[test]
    fn the_second_writer_is_refused() {
        let image = tempfile::NamedTempFile::new().unwrap();
        let first = HostFile::open(image.path(), WRITE).unwrap();
        let text = refusal(image.path(), WRITE);
        assert!(text.contains("is in use") && text.contains("readonly=on"), "{text}");
        assert!(refusal(image.path(), READ).contains("this machine's other disk"));
        drop(first);
        let readers = (HostFile::open(image.path(), READ).unwrap(), HostFile::open(image.path(), READ).unwrap());
        assert!(refusal(image.path(), WRITE).contains("is in use"));
        drop(readers);
        HostFile::open(image.path(), WRITE).unwrap();
    }

    #[test]
    fn files_that_cannot_be_written_ask_for_readonly() {
        // A running program cannot be opened for writing, not even by root.
        let program = std::env::current_exe().unwrap();
        assert!(refusal(&program, WRITE).contains("add readonly=on"));
        assert!(HostFile::open(&program, READ).unwrap().len().unwrap() > 0);
    }

    #[test]
    fn opened_files_block_no_more_and_know_their_alignment() {
        let image = tempfile::NamedTempFile::new_in(".").unwrap();
        let Ok(file) = HostFile::open(image.path(), Access { write: true, direct: true }) else {
            eprintln!("\nSKIPPED: the file system of this directory has no direct I/O");
            return;
        };
        let flags = rustix::fs::fcntl_getfl(&file.file).unwrap();
        assert!(flags.contains(OFlags::DIRECT) && !flags.contains(OFlags::NONBLOCK));
        let alignment = file.direct.unwrap();
        assert!(alignment.memory.is_power_of_two() && alignment.offset >= 512);
    }
}
