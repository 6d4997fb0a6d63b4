//! Two-operand and one-operand arithmetic and logic: ADD OR ADC SBB AND SUB XOR CMP TEST, INC DEC NEG NOT.

use iced_x86::{Instruction, Mnemonic};

use super::arithmetic::{Adc, Add, And, Binary, Dec, Inc, Neg, Not, Or, Sbb, Sub, Unary, Xor};
use crate::engine::soft::code::lower::{Lowered, Operand, by_width, bytes, operand};
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::width::Width;

#[inline(always)]
fn apply<O: Binary, T: Width, const FLAGS: bool>(cpu: &mut Cpu, a: T, b: T) -> T {
    if FLAGS {
        let (result, flags) = O::apply(a, b, cpu.flags);
        cpu.flags = flags;
        result
    } else {
        O::quiet(a, b, cpu.flags)
    }
}

fn reg_reg<O: Binary, T: Width, const FLAGS: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let (a, b) = (cpu.regs.get::<T>(op.dst), cpu.regs.get::<T>(op.src));
    let result = apply::<O, T, FLAGS>(cpu, a, b);
    cpu.regs.set(op.dst, result);
    cpu.next(op)
}

fn reg_imm<O: Binary, T: Width, const FLAGS: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let a = cpu.regs.get::<T>(op.dst);
    let result = apply::<O, T, FLAGS>(cpu, a, T::from_u64(op.imm));
    cpu.regs.set(op.dst, result);
    cpu.next(op)
}

fn reg_mem<O: Binary, T: Width, const FLAGS: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.loading(op, |cpu, op, b: T| {
        let a = cpu.regs.get::<T>(op.dst);
        let result = apply::<O, T, FLAGS>(cpu, a, b);
        cpu.regs.set(op.dst, result);
    })
}

/// Memory destination; the other operand is a register or, if `IMM`, the immediate.
fn mem<O: Binary, T: Width, const IMM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.changing(op, |cpu, op, a: T| O::apply(a, other::<T, IMM>(cpu, op), cpu.flags))
}

/// The operand beside memory.
#[inline(always)]
fn other<T: Width, const IMM: bool>(cpu: &Cpu, op: &Op) -> T {
    if IMM { T::from_u64(op.imm) } else { cpu.regs.get(op.src) }
}

fn mem_locked<O: Binary, T: Width, const IMM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    let b = other::<T, IMM>(cpu, op);
    let flags = cpu.flags;
    cpu.flags = cpu.modify_locked(at, |a| O::apply(a, b, flags))?;
    cpu.next(op)
}

/// CMP and TEST: only flags are kept.
fn test_reg_reg<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let (a, b) = (cpu.regs.get::<T>(op.dst), cpu.regs.get::<T>(op.src));
    cpu.flags = O::apply(a, b, cpu.flags).1;
    cpu.next(op)
}

fn test_reg_imm<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let a = cpu.regs.get::<T>(op.dst);
    cpu.flags = O::apply(a, T::from_u64(op.imm), cpu.flags).1;
    cpu.next(op)
}

fn test_reg_mem<O: Binary, T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.loading(op, |cpu, op, b: T| cpu.flags = O::apply(cpu.regs.get::<T>(op.dst), b, cpu.flags).1)
}

fn test_mem<O: Binary, T: Width, const IMM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.loading(op, |cpu, op, a: T| cpu.flags = O::apply(a, other::<T, IMM>(cpu, op), cpu.flags).1)
}

fn one_reg<O: Unary, T: Width, const FLAGS: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let a = cpu.regs.get::<T>(op.dst);
    let result = if FLAGS {
        let (result, flags) = O::apply(a, cpu.flags);
        cpu.flags = flags;
        result
    } else {
        O::quiet(a)
    };
    cpu.regs.set(op.dst, result);
    cpu.next(op)
}

fn one_mem<O: Unary, T: Width, const LOCKED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    if !LOCKED {
        return cpu.changing(op, |cpu, _, a: T| O::apply(a, cpu.flags));
    }
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    let flags = cpu.flags;
    cpu.flags = cpu.modify_locked(at, |a: T| O::apply(a, flags))?;
    cpu.next(op)
}

fn two<O: Binary>(insn: &Instruction, op: &mut Op, flags: bool) -> Option<Handler> {
    let (size, locked) = (bytes(insn, 0), insn.has_lock_prefix());
    let handler = match (operand(insn, 0), operand(insn, 1)) {
        (Operand::Reg(dst), Operand::Reg(src)) => {
            (op.dst, op.src) = (dst, src);
            if flags {
                by_width!(size, T => reg_reg::<O, T, true>)
            } else {
                by_width!(size, T => reg_reg::<O, T, false>)
            }
        }
        (Operand::Reg(dst), Operand::Imm(imm)) => {
            (op.dst, op.imm) = (dst, imm);
            if flags {
                by_width!(size, T => reg_imm::<O, T, true>)
            } else {
                by_width!(size, T => reg_imm::<O, T, false>)
            }
        }
        (Operand::Reg(dst), Operand::Mem) => {
            op.dst = dst;
            if flags {
                by_width!(size, T => reg_mem::<O, T, true>)
            } else {
                by_width!(size, T => reg_mem::<O, T, false>)
            }
        }
        (Operand::Mem, Operand::Reg(src)) => {
            op.src = src;
            if locked {
                by_width!(size, T => mem_locked::<O, T, false>)
            } else {
                by_width!(size, T => mem::<O, T, false>)
            }
        }
        (Operand::Mem, Operand::Imm(imm)) => {
            op.imm = imm;
            if locked {
                by_width!(size, T => mem_locked::<O, T, true>)
            } else {
                by_width!(size, T => mem::<O, T, true>)
            }
        }
        _ => return None,
    };
    Some(handler)
}

fn compare<O: Binary>(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = bytes(insn, 0);
    let handler = match (operand(insn, 0), operand(insn, 1)) {
        (Operand::Reg(dst), Operand::Reg(src)) => {
            (op.dst, op.src) = (dst, src);
            by_width!(size, T => test_reg_reg::<O, T>)
        }
        (Operand::Reg(dst), Operand::Imm(imm)) => {
            (op.dst, op.imm) = (dst, imm);
            by_width!(size, T => test_reg_imm::<O, T>)
        }
        (Operand::Reg(dst), Operand::Mem) => {
            op.dst = dst;
            by_width!(size, T => test_reg_mem::<O, T>)
        }
        (Operand::Mem, Operand::Reg(src)) => {
            op.src = src;
            by_width!(size, T => test_mem::<O, T, false>)
        }
        (Operand::Mem, Operand::Imm(imm)) => {
            op.imm = imm;
            by_width!(size, T => test_mem::<O, T, true>)
        }
        _ => return None,
    };
    Some(handler)
}

fn one<O: Unary>(insn: &Instruction, op: &mut Op, flags: bool) -> Option<Handler> {
    let (size, locked) = (bytes(insn, 0), insn.has_lock_prefix());
    let handler = match operand(insn, 0) {
        Operand::Reg(dst) => {
            op.dst = dst;
            if flags {
                by_width!(size, T => one_reg::<O, T, true>)
            } else {
                by_width!(size, T => one_reg::<O, T, false>)
            }
        }
        Operand::Mem if locked => by_width!(size, T => one_mem::<O, T, true>),
        Operand::Mem => by_width!(size, T => one_mem::<O, T, false>),
        _ => return None,
    };
    Some(handler)
}

/// `flags`: whether anything sees them.
pub(super) fn lower(insn: &Instruction, op: &mut Op, flags: bool) -> Lowered {
    let handler = match insn.mnemonic() {
        Mnemonic::Add => two::<Add>(insn, op, flags),
        Mnemonic::Or => two::<Or>(insn, op, flags),
        Mnemonic::Adc => two::<Adc>(insn, op, flags),
        Mnemonic::Sbb => two::<Sbb>(insn, op, flags),
        Mnemonic::And => two::<And>(insn, op, flags),
        Mnemonic::Sub => two::<Sub>(insn, op, flags),
        Mnemonic::Xor => two::<Xor>(insn, op, flags),
        Mnemonic::Cmp => compare::<Sub>(insn, op),
        Mnemonic::Test => compare::<And>(insn, op),
        Mnemonic::Inc => one::<Inc>(insn, op, flags),
        Mnemonic::Dec => one::<Dec>(insn, op, flags),
        Mnemonic::Neg => one::<Neg>(insn, op, flags),
        Mnemonic::Not => one::<Not>(insn, op, false),
        _ => None,
    };
    let Some(handler) = handler else { return Lowered::NotMine };
    op.run = handler;
    Lowered::Inside
}
