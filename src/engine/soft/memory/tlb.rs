//! Cached translations. A hit is one comparison: an entry's tag holds the page, and in the twelve bits below it the
//! generation in which it was made, so that a flush is an increment.

// UNSAFETY: follows a pointer to the set of entries in force, with numbers that the mask keeps within it.
#![expect(unsafe_code)]

use crate::engine::soft::width::Width;

/// Entries of each set.
const ENTRIES: usize = 1024;
/// Sets: user; supervisor; supervisor with SMAP in force; user with alignment checks.
const SETS: usize = 4;
/// Stays empty: each access takes the slow way, which checks.
const ALIGNED: usize = 3 * ENTRIES;
/// Entries for code: 4 MiB. Each that is made again costs a comparison of the whole page (see `code::block`), which also
/// drives everything else out of the host's caches.
const CODE_ENTRIES: usize = 1024;
/// Local entries that are remembered; more of them are flushed together with the global ones.
const LOCAL: usize = 2048;
const PAGE_MASK: u64 = !0xfff;
/// Generations, since they share the tag with the page.
const GENERATIONS: u64 = 0xfff;

/// A translation of one 4 KiB page to RAM.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(32))]
struct Entry {
    /// Page and generation if reads may go straight to RAM.
    read: u64,
    /// The same for writes: the page is writable, dirty, and holds no decoded code.
    write: u64,
    /// Host address minus linear address.
    addend: u64,
}

/// A page that code is fetched from.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::engine::soft) struct CodeEntry {
    tag: u64,
    user: bool,
    /// Number of the page in RAM.
    pub(in crate::engine::soft) page: u32,
    /// Host address of the page.
    pub(in crate::engine::soft) host: usize,
}

/// All cached translations of one CPU.
#[derive(Debug)]
pub(in crate::engine::soft) struct Tlb {
    entries: Vec<Entry>,
    code: Box<[CodeEntry]>,
    generation: u64,
    /// The set in force: its first entry, and the number of that.
    set: *const Entry,
    first: usize,
    user: bool,
    /// Counts flushes; whoever caches what depends on translations compares it.
    pub(in crate::engine::soft) epoch: u64,
    /// Entries made since the last flush that are not of global pages: data entries, and code entries after them.
    local: Vec<u32>,
    /// Linear addresses that pages above 4 KiB were used for, so that INVLPG can tell whether all pieces must go.
    large: Option<(u64, u64)>,
}

impl Default for Tlb {
    fn default() -> Self {
        let mut entries = vec![Entry::default(); ENTRIES * SETS];
        Self {
            set: entries.as_mut_ptr().cast_const(),
            entries,
            code: vec![CodeEntry::default(); CODE_ENTRIES].into_boxed_slice(),
            generation: 1,
            first: 0,
            user: false,
            epoch: 0,
            local: Vec::with_capacity(LOCAL),
            large: None,
        }
    }
}

impl Tlb {
    #[inline(always)]
    fn entry(&self, at: u64) -> &Entry {
        // SAFETY: `choose` has `set` point to one of the sets, which are not moved; the rest is below ENTRIES.
        unsafe { &*self.set.add((at >> 12) as usize % ENTRIES) }
    }

    /// Host address of `T` at linear `at` if it may be read there; none where the slow way must be gone. An operand that
    /// crosses into the next page never matches, since that page belongs to the next entry.
    #[inline(always)]
    pub(in crate::engine::soft) fn read<T: Width>(&self, at: u64) -> Option<u64> {
        self.read_bytes(at, T::BYTES)
    }

    /// The same for `bytes` bytes.
    #[inline(always)]
    pub(in crate::engine::soft) fn read_bytes(&self, at: u64, bytes: u64) -> Option<u64> {
        let entry = self.entry(at);
        let last = at.wrapping_add(bytes - 1);
        (entry.read == last & PAGE_MASK | self.generation).then(|| at.wrapping_add(entry.addend))
    }

    /// The same for writes (and reads: what can be written can be read).
    #[inline(always)]
    pub(in crate::engine::soft) fn write<T: Width>(&self, at: u64) -> Option<u64> {
        self.write_bytes(at, T::BYTES)
    }

    /// The same for `bytes` bytes.
    #[inline(always)]
    pub(in crate::engine::soft) fn write_bytes(&self, at: u64, bytes: u64) -> Option<u64> {
        let entry = self.entry(at);
        let last = at.wrapping_add(bytes - 1);
        (entry.write == last & PAGE_MASK | self.generation).then(|| at.wrapping_add(entry.addend))
    }

    /// Remembers that the page of linear `at` is at `host`, for the set in force; `global` pages stay when CR3 changes.
    pub(in crate::engine::soft) fn fill(&mut self, at: u64, host: usize, writable: bool, global: bool) {
        let tag = at & PAGE_MASK | self.generation;
        if self.checks_alignment() {
            return;
        }
        let index = self.first + (at >> 12) as usize % ENTRIES;
        if !global && self.local.len() < LOCAL {
            self.local.push(index as u32);
        }
        if let Some(entry) = self.entries.get_mut(index) {
            let write = if writable { tag } else { 0 };
            *entry = Entry { read: tag, write, addend: (host as u64).wrapping_sub(at & PAGE_MASK) };
        }
    }

    /// Remembers that a page larger than 4 KiB, `size` bytes around linear `at`, was used.
    pub(in crate::engine::soft) fn used_large(&mut self, at: u64, size: u64) {
        let (start, end) = (at & !(size - 1), at | (size - 1));
        self.large = Some(self.large.map_or((start, end), |(low, high)| (low.min(start), high.max(end))));
    }

    /// The page that code at linear `at` is fetched from.
    pub(in crate::engine::soft) fn code(&self, at: u64) -> Option<CodeEntry> {
        let entry = self.code.get((at >> 12) as usize % CODE_ENTRIES)?;
        (entry.tag == at & PAGE_MASK | self.generation && entry.user == self.user).then_some(*entry)
    }

    /// Remembers where code at linear `at` is fetched from.
    pub(in crate::engine::soft) fn fill_code(&mut self, at: u64, page: u32, host: usize, global: bool) {
        let (tag, user) = (at & PAGE_MASK | self.generation, self.user);
        let index = (at >> 12) as usize % CODE_ENTRIES;
        if !global && self.local.len() < LOCAL {
            self.local.push((ENTRIES * SETS + index) as u32);
        }
        if let Some(entry) = self.code.get_mut(index) {
            *entry = CodeEntry { tag, user, page, host };
        }
    }

    /// Uses the translations of a privilege; `aligned`: of one whose accesses must be aligned.
    pub(in crate::engine::soft) fn choose(&mut self, user: bool, smap: bool, aligned: bool) {
        self.user = user;
        self.first = match (user, smap) {
            (true, _) if aligned => ALIGNED,
            (true, _) => 0,
            (false, false) => ENTRIES,
            (false, true) => 2 * ENTRIES,
        };
        // SAFETY: each of these is the start of a set.
        self.set = unsafe { self.entries.as_mut_ptr().add(self.first) };
    }

    /// Accesses must be aligned.
    #[inline(always)]
    pub(in crate::engine::soft) fn checks_alignment(&self) -> bool {
        self.first == ALIGNED
    }

    /// Forgets all but global pages (MOV CR3 with CR4.PGE).
    pub(in crate::engine::soft) fn flush_local(&mut self) {
        if self.local.len() >= LOCAL {
            return self.flush();
        }
        self.epoch += 1;
        for index in self.local.drain(..) {
            let index = index as usize;
            if let Some(entry) = self.entries.get_mut(index) {
                *entry = Entry::default();
            } else if let Some(entry) = self.code.get_mut(index - ENTRIES * SETS) {
                *entry = CodeEntry::default();
            }
        }
    }

    /// Forgets everything.
    pub(in crate::engine::soft) fn flush(&mut self) {
        self.epoch += 1;
        self.large = None;
        self.local.clear();
        self.generation += 1;
        if self.generation > GENERATIONS {
            self.generation = 1;
            self.entries.fill(Entry::default());
            self.code.fill(CodeEntry::default());
        }
    }

    /// Forgets the page of linear `at` (INVLPG).
    pub(in crate::engine::soft) fn flush_page(&mut self, at: u64) {
        if self.large.is_some_and(|(low, high)| (low..=high).contains(&at)) {
            return self.flush();
        }
        self.epoch += 1;
        let number = (at >> 12) as usize;
        for set in 0..SETS {
            if let Some(entry) = self.entries.get_mut(set * ENTRIES + number % ENTRIES) {
                *entry = Entry::default();
            }
        }
        if let Some(entry) = self.code.get_mut(number % CODE_ENTRIES) {
            *entry = CodeEntry::default();
        }
    }

    /// Code is looked up anew.
    pub(in crate::engine::soft) fn forget_code(&mut self) {
        self.epoch += 1;
        self.code.fill(CodeEntry::default());
    }

    /// Writes to the page of RAM at `host` must go the slow way from now on, because it holds code.
    pub(in crate::engine::soft) fn watch_writes(&mut self, host: usize) {
        let host = host as u64;
        for entry in self.entries.iter_mut().filter(|entry| entry.write != 0) {
            if (entry.write & PAGE_MASK).wrapping_add(entry.addend) == host {
                entry.write = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_misses_and_flushes() {
        let mut tlb = Tlb::default();
        tlb.choose(false, false, false);
        tlb.fill(0x1000, 0x7000_0000, true, false);
        assert_eq!(tlb.read::<u64>(0x1ff8), Some(0x7000_0ff8));
        assert_eq!(tlb.read::<u64>(0x1ff9), None, "crosses the page");
        assert_eq!(tlb.write::<u8>(0x1fff), Some(0x7000_0fff));
        tlb.choose(true, false, false);
        assert_eq!(tlb.read::<u8>(0x1000), None);
        tlb.choose(false, false, false);
        tlb.watch_writes(0x7000_0000);
        assert_eq!((tlb.read::<u8>(0x1000), tlb.write::<u8>(0x1000)), (Some(0x7000_0000), None));
        tlb.flush_page(0x1fff);
        assert_eq!(tlb.read::<u8>(0x1000), None);
        for _ in 0..2 * GENERATIONS {
            tlb.fill(0x40_1000, 0x7000_0000, false, true);
            tlb.fill_code(0x40_1000, 3, 0x7000_0000, true);
            assert!(tlb.read::<u8>(0x40_1000).is_some() && tlb.code(0x40_1fff).is_some());
            assert_eq!(tlb.write::<u8>(0x40_1000), None);
            tlb.flush();
            assert!(tlb.read::<u8>(0x40_1000).is_none() && tlb.code(0x40_1fff).is_none());
        }
        tlb.fill(0x40_1000, 0x7000_0000, false, true);
        tlb.used_large(0x40_1000, 0x20_0000);
        tlb.flush_page(0x5f_f000);
        assert_eq!(tlb.read::<u8>(0x40_1000), None, "INVLPG forgets the whole large page");
    }

    #[test]
    fn global_pages_outlive_another_cr3() {
        let mut tlb = Tlb::default();
        tlb.fill(0x1000, 0x7000_0000, true, true);
        tlb.fill_code(0x1000, 3, 0x7000_0000, true);
        for round in 0..LOCAL as u64 + 1 {
            let at = (2 + round % 100) << 12;
            tlb.fill(at, 0x7000_1000, true, false);
            tlb.fill_code(at, 4, 0x7000_1000, false);
            assert!(tlb.read::<u8>(at).is_some() && tlb.code(at).is_some());
            tlb.flush_local();
            assert!(tlb.read::<u8>(at).is_none() && tlb.code(at).is_none());
            assert!(tlb.write::<u8>(0x1000).is_some() && tlb.code(0x1000).is_some());
        }
        (0..LOCAL as u64 + 5).for_each(|page| tlb.fill(page << 12, 0x7000_1000, true, false));
        tlb.flush_local();
        assert!((0..LOCAL as u64 + 5).all(|page| tlb.read::<u8>(page << 12).is_none()));
    }
}
