//! The stack: PUSH, POP, PUSHA, POPA, ENTER, LEAVE, and what calls use.

use iced_x86::{Code, Instruction, Mnemonic, OpKind};

use crate::engine::soft::code::lower::{Lowered, Operand, by_width, operand, seg};
use crate::engine::soft::code::op::{Handler, Op, Seg};
use crate::engine::soft::cpu::{CodeSize, Cpu};
use crate::engine::soft::fault::{self, Break, Step};
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;

impl Cpu {
    /// Puts `value` on the stack.
    #[inline(always)]
    pub(in crate::engine::soft) fn push<T: Width>(&mut self, value: T) -> Step {
        let sp = self.rsp().wrapping_sub(T::BYTES);
        if self.is_64() {
            self.store(sp, value).map_err(|how| self.on_stack(how))?;
            self.regs.set64(RegAt::RSP, sp);
            return Ok(());
        }
        let at = self.segmented(Seg::Ss, sp & self.stack_mask(), T::BYTES, Access::Write)?;
        self.store(at, value)?;
        self.set_rsp(sp);
        Ok(())
    }

    /// Reads the value `offset` bytes above the top of the stack.
    #[inline(always)]
    pub(in crate::engine::soft) fn peek<T: Width>(&mut self, offset: u64) -> Result<T, Break> {
        let sp = self.rsp().wrapping_add(offset);
        if self.is_64() {
            return self.load(sp).map_err(|how| self.on_stack(how));
        }
        let at = self.segmented(Seg::Ss, sp & self.stack_mask(), T::BYTES, Access::Read)?;
        self.load(at)
    }

    /// Takes `bytes` off the stack.
    #[inline(always)]
    pub(in crate::engine::soft) fn add_rsp(&mut self, bytes: u64) {
        let sp = self.rsp().wrapping_add(bytes);
        if self.is_64() { self.regs.set64(RegAt::RSP, sp) } else { self.set_rsp(sp) }
    }

    /// The access that led here was to the stack: where it was not canonical #SS is raised, not #GP (SDM volume 3, 6.15).
    #[cold]
    fn on_stack(&mut self, how: Break) -> Break {
        if how == Break::Fault && self.fault.vector == fault::GP && self.fault.address != 0 {
            return self.raise(fault::SS, Some(0));
        }
        how
    }

    /// The same for the memory operand of `op`, which faulted, if the stack segment is the one that it uses: then its base
    /// is RSP or RBP, and no prefix names another segment.
    #[cold]
    pub(in crate::engine::soft) fn blame_stack(&mut self, op: &Op) {
        let by_base = op.base == RegAt::RSP || op.base == RegAt::RBP;
        if self.is_64() && by_base && op.seg == Seg::None {
            self.on_stack(Break::Fault);
        }
    }

    /// Sets RSP, ESP or SP, whichever the stack segment uses.
    pub(in crate::engine::soft) fn set_rsp(&mut self, value: u64) {
        match self.stack_mask() {
            0xffff => self.regs.set(RegAt::RSP, value as u16),
            0xffff_ffff => self.regs.set(RegAt::RSP, value as u32),
            _ => self.regs.set64(RegAt::RSP, value),
        }
    }
}

fn push_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.pushing(op, |cpu, op| cpu.regs.get::<T>(op.src))
}

fn push_imm<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.pushing(op, |_, op| T::from_u64(op.imm))
}

fn push_mem<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Read)?;
    let value = cpu.load::<T>(at)?;
    cpu.push(value)?;
    cpu.next(op)
}

/// PUSH of a segment register, whose number is in `op.extra`.
fn push_seg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.system.segments.get(usize::from(op.extra)).map_or(0, |segment| segment.selector);
    cpu.push(T::from_u64(selector.into()))?;
    cpu.next(op)
}

fn pop_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.popping(op, |cpu, op, value: T| cpu.regs.set(op.dst, value))
}

/// An address that uses RSP is made with the value after the pop (SDM volume 2, POP).
fn pop_mem<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.peek::<T>(0)?;
    let before = cpu.rsp();
    cpu.add_rsp(T::BYTES);
    let step = cpu.address(op, T::BYTES, Access::Write).and_then(|at| cpu.store(at, value));
    if step.is_err() {
        cpu.regs.set64(RegAt::RSP, before);
    }
    step
}

/// PUSHA, PUSHAD: outside 64-bit mode.
fn pusha<T: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let before = cpu.rsp();
    for number in 0..8 {
        let register = RegAt::gpr(number);
        let value = if register == RegAt::RSP { T::from_u64(before) } else { cpu.regs.get::<T>(register) };
        if let Err(fault) = cpu.push(value) {
            cpu.regs.set64(RegAt::RSP, before);
            return Err(fault);
        }
    }
    Ok(())
}

fn popa<T: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let mut values = [T::default(); 8];
    for (position, value) in (0..).zip(&mut values) {
        *value = cpu.peek(position * T::BYTES)?;
    }
    for (number, value) in (0..8).rev().zip(values) {
        if RegAt::gpr(number) != RegAt::RSP {
            cpu.regs.set(RegAt::gpr(number), value);
        }
    }
    cpu.add_rsp(8 * T::BYTES);
    Ok(())
}

/// ENTER: `op.imm` holds the size, `op.extra` the nesting level.
fn enter<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let (before_sp, frame_pointer) = (cpu.rsp(), cpu.regs.get64(RegAt::RBP));
    let level = u64::from(op.extra % 32);
    let run = |cpu: &mut Cpu| -> Result<u64, Break> {
        cpu.push(T::from_u64(frame_pointer))?;
        let frame = cpu.rsp();
        for step in 1..level {
            let offset = frame_pointer.wrapping_sub(step * T::BYTES) & cpu.stack_mask();
            let at = cpu.segmented(Seg::Ss, offset, T::BYTES, Access::Read)?;
            let value = cpu.load::<T>(at)?;
            cpu.push(value)?;
        }
        if level > 0 {
            cpu.push(T::from_u64(frame))?;
        }
        let sp = cpu.rsp().wrapping_sub(op.imm);
        let at = cpu.segmented(Seg::Ss, sp & cpu.stack_mask(), T::BYTES, Access::Write)?;
        cpu.prepare_write(at, T::BYTES)?;
        Ok(frame)
    };
    match run(cpu) {
        Ok(frame) => {
            cpu.add_rsp(op.imm.wrapping_neg());
            cpu.regs.set(RegAt::RBP, T::from_u64(frame));
            Ok(())
        }
        Err(fault) => {
            cpu.regs.set64(RegAt::RSP, before_sp);
            Err(fault)
        }
    }
}

fn leave<T: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let frame = cpu.regs.get64(RegAt::RBP) & cpu.stack_mask();
    let at = cpu.segmented(Seg::Ss, frame, T::BYTES, Access::Read)?;
    let value = cpu.load::<T>(at).map_err(|how| cpu.on_stack(how))?;
    cpu.set_rsp(frame.wrapping_add(T::BYTES));
    cpu.regs.set(RegAt::RBP, value);
    Ok(())
}

/// Bytes that an instruction moves the stack pointer by.
fn moved(insn: &Instruction) -> usize {
    insn.stack_pointer_increment().unsigned_abs() as usize
}

pub(super) fn lower(insn: &Instruction, op: &mut Op, size: CodeSize) -> Lowered {
    let handler = match insn.mnemonic() {
        Mnemonic::Push => {
            let width = moved(insn);
            match operand(insn, 0) {
                Operand::Reg(src) => {
                    op.src = src;
                    by_width!(width, T => push_reg::<T>)
                }
                Operand::Mem => by_width!(width, T => push_mem::<T>),
                Operand::Imm(imm) => {
                    op.imm = imm;
                    by_width!(width, T => push_imm::<T>)
                }
                Operand::Other if insn.op0_kind() == OpKind::Register && insn.op0_register().is_segment_register() => {
                    op.extra = seg(insn.op0_register()) as u8;
                    by_width!(width, T => push_seg::<T>)
                }
                Operand::Other => return Lowered::NotMine,
            }
        }
        Mnemonic::Pop => {
            let width = moved(insn);
            match operand(insn, 0) {
                Operand::Reg(dst) => {
                    op.dst = dst;
                    by_width!(width, T => pop_reg::<T>)
                }
                Operand::Mem => by_width!(width, T => pop_mem::<T>),
                _ => return Lowered::NotMine,
            }
        }
        Mnemonic::Pusha => pusha::<u16>,
        Mnemonic::Pushad => pusha::<u32>,
        Mnemonic::Popa => popa::<u16>,
        Mnemonic::Popad => popa::<u32>,
        Mnemonic::Enter => {
            op.imm = insn.immediate(0) & 0xffff;
            op.extra = insn.immediate8_2nd();
            match insn.code() {
                Code::Enterw_imm16_imm8 => enter::<u16> as Handler,
                Code::Enterd_imm16_imm8 => enter::<u32>,
                _ => enter::<u64>,
            }
        }
        Mnemonic::Leave => match (insn.code(), size) {
            (Code::Leavew, _) => leave::<u16> as Handler,
            (Code::Leaved, _) => leave::<u32>,
            _ => leave::<u64>,
        },
        _ => return Lowered::NotMine,
    };
    op.run = handler;
    Lowered::Inside
}
