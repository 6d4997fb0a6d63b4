//! Integer instructions: what programs use.
//!
//! Each file is a family: handlers, generic over operand width and form, and a `lower` that picks one for a decoded
//! instruction.

pub(super) mod address;
mod alu;
mod arithmetic;
mod bits;
mod branch;
mod conditional;
mod data;
mod multiply;
mod operand;
mod other;
mod shift;
pub(super) mod stack;
mod string;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::code::decode::Target;
use super::code::lower::Lowered;
use super::code::op::Op;
use super::cpu::Cpu;
use super::fault::Step;

/// Picks the handler of an integer instruction.
pub(super) fn lower(insn: &Instruction, op: &mut Op, target: &Target<'_>) -> Lowered {
    let mut how = bits::lower(insn, op, target);
    if how != Lowered::NotMine {
        return how;
    }
    how = other::lower(insn, op);
    if how != Lowered::NotMine {
        return how;
    }
    if !target.features.offer(insn) {
        return Lowered::NotMine;
    }
    type Family = fn(&Instruction, &mut Op, &Target<'_>) -> Lowered;
    let families: [Family; 8] = [
        |insn, op, _| alu::lower(insn, op, true),
        |insn, op, target| data::lower(insn, op, target.size),
        |insn, op, _| conditional::lower(insn, op),
        branch::lower,
        |insn, op, target| stack::lower(insn, op, target.size),
        |insn, op, _| shift::lower(insn, op),
        |insn, op, _| multiply::lower(insn, op),
        |insn, op, target| string::lower(insn, op, target.size),
    ];
    for family in families {
        how = family(insn, op, target);
        if how != Lowered::NotMine {
            break;
        }
    }
    how
}

/// Whether an instruction always overwrites the flags that it is said to modify: shifts by zero, for example, do not.
pub(super) fn always_sets_flags(insn: &Instruction) -> bool {
    use Mnemonic::{Adc, Add, And, Cmp, Dec, Inc, Neg, Or, Sbb, Sub, Test, Xor};
    matches!(insn.mnemonic(), Adc | Add | And | Cmp | Dec | Inc | Neg | Or | Sbb | Sub | Test | Xor)
}

/// Nothing sees the flags that this instruction, which always sets them, leaves.
pub(super) fn quiet(insn: &Instruction, op: &mut Op) {
    alu::lower(insn, op, false);
}

/// Whether an instruction cannot fault: registers and immediates only, of families that raise nothing.
pub(super) fn never_faults(insn: &Instruction) -> bool {
    let memory = (0..insn.op_count())
        .any(|index| !matches!(insn.op_kind(index), OpKind::Register) && insn.try_immediate(index).is_err());
    let plain = always_sets_flags(insn)
        || matches!(
            insn.mnemonic(),
            Mnemonic::Mov
                | Mnemonic::Movzx
                | Mnemonic::Movsx
                | Mnemonic::Movsxd
                | Mnemonic::Lea
                | Mnemonic::Shl
                | Mnemonic::Shr
                | Mnemonic::Sar
                | Mnemonic::Not
                | Mnemonic::Nop
                | Mnemonic::Bswap
                | Mnemonic::Imul
                | Mnemonic::Cdqe
                | Mnemonic::Cdq
                | Mnemonic::Cqo
        );
    let general =
        (0..insn.op_count()).all(|index| insn.op_kind(index) != OpKind::Register || insn.op_register(index).is_gpr());
    plain && general && (!memory || insn.mnemonic() == Mnemonic::Lea || insn.mnemonic() == Mnemonic::Nop)
}

/// What executes an instruction that does not exist, or that this CPU does not have.
pub(super) fn undefined(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.ud())
}
