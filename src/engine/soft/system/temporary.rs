//! Stands in for parts that are written elsewhere. Delete this file when they are merged.

use crate::engine::soft::code::op::{Addressing, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{Break, Step};
use crate::engine::soft::memory::walk::Access;

impl Cpu {
    pub(in crate::engine::soft) fn address(&mut self, op: &Op, bytes: u64, _access: Access) -> Result<u64, Break> {
        let base = self.seg_base.get(op.seg as usize).copied().unwrap_or(0);
        let at = base.wrapping_add(self.operand_offset(op));
        if matches!(op.addressing, Addressing::Flat | Addressing::Flat32) {
            return if Self::canonical(at) && Self::canonical(at.wrapping_add(bytes - 1)) {
                Ok(at)
            } else {
                Err(self.gp(0))
            };
        }
        Ok(at & 0xffff_ffff)
    }

    pub(in crate::engine::soft) fn cpuid(&self, leaf: u32, _subleaf: u32) -> [u32; 4] {
        match leaf {
            1 => [0x906a3, 0, !0, !0],
            7 => [0, !0, !0, 0],
            _ => [0; 4],
        }
    }

    pub(in crate::engine::soft) fn read_msr(&mut self, index: u32) -> Result<u64, Break> {
        match self.system.temporary.iter().find(|(at, _)| *at == index) {
            Some((_, value)) => Ok(*value),
            None => Err(self.gp(0)),
        }
    }

    pub(in crate::engine::soft) fn write_msr(&mut self, index: u32, value: u64) -> Step {
        self.system.temporary.retain(|(at, _)| *at != index);
        self.system.temporary.push((index, value));
        Ok(())
    }

    pub(in crate::engine::soft) fn guest_tsc(&self) -> u64 {
        self.instructions
    }

    pub(in crate::engine::soft) fn task_priority(&self) -> u64 {
        0
    }

    pub(in crate::engine::soft) fn set_task_priority(&mut self, _value: u64) {}
}
