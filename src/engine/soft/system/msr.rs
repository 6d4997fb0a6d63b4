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
    pub(super) const MC0_STATUS: u32 = 0x401;
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
    pub(super) const NB_CFG: u32 = 0xc001_001f;
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
/// NB_CFG: extended configuration space by ports, which Linux turns on without asking; kept, without effect.
const NB_CFG_WRITABLE: u64 = 1 << 46;
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
    nb_cfg: u64,
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
            self.shared.clock.advance_to(tsc.wrapping_sub(self.system.msrs.tsc_adjust), self.instructions);
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
            // The guest has its wall clock already, and is told the system time when all is restored.
            index::WALL_CLOCK | index::OLD_WALL_CLOCK => {
                self.clock_exists(index)?;
                self.system.msrs.wall_clock = value;
                Ok(())
            }
            index::SYSTEM_TIME | index::OLD_SYSTEM_TIME => {
                self.clock_exists(index)?;
                self.system.msrs.system_time = value;
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
            index::MC0_STATUS..=index::MC0_MISC => 0,
            index::HWCR => msrs.hwcr | HWCR_TSC_CONSTANT,
            index::NB_CFG => msrs.nb_cfg,
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
            index::MC0_STATUS..=index::MC0_MISC | index::SYSCFG | index::INT_PENDING => {
                only(0)?;
            }
            index::HWCR => msrs.hwcr = only(HWCR_WRITABLE | HWCR_TSC_CONSTANT)? & HWCR_WRITABLE,
            index::NB_CFG => msrs.nb_cfg = only(NB_CFG_WRITABLE)?,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::boot::FIRMWARE_MSRS;
    use crate::arch::x86_64::cpuid::CpuidTable;
    use crate::arch::x86_64::level::CpuLevel;
    use crate::engine::soft::cpuid::{self, Cpuid};
    use crate::engine::soft::fault;
    use crate::engine::soft::testing;
    use crate::host::cpu::HostCpu;

    fn cpu() -> Cpu {
        let mut cpu = testing::cpu_of(&testing::ram(&[]), 2);
        cpu.cpuid = Cpuid::new(&cpuid::supported(CpuLevel::V1, &HostCpu::detect()));
        cpu
    }

    fn x2apic(cpu: &mut Cpu) {
        cpu.write_msr(index::APIC_BASE, 0xfee0_0d00).unwrap();
        cpu.write_msr(0x80f, 0x1ff).unwrap();
    }

    #[test]
    fn values_are_kept_and_bad_ones_refused() {
        let mut cpu = cpu();
        let high = 0xffff_8000_0000_0000;
        let kept = [
            (index::STAR, 0x23_0010_0000_0000),
            (index::LSTAR, high),
            (index::CSTAR, high + 1),
            (index::SFMASK, 0x4_7700),
            (index::KERNEL_GS_BASE, high + 2),
            (index::TSC_AUX, 0xfff),
            (index::SYSENTER_CS, 0x10),
            (index::SYSENTER_ESP, high + 3),
            (index::SYSENTER_EIP, high + 4),
            (index::FS_BASE, 0x7fff_ffff_f000),
            (index::GS_BASE, high + 5),
            (0x277, 0x0007_0106_0007_0106),
            (0x2ff, 0xc06),
            (index::MCG_CTL, 3),
            (index::NB_CFG, 1 << 46),
            (index::MC0_CTL, u64::MAX),
            (index::TSC_ADJUST, 1 << 40),
        ];
        for (index, value) in kept {
            assert_eq!((cpu.write_msr(index, value), cpu.read_msr(index)), (Ok(()), Ok(value)), "{index:#x}");
        }
        assert_eq!((cpu.seg_base[Seg::Fs as usize], cpu.seg_base[Seg::Gs as usize]), (0x7fff_ffff_f000, high + 5));
        let refused = [
            (index::LSTAR, 1 << 47),
            (index::KERNEL_GS_BASE, 1 << 63),
            (index::FS_BASE, 0x8000_0000_0000),
            (index::SYSENTER_EIP, 1 << 50),
            (0x277, 2),
            (index::MC0_STATUS, 1),
            (index::DEBUG_CTL, 1 << 6),
            (index::HWCR, 1),
            (index::ARCH_CAPABILITIES, 0),
            (index::MCG_CAP, 0),
            (index::APIC_BASE, 0xfee0_0401),
            (0x404, 0),
            (0xc001_0000, 0),
            (0x48, 0),
            (0x49, 1),
            (0xce, 0),
            (0x4b56_4d02, 1),
        ];
        for (index, value) in refused {
            let before = cpu.msr(index);
            assert_eq!(cpu.write_msr(index, value), Err(Break::Fault), "{index:#x}");
            assert_eq!((cpu.fault.vector, cpu.fault.error), (fault::GP, Some(0)));
            assert_eq!(cpu.msr(index), before, "{index:#x}");
        }
        assert_eq!(cpu.read_msr(0xc001_0004), Err(Break::Fault));
    }

    #[test]
    fn what_linux_reads_of_an_amd_cpu_is_there() {
        let mut cpu = cpu();
        for index in [index::SYSCFG, index::INT_PENDING, index::PATCH_LEVEL, index::DE_CFG, index::VM_CR] {
            assert!(cpu.read_msr(index).is_ok(), "{index:#x}");
        }
        assert_eq!(cpu.read_msr(index::HWCR).unwrap() >> 24 & 1, 1);
        cpu.write_msr(index::HWCR, 1 << 18).unwrap();
        assert_eq!(cpu.read_msr(index::HWCR), Ok(1 << 18 | 1 << 24));
        assert_eq!(cpu.read_msr(index::ARCH_CAPABILITIES).unwrap() & 0x21, 0x21);
        for (index, value) in FIRMWARE_MSRS {
            assert_eq!(cpu.write_msr(*index, *value), Ok(()), "{index:#x}");
        }
    }

    #[test]
    fn efer_follows_its_rules() {
        let mut cpu = cpu();
        let before = cpu.system.efer;
        for bad in [before ^ efer::LME, before | 1 << 12, before | 1 << 14, before | 1 << 1] {
            assert!(cpu.write_msr(index::EFER, bad).is_err(), "{bad:#x}");
            assert_eq!(cpu.system.efer, before);
        }
        cpu.write_msr(index::EFER, before & !efer::LMA & !efer::NXE | efer::AIBRSE).unwrap();
        assert_eq!(cpu.system.efer, before & !efer::NXE | efer::AIBRSE, "LMA stays");
        cpu.system.cr0 &= !cr0::PG;
        cpu.system.efer = 0;
        cpu.write_msr(index::EFER, efer::LME | efer::LMA).unwrap();
        assert_eq!(cpu.read_msr(index::EFER), Ok(efer::LME), "LMA comes with paging");
        cpu.cpuid = Cpuid::new(&CpuidTable::default());
        assert!(cpu.write_msr(index::EFER, efer::AIBRSE).is_err(), "not offered");
    }

    #[test]
    fn the_counter_and_its_adjustment_are_one() {
        let mut cpu = cpu();
        let minute = 60_000_000_000;
        cpu.write_msr(index::TSC, 1 << 50).unwrap();
        let read = cpu.read_msr(index::TSC).unwrap();
        assert!((1 << 50..(1 << 50) + minute).contains(&read));
        let adjust = cpu.read_msr(index::TSC_ADJUST).unwrap();
        assert!(adjust <= 1 << 50 && adjust > (1 << 50) - minute);
        cpu.write_msr(index::TSC_ADJUST, 0).unwrap();
        assert!(cpu.guest_tsc() < minute);
        cpu.write_msr(index::TSC_ADJUST, 5u64.wrapping_neg() << 40).unwrap();
        assert!(cpu.guest_tsc() > u64::MAX / 2, "wraps below zero");
    }

    #[test]
    fn deadlines_are_values_of_the_counter() {
        let mut cpu = cpu();
        x2apic(&mut cpu);
        let hour = 3_600_000_000_000;
        cpu.write_msr(index::TSC_ADJUST, hour).unwrap();
        cpu.write_msr(0x832, 0x4_00ef).unwrap();
        let deadline = cpu.guest_tsc() + hour;
        cpu.write_msr(index::TSC_DEADLINE, deadline).unwrap();
        assert_eq!(cpu.read_msr(index::TSC_DEADLINE), Ok(deadline));
        let at = cpu.apic().deadline().unwrap();
        assert!(at.abs_diff(deadline - hour) < hour / 60);
        cpu.write_msr(index::TSC_ADJUST, hour / 2).unwrap();
        let later = cpu.apic().deadline().unwrap();
        assert!(later.abs_diff(deadline - hour / 2) < hour / 60, "the same value of the counter");
        cpu.write_msr(index::TSC_DEADLINE, 1).unwrap();
        assert_eq!(cpu.read_msr(index::TSC_DEADLINE), Ok(0), "passed already");
        assert_eq!(cpu.apic().accept(), Some(0xef));
        cpu.write_msr(index::TSC_DEADLINE, u64::MAX).unwrap();
        assert_ne!(cpu.apic().deadline(), Some(0));
        cpu.write_msr(index::TSC_DEADLINE, 0).unwrap();
        assert_eq!(cpu.apic().deadline(), None);
    }

    #[test]
    fn the_clock_is_told_where_cpuid_has_it() {
        let mut cpu = cpu();
        for (index, at) in [(index::SYSTEM_TIME, 0x1000), (index::OLD_SYSTEM_TIME, 0x1100)] {
            cpu.write_msr(index, at | 1).unwrap();
            assert_eq!(cpu.read_msr(index), Ok(at | 1));
            let stamp = cpu.load::<u64>(at + 8).unwrap();
            assert_eq!(cpu.load::<u64>(at + 16).unwrap(), stamp, "counter and time are the same yet");
            assert!(stamp <= cpu.guest_tsc());
        }
        cpu.write_msr(index::TSC_ADJUST, 1 << 40).unwrap();
        let (stamp, time) = (cpu.load::<u64>(0x1108).unwrap(), cpu.load::<u64>(0x1110).unwrap());
        assert_eq!(stamp - time, 1 << 40, "told anew");
        cpu.write_msr(index::WALL_CLOCK, 0x1200).unwrap();
        assert_eq!(cpu.load::<u32>(0x1200).unwrap() & 1, 0);
        assert!(cpu.load::<u32>(0x1204).unwrap() > 1_700_000_000);
        cpu.write_msr(index::SYSTEM_TIME, u64::MAX).unwrap();
        cpu.cpuid = Cpuid::default();
        for index in [index::SYSTEM_TIME, index::WALL_CLOCK, index::OLD_SYSTEM_TIME, index::OLD_WALL_CLOCK] {
            assert!(cpu.read_msr(index).is_err() && cpu.write_msr(index, 0).is_err(), "{index:#x}");
        }
    }

    #[test]
    fn saved_registers_are_restored_and_time_goes_on() {
        let mut first = cpu();
        x2apic(&mut first);
        first.write_msr(0x832, 0x4_00ef).unwrap();
        first.write_msr(index::TSC, 1 << 52).unwrap();
        first.write_msr(index::TSC_ADJUST, 77).unwrap();
        first.write_msr(index::LSTAR, 0x1234).unwrap();
        first.write_msr(index::SYSTEM_TIME, 0x1001).unwrap();
        first.shared.clock.advance_to(1 << 45, 0);
        let saved = first.saved_msrs();
        let order: Vec<u32> = saved.iter().map(|(index, _)| *index).collect();
        let expected: Vec<u32> =
            SAVED.iter().copied().filter(|index| !(0x4b56_4d02..=0x4b56_4d05).contains(index)).collect();
        assert_eq!(order, expected, "all but those that CPUID does not offer");
        let mut second = cpu();
        second.restore_msrs(&saved).unwrap();
        let again = second.saved_msrs();
        let of = |msrs: &[(u32, u64)], wanted| msrs.iter().find(|(index, _)| *index == wanted).unwrap().1;
        assert!(of(&again, index::TSC) >= of(&saved, index::TSC), "time goes on");
        assert_eq!(of(&again, index::TSC_ADJUST), 77);
        let timeless =
            |msrs: &[(u32, u64)]| msrs.iter().copied().filter(|(index, _)| *index != index::TSC).collect::<Vec<_>>();
        assert_eq!(timeless(&again), timeless(&saved));
        assert_eq!(second.load::<u32>(0x1000).unwrap(), 2, "the clock's page is written again");
        assert_eq!(second.restore_msrs(&[(index::STAR, 1), (0x48, 5)]), Err((0x48, 5)));
        second.restore_msrs(&[(index::APIC_BASE, 0xfee0_0d00)]).unwrap();
        second.restore_msrs(&[(index::APIC_BASE, 0xfee0_0900)]).unwrap();
        assert_eq!(second.read_msr(index::APIC_BASE), Ok(0xfee0_0900), "a change that a guest could not make");
    }
}
