//! From linear to guest-physical addresses by the guest's page tables, as somebody does who is not bound by their rights:
//! a debugger (SDM volume 3, chapter 4). Nothing is marked as accessed.

use super::page_table::{
    ADDRESS, CR0_PG, CR4_LA57, CR4_PAE, EFER_LMA, FIVE_LEVEL, FOUR_LEVEL, LARGE, LEGACY, Level, PAE, PRESENT,
};
use super::state::SystemRegisters;

/// An address space: what CR0, CR3, CR4 and EFER make of linear addresses.
#[derive(Debug, Clone, Copy)]
pub struct AddressSpace {
    levels: &'static [Level],
    /// None: addresses are physical ones.
    root: Option<u64>,
    entry_bytes: u64,
}

/// Where a linear address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Guest-physical address.
    pub physical: u64,
    /// Bytes from there to the end of the page.
    pub left: u64,
}

impl AddressSpace {
    /// That of a CPU in this state.
    pub fn of(system: &SystemRegisters) -> Self {
        let paging = system.cr0 & CR0_PG != 0;
        let (levels, entry_bytes, mask) = match (system.efer & EFER_LMA != 0, system.cr4) {
            (true, cr4) if cr4 & CR4_LA57 != 0 => (FIVE_LEVEL, 8, ADDRESS),
            (true, _) => (FOUR_LEVEL, 8, ADDRESS),
            (false, cr4) if cr4 & CR4_PAE != 0 => (PAE, 8, 0xffff_ffe0),
            _ => (LEGACY, 4, 0xffff_f000),
        };
        Self { levels, root: paging.then_some(system.cr3 & mask), entry_bytes }
    }

    /// Where linear `at` leads, if anywhere. `read` gives the 8 bytes at a guest-physical address.
    pub fn translate(&self, at: u64, read: impl Fn(u64) -> Option<u64>) -> Option<Place> {
        let Some(mut table) = self.root else { return Some(Place { physical: at, left: 4096 - at % 4096 }) };
        if !self.is_canonical(at) {
            return None;
        }
        for level in self.levels {
            let index = at >> level.shift & ((1 << level.index_bits) - 1);
            let slot = table.checked_add(index * self.entry_bytes)?;
            let entry = read(slot)? & if self.entry_bytes == 4 { 0xffff_ffff } else { u64::MAX };
            if entry & PRESENT == 0 {
                return None;
            }
            if level.shift == 12 || (level.large && entry & LARGE != 0) {
                let size = 1 << level.shift;
                // Above the address of a large page there is no room for more than its attributes.
                return Some(Place { physical: (entry & ADDRESS & !(size - 1)) + at % size, left: size - at % size });
            }
            table = entry & ADDRESS;
        }
        None
    }

    fn is_canonical(&self, at: u64) -> bool {
        let unused = match self.levels.len() {
            5 => 7,
            4 => 16,
            _ => return at >> 32 == 0,
        };
        ((at as i64) << unused >> unused) as u64 == at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn system(cr4: u64, efer: u64) -> SystemRegisters {
        SystemRegisters { cr0: CR0_PG | 1, cr3: 0x1018, cr4, efer, ..SystemRegisters::default() }
    }

    fn walk(system: &SystemRegisters, entries: &[(u64, u64)], at: u64) -> Option<(u64, u64)> {
        let memory: BTreeMap<_, _> = entries.iter().copied().collect();
        let place = AddressSpace::of(system).translate(at, |at| Some(memory.get(&at).copied().unwrap_or(0)));
        place.map(|place| (place.physical, place.left))
    }

    #[test]
    fn four_levels_and_pages_of_each_size() {
        let long = system(CR4_PAE, EFER_LMA);
        let high = 0xffff_ffff_8123_4567u64;
        let tables = [(0x1ff8, 0x2001), (0x2ff0, 0x3001), (0x3048, 1 << 63 | 0x80_00e3)];
        assert_eq!(walk(&long, &tables, high), Some((0x83_4567, 0x20_0000 - 0x3_4567)));
        let tables = [(0x1ff8, 0x2001), (0x2ff0, 0x3001), (0x3048, 0x5003), (0x51a0, 1 << 63 | 0x7021)];
        assert_eq!(walk(&long, &tables, high), Some((0x7567, 0x1000 - 0x567)));
        assert_eq!(walk(&long, &[(0x1ff8, 0x2001), (0x2ff0, 0x4000_0081)], high), Some((0x4123_4567, 0x3edc_ba99)));
        assert_eq!(walk(&long, &[(0x1ff8, 0x2000)], high), None, "not present");
        assert_eq!(walk(&long, &tables, 0x1_0000_0000_0000), None, "not canonical");
    }

    #[test]
    fn other_modes() {
        let five = system(CR4_PAE | CR4_LA57, EFER_LMA);
        let tables = [(0x1000, 0x2001), (0x2000, 0x3001), (0x3000, 0x81)];
        assert_eq!(walk(&five, &tables, 0x1234), Some((0x1234, 0x3fff_edcc)));
        let pae = SystemRegisters { cr3: 0x1020, ..system(CR4_PAE, 0) };
        assert_eq!(walk(&pae, &[(0x1038, 0x2001), (0x2000, 0x60_0081)], 0xc000_0010), Some((0x60_0010, 0x1f_fff0)));
        let legacy = system(0, 0);
        assert_eq!(walk(&legacy, &[(0x1004, 0xdead_0000_0080_0081)], 0x40_0004), Some((0x80_0004, 0x3f_fffc)));
        let real = SystemRegisters::default();
        assert_eq!(walk(&real, &[], 0xfff8), Some((0xfff8, 8)));
        assert_eq!(AddressSpace::of(&system(CR4_PAE, EFER_LMA)).translate(5, |_| None), None, "a table outside of RAM");
    }
}
