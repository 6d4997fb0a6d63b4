//! VGATHERDPS, VGATHERQPS, VGATHERDPD, VGATHERQPD, VPGATHERDD, VPGATHERQD, VPGATHERDQ, VPGATHERQQ: element by element. When
//! one faults, the elements before it are in the destination and their mask bits clear, so that the instruction starts again
//! where it stopped.

use iced_x86::{Instruction, Mnemonic};

use crate::engine::soft::code::op::{Addressing, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{Break, Step};
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;

/// Picks the handler, if this is an instruction of this file. `op.imm` gets destination, mask and index register and the
/// number of elements, a byte each.
pub(super) fn lower(insn: &Instruction, op: &mut Op) -> Option<()> {
    use Mnemonic as M;
    let (element, index_bytes) = match insn.mnemonic() {
        M::Vgatherdps | M::Vpgatherdd => (4, 4),
        M::Vgatherqps | M::Vpgatherqd => (4, 8),
        M::Vgatherdpd | M::Vpgatherdq => (8, 4),
        M::Vgatherqpd | M::Vpgatherqq => (8, 8),
        _ => return None,
    };
    let (target, index, mask) = (insn.op_register(0), insn.memory_index(), insn.op_register(2));
    let size = |register: iced_x86::Register| if register.is_ymm() { 32 } else { 16 };
    let numbers = [target, mask, index].map(|register| register.number() as u64);
    let [a, b, c] = numbers;
    if a == b || b == c || a == c {
        return None;
    }
    let count = (size(target) / element).min(size(index) / index_bytes);
    op.imm = a | b << 8 | c << 16 | count << 24;
    // The index is a vector: `Cpu::address` makes the rest of the address.
    op.index = RegAt::ZERO;
    op.scale = insn.memory_index_scale().trailing_zeros() as u8;
    op.run = match (element, index_bytes) {
        (4, 4) => gather::<4, 4>,
        (4, _) => gather::<4, 8>,
        (_, 4) => gather::<8, 4>,
        _ => gather::<8, 8>,
    };
    Some(())
}

fn gather<const ELEMENT: usize, const INDEX: usize>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_avx()?;
    let [target, mask, index, count, ..] = op.imm.to_le_bytes();
    let indices = cpu.vector.ymm_bytes(index.into());
    let (mut result, mut left) = (cpu.vector.ymm_bytes(target.into()), cpu.vector.ymm_bytes(mask.into()));
    let mut done = Ok(());
    for number in 0..usize::from(count) {
        let Some(selector) = left.get_mut(number * ELEMENT..(number + 1) * ELEMENT) else { break };
        if selector.last().is_some_and(|byte| byte & 0x80 != 0)
            && let Some(place) = result.get_mut(number * ELEMENT..(number + 1) * ELEMENT)
        {
            done =
                element_address::<ELEMENT, INDEX>(cpu, op, &indices, number).and_then(|at| cpu.read_bytes(at, place));
            if done.is_err() {
                break;
            }
        }
        selector.fill(0);
    }
    if done.is_ok() {
        // Nothing is left above the last element.
        result.iter_mut().skip(usize::from(count) * ELEMENT).for_each(|byte| *byte = 0);
        left.fill(0);
    }
    cpu.vector.set_ymm_bytes(target.into(), &result);
    cpu.vector.set_ymm_bytes(mask.into(), &left);
    done
}

fn element_address<const ELEMENT: usize, const INDEX: usize>(
    cpu: &mut Cpu,
    op: &Op,
    indices: &[u8; 32],
    number: usize,
) -> Result<u64, Break> {
    let bytes = indices.get(number * INDEX..(number + 1) * INDEX).unwrap_or_default();
    let index = match *bytes {
        [a, b, c, d] => i64::from(i32::from_le_bytes([a, b, c, d])),
        _ => bytes.first_chunk().map_or(0, |bytes| i64::from_le_bytes(*bytes)),
    };
    let offset = index << op.scale;
    match op.addressing {
        Addressing::Flat => Ok(cpu.address(op, ELEMENT as u64, Access::Read)?.wrapping_add(offset as u64)),
        // Effective addresses have 32 bits: so many of the offset count, and they are added like a displacement.
        _ => {
            let with_index = Op { disp: op.disp.wrapping_add(offset as i32), ..*op };
            cpu.address(&with_index, ELEMENT as u64, Access::Read)
        }
    }
}
