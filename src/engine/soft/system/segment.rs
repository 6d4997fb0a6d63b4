//! Loading data and stack segments: MOV and POP to segment registers, LDS, LES, LFS, LGS, LSS, and storing them: MOV
//! (SDM volume 3, 3.4 and 5.6 to 5.7; volume 2, the MOV, POP and LDS pages).

use super::descriptor::{self, RPL, error_of, is_null, null_segment};
use crate::arch::x86_64::state::Segment;
use crate::engine::soft::code::op::{Op, Seg};
use crate::engine::soft::cpu::{Cpu, cr4};
use crate::engine::soft::fault::{self, Break, Step};
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::width::Width;

/// The segment register that a handler's `extra` names.
fn seg_of(op: &Op) -> Seg {
    match op.extra {
        0 => Seg::Es,
        1 => Seg::Cs,
        2 => Seg::Ss,
        3 => Seg::Ds,
        4 => Seg::Fs,
        5 => Seg::Gs,
        _ => Seg::None,
    }
}

impl Cpu {
    /// Loads a data or stack segment register.
    pub(super) fn load_segment(&mut self, seg: Seg, selector: u16) -> Step {
        let segment = self.checked_segment(seg, selector)?;
        self.set_segment(seg, segment);
        self.mode_changed();
        Ok(())
    }

    /// What a data or stack segment register holds after `selector` was loaded.
    fn checked_segment(&mut self, seg: Seg, selector: u16) -> Result<Segment, Break> {
        if !self.protected() {
            return Ok(real_segment(self.segment(seg), selector));
        }
        if seg == Seg::Ss {
            return self.stack_segment(selector, self.cpl, self.is_64(), fault::GP);
        }
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let found = self.descriptor(selector)?;
        let rpl = (selector & RPL) as u8;
        let reachable = found.is_conforming() || found.dpl() >= rpl.max(self.cpl);
        if !found.is_readable() || !reachable {
            return Err(self.gp(error_of(selector)));
        }
        if !found.present() {
            return Err(self.raise(fault::NP, Some(error_of(selector))));
        }
        self.mark_accessed(found)?;
        Ok(found.segment(selector))
    }

    /// What SS holds after `selector` was loaded for privilege level `cpl`; `to_64` if 64-bit code is going to use it. What
    /// is wrong with the selector or the descriptor raises `vector` (#GP, or #TS for stacks out of a TSS).
    pub(super) fn stack_segment(&mut self, selector: u16, cpl: u8, to_64: bool, vector: u8) -> Result<Segment, Break> {
        let rpl = (selector & RPL) as u8;
        if is_null(selector) {
            if to_64 && cpl != 3 && rpl == cpl {
                return Ok(null_segment(selector));
            }
            return Err(self.raise(vector, Some(0)));
        }
        let error = error_of(selector);
        let Some(found) = self.find_descriptor(selector, 8)? else { return Err(self.raise(vector, Some(error))) };
        if rpl != cpl || found.dpl() != cpl || !found.is_writable_data() {
            return Err(self.raise(vector, Some(error)));
        }
        if !found.present() {
            return Err(self.raise(fault::SS, Some(error)));
        }
        self.mark_accessed(found)?;
        Ok(found.segment(selector))
    }
}

/// What a segment register holds after a load in real mode: limit and granularity stay.
pub(super) fn real_segment(before: Segment, selector: u16) -> Segment {
    let limit = if before.unusable { 0xffff } else { before.limit };
    Segment {
        selector,
        base: u64::from(selector) << 4,
        limit,
        kind: descriptor::kind::WRITABLE | descriptor::kind::ACCESSED,
        present: true,
        s: true,
        dpl: 0,
        unusable: false,
        ..before
    }
}

/// After SS was loaded, interrupts wait for one more instruction, which is going to load RSP.
fn load_and_shade(cpu: &mut Cpu, op: &Op, selector: u16) -> Step {
    let seg = seg_of(op);
    cpu.load_segment(seg, selector)?;
    cpu.shadow = seg == Seg::Ss;
    Ok(())
}

/// MOV Sreg, r.
pub(super) fn mov_to_seg_reg(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.regs.get::<u16>(op.src);
    load_and_shade(cpu, op, selector)
}

/// MOV Sreg, m16.
pub(super) fn mov_to_seg_mem(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, 2, Access::Read)?;
    let selector = cpu.load::<u16>(at)?;
    load_and_shade(cpu, op, selector)
}

/// MOV r, Sreg: zero-extended.
pub(super) fn mov_from_seg_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.segment(seg_of(op)).selector;
    cpu.regs.set(op.dst, T::from_u64(selector.into()));
    Ok(())
}

/// MOV m16, Sreg.
pub(super) fn mov_from_seg_mem(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, 2, Access::Write)?;
    cpu.store(at, cpu.segment(seg_of(op)).selector)
}

/// POP Sreg.
pub(super) fn pop_seg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let stack = cpu.stack();
    let selector = cpu.stack_value(&stack, 0, T::BYTES)? as u16;
    // The pointer moves on the stack that the value came from.
    load_and_shade(cpu, op, selector)?;
    cpu.set_stack_pointer(&stack, stack.moved(T::BYTES as i64));
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS: a segment register and a general register from memory.
pub(super) fn load_far_pointer<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES + 2, Access::Read)?;
    let offset = cpu.load::<T>(at)?;
    let selector = cpu.load::<u16>(at.wrapping_add(T::BYTES))?;
    cpu.load_segment(seg_of(op), selector)?;
    cpu.regs.set(op.dst, offset);
    Ok(())
}

/// RDFSBASE, RDGSBASE.
pub(super) fn read_base<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    base_access(cpu)?;
    let base = cpu.segment(seg_of(op)).base;
    cpu.regs.set(op.dst, T::from_u64(base));
    Ok(())
}

/// WRFSBASE, WRGSBASE.
pub(super) fn write_base<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    base_access(cpu)?;
    let base = cpu.regs.get::<T>(op.dst).to_u64();
    if !Cpu::canonical(base) {
        return Err(cpu.gp(0));
    }
    let seg = seg_of(op);
    cpu.set_segment(seg, Segment { base, ..cpu.segment(seg) });
    cpu.mode_changed();
    Ok(())
}

/// Only in 64-bit mode, and when CR4 allows it.
fn base_access(cpu: &mut Cpu) -> Step {
    let allowed = cpu.is_64() && cpu.system.cr4 & cr4::FSGSBASE != 0;
    if allowed { Ok(()) } else { Err(cpu.ud()) }
}
