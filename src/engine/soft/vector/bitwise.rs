//! Frequent operations on two XMM or YMM registers that SSE2 does in one instruction, without stubs. `op.imm` has the
//! registers, a byte each.

// UNSAFETY: calls SSE2 intrinsics, reads operands in guest RAM.
#![expect(unsafe_code)]

use std::arch::x86_64 as host;
use std::arch::x86_64::__m128i;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::access::ZERO;
use super::moves::{form, numbers, write};
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::memory::host as memory;
use crate::engine::soft::memory::walk::Access;

/// An operation on 16 bytes; on 32 it does the same with each half.
trait Operation {
    fn apply(first: __m128i, second: __m128i) -> __m128i;
}

macro_rules! operations {
    ($($name:ident = $function:ident: $($mnemonic:ident)|+;)*) => {
        $(
            struct $name;
            impl Operation for $name {
                #[inline(always)]
                fn apply(first: __m128i, second: __m128i) -> __m128i {
                    // SAFETY: every x86-64 CPU has SSE2.
                    unsafe { host::$function(first, second) }
                }
            }
        )*

        /// The handler for an operation of this file with its operands in this form.
        fn handler(mnemonic: Mnemonic, memory: bool, form: u8) -> Option<Handler> {
            match mnemonic {
                $($(Mnemonic::$mnemonic)|+ => Some(pick::<$name>(memory, form)),)*
                _ => None,
            }
        }
    };
}

operations! {
    Xor = _mm_xor_si128: Pxor | Xorps | Xorpd | Vpxor | Vxorps | Vxorpd;
    Or = _mm_or_si128: Por | Orps | Orpd | Vpor | Vorps | Vorpd;
    And = _mm_and_si128: Pand | Andps | Andpd | Vpand | Vandps | Vandpd;
    AndNot = _mm_andnot_si128: Pandn | Andnps | Andnpd | Vpandn | Vandnps | Vandnpd;
    EqualBytes = _mm_cmpeq_epi8: Pcmpeqb | Vpcmpeqb;
    EqualWords = _mm_cmpeq_epi16: Pcmpeqw | Vpcmpeqw;
    EqualDwords = _mm_cmpeq_epi32: Pcmpeqd | Vpcmpeqd;
    GreaterBytes = _mm_cmpgt_epi8: Pcmpgtb | Vpcmpgtb;
    MinimumBytes = _mm_min_epu8: Pminub | Vpminub;
    MaximumBytes = _mm_max_epu8: Pmaxub | Vpmaxub;
    AddBytes = _mm_add_epi8: Paddb | Vpaddb;
    AddDwords = _mm_add_epi32: Paddd | Vpaddd;
    AddQwords = _mm_add_epi64: Paddq | Vpaddq;
    SubBytes = _mm_sub_epi8: Psubb | Vpsubb;
    SubDwords = _mm_sub_epi32: Psubd | Vpsubd;
    SubQwords = _mm_sub_epi64: Psubq | Vpsubq;
    LowQwords = _mm_unpacklo_epi64: Punpcklqdq | Vpunpcklqdq | Unpcklpd | Vunpcklpd;
    HighQwords = _mm_unpackhi_epi64: Punpckhqdq | Vpunpckhqdq | Unpckhpd | Vunpckhpd;
    LowDwords = _mm_unpacklo_epi32: Punpckldq | Vpunpckldq | Unpcklps | Vunpcklps;
    LowBytes = _mm_unpacklo_epi8: Punpcklbw | Vpunpcklbw;
}

/// Picks the handler, if this is an instruction of this file.
pub(super) fn lower(insn: &Instruction, op: &mut Op) -> Option<()> {
    if insn.op_register(0).is_mm() {
        return None;
    }
    let memory = insn.op_kind(insn.op_count().saturating_sub(1)) == OpKind::Memory;
    op.run = handler(insn.mnemonic(), memory, form(insn))?;
    // Legacy instructions have their destination as first source.
    op.imm = if form(insn) == 0 { numbers(insn) << 8 | numbers(insn) & 0xff } else { numbers(insn) };
    Some(())
}

fn pick<O: Operation>(memory: bool, form: u8) -> Handler {
    match (memory, form) {
        (false, 0) => registers::<O, 0>,
        (false, 1) => registers::<O, 1>,
        (false, _) => registers::<O, 2>,
        (true, 0) => with_memory::<O, 0>,
        (true, 1) => with_memory::<O, 1>,
        (true, _) => with_memory::<O, 2>,
    }
}

#[inline(always)]
fn check<const FORM: u8>(cpu: &mut Cpu) -> Step {
    if FORM == 0 { cpu.check_sse() } else { cpu.check_avx() }
}

#[inline(always)]
fn operate<O: Operation, const FORM: u8>(cpu: &mut Cpu, op: &Op, low: __m128i, high: __m128i) {
    let first = op.imm >> 8;
    let low = O::apply(cpu.vector.xmm(first), low);
    let high = if FORM == 2 { O::apply(cpu.vector.high(first), high) } else { high };
    write::<FORM>(cpu, op.imm, low, high);
}

fn registers<O: Operation, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let second = op.imm >> 16;
    let (low, high) = (cpu.vector.xmm(second), cpu.vector.high(second));
    operate::<O, FORM>(cpu, op, low, high);
    cpu.next(op)
}

fn with_memory<O: Operation, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    check::<FORM>(cpu)?;
    let bytes = if FORM == 2 { 32 } else { 16 };
    let Some(at) = cpu.vector_at_hand(op, bytes, FORM == 0) else { return with_memory_slowly::<O, FORM>(cpu, op) };
    // SAFETY: the translation leads to so many bytes of one page of RAM, which `Shared` keeps mapped.
    let (low, high) = unsafe { (memory::load_16(at), if FORM == 2 { memory::load_16(at + 16) } else { ZERO }) };
    operate::<O, FORM>(cpu, op, low, high);
    cpu.next(op)
}

#[cold]
#[inline(never)]
fn with_memory_slowly<O: Operation, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, if FORM == 2 { 32 } else { 16 }, Access::Read)?;
    if FORM == 0 {
        cpu.check_aligned(at, 16)?;
    }
    let (low, high) = if FORM == 2 { cpu.load_32(at)? } else { (cpu.load_16(at)?, ZERO) };
    operate::<O, FORM>(cpu, op, low, high);
    cpu.next(op)
}
