//! Returns to another code segment: RETF (SDM volume 2; volume 3, 5.8.6), and what IRET shares with it.

use super::descriptor::{Descriptor, RPL, error_of, is_null, kind, null_segment};
use super::stack::Stack;
use crate::arch::x86_64::state::Segment;
use crate::engine::soft::code::op::{Op, Seg};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{self, Break, Step};

/// Where a return goes, after all checks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Return {
    pub(super) code: Descriptor,
    pub(super) selector: u16,
    pub(super) ip: u64,
    /// Stack segment and pointer, if the return changes them.
    pub(super) stack: Option<(Segment, u64)>,
}

/// RETF; `imm` bytes of parameters are dropped, `extra` is the operand size.
pub(super) fn return_far(cpu: &mut Cpu, op: &Op) -> Step {
    let size = u64::from(op.extra);
    let parameters = op.imm & 0xffff;
    let stack = cpu.stack();
    let ip = cpu.stack_value(&stack, 0, size)?;
    let selector = cpu.stack_value(&stack, size as i64, size)? as u16;
    if !cpu.protected() {
        cpu.return_real(selector, ip)?;
        cpu.set_stack_pointer(&stack, stack.moved((2 * size + parameters) as i64));
        return Err(Break::Jump);
    }
    let code = cpu.return_code(selector)?;
    let cpl = (selector & RPL) as u8;
    let outer = if cpl > cpu.cpl {
        let at = (2 * size + parameters) as i64;
        let pointer = cpu.stack_value(&stack, at, size)?;
        let ss = cpu.stack_value(&stack, at + size as i64, size)? as u16;
        Some((cpu.return_stack(ss, cpl, code)?, pointer.wrapping_add(parameters)))
    } else {
        None
    };
    let ip = cpu.checked_target(code, ip)?;
    cpu.mark_accessed(code)?;
    if outer.is_none() {
        cpu.set_stack_pointer(&stack, stack.moved((2 * size + parameters) as i64));
    }
    cpu.return_to(Return { code, selector, ip, stack: outer });
    Err(Break::Jump)
}

impl Cpu {
    /// A return in real mode, but for the stack pointer.
    pub(super) fn return_real(&mut self, selector: u16, ip: u64) -> Step {
        let cs = self.segment(Seg::Cs);
        if ip > cs.limit.into() {
            return Err(self.gp(0));
        }
        self.set_segment(Seg::Cs, Segment { selector, base: u64::from(selector) << 4, ..cs });
        self.rip = ip;
        self.mode_changed();
        Ok(())
    }

    /// The code segment that is returned to: at the selector's privilege level, which is not an inner one.
    pub(super) fn return_code(&mut self, selector: u16) -> Result<Descriptor, Break> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let code = self.descriptor(selector)?;
        let rpl = (selector & RPL) as u8;
        let level_fits = if code.is_conforming() { code.dpl() <= rpl } else { code.dpl() == rpl };
        if !code.is_code() || rpl < self.cpl || !level_fits {
            return Err(self.gp(error_of(selector)));
        }
        self.usable_code(code, selector)?;
        Ok(code)
    }

    /// The stack segment that is returned to.
    pub(super) fn return_stack(&mut self, selector: u16, cpl: u8, code: Descriptor) -> Result<Segment, Break> {
        let to_64 = self.long_mode() && code.long();
        self.stack_segment(selector, cpl, to_64, fault::GP)
    }

    /// Goes there.
    pub(super) fn return_to(&mut self, to: Return) {
        let outer = (to.selector & RPL) as u8 > self.cpl;
        self.cpl = (to.selector & RPL) as u8;
        if let Some((segment, pointer)) = to.stack {
            self.set_segment(Seg::Ss, segment);
            let flat = self.long_mode() && to.code.long();
            let stack = Stack { segment, flat, pointer, cpl: self.cpl, error: 0 };
            self.set_stack_pointer(&stack, pointer);
        }
        if outer {
            self.drop_inner_segments();
        }
        self.enter_code(to.code, to.selector, to.ip);
    }

    /// Data segments that an outer privilege level may not use become null (SDM volume 3, 5.8.6).
    fn drop_inner_segments(&mut self) {
        for seg in [Seg::Es, Seg::Ds, Seg::Fs, Seg::Gs] {
            let segment = self.segment(seg);
            let conforming_code = segment.kind & (kind::CODE | kind::CONFORMING) == kind::CODE | kind::CONFORMING;
            if !segment.unusable && segment.dpl < self.cpl && !conforming_code {
                // The bases of FS and GS are 64-bit code's own, which sets them beside the selector.
                self.set_segment(seg, Segment { base: segment.base, ..null_segment(0) });
            }
        }
    }
}
