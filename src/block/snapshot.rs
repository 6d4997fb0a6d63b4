//! `snapshot=on`: the guest may write, but the image stays as it is. What the guest writes goes to a file without a
//! name that vanishes with the machine; the image below is opened for reading only.

use std::fs::File;
use std::io;

use rustix::fs::{FallocateFlags, MemfdFlags, Mode, OFlags};

use super::block_map::{BLOCK, BlockMap};
use super::scratch::Scratch;
use super::{Disk, Topology, check_range, total};
use crate::host::parts::part;
use crate::host::vectored::{self, IoBuf};

/// Zeros for the ends of a range that is not whole blocks.
const ZEROS: u64 = BLOCK;

/// A disk whose changes are thrown away.
#[derive(Debug)]
pub(super) struct Snapshot {
    base: Box<dyn Disk>,
    overlay: File,
    /// Blocks that are in the overlay, at the same offset as in the base.
    changed: BlockMap,
    size: u64,
    /// One block, for copying.
    scratch: Scratch,
}

impl Snapshot {
    /// A disk that reads from `base` what the guest has not written.
    pub(super) fn new(base: Box<dyn Disk>) -> io::Result<Self> {
        let size = base.size();
        let overlay = nameless_file(size)?;
        Ok(Self { base, overlay, changed: BlockMap::default(), size, scratch: Scratch::new(BLOCK)? })
    }

    /// Calls `each` for every stretch of `len` bytes from `at` on that lies wholly in the overlay or wholly in the
    /// base: (whether in the overlay, offset from `at`, length).
    fn stretches(
        &mut self,
        at: u64,
        len: u64,
        mut each: impl FnMut(&mut Self, bool, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let here = at + done;
            let (changed, blocks) = self.changed.run(here / BLOCK, (at + len).div_ceil(BLOCK) - here / BLOCK);
            let end = (here / BLOCK + blocks) * BLOCK;
            let count = end.min(at + len) - here;
            each(self, changed, done, count)?;
            done += count;
        }
        Ok(())
    }

    /// Brings the block around `at` into the overlay, unless it is there or `at` is its start.
    fn copy_up(&mut self, at: u64) -> io::Result<()> {
        let block = at / BLOCK;
        if at.is_multiple_of(BLOCK) || self.changed.has(block) || at >= self.size {
            return Ok(());
        }
        let start = block * BLOCK;
        let content = part(self.scratch.list(), 0, BLOCK.min(self.size - start));
        self.base.read(start, &content)?;
        vectored::write_all_at(&self.overlay, start, &content)?;
        self.changed.add(block, 1);
        Ok(())
    }
}

impl Disk for Snapshot {
    fn size(&self) -> u64 {
        self.size
    }

    fn topology(&self) -> Topology {
        let base = self.base.topology();
        Topology { physical_block: BLOCK as u32, discard_block: BLOCK as u32, ..base }
    }

    fn read(&mut self, at: u64, into: &[IoBuf]) -> io::Result<()> {
        let len = total(into);
        check_range(at, len, self.size)?;
        self.stretches(at, len, |disk, changed, skip, count| {
            let piece = part(into, skip, count);
            match changed {
                true => vectored::read_exact_at(&disk.overlay, at + skip, &piece),
                false => disk.base.read(at + skip, &piece),
            }
        })
    }

    fn write(&mut self, at: u64, from: &[IoBuf]) -> io::Result<()> {
        let len = total(from);
        check_range(at, len, self.size)?;
        if len == 0 {
            return Ok(());
        }
        self.copy_up(at)?;
        self.copy_up(at + len)?;
        vectored::write_all_at(&self.overlay, at, from)?;
        self.changed.add(at / BLOCK, (at + len).div_ceil(BLOCK) - at / BLOCK);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        // Nothing here shall survive.
        Ok(())
    }

    fn discard(&mut self, at: u64, len: u64) -> io::Result<()> {
        check_range(at, len, self.size)?;
        punch(&self.overlay, at, len)
    }

    fn write_zeroes(&mut self, at: u64, len: u64, _unmap: bool) -> io::Result<()> {
        check_range(at, len, self.size)?;
        let end = at + len;
        let (first, last) = (at.next_multiple_of(BLOCK).min(end), (end - end % BLOCK).max(at));
        let zeros = Scratch::new(ZEROS)?;
        if first >= last {
            return self.write(at, &part(zeros.list(), 0, len.min(ZEROS))).and_then(|()| {
                // At most two blocks are touched, neither of them whole.
                let rest = len.saturating_sub(ZEROS);
                self.write(end - rest, &part(zeros.list(), 0, rest))
            });
        }
        self.write(at, &part(zeros.list(), 0, first - at))?;
        self.write(last, &part(zeros.list(), 0, end - last))?;
        punch(&self.overlay, first, last - first)?;
        self.changed.add(first / BLOCK, (last - first) / BLOCK);
        Ok(())
    }
}

/// Makes these bytes of the overlay zero and gives their space back.
fn punch(overlay: &File, at: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    if len > 0 {
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(overlay, flags, at, len))?;
    }
    Ok(())
}

/// A sparse file of `size` bytes without a name: in `$TMPDIR` (or /tmp), or in memory where that is not possible.
fn nameless_file(size: u64) -> io::Result<File> {
    let folder = std::env::temp_dir();
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let on_disk = rustix::fs::open(&folder, flags, Mode::RUSR | Mode::WUSR).map_err(io::Error::from).and_then(|fd| {
        let file = File::from(fd);
        file.set_len(size)?;
        punch(&file, 0, size.min(BLOCK))?;
        Ok(file)
    });
    on_disk.or_else(|e| {
        tracing::info!("snapshot: {} cannot hold the changes ({e}): they are kept in memory", folder.display());
        let file = File::from(rustix::fs::memfd_create("disk-snapshot", MemfdFlags::CLOEXEC)?);
        file.set_len(size)?;
        Ok(file)
    })
}
