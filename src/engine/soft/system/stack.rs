//! Frames on stacks: several values that are pushed or read as one, so that nothing is written if one of them faults
//! (SDM volume 1, 6.2; volume 3, 6.12.1 and 6.14.2).

use super::descriptor::kind;
use crate::arch::x86_64::state::Segment;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{self, Break, Step};
use crate::engine::soft::registers::RegAt;

/// A stack: the present one, or one that is about to be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stack {
    /// SS.
    pub(super) segment: Segment,
    /// 64-bit mode: no base, no limit.
    pub(super) flat: bool,
    /// Stack pointer.
    pub(super) pointer: u64,
    /// With whose rights it is accessed.
    pub(super) cpl: u8,
    /// Error code of #SS.
    pub(super) error: u32,
}

impl Stack {
    /// Bits that the stack pointer has.
    pub(super) fn mask(&self) -> u64 {
        match (self.flat, self.segment.db) {
            (true, _) => u64::MAX,
            (false, true) => 0xffff_ffff,
            (false, false) => 0xffff,
        }
    }

    /// The stack pointer moved by `by`.
    pub(super) fn moved(&self, by: i64) -> u64 {
        self.pointer & !self.mask() | self.pointer.wrapping_add_signed(by) & self.mask()
    }

    /// Whether `size` bytes at `offset` are within the segment.
    fn holds(&self, offset: u64, size: u64) -> bool {
        let last = offset.wrapping_add(size - 1);
        let limit = u64::from(self.segment.limit);
        if self.flat {
            Cpu::canonical(offset) && Cpu::canonical(last)
        } else if self.segment.kind & (kind::CODE | kind::EXPAND_DOWN) == kind::EXPAND_DOWN {
            offset > limit && last <= self.mask()
        } else {
            last <= limit
        }
    }
}

impl Cpu {
    /// The present stack.
    pub(super) fn stack(&self) -> Stack {
        Stack { segment: self.segment(Seg::Ss), flat: self.is_64(), pointer: self.rsp(), cpl: self.cpl, error: 0 }
    }

    /// Linear address of `size` bytes at `by` from the stack pointer.
    fn stack_address(&mut self, stack: &Stack, by: i64, size: u64) -> Result<u64, Break> {
        let offset = stack.pointer.wrapping_add_signed(by) & stack.mask();
        if !stack.holds(offset, size) {
            return Err(self.raise(fault::SS, Some(stack.error)));
        }
        let at = if stack.flat { offset } else { stack.segment.base.wrapping_add(offset) & 0xffff_ffff };
        Ok(at)
    }

    /// Pushes `values`, the first first, `size` bytes each; returns the new stack pointer, which the caller sets. Writes
    /// nothing if any of them faults.
    pub(super) fn push_all(&mut self, stack: &Stack, size: u64, values: &[u64]) -> Result<u64, Break> {
        if stack.cpl == self.cpl && stack.flat == self.is_64() {
            return self.push_here(stack, size, values);
        }
        self.with_privilege(stack.cpl, |cpu| cpu.push_here(stack, size, values))
    }

    fn push_here(&mut self, stack: &Stack, size: u64, values: &[u64]) -> Result<u64, Break> {
        let places = (1i64..).map(|number| -number * size as i64);
        for (_, by) in values.iter().zip(places.clone()) {
            let at = self.stack_address(stack, by, size)?;
            self.probe_write(at, size)?;
        }
        for (value, by) in values.iter().zip(places) {
            let at = self.stack_address(stack, by, size)?;
            self.store_sized(at, size, *value)?;
        }
        Ok(stack.moved(-(values.len() as i64) * size as i64))
    }

    /// Reads `size` bytes at `by` from the stack pointer.
    pub(super) fn stack_value(&mut self, stack: &Stack, by: i64, size: u64) -> Result<u64, Break> {
        let at = self.stack_address(stack, by, size)?;
        self.load_sized(at, size)
    }

    /// Raises what a write would raise; quick where the translation is known.
    fn probe_write(&mut self, at: u64, size: u64) -> Step {
        if self.tlb.write::<u8>(at).is_some() && self.tlb.write::<u8>(at.wrapping_add(size - 1)).is_some() {
            return Ok(());
        }
        self.prepare_write(at, size)
    }

    /// Reads 2, 4 or 8 bytes.
    pub(super) fn load_sized(&mut self, at: u64, size: u64) -> Result<u64, Break> {
        match size {
            2 => self.load::<u16>(at).map(u64::from),
            4 => self.load::<u32>(at).map(u64::from),
            _ => self.load::<u64>(at),
        }
    }

    /// Writes 2, 4 or 8 bytes.
    pub(super) fn store_sized(&mut self, at: u64, size: u64, value: u64) -> Step {
        match size {
            2 => self.store(at, value as u16),
            4 => self.store(at, value as u32),
            _ => self.store(at, value),
        }
    }

    /// Sets the stack pointer at the width that `stack` has.
    pub(super) fn set_stack_pointer(&mut self, stack: &Stack, value: u64) {
        match stack.mask() {
            0xffff => self.regs.set(RegAt::RSP, value as u16),
            0xffff_ffff => self.regs.set(RegAt::RSP, value as u32),
            _ => self.regs.set64(RegAt::RSP, value),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::gdt;

    #[test]
    fn limits_of_stacks() {
        let stack = |segment, flat| Stack { segment, flat, pointer: 0x1_0000, cpl: 0, error: 0 };
        let up = stack(Segment { limit: 0xffff, db: false, ..gdt::DATA }, false);
        assert!(up.holds(0xfffe, 2) && !up.holds(0xffff, 2) && up.mask() == 0xffff);
        assert_eq!((up.moved(-2), up.moved(4)), (0x1_fffe, 0x1_0004), "the upper part stays");
        let down = stack(Segment { limit: 0xfff, kind: 7, ..gdt::DATA }, false);
        assert!(down.holds(0x1000, 4) && !down.holds(0xfff, 4) && down.holds(0xffff_fffc, 4));
        assert!(!down.holds(0xffff_fffe, 4), "does not wrap");
        let flat = stack(gdt::DATA, true);
        assert!(flat.holds(0x7fff_ffff_fff8, 8) && !flat.holds(0x7fff_ffff_fff9, 8));
        assert!(flat.holds(0xffff_8000_0000_0000, 8));
    }
}
