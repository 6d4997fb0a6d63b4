//! Page tables (SDM volume 3, chapter 4; AMD APM volume 2, chapter 5): linear to guest-physical addresses, with
//! permissions, accessed and dirty bits. Four levels in IA-32e mode; legacy PAE and 32-bit paging for kernels that boot
//! through them.

// UNSAFETY: reads and updates page-table entries in guest RAM.
#![expect(unsafe_code)]

use super::host;
use crate::arch::x86_64::page_table::{FOUR_LEVEL, LEGACY, Level, PAE};
use crate::engine::soft::cpu::{Cpu, cr0, cr4, efer};
use crate::engine::soft::fault::{self, Break, Fault};
use crate::engine::soft::flags::rflags;

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) enum Access {
    /// Reads data.
    Read,
    /// Writes, or reads and then writes.
    Write,
    /// Fetches code.
    Fetch,
}

/// Where a linear address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) struct Mapping {
    /// Guest-physical address.
    pub(in crate::engine::soft) physical: u64,
    /// Whether writes are allowed and the dirty bit is set.
    pub(in crate::engine::soft) writable: bool,
    /// Size of the page: 4 KiB, 2 MiB, 4 MiB, 1 GiB.
    pub(in crate::engine::soft) size: u64,
    /// The same in all address spaces.
    pub(in crate::engine::soft) global: bool,
}

/// Page-table entry bits.
mod pte {
    pub(super) use crate::arch::x86_64::page_table::{ADDRESS, LARGE, PRESENT};

    pub(super) const WRITABLE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    pub(super) const GLOBAL: u64 = 1 << 8;
    pub(super) const NO_EXECUTE: u64 = 1 << 63;
}

/// Error code of a page fault (SDM volume 3, 4.7).
mod code {
    pub(super) const PRESENT: u32 = 1;
    pub(super) const WRITE: u32 = 1 << 1;
    pub(super) const USER: u32 = 1 << 2;
    pub(super) const RESERVED: u32 = 1 << 3;
    pub(super) const FETCH: u32 = 1 << 4;
}

/// Physical address bits that this CPU has (CPUID 8000_0008h says the same).
pub(in crate::engine::soft) const PHYSICAL_BITS: u32 = 46;
const RESERVED_ADDRESS: u64 = pte::ADDRESS & !((1 << PHYSICAL_BITS) - 1);

/// Walks that find entries changed under way before a page fault without cause is raised, which software must expect.
const PATIENCE: u32 = 1000;

/// Why a walk led nowhere.
#[derive(Debug)]
enum Failed {
    /// To a page fault with this error code.
    Fault(u32),
    /// Another CPU changed an entry before it could be marked: the walk must begin again. What it found must not be used,
    /// since the other CPU relies on what it took away carrying the mark of every access.
    Changed,
}

impl Cpu {
    /// Whether linear `at` is canonical: bits 63 to 47 agree.
    #[inline]
    pub(in crate::engine::soft) fn canonical(at: u64) -> bool {
        ((at as i64) << 16 >> 16) as u64 == at
    }

    /// #GP(0); those who use the stack make #SS of it (`exec/stack.rs`).
    #[cold]
    pub(in crate::engine::soft) fn not_canonical(&mut self, at: u64) -> Break {
        self.fault = Fault { vector: fault::GP, error: Some(0), address: at };
        Break::Fault
    }

    /// Translates linear `at` for `access` at the present privilege; the fault is raised, but nothing else changes but
    /// accessed and dirty bits.
    pub(in crate::engine::soft) fn translate(&mut self, at: u64, access: Access) -> Result<Mapping, Break> {
        let user = self.cpl == 3;
        self.translate_as(at, access, user)
    }

    /// As [`Cpu::translate`], for an access with user (`true`) or supervisor rights, whatever CPL is: descriptor tables and
    /// task state segments are read with supervisor rights.
    pub(in crate::engine::soft) fn translate_as(
        &mut self,
        at: u64,
        access: Access,
        user: bool,
    ) -> Result<Mapping, Break> {
        if self.system.cr0 & cr0::PG == 0 {
            return Ok(Mapping { physical: at & 0xffff_ffff, writable: true, size: 4096, global: false });
        }
        let long = self.long_mode();
        if long && !Self::canonical(at) {
            return Err(self.not_canonical(at));
        }
        let pae = self.system.cr4 & cr4::PAE != 0;
        let levels = if long {
            FOUR_LEVEL
        } else if pae {
            PAE
        } else {
            LEGACY
        };
        let mut error = 0;
        for _ in 0..PATIENCE {
            match self.walk(at, access, user, levels, if long || pae { 8 } else { 4 }) {
                Ok(mapping) => return Ok(mapping),
                Err(Failed::Changed) => {}
                Err(Failed::Fault(code)) => {
                    error = code;
                    break;
                }
            }
        }
        self.fault = Fault { vector: fault::PF, error: Some(error), address: at };
        Err(Break::Fault)
    }

    fn walk(&self, at: u64, access: Access, user: bool, levels: &[Level], entry_bytes: u64) -> Result<Mapping, Failed> {
        let no_execute = self.system.efer & efer::NXE != 0;
        let mut error = if user { code::USER } else { 0 };
        error |= if access == Access::Write { code::WRITE } else { 0 };
        let smep = self.system.cr4 & cr4::SMEP != 0;
        error |= if access == Access::Fetch && (no_execute || smep) { code::FETCH } else { 0 };
        let legacy_pae = entry_bytes == 8 && levels.len() == 3;
        let mut table = self.system.cr3 & if legacy_pae { 0xffff_ffe0 } else { pte::ADDRESS };
        let (mut rights, mut nx) = (pte::WRITABLE | pte::USER, 0);
        for (depth, level) in levels.iter().enumerate() {
            let slot = table + (at >> level.shift & ((1 << level.index_bits) - 1)) * entry_bytes;
            let entry = self.entry(slot, entry_bytes).ok_or(Failed::Fault(error))?;
            if entry & pte::PRESENT == 0 {
                return Err(Failed::Fault(error));
            }
            let last = level.shift == 12 || (level.large && entry & pte::LARGE != 0 && self.large_pages(entry_bytes));
            self.check_reserved(entry, entry_bytes, level, last, no_execute)
                .map_err(|()| Failed::Fault(error | code::PRESENT | code::RESERVED))?;
            // The four entries of legacy PAE's top level have no rights and no accessed bit.
            let top_of_pae = legacy_pae && depth == 0;
            if !top_of_pae {
                rights &= entry;
                nx |= entry & pte::NO_EXECUTE;
            }
            if !last {
                if !top_of_pae {
                    self.mark(slot, entry, pte::ACCESSED, entry_bytes)?;
                }
                table = entry & pte::ADDRESS;
                continue;
            }
            self.check_rights(rights, nx != 0 && entry_bytes == 8, access, user)
                .map_err(|()| Failed::Fault(error | code::PRESENT))?;
            let dirty = if access == Access::Write { pte::DIRTY } else { 0 };
            self.mark(slot, entry, pte::ACCESSED | dirty, entry_bytes)?;
            let size = 1u64 << level.shift;
            let may_write = rights & pte::WRITABLE != 0 || (!user && self.system.cr0 & cr0::WP == 0);
            let page = entry & pte::ADDRESS & !(size - 1);
            return Ok(Mapping {
                physical: page | at & (size - 1),
                writable: may_write && (entry | dirty) & pte::DIRTY != 0,
                size,
                global: entry & pte::GLOBAL != 0 && self.system.cr4 & cr4::PGE != 0,
            });
        }
        Err(Failed::Fault(error))
    }

    fn large_pages(&self, entry_bytes: u64) -> bool {
        entry_bytes == 8 || self.system.cr4 & cr4::PSE != 0
    }

    fn check_reserved(
        &self,
        entry: u64,
        entry_bytes: u64,
        level: &Level,
        last: bool,
        no_execute: bool,
    ) -> Result<(), ()> {
        if entry_bytes == 4 {
            return Ok(());
        }
        let large = last && level.shift != 12;
        let low = if large { (1u64 << level.shift) - (1 << 13) } else { 0 };
        let ps = if !level.large && level.shift == 39 { pte::LARGE } else { 0 };
        let nx = if no_execute { 0 } else { pte::NO_EXECUTE };
        if entry & (RESERVED_ADDRESS | low | ps | nx) == 0 { Ok(()) } else { Err(()) }
    }

    fn check_rights(&self, rights: u64, nx: bool, access: Access, user: bool) -> Result<(), ()> {
        let user_page = rights & pte::USER != 0;
        let allowed = match (user, user_page) {
            (true, false) => false,
            (false, true) if access == Access::Fetch => self.system.cr4 & cr4::SMEP == 0,
            (false, true) => {
                // AC lifts SMAP for explicit accesses; those that are implicitly supervisor's come here at CPL 3.
                self.system.cr4 & cr4::SMAP == 0 || (self.system.rflags & rflags::AC != 0 && self.cpl != 3)
            }
            _ => true,
        };
        let permitted = match access {
            Access::Read => true,
            Access::Write => rights & pte::WRITABLE != 0 || (!user && self.system.cr0 & cr0::WP == 0),
            Access::Fetch => !nx,
        };
        if allowed && permitted { Ok(()) } else { Err(()) }
    }

    /// The entry at guest-physical `slot`; none if that is not RAM.
    fn entry(&self, slot: u64, bytes: u64) -> Option<u64> {
        let host = self.shared.physical.page(slot)?.host as u64 + (slot & 0xfff);
        // SAFETY: `slot` is aligned to its size, so the entry lies within the page of RAM that was just found.
        Some(unsafe { if bytes == 8 { host::load::<u64>(host) } else { host::load::<u32>(host).into() } })
    }

    /// Sets bits of the entry at `slot` if it is still `entry`.
    fn mark(&self, slot: u64, entry: u64, bits: u64, bytes: u64) -> Result<(), Failed> {
        if entry & bits == bits {
            return Ok(());
        }
        let Some(page) = self.shared.physical.page(slot) else { return Ok(()) };
        let host = page.host as u64 + (slot & 0xfff);
        // SAFETY: as in `entry`.
        let was = unsafe {
            if bytes == 8 {
                host::compare_exchange::<u64>(host, entry, entry | bits)
            } else {
                host::compare_exchange::<u32>(host, entry as u32, (entry | bits) as u32).into()
            }
        };
        if was == entry { Ok(()) } else { Err(Failed::Changed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::soft::testing::{self, PAGE_TABLES};

    #[test]
    fn an_entry_that_changed_is_not_marked() {
        let cpu = testing::cpu(&[]);
        let slot = PAGE_TABLES + 0x2000;
        let entry = cpu.entry(slot, 8).unwrap();
        let marks = pte::ACCESSED | pte::DIRTY;
        assert_eq!(entry & marks, 0);
        // As if another CPU had taken the entry away after it was read.
        assert!(matches!(cpu.mark(slot, entry | pte::GLOBAL, marks, 8), Err(Failed::Changed)));
        assert_eq!(cpu.entry(slot, 8), Some(entry), "nothing is written");
        assert!(cpu.mark(slot, entry, marks, 8).is_ok());
        assert_eq!(cpu.entry(slot, 8), Some(entry | marks));
        assert!(cpu.mark(slot, entry | marks, marks, 8).is_ok());
    }
}
