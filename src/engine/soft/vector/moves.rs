//! The frequent moves, without stubs: whole XMM and YMM registers, MOVD and MOVQ, MOVSS and MOVSD, halves of XMM registers,
//! MOVDDUP and broadcasts, PMOVMSKB. `op.imm` has the registers, a byte each: destination first.

// UNSAFETY: operands in guest RAM.
#![expect(unsafe_code)]

use std::arch::x86_64::__m128i;

use iced_x86::{EncodingKind, Instruction, Mnemonic, OpKind, Register};

use super::access::{ZERO, sign_bits};
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::memory::host;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;

/// Legacy encoding: the upper half of the YMM register stays.
pub(super) const LEGACY: u8 = 0;
/// VEX encoding with XMM registers: the upper half becomes zero.
pub(super) const VEX: u8 = 1;
/// VEX encoding with YMM registers.
pub(super) const WIDE: u8 = 2;

/// How the registers of `insn` are encoded: one of the above.
pub(super) fn form(insn: &Instruction) -> u8 {
    let wide = (0..insn.op_count()).any(|operand| insn.op_register(operand).is_ymm());
    match insn.encoding() == EncodingKind::VEX {
        false => LEGACY,
        true if wide => WIDE,
        true => VEX,
    }
}

/// Numbers of the register operands, a byte each, in order; memory operands leave no gap.
pub(super) fn numbers(insn: &Instruction) -> u64 {
    let registers = (0..insn.op_count()).filter(|operand| insn.op_kind(*operand) == OpKind::Register);
    registers
        .enumerate()
        .fold(0, |all, (place, operand)| all | (insn.op_register(operand).number() as u64) << (8 * place))
}

/// Picks the handler, if this is an instruction of this file.
pub(super) fn lower(insn: &Instruction, op: &mut Op) -> Option<()> {
    let run = whole(insn)
        .or_else(|| integer(insn, op))
        .or_else(|| parts(insn))
        .or_else(|| repeated(insn))
        .or_else(|| mask(insn, op))?;
    op.run = run;
    op.imm = numbers(insn);
    Some(())
}

/// Moves of whole registers.
fn whole(insn: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let aligned = match insn.mnemonic() {
        M::Movups | M::Movupd | M::Movdqu | M::Lddqu | M::Vmovups | M::Vmovupd | M::Vmovdqu | M::Vlddqu => false,
        M::Movaps | M::Movapd | M::Movdqa | M::Vmovaps | M::Vmovapd | M::Vmovdqa => true,
        M::Movntps | M::Movntpd | M::Movntdq | M::Movntdqa => true,
        M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa => true,
        _ => return None,
    };
    let (stores, loads) = (insn.op_kind(0) == OpKind::Memory, insn.op_kind(1) == OpKind::Memory);
    Some(match (stores, loads, aligned, form(insn)) {
        (true, _, false, LEGACY) => store::<LEGACY, false>,
        (true, _, false, VEX) => store::<VEX, false>,
        (true, _, false, _) => store::<WIDE, false>,
        (true, _, true, LEGACY) => store::<LEGACY, true>,
        (true, _, true, VEX) => store::<VEX, true>,
        (true, _, true, _) => store::<WIDE, true>,
        (_, true, false, LEGACY) => load::<LEGACY, false>,
        (_, true, false, VEX) => load::<VEX, false>,
        (_, true, false, _) => load::<WIDE, false>,
        (_, true, true, LEGACY) => load::<LEGACY, true>,
        (_, true, true, VEX) => load::<VEX, true>,
        (_, true, true, _) => load::<WIDE, true>,
        (_, _, _, LEGACY) => copy::<LEGACY>,
        (_, _, _, VEX) => copy::<VEX>,
        (_, _, _, _) => copy::<WIDE>,
    })
}

/// MOVD and MOVQ.
fn integer(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    use Mnemonic as M;
    let vex = match insn.mnemonic() {
        M::Movd | M::Movq => false,
        M::Vmovd | M::Vmovq => true,
        _ => return None,
    };
    let (to, from) = (insn.op_register(0), insn.op_register(1));
    if to.is_mm() || from.is_mm() {
        return None;
    }
    if let Some(general) = [to, from].into_iter().find(|register| register.is_gpr()) {
        op.dst = RegAt::gpr(general.number() as u8);
        // The XMM register is where `numbers` puts the operand that it is.
        return Some(match (to.is_gpr(), general.size() == 8, vex) {
            (true, false, false) => to_general::<u32, LEGACY>,
            (true, false, true) => to_general::<u32, VEX>,
            (true, true, false) => to_general::<u64, LEGACY>,
            (true, true, true) => to_general::<u64, VEX>,
            (false, false, false) => from_general::<u32, LEGACY>,
            (false, false, true) => from_general::<u32, VEX>,
            (false, true, false) => from_general::<u64, LEGACY>,
            (false, true, true) => from_general::<u64, VEX>,
        });
    }
    if to != Register::None && from != Register::None {
        return Some(if vex { low_copy::<VEX> } else { low_copy::<LEGACY> });
    }
    part(insn, if insn.memory_size().size() == 8 { 8 } else { 4 }, vex)
}

/// MOVSS, MOVSD, MOVLPS, MOVLPD, MOVHPS, MOVHPD.
fn parts(insn: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let in_memory =
        insn.op_kind(0) == OpKind::Memory || insn.op_kind(insn.op_count().saturating_sub(1)) == OpKind::Memory;
    let vex = insn.encoding() == EncodingKind::VEX;
    match insn.mnemonic() {
        M::Movss | M::Vmovss if in_memory => part(insn, 4, vex),
        M::Movsd | M::Vmovsd if in_memory => part(insn, 8, vex),
        M::Movss => Some(merge::<4, LEGACY>),
        M::Movsd => Some(merge::<8, LEGACY>),
        M::Vmovss => Some(merge::<4, VEX>),
        M::Vmovsd => Some(merge::<8, VEX>),
        M::Movlps | M::Movlpd | M::Vmovlps | M::Vmovlpd => half::<false>(insn, vex),
        M::Movhps | M::Movhpd | M::Vmovhps | M::Vmovhpd => half::<true>(insn, vex),
        _ => None,
    }
}

/// The low four or eight bytes to or from memory.
fn part(insn: &Instruction, size: u8, vex: bool) -> Option<Handler> {
    Some(match (insn.op_kind(0) == OpKind::Memory, size, vex) {
        (true, 4, false) => store_low::<u32, LEGACY>,
        (true, 4, true) => store_low::<u32, VEX>,
        (true, _, false) => store_low::<u64, LEGACY>,
        (true, _, true) => store_low::<u64, VEX>,
        (false, 4, false) => load_low::<u32, LEGACY>,
        (false, 4, true) => load_low::<u32, VEX>,
        (false, _, false) => load_low::<u64, LEGACY>,
        (false, _, true) => load_low::<u64, VEX>,
    })
}

fn half<const HIGH: bool>(insn: &Instruction, vex: bool) -> Option<Handler> {
    Some(match (insn.op_kind(0) == OpKind::Memory, vex) {
        (true, false) if HIGH => store_high::<LEGACY>,
        (true, true) if HIGH => store_high::<VEX>,
        (true, false) => store_low::<u64, LEGACY>,
        (true, true) => store_low::<u64, VEX>,
        (false, false) => load_half::<HIGH, LEGACY>,
        (false, true) => load_half::<HIGH, VEX>,
    })
}

/// MOVDDUP of XMM registers, VBROADCASTSS and VBROADCASTSD.
fn repeated(insn: &Instruction) -> Option<Handler> {
    use Mnemonic as M;
    let memory = insn.op_kind(1) == OpKind::Memory;
    Some(match (insn.mnemonic(), memory, form(insn)) {
        (M::Movddup, true, _) => load_repeated::<u64, LEGACY>,
        (M::Movddup, false, _) => repeat::<LEGACY>,
        (M::Vmovddup, true, VEX) => load_repeated::<u64, VEX>,
        (M::Vbroadcastsd, true, _) => load_repeated::<u64, WIDE>,
        (M::Vmovddup, false, VEX) => repeat::<VEX>,
        (M::Vbroadcastsd, false, _) => repeat::<WIDE>,
        (M::Vbroadcastss, true, VEX) => load_repeated::<u32, VEX>,
        (M::Vbroadcastss, true, _) => load_repeated::<u32, WIDE>,
        _ => return None,
    })
}

/// PMOVMSKB of XMM and YMM registers.
fn mask(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    if !matches!(insn.mnemonic(), Mnemonic::Pmovmskb | Mnemonic::Vpmovmskb) || insn.op_register(1).is_mm() {
        return None;
    }
    op.dst = RegAt::gpr(insn.op_register(0).number() as u8);
    Some(match form(insn) {
        LEGACY => sign_mask::<LEGACY>,
        VEX => sign_mask::<VEX>,
        _ => sign_mask::<WIDE>,
    })
}

#[inline(always)]
fn check<const FORM: u8>(cpu: &mut Cpu) -> Step {
    if FORM == LEGACY { cpu.check_sse() } else { cpu.check_avx() }
}

/// What writing an XMM register does to the upper half.
#[inline(always)]
fn finish<const FORM: u8>(cpu: &mut Cpu, register: u64) {
    if FORM == VEX {
        cpu.vector.set_high(register, ZERO);
    }
}

/// Writes a register by halves; `high` counts for YMM only.
#[inline(always)]
pub(super) fn write<const FORM: u8>(cpu: &mut Cpu, register: u64, low: __m128i, high: __m128i) {
    cpu.vector.set_xmm(register, low);
    if FORM == WIDE {
        cpu.vector.set_high(register, high);
    }
    finish::<FORM>(cpu, register);
}

fn load<const FORM: u8, const ALIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let size = if FORM == WIDE { 32 } else { 16 };
    let Some(at) = cpu.vector_at_hand(op, size, ALIGNED) else { return load_slowly::<FORM, ALIGNED>(cpu, op) };
    // SAFETY: the translation leads to so many bytes of one page of RAM, which `Shared` keeps mapped.
    let (low, high) = unsafe { (host::load_16(at), if FORM == WIDE { host::load_16(at + 16) } else { ZERO }) };
    write::<FORM>(cpu, op.imm, low, high);
    cpu.next(op)
}

#[cold]
#[inline(never)]
fn load_slowly<const FORM: u8, const ALIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let size = if FORM == WIDE { 32 } else { 16 };
    let at = cpu.address(op, size, Access::Read)?;
    if ALIGNED {
        cpu.check_aligned(at, size)?;
    }
    let (low, high) = if FORM == WIDE { cpu.load_32(at)? } else { (cpu.load_16(at)?, ZERO) };
    write::<FORM>(cpu, op.imm, low, high);
    cpu.next(op)
}

fn store<const FORM: u8, const ALIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let size = if FORM == WIDE { 32 } else { 16 };
    let Some(at) = cpu.vector_to_write(op, size, ALIGNED) else { return store_slowly::<FORM, ALIGNED>(cpu, op) };
    // SAFETY: as in `load`.
    unsafe {
        host::store_16(at, cpu.vector.xmm(op.imm));
        if FORM == WIDE {
            host::store_16(at + 16, cpu.vector.high(op.imm));
        }
    }
    cpu.next(op)
}

#[cold]
#[inline(never)]
fn store_slowly<const FORM: u8, const ALIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let size = if FORM == WIDE { 32 } else { 16 };
    let at = cpu.address(op, size, Access::Write)?;
    if ALIGNED {
        cpu.check_aligned(at, size)?;
    }
    let low = cpu.vector.xmm(op.imm);
    if FORM == WIDE {
        cpu.store_32(at, low, cpu.vector.high(op.imm))?
    } else {
        cpu.store_16(at, low)?
    }
    cpu.next(op)
}

fn copy<const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let from = op.imm >> 8;
    write::<FORM>(cpu, op.imm, cpu.vector.xmm(from), cpu.vector.high(from));
    cpu.next(op)
}

fn to_general<T: Width, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let value = T::from_u64(cpu.vector.low64(op.imm >> 8));
    cpu.regs.set::<T>(op.dst, value);
    cpu.next(op)
}

fn from_general<T: Width, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let value = cpu.regs.get::<T>(op.dst).to_u64();
    cpu.vector.set_halves(op.imm, value, 0);
    finish::<FORM>(cpu, op.imm);
    cpu.next(op)
}

fn low_copy<const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let value = cpu.vector.low64(op.imm >> 8);
    cpu.vector.set_halves(op.imm, value, 0);
    finish::<FORM>(cpu, op.imm);
    cpu.next(op)
}

fn load_low<T: Width, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    cpu.loading(op, |cpu, op, value: T| {
        cpu.vector.set_halves(op.imm, value.to_u64(), 0);
        finish::<FORM>(cpu, op.imm);
    })
}

/// The same 4 or 8 bytes in all of a register.
#[inline(always)]
fn fill<T: Width, const FORM: u8>(cpu: &mut Cpu, register: u64, value: T) {
    let value = if T::BYTES == 4 { value.to_u64() << 32 | value.to_u64() } else { value.to_u64() };
    cpu.vector.set_halves(register, value, value);
    let low = cpu.vector.xmm(register);
    write::<FORM>(cpu, register, low, low);
}

fn load_repeated<T: Width, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    cpu.loading(op, |cpu, op, value: T| fill::<T, FORM>(cpu, op.imm, value))
}

fn repeat<const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let value = cpu.vector.low64(op.imm >> 8);
    fill::<u64, FORM>(cpu, op.imm, value);
    cpu.next(op)
}

fn store_low<T: Width, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    cpu.storing(op, |cpu, op| T::from_u64(cpu.vector.low64(op.imm)))
}

fn store_high<const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    cpu.storing(op, |cpu, op| cpu.vector.high64(op.imm))
}

/// Replaces one half of an XMM register from memory; the other comes from the destination, or with VEX from a second one.
fn load_half<const HIGH: bool, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    cpu.loading(op, |cpu, op, value: u64| {
        let other = if FORM == VEX { op.imm >> 8 } else { op.imm };
        let (low, high) = (cpu.vector.low64(other), cpu.vector.high64(other));
        let (low, high) = if HIGH { (low, value) } else { (value, high) };
        cpu.vector.set_halves(op.imm, low, high);
        finish::<FORM>(cpu, op.imm);
    })
}

/// MOVSS and MOVSD between registers: the low `SIZE` bytes of the last operand, the rest of the one before it.
fn merge<const SIZE: u8, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let (rest, low) = if FORM == VEX { (op.imm >> 8, op.imm >> 16) } else { (op.imm, op.imm >> 8) };
    let (low, old) = (cpu.vector.low64(low), cpu.vector.low64(rest));
    let low = if SIZE == 4 { low & 0xffff_ffff | old & !0xffff_ffff } else { low };
    let high = cpu.vector.high64(rest);
    cpu.vector.set_halves(op.imm, low, high);
    finish::<FORM>(cpu, op.imm);
    cpu.next(op)
}

fn sign_mask<const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let from = op.imm >> 8;
    let mut bits = sign_bits(cpu.vector.xmm(from));
    if FORM == WIDE {
        bits |= sign_bits(cpu.vector.high(from)) << 16;
    }
    cpu.regs.set64(op.dst, bits);
    cpu.next(op)
}
