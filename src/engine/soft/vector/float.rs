//! Addition, subtraction, multiplication, division and fused multiplication of packed and scalar numbers, without stubs:
//! while the guest's MXCSR is the host's (`mxcsr.rs`) and an operand in memory is at hand, nothing can fault, and the
//! host's instruction on 16 bytes is all there is to do; on 32 bytes, the same with each half. Everything else goes to the
//! stub, which is made all the same.

// UNSAFETY: instructions of the host's on numbers, and operands in guest RAM.
#![expect(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::__m128i;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::access::ZERO;
use super::moves::{LEGACY, VEX, WIDE, form, write};
use super::run;
use super::thunks::{Thunk, Thunks, registers};
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::memory::host;

/// An operation on 16 bytes.
trait Operation {
    /// Bytes of a source in memory: 16 if all elements count.
    const BYTES: u64;
    /// The new destination, from the old one and two sources. Instructions with two operands have the destination as first
    /// source.
    fn apply(old: __m128i, first: __m128i, second: __m128i) -> __m128i;
}

/// Two sources, by the instruction that replaces the first.
macro_rules! two_sources {
    ($insn:literal, $old:ident, $first:ident, $second:ident) => {{
        let _ = $old;
        let mut result = $first;
        // SAFETY: works on two registers and flags exceptions, none of which is unmasked; every x86-64 CPU has SSE2.
        unsafe {
            asm!(concat!($insn, " {}, {}"), inout(xmm_reg) result, in(xmm_reg) $second,
                options(nomem, nostack, preserves_flags));
        }
        result
    }};
}

/// Fused operations: three sources.
macro_rules! three_sources {
    ($insn:literal, $old:ident, $first:ident, $second:ident) => {{
        let mut result = $old;
        // SAFETY: as for `two_sources`; CPUID shows FMA only if the host has it.
        unsafe {
            asm!(concat!($insn, " {}, {}, {}"), inout(xmm_reg) result, in(xmm_reg) $first, in(xmm_reg) $second,
                options(nomem, nostack, preserves_flags));
        }
        result
    }};
}

macro_rules! operations {
    ($($name:ident = $sources:ident $insn:literal $bytes:literal: $($mnemonic:ident)|+;)*) => {
        $(
            struct $name;
            impl Operation for $name {
                const BYTES: u64 = $bytes;
                #[inline(always)]
                fn apply(old: __m128i, first: __m128i, second: __m128i) -> __m128i {
                    $sources!($insn, old, first, second)
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
    AddPd = two_sources "addpd" 16: Addpd | Vaddpd;
    AddPs = two_sources "addps" 16: Addps | Vaddps;
    AddSd = two_sources "addsd" 8: Addsd | Vaddsd;
    AddSs = two_sources "addss" 4: Addss | Vaddss;
    SubPd = two_sources "subpd" 16: Subpd | Vsubpd;
    SubPs = two_sources "subps" 16: Subps | Vsubps;
    SubSd = two_sources "subsd" 8: Subsd | Vsubsd;
    SubSs = two_sources "subss" 4: Subss | Vsubss;
    MulPd = two_sources "mulpd" 16: Mulpd | Vmulpd;
    MulPs = two_sources "mulps" 16: Mulps | Vmulps;
    MulSd = two_sources "mulsd" 8: Mulsd | Vmulsd;
    MulSs = two_sources "mulss" 4: Mulss | Vmulss;
    DivPd = two_sources "divpd" 16: Divpd | Vdivpd;
    DivPs = two_sources "divps" 16: Divps | Vdivps;
    DivSd = two_sources "divsd" 8: Divsd | Vdivsd;
    DivSs = two_sources "divss" 4: Divss | Vdivss;
    MulAdd132Pd = three_sources "vfmadd132pd" 16: Vfmadd132pd;
    MulAdd213Pd = three_sources "vfmadd213pd" 16: Vfmadd213pd;
    MulAdd231Pd = three_sources "vfmadd231pd" 16: Vfmadd231pd;
    MulAdd132Ps = three_sources "vfmadd132ps" 16: Vfmadd132ps;
    MulAdd213Ps = three_sources "vfmadd213ps" 16: Vfmadd213ps;
    MulAdd231Ps = three_sources "vfmadd231ps" 16: Vfmadd231ps;
    MulAdd132Sd = three_sources "vfmadd132sd" 8: Vfmadd132sd;
    MulAdd213Sd = three_sources "vfmadd213sd" 8: Vfmadd213sd;
    MulAdd231Sd = three_sources "vfmadd231sd" 8: Vfmadd231sd;
    MulAdd132Ss = three_sources "vfmadd132ss" 4: Vfmadd132ss;
    MulAdd213Ss = three_sources "vfmadd213ss" 4: Vfmadd213ss;
    MulAdd231Ss = three_sources "vfmadd231ss" 4: Vfmadd231ss;
    MulSub213Pd = three_sources "vfnmadd213pd" 16: Vfnmadd213pd;
    MulSub231Pd = three_sources "vfnmadd231pd" 16: Vfnmadd231pd;
    MulSub213Sd = three_sources "vfnmadd213sd" 8: Vfnmadd213sd;
    MulSub231Sd = three_sources "vfnmadd231sd" 8: Vfnmadd231sd;
}

/// Picks the handler, if this is an instruction of this file.
pub(super) fn lower(insn: &Instruction, op: &mut Op, thunks: &Thunks) -> Option<()> {
    let memory = insn.op_kind(insn.op_count().saturating_sub(1)) == OpKind::Memory;
    let handler = handler(insn.mnemonic(), memory, form(insn))?;
    run::lower(insn, op, thunks)?;
    op.run = handler;
    Some(())
}

fn pick<O: Operation>(memory: bool, form: u8) -> Handler {
    match (memory, form) {
        (false, LEGACY) => in_registers::<O, LEGACY>,
        (false, VEX) => in_registers::<O, VEX>,
        (false, _) => in_registers::<O, WIDE>,
        (true, LEGACY) => with_memory::<O, LEGACY>,
        (true, VEX) => with_memory::<O, VEX>,
        (true, _) => with_memory::<O, WIDE>,
    }
}

#[inline(always)]
fn is_ready<const FORM: u8>(cpu: &Cpu) -> bool {
    if FORM == LEGACY { cpu.vector.is_ready::<false>() } else { cpu.vector.is_ready::<true>() }
}

/// The slots of the stub, which are in the order of the operands, say which registers the operands are.
#[inline(always)]
fn operate<O: Operation, const FORM: u8>(cpu: &mut Cpu, op: &Op, low: __m128i, high: __m128i) -> Step {
    let target = registers(op);
    let first = if FORM == LEGACY { target } else { target >> 4 };
    let low = O::apply(cpu.vector.xmm(target), cpu.vector.xmm(first), low);
    let high = if FORM == WIDE { O::apply(cpu.vector.high(target), cpu.vector.high(first), high) } else { high };
    write::<FORM>(cpu, target, low, high);
    cpu.next(op)
}

fn in_registers<O: Operation, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    if !is_ready::<FORM>(cpu) {
        return unusual::<FORM>(cpu, op);
    }
    let second = registers(op) >> if FORM == LEGACY { 4 } else { 8 };
    let (low, high) = (cpu.vector.xmm(second), cpu.vector.high(second));
    operate::<O, FORM>(cpu, op, low, high)
}

fn with_memory<O: Operation, const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let bytes = if FORM == WIDE { 32 } else { O::BYTES };
    let aligned = FORM == LEGACY && bytes == 16;
    let at_hand = cpu.vector_at_hand(op, bytes, aligned).filter(|_| is_ready::<FORM>(cpu));
    let Some(at) = at_hand else { return unusual::<FORM>(cpu, op) };
    // SAFETY: the translation leads to so many bytes of one page of RAM, which `Shared` keeps mapped.
    let (low, high) = unsafe {
        match bytes {
            4 => (host::load_4(at), ZERO),
            8 => (host::load_8(at), ZERO),
            16 => (host::load_16(at), ZERO),
            _ => (host::load_16(at), host::load_16(at + 16)),
        }
    };
    operate::<O, FORM>(cpu, op, low, high)
}

/// MXCSR is not the host's yet, or never is, or the operand is not at hand.
#[cold]
#[inline(never)]
fn unusual<const FORM: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    if !is_ready::<FORM>(cpu) {
        let ready = if FORM == LEGACY {
            cpu.check_sse()?;
            cpu.make_ready::<false>()
        } else {
            cpu.check_avx()?;
            cpu.make_ready::<true>()
        };
        if ready {
            return (op.run)(cpu, op);
        }
    }
    run::handler(&Thunk::of(op).shape)(cpu, op)
}
