//! Table registers and questions about descriptors: LGDT, LIDT, LLDT, LTR and what stores them; LAR, LSL, VERR, VERW, ARPL
//! (SDM volume 2; volume 3, 2.4 and 5.10).

use super::descriptor::{Descriptor, LOCAL, RPL, error_of, is_null, system};
use crate::arch::x86_64::state::{DescriptorTable, Segment};
use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::{Cpu, cr4};
use crate::engine::soft::fault::{self, Break, Step};
use crate::engine::soft::flags::Flags;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::width::Width;

impl Cpu {
    /// #GP(0) unless at privilege level 0.
    pub(super) fn privileged(&mut self) -> Step {
        if self.cpl == 0 { Ok(()) } else { Err(self.gp(0)) }
    }

    /// #GP(0) where user-mode instruction prevention forbids to read a system register.
    pub(super) fn readable_by_user(&mut self) -> Step {
        if self.cpl != 0 && self.system.cr4 & cr4::UMIP != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// #UD in real mode.
    fn only_protected(&mut self) -> Step {
        if self.protected() { Ok(()) } else { Err(self.ud()) }
    }

    /// A 16-bit memory operand.
    pub(super) fn load_word(&mut self, op: &Op) -> Result<u16, Break> {
        let at = self.address(op, 2, Access::Read)?;
        self.load::<u16>(at)
    }
}

/// Which table register `extra` means.
pub(super) const GDT: u8 = 0;
pub(super) const IDT: u8 = 1;
/// Which task register `extra` means.
pub(super) const LDT: u8 = 0;
pub(super) const TASK: u8 = 1;

/// LGDT, LIDT. `imm` is the mask of the base: 24, 32 or 64 bits.
pub(super) fn load_table(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.privileged()?;
    let size = if cpu.is_64() { 8 } else { 4 };
    let at = cpu.address(op, 2 + size, Access::Read)?;
    let limit = cpu.load::<u16>(at)?;
    let base = cpu.load_sized(at.wrapping_add(2), size)? & op.imm;
    if !Cpu::canonical(base) {
        return Err(cpu.gp(0));
    }
    let table = DescriptorTable { base, limit };
    if op.extra == GDT {
        cpu.system.gdt = table
    } else {
        cpu.system.idt = table
    }
    Ok(())
}

/// SGDT, SIDT.
pub(super) fn store_table(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.readable_by_user()?;
    let table = if op.extra == GDT { cpu.system.gdt } else { cpu.system.idt };
    let size = if cpu.is_64() { 8 } else { 4 };
    let at = cpu.address(op, 2 + size, Access::Write)?;
    let mut bytes = [0; 10];
    let (limit, base) = bytes.split_at_mut(2);
    limit.copy_from_slice(&table.limit.to_le_bytes());
    base.copy_from_slice(&(table.base & op.imm).to_le_bytes());
    match bytes.get(..2 + size as usize) {
        Some(bytes) => cpu.write_bytes(at, bytes),
        None => Ok(()),
    }
}

/// LLDT, LTR with a register.
pub(super) fn load_task_reg(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.only_protected()?;
    cpu.privileged()?;
    let selector = cpu.regs.get::<u16>(op.dst);
    load_task(cpu, op, selector)
}

/// LLDT, LTR from memory.
pub(super) fn load_task_mem(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.only_protected()?;
    cpu.privileged()?;
    let selector = cpu.load_word(op)?;
    load_task(cpu, op, selector)
}

fn load_task(cpu: &mut Cpu, op: &Op, selector: u16) -> Step {
    if op.extra == LDT {
        cpu.system.ldt = match is_null(selector) {
            true => Segment { selector, kind: system::LDT, unusable: true, ..Segment::default() },
            false => cpu.system_segment(selector, |kind, _| kind == system::LDT)?.1,
        };
        return Ok(());
    }
    if is_null(selector) {
        return Err(cpu.gp(0));
    }
    let available = |kind, long: bool| kind == system::TSS || (kind == system::TSS16 && !long);
    let (found, mut segment) = cpu.system_segment(selector, available)?;
    const BUSY: u8 = 2;
    cpu.set_type_bits(found, BUSY)?;
    segment.kind |= BUSY;
    cpu.system.tr = segment;
    Ok(())
}

impl Cpu {
    /// The system segment of a selector, which must be in the GDT and of a type that `fits` (type, IA-32e mode).
    fn system_segment(
        &mut self,
        selector: u16,
        fits: impl Fn(u8, bool) -> bool,
    ) -> Result<(Descriptor, Segment), Break> {
        let error = error_of(selector);
        if selector & LOCAL != 0 {
            return Err(self.gp(error));
        }
        let found = self.descriptor(selector)?;
        if found.is_segment() || !fits(found.kind(), self.long_mode()) {
            return Err(self.gp(error));
        }
        if !found.present() {
            return Err(self.raise(fault::NP, Some(error)));
        }
        let mut segment = found.segment(selector);
        if self.long_mode() {
            let high = self.second_half(selector, found)?;
            segment.base |= high << 32;
            // The type field of the upper half must be zero.
            if !Self::canonical(segment.base) || high >> 40 & 0x1f != 0 {
                return Err(self.gp(error));
            }
        }
        Ok((found, segment))
    }

    /// SLDT and STR: the selector, where it may be read.
    fn task_selector(&mut self, op: &Op) -> Result<u16, Break> {
        self.only_protected()?;
        self.readable_by_user()?;
        Ok(if op.extra == LDT { self.system.ldt.selector } else { self.system.tr.selector })
    }
}

/// SLDT, STR to a register.
pub(super) fn store_task_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.task_selector(op)?;
    cpu.regs.set(op.dst, T::from_u64(selector.into()));
    Ok(())
}

/// SLDT, STR to memory.
pub(super) fn store_task_mem(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.task_selector(op)?;
    let at = cpu.address(op, 2, Access::Write)?;
    cpu.store(at, selector)
}

/// What an instruction asks about a descriptor.
pub(super) mod question {
    pub(crate) const RIGHTS: u8 = 0;
    pub(crate) const LIMIT: u8 = 1;
    pub(crate) const READ: u8 = 2;
    pub(crate) const WRITE: u8 = 3;
}

/// LAR, LSL, VERR, VERW with a register; `extra` is the question.
pub(super) fn ask_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.only_protected()?;
    let selector = cpu.regs.get::<u16>(op.src);
    ask::<T>(cpu, op, selector)
}

/// LAR, LSL, VERR, VERW with memory.
pub(super) fn ask_mem<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.only_protected()?;
    let selector = cpu.load_word(op)?;
    ask::<T>(cpu, op, selector)
}

fn ask<T: Width>(cpu: &mut Cpu, op: &Op, selector: u16) -> Step {
    let found = if is_null(selector) { None } else { cpu.find_descriptor(selector, 8)? };
    let answer = found.filter(|found| visible(cpu, *found, selector, op.extra));
    if let Some(found) = answer {
        match op.extra {
            question::RIGHTS => cpu.regs.set(op.dst, T::from_u64(found.raw >> 32 & 0x00f0_ff00)),
            question::LIMIT => cpu.regs.set(op.dst, T::from_u64(found.limit().into())),
            _ => {}
        }
    }
    cpu.flags.set(Flags::ZF, answer.is_some());
    Ok(())
}

/// Whether the type and the privilege of a descriptor let a question be answered with yes.
fn visible(cpu: &Cpu, found: Descriptor, selector: u16, asked: u8) -> bool {
    let reachable = found.is_conforming() || found.dpl() >= cpu.cpl.max((selector & RPL) as u8);
    let legacy = !cpu.long_mode();
    let kind = found.kind();
    let fits = match asked {
        question::READ => found.is_readable(),
        question::WRITE => found.is_writable_data(),
        _ if found.is_segment() => true,
        _ => match kind {
            system::LDT | system::TSS | system::TSS_BUSY => true,
            system::TSS16 | system::TSS16_BUSY => legacy,
            system::CALL_GATE => asked == question::RIGHTS,
            system::CALL_GATE16 | system::TASK_GATE => asked == question::RIGHTS && legacy,
            _ => false,
        },
    };
    reachable && fits
}

/// ARPL with a register.
pub(super) fn arpl_reg(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.only_protected()?;
    let (selector, raised) = raised_rpl(cpu.regs.get(op.dst), cpu.regs.get(op.src));
    cpu.regs.set::<u16>(op.dst, selector);
    cpu.flags.set(Flags::ZF, raised);
    Ok(())
}

/// ARPL with memory.
pub(super) fn arpl_mem(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.only_protected()?;
    let at = cpu.address(op, 2, Access::Write)?;
    let least: u16 = cpu.regs.get(op.src);
    let raised = cpu.modify::<u16, bool>(at, |selector| raised_rpl(selector, least))?;
    cpu.flags.set(Flags::ZF, raised);
    Ok(())
}

/// `selector` with at least the RPL of `least`, and whether that is a change.
fn raised_rpl(selector: u16, least: u16) -> (u16, bool) {
    let raise = selector & RPL < least & RPL;
    (if raise { selector & !RPL | least & RPL } else { selector }, raise)
}
