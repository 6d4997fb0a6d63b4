//! Which kernel addresses lead to RAM, by the guest's page tables (SDM volume 3, 4.5).

use std::collections::BTreeSet;

use super::elf::Load;
use crate::arch::x86_64::page_table::{ADDRESS, CR0_PG, CR4_LA57, EFER_LMA, LARGE, PRESENT};
use crate::arch::x86_64::state::{CpuState, SystemRegisters};
use crate::mem::Ram;

const ENTRIES: u64 = 512;

/// Kernel text and modules are above (the kernel's Documentation/arch/x86/x86_64/mm.rst).
const TEXT: u64 = 0xffff_ffff_8000_0000;
/// More runs than a file can name are not looked for.
const MAX_RUNS: usize = 1 << 16;

/// Runs of the kernel's addresses, those above 2^63, that are mapped to RAM; the highest first. None before there is a
/// kernel in 64-bit mode.
pub(super) fn kernel(ram: &Ram, cpus: &[CpuState]) -> Vec<Load> {
    let long = |system: &&SystemRegisters| system.cr0 & CR0_PG != 0 && system.efer & EFER_LMA != 0;
    let systems = || cpus.iter().map(|cpu| &cpu.system).filter(long);
    // A CPU in user mode may have page tables that lack most of the kernel.
    let Some(system) = systems().find(|system| system.cs.selector & 3 == 0).or_else(|| systems().next()) else {
        return Vec::new();
    };
    let levels = if system.cr4 & CR4_LA57 != 0 { 5 } else { 4 };
    let mut walk = Walk { ram, runs: Vec::new(), seen: BTreeSet::new() };
    walk.table(system.cr3 & ADDRESS, levels, !0 << (12 + 9 * levels), ENTRIES / 2);
    walk.runs
}

/// What the direct map adds to physical addresses: it is the longest run below the kernel's text.
pub(super) fn direct_map(runs: &[Load]) -> Option<u64> {
    let longest = runs.iter().filter(|run| run.linear < TEXT).max_by_key(|run| run.len)?;
    Some(longest.linear.wrapping_sub(longest.physical))
}

struct Walk<'a> {
    ram: &'a Ram,
    runs: Vec<Load>,
    /// Tables that were walked. One that is used many times (such as for the shadow of memory that KASAN has nothing to say
    /// about) is walked once: the rest would be the same again.
    seen: BTreeSet<u64>,
}

impl Walk<'_> {
    /// The table at `table`, whose entries map from linear `base` on: from the last to the one with number `first`.
    fn table(&mut self, table: u64, level: u32, base: u64, first: u64) {
        if !self.seen.insert(table) {
            return;
        }
        let mut entries = [0; 4096];
        if self.ram.read(table, &mut entries).is_err() {
            return;
        }
        let (entries, _) = entries.as_chunks::<8>();
        let shift = 12 + 9 * (level - 1);
        for number in (first..ENTRIES).rev() {
            let entry = entries.get(number as usize).map_or(0, |entry| u64::from_le_bytes(*entry));
            if entry & PRESENT == 0 || self.runs.len() >= MAX_RUNS {
                continue;
            }
            let linear = base.wrapping_add(number << shift);
            if level == 1 || (entry & LARGE != 0 && level <= 3) {
                let size = 1 << shift;
                self.page(linear, entry & ADDRESS & !(size - 1), size);
            } else {
                self.table(entry & ADDRESS, level - 1, linear, 0);
            }
        }
    }

    fn page(&mut self, linear: u64, physical: u64, size: u64) {
        let Some(region) = self.ram.region_of(physical) else { return };
        let len = size.min(region.start + region.len - physical);
        let below = |run: &&mut Load| linear.wrapping_add(len) == run.linear && physical + len == run.physical;
        match self.runs.last_mut().filter(below) {
            Some(run) => (run.linear, run.physical, run.len) = (linear, physical, run.len + len),
            None => self.runs.push(Load { linear, physical, len }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Backing;

    #[test]
    fn page_tables_that_lead_to_themselves_come_to_an_end() {
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        for entry in 0..512u64 {
            ram.write(0x1000 + 8 * entry, &0x1003u64.to_le_bytes()).unwrap();
        }
        let system = SystemRegisters { cr0: CR0_PG | 1, cr3: 0x1000, efer: EFER_LMA, ..SystemRegisters::default() };
        let mut cpu = CpuState { system, ..CpuState::default() };
        assert_eq!(kernel(&ram, &[cpu.clone()]), []);
        cpu.system.efer = 0;
        assert_eq!(kernel(&ram, &[cpu]), [], "not in 64-bit mode");
    }

    #[test]
    fn runs_are_joined_and_the_longest_is_the_direct_map() {
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        let entries = [
            (0x1888, 0x2003u64),
            (0x2000, 0x3003),
            (0x3000, 0x4003),
            (0x4000, 0x8003),
            (0x4008, 0x9003),
            (0x4010, 0xa003),
            (0x4020, 0x6003),
            (0x4028, 0x8003),
            (0x4030, 0x20_0003),
        ];
        for (at, entry) in entries {
            ram.write(at, &entry.to_le_bytes()).unwrap();
        }
        let system = SystemRegisters { cr0: CR0_PG | 1, cr3: 0x1000, efer: EFER_LMA, ..SystemRegisters::default() };
        let runs = kernel(&ram, &[CpuState { system, ..CpuState::default() }]);
        let base = 0xffff_8880_0000_0000;
        let load = |linear, physical, len| Load { linear: base + linear, physical, len };
        assert_eq!(runs, [load(0x5000, 0x8000, 0x1000), load(0x4000, 0x6000, 0x1000), load(0, 0x8000, 0x3000)]);
        assert_eq!(direct_map(&runs), Some(base - 0x8000));
        assert_eq!(direct_map(&[]), None);
    }
}
