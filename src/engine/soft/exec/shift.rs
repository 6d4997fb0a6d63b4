//! Shifts and rotations: SHL SHR SAR ROL ROR RCL RCR, SHLD SHRD, and the flagless ones of BMI2.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::arithmetic::{DoubleShift, Rcl, Rcr, Rol, Ror, Sar, Shift, Shl, Shld, Shr, Shrd};
use crate::engine::soft::code::lower::{Lowered, Operand, by_width, bytes, operand};
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;

/// Counts are masked to 5 bits, 6 for 64-bit operands. A count of zero changes nothing, flags included.
fn mask<T: Width>(count: u64) -> u8 {
    (count & if T::BITS == 64 { 63 } else { 31 }) as u8
}

fn count<T: Width, const CL: bool>(cpu: &Cpu, op: &Op) -> u8 {
    mask::<T>(if CL { cpu.regs.get64(RegAt::RCX) } else { op.imm })
}

fn shift_reg<O: Shift, T: Width, const CL: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let (value, count) = (cpu.regs.get::<T>(op.dst), count::<T, CL>(cpu, op));
    if count != 0 {
        let (result, flags) = O::apply(value, count, cpu.flags);
        cpu.flags = flags;
        cpu.regs.set(op.dst, result);
    } else {
        // A 32-bit destination loses its upper half all the same.
        cpu.regs.set(op.dst, value);
    }
    cpu.next(op)
}

fn shift_mem<O: Shift, T: Width, const CL: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    let (count, flags) = (count::<T, CL>(cpu, op), cpu.flags);
    let shift = |value: T| if count == 0 { (value, flags) } else { O::apply(value, count, flags) };
    cpu.flags = cpu.modify(at, shift)?;
    cpu.next(op)
}

fn double_reg<O: DoubleShift, T: Width, const CL: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let (value, count) = (cpu.regs.get::<T>(op.dst), count::<T, CL>(cpu, op));
    if count != 0 {
        let (result, flags) = O::apply(value, cpu.regs.get(op.src), count, cpu.flags);
        cpu.flags = flags;
        cpu.regs.set(op.dst, result);
    } else {
        cpu.regs.set(op.dst, value);
    }
    cpu.next(op)
}

fn double_mem<O: DoubleShift, T: Width, const CL: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    let (count, flags, source) = (count::<T, CL>(cpu, op), cpu.flags, cpu.regs.get::<T>(op.src));
    let shift = |value: T| if count == 0 { (value, flags) } else { O::apply(value, source, count, flags) };
    cpu.flags = cpu.modify(at, shift)?;
    cpu.next(op)
}

fn single<O: Shift>(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = bytes(insn, 0);
    let by_cl = insn.op1_kind() == OpKind::Register;
    if !by_cl {
        op.imm = insn.immediate(1);
    }
    match operand(insn, 0) {
        Operand::Reg(dst) => {
            op.dst = dst;
            Some(if by_cl {
                by_width!(size, T => shift_reg::<O, T, true>)
            } else {
                by_width!(size, T => shift_reg::<O, T, false>)
            })
        }
        Operand::Mem if by_cl => Some(by_width!(size, T => shift_mem::<O, T, true>)),
        Operand::Mem => Some(by_width!(size, T => shift_mem::<O, T, false>)),
        _ => None,
    }
}

fn double<O: DoubleShift>(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = bytes(insn, 0);
    let Operand::Reg(src) = operand(insn, 1) else { return None };
    op.src = src;
    let by_cl = insn.op2_kind() == OpKind::Register;
    if !by_cl {
        op.imm = insn.immediate(2);
    }
    match operand(insn, 0) {
        Operand::Reg(dst) => {
            op.dst = dst;
            Some(if by_cl {
                by_width!(size, T => double_reg::<O, T, true>)
            } else {
                by_width!(size, T => double_reg::<O, T, false>)
            })
        }
        Operand::Mem if by_cl => Some(by_width!(size, T => double_mem::<O, T, true>)),
        Operand::Mem => Some(by_width!(size, T => double_mem::<O, T, false>)),
        _ => None,
    }
}

pub(super) fn lower(insn: &Instruction, op: &mut Op) -> Lowered {
    let handler = match insn.mnemonic() {
        Mnemonic::Shl | Mnemonic::Sal => single::<Shl>(insn, op),
        Mnemonic::Shr => single::<Shr>(insn, op),
        Mnemonic::Sar => single::<Sar>(insn, op),
        Mnemonic::Rol => single::<Rol>(insn, op),
        Mnemonic::Ror => single::<Ror>(insn, op),
        Mnemonic::Rcl => single::<Rcl>(insn, op),
        Mnemonic::Rcr => single::<Rcr>(insn, op),
        Mnemonic::Shld => double::<Shld>(insn, op),
        Mnemonic::Shrd => double::<Shrd>(insn, op),
        _ => None,
    };
    let Some(handler) = handler else { return Lowered::NotMine };
    op.run = handler;
    Lowered::Inside
}
