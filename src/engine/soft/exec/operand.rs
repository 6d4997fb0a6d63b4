//! Handlers of frequent instructions with a memory operand: the usual case apart from all others.
//!
//! In 64-bit mode and with the translation at hand, an operand is a comparison away and nothing can fault, so the function
//! needs no frame and ends in a jump to the next operation. Everything else is done by a function of its own, which says
//! the same in terms of [`Cpu::address`], [`Cpu::load`] and [`Cpu::store`]. Closures that capture nothing are what the two
//! have in common.

// UNSAFETY: accesses host addresses that translations lead to.
#![expect(unsafe_code)]

use crate::engine::soft::code::op::{Addressing, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::flags::Flags;
use crate::engine::soft::memory::host;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;

impl Cpu {
    /// Linear address of the memory operand of `op` in 64-bit mode; none in others, where segments have limits.
    #[inline(always)]
    pub(in crate::engine::soft) fn flat_address(&self, op: &Op) -> Option<u64> {
        let base = self.seg_base[op.seg as usize & 7];
        (op.addressing == Addressing::Flat).then(|| base.wrapping_add(self.offset64(op)))
    }

    /// Reads the memory operand and does `then` with it.
    #[inline(always)]
    pub(in crate::engine::soft) fn loading<T: Width>(&mut self, op: &Op, then: impl Fn(&mut Self, &Op, T)) -> Step {
        let Some(host) = self.flat_address(op).and_then(|at| self.tlb.read::<T>(at)) else {
            return loading_slowly(self, op, then);
        };
        // SAFETY: the translation leads to `T::BYTES` bytes of one page of RAM, which `Shared` keeps mapped.
        let value = unsafe { host::load(host) };
        then(self, op, value);
        self.next(op)
    }

    /// Writes `value` to the memory operand.
    #[inline(always)]
    pub(in crate::engine::soft) fn storing<T: Width>(&mut self, op: &Op, value: impl Fn(&Self, &Op) -> T) -> Step {
        let Some(host) = self.flat_address(op).and_then(|at| self.tlb.write::<T>(at)) else {
            return storing_slowly(self, op, value);
        };
        // SAFETY: as in `loading`.
        unsafe { host::store(host, value(self, op)) };
        self.next(op)
    }

    /// Replaces the memory operand by what `change` makes of it, and the flags.
    #[inline(always)]
    pub(in crate::engine::soft) fn changing<T: Width>(
        &mut self,
        op: &Op,
        change: impl Fn(&Self, &Op, T) -> (T, Flags),
    ) -> Step {
        let Some(host) = self.flat_address(op).and_then(|at| self.tlb.write::<T>(at)) else {
            return changing_slowly(self, op, change);
        };
        // SAFETY: as in `loading`.
        let (new, flags) = change(self, op, unsafe { host::load(host) });
        // SAFETY: as in `loading`.
        unsafe { host::store(host, new) };
        self.flags = flags;
        self.next(op)
    }
}

impl Cpu {
    /// Puts `value` on the stack.
    #[inline(always)]
    pub(in crate::engine::soft) fn pushing<T: Width>(&mut self, op: &Op, value: impl Fn(&Self, &Op) -> T) -> Step {
        let sp = self.rsp().wrapping_sub(T::BYTES);
        let Some(host) = self.tlb.write::<T>(sp).filter(|_| self.is_64()) else {
            return pushing_slowly(self, op, value);
        };
        // SAFETY: as in `loading`.
        unsafe { host::store(host, value(self, op)) };
        self.regs.set64(RegAt::RSP, sp);
        self.next(op)
    }

    /// Takes a value off the stack, and then does `then` with it.
    #[inline(always)]
    pub(in crate::engine::soft) fn popping<T: Width>(&mut self, op: &Op, then: impl Fn(&mut Self, &Op, T)) -> Step {
        let sp = self.rsp();
        let Some(host) = self.tlb.read::<T>(sp).filter(|_| self.is_64()) else {
            return popping_slowly(self, op, then);
        };
        // SAFETY: as in `loading`.
        let value = unsafe { host::load(host) };
        self.regs.set64(RegAt::RSP, sp.wrapping_add(T::BYTES));
        then(self, op, value);
        self.next(op)
    }
}

#[cold]
#[inline(never)]
fn pushing_slowly<T: Width>(cpu: &mut Cpu, op: &Op, value: impl Fn(&Cpu, &Op) -> T) -> Step {
    cpu.push(value(cpu, op))?;
    cpu.next(op)
}

#[cold]
#[inline(never)]
fn popping_slowly<T: Width>(cpu: &mut Cpu, op: &Op, then: impl Fn(&mut Cpu, &Op, T)) -> Step {
    let value = cpu.peek::<T>(0)?;
    cpu.add_rsp(T::BYTES);
    then(cpu, op, value);
    cpu.next(op)
}

#[cold]
#[inline(never)]
fn loading_slowly<T: Width>(cpu: &mut Cpu, op: &Op, then: impl Fn(&mut Cpu, &Op, T)) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Read)?;
    let value = cpu.load(at)?;
    then(cpu, op, value);
    cpu.next(op)
}

#[cold]
#[inline(never)]
fn storing_slowly<T: Width>(cpu: &mut Cpu, op: &Op, value: impl Fn(&Cpu, &Op) -> T) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    cpu.store(at, value(cpu, op))?;
    cpu.next(op)
}

#[cold]
#[inline(never)]
fn changing_slowly<T: Width>(cpu: &mut Cpu, op: &Op, change: impl Fn(&Cpu, &Op, T) -> (T, Flags)) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    cpu.prepare_write(at, T::BYTES)?;
    let old = cpu.load(at)?;
    let (new, flags) = change(cpu, op, old);
    cpu.store(at, new)?;
    cpu.flags = flags;
    cpu.next(op)
}
