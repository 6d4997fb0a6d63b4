//! Flags as operands, instructions that do nothing here, and decimal arithmetic of legacy modes.

use iced_x86::{Instruction, Mnemonic};

use crate::engine::soft::code::lower::Lowered;
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{self, Step};
use crate::engine::soft::flags::{Flags, rflags};
use crate::engine::soft::registers::RegAt;

#[allow(clippy::unnecessary_wraps, reason = "a handler")]
fn nothing(_: &mut Cpu, _: &Op) -> Step {
    Ok(())
}

fn set_carry<const ON: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.flags.set(Flags::CF, ON);
    Ok(())
}

fn complement_carry(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.flags.0 ^= Flags::CF;
    Ok(())
}

fn set_direction<const ON: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.system.rflags = cpu.system.rflags & !rflags::DF | if ON { rflags::DF } else { 0 };
    Ok(())
}

/// AH gets SF ZF AF PF CF, and ones and zeros where RFLAGS has them.
fn lahf(cpu: &mut Cpu, _: &Op) -> Step {
    let value = cpu.rflags() as u8;
    cpu.regs.set(RegAt::AH, value);
    Ok(())
}

fn sahf(cpu: &mut Cpu, _: &Op) -> Step {
    let value = u64::from(cpu.regs.get::<u8>(RegAt::AH));
    cpu.flags = Flags::from_rflags(value & 0xff | cpu.flags.to_rflags() & rflags::OF);
    Ok(())
}

/// SALC: AL is all ones if CF is set.
fn salc(cpu: &mut Cpu, _: &Op) -> Step {
    let value: u8 = if cpu.flags.carry() { 0xff } else { 0 };
    cpu.regs.set(RegAt::RAX, value);
    Ok(())
}

/// SF, ZF and PF of a byte; the others as they are.
fn set_byte_flags(cpu: &mut Cpu, value: u8) {
    cpu.flags.set(Flags::SF, value & 0x80 != 0);
    cpu.flags.set(Flags::ZF, value == 0);
    cpu.flags.set(Flags::PF, value.count_ones().is_multiple_of(2));
}

/// DAA and DAS (SDM volume 2).
fn decimal_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    let old: u8 = cpu.regs.get(RegAt::RAX);
    let (old_carry, mut value, mut carry) = (cpu.flags.carry(), old, false);
    let adjust = |value: u8, by: u8| if SUBTRACT { value.overflowing_sub(by) } else { value.overflowing_add(by) };
    let low = old & 15 > 9 || cpu.flags.0 & Flags::AF != 0;
    if low {
        let (adjusted, wrapped) = adjust(value, 6);
        (value, carry) = (adjusted, old_carry || wrapped);
    }
    let high = old > 0x99 || old_carry;
    if high {
        value = adjust(value, 0x60).0;
    }
    cpu.regs.set(RegAt::RAX, value);
    cpu.flags.set(Flags::AF, low);
    cpu.flags.set(Flags::CF, high || (SUBTRACT && low && carry));
    set_byte_flags(cpu, value);
    Ok(())
}

/// AAA and AAS.
fn ascii_adjust<const SUBTRACT: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    let ax: u16 = cpu.regs.get(RegAt::RAX);
    let needed = ax & 15 > 9 || cpu.flags.0 & Flags::AF != 0;
    let mut value = ax;
    if needed {
        value = if SUBTRACT { ax.wrapping_sub(6).wrapping_sub(0x100) } else { ax.wrapping_add(0x106) };
    }
    cpu.regs.set(RegAt::RAX, value & 0xff0f);
    cpu.flags.set(Flags::AF | Flags::CF, needed);
    Ok(())
}

/// AAM: divides AL by the immediate.
fn aam(cpu: &mut Cpu, op: &Op) -> Step {
    let (al, base): (u8, u8) = (cpu.regs.get(RegAt::RAX), op.imm as u8);
    let (Some(high), Some(low)) = (al.checked_div(base), al.checked_rem(base)) else {
        return Err(cpu.raise(fault::DE, None));
    };
    cpu.regs.set(RegAt::RAX, u16::from(high) << 8 | u16::from(low));
    set_byte_flags(cpu, low);
    Ok(())
}

/// AAD: AH times the immediate plus AL.
fn aad(cpu: &mut Cpu, op: &Op) -> Step {
    let (al, ah): (u8, u8) = (cpu.regs.get(RegAt::RAX), cpu.regs.get(RegAt::AH));
    let value = al.wrapping_add(ah.wrapping_mul(op.imm as u8));
    cpu.regs.set(RegAt::RAX, u16::from(value));
    set_byte_flags(cpu, value);
    Ok(())
}

pub(super) fn lower(insn: &Instruction, op: &mut Op) -> Lowered {
    let handler = match insn.mnemonic() {
        // Fences order nothing that the host does not order by itself: guest accesses are host accesses.
        Mnemonic::Mfence => fence as Handler,
        // Hints, and instructions that are hints on CPUs without the feature they belong to.
        Mnemonic::Nop
        | Mnemonic::Reservednop
        | Mnemonic::Endbr32
        | Mnemonic::Endbr64
        | Mnemonic::Lfence
        | Mnemonic::Sfence
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetch
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchit0
        | Mnemonic::Prefetchit1
        | Mnemonic::Cldemote
        | Mnemonic::Rdsspd
        | Mnemonic::Rdsspq => nothing,
        Mnemonic::Clc => set_carry::<false>,
        Mnemonic::Stc => set_carry::<true>,
        Mnemonic::Cmc => complement_carry,
        Mnemonic::Cld => set_direction::<false>,
        Mnemonic::Std => set_direction::<true>,
        Mnemonic::Lahf => lahf,
        Mnemonic::Sahf => sahf,
        Mnemonic::Salc => salc,
        Mnemonic::Daa => decimal_adjust::<false>,
        Mnemonic::Das => decimal_adjust::<true>,
        Mnemonic::Aaa => ascii_adjust::<false>,
        Mnemonic::Aas => ascii_adjust::<true>,
        Mnemonic::Aam | Mnemonic::Aad => {
            op.imm = insn.immediate(0);
            if insn.mnemonic() == Mnemonic::Aam { aam } else { aad }
        }
        // The line stays where it is, but the address must be good.
        Mnemonic::Clflush | Mnemonic::Clflushopt => flush_line,
        _ => return Lowered::NotMine,
    };
    op.run = handler;
    Lowered::Inside
}

#[allow(clippy::unnecessary_wraps, reason = "a handler")]
fn fence(_: &mut Cpu, _: &Op) -> Step {
    std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
    Ok(())
}

fn flush_line(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, 1, crate::engine::soft::memory::walk::Access::Read)?;
    cpu.load::<u8>(at).map(drop)
}
