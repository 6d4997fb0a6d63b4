//! From a decoded instruction to an operation: operands, addressing, and which family executes it.

use iced_x86::{Instruction, OpKind, Register};

use super::decode::Target;
use super::op::{Addressing, Op, Seg};
use crate::engine::soft::cpu::CodeSize;
use crate::engine::soft::registers::RegAt;

/// What a family makes of an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) enum Lowered {
    /// Another family's.
    NotMine,
    /// An operation within a block.
    Inside,
    /// It ends its block with a near jump to a fixed target (`op.imm`, relative to the block) or by falling through.
    Branches,
    /// It ends its block: a near transfer to a target that is known only when it is executed.
    Jumps,
    /// It ends its block, and may change modes, interrupts, translations.
    System,
}

/// An operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) enum Operand {
    /// A general register or a part of one.
    Reg(RegAt),
    /// The memory operand.
    Mem,
    /// An immediate, extended as the instruction does.
    Imm(u64),
    /// Something else.
    Other,
}

/// Operand `index` of `insn`.
pub(in crate::engine::soft) fn operand(insn: &Instruction, index: u32) -> Operand {
    if index >= insn.op_count() {
        return Operand::Other;
    }
    match insn.op_kind(index) {
        OpKind::Register => gpr(insn.op_register(index)).map_or(Operand::Other, Operand::Reg),
        OpKind::Memory => Operand::Mem,
        _ => insn.try_immediate(index).map_or(Operand::Other, Operand::Imm),
    }
}

/// Bytes of operand `index`: its register's size or that of the memory operand.
pub(in crate::engine::soft) fn bytes(insn: &Instruction, index: u32) -> usize {
    match insn.op_kind(index) {
        OpKind::Register => insn.op_register(index).size(),
        _ => insn.memory_size().size(),
    }
}

/// A general register's place.
pub(in crate::engine::soft) fn gpr(register: Register) -> Option<RegAt> {
    if matches!(register, Register::AH | Register::CH | Register::DH | Register::BH) {
        return Some(RegAt::high(register.number() as u8 - 4));
    }
    register.is_gpr().then(|| RegAt::gpr(register.full_register().number() as u8))
}

/// Segment number.
pub(in crate::engine::soft) fn seg(register: Register) -> Seg {
    match register {
        Register::ES => Seg::Es,
        Register::CS => Seg::Cs,
        Register::SS => Seg::Ss,
        Register::FS => Seg::Fs,
        Register::GS => Seg::Gs,
        Register::DS => Seg::Ds,
        _ => Seg::None,
    }
}

/// The segment that counts: in 64-bit mode only FS and GS do.
pub(in crate::engine::soft) fn effective_seg(register: Register, size: CodeSize) -> Seg {
    match (seg(register), size) {
        (seg @ (Seg::Fs | Seg::Gs), _) => seg,
        (_, CodeSize::Bits64) => Seg::None,
        (seg, _) => seg,
    }
}

/// Fills in the memory operand; false if it cannot be expressed.
pub(in crate::engine::soft) fn memory(insn: &Instruction, op: &mut Op, target: &Target<'_>) -> bool {
    let (size, block_ip) = (target.size, target.ip);
    if !(0..insn.op_count()).any(|index| insn.op_kind(index) == OpKind::Memory) {
        return true;
    }
    op.seg = effective_seg(insn.memory_segment(), size);
    op.scale = insn.memory_index_scale().trailing_zeros() as u8;
    let (base, index) = (insn.memory_base(), insn.memory_index());
    let address_bytes = match (base, index) {
        (Register::RIP, _) => 8,
        (Register::EIP, _) => 4,
        (Register::None, index) if index.is_gpr() => index.size(),
        (Register::None, _) => insn.memory_displ_size() as usize,
        (base, _) => base.size(),
    };
    op.addressing = match (size, address_bytes) {
        (CodeSize::Bits64, 4) => Addressing::Flat32,
        (CodeSize::Bits64, _) => Addressing::Flat,
        (_, 4) => Addressing::Segmented32,
        _ => Addressing::Segmented16,
    };
    op.index = gpr(index).unwrap_or(RegAt::ZERO);
    let displacement = insn.memory_displacement64();
    if insn.is_ip_rel_memory_operand() {
        op.base = RegAt::BLOCK_IP;
        let relative = displacement.wrapping_sub(block_ip) as i64;
        let Ok(short) = i32::try_from(if base == Register::EIP { i64::from(relative as i32) } else { relative }) else {
            return false;
        };
        op.disp = short;
        return true;
    }
    op.base = gpr(base).unwrap_or(RegAt::ZERO);
    op.disp = displacement as i32;
    // Only MOV has a displacement of 64 bits, and a handler of its own for it.
    op.imm = displacement;
    true
}

/// Picks a handler by operand size: `by_width!(bytes, T => handler::<T>)`.
macro_rules! by_width {
    ($bytes:expr, $t:ident => $handler:expr) => {
        match $bytes {
            1 => {
                type $t = u8;
                $handler as $crate::engine::soft::code::op::Handler
            }
            2 => {
                type $t = u16;
                $handler as $crate::engine::soft::code::op::Handler
            }
            4 => {
                type $t = u32;
                $handler as $crate::engine::soft::code::op::Handler
            }
            _ => {
                type $t = u64;
                $handler as $crate::engine::soft::code::op::Handler
            }
        }
    };
}
pub(in crate::engine::soft) use by_width;
