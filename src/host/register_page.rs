//! Pages of device registers that a guest can read as plain memory (see [`crate::engine::RegisterPages`]).
//!
//! The pages of one machine lie in one memfd. Devices store to them through this program's mapping; the engine shows
//! the guest the same pages, or a [`View`] that puts them in another order. Without such an engine, the bus reads
//! from the same bytes.

// UNSAFETY: maps a memfd and accesses it through raw pointers, since the guest reads it at the same time.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{NonNull, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// Address range of this process that is unmapped when dropped.
#[derive(Debug)]
struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: an address range is the same on every thread; access to it is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(start: *mut std::ffi::c_void, len: usize) -> io::Result<Self> {
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range was mapped for this value alone, and whoever was shown it has let go of its owner.
        if let Err(e) = unsafe { munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::error!("cannot unmap register pages: {e}");
        }
    }
}

/// The register pages of a machine. Pages cost memory only once they are written to.
#[derive(Debug)]
pub struct RegisterMemory {
    memory: OwnedFd,
    mapping: Mapping,
    pages: usize,
    used: AtomicUsize,
}

impl RegisterMemory {
    /// Room for `pages` pages of zeros.
    pub fn new(pages: usize) -> io::Result<Arc<Self>> {
        let memory = rustix::fs::memfd_create(c"registers", MemfdFlags::CLOEXEC)?;
        let file = File::from(memory);
        let len = pages.checked_mul(PAGE).ok_or(io::ErrorKind::InvalidInput)?;
        file.set_len(len as u64)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses; nothing else is touched.
        let start = unsafe { mmap(null_mut(), len, access, MapFlags::SHARED, file.as_fd(), 0) }?;
        let mapping = Mapping::new(start, len)?;
        Ok(Arc::new(Self { memory: file.into(), mapping, pages, used: AtomicUsize::new(0) }))
    }

    /// The next unused page, zeroed.
    pub fn page(self: &Arc<Self>) -> io::Result<RegisterPage> {
        let index = self.used.fetch_add(1, Ordering::Relaxed);
        if index >= self.pages {
            return Err(io::Error::other("all register pages are in use"));
        }
        Ok(RegisterPage { memory: self.clone(), index })
    }

    /// A read-only view of `pages` in this order; a page may occur more than once. Neighbours in the memory that stay
    /// neighbours cost one mapping together.
    pub fn view(self: &Arc<Self>, pages: &[&RegisterPage]) -> io::Result<View> {
        let len = pages.len() * PAGE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { mmap_anonymous(null_mut(), len, ProtFlags::empty(), MapFlags::PRIVATE) }?;
        let mapping = Mapping::new(start, len)?;
        let mut at = 0;
        while let Some(first) = pages.get(at) {
            let rest = pages.iter().skip(at).enumerate();
            let run = rest.take_while(|(i, page)| page.index == first.index + i).count();
            let target = mapping.start.as_ptr().wrapping_add(at * PAGE);
            let flags = MapFlags::SHARED | MapFlags::FIXED;
            let offset = (first.index * PAGE) as u64;
            // SAFETY: replaces pages `at..at + run` of the mapping made above, of which nobody knows yet.
            unsafe { mmap(target.cast(), run * PAGE, ProtFlags::READ, flags, &self.memory, offset) }?;
            at += run;
        }
        Ok(View { mapping, _memory: self.clone() })
    }
}

/// Register pages in another order, at consecutive addresses.
#[derive(Debug)]
pub struct View {
    mapping: Mapping,
    _memory: Arc<RegisterMemory>,
}

impl View {
    /// Address in this process.
    pub fn host(&self) -> usize {
        self.mapping.start.as_ptr() as usize
    }
}

/// One page of registers. Stores of 1, 2, 4 or 8 bytes at a multiple of their size are seen by the guest as a whole,
/// and in order.
#[derive(Debug, Clone)]
pub struct RegisterPage {
    memory: Arc<RegisterMemory>,
    index: usize,
}

impl RegisterPage {
    /// A page in memory of its own.
    pub fn alone() -> io::Result<Self> {
        RegisterMemory::new(1)?.page()
    }

    /// Address in this process.
    pub fn host(&self) -> usize {
        self.start() as usize
    }

    fn start(&self) -> *mut u8 {
        self.memory.mapping.start.as_ptr().wrapping_add(self.index * PAGE)
    }

    /// Pointer to `len` bytes at `offset`, if they are on the page.
    fn at(&self, offset: usize, len: usize) -> Option<*mut u8> {
        let end = offset.checked_add(len)?;
        (end <= PAGE).then(|| self.start().wrapping_add(offset))
    }

    /// Copies bytes to the page; those that do not fit are dropped.
    pub fn store(&self, offset: usize, data: &[u8]) {
        if let Some(at) = self.at(offset, data.len())
            && offset.is_multiple_of(data.len().max(1))
        {
            // SAFETY: `at` points to a multiple of the access size on a page that stays mapped as long as `self`;
            // all access to it, the guest's included, is atomic or made by the processor as one.
            unsafe {
                match *data {
                    [a] => AtomicU8::from_ptr(at).store(a, Ordering::Release),
                    [a, b] => AtomicU16::from_ptr(at.cast()).store(u16::from_ne_bytes([a, b]), Ordering::Release),
                    [a, b, c, d] => {
                        AtomicU32::from_ptr(at.cast()).store(u32::from_ne_bytes([a, b, c, d]), Ordering::Release);
                    }
                    [a, b, c, d, e, f, g, h] => {
                        let value = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
                        AtomicU64::from_ptr(at.cast()).store(value, Ordering::Release);
                    }
                    _ => self.store_bytes(offset, data),
                }
            }
        } else {
            self.store_bytes(offset, data);
        }
    }

    fn store_bytes(&self, offset: usize, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            if let Some(byte_at) = self.byte(offset.saturating_add(i)) {
                byte_at.store(*byte, Ordering::Release);
            }
        }
    }

    /// Fills `data` from the page; beyond its end there are ones.
    pub fn load(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = self.byte(offset.saturating_add(i)).map_or(0xff, |byte_at| byte_at.load(Ordering::Acquire));
        }
    }

    /// The byte at `offset`, for changes that must not be lost to another thread.
    pub fn byte(&self, offset: usize) -> Option<&AtomicU8> {
        let at = self.at(offset, 1)?;
        // SAFETY: a byte on a page that stays mapped as long as `self` is borrowed; all access to it is atomic.
        Some(unsafe { AtomicU8::from_ptr(at) })
    }

    /// Little-endian 16-bit register.
    pub fn load_u16(&self, offset: usize) -> u16 {
        let mut bytes = [0; 2];
        self.load(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Little-endian 32-bit register.
    pub fn load_u32(&self, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        self.load(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_of_any_width_arrive_and_stay_on_the_page() {
        let memory = RegisterMemory::new(2).unwrap();
        let (page, other) = (memory.page().unwrap(), memory.page().unwrap());
        assert!(memory.page().is_err());
        let bytes: Vec<u8> = (1..=16).collect();
        for len in 0..=16 {
            for offset in [0, 1, 2, 4, 8, 100, PAGE - len] {
                page.store(offset, &bytes[..len]);
                let mut seen = vec![0; len];
                page.load(offset, &mut seen);
                assert_eq!(seen, bytes[..len]);
            }
        }
        page.store(PAGE - 1, &[7, 8, 9, 10]);
        page.store(usize::MAX, &[1, 2]);
        let mut seen = [0; 2];
        page.load(PAGE - 1, &mut seen);
        assert_eq!(seen, [7, 0xff]);
        other.load(0, &mut seen);
        assert_eq!(seen, [0, 0]);
        assert!(page.byte(PAGE).is_none());
    }

    #[test]
    fn views_show_pages_in_any_order() {
        let memory = RegisterMemory::new(4).unwrap();
        let pages: Vec<_> = (0..4).map(|_| memory.page().unwrap()).collect();
        let order = [2, 3, 0, 0, 1, 2, 3];
        let view = memory.view(&order.map(|i| &pages[i])).unwrap();
        for (i, page) in pages.iter().enumerate() {
            page.store(5, &[i as u8 + 1]);
        }
        for (at, index) in order.into_iter().enumerate() {
            // SAFETY: the view maps this byte for reading; nobody writes to it now.
            let byte = unsafe { *((view.host() + at * PAGE + 5) as *const u8) };
            assert_eq!(byte, index as u8 + 1);
        }
    }
}
