//! Bits: BT BTS BTR BTC, BSF BSR TZCNT LZCNT POPCNT, BMI1, BMI2, ADX, CRC32, MULX.

use iced_x86::{CpuidFeature, Instruction, Mnemonic};

use super::arithmetic::{
    Adc, Andn, Bextr, Binary, Blsi, Blsmsk, Blsr, Bsf, Bsr, Bt, Btc, Btr, Bts, Bzhi, Lzcnt, Pdep, Pext, Popcnt, Sarx,
    Shlx, Shrx, Ternary, Transform, Tzcnt, crc32, multiply,
};
use crate::engine::soft::code::decode::Target;
use crate::engine::soft::code::lower::{Lowered, Operand, by_width, bytes, gpr, operand};
use crate::engine::soft::code::op::{Addressing, Handler, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::flags::Flags;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;

fn transform<O: Transform, T: Width, const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let source = cpu.source::<T, MEM>(op)?;
    let (result, flags) = O::apply(cpu.regs.get::<T>(op.dst), source, cpu.flags);
    cpu.flags = flags;
    cpu.regs.set(op.dst, result);
    cpu.next(op)
}

/// BSF and BSR of zero leave the destination as it is, all 64 bits of it.
fn scan<O: Transform, T: Width, const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let source = cpu.source::<T, MEM>(op)?;
    let (result, flags) = O::apply(cpu.regs.get::<T>(op.dst), source, cpu.flags);
    cpu.flags = flags;
    if source != T::default() {
        cpu.regs.set(op.dst, result);
    }
    cpu.next(op)
}

/// A bit of a register; `CHANGES` if it is written back (BTS, BTR, BTC).
fn bit_reg<O: Transform, T: Width, const IMM: bool, const CHANGES: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let index = if IMM { T::from_u64(op.imm) } else { cpu.regs.get::<T>(op.src) };
    let (result, flags) = O::apply(cpu.regs.get::<T>(op.dst), index, cpu.flags);
    cpu.flags = flags;
    if CHANGES {
        cpu.regs.set(op.dst, result);
    }
    cpu.next(op)
}

/// A bit of memory: an index in a register reaches beyond the operand.
fn bit_mem<O: Transform, T: Width, const IMM: bool, const CHANGES: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let index = if IMM { op.imm & u64::from(T::BITS - 1) } else { cpu.regs.get::<T>(op.src).to_i64() as u64 };
    let access = if CHANGES { Access::Write } else { Access::Read };
    let distance = ((index as i64) >> T::BITS.trailing_zeros()).wrapping_mul(T::BYTES as i64);
    let at = if op.addressing == Addressing::Flat {
        cpu.address(op, T::BYTES, access)?.wrapping_add(distance as u64)
    } else {
        // The sum is cut to the address size, as every offset is.
        let offset = op.addressing.wrapped(cpu.offset(op).wrapping_add(distance as u64));
        cpu.segmented(op.seg, offset, T::BYTES, access)?
    };
    let (index, flags) = (T::from_u64(index & u64::from(T::BITS - 1)), cpu.flags);
    let apply = |value: T| O::apply(value, index, flags);
    cpu.flags = match (CHANGES, op.extra != 0) {
        (false, _) => O::apply(cpu.load::<T>(at)?, index, flags).1,
        (true, false) => cpu.modify(at, apply)?,
        (true, true) => cpu.modify_locked(at, apply)?,
    };
    cpu.next(op)
}

/// Three operands: destination, and two sources of which the second's role is `op.extra`'s register when the first is
/// memory.
fn ternary<O: Ternary, T: Width, const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    // ANDN, PDEP, PEXT have the general operand last, the others first; `lower` has put the operands in place.
    let second = cpu.source::<T, MEM>(op)?;
    let other = cpu.regs.get::<T>(RegAt::gpr(op.extra & 15));
    let swap = op.extra & 16 != 0;
    let (a, b) = if swap { (second, other) } else { (other, second) };
    let keeps = op.extra & 32 != 0;
    let (result, flags) = O::apply(a, b, cpu.flags);
    if !keeps {
        cpu.flags = flags;
    }
    cpu.regs.set(op.dst, result);
    cpu.next(op)
}

/// RORX: rotates by an immediate, no flags.
fn rorx<T: Width, const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.source::<T, MEM>(op)?.to_u64();
    let count = op.imm as u32 & (T::BITS - 1);
    let result = if T::BITS == 64 { value.rotate_right(count) } else { u64::from((value as u32).rotate_right(count)) };
    cpu.regs.set(op.dst, T::from_u64(result));
    cpu.next(op)
}

/// MULX: RDX times the source, no flags; `op.dst` gets the high half, `op.extra`'s register the low one.
fn mulx<T: Width, const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = cpu.source::<T, MEM>(op)?;
    let (low, high, _) = multiply::<T, false>(cpu.regs.get::<T>(RegAt::RDX), b, cpu.flags);
    cpu.regs.set(RegAt::gpr(op.extra & 15), low);
    cpu.regs.set(op.dst, high);
    cpu.next(op)
}

/// ADCX and ADOX: additions whose carry is CF or OF alone.
fn add_with<T: Width, const MEM: bool, const OVERFLOW: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let b = cpu.source::<T, MEM>(op)?;
    let flag = if OVERFLOW { Flags::OF } else { Flags::CF };
    let mut carry_in = Flags::default();
    carry_in.set(Flags::CF, cpu.flags.0 & flag != 0);
    let (sum, flags) = Adc::apply(cpu.regs.get::<T>(op.dst), b, carry_in);
    cpu.flags.set(flag, flags.carry());
    cpu.regs.set(op.dst, sum);
    cpu.next(op)
}

/// CRC32: `op.extra` is 1 if the destination has 64 bits, whose upper half becomes zero in any case.
fn crc<T: Width, const MEM: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let data = cpu.source::<T, MEM>(op)?;
    let crc = crc32(cpu.regs.get::<u32>(op.dst), data);
    cpu.regs.set(op.dst, crc);
    cpu.next(op)
}

/// Handlers for a register or a memory operand at each width.
macro_rules! from_source {
    ($insn:expr, $op:expr, $index:expr, $size:expr, $t:ident, $handler:ident $(, $arg:ty)? ; $($const:tt)*) => {
        match operand($insn, $index) {
            Operand::Reg(src) => {
                $op.src = src;
                Some(by_width!($size, $t => $handler::<$($arg,)? $t, false $($const)*>))
            }
            Operand::Mem => Some(by_width!($size, $t => $handler::<$($arg,)? $t, true $($const)*>)),
            _ => None,
        }
    };
}

fn two<O: Transform>(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    op.dst = gpr(insn.op0_register())?;
    from_source!(insn, op, 1, bytes(insn, 0), T, transform, O ;)
}

fn scans<O: Transform>(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    op.dst = gpr(insn.op0_register())?;
    from_source!(insn, op, 1, bytes(insn, 0), T, scan, O ;)
}

fn bit<O: Transform, const CHANGES: bool>(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = bytes(insn, 0);
    op.extra = insn.has_lock_prefix().into();
    match (operand(insn, 0), operand(insn, 1)) {
        (Operand::Reg(dst), Operand::Reg(src)) => {
            (op.dst, op.src) = (dst, src);
            Some(by_width!(size, T => bit_reg::<O, T, false, CHANGES>))
        }
        (Operand::Reg(dst), Operand::Imm(imm)) => {
            (op.dst, op.imm) = (dst, imm);
            Some(by_width!(size, T => bit_reg::<O, T, true, CHANGES>))
        }
        (Operand::Mem, Operand::Reg(src)) => {
            op.src = src;
            Some(by_width!(size, T => bit_mem::<O, T, false, CHANGES>))
        }
        (Operand::Mem, Operand::Imm(imm)) => {
            op.imm = imm;
            Some(by_width!(size, T => bit_mem::<O, T, true, CHANGES>))
        }
        _ => None,
    }
}

/// `general`: which operand (1 or 2) may be memory; `keeps`: no flags are written.
fn three<O: Ternary>(insn: &Instruction, op: &mut Op, general: u32, keeps: bool) -> Option<Handler> {
    op.dst = gpr(insn.op0_register())?;
    let other = insn.op_register(3 - general).full_register().number() as u8;
    op.extra = other | if general == 1 { 16 } else { 0 } | if keeps { 32 } else { 0 };
    from_source!(insn, op, general, bytes(insn, 0), T, ternary, O ;)
}

/// BLSI, BLSR, BLSMSK: the destination is the first, VEX-encoded operand.
pub(super) fn lower(insn: &Instruction, op: &mut Op, target: &Target<'_>) -> Lowered {
    let has = |feature| target.features.has(feature);
    let handler = match insn.mnemonic() {
        Mnemonic::Bt => bit::<Bt, false>(insn, op),
        Mnemonic::Bts => bit::<Bts, true>(insn, op),
        Mnemonic::Btr => bit::<Btr, true>(insn, op),
        Mnemonic::Btc => bit::<Btc, true>(insn, op),
        Mnemonic::Bsf => scans::<Bsf>(insn, op),
        Mnemonic::Bsr => scans::<Bsr>(insn, op),
        // Without BMI1 and LZCNT the prefix means nothing.
        Mnemonic::Tzcnt if !has(CpuidFeature::BMI1) => scans::<Bsf>(insn, op),
        Mnemonic::Lzcnt if !has(CpuidFeature::LZCNT) => scans::<Bsr>(insn, op),
        _ if !target.features.offer(insn) => None,
        Mnemonic::Tzcnt => two::<Tzcnt>(insn, op),
        Mnemonic::Lzcnt => two::<Lzcnt>(insn, op),
        Mnemonic::Popcnt => two::<Popcnt>(insn, op),
        Mnemonic::Blsi => two::<Blsi>(insn, op),
        Mnemonic::Blsr => two::<Blsr>(insn, op),
        Mnemonic::Blsmsk => two::<Blsmsk>(insn, op),
        Mnemonic::Andn => three::<Andn>(insn, op, 2, false),
        Mnemonic::Pdep => three::<Pdep>(insn, op, 2, true),
        Mnemonic::Pext => three::<Pext>(insn, op, 2, true),
        Mnemonic::Bextr => three::<Bextr>(insn, op, 1, false),
        Mnemonic::Bzhi => three::<Bzhi>(insn, op, 1, false),
        Mnemonic::Sarx => three::<Sarx>(insn, op, 1, true),
        Mnemonic::Shlx => three::<Shlx>(insn, op, 1, true),
        Mnemonic::Shrx => three::<Shrx>(insn, op, 1, true),
        Mnemonic::Rorx => gpr(insn.op0_register()).and_then(|dst| {
            (op.dst, op.imm) = (dst, insn.immediate(2));
            from_source!(insn, op, 1, bytes(insn, 0), T, rorx ;)
        }),
        Mnemonic::Mulx => gpr(insn.op0_register()).and_then(|dst| {
            op.dst = dst;
            op.extra = insn.op1_register().full_register().number() as u8;
            from_source!(insn, op, 2, bytes(insn, 0), T, mulx ;)
        }),
        Mnemonic::Adcx => gpr(insn.op0_register()).and_then(|dst| {
            op.dst = dst;
            from_source!(insn, op, 1, bytes(insn, 0), T, add_with ; , false)
        }),
        Mnemonic::Adox => gpr(insn.op0_register()).and_then(|dst| {
            op.dst = dst;
            from_source!(insn, op, 1, bytes(insn, 0), T, add_with ; , true)
        }),
        Mnemonic::Crc32 => gpr(insn.op0_register()).and_then(|dst| {
            op.dst = dst;
            from_source!(insn, op, 1, bytes(insn, 1), T, crc ;)
        }),
        _ => None,
    };
    let Some(handler) = handler else { return Lowered::NotMine };
    op.run = handler;
    Lowered::Inside
}
