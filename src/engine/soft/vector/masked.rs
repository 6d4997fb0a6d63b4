//! Instructions that load or store only the elements that a mask selects: (V)MASKMOVDQU, MASKMOVQ, VMASKMOVPS and VMASKMOVPD,
//! VPMASKMOVD and VPMASKMOVQ. Elements that are not selected raise no fault.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::state::at;
use crate::engine::soft::code::lower::effective_seg;
use crate::engine::soft::code::op::{Addressing, Op};
use crate::engine::soft::cpu::{CodeSize, Cpu};
use crate::engine::soft::fault::Step;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;

/// Picks the handler, if this is an instruction of this file. `op.imm` gets the registers, a byte each.
pub(super) fn lower(insn: &Instruction, op: &mut Op) -> Option<()> {
    let (first, second) = (insn.op_register(0), insn.op_register(1));
    let wide = first.is_ymm() || insn.op_register(2).is_ymm();
    let stores = insn.op_kind(0) == OpKind::Memory;
    match insn.mnemonic() {
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu => {
            op.imm = packed(insn.op_register(1), insn.op_register(2));
            implied_memory(insn, op);
            op.run = match insn.mnemonic() {
                Mnemonic::Maskmovq => maskmovq,
                Mnemonic::Maskmovdqu => maskmovdqu::<false>,
                _ => maskmovdqu::<true>,
            };
        }
        Mnemonic::Vmaskmovps | Mnemonic::Vpmaskmovd | Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq => {
            let double = matches!(insn.mnemonic(), Mnemonic::Vmaskmovpd | Mnemonic::Vpmaskmovq);
            op.imm = packed(if stores { insn.op_register(2) } else { first }, second);
            op.run = match (stores, double, wide) {
                (false, false, false) => load::<4, 16>,
                (false, false, true) => load::<4, 32>,
                (false, true, false) => load::<8, 16>,
                (false, true, true) => load::<8, 32>,
                (true, false, false) => store::<4, 16>,
                (true, false, true) => store::<4, 32>,
                (true, true, false) => store::<8, 16>,
                (true, true, true) => store::<8, 32>,
            };
        }
        _ => return None,
    }
    Some(())
}

/// Numbers of the data and the mask register, a byte each.
fn packed(data: Register, mask: Register) -> u64 {
    data.number() as u64 | (mask.number() as u64) << 8
}

/// The memory operand at rDI, which is not encoded like others.
fn implied_memory(insn: &Instruction, op: &mut Op) {
    let (size, in_64) = match insn.code_size() {
        iced_x86::CodeSize::Code16 => (CodeSize::Bits16, false),
        iced_x86::CodeSize::Code32 => (CodeSize::Bits32, false),
        _ => (CodeSize::Bits64, true),
    };
    op.addressing = match (insn.op_kind(0), in_64) {
        (OpKind::MemorySegDI, _) => Addressing::Segmented16,
        (OpKind::MemorySegEDI, true) => Addressing::Flat32,
        (OpKind::MemorySegEDI, false) => Addressing::Segmented32,
        _ => Addressing::Flat,
    };
    op.seg = effective_seg(insn.memory_segment(), size);
    (op.base, op.index, op.scale, op.disp) = (RegAt::RDI, RegAt::ZERO, 0, 0);
}

/// Offsets of the elements of `SIZE` bytes that `mask` selects: those whose sign bit is set.
fn selected<const SIZE: usize>(mask: &[u8]) -> impl Iterator<Item = usize> {
    mask.chunks_exact(SIZE)
        .enumerate()
        .filter(|(_, element)| element.last().is_some_and(|byte| byte & 0x80 != 0))
        .map(|(i, _)| i * SIZE)
}

fn load<const SIZE: usize, const WIDTH: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_avx()?;
    let from = cpu.address(op, SIZE as u64, Access::Read)?;
    let mask = cpu.vector.ymm_bytes(op.imm >> 8);
    let mut result = [0; 32];
    for offset in selected::<SIZE>(mask.get(..WIDTH).unwrap_or_default()) {
        if let Some(element) = result.get_mut(offset..offset + SIZE) {
            cpu.read_bytes(from.wrapping_add(offset as u64), element)?;
        }
    }
    cpu.vector.set_ymm_bytes(op.imm, &result);
    Ok(())
}

fn store<const SIZE: usize, const WIDTH: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_avx()?;
    let to = cpu.address(op, SIZE as u64, Access::Write)?;
    let (data, mask) = (cpu.vector.ymm_bytes(op.imm), cpu.vector.ymm_bytes(op.imm >> 8));
    store_selected::<SIZE>(cpu, to, &data, mask.get(..WIDTH).unwrap_or_default())
}

/// Writes the selected elements, once it is sure that none of them faults.
fn store_selected<const SIZE: usize>(cpu: &mut Cpu, to: u64, data: &[u8], mask: &[u8]) -> Step {
    for offset in selected::<SIZE>(mask) {
        cpu.prepare_write(to.wrapping_add(offset as u64), SIZE as u64)?;
    }
    for offset in selected::<SIZE>(mask) {
        if let Some(element) = data.get(offset..offset + SIZE) {
            cpu.write_bytes(to.wrapping_add(offset as u64), element)?;
        }
    }
    Ok(())
}

fn maskmovdqu<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_vector::<VEX>()?;
    let to = cpu.address(op, 16, Access::Write)?;
    let (data, mask) = (cpu.vector.ymm_bytes(op.imm), cpu.vector.ymm_bytes(op.imm >> 8));
    store_selected::<1>(cpu, to, &data, mask.get(..16).unwrap_or_default())
}

fn maskmovq(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_mmx()?;
    let to = cpu.address(op, 8, Access::Write)?;
    let top = cpu.vector.top();
    let register = |cpu: &Cpu, number: u64| -> [u8; 8] {
        // MMX register n is the physical x87 register n; the area has them in the order of the stack.
        let offset = at::ST + 16 * ((number as usize).wrapping_sub(top) & 7);
        cpu.vector.area.get(offset..).and_then(|rest| rest.first_chunk()).copied().unwrap_or_default()
    };
    let (data, mask) = (register(cpu, op.imm & 7), register(cpu, op.imm >> 8 & 7));
    store_selected::<1>(cpu, to, &data, &mask)?;
    cpu.vector.enter_mmx();
    Ok(())
}
