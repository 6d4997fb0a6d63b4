//! Requests of section 5.2.6: a header (type, sector), data, a status byte at the end.

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::Shared;
use crate::block::{Disk, SECTOR};
use crate::host::log_limit::LogLimit;
use crate::virtio::Chain;

/// Sectors of one discarded range: 2 GiB, so that one request does not keep the loop for long.
pub(super) const MAX_DISCARD_SECTORS: u32 = 4 << 20;
/// Sectors of one zeroed range: 16 MiB, since not every file system can do it without writing zeros.
pub(super) const MAX_WRITE_ZEROES_SECTORS: u32 = 32 << 10;
/// Ranges in one request.
pub(super) const MAX_RANGES: u32 = 32;

/// Bytes of one range: sector (8), sectors (4), flags (4).
const RANGE_LEN: usize = 16;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Ok,
    IoError,
    Unsupported,
}

impl Status {
    fn byte(self) -> u8 {
        match self {
            Status::Ok => VIRTIO_BLK_S_OK as u8,
            Status::IoError => VIRTIO_BLK_S_IOERR as u8,
            Status::Unsupported => VIRTIO_BLK_S_UNSUPP as u8,
        }
    }
}

/// What a request asks for. Offsets and lengths in bytes, within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill the writable buffers from here.
    Read(u64),
    /// Write the readable buffers here.
    Write(u64),
    Flush,
    Id,
    Discard,
    WriteZeroes,
}

impl Request {
    /// Bytes that are read from or written to the disk, as far as they pass through the guest's memory.
    pub(super) fn data_len(self, chain: &Chain) -> usize {
        match self {
            Request::Read(_) => chain.writable_len(),
            Request::Write(_) => chain.readable_len(),
            Request::Flush | Request::Id | Request::Discard | Request::WriteZeroes => 0,
        }
    }
}

/// Reads the header and checks what can be checked of the rest. The status byte must have been taken.
pub(super) fn parse(chain: &mut Chain, shared: &Shared, size: u64) -> Result<Request, Status> {
    let mut header = [0; 16];
    if chain.read(&mut header) < header.len() {
        return Err(Status::IoError);
    }
    let [kind, _, low, high] = words(&header);
    let sector = u64::from(high) << 32 | u64::from(low);
    let request = match kind {
        VIRTIO_BLK_T_IN => Request::Read(within(sector, chain.writable_len(), size)?),
        VIRTIO_BLK_T_OUT => Request::Write(within(sector, chain.readable_len(), size)?),
        VIRTIO_BLK_T_FLUSH => Request::Flush,
        VIRTIO_BLK_T_GET_ID => Request::Id,
        VIRTIO_BLK_T_DISCARD => Request::Discard,
        VIRTIO_BLK_T_WRITE_ZEROES => Request::WriteZeroes,
        _ => return Err(Status::Unsupported),
    };
    let changes = matches!(request, Request::Write(_) | Request::Discard | Request::WriteZeroes);
    if changes && shared.readonly {
        return Err(Status::IoError);
    }
    Ok(request)
}

/// Four little-endian words.
fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let mut words = [0; 4];
    words.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(to, from)| *to = u32::from_le_bytes(*from));
    words
}

/// Byte offset of `sector`, if `len` bytes from there on are whole sectors of the disk.
fn within(sector: u64, len: usize, size: u64) -> Result<u64, Status> {
    let at = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
    let end = at.checked_add(len as u64).ok_or(Status::IoError)?;
    match len > 0 && (len as u64).is_multiple_of(SECTOR) && end <= size {
        true => Ok(at),
        false => Err(Status::IoError),
    }
}

/// Does what `request` asks for, now.
pub(super) fn serve(request: Request, chain: &mut Chain, disk: &mut dyn Disk, shared: &Shared) -> Status {
    match request {
        Request::Read(at) => {
            let len = chain.writable_len();
            let status = answer(disk.read(at, chain.writable()), shared, "read");
            if status == Status::Ok {
                chain.skip_writable(len);
            }
            status
        }
        Request::Write(at) => {
            let done = disk.write(at, chain.readable());
            answer(permanent(done, disk, shared), shared, "write")
        }
        Request::Flush => answer(disk.flush(), shared, "flush"),
        Request::Id => {
            chain.write(&shared.id);
            Status::Ok
        }
        Request::Discard | Request::WriteZeroes => serve_ranges(request, chain, disk, shared),
    }
}

/// After a change: makes it permanent if the driver relies on that.
fn permanent(done: io::Result<()>, disk: &mut dyn Disk, shared: &Shared) -> io::Result<()> {
    match shared.is_writethrough() {
        true => done.and_then(|()| disk.flush()),
        false => done,
    }
}

/// Discards or zeroes ranges. All of them are checked before the first is touched.
fn serve_ranges(request: Request, chain: &mut Chain, disk: &mut dyn Disk, shared: &Shared) -> Status {
    let len = chain.readable_len();
    if len == 0 || !len.is_multiple_of(RANGE_LEN) || len > MAX_RANGES as usize * RANGE_LEN {
        return Status::IoError;
    }
    let mut bytes = [0; MAX_RANGES as usize * RANGE_LEN];
    let read = chain.read(&mut bytes);
    let (ranges, _) = bytes.get(..read).unwrap_or_default().as_chunks::<RANGE_LEN>();
    let mut checked = Vec::with_capacity(ranges.len());
    for range in ranges {
        match check_range(request, range, disk.size()) {
            Ok(range) => checked.push(range),
            Err(status) => return status,
        }
    }
    for (at, len, unmap) in checked {
        let (done, what) = match request {
            Request::Discard => (disk.discard(at, len), "discard"),
            _ => (disk.write_zeroes(at, len, unmap), "zero"),
        };
        let status = answer(done, shared, what);
        if status != Status::Ok {
            return status;
        }
    }
    answer(permanent(Ok(()), disk, shared), shared, "flush")
}

/// Offset, length and whether to unmap (section 5.2.6.2).
fn check_range(request: Request, range: &[u8; RANGE_LEN], size: u64) -> Result<(u64, u64, bool), Status> {
    let [low, high, sectors, flags] = words(range);
    let unmap = flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0;
    let (most, known) = match request {
        Request::Discard => (MAX_DISCARD_SECTORS, 0),
        _ => (MAX_WRITE_ZEROES_SECTORS, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP),
    };
    if flags & !known != 0 {
        return Err(Status::Unsupported);
    }
    if sectors == 0 || sectors > most {
        return Err(Status::IoError);
    }
    let len = u64::from(sectors) * SECTOR;
    let at = within(u64::from(high) << 32 | u64::from(low), len as usize, size)?;
    Ok((at, len, unmap))
}

/// The status for what the host answered. Tells the user, but not more often than is good.
pub(super) fn answer(result: io::Result<()>, shared: &Shared, what: &str) -> Status {
    static FAILED: LogLimit = LogLimit::new();
    match result {
        Ok(()) => Status::Ok,
        Err(e) => {
            if FAILED.allow() {
                tracing::warn!("{}: the guest gets an I/O error: cannot {what}: {e}", shared.path.display());
            }
            Status::IoError
        }
    }
}

/// Writes the status; returns the used length: bytes filled from the start, with the status if nothing is missing
/// before it (section 2.7.8.2).
pub(super) fn finish(chain: &mut Chain, status: Status) -> u32 {
    let complete = chain.writable_len() == 0;
    chain.set_status(status.byte());
    chain.written().saturating_add(u32::from(complete))
}
