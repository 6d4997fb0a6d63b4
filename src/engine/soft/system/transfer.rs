//! Far JMP and CALL, direct and through call gates (SDM volume 3, 5.8; volume 2, the JMP and CALL pages).
//!
//! Task gates and task state segments as targets, which only 32-bit kernels use, raise #GP.

use super::descriptor::{Descriptor, RPL, error_of, is_null, null_segment, system};
use super::stack::Stack;
use crate::arch::x86_64::state::Segment;
use crate::engine::soft::code::op::{Op, Seg};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{self, Break, Step};
use crate::engine::soft::memory::walk::Access;

/// A far transfer under way.
#[derive(Debug, Clone, Copy)]
struct Far {
    selector: u16,
    offset: u64,
    /// Operand size in bytes.
    size: u64,
    call: bool,
    /// Where the call returns to.
    next: u64,
}

/// Far JMP to an address in the instruction: `imm` holds the offset, above bit 32 the selector; `extra` the operand size.
pub(super) fn jump_direct(cpu: &mut Cpu, op: &Op) -> Step {
    go_direct(cpu, op, false)
}

/// Far CALL to an address in the instruction.
pub(super) fn call_direct(cpu: &mut Cpu, op: &Op) -> Step {
    go_direct(cpu, op, true)
}

/// Far JMP to an address in memory; `extra` holds the operand size.
pub(super) fn jump_memory(cpu: &mut Cpu, op: &Op) -> Step {
    go_memory(cpu, op, false)
}

/// Far CALL to an address in memory.
pub(super) fn call_memory(cpu: &mut Cpu, op: &Op) -> Step {
    go_memory(cpu, op, true)
}

fn go_direct(cpu: &mut Cpu, op: &Op, call: bool) -> Step {
    let (selector, offset) = ((op.imm >> 32) as u16, op.imm & 0xffff_ffff);
    go(cpu, Far { selector, offset, size: op.extra.into(), call, next: cpu.next_ip(op) })
}

fn go_memory(cpu: &mut Cpu, op: &Op, call: bool) -> Step {
    let size = u64::from(op.extra);
    let at = cpu.address(op, size + 2, Access::Read)?;
    let offset = cpu.load_sized(at, size)?;
    let selector = cpu.load::<u16>(at.wrapping_add(size))?;
    go(cpu, Far { selector, offset, size, call, next: cpu.next_ip(op) })
}

fn go(cpu: &mut Cpu, far: Far) -> Step {
    if !cpu.protected() {
        cpu.far_real(far)?;
        return Err(Break::Jump);
    }
    if is_null(far.selector) {
        return Err(cpu.gp(0));
    }
    let target = cpu.descriptor(far.selector)?;
    let gate = match target.kind() {
        system::CALL_GATE => true,
        system::CALL_GATE16 => !cpu.long_mode(),
        _ => false,
    };
    if target.is_code() {
        cpu.far_code(far, target)?;
    } else if !target.is_segment() && gate {
        cpu.far_gate(far, target)?;
    } else {
        return Err(cpu.gp(error_of(far.selector)));
    }
    Err(Break::Jump)
}

impl Cpu {
    /// The instruction pointer with which `code` is entered at `ip`; #GP(0) if it cannot be.
    pub(super) fn checked_target(&mut self, code: Descriptor, ip: u64) -> Result<u64, Break> {
        let wide = self.long_mode() && code.long();
        let ip = if wide { ip } else { ip & 0xffff_ffff };
        let fits = if wide { Self::canonical(ip) } else { ip <= code.limit().into() };
        if fits { Ok(ip) } else { Err(self.gp(0)) }
    }

    /// #NP(selector) unless the code segment is present, #GP(selector) if it is 64-bit and 32-bit code at once.
    pub(super) fn usable_code(&mut self, code: Descriptor, selector: u16) -> Step {
        if self.long_mode() && code.long() && code.big() {
            return Err(self.gp(error_of(selector)));
        }
        if code.present() { Ok(()) } else { Err(self.raise(fault::NP, Some(error_of(selector)))) }
    }

    fn far_real(&mut self, far: Far) -> Step {
        let cs = self.segment(Seg::Cs);
        if far.offset > cs.limit.into() {
            return Err(self.gp(0));
        }
        if far.call {
            let stack = self.stack();
            let pointer = self.push_all(&stack, far.size, &[cs.selector.into(), far.next])?;
            self.set_stack_pointer(&stack, pointer);
        }
        self.set_segment(Seg::Cs, Segment { selector: far.selector, base: u64::from(far.selector) << 4, ..cs });
        self.rip = far.offset;
        self.mode_changed();
        Ok(())
    }

    /// To a code segment, at the present privilege level.
    fn far_code(&mut self, far: Far, code: Descriptor) -> Step {
        let allowed = if code.is_conforming() {
            code.dpl() <= self.cpl
        } else {
            code.dpl() == self.cpl && (far.selector & RPL) as u8 <= self.cpl
        };
        if !allowed {
            return Err(self.gp(error_of(far.selector)));
        }
        self.usable_code(code, far.selector)?;
        let ip = self.checked_target(code, far.offset)?;
        self.mark_accessed(code)?;
        if far.call {
            let stack = self.stack();
            let cs = self.segment(Seg::Cs).selector;
            let pointer = self.push_all(&stack, far.size, &[cs.into(), far.next])?;
            self.set_stack_pointer(&stack, pointer);
        }
        self.enter_code(code, far.selector, ip);
        Ok(())
    }

    /// Through a call gate: the offset in the instruction does not count.
    fn far_gate(&mut self, far: Far, gate: Descriptor) -> Step {
        let long = self.long_mode();
        let error = error_of(far.selector);
        if gate.dpl() < self.cpl.max((far.selector & RPL) as u8) {
            return Err(self.gp(error));
        }
        if !gate.present() {
            return Err(self.raise(fault::NP, Some(error)));
        }
        let high = if long { self.second_half(far.selector, gate)? } else { 0 };
        // The type field of the upper half must be zero.
        if high >> 40 & 0x1f != 0 {
            return Err(self.gp(error));
        }
        let wide = gate.kind() == system::CALL_GATE;
        let size = if long {
            8
        } else if wide {
            4
        } else {
            2
        };
        let selector = (gate.raw >> 16) as u16;
        let offset = gate.raw & 0xffff | if wide { gate.raw >> 32 & 0xffff_0000 } else { 0 } | high << 32;
        let (code, cpl) = self.gate_code(selector, far.call)?;
        let ip = self.checked_target(code, offset)?;
        self.mark_accessed(code)?;
        if far.call {
            let parameters = if long { 0 } else { (gate.raw >> 32 & 31) as usize };
            self.gate_frame(cpl, size, parameters, far.next)?;
        }
        self.cpl = cpl;
        self.enter_code(code, selector, ip);
        Ok(())
    }

    /// The code segment behind a call gate, and the privilege level that it runs with.
    fn gate_code(&mut self, selector: u16, call: bool) -> Result<(Descriptor, u8), Break> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let code = self.descriptor(selector)?;
        let inner_allowed = call || code.is_conforming();
        let allowed = if inner_allowed { code.dpl() <= self.cpl } else { code.dpl() == self.cpl };
        let wide = code.long() && !code.big();
        if !code.is_code() || !allowed || (self.long_mode() && !wide) {
            return Err(self.gp(error_of(selector)));
        }
        if !code.present() {
            return Err(self.raise(fault::NP, Some(error_of(selector))));
        }
        let cpl = if code.is_conforming() { self.cpl } else { code.dpl() };
        Ok((code, cpl))
    }

    /// Pushes what a call through a gate pushes, on the stack of `cpl`, and changes to that stack.
    fn gate_frame(&mut self, cpl: u8, size: u64, parameters: usize, next: u64) -> Step {
        let cs = u64::from(self.segment(Seg::Cs).selector);
        let old = self.stack();
        if cpl == self.cpl {
            // A gate in IA-32e mode leads to 64-bit code, whose stack has no limits.
            let stack = Stack { flat: self.long_mode(), ..old };
            let pointer = self.push_all(&stack, size, &[cs, next])?;
            self.set_stack_pointer(&stack, pointer);
            return Ok(());
        }
        let stack = if self.long_mode() {
            let pointer = self.task_pointer(4 + u64::from(cpl) * 8)?;
            Stack { segment: null_segment(cpl.into()), flat: true, pointer, cpl, error: 0 }
        } else {
            self.inner_stack(cpl)?
        };
        // SS, SP, up to 31 parameters, CS, IP.
        let mut frame = [0; 35];
        let end = parameters + 4;
        if let Some([ss, sp, copied @ .., code, ip]) = frame.get_mut(..end) {
            (*ss, *sp, *code, *ip) = (old.segment.selector.into(), old.pointer, cs, next);
            for (value, by) in copied.iter_mut().rev().zip((0i64..).map(|number| number * size as i64)) {
                *value = self.stack_value(&old, by, size)?;
            }
        }
        let pointer = self.push_all(&stack, size, frame.get(..end).unwrap_or(&[]))?;
        self.set_segment(Seg::Ss, stack.segment);
        self.set_stack_pointer(&stack, pointer);
        Ok(())
    }
}
