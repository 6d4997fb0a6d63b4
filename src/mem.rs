//! Guest RAM: host memory that the guest sees as its physical memory.
//!
//! The board decides the layout, this module maps it. Anonymous private memory with huge-page advice is
//! the default; [`Backing::Shared`] uses a memfd where another process must see the pages. Files can be
//! mapped over RAM (copy on write), so that a kernel image is read by page faults, not copied.
//!
//! Guest RAM is written by the guest at any time, so it is reached through `vm_memory`'s volatile
//! accessors or raw pointers handed to system calls; never through Rust references.

// UNSAFETY: maps host memory and replaces parts of it by file pages.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
};

use crate::host::vectored::IoBuf;

pub mod buffers;
pub mod file_ring;

/// Guest pages are 4 KiB, the unit of every mapping here.
pub const PAGE: u64 = 4096;

/// What can go wrong while guest RAM is set up or accessed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host refused the mapping.
    #[error("Cannot map {size} MiB of guest memory at {at:#x}: {source}")]
    Map {
        /// Guest-physical address.
        at: u64,
        /// Size in MiB.
        size: u64,
        /// The host's reason.
        source: io::Error,
    },
    /// Regions overlap or are not in order.
    #[error("Guest memory layout is invalid: {0}")]
    Layout(String),
    /// A range is not wholly inside RAM.
    #[error("Guest address range {at:#x}+{len:#x} is not RAM")]
    OutOfRange {
        /// Guest-physical address.
        at: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// How RAM is backed on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backing {
    /// Private anonymous pages: cheapest.
    #[default]
    Anonymous,
    /// A memfd, so that other processes can map the same pages.
    Shared,
}

/// Guest RAM. Cheap to clone; the mappings live as long as any clone.
#[derive(Debug, Clone)]
pub struct Ram(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    memory: GuestMemoryMmap,
    /// Guest-physical ranges (start, end) that show file pages; they do not overlap.
    files: Mutex<Vec<(u64, u64)>>,
}

/// One contiguous piece of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Guest-physical address of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Host address of the first byte.
    pub host: usize,
}

impl Ram {
    /// Maps `layout`, a list of (guest-physical address, length in bytes), ascending and page aligned.
    pub fn new(layout: &[(u64, u64)], backing: Backing) -> Result<Self, Error> {
        let mut regions = Vec::with_capacity(layout.len());
        for &(at, len) in layout {
            regions.push(map_region(at, len, backing)?);
        }
        let memory = GuestMemoryMmap::from_regions(regions).map_err(|e| Error::Layout(e.to_string()))?;
        Ok(Self(Arc::new(Inner { memory, files: Mutex::default() })))
    }

    /// The view that `vm_memory` and `virtio_queue` work on.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.0.memory
    }

    /// All pieces in ascending order.
    pub fn regions(&self) -> impl Iterator<Item = Region> + '_ {
        self.0.memory.iter().map(|r| Region { start: r.start_addr().0, len: r.len(), host: r.as_ptr() as usize })
    }

    /// The piece of RAM that holds the byte at guest-physical `at`.
    pub fn region_of(&self, at: u64) -> Option<Region> {
        let r = self.0.memory.find_region(GuestAddress(at))?;
        Some(Region { start: r.start_addr().0, len: r.len(), host: r.as_ptr() as usize })
    }

    /// Bytes of RAM in all.
    pub fn size(&self) -> u64 {
        self.0.memory.iter().map(|r| r.len()).sum()
    }

    /// Copies `data` to guest-physical `at`.
    pub fn write(&self, at: u64, data: &[u8]) -> Result<(), Error> {
        self.0.memory.write_slice(data, GuestAddress(at)).map_err(|_| Error::OutOfRange { at, len: data.len() as u64 })
    }

    /// Fills `data` from guest-physical `at`.
    pub fn read(&self, at: u64, data: &mut [u8]) -> Result<(), Error> {
        let len = data.len() as u64;
        self.0.memory.read_slice(data, GuestAddress(at)).map_err(|_| Error::OutOfRange { at, len })
    }

    /// Host address of `len` bytes at guest-physical `at`, if they lie within one region.
    pub fn host_address(&self, at: u64, len: u64) -> Result<*mut u8, Error> {
        let out = Error::OutOfRange { at, len };
        let Ok(end) = at.checked_add(len).ok_or(()) else { return Err(out) };
        match self.regions().find(|r| at >= r.start && end <= r.start + r.len) {
            Some(r) => Ok((r.host + (at - r.start) as usize) as *mut u8),
            None => Err(out),
        }
    }

    /// Guest-physical address of the first byte of `buf`, if it lies in this RAM.
    pub fn guest_address(&self, buf: &IoBuf) -> Option<u64> {
        let host = buf.volatile().ptr_guard().as_ptr() as usize;
        let region = self.regions().find(|r| host.checked_sub(r.host).is_some_and(|offset| (offset as u64) < r.len))?;
        Some(region.start + (host - region.host) as u64)
    }

    /// Puts `len` bytes of `file` from `offset` at guest-physical `at`: whole pages are mapped copy on write
    /// where file offset and address agree modulo the page size, the rest is copied. The file's length must
    /// cover the range. Later changes to the file may show in pages the guest has not written. Shared RAM gets a
    /// copy, since other processes do not see what is mapped over it here.
    pub fn map_file(&self, at: u64, file: &File, offset: u64, len: u64) -> Result<(), Error> {
        let host = self.host_address(at, len)?;
        let map = |source| Error::Map { at, size: len >> 20, source };
        if self.is_shared(at) {
            return self.copy_file(at, file, offset, len);
        }
        let head = if at % PAGE == offset % PAGE { (at.next_multiple_of(PAGE) - at).min(len) } else { len };
        let whole = (len - head) / PAGE * PAGE;
        if whole > 0 {
            // SAFETY: the target pages lie inside a region that this Ram owns (host_address checked it) and
            // nobody holds references into guest RAM, so replacing them by other pages of the same size and
            // protection leaves every holder of a raw address with valid memory.
            let mapped = unsafe {
                libc::mmap(
                    host.add(head as usize).cast(),
                    whole as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    file.as_raw_fd(),
                    (offset + head) as libc::off_t,
                )
            };
            if mapped == libc::MAP_FAILED {
                return Err(map(io::Error::last_os_error()));
            }
            let mut files = self.0.files.lock().unwrap_or_else(PoisonError::into_inner);
            let start = at + head;
            take_overlap(&mut files, start, start + whole);
            files.push((start, start + whole));
        }
        self.copy_file(at, file, offset, head)?;
        let done = head + whole;
        self.copy_file(at + done, file, offset + done, len - done)
    }

    /// Copies `len` bytes of `file` from `offset` to guest-physical `at`.
    pub fn copy_file(&self, at: u64, file: &File, offset: u64, len: u64) -> Result<(), Error> {
        use std::os::unix::fs::FileExt;
        let map = |source| Error::Map { at, size: len >> 20, source };
        let mut buffer = vec![0; len.min(1 << 20) as usize];
        let mut done = 0;
        while done < len {
            let n = buffer.len().min((len - done) as usize);
            file.read_exact_at(&mut buffer[..n], offset + done).map_err(map)?;
            self.write(at + done, &buffer[..n])?;
            done += n as u64;
        }
        Ok(())
    }

    /// Gives the host pages of a page-aligned range back; the guest reads zeros there next time.
    pub fn discard(&self, at: u64, len: u64) -> Result<(), Error> {
        let host = self.host_address(at, len)?;
        let advice = if self.is_shared(at) { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
        // SAFETY: the range lies inside a region that this Ram owns; its content may vanish at any time as far
        // as Rust is concerned, since only the guest decides what it holds.
        let status = unsafe { libc::madvise(host.cast(), len as usize, advice) };
        if status != 0 {
            return Err(Error::Map { at, size: len >> 20, source: io::Error::last_os_error() });
        }
        self.unmap_files(at, len)
    }

    /// Replaces file pages by anonymous ones: the content of a file would come back after it was discarded.
    fn unmap_files(&self, at: u64, len: u64) -> Result<(), Error> {
        let mut files = self.0.files.lock().unwrap_or_else(PoisonError::into_inner);
        for (start, end) in take_overlap(&mut files, at, at + len) {
            let host = self.host_address(start, end - start)?;
            // SAFETY: as in map_file: these pages belong to a region of this Ram and are replaced by as many others.
            let mapped = unsafe {
                libc::mmap(
                    host.cast(),
                    (end - start) as usize,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if mapped == libc::MAP_FAILED {
                files.push((start, end));
                return Err(Error::Map { at: start, size: (end - start) >> 20, source: io::Error::last_os_error() });
            }
            // SAFETY: advice on the mapping just made; it changes no content. Failure only costs speed.
            unsafe { libc::madvise(mapped, (end - start) as usize, libc::MADV_HUGEPAGE) };
        }
        Ok(())
    }

    fn is_shared(&self, at: u64) -> bool {
        self.0.memory.find_region(GuestAddress(at)).is_some_and(|r| r.file_offset().is_some())
    }
}

/// Takes what lies between `start` and `end` out of `ranges`, and returns it.
fn take_overlap(ranges: &mut Vec<(u64, u64)>, start: u64, end: u64) -> Vec<(u64, u64)> {
    let mut taken = Vec::new();
    for (from, to) in std::mem::take(ranges) {
        let overlap = (from.max(start), to.min(end));
        if overlap.0 >= overlap.1 {
            ranges.push((from, to));
            continue;
        }
        taken.push(overlap);
        ranges.extend([(from, overlap.0), (overlap.1, to)].into_iter().filter(|(a, b)| a < b));
    }
    taken
}

fn map_region(at: u64, len: u64, backing: Backing) -> Result<GuestRegionMmap, Error> {
    let fail = |source| Error::Map { at, size: len >> 20, source };
    let size = usize::try_from(len).map_err(|_| Error::OutOfRange { at, len })?;
    let mut builder = MmapRegionBuilder::new(size).with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE);
    builder = match backing {
        Backing::Anonymous => builder.with_mmap_flags(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
        Backing::Shared => {
            // SAFETY: the name is a NUL-terminated literal; the returned descriptor is checked and owned below.
            let fd = unsafe { libc::memfd_create(c"guest-ram".as_ptr(), libc::MFD_CLOEXEC) };
            if fd < 0 {
                return Err(fail(io::Error::last_os_error()));
            }
            // SAFETY: `fd` was just created and nobody else owns it.
            let file = unsafe { File::from_raw_fd(fd) };
            file.set_len(len).map_err(fail)?;
            builder.with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE).with_file_offset(FileOffset::new(file, 0))
        }
    };
    let region = builder.build().map_err(|e| fail(io::Error::other(e)))?;
    // SAFETY: advice on a mapping that was just created; it changes no content. Failure only costs speed.
    unsafe { libc::madvise(region.as_ptr().cast(), size, libc::MADV_HUGEPAGE) };
    GuestRegionMmap::new(region, GuestAddress(at)).ok_or_else(|| Error::Layout(format!("{at:#x}+{len:#x} overflows")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn file_pages_and_edges_arrive() {
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        let content: Vec<u8> = (0..20_000u32).map(|i| (i * 7 % 251) as u8).collect();
        file.write_all(&content).unwrap();
        for (at, offset, len) in [(0x10_000, 0, 20_000), (0x20_064, 100, 19_000), (0x30_001, 100, 9_000)] {
            ram.map_file(at, &file, offset, len).unwrap();
            let mut seen = vec![0; len as usize];
            ram.read(at, &mut seen).unwrap();
            assert_eq!(seen, content[offset as usize..(offset + len) as usize]);
        }
        ram.write(0x10_000, b"guest wrote").unwrap();
        let mut first = [0; 11];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut first, 0).unwrap();
        assert_eq!(first, content[..11], "the file must not see the guest's writes");
    }

    #[test]
    fn file_pages_do_not_come_back_after_they_were_discarded() {
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 0x8000]).unwrap();
        for _ in 0..2 {
            ram.map_file(0x10_000, &file, 0, 0x8000).unwrap();
            ram.discard(0x12_000, 0x2000).unwrap();
            ram.discard(0x17_000, 0x2000).unwrap();
            let mut seen = [1; 0x9000];
            ram.read(0x10_000, &mut seen).unwrap();
            for (page, content) in seen.chunks(0x1000).zip([7, 7, 0, 0, 7, 7, 7, 0, 0]) {
                assert!(page.iter().all(|b| *b == content));
            }
            assert_eq!(*ram.0.files.lock().unwrap(), [(0x10_000, 0x12_000), (0x14_000, 0x17_000)]);
        }
    }

    #[test]
    fn shared_ram_gets_copies_of_files() {
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Shared).unwrap();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 0x2000]).unwrap();
        ram.map_file(0x10_000, &file, 0, 0x2000).unwrap();
        let region = ram.memory().find_region(GuestAddress(0)).unwrap();
        let mut seen = [0; 0x2000];
        let backing = region.file_offset().unwrap();
        std::os::unix::fs::FileExt::read_exact_at(backing.file(), &mut seen, 0x10_000).unwrap();
        assert_eq!(seen, [7; 0x2000]);
    }

    #[test]
    fn discarded_pages_read_as_zero_and_bad_ranges_fail() {
        for backing in [Backing::Anonymous, Backing::Shared] {
            let ram = Ram::new(&[(0, 0x4000), (0x10_000, 0x4000)], backing).unwrap();
            ram.write(0x1000, &[7; 16]).unwrap();
            ram.discard(0x1000, PAGE).unwrap();
            let mut seen = [1; 16];
            ram.read(0x1000, &mut seen).unwrap();
            assert_eq!(seen, [0; 16]);
            assert!(ram.discard(0x3000, 2 * PAGE).is_err());
            assert!(ram.host_address(u64::MAX, 2).is_err());
            assert!(ram.write(0x8000, &[1]).is_err());
            assert_eq!(ram.size(), 0x8000);
        }
    }
}
