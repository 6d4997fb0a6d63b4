//! Instructions that raise events on purpose: INT n, INT3, INTO, INT1, BOUND, UD0 to UD2 (SDM volume 2; volume 3, 6.4).

use super::event::Delivery;
use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{self, Break, Step};
use crate::engine::soft::flags::Flags;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::width::Width;

impl Cpu {
    /// Enters a handler that returns behind `op`.
    fn software_interrupt(&mut self, op: &Op, vector: u8, software: bool) -> Step {
        let next = self.next_ip(op);
        let before = std::mem::replace(&mut self.rip, next);
        let entered = self.interrupt(&Delivery { vector, error: None, software, also: 0 });
        if entered.is_err() {
            self.rip = before;
        }
        entered.and(Err(Break::Jump))
    }
}

/// INT n and INT3: the vector is `imm`.
pub(super) fn int(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.software_interrupt(op, op.imm as u8, true)
}

/// INTO.
pub(super) fn into(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.flags.0 & Flags::OF == 0 {
        return Ok(());
    }
    cpu.software_interrupt(op, fault::OF, true)
}

/// INT1: a debug exception that does not look at the gate's privilege.
pub(super) fn int1(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.software_interrupt(op, fault::DB, false)
}

/// BOUND: a signed index against the two bounds in memory.
pub(super) fn bound<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, 2 * T::BYTES, Access::Read)?;
    let index = cpu.regs.get::<T>(op.dst).to_i64();
    let low = cpu.load::<T>(at)?.to_i64();
    let high = cpu.load::<T>(at.wrapping_add(T::BYTES))?.to_i64();
    if (low..=high).contains(&index) { Ok(()) } else { Err(cpu.raise(fault::BR, None)) }
}

/// UD0, UD1, UD2, and what this CPU does not have.
pub(super) fn undefined(cpu: &mut Cpu, _: &Op) -> Step {
    Err(cpu.ud())
}
