//! Accesses to guest RAM as single host instructions. The guest's other CPUs and devices use the same memory at the same
//! time, which Rust's own loads and stores may not do; an instruction in assembly has exactly the hardware's meaning, which
//! on an x86 host is also the guest's memory order.

// UNSAFETY: reads and writes host addresses of guest RAM.
#![expect(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::__m128i;

use crate::engine::soft::width::Width;

/// Loads from host address `at`.
///
/// # Safety
/// `at` is the address of `T::BYTES` bytes of mapped guest RAM.
#[inline(always)]
pub(in crate::engine::soft) unsafe fn load<T: Width>(at: u64) -> T {
    let value: u64;
    // SAFETY: the caller guarantees that the bytes are mapped; loads have no other effect.
    unsafe {
        match T::BYTES {
            1 => {
                asm!("movzx {0:e}, byte ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags, readonly))
            }
            2 => {
                asm!("movzx {0:e}, word ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags, readonly))
            }
            4 => {
                asm!("mov {0:e}, dword ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags, readonly))
            }
            _ => {
                asm!("mov {0}, qword ptr [{1}]", out(reg) value, in(reg) at, options(nostack, preserves_flags, readonly))
            }
        }
    }
    T::from_u64(value)
}

/// Stores to host address `at`.
///
/// # Safety
/// `at` is the address of `T::BYTES` bytes of mapped guest RAM.
#[inline(always)]
pub(in crate::engine::soft) unsafe fn store<T: Width>(at: u64, value: T) {
    let value = value.to_u64();
    // SAFETY: the caller guarantees that the bytes are mapped guest RAM, to which no Rust reference exists.
    unsafe {
        match T::BYTES {
            1 => {
                asm!("mov byte ptr [{1}], {0}", in(reg_byte) value as u8, in(reg) at, options(nostack, preserves_flags))
            }
            2 => asm!("mov word ptr [{1}], {0:x}", in(reg) value, in(reg) at, options(nostack, preserves_flags)),
            4 => asm!("mov dword ptr [{1}], {0:e}", in(reg) value, in(reg) at, options(nostack, preserves_flags)),
            _ => asm!("mov qword ptr [{1}], {0}", in(reg) value, in(reg) at, options(nostack, preserves_flags)),
        }
    }
}

macro_rules! load_vector {
    ($name:ident, $bytes:literal, $insn:literal) => {
        #[doc = concat!("Loads ", $bytes, " bytes from host address `at` into a vector register; the rest of it is zero.")]
        ///
        /// # Safety
        #[doc = concat!("`at` is the address of ", $bytes, " bytes of mapped guest RAM.")]
        #[inline(always)]
        pub(in crate::engine::soft) unsafe fn $name(at: u64) -> __m128i {
            let value;
            // SAFETY: as for `load`.
            unsafe {
                asm!(concat!($insn, " {}, [{}]"), out(xmm_reg) value, in(reg) at, options(nostack, preserves_flags, readonly));
            }
            value
        }
    };
}

load_vector!(load_4, "4", "movd");
load_vector!(load_8, "8", "movq");
load_vector!(load_16, "16", "movdqu");

/// Stores 16 bytes to host address `at`.
///
/// # Safety
/// `at` is the address of 16 bytes of mapped guest RAM.
#[inline(always)]
pub(in crate::engine::soft) unsafe fn store_16(at: u64, value: __m128i) {
    // SAFETY: as for `store`.
    unsafe { asm!("movdqu [{}], {}", in(reg) at, in(xmm_reg) value, options(nostack, preserves_flags)) };
}

/// Replaces `old` by `new` at host address `at` if that is what is there, atomically for all CPUs; returns what was there.
///
/// # Safety
/// `at` is the address of `T::BYTES` bytes of mapped guest RAM.
#[inline(always)]
pub(in crate::engine::soft) unsafe fn compare_exchange<T: Width>(at: u64, old: T, new: T) -> T {
    let (mut was, new) = (old.to_u64(), new.to_u64());
    // SAFETY: as for `store`; any alignment is allowed.
    unsafe {
        match T::BYTES {
            1 => {
                asm!("lock cmpxchg byte ptr [{1}], {0}", in(reg_byte) new as u8, in(reg) at, inout("rax") was, options(nostack))
            }
            2 => {
                asm!("lock cmpxchg word ptr [{1}], {0:x}", in(reg) new, in(reg) at, inout("rax") was, options(nostack))
            }
            4 => {
                asm!("lock cmpxchg dword ptr [{1}], {0:e}", in(reg) new, in(reg) at, inout("rax") was, options(nostack))
            }
            _ => asm!("lock cmpxchg qword ptr [{1}], {0}", in(reg) new, in(reg) at, inout("rax") was, options(nostack)),
        }
    }
    T::from_u64(was)
}

/// The same for sixteen bytes, as (low, high) halves; `at` is a multiple of 16.
///
/// # Safety
/// `at` is the address of 16 bytes of mapped guest RAM, aligned to 16; the host has CMPXCHG16B.
pub(in crate::engine::soft) unsafe fn compare_exchange_16(at: u64, old: (u64, u64), new: (u64, u64)) -> (u64, u64) {
    let (mut low, mut high) = old;
    // RBX cannot be named as an operand: it is exchanged around the instruction.
    // SAFETY: as for `store`.
    unsafe {
        asm!(
            "xchg {new}, rbx", "lock cmpxchg16b [{at}]", "mov rbx, {new}",
            new = inout(reg) new.0 => _, at = in(reg) at, in("rcx") new.1, inout("rax") low, inout("rdx") high,
            options(nostack)
        );
    }
    (low, high)
}

/// Copies `len` bytes from guest RAM, from low to high addresses.
///
/// # Safety
/// `from` starts `len` bytes of mapped guest RAM, `to` `len` bytes that the caller owns.
pub(in crate::engine::soft) unsafe fn copy_out(from: u64, to: *mut u8, len: usize) {
    // SAFETY: see above; the copy is one instruction, so racing writes of the guest give bytes of either value.
    unsafe {
        asm!("rep movsb", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") len => _, options(nostack, preserves_flags));
    }
}

/// Copies `len` bytes into guest RAM, from low to high addresses.
///
/// # Safety
/// `to` starts `len` bytes of mapped guest RAM, `from` `len` readable bytes (which may be guest RAM too).
pub(in crate::engine::soft) unsafe fn copy_in(from: *const u8, to: u64, len: usize) {
    // SAFETY: as in `copy_out`.
    unsafe {
        asm!("rep movsb", inout("rsi") from => _, inout("rdi") to => _, inout("rcx") len => _, options(nostack, preserves_flags));
    }
}

/// Stores `count` elements of `value` from host address `at` on.
///
/// # Safety
/// `at` starts `count * T::BYTES` bytes of mapped guest RAM.
pub(in crate::engine::soft) unsafe fn fill<T: Width>(at: u64, value: T, count: u64) {
    let value = value.to_u64();
    // SAFETY: as for `store`; the direction flag is clear, as the ABI demands.
    unsafe {
        match T::BYTES {
            1 => {
                asm!("rep stosb", inout("rdi") at => _, inout("rcx") count => _, in("al") value as u8, options(nostack, preserves_flags))
            }
            2 => {
                asm!("rep stosw", inout("rdi") at => _, inout("rcx") count => _, in("ax") value as u16, options(nostack, preserves_flags))
            }
            4 => {
                asm!("rep stosd", inout("rdi") at => _, inout("rcx") count => _, in("eax") value as u32, options(nostack, preserves_flags))
            }
            _ => {
                asm!("rep stosq", inout("rdi") at => _, inout("rcx") count => _, in("rax") value, options(nostack, preserves_flags))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_of_every_width() {
        #[repr(align(16))]
        struct Bytes([u8; 32]);
        let mut bytes = Bytes([0; 32]);
        let at = &raw mut bytes.0 as u64;
        // SAFETY: all addresses lie within `bytes`.
        unsafe {
            store::<u64>(at, 0x1122_3344_5566_7788);
            store::<u8>(at + 1, 0xaa);
            store::<u16>(at + 2, 0xbbcc);
            assert_eq!(load::<u32>(at), 0xbbcc_aa88);
            assert_eq!(load::<u64>(at + 1), 0x0011_2233_44bb_ccaa);
            assert_eq!(compare_exchange::<u8>(at, 0x88, 1), 0x88);
            assert_eq!(compare_exchange::<u16>(at, 0x88, 1), 0xaa01);
            assert_eq!(compare_exchange::<u32>(at + 4, 0x1122_3344, 7), 0x1122_3344);
            assert_eq!((load::<u8>(at), load::<u16>(at + 2), load::<u64>(at + 4)), (1, 0xbbcc, 7));
            assert_eq!(compare_exchange_16(at + 16, (1, 0), (5, 6)), (0, 0));
            assert_eq!(compare_exchange_16(at + 16, (0, 0), (5, 6)), (0, 0));
            assert_eq!((load::<u64>(at + 16), load::<u64>(at + 24)), (5, 6));
            copy_in(b"jar".as_ptr(), at + 3, 3);
            let mut out = [0; 4];
            copy_out(at + 3, out.as_mut_ptr(), 4);
            assert_eq!(&out, b"jar\0");
        }
    }
}
