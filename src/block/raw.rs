//! Raw images: the bytes of the disk are the bytes of the file or block device.
//!
//! A file that does not end with a whole sector gets the missing bytes as zeros: dropping the last bytes instead
//! would damage archives and compressed file systems that are used as disks.

use std::fs::File;
use std::io;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::bounce::{Bounce, is_aligned};
use super::host_file::HostFile;
use super::probe::{Probed, probe};
use super::scratch::Scratch;
use super::{Disk, Error, Format, SECTOR, Topology, check_range, total};
use crate::host::parts::part;
use crate::host::vectored::{self, IoBuf};

/// Zeros are written in pieces of this size where the file system cannot make them itself.
const ZEROS: u64 = 64 << 10;

/// A raw image.
#[derive(Debug)]
pub(super) struct Raw {
    host: HostFile,
    /// Bytes in the file; a multiple of the alignment with direct I/O.
    len: u64,
    /// Nobody said that the image is raw, it only looked so: keep it looking so.
    guessed: bool,
    bounce: Bounce,
    logical_block: u32,
}

impl Raw {
    /// A disk over `host`; `guessed` if the format was found by probing.
    pub(super) fn new(host: HostFile, guessed: bool) -> Result<Self, Error> {
        let len = host.len().map_err(Error::host("examine", &host.path))?;
        if len == 0 {
            return Err(Error::Empty(host.path));
        }
        if let Some(align) = host.direct.map(|a| a.offset).filter(|&a| !len.is_multiple_of(a)) {
            let reason = format!(
                "its length is not a multiple of {align} bytes; leave direct out, or make it longer: truncate -s %{align} {}",
                host.path.display()
            );
            return Err(Error::Direct { path: host.path, reason });
        }
        // Partition tables count in logical blocks: a device keeps its own, a file was made for 512 bytes.
        let logical_block = match host.block_device {
            true => rustix::fs::ioctl_blksszget(&host.file).unwrap_or(512).clamp(512, 4096),
            false => 512,
        };
        Ok(Self { host, len, guessed, bounce: Bounce::default(), logical_block })
    }

    /// Whether writing these bytes could change what the image looks like.
    fn touches_signature(&self, at: u64) -> bool {
        self.guessed && at == 0
    }

    /// Writes the first sector by way of a copy, since the guest could change its own buffer after the check.
    fn write_signature(&mut self, from: &[IoBuf]) -> io::Result<()> {
        let copy = Scratch::new(SECTOR)?;
        copy.take(0, from, 0, SECTOR)?;
        if probe(&copy.bytes::<512>(0)?) == Probed::Usable(Format::Qcow2) {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                "the guest writes the header of a qcow2 image to its disk, which would be taken for one the next time; \
                 say format=raw to allow it",
            ));
        }
        self.write_plain(0, copy.list())
    }

    fn write_plain(&mut self, at: u64, from: &[IoBuf]) -> io::Result<()> {
        match self.host.direct {
            Some(a) if !is_aligned(a, at, from) => self.bounce.write(&self.host.file, a.offset, at, from),
            _ => vectored::write_all_at(&self.host.file, at, from),
        }
    }

    /// Reads where the file ends within the last sector.
    fn read_tail(&mut self, at: u64, into: &[IoBuf]) -> io::Result<()> {
        let there = self.len.saturating_sub(at);
        vectored::read_exact_at(&self.host.file, at, &part(into, 0, there))?;
        for rest in part(into, there, total(into) - there).iter() {
            // Less than a sector is left.
            rest.copy_from(&[0; SECTOR as usize]);
        }
        Ok(())
    }

    fn fallocate(&self, flags: FallocateFlags, at: u64, len: u64) -> Result<(), Errno> {
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&self.host.file, flags, at, len))
    }

    fn write_zeros(&mut self, at: u64, len: u64) -> io::Result<()> {
        let zeros = Scratch::new(ZEROS)?;
        let mut done = 0;
        while done < len {
            let count = ZEROS.min(len - done);
            self.write_plain(at + done, &part(zeros.list(), 0, count))?;
            done += count;
        }
        Ok(())
    }
}

impl Disk for Raw {
    fn size(&self) -> u64 {
        self.len.next_multiple_of(SECTOR)
    }

    fn topology(&self) -> Topology {
        let physical_block = 4096.max(self.logical_block);
        Topology { logical_block: self.logical_block, physical_block, discard_block: physical_block }
    }

    fn read(&mut self, at: u64, into: &[IoBuf]) -> io::Result<()> {
        let len = total(into);
        check_range(at, len, self.size())?;
        match self.host.direct {
            Some(a) if !is_aligned(a, at, into) => self.bounce.read(&self.host.file, a.offset, at, into),
            _ if at + len > self.len => self.read_tail(at, into),
            _ => vectored::read_exact_at(&self.host.file, at, into),
        }
    }

    fn write(&mut self, at: u64, from: &[IoBuf]) -> io::Result<()> {
        let len = total(from);
        check_range(at, len, self.size())?;
        if !self.touches_signature(at) || len == 0 {
            self.write_plain(at, from)?;
        } else {
            self.write_signature(&part(from, 0, SECTOR))?;
            self.write_plain(SECTOR, &part(from, SECTOR, len - SECTOR))?;
        }
        // The last sector is whole now, if it was not.
        self.len = self.len.max(at + len);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.host.file.sync_data()
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        check_range(at, len, self.size())?;
        let mut flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if self.host.block_device {
            flags |= FallocateFlags::NO_HIDE_STALE;
        }
        match self.fallocate(flags, at, len) {
            // A hint: not to follow it is right.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(()),
            other => Ok(other?),
        }
    }

    fn write_zeroes(&mut self, at: u64, len: u64, unmap: bool) -> io::Result<()> {
        check_range(at, len, self.size())?;
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let zero = FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE;
        let ways = if unmap { [punch, zero] } else { [zero, punch] };
        for way in ways {
            match self.fallocate(way, at, len) {
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {}
                other => return Ok(other?),
            }
        }
        self.write_zeros(at, len)
    }

    fn refresh_size(&mut self) -> io::Result<()> {
        let len = self.host.len()?;
        self.len = match self.host.direct {
            Some(a) => len - len % a.offset,
            None => len,
        };
        Ok(())
    }

    fn size_may_change(&self) -> bool {
        true
    }

    fn plain_file(&self, at: u64, bufs: &[IoBuf], write: bool) -> Option<&File> {
        let end = at.checked_add(total(bufs))?;
        let aligned = self.host.direct.is_none_or(|a| is_aligned(a, at, bufs));
        let plain = aligned && end <= self.len && !(write && self.touches_signature(at));
        (plain && (self.host.write || !write)).then_some(&self.host.file)
    }
}
