//! Control registers: MOV to and from CR0, CR2, CR3, CR4, CR8; CLTS, SMSW, LMSW, INVLPG, INVD, WBINVD (SDM volume 3, 2.5 and
//! 4.1; volume 2, the MOV page).

use crate::engine::soft::code::op::{Op, Seg};
use crate::engine::soft::cpu::{Cpu, cr0, cr4, efer};
use crate::engine::soft::fault::{Break, Step};
use crate::engine::soft::memory::walk::{Access, PHYSICAL_BITS};
use crate::engine::soft::width::Width;

/// Bits that CR0 has; NE among them, the others read as zero.
const CR0_BITS: u64 =
    cr0::PE | cr0::MP | cr0::EM | cr0::TS | cr0::ET | cr0::NE | cr0::WP | cr0::AM | cr0::NW | cr0::CD | cr0::PG;
/// What LMSW can write.
const MACHINE_STATUS: u64 = cr0::PE | cr0::MP | cr0::EM | cr0::TS;

/// Bits of CR4, and where CPUID says whether they exist: (bit, leaf, register of the answer, bit).
const CR4_FEATURES: &[(u64, u32, usize, u32)] = &[
    (cr4::TSD, 1, 3, 4),
    (cr4::DE, 1, 3, 2),
    (cr4::PSE, 1, 3, 3),
    (cr4::PAE, 1, 3, 6),
    (cr4::MCE, 1, 3, 7),
    (cr4::PGE, 1, 3, 13),
    (cr4::OSFXSR, 1, 3, 24),
    (cr4::OSXMMEXCPT, 1, 3, 25),
    (cr4::OSXSAVE, 1, 2, 26),
    (cr4::UMIP, 7, 2, 2),
    (cr4::FSGSBASE, 7, 1, 0),
    (cr4::SMEP, 7, 1, 7),
    (cr4::SMAP, 7, 1, 20),
];
/// CR4 bits on which translations depend.
const CR4_PAGING: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP | cr4::SMAP;
/// CR0 bits on which translations depend.
const CR0_PAGING: u64 = cr0::PE | cr0::PG | cr0::WP;
/// CR3 bits that must be zero in IA-32e mode.
const CR3_RESERVED: u64 = !0 << PHYSICAL_BITS;

/// MOV r, CR; `extra` is the number of the control register.
pub(super) fn from_control<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    if !matches!(op.extra, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.ud());
    }
    cpu.privileged()?;
    let value = match op.extra {
        0 => cpu.system.cr0,
        2 => cpu.system.cr2,
        3 => cpu.system.cr3,
        4 => cpu.system.cr4,
        _ => cpu.task_priority(),
    };
    cpu.regs.set(op.dst, T::from_u64(value));
    Ok(())
}

/// MOV CR, r; `extra` is the number of the control register.
pub(super) fn to_control<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    if !matches!(op.extra, 0 | 2 | 3 | 4 | 8) {
        return Err(cpu.ud());
    }
    cpu.privileged()?;
    let value = cpu.regs.get::<T>(op.src).to_u64();
    match op.extra {
        0 => cpu.set_cr0(value)?,
        2 => cpu.system.cr2 = value,
        3 => cpu.set_cr3(value)?,
        4 => cpu.set_cr4(value)?,
        _ if value > 15 => return Err(cpu.gp(0)),
        _ => cpu.set_task_priority(value),
    }
    Ok(())
}

impl Cpu {
    fn set_cr0(&mut self, value: u64) -> Step {
        let (protect, page) = (value & cr0::PE != 0, value & cr0::PG != 0);
        let write_through = value & (cr0::NW | cr0::CD) == cr0::NW;
        if value >> 32 != 0 || write_through || (page && !protect) {
            return Err(self.gp(0));
        }
        let value = value & CR0_BITS | cr0::ET;
        let changed = self.system.cr0 ^ value;
        if changed & cr0::PG != 0 {
            self.switch_paging(page)?;
        }
        self.system.cr0 = value;
        if changed & CR0_PAGING != 0 {
            self.tlb.flush();
        }
        self.mode_changed();
        Ok(())
    }

    /// Turning paging on with EFER.LME set turns IA-32e mode on (SDM volume 3, 10.8.5).
    fn switch_paging(&mut self, on: bool) -> Step {
        if !on {
            if self.is_64() {
                return Err(self.gp(0));
            }
            self.system.efer &= !efer::LMA;
        } else if self.system.efer & efer::LME != 0 {
            if self.system.cr4 & cr4::PAE == 0 || self.segment(Seg::Cs).l {
                return Err(self.gp(0));
            }
            self.system.efer |= efer::LMA;
        }
        Ok(())
    }

    fn set_cr3(&mut self, value: u64) -> Step {
        if self.long_mode() && value & CR3_RESERVED != 0 {
            return Err(self.gp(0));
        }
        self.system.cr3 = value;
        self.tlb.flush_local();
        Ok(())
    }

    fn set_cr4(&mut self, value: u64) -> Step {
        let changed = self.system.cr4 ^ value;
        let unknown = CR4_FEATURES.iter().fold(value & changed, |left, (bit, leaf, register, feature)| {
            // Asked only for what is being set: CPUID takes longer than the rest.
            let exists =
                left & bit != 0 && self.cpuid(*leaf, 0).get(*register).is_some_and(|answer| answer >> feature & 1 != 0);
            if exists { left & !bit } else { left }
        });
        let pae_off = self.long_mode() && value & cr4::PAE == 0;
        if unknown & !cr4::PCE != 0 || pae_off {
            return Err(self.gp(0));
        }
        self.system.cr4 = value;
        if changed & cr4::DE != 0 {
            self.breakpoints_changed();
        }
        if changed & CR4_PAGING != 0 {
            self.tlb.flush();
        }
        self.mode_changed();
        Ok(())
    }
}

/// CLTS.
pub(super) fn clts(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.privileged()?;
    cpu.system.cr0 &= !cr0::TS;
    cpu.mode_changed();
    Ok(())
}

/// SMSW to a register.
pub(super) fn smsw_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.readable_by_user()?;
    cpu.regs.set(op.dst, T::from_u64(cpu.system.cr0));
    Ok(())
}

/// SMSW to memory.
pub(super) fn smsw_mem(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.readable_by_user()?;
    let at = cpu.address(op, 2, Access::Write)?;
    cpu.store(at, cpu.system.cr0 as u16)
}

/// LMSW with a register.
pub(super) fn lmsw_reg(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.privileged()?;
    let value = cpu.regs.get::<u16>(op.dst);
    load_machine_status(cpu, value)
}

/// LMSW from memory.
pub(super) fn lmsw_mem(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.privileged()?;
    let value = cpu.load_word(op)?;
    load_machine_status(cpu, value)
}

/// PE can be set this way, but not cleared.
fn load_machine_status(cpu: &mut Cpu, value: u16) -> Result<(), Break> {
    let kept = cpu.system.cr0 & (!MACHINE_STATUS | cr0::PE);
    cpu.set_cr0(kept | u64::from(value) & MACHINE_STATUS)
}

/// INVLPG: the address need not be mapped, nor within the segment; one that is not canonical does nothing.
pub(super) fn invlpg(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.privileged()?;
    let base = cpu.seg_base.get(op.seg as usize).copied().unwrap_or(0);
    let at = cpu.table_address(base, cpu.offset(op));
    if Cpu::canonical(at) {
        cpu.tlb.flush_page(at);
    }
    Ok(())
}

/// INVD, WBINVD, WBNOINVD: caches are the host's.
pub(super) fn invalidate_caches(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.privileged()
}
