//! MUL, IMUL, DIV, IDIV.

use iced_x86::{Instruction, Mnemonic};

use super::arithmetic::{Imul, Transform, divide, divide_flags, multiply};
use crate::engine::soft::code::lower::{Lowered, Operand, by_width, bytes, gpr, operand};
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{self, Step};
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;

/// The product of the accumulator goes to AX, or to the RDX:RAX pair.
fn mul<T: Width, const SIGNED: bool, const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = cpu.source::<T, MEM>(op)?;
    let (low, high, flags) = multiply::<T, SIGNED>(cpu.regs.get::<T>(RegAt::RAX), b, cpu.flags);
    cpu.flags = flags;
    cpu.regs.set(RegAt::RAX, low);
    cpu.regs.set(if T::BYTES == 1 { RegAt::AH } else { RegAt::RDX }, high);
    cpu.next(op)
}

fn div<T: Width, const SIGNED: bool, const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let divisor = cpu.source::<T, MEM>(op)?;
    let upper = if T::BYTES == 1 { RegAt::AH } else { RegAt::RDX };
    let (low, high) = (cpu.regs.get::<T>(RegAt::RAX), cpu.regs.get::<T>(upper));
    let Some((quotient, remainder)) = divide::<T, SIGNED>(low, high, divisor) else {
        return Err(cpu.raise(fault::DE, None));
    };
    cpu.flags = divide_flags(cpu.flags);
    cpu.regs.set(RegAt::RAX, quotient);
    cpu.regs.set(upper, remainder);
    cpu.next(op)
}

/// Two operands: the destination is a factor. Three: the factors are the source and `op.imm`.
fn imul<T: Width, const MEM: bool, const IMM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let a = cpu.source::<T, MEM>(op)?;
    let b = if IMM { T::from_u64(op.imm) } else { cpu.regs.get::<T>(op.dst) };
    let (product, flags) = Imul::apply(b, a, cpu.flags);
    cpu.flags = flags;
    cpu.regs.set(op.dst, product);
    cpu.next(op)
}

fn of_accumulator<const DIVIDES: bool, const SIGNED: bool>(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = bytes(insn, 0);
    Some(match (operand(insn, 0), DIVIDES) {
        (Operand::Reg(src), divides) => {
            op.src = src;
            if divides {
                by_width!(size, T => div::<T, SIGNED, false>)
            } else {
                by_width!(size, T => mul::<T, SIGNED, false>)
            }
        }
        (Operand::Mem, true) => by_width!(size, T => div::<T, SIGNED, true>),
        (Operand::Mem, false) => by_width!(size, T => mul::<T, SIGNED, true>),
        _ => return None,
    })
}

fn imul_into(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    op.dst = gpr(insn.op0_register())?;
    let imm = insn.op_count() == 3;
    if imm {
        op.imm = insn.immediate(2);
    }
    let size = bytes(insn, 0);
    Some(match (operand(insn, 1), imm) {
        (Operand::Reg(src), imm) => {
            op.src = src;
            if imm {
                by_width!(size, T => imul::<T, false, true>)
            } else {
                by_width!(size, T => imul::<T, false, false>)
            }
        }
        (Operand::Mem, true) => by_width!(size, T => imul::<T, true, true>),
        (Operand::Mem, false) => by_width!(size, T => imul::<T, true, false>),
        _ => return None,
    })
}

pub(super) fn lower(insn: &Instruction, op: &mut Op) -> Lowered {
    let handler = match insn.mnemonic() {
        Mnemonic::Mul => of_accumulator::<false, false>(insn, op),
        Mnemonic::Imul if insn.op_count() == 1 => of_accumulator::<false, true>(insn, op),
        Mnemonic::Imul => imul_into(insn, op),
        Mnemonic::Div => of_accumulator::<true, false>(insn, op),
        Mnemonic::Idiv => of_accumulator::<true, true>(insn, op),
        _ => None,
    };
    let Some(handler) = handler else { return Lowered::NotMine };
    op.run = handler;
    Lowered::Inside
}
