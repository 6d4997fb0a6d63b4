//! Arithmetic on the host's own instructions, so that results and flags, undefined ones included, are the hardware's.

// UNSAFETY: assembly, of instructions that touch registers only.
#![expect(unsafe_code)]

use std::arch::asm;

use crate::engine::soft::flags::Flags;
use crate::engine::soft::width::Width;

/// An operation on two operands.
pub(super) trait Binary {
    /// Result and flags.
    fn apply<T: Width>(a: T, b: T, flags: Flags) -> (T, Flags);
    /// Result only.
    fn quiet<T: Width>(a: T, b: T, flags: Flags) -> T;
}

/// Runs one instruction of two operands on the host, with or without loading the flags before it. AX holds flags as
/// `Flags` does: adding 127 to AL sets OF, `sahf` the others.
macro_rules! host_binary {
    ($a:expr, $b:expr, $flags:expr, $($before:literal,)* ; $insn:literal) => {{
        let (a, b, mut f) = ($a.to_u64(), $b.to_u64(), $flags.0);
        let result: u64;
        // SAFETY: the instruction works on the named registers and the flags only.
        unsafe {
            match T::BYTES {
                1 => {
                    let mut low = a as u8;
                    asm!($($before,)* concat!($insn, " {0}, {1}"), "lahf", "seto al",
                        inout(reg_byte) low, in(reg_byte) b as u8, inout("ax") f, options(pure, nomem, nostack));
                    result = low.into();
                }
                2 => {
                    let mut low = a as u16;
                    asm!($($before,)* concat!($insn, " {0:x}, {1:x}"), "lahf", "seto al",
                        inout(reg) low, in(reg) b as u16, inout("ax") f, options(pure, nomem, nostack));
                    result = low.into();
                }
                4 => {
                    let mut low = a as u32;
                    asm!($($before,)* concat!($insn, " {0:e}, {1:e}"), "lahf", "seto al",
                        inout(reg) low, in(reg) b as u32, inout("ax") f, options(pure, nomem, nostack));
                    result = low.into();
                }
                _ => {
                    let mut whole = a;
                    asm!($($before,)* concat!($insn, " {0}, {1}"), "lahf", "seto al",
                        inout(reg) whole, in(reg) b, inout("ax") f, options(pure, nomem, nostack));
                    result = whole;
                }
            }
        }
        (T::from_u64(result), Flags(f))
    }};
}

macro_rules! binary {
    ($name:ident, $insn:literal, [$($before:literal,)*], |$a:ident, $b:ident, $f:ident| $quiet:expr) => {
        #[doc = concat!("`", $insn, "`")]
        #[derive(Debug)]
        pub(super) struct $name;
        impl Binary for $name {
            #[inline(always)]
            fn apply<T: Width>(a: T, b: T, flags: Flags) -> (T, Flags) {
                host_binary!(a, b, flags, $($before,)* ; $insn)
            }
            #[inline(always)]
            fn quiet<T: Width>(a: T, b: T, $f: Flags) -> T {
                let ($a, $b) = (a.to_u64(), b.to_u64());
                T::from_u64($quiet)
            }
        }
    };
}

binary!(Add, "add", [], |a, b, _f| a.wrapping_add(b));
binary!(Sub, "sub", [], |a, b, _f| a.wrapping_sub(b));
binary!(And, "and", [], |a, b, _f| a & b);
binary!(Or, "or", [], |a, b, _f| a | b);
binary!(Xor, "xor", [], |a, b, _f| a ^ b);
binary!(Adc, "adc", ["sahf",], |a, b, f| a.wrapping_add(b).wrapping_add(f.carry().into()));
binary!(Sbb, "sbb", ["sahf",], |a, b, f| a.wrapping_sub(b).wrapping_sub(f.carry().into()));

/// An operation on one operand.
pub(super) trait Unary {
    /// Result and flags.
    fn apply<T: Width>(a: T, flags: Flags) -> (T, Flags);
    /// Result only.
    fn quiet<T: Width>(a: T) -> T;
}

macro_rules! unary {
    ($name:ident, $insn:literal, |$a:ident| $quiet:expr) => {
        #[doc = concat!("`", $insn, "`")]
        #[derive(Debug)]
        pub(super) struct $name;
        impl Unary for $name {
            #[inline(always)]
            fn apply<T: Width>(a: T, flags: Flags) -> (T, Flags) {
                let (mut a, mut f) = (a.to_u64(), flags.0);
                // SAFETY: as for `host_binary`.
                unsafe {
                    match T::BYTES {
                        1 => {
                            let mut low = a as u8;
                            asm!("add al, 127", "sahf", concat!($insn, " {0}"), "lahf", "seto al",
                                inout(reg_byte) low, inout("ax") f, options(pure, nomem, nostack));
                            a = low.into();
                        }
                        2 => asm!("add al, 127", "sahf", concat!($insn, " {0:x}"), "lahf", "seto al",
                            inout(reg) a, inout("ax") f, options(pure, nomem, nostack)),
                        4 => asm!("add al, 127", "sahf", concat!($insn, " {0:e}"), "lahf", "seto al",
                            inout(reg) a, inout("ax") f, options(pure, nomem, nostack)),
                        _ => asm!("add al, 127", "sahf", concat!($insn, " {0}"), "lahf", "seto al",
                            inout(reg) a, inout("ax") f, options(pure, nomem, nostack)),
                    }
                }
                (T::from_u64(a), Flags(f))
            }
            #[inline(always)]
            fn quiet<T: Width>(a: T) -> T {
                let $a = a.to_u64();
                T::from_u64($quiet)
            }
        }
    };
}

unary!(Inc, "inc", |a| a.wrapping_add(1));
unary!(Dec, "dec", |a| a.wrapping_sub(1));
unary!(Neg, "neg", |a| a.wrapping_neg());
unary!(Not, "not", |a| !a);

/// A shift or rotation by a count, which the caller has masked and found not to be zero.
pub(super) trait Shift {
    /// Result and flags.
    fn apply<T: Width>(a: T, count: u8, flags: Flags) -> (T, Flags);
}

macro_rules! shift {
    ($name:ident, $insn:literal) => {
        #[doc = concat!("`", $insn, "`")]
        #[derive(Debug)]
        pub(super) struct $name;
        impl Shift for $name {
            #[inline(always)]
            fn apply<T: Width>(a: T, count: u8, flags: Flags) -> (T, Flags) {
                let (mut a, mut f) = (a.to_u64(), flags.0);
                // SAFETY: as for `host_binary`.
                unsafe {
                    match T::BYTES {
                        1 => {
                            let mut low = a as u8;
                            asm!("add al, 127", "sahf", concat!($insn, " {0}, cl"), "lahf", "seto al",
                                inout(reg_byte) low, in("cl") count, inout("ax") f, options(pure, nomem, nostack));
                            a = low.into();
                        }
                        2 => asm!("add al, 127", "sahf", concat!($insn, " {0:x}, cl"), "lahf", "seto al",
                            inout(reg) a, in("cl") count, inout("ax") f, options(pure, nomem, nostack)),
                        4 => asm!("add al, 127", "sahf", concat!($insn, " {0:e}, cl"), "lahf", "seto al",
                            inout(reg) a, in("cl") count, inout("ax") f, options(pure, nomem, nostack)),
                        _ => asm!("add al, 127", "sahf", concat!($insn, " {0}, cl"), "lahf", "seto al",
                            inout(reg) a, in("cl") count, inout("ax") f, options(pure, nomem, nostack)),
                    }
                }
                (T::from_u64(a), Flags(f))
            }
        }
    };
}

shift!(Shl, "shl");
shift!(Shr, "shr");
shift!(Sar, "sar");
shift!(Rol, "rol");
shift!(Ror, "ror");
shift!(Rcl, "rcl");
shift!(Rcr, "rcr");

/// A shift of two registers, at 16, 32 or 64 bits.
pub(super) trait DoubleShift {
    /// Result and flags.
    fn apply<T: Width>(a: T, b: T, count: u8, flags: Flags) -> (T, Flags);
}

macro_rules! double_shift {
    ($name:ident, $insn:literal) => {
        #[doc = concat!("`", $insn, "`")]
        #[derive(Debug)]
        pub(super) struct $name;
        impl DoubleShift for $name {
            #[inline(always)]
            fn apply<T: Width>(a: T, b: T, count: u8, flags: Flags) -> (T, Flags) {
                let (mut a, b, mut f) = (a.to_u64(), b.to_u64(), flags.0);
                // SAFETY: as for `host_binary`.
                unsafe {
                    match T::BYTES {
                        2 => asm!("add al, 127", "sahf", concat!($insn, " {0:x}, {1:x}, cl"), "lahf", "seto al",
                            inout(reg) a, in(reg) b, in("cl") count, inout("ax") f, options(pure, nomem, nostack)),
                        4 => asm!("add al, 127", "sahf", concat!($insn, " {0:e}, {1:e}, cl"), "lahf", "seto al",
                            inout(reg) a, in(reg) b, in("cl") count, inout("ax") f, options(pure, nomem, nostack)),
                        _ => asm!("add al, 127", "sahf", concat!($insn, " {0}, {1}, cl"), "lahf", "seto al",
                            inout(reg) a, in(reg) b, in("cl") count, inout("ax") f, options(pure, nomem, nostack)),
                    }
                }
                (T::from_u64(a), Flags(f))
            }
        }
    };
}

double_shift!(Shld, "shld");
double_shift!(Shrd, "shrd");

/// An operation that makes its result of one source, at 16 (if there is one), 32 or 64 bits, or of the old result too.
pub(super) trait Transform {
    /// Result and flags, from the destination's old value and the source.
    fn apply<T: Width>(old: T, source: T, flags: Flags) -> (T, Flags);
}

macro_rules! transform {
    ($name:ident, $insn:literal) => { transform!($name, $insn, 2 => " {0:x}, {1:x}"); };
    ($name:ident, $insn:literal, $($small:literal => $operands:literal)?) => {
        #[doc = concat!("`", $insn, "`")]
        #[derive(Debug)]
        pub(super) struct $name;
        impl Transform for $name {
            #[inline(always)]
            fn apply<T: Width>(old: T, source: T, flags: Flags) -> (T, Flags) {
                let (mut a, b, mut f) = (old.to_u64(), source.to_u64(), flags.0);
                // SAFETY: as for `host_binary`; CPUID shows the instruction only if the host has it.
                unsafe {
                    match T::BYTES {
                        $($small => asm!("add al, 127", "sahf", concat!($insn, $operands), "lahf", "seto al",
                            inout(reg) a, in(reg) b, inout("ax") f, options(pure, nomem, nostack)),)?
                        4 => asm!("add al, 127", "sahf", concat!($insn, " {0:e}, {1:e}"), "lahf", "seto al",
                            inout(reg) a, in(reg) b, inout("ax") f, options(pure, nomem, nostack)),
                        _ => asm!("add al, 127", "sahf", concat!($insn, " {0}, {1}"), "lahf", "seto al",
                            inout(reg) a, in(reg) b, inout("ax") f, options(pure, nomem, nostack)),
                    }
                }
                (T::from_u64(a), Flags(f))
            }
        }
    };
}

transform!(Bsf, "bsf");
transform!(Bsr, "bsr");
transform!(Tzcnt, "tzcnt");
transform!(Lzcnt, "lzcnt");
transform!(Popcnt, "popcnt");
transform!(Imul, "imul");
transform!(Bt, "bt");
transform!(Bts, "bts");
transform!(Btr, "btr");
transform!(Btc, "btc");
transform!(Blsi, "blsi",);
transform!(Blsr, "blsr",);
transform!(Blsmsk, "blsmsk",);

/// An operation that makes its result of two sources, at 32 or 64 bits.
pub(super) trait Ternary {
    /// Result and flags.
    fn apply<T: Width>(a: T, b: T, flags: Flags) -> (T, Flags);
}

macro_rules! ternary {
    ($name:ident, $insn:literal) => {
        #[doc = concat!("`", $insn, "`")]
        #[derive(Debug)]
        pub(super) struct $name;
        impl Ternary for $name {
            #[inline(always)]
            fn apply<T: Width>(a: T, b: T, flags: Flags) -> (T, Flags) {
                let (a, b, mut f) = (a.to_u64(), b.to_u64(), flags.0);
                let result: u64;
                // SAFETY: as for `host_binary`; CPUID shows the instruction only if the host has it.
                unsafe {
                    match T::BYTES {
                        4 => asm!("add al, 127", "sahf", concat!($insn, " {0:e}, {1:e}, {2:e}"), "lahf", "seto al",
                            out(reg) result, in(reg) a, in(reg) b, inout("ax") f, options(pure, nomem, nostack)),
                        _ => asm!("add al, 127", "sahf", concat!($insn, " {0}, {1}, {2}"), "lahf", "seto al",
                            out(reg) result, in(reg) a, in(reg) b, inout("ax") f, options(pure, nomem, nostack)),
                    }
                }
                (T::from_u64(result), Flags(f))
            }
        }
    };
}

ternary!(Andn, "andn");
ternary!(Bextr, "bextr");
ternary!(Bzhi, "bzhi");
ternary!(Pdep, "pdep");
ternary!(Pext, "pext");
ternary!(Sarx, "sarx");
ternary!(Shlx, "shlx");
ternary!(Shrx, "shrx");

/// Multiplies the accumulator: (low, high) halves of the product, and flags.
#[inline(always)]
pub(super) fn multiply<T: Width, const SIGNED: bool>(a: T, b: T, flags: Flags) -> (T, T, Flags) {
    let (mut low, mut high) = (a.to_u64(), 0u64);
    let (b, flags_in) = (b.to_u64(), flags.0);
    let mut f = u64::from(flags_in);
    macro_rules! run {
        ($insn:literal, $b:literal) => {
            asm!("xchg rax, {f}", "add al, 127", "sahf", "mov rax, {a}", concat!($insn, $b), "mov {a}, rax", "lahf",
                "seto al", "mov {f}, rax", f = inout(reg) f, a = inout(reg) low, b = in(reg) b, inout("rdx") high,
                out("rax") _, options(pure, nomem, nostack))
        };
    }
    // SAFETY: as for `host_binary`.
    unsafe {
        match (T::BYTES, SIGNED) {
            (2, false) => run!("mul ", "{b:x}"),
            (2, true) => run!("imul ", "{b:x}"),
            (4, false) => run!("mul ", "{b:e}"),
            (4, true) => run!("imul ", "{b:e}"),
            (8, false) => run!("mul ", "{b}"),
            (8, true) => run!("imul ", "{b}"),
            // The product of bytes is AX.
            (_, false) => run!("mul ", "{b:l}"),
            (_, true) => run!("imul ", "{b:l}"),
        }
    }
    if T::BYTES == 1 {
        high = low >> 8;
    }
    (T::from_u64(low), T::from_u64(high), Flags(f as u16))
}

/// Divides; quotient and remainder, or none if that is a divide error.
#[inline(always)]
pub(super) fn divide<T: Width, const SIGNED: bool>(low: T, high: T, divisor: T) -> Option<(T, T)> {
    if divisor == T::default() {
        return None;
    }
    if SIGNED {
        let dividend = (i128::from(high.to_i64()) << T::BITS) | i128::from(low.to_u64());
        let divisor = i128::from(divisor.to_i64());
        let (quotient, remainder) = (dividend.checked_div(divisor)?, dividend.checked_rem(divisor)?);
        let fits = i128::from(T::from_u64(quotient as u64).to_i64()) == quotient;
        return fits.then_some((T::from_u64(quotient as u64), T::from_u64(remainder as u64)));
    }
    if T::BITS <= 32 {
        let dividend = high.to_u64() << T::BITS | low.to_u64();
        let (quotient, remainder) = (dividend / divisor.to_u64(), dividend % divisor.to_u64());
        return (quotient >> T::BITS == 0).then_some((T::from_u64(quotient), T::from_u64(remainder)));
    }
    if high == T::default() {
        let (low, divisor) = (low.to_u64(), divisor.to_u64());
        return Some((T::from_u64(low / divisor), T::from_u64(low % divisor)));
    }
    let dividend = u128::from(high.to_u64()) << 64 | u128::from(low.to_u64());
    let divisor = u128::from(divisor.to_u64());
    let (quotient, remainder) = (dividend / divisor, dividend % divisor);
    (quotient >> 64 == 0).then_some((T::from_u64(quotient as u64), T::from_u64(remainder as u64)))
}

/// What a division leaves in the flags, all of which are undefined: on this host, whatever its own does.
pub(super) fn divide_flags(flags: Flags) -> Flags {
    let mut f = flags.0;
    // SAFETY: divides 1 by 1; registers and flags only.
    unsafe {
        asm!("add al, 127", "sahf", "mov {t}, rax", "mov eax, 1", "cdq", "div {one:e}", "mov rax, {t}", "lahf", "seto al",
            t = out(reg) _, one = in(reg) 1, inout("ax") f, out("rdx") _, options(pure, nomem, nostack));
    }
    Flags(f)
}

/// CRC32 (SSE4.2) of the low bytes of `data`.
pub(super) fn crc32<T: Width>(crc: u32, data: T) -> u32 {
    let (mut crc, data) = (u64::from(crc), data.to_u64());
    // SAFETY: CPUID shows SSE4.2 only if the host has it; registers only.
    unsafe {
        match T::BYTES {
            1 => asm!("crc32 {0:e}, {1}", inout(reg) crc, in(reg_byte) data as u8, options(pure, nomem, nostack)),
            2 => asm!("crc32 {0:e}, {1:x}", inout(reg) crc, in(reg) data, options(pure, nomem, nostack)),
            4 => asm!("crc32 {0:e}, {1:e}", inout(reg) crc, in(reg) data, options(pure, nomem, nostack)),
            _ => asm!("crc32 {0}, {1}", inout(reg) crc, in(reg) data, options(pure, nomem, nostack)),
        }
    }
    crc as u32
}
