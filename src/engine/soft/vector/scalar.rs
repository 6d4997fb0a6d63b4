//! ADDSD, SUBSD, MULSD and their single-precision forms without stubs, for the usual case: default rounding and masks,
//! operands and result that are normal numbers, and an inexact result only if MXCSR says so already. Then no exception
//! flag can change, and MXCSR, which takes longer to read than all the rest, need not be looked at. Everything else goes to
//! the stub.

// UNSAFETY: one instruction of the host's on two numbers.
#![expect(unsafe_code)]

use std::arch::asm;

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::run;
use super::state::MXCSR_DEFAULT;
use super::thunks::Thunks;
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::width::Width;

/// MXCSR but for its exception flags.
const CONTROL: u32 = 0xffc0;
/// PE: some result was inexact.
const INEXACT: u32 = 1 << 5;

/// A floating-point format, by the integer of its size.
trait Format: Width {
    /// Bits of the fraction.
    const FRACTION: u32;
    /// Whether all of it, as a number of this format, is far from overflow and underflow: also zero, if `ZERO`.
    #[inline(always)]
    fn usual<const ZERO: bool>(self) -> bool {
        let exponents = (1u64 << (Self::BITS - 1 - Self::FRACTION)) - 1;
        let bits = self.to_u64() & (u64::MAX >> (65 - Self::BITS));
        let exponent = bits >> Self::FRACTION;
        (exponent.wrapping_sub(2) < exponents - 4) || (ZERO && bits == 0)
    }

    /// Significant bits of a normal number, the leading one among them, up to the last that is set.
    #[inline(always)]
    fn significant(self) -> u32 {
        Self::FRACTION + 1 - (self.to_u64() | 1 << Self::FRACTION).trailing_zeros()
    }
}

impl Format for u64 {
    const FRACTION: u32 = 52;
}

impl Format for u32 {
    const FRACTION: u32 = 23;
}

/// An operation on two numbers.
trait Operation {
    /// The host's result.
    fn apply<T: Format>(a: T, b: T) -> T;
    /// Whether zero is the result itself, not what underflow left of it.
    fn may_be_zero<T: Format>(a: T, b: T) -> bool;
    /// Whether the result is certainly exact.
    fn exact<T: Format>(a: T, b: T, result: T) -> bool;
}

macro_rules! host {
    ($a:expr, $b:expr, $single:literal, $double:literal) => {{
        let (mut a, b) = ($a.to_u64(), $b.to_u64());
        // SAFETY: works on two registers; the host's MXCSR has the default's control bits, so nothing is trapped.
        unsafe {
            if T::BYTES == 4 {
                asm!("movd {x}, {a:e}", "movd {y}, {b:e}", concat!($single, " {x}, {y}"), "movd {a:e}, {x}",
                    a = inout(reg) a, b = in(reg) b, x = out(xmm_reg) _, y = out(xmm_reg) _, options(pure, nomem, nostack));
            } else {
                asm!("movq {x}, {a}", "movq {y}, {b}", concat!($double, " {x}, {y}"), "movq {a}, {x}",
                    a = inout(reg) a, b = in(reg) b, x = out(xmm_reg) _, y = out(xmm_reg) _, options(pure, nomem, nostack));
            }
        }
        T::from_u64(a)
    }};
}

struct Add;
impl Operation for Add {
    #[inline(always)]
    fn apply<T: Format>(a: T, b: T) -> T {
        host!(a, b, "addss", "addsd")
    }
    /// Sums of numbers far from the smallest are zero only if the numbers cancel each other.
    #[inline(always)]
    fn may_be_zero<T: Format>(_: T, _: T) -> bool {
        true
    }
    /// Knuth's two-sum: what was lost, itself without loss, since nothing here can overflow or underflow.
    #[inline(always)]
    fn exact<T: Format>(a: T, b: T, result: T) -> bool {
        let second = Sub::apply(result, a);
        let first = Sub::apply(result, second);
        Sub::apply(a, first) == T::default() && Sub::apply(b, second) == T::default()
    }
}

struct Sub;
impl Operation for Sub {
    #[inline(always)]
    fn apply<T: Format>(a: T, b: T) -> T {
        host!(a, b, "subss", "subsd")
    }
    #[inline(always)]
    fn may_be_zero<T: Format>(_: T, _: T) -> bool {
        true
    }
    #[inline(always)]
    fn exact<T: Format>(a: T, b: T, result: T) -> bool {
        let sign = T::from_u64(1 << (T::BITS - 1)).to_u64();
        Add::exact(a, T::from_u64(b.to_u64() ^ sign), result)
    }
}

struct Mul;
impl Operation for Mul {
    #[inline(always)]
    fn apply<T: Format>(a: T, b: T) -> T {
        host!(a, b, "mulss", "mulsd")
    }
    #[inline(always)]
    fn may_be_zero<T: Format>(a: T, b: T) -> bool {
        let zero = |x: T| x.to_u64() << (65 - T::BITS) == 0;
        zero(a) || zero(b)
    }
    /// A product has at most as many significant bits as its factors together.
    #[inline(always)]
    fn exact<T: Format>(a: T, b: T, _: T) -> bool {
        Self::may_be_zero(a, b) || a.significant() + b.significant() <= T::FRACTION + 1
    }
}

/// The handler of the stub, which `lower` has picked before.
fn stub(memory: bool, bytes: usize) -> Handler {
    run::scalar_handler(memory, bytes)
}

/// `op.extra` is the source register; the destination is the first slot of the stub.
fn registers<O: Operation, T: Format>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_sse()?;
    let b = T::from_u64(cpu.vector.low64(op.extra.into()));
    if usual::<O, T>(cpu, op, b) { Ok(()) } else { stub(false, 0)(cpu, op) }
}

fn with_memory<O: Operation, T: Format>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_sse()?;
    let at = cpu.address(op, T::BYTES, Access::Read)?;
    let b = cpu.load::<T>(at)?;
    if usual::<O, T>(cpu, op, b) { Ok(()) } else { stub(true, T::BYTES as usize)(cpu, op) }
}

/// Does the whole of it if this is the usual case.
#[inline(always)]
fn usual<O: Operation, T: Format>(cpu: &mut Cpu, op: &Op, b: T) -> bool {
    let mxcsr = cpu.vector.mxcsr();
    let target = super::thunks::registers(op);
    let whole = cpu.vector.low64(target);
    let a = T::from_u64(whole);
    if mxcsr & CONTROL != MXCSR_DEFAULT || !a.usual::<true>() || !b.usual::<true>() {
        return false;
    }
    let result = O::apply(a, b);
    let fits = result.usual::<false>() || (result.usual::<true>() && O::may_be_zero(a, b));
    if !fits || (mxcsr & INEXACT == 0 && !O::exact(a, b, result)) {
        return false;
    }
    let kept = if T::BYTES == 8 { 0 } else { whole & !0xffff_ffff };
    cpu.vector.set_halves(target, kept | result.to_u64(), cpu.vector.high64(target));
    true
}

fn pick<O: Operation>(single: bool, memory: bool) -> Handler {
    match (single, memory) {
        (true, true) => with_memory::<O, u32>,
        (true, false) => registers::<O, u32>,
        (false, true) => with_memory::<O, u64>,
        (false, false) => registers::<O, u64>,
    }
}

/// Picks the handler, if this is an instruction of this file; the stub is made all the same.
pub(super) fn lower(insn: &Instruction, op: &mut Op, thunks: &Thunks) -> Option<()> {
    let memory = insn.op_count() == 2 && insn.op1_kind() == OpKind::Memory;
    let handler = match insn.mnemonic() {
        Mnemonic::Addsd => pick::<Add>(false, memory),
        Mnemonic::Subsd => pick::<Sub>(false, memory),
        Mnemonic::Mulsd => pick::<Mul>(false, memory),
        Mnemonic::Addss => pick::<Add>(true, memory),
        Mnemonic::Subss => pick::<Sub>(true, memory),
        Mnemonic::Mulss => pick::<Mul>(true, memory),
        _ => return None,
    };
    run::lower(insn, op, thunks)?;
    op.run = handler;
    if !memory {
        op.extra = insn.op1_register().number() as u8;
    }
    Some(())
}
