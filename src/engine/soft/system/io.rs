//! Ports: IN, OUT, INS, OUTS (SDM volume 1, chapter 19; volume 2).
//!
//! Strings go element by element, as a device's registers see them on hardware, and stop when somebody wants the CPU.

use crate::engine::soft::code::op::{Addressing, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{Break, Step};
use crate::engine::soft::flags::rflags;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;
use crate::engine::{ExitCounters, IoAddr};

/// Offset of the I/O permission bitmap's offset in a TSS (SDM volume 3, 7.2.1).
const TSS_BITMAP: u64 = 0x66;

impl Cpu {
    /// #GP(0) unless the program may use `len` ports from `port` on (SDM volume 1, 19.5).
    fn check_port(&mut self, port: u16, len: u64) -> Step {
        if !self.protected() || self.cpl <= self.iopl() {
            return Ok(());
        }
        let task = self.system.tr;
        let limit = u64::from(task.limit);
        if task.unusable || task.kind & 8 == 0 || limit < TSS_BITMAP + 1 {
            return Err(self.gp(0));
        }
        let at = self.table_address(task.base, TSS_BITMAP);
        let offset = u64::from(self.as_supervisor(|cpu| cpu.load::<u16>(at))?) + u64::from(port / 8);
        // Two bytes are always read: the ports may lie in both.
        if offset + 1 > limit {
            return Err(self.gp(0));
        }
        let at = self.table_address(task.base, offset);
        let bits = u64::from(self.as_supervisor(|cpu| cpu.load::<u16>(at))?) >> (port % 8);
        if bits & ((1 << len) - 1) != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    fn port_read<T: Width>(&mut self, port: u16) -> T {
        self.meets_port(port, T::BYTES);
        let mut bytes = [0xff; 8];
        if let (Some(io), Some(data)) = (self.machine().get(), bytes.get_mut(..T::BYTES as usize)) {
            io.read(IoAddr::Port(port), data);
        }
        ExitCounters::add(&self.counters.port_in, 1);
        T::from_u64(u64::from_le_bytes(bytes))
    }

    fn port_write<T: Width>(&mut self, port: u16, value: T) {
        self.meets_port(port, T::BYTES);
        let bytes = value.to_u64().to_le_bytes();
        let Some(data) = bytes.get(..T::BYTES as usize) else { return };
        if self.shared.ring_doorbell(IoAddr::Port(port), data) {
            return;
        }
        if let Some(io) = self.machine().get() {
            io.write(IoAddr::Port(port), data);
        }
        ExitCounters::add(&self.counters.port_out, 1);
    }
}

/// IN from the port in `imm`.
pub(super) fn in_imm<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    input::<T>(cpu, op.imm as u16)
}

/// IN from the port in DX.
pub(super) fn in_dx<T: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    input::<T>(cpu, cpu.regs.get(RegAt::RDX))
}

/// OUT to the port in `imm`.
pub(super) fn out_imm<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    output::<T>(cpu, op.imm as u16)
}

/// OUT to the port in DX.
pub(super) fn out_dx<T: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    output::<T>(cpu, cpu.regs.get(RegAt::RDX))
}

fn input<T: Width>(cpu: &mut Cpu, port: u16) -> Step {
    cpu.check_port(port, T::BYTES)?;
    let value = cpu.port_read::<T>(port);
    cpu.regs.set(RegAt::RAX, value);
    Ok(())
}

fn output<T: Width>(cpu: &mut Cpu, port: u16) -> Step {
    cpu.check_port(port, T::BYTES)?;
    cpu.port_write::<T>(port, cpu.regs.get(RegAt::RAX));
    Ok(())
}

/// INS; the memory operand is ES:rDI.
pub(super) fn ins<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    in_element::<T>(cpu, op)
}

/// REP INS.
pub(super) fn rep_ins<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    repeat(cpu, op, in_element::<T>)
}

/// OUTS; the memory operand is rSI in any segment.
pub(super) fn outs<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    out_element::<T>(cpu, op)
}

/// REP OUTS.
pub(super) fn rep_outs<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    repeat(cpu, op, out_element::<T>)
}

fn in_element<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let port = cpu.regs.get(RegAt::RDX);
    cpu.check_port(port, T::BYTES)?;
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    // A device may forget what it was asked for: nothing is read that then could not be stored.
    cpu.prepare_write(at, T::BYTES)?;
    let value = cpu.port_read::<T>(port);
    cpu.store(at, value)?;
    advance::<T>(cpu, op);
    Ok(())
}

fn out_element<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let port = cpu.regs.get(RegAt::RDX);
    cpu.check_port(port, T::BYTES)?;
    let at = cpu.address(op, T::BYTES, Access::Read)?;
    let value = cpu.load::<T>(at)?;
    cpu.port_write(port, value);
    advance::<T>(cpu, op);
    Ok(())
}

/// Moves the index register, which is the operand's base, by one element.
fn advance<T: Width>(cpu: &mut Cpu, op: &Op) {
    let by = if cpu.system.rflags & rflags::DF == 0 { T::BYTES } else { T::BYTES.wrapping_neg() };
    let moved = cpu.regs.get64(op.base).wrapping_add(by);
    set_at_address_size(cpu, op, op.base, moved);
}

fn set_at_address_size(cpu: &mut Cpu, op: &Op, register: RegAt, value: u64) {
    match op.addressing {
        Addressing::Flat => cpu.regs.set64(register, value),
        Addressing::Flat32 | Addressing::Segmented32 => cpu.regs.set(register, value as u32),
        Addressing::Segmented16 => cpu.regs.set(register, value as u16),
    }
}

/// Elements until rCX is zero, until one faults, or until somebody wants the CPU.
fn repeat(cpu: &mut Cpu, op: &Op, element: fn(&mut Cpu, &Op) -> Step) -> Step {
    let mask = match op.addressing {
        Addressing::Flat => u64::MAX,
        Addressing::Flat32 | Addressing::Segmented32 => 0xffff_ffff,
        Addressing::Segmented16 => 0xffff,
    };
    loop {
        let left = cpu.regs.get64(RegAt::RCX) & mask;
        if left == 0 {
            return Ok(());
        }
        element(cpu, op)?;
        set_at_address_size(cpu, op, RegAt::RCX, left - 1);
        if left > 1 && (cpu.armed.met != 0 || cpu.shared.attention(cpu.index).any()) {
            return Err(Break::Again);
        }
    }
}
