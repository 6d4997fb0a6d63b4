//! Lists of buffers in guest RAM, checked once and then used by address. They keep the RAM mapped.

// UNSAFETY: makes buffers from addresses that it has checked.
#![expect(unsafe_code)]

use crate::host::vectored::IoBuf;
use crate::mem::{Error, Ram};

/// Buffers in guest RAM, in order. The list may outlive every other user of the RAM.
#[derive(Debug)]
pub struct Buffers {
    ram: Ram,
    list: Vec<IoBuf>,
}

impl Buffers {
    /// An empty list.
    pub fn new(ram: Ram) -> Self {
        Self::recycled(ram, Vec::new())
    }

    /// An empty list that uses the memory of an older one (see [`Buffers::recycle`]).
    pub fn recycled(ram: Ram, mut list: Vec<IoBuf>) -> Self {
        list.clear();
        Self { ram, list }
    }

    /// The memory of the list, without the buffers, for the next one.
    pub fn recycle(mut self) -> Vec<IoBuf> {
        self.list.clear();
        self.list
    }

    /// Adds `len` bytes at guest-physical `at`: one buffer, or several where pieces of RAM adjoin.
    pub fn push(&mut self, at: u64, len: u64) -> Result<(), Error> {
        let outside = Error::OutOfRange { at, len };
        let Some(end) = at.checked_add(len) else { return Err(outside) };
        let before = self.list.len();
        let mut next = at;
        while next < end {
            let Some(region) = self.ram.region_of(next) else {
                self.list.truncate(before);
                return Err(outside);
            };
            let offset = next - region.start;
            let count = (region.len - offset).min(end - next);
            // SAFETY: `offset + count` lies within a region of `self.ram`, which stays mapped as long as this list
            // holds its clone; buffers are only lent by reference from here.
            self.list.push(unsafe { IoBuf::new((region.host + offset as usize) as *mut u8, count as usize) });
            next += count;
        }
        Ok(())
    }

    /// Adds one more buffer over `len` bytes of buffer `index`, from `offset` of it; returns its index.
    pub fn push_part(&mut self, index: usize, offset: usize, len: usize) -> Option<usize> {
        let buf = self.list.get(index)?;
        if offset.checked_add(len)? > buf.len() {
            return None;
        }
        let start = buf.volatile().ptr_guard().as_ptr().wrapping_add(offset).cast_mut();
        // SAFETY: the bytes belong to a buffer of this list, hence to RAM that stays mapped as long as the list.
        self.list.push(unsafe { IoBuf::new(start, len) });
        Some(self.list.len() - 1)
    }

    /// All buffers.
    pub fn list(&self) -> &[IoBuf] {
        &self.list
    }

    /// Drops the first `count` bytes of buffer `index`.
    pub fn advance(&mut self, index: usize, count: usize) {
        if let Some(buf) = self.list.get_mut(index) {
            buf.advance(count);
        }
    }

    /// Keeps the first `len` bytes of buffer `index`.
    pub fn shorten(&mut self, index: usize, len: usize) {
        if let Some(buf) = self.list.get_mut(index) {
            buf.truncate(len);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Backing;

    #[test]
    fn buffers_split_where_regions_meet_and_end_where_ram_ends() {
        let ram = Ram::new(&[(0, 0x2000), (0x2000, 0x1000), (0x8000, 0x1000)], Backing::Anonymous).unwrap();
        let mut list = Buffers::new(ram.clone());
        list.push(0x1f00, 0x200).unwrap();
        assert_eq!(list.list().iter().map(IoBuf::len).collect::<Vec<_>>(), [0x100, 0x100]);
        for (at, len) in [(0x2f00, 0x200), (0x5000, 1), (u64::MAX, 1), (u64::MAX - 1, 4), (0x7fff, 2)] {
            assert!(list.push(at, len).is_err(), "{at:#x}");
        }
        assert_eq!(list.list().len(), 2, "a refused buffer leaves nothing behind");
        assert_eq!(list.push_part(0, 0x80, 0x80), Some(2));
        for (index, offset, len) in [(0, 0x80, 0x81), (0, usize::MAX, 1), (3, 0, 1)] {
            assert_eq!(list.push_part(index, offset, len), None);
        }
        drop(ram);
        assert_eq!(list.list()[1].copy_from(&[1; 300]), 0x100);
        let memory = list.recycle();
        assert!(memory.is_empty() && memory.capacity() >= 2);
    }
}
