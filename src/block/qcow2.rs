//! qcow2 images, read and written through the `imago` crate.
//!
//! The files are opened, checked and locked here, one by one down the chain of backing files, and handed over open:
//! the crate opens nothing by itself.
//!
//! An image is data that a stranger may have made. The crate checks it, but where it trips over one of its own
//! assumptions, the panic ends here: the disk answers errors from then on, the machine goes on.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use imago::file::File as Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::qcow2::Qcow2;
use imago::raw::Raw;
use imago::{FormatAccess, StorageOpenOptions};

use super::host_file::{Access, HostFile};
use super::open::look;
use super::probe::Probed;
use super::scratch::Scratch;
use super::{Disk, Error, Format, SECTOR, Topology, check_range, qcow2_header, total};
use crate::host::parts::part;
use crate::host::vectored::{IoBuf, MAX_BUFS};

/// Longest chain of backing files: more are a loop or a mistake, and each costs memory.
const MAX_CHAIN: u32 = 32;

/// Zeros are written as data in pieces of this size.
const ZEROS: u64 = 64 << 10;

type Image = FormatAccess<Storage>;

/// A qcow2 image with its backing files.
#[derive(Debug)]
pub(super) struct Qcow2Disk {
    /// None after a panic in the crate: its state can no longer be trusted.
    image: Option<Image>,
    path: PathBuf,
    size: u64,
    write: bool,
    cluster: u32,
}

impl Qcow2Disk {
    /// Opens the image in `host` and all that it is based on.
    pub(super) fn open(host: HostFile) -> Result<Self, Error> {
        let (path, write) = (host.path.clone(), host.write);
        let cluster = qcow2_header::check(&host)?;
        let opened = catch_unwind(AssertUnwindSafe(|| open_image(host, 0)));
        let broken = |reason: &str| Error::Corrupt { path: path.clone(), reason: reason.into() };
        let image = opened.unwrap_or_else(|_| Err(broken("its tables contradict each other")))?;
        let size = image.size();
        if size == 0 || !size.is_multiple_of(SECTOR) {
            return Err(broken(&format!("its size is {size} bytes: not a number of sectors")));
        }
        Ok(Self { image: Some(image), path, size, write, cluster })
    }

    /// Does `work` on the image, unless it broke before or breaks now.
    fn with<T>(&mut self, work: impl FnOnce(&mut Image) -> io::Result<T>) -> io::Result<T> {
        let dead = || io::Error::other("the image's driver failed earlier");
        let image = self.image.as_mut().ok_or_else(dead)?;
        catch_unwind(AssertUnwindSafe(|| work(image))).unwrap_or_else(|_| {
            tracing::error!(
                "{}: the image is damaged in a way that its driver cannot handle; the guest's disk fails from now on: \
                 look at it with: qemu-img check",
                self.path.display()
            );
            // Dropping it would write to the image what may be wrong. Its lock stays until the process ends.
            std::mem::forget(self.image.take());
            Err(dead())
        })
    }

    /// Writes zeros as data.
    fn write_zeros(&mut self, at: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let zeros = Scratch::new(ZEROS)?;
            let count = ZEROS.min(len - done);
            self.write(at + done, &part(zeros.list(), 0, count))?;
            done += count;
        }
        Ok(())
    }

    fn check(&self, at: u64, len: u64, write: bool) -> io::Result<()> {
        if write && !self.write {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        check_range(at, len, self.size)
    }
}

impl Disk for Qcow2Disk {
    fn size(&self) -> u64 {
        self.size
    }

    fn topology(&self) -> Topology {
        let physical_block = self.cluster.clamp(512, 4096);
        Topology { logical_block: 512, physical_block, discard_block: self.cluster }
    }

    fn read(&mut self, at: u64, into: &[IoBuf]) -> io::Result<()> {
        self.check(at, total(into), false)?;
        let mut at = at;
        // The crate hands its lists to the kernel whole, which takes no more than this.
        for bufs in into.chunks(MAX_BUFS) {
            let slices: Vec<_> = bufs.iter().map(IoBuf::volatile).collect();
            self.with(|image| {
                let (vector, _mapped) = IoVectorMut::from_volatile_slice(&slices);
                image.readv(vector, at)
            })?;
            at += total(bufs);
        }
        Ok(())
    }

    fn write(&mut self, at: u64, from: &[IoBuf]) -> io::Result<()> {
        self.check(at, total(from), true)?;
        let mut at = at;
        for bufs in from.chunks(MAX_BUFS) {
            let slices: Vec<_> = bufs.iter().map(IoBuf::volatile).collect();
            self.with(|image| {
                let (vector, _mapped) = IoVector::from_volatile_slice(&slices);
                image.writev(vector, at)
            })?;
            at += total(bufs);
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.write {
            true => self.with(|image| image.flush().and_then(|()| image.sync())),
            false => Ok(()),
        }
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        self.check(at, len, true)?;
        match self.with(|image| image.discard_to_any(at, len)) {
            // Version 2 has no discarding: a hint that need not be followed.
            Err(e) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
            other => other,
        }
    }

    fn write_zeroes(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.check(at, len, true)?;
        // Only whole clusters: imago 0.2.6 miscounts where a part of the last, incomplete cluster is zeroed.
        let (end, cluster) = (at + len, u64::from(self.cluster));
        let last = if end == self.size { end } else { end - end % cluster };
        let first = at.next_multiple_of(cluster);
        if first >= last {
            return self.write_zeros(at, len);
        }
        self.write_zeros(at, first - at)?;
        let done = self.with(|image| match unmap {
            true => image.discard_to_zero(first, last - first),
            false => image.write_zeroes(first, last - first),
        });
        match done {
            // Version 2 cannot say "zero".
            Err(e) if e.kind() == io::ErrorKind::Unsupported => self.write_zeros(first, last - first)?,
            other => other?,
        }
        self.write_zeros(last, end - last)
    }
}

/// Opens the qcow2 image in `host`, which is number `depth` of its chain.
fn open_image(host: HostFile, depth: u32) -> Result<Image, Error> {
    let (path, write, direct) = (host.path.clone(), host.write, host.direct.is_some());
    let corrupt = |e: io::Error| Error::Corrupt { path: path.clone(), reason: e.to_string() };
    let mut image = Qcow2::<Storage>::open_image(storage(host)?, write).map_err(corrupt)?;
    image.set_data_file(None);
    let backing = match image.implicit_backing_file() {
        None => None,
        Some(name) => {
            let format = image.implicit_backing_format().map(String::as_str);
            let opened = open_backing(&path, name, format, direct, depth + 1);
            Some(opened.map_err(|e| Error::Backing { image: path.clone(), source: Box::new(e) })?)
        }
    };
    image.set_backing(backing);
    Ok(FormatAccess::new(image))
}

/// Opens the file called `name` in the header of `image`.
fn open_backing(image: &Path, name: &str, format: Option<&str>, direct: bool, depth: u32) -> Result<Image, Error> {
    let path = backing_path(image, name)?;
    if depth > MAX_CHAIN {
        let what = format!("is number {depth} of a chain of backing files, which is too long or a loop");
        return Err(Error::Refused { path, what });
    }
    let host = HostFile::open(&path, Access { write: false, direct })?;
    let format = match (format, look(&host)?) {
        (Some("raw" | "file"), _) => Format::Raw,
        (Some("qcow2"), _) => Format::Qcow2,
        (Some(other), _) => {
            let what = format!("is said to be of format {other:?}; raw and qcow2 can be used");
            return Err(Error::Refused { path, what });
        }
        (None, Probed::Usable(format)) => format,
        (None, Probed::Foreign(format, remedy)) => return Err(Error::Foreign { path, format, remedy }),
    };
    tracing::info!("{} is based on {} ({})", image.display(), path.display(), format.name());
    match format {
        Format::Qcow2 => {
            qcow2_header::check(&host)?;
            open_image(host, depth)
        }
        Format::Raw => {
            let raw = Raw::open_image(storage(host)?, false).map_err(Error::host("open", &path))?;
            Ok(FormatAccess::new(raw))
        }
    }
}

/// Where the backing file called `name` is: relative names start at the image that names it.
fn backing_path(image: &Path, name: &str) -> Result<PathBuf, Error> {
    let name = name.strip_prefix("file:").unwrap_or(name);
    // `json:{...}`, `nbd://...`; a path with a colon has a slash before it.
    if name.split_once(':').is_some_and(|(scheme, _)| !scheme.is_empty() && !scheme.contains('/')) {
        let what = format!(
            "is based on {name:?}, which is not a file: make it one image: qemu-img convert -O qcow2 IMAGE NEW.qcow2"
        );
        return Err(Error::Refused { path: image.into(), what });
    }
    // Beside the name that was used for the image, even if that is a link: as QEMU does.
    Ok(image.parent().unwrap_or(Path::new("/")).join(name))
}

/// Hands an open file to the crate.
fn storage(host: HostFile) -> Result<Storage, Error> {
    let options = StorageOpenOptions::new().filename(&host.path).write(host.write).direct(host.direct.is_some());
    Storage::from_open_file(host.file, options).map_err(Error::host("examine", &host.path))
}
