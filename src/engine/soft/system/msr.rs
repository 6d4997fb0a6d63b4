//! Model-specific registers (SDM volume 4, chapter 2; AMD APM volume 2, appendix A): RDMSR, WRMSR, and what of them saved
//! state holds. There are those that CPUID tells of, and those that Linux expects of an AMD CPU of family 19h; all others
//! raise #GP(0).

use super::mtrr::MemoryTypes;
use crate::arch::x86_64::msr::SAVED;
use crate::engine::soft::apic::Refused;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::{Cpu, cr0, efer};
use crate::engine::soft::fault::{Break, Step};
use crate::engine::soft::memory::walk::PHYSICAL_BITS;
use crate::engine::soft::pvclock::feature;

mod index {
    pub(super) const TSC: u32 = 0x10;
    pub(super) const OLD_WALL_CLOCK: u32 = 0x11;
    pub(super) const OLD_SYSTEM_TIME: u32 = 0x12;
    pub(super) const APIC_BASE: u32 = 0x1b;
    pub(super) const TSC_ADJUST: u32 = 0x3b;
    pub(super) const PATCH_LEVEL: u32 = 0x8b;
    pub(super) const ARCH_CAPABILITIES: u32 = 0x10a;
    pub(super) const SYSENTER_CS: u32 = 0x174;
    pub(super) const SYSENTER_ESP: u32 = 0x175;
    pub(super) const SYSENTER_EIP: u32 = 0x176;
    pub(super) const MCG_CAP: u32 = 0x179;
    pub(super) const MCG_STATUS: u32 = 0x17a;
    pub(super) const MCG_CTL: u32 = 0x17b;
    pub(super) const MISC_ENABLE: u32 = 0x1a0;
    pub(super) const DEBUG_CTL: u32 = 0x1d9;
    pub(super) const MC0_CTL: u32 = 0x400;
    pub(super) const MC0_MISC: u32 = 0x403;
    pub(super) const TSC_DEADLINE: u32 = 0x6e0;
    pub(super) const APIC: u32 = 0x800;
    pub(super) const APIC_LAST: u32 = 0x8ff;
    pub(super) const WALL_CLOCK: u32 = 0x4b56_4d00;
    pub(super) const SYSTEM_TIME: u32 = 0x4b56_4d01;
    pub(super) const EFER: u32 = 0xc000_0080;
    pub(super) const STAR: u32 = 0xc000_0081;
    pub(super) const LSTAR: u32 = 0xc000_0082;
    pub(super) const CSTAR: u32 = 0xc000_0083;
    pub(super) const SFMASK: u32 = 0xc000_0084;
    pub(super) const FS_BASE: u32 = 0xc000_0100;
    pub(super) const GS_BASE: u32 = 0xc000_0101;
    pub(super) const KERNEL_GS_BASE: u32 = 0xc000_0102;
    pub(super) const TSC_AUX: u32 = 0xc000_0103;
    pub(super) const SYSCFG: u32 = 0xc001_0010;
    pub(super) const HWCR: u32 = 0xc001_0015;
    pub(super) const INT_PENDING: u32 = 0xc001_0055;
    pub(super) const VM_CR: u32 = 0xc001_0114;
    pub(super) const DE_CFG: u32 = 0xc001_1029;
}

/// Microcode: newer than all errata of the family, of which this CPU has none.
const PATCH_LEVEL: u64 = 0x0a00_11ff;
/// IA32_ARCH_CAPABILITIES: RDCL_NO, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO,
/// PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO. (RRSBA and IBRS_ALL promise behaviour of indirect branches; they are left.)
const ARCH_CAPABILITIES: u64 =
    1 | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 7 << 13 | 1 << 20 | 1 << 24 | 1 << 26 | 1 << 27;
/// One bank, and a control register.
const MCG_CAP: u64 = 1 | 1 << 8;
/// Fast string operations can be switched; branch and precise event records do not exist (read-only).
const MISC_ENABLE_WRITABLE: u64 = 1;
const MISC_ENABLE_FIXED: u64 = 1 << 11 | 1 << 12;
/// Last branch records and single-stepping by branches: kept, without effect.
const DEBUG_CTL_BITS: u64 = 3;
/// HWCR: the counter runs at a constant frequency (24); what software may change (3, 6, 8, 18).
const HWCR_TSC_CONSTANT: u64 = 1 << 24;
const HWCR_WRITABLE: u64 = 1 << 3 | 1 << 6 | 1 << 8 | 1 << 18;
/// DE_CFG: LFENCE serialises.
const DE_CFG: u64 = 1 << 1;
/// VM_CR: SVM is off for good (lock, disable).
const VM_CR: u64 = 3 << 3;

/// MSRs that have no place elsewhere.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::engine::soft) struct Msrs {
    /// What the time-stamp counter is ahead of guest time; at the same time IA32_TSC_ADJUST.
    pub(in crate::engine::soft) tsc_adjust: u64,
    pub(in crate::engine::soft) star: u64,
    pub(in crate::engine::soft) lstar: u64,
    pub(in crate::engine::soft) cstar: u64,
    pub(in crate::engine::soft) sfmask: u64,
    pub(in crate::engine::soft) kernel_gs_base: u64,
    pub(in crate::engine::soft) tsc_aux: u64,
    pub(in crate::engine::soft) sysenter_cs: u64,
    pub(in crate::engine::soft) sysenter_esp: u64,
    pub(in crate::engine::soft) sysenter_eip: u64,
    /// Address and enable bit of the structure with the system time.
    pub(in crate::engine::soft) system_time: u64,
    wall_clock: u64,
    misc_enable: u64,
    debug_ctl: u64,
    mcg_status: u64,
    mcg_ctl: u64,
    mc0_ctl: u64,
    hwcr: u64,
    memory_types: MemoryTypes,
}

impl Cpu {
    /// RDMSR; #GP(0) if there is no such register.
    pub(in crate::engine::soft) fn read_msr(&mut self, index: u32) -> Result<u64, Break> {
        self.msr(index).map_err(|Refused| {
            tracing::debug!("vCPU {}: no MSR {index:#x} to read", self.index);
            self.gp(0)
        })
    }

    /// WRMSR; #GP(0) if there is no such register or it cannot have this value.
    pub(in crate::engine::soft) fn write_msr(&mut self, index: u32, value: u64) -> Step {
        self.set_msr(index, value).map_err(|Refused| {
            tracing::debug!("vCPU {}: MSR {index:#x} cannot be {value:#x}", self.index);
            self.gp(0)
        })
    }

    /// Those of [`SAVED`] that exist here, in its order.
    pub(in crate::engine::soft) fn saved_msrs(&self) -> Vec<(u32, u64)> {
        SAVED.iter().filter_map(|index| Some((*index, self.msr(*index).ok()?))).collect()
    }

    /// Sets MSRs of saved state in the order in which they are given, after all other state but before the first
    /// instruction. The counter goes on from where it was. The first that is refused, if one is.
    pub(in crate::engine::soft) fn restore_msrs(&mut self, msrs: &[(u32, u64)]) -> Result<(), (u32, u64)> {
        let saved = |wanted| msrs.iter().find(|(index, _)| *index == wanted).map(|(_, value)| *value);
        if let Some(adjust) = saved(index::TSC_ADJUST) {
            self.system.msrs.tsc_adjust = adjust;
        }
        if let Some(tsc) = saved(index::TSC) {
            self.shared.clock.advance_to(tsc.wrapping_sub(self.system.msrs.tsc_adjust));
        }
        for &(index, value) in msrs.iter().filter(|(index, _)| !matches!(*index, index::TSC | index::TSC_ADJUST)) {
            self.restore_msr(index, value).map_err(|Refused| (index, value))?;
        }
        self.tell_system_time();
        Ok(())
    }

    fn restore_msr(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        match index {
            index::APIC_BASE => self.apic().restore_base(value),
            // The guest has its wall clock already; memory is restored by others.
            index::WALL_CLOCK | index::OLD_WALL_CLOCK => {
                self.system.msrs.wall_clock = value;
                Ok(())
            }
            _ => self.set_msr(index, value),
        }
    }

    fn msr(&self, index: u32) -> Result<u64, Refused> {
        let msrs = &self.system.msrs;
        Ok(match index {
            index::TSC => self.guest_tsc(),
            index::TSC_ADJUST => msrs.tsc_adjust,
            index::APIC_BASE => self.apic().base(),
            index::TSC_DEADLINE => self.apic().tsc_deadline(self.guest_time()),
            index::APIC..=index::APIC_LAST => self.read_apic_msr(index)?,
            index::EFER => self.system.efer,
            index::FS_BASE => self.segment(Seg::Fs).base,
            index::GS_BASE => self.segment(Seg::Gs).base,
            index::STAR => msrs.star,
            index::LSTAR => msrs.lstar,
            index::CSTAR => msrs.cstar,
            index::SFMASK => msrs.sfmask,
            index::KERNEL_GS_BASE => msrs.kernel_gs_base,
            index::TSC_AUX => msrs.tsc_aux,
            index::SYSENTER_CS => msrs.sysenter_cs,
            index::SYSENTER_ESP => msrs.sysenter_esp,
            index::SYSENTER_EIP => msrs.sysenter_eip,
            index::OLD_WALL_CLOCK | index::OLD_SYSTEM_TIME | index::WALL_CLOCK | index::SYSTEM_TIME => {
                self.clock_exists(index)?;
                if matches!(index, index::OLD_WALL_CLOCK | index::WALL_CLOCK) {
                    msrs.wall_clock
                } else {
                    msrs.system_time
                }
            }
            _ => return self.platform_msr(index),
        })
    }

    /// Registers about the CPU itself, which change little.
    fn platform_msr(&self, index: u32) -> Result<u64, Refused> {
        let msrs = &self.system.msrs;
        Ok(match index {
            index::PATCH_LEVEL => PATCH_LEVEL,
            index::ARCH_CAPABILITIES if self.cpuid.arch_capabilities() => ARCH_CAPABILITIES,
            index::MISC_ENABLE => msrs.misc_enable | MISC_ENABLE_FIXED,
            index::DEBUG_CTL => msrs.debug_ctl,
            index::MCG_CAP => MCG_CAP,
            index::MCG_STATUS => msrs.mcg_status,
            index::MCG_CTL => msrs.mcg_ctl,
            index::MC0_CTL => msrs.mc0_ctl,
            // Status, address, miscellaneous: there are no errors.
            index::MC0_CTL..=index::MC0_MISC => 0,
            index::HWCR => msrs.hwcr | HWCR_TSC_CONSTANT,
            index::DE_CFG => DE_CFG,
            index::VM_CR => VM_CR,
            index::SYSCFG | index::INT_PENDING => 0,
            _ => msrs.memory_types.read(index).ok_or(Refused)?,
        })
    }

    fn set_msr(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        match index {
            index::TSC => self.set_tsc_adjust(value.wrapping_sub(self.guest_time())),
            index::TSC_ADJUST => self.set_tsc_adjust(value),
            index::APIC_BASE => self.apic().set_base(value)?,
            index::TSC_DEADLINE => self.apic().set_tsc_deadline(value, self.time_of_tsc(value)),
            index::APIC..=index::APIC_LAST => self.write_apic_msr(index, value)?,
            index::EFER => self.set_efer(value)?,
            index::FS_BASE => self.set_base(Seg::Fs, canonical(value)?),
            index::GS_BASE => self.set_base(Seg::Gs, canonical(value)?),
            index::STAR => self.system.msrs.star = value,
            index::LSTAR => self.system.msrs.lstar = canonical(value)?,
            index::CSTAR => self.system.msrs.cstar = canonical(value)?,
            index::SFMASK => self.system.msrs.sfmask = value & 0xffff_ffff,
            index::KERNEL_GS_BASE => self.system.msrs.kernel_gs_base = canonical(value)?,
            index::TSC_AUX => self.system.msrs.tsc_aux = value & 0xffff_ffff,
            index::SYSENTER_CS => self.system.msrs.sysenter_cs = value & 0xffff_ffff,
            index::SYSENTER_ESP => self.system.msrs.sysenter_esp = canonical(value)?,
            index::SYSENTER_EIP => self.system.msrs.sysenter_eip = canonical(value)?,
            index::OLD_WALL_CLOCK | index::WALL_CLOCK => {
                self.clock_exists(index)?;
                self.system.msrs.wall_clock = value;
                self.tell_wall_clock(value);
            }
            index::OLD_SYSTEM_TIME | index::SYSTEM_TIME => {
                self.clock_exists(index)?;
                // Aligned to four bytes; the lowest bit enables.
                self.system.msrs.system_time = value & !2;
                self.tell_system_time();
            }
            _ => return self.set_platform_msr(index, value),
        }
        Ok(())
    }

    fn set_platform_msr(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        let msrs = &mut self.system.msrs;
        let only = |bits: u64| if value & !bits == 0 { Ok(value) } else { Err(Refused) };
        match index {
            // Intel's way to read the microcode's version begins with a write.
            index::PATCH_LEVEL => {}
            index::MISC_ENABLE => {
                msrs.misc_enable = only(MISC_ENABLE_WRITABLE | MISC_ENABLE_FIXED)? & MISC_ENABLE_WRITABLE
            }
            index::DEBUG_CTL => msrs.debug_ctl = only(DEBUG_CTL_BITS)?,
            index::MCG_STATUS => msrs.mcg_status = only(7)?,
            index::MCG_CTL => msrs.mcg_ctl = value,
            index::MC0_CTL => msrs.mc0_ctl = value,
            index::MC0_CTL..=index::MC0_MISC | index::SYSCFG | index::INT_PENDING => {
                only(0)?;
            }
            index::HWCR => msrs.hwcr = only(HWCR_WRITABLE | HWCR_TSC_CONSTANT)? & HWCR_WRITABLE,
            index::DE_CFG => {
                only(DE_CFG)?;
            }
            _ => msrs.memory_types.write(index, value, (1 << PHYSICAL_BITS) - 1)?,
        }
        Ok(())
    }

    /// The clock's MSRs exist if CPUID says so.
    fn clock_exists(&self, index: u32) -> Result<(), Refused> {
        let old = matches!(index, index::OLD_WALL_CLOCK | index::OLD_SYSTEM_TIME);
        let needed = if old { feature::OLD_CLOCK } else { feature::CLOCK };
        if self.cpuid.pv_features() & needed != 0 { Ok(()) } else { Err(Refused) }
    }

    /// Changes the counter against guest time. A deadline that waits, waits for the same value of the counter.
    fn set_tsc_adjust(&mut self, adjust: u64) {
        let deadline = self.apic().tsc_deadline(self.guest_time());
        self.system.msrs.tsc_adjust = adjust;
        if deadline != 0 {
            self.apic().set_tsc_deadline(deadline, self.time_of_tsc(deadline));
        }
        self.tell_system_time();
    }

    fn set_efer(&mut self, value: u64) -> Result<(), Refused> {
        let automatic_ibrs = if self.cpuid.automatic_ibrs() { efer::AIBRSE } else { 0 };
        let changed = self.system.efer ^ value;
        let paging = self.system.cr0 & cr0::PG != 0;
        if value & !(efer::SCE | efer::LME | efer::LMA | efer::NXE | automatic_ibrs) != 0
            || (paging && changed & efer::LME != 0)
        {
            return Err(Refused);
        }
        // LMA follows from LME and paging: what is written does not count.
        self.system.efer = value & !efer::LMA | self.system.efer & efer::LMA;
        if changed & efer::NXE != 0 {
            self.tlb.flush();
        }
        Ok(())
    }

    /// FS and GS have a base in every mode.
    fn set_base(&mut self, seg: Seg, base: u64) {
        let mut segment = self.segment(seg);
        segment.base = base;
        self.set_segment(seg, segment);
        if let Some(slot) = self.seg_base.get_mut(seg as usize) {
            *slot = base;
        }
    }
}

fn canonical(value: u64) -> Result<u64, Refused> {
    if Cpu::canonical(value) { Ok(value) } else { Err(Refused) }
}
