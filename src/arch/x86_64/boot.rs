//! The states in which the boot CPU enters a kernel, and the memory map that kernels are told. Plain data.
//!
//! Linux: Documentation/arch/x86/boot.rst, "64-bit boot protocol". PVH: xen/docs/misc/pvh.pandoc, "x86/HVM direct
//! boot ABI".

use super::gdt;
use super::msr;
use super::state::{Activity, CpuState, DescriptorTable, Registers, Segment, SystemRegisters};

/// What a range of guest-physical addresses is; the numbers are those of the BIOS call E820 (ACPI section 15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum MemoryKind {
    /// RAM that the kernel may use.
    Ram = 1,
    /// Not for use.
    Reserved = 2,
    /// RAM that holds ACPI tables.
    AcpiTables = 3,
}

/// A range of guest-physical addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryRange {
    /// First address.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// What it is.
    pub kind: MemoryKind,
}

/// Where the tables are that the boot CPU starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tables {
    /// Guest-physical address of [`gdt::table`].
    pub gdt: u64,
    /// Guest-physical address of the page tables; not used by [`pvh_entry`].
    pub page_tables: u64,
}

/// Registers that firmware sets on every CPU, the others included, and that a kernel takes as found.
pub const FIRMWARE_MSRS: &[(u32, u64)] =
    &[(msr::MISC_ENABLE, msr::MISC_ENABLE_FAST_STRING), (msr::MTRR_DEF_TYPE, msr::MTRR_ENABLED_WRITE_BACK)];

/// CR0: protection and paging; ET reads as one.
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LME_LMA: u64 = 1 << 8 | 1 << 10;
/// Local APIC at its usual address, enabled, boot CPU.
const APIC_BASE: u64 = 0xfee0_0000 | 1 << 11 | 1 << 8;
/// RFLAGS: bit 1 reads as one, interrupts are off.
const RFLAGS: u64 = 2;

/// Enters a 64-bit Linux kernel at `entry` with the boot parameters at `boot_params`.
pub fn linux_entry(entry: u64, boot_params: u64, tables: Tables) -> CpuState {
    let regs = Registers { rip: entry, rsi: boot_params, rflags: RFLAGS, ..Registers::default() };
    let mut state = flat(regs, gdt::CODE64, tables.gdt);
    state.system.cr0 |= CR0_PG;
    state.system.cr3 = tables.page_tables;
    state.system.cr4 = CR4_PAE;
    state.system.efer = EFER_LME_LMA;
    state
}

/// Enters a kernel at its PVH entry, in 32-bit mode without paging, with `hvm_start_info` at `start_info`.
pub fn pvh_entry(entry: u32, start_info: u32, tables: Tables) -> CpuState {
    let regs = Registers { rip: entry.into(), rbx: start_info.into(), rflags: RFLAGS, ..Registers::default() };
    flat(regs, gdt::CODE32, tables.gdt)
}

fn flat(regs: Registers, code: Segment, gdt: u64) -> CpuState {
    let data = gdt::DATA;
    let system = SystemRegisters {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: gdt::TASK,
        ldt: Segment { kind: 2, unusable: true, ..Segment::default() },
        gdt: DescriptorTable { base: gdt, limit: (gdt::ENTRIES * 8 - 1) as u16 },
        cr0: CR0_PE | CR0_ET,
        apic_base: APIC_BASE,
        ..SystemRegisters::default()
    };
    CpuState { regs, system, msrs: FIRMWARE_MSRS.to_vec(), activity: Activity::Running, ..CpuState::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLES: Tables = Tables { gdt: 0x1000, page_tables: 0x9000 };

    #[test]
    fn linux_is_entered_in_long_mode() {
        let state = linux_entry(0x100_0000, 0x7000, TABLES);
        assert_eq!((state.regs.rip, state.regs.rsi, state.regs.rflags), (0x100_0000, 0x7000, 2));
        let s = &state.system;
        assert_eq!((s.cr0, s.cr3, s.cr4, s.efer), (0x8000_0011, 0x9000, 0x20, 0x500));
        assert!(s.cs.l && !s.cs.db && s.cs.selector == 0x10 && s.ds.selector == 0x18);
        assert_eq!((s.gdt.base, s.gdt.limit), (0x1000, 47));
        assert_eq!(s.apic_base, 0xfee0_0900);
    }

    #[test]
    fn pvh_is_entered_in_protected_mode_without_paging() {
        let state = pvh_entry(0x100_0a30, 0x2000, TABLES);
        assert_eq!((state.regs.rip, state.regs.rbx), (0x100_0a30, 0x2000));
        let s = &state.system;
        assert_eq!((s.cr0, s.cr4, s.efer), (0x11, 0, 0));
        assert!(!s.cs.l && s.cs.db && s.cs.limit == u32::MAX && s.tr.limit == 0x67);
    }
}
