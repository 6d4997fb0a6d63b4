//! Disk images: what a guest's disk reads from and writes to.
//!
//! | file | what it is |
//! | --- | --- |
//! | `open` | path and options to a [`Disk`]: checks, format, lock |
//! | `probe`, `lock`, `host_file` | format by first bytes; one writer or many readers; opening |
//! | `raw`, `bounce` | bytes as they are; the aligned copy for misaligned direct I/O |
//! | `qcow2`, `qcow2_header` | QEMU's format with backing files, through the `imago` crate |
//! | `snapshot`, `block_map` | writes go to a file that vanishes; which blocks are in it |
//!
//! Data moves between files and guest RAM by `preadv` and `pwritev`, without a copy. A disk is used by one thread
//! at a time and may block.

use std::fmt::Debug;
use std::fs::File;
use std::io;

use crate::host::vectored::IoBuf;

mod block_map;
mod bounce;
mod error;
mod host_file;
mod lock;
mod open;
mod probe;
mod qcow2;
mod qcow2_header;
mod raw;
mod scratch;
mod snapshot;
#[cfg(test)]
mod tests;

pub use error::Error;
pub use open::{DiskOptions, open};
pub use probe::Format;

/// Unit of virtio disks and of all offsets and lengths here, in bytes.
pub const SECTOR: u64 = 512;

/// Sizes that a guest can choose its requests by, in bytes, powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Smallest unit that can be addressed.
    pub logical_block: u32,
    /// Smallest unit that can be written without reading first.
    pub physical_block: u32,
    /// Unit in which discarding gives space back.
    pub discard_block: u32,
}

/// A disk. Offsets and lengths are bytes, multiples of [`SECTOR`], within [`Disk::size`]; others are errors and
/// change nothing. When a call fails, the bytes of its range are undefined, all others unchanged.
pub trait Disk: Send + Debug {
    /// Size in bytes, a multiple of [`SECTOR`].
    fn size(&self) -> u64;
    /// Sizes that suit this disk.
    fn topology(&self) -> Topology;
    /// Fills `into` from `at` on.
    fn read(&mut self, at: u64, into: &[IoBuf]) -> io::Result<()>;
    /// Writes `from` at `at`. Later reads see it; a [`Disk::flush`] makes it permanent.
    fn write(&mut self, at: u64, from: &[IoBuf]) -> io::Result<()>;
    /// Makes everything written so far permanent.
    fn flush(&mut self) -> io::Result<()>;
    /// The guest needs these bytes no more: a hint, after which they are undefined.
    fn discard(&mut self, at: u64, len: u64) -> io::Result<()>;
    /// Makes these bytes zero; `unmap` allows to give their space back.
    fn write_zeroes(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()>;
    /// Looks whether the image was made longer or shorter by somebody else; [`Disk::size`] then says the new size.
    fn refresh_size(&mut self) -> io::Result<()> {
        Ok(())
    }
    /// Whether [`Disk::refresh_size`] can ever find anything.
    fn size_may_change(&self) -> bool {
        false
    }
    /// The file in which the `len` bytes from `at` on lie at the same offset, if it may be read and written there
    /// by somebody else (io_uring) with these buffers.
    fn plain_file(&self, _at: u64, _bufs: &[IoBuf], _write: bool) -> Option<&File> {
        None
    }
}

/// Bytes in all of `bufs`.
pub fn total(bufs: &[IoBuf]) -> u64 {
    bufs.iter().map(|b| b.len() as u64).sum()
}

/// Error unless the `len` bytes from `at` are whole sectors within `size`.
fn check_range(at: u64, len: u64, size: u64) -> io::Result<()> {
    let inside = at.checked_add(len).is_some_and(|end| end <= size);
    match inside && at.is_multiple_of(SECTOR) && len.is_multiple_of(SECTOR) {
        true => Ok(()),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}
