//! Whether vector instructions may run now, and memory operands of 16 and 32 bytes.

// UNSAFETY: accesses host addresses that translations lead to.
#![expect(unsafe_code)]

use std::arch::x86_64::__m128i;

use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::{Cpu, cr0, cr4};
use crate::engine::soft::fault::{self, Break, Step};
use crate::engine::soft::memory::host;

const PAGE: u64 = 4096;

impl Cpu {
    /// Checks of SSE instructions (SDM volume 3, table 14-1).
    #[inline(always)]
    pub(super) fn check_sse(&mut self) -> Step {
        let (cr0, cr4) = (self.system.cr0, self.system.cr4);
        if cr0 & (cr0::EM | cr0::TS) | (!cr4 & cr4::OSFXSR) != 0 {
            return Err(self.sse_refused());
        }
        Ok(())
    }

    /// Checks of VEX-encoded instructions (SDM volume 1, 14.1 and 14.3).
    #[inline(always)]
    pub(super) fn check_avx(&mut self) -> Step {
        let system = &self.system;
        let missing = (!system.cr4 & cr4::OSXSAVE) | (!system.xcr0 & 6) | (!system.cr0 & cr0::PE);
        if missing | system.cr0 & cr0::TS != 0 {
            return Err(self.avx_refused());
        }
        Ok(())
    }

    /// One or the other.
    #[inline(always)]
    pub(super) fn check_vector<const VEX: bool>(&mut self) -> Step {
        if VEX { self.check_avx() } else { self.check_sse() }
    }

    #[cold]
    fn sse_refused(&mut self) -> Break {
        if self.system.cr0 & cr0::EM != 0 || self.system.cr4 & cr4::OSFXSR == 0 {
            self.ud()
        } else {
            self.raise(fault::NM, None)
        }
    }

    #[cold]
    fn avx_refused(&mut self) -> Break {
        let system = &self.system;
        let invalid = system.cr4 & cr4::OSXSAVE == 0 || system.xcr0 & 6 != 6 || system.cr0 & cr0::PE == 0;
        if invalid { self.ud() } else { self.raise(fault::NM, None) }
    }

    /// Checks of x87 instructions and of those that save and load its state.
    pub(super) fn check_x87(&mut self) -> Step {
        if self.system.cr0 & (cr0::EM | cr0::TS) != 0 {
            return Err(self.raise(fault::NM, None));
        }
        Ok(())
    }

    /// Raises the x87 exception that waits, if one does. With CR0.NE=0 it would be an external interrupt, which no system
    /// of this century uses: #MF then too.
    pub(super) fn check_pending(&mut self) -> Step {
        if self.vector.x87_pending() {
            return Err(self.raise(fault::MF, None));
        }
        Ok(())
    }

    /// Checks of MMX instructions (SDM volume 3, table 13-1).
    pub(super) fn check_mmx(&mut self) -> Step {
        if self.system.cr0 & cr0::EM != 0 {
            return Err(self.ud());
        }
        if self.system.cr0 & cr0::TS != 0 {
            return Err(self.raise(fault::NM, None));
        }
        self.check_pending()
    }

    /// #GP(0) unless linear `at` is a multiple of `size`.
    #[inline(always)]
    pub(super) fn check_aligned(&mut self, at: u64, size: u64) -> Step {
        if at & (size - 1) != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Host address of the memory operand, so many bytes that are to be read, in 64-bit mode, if it lies within one page
    /// whose translation is at hand; none also if it is not `aligned` though it must be.
    #[inline(always)]
    pub(super) fn vector_at_hand(&self, op: &Op, bytes: u64, aligned: bool) -> Option<u64> {
        let at = self.flat_address(op)?;
        if aligned && at & (bytes - 1) != 0 {
            return None;
        }
        self.tlb.read_bytes(at, bytes)
    }

    /// The same for an operand that is to be written.
    #[inline(always)]
    pub(super) fn vector_to_write(&self, op: &Op, bytes: u64, aligned: bool) -> Option<u64> {
        let at = self.flat_address(op)?;
        if aligned && at & (bytes - 1) != 0 {
            return None;
        }
        self.tlb.write_bytes(at, bytes)
    }

    /// Reads 16 bytes: at once where they are in one page.
    #[inline(always)]
    pub(super) fn load_16(&mut self, at: u64) -> Result<__m128i, Break> {
        match self.tlb.read_bytes(at, 16) {
            // SAFETY: the translation leads to a page of RAM that stays mapped, and the operand lies within the page.
            Some(host) => Ok(unsafe { host::load_16(host) }),
            None => self.load_16_slow(at),
        }
    }

    /// Writes 16 bytes.
    #[inline(always)]
    pub(super) fn store_16(&mut self, at: u64, value: __m128i) -> Step {
        match self.tlb.write_bytes(at, 16) {
            Some(host) => {
                // SAFETY: as in `load_16`.
                unsafe { host::store_16(host, value) };
                Ok(())
            }
            None => self.write_bytes(at, &to_bytes(value)),
        }
    }

    /// Reads 32 bytes as halves.
    pub(super) fn load_32(&mut self, at: u64) -> Result<(__m128i, __m128i), Break> {
        if at % PAGE <= PAGE - 32 {
            let low = self.load_16(at)?;
            return Ok((low, self.load_16(at + 16)?));
        }
        let mut bytes = [0; 32];
        self.read_bytes(at, &mut bytes)?;
        let (low, high) = bytes.split_at(16);
        Ok((from_bytes(low), from_bytes(high)))
    }

    /// Writes 32 bytes from halves.
    pub(super) fn store_32(&mut self, at: u64, low: __m128i, high: __m128i) -> Step {
        if at % PAGE <= PAGE - 32 {
            self.store_16(at, low)?;
            return self.store_16(at + 16, high);
        }
        let mut bytes = [0; 32];
        let (first, second) = bytes.split_at_mut(16);
        first.copy_from_slice(&to_bytes(low));
        second.copy_from_slice(&to_bytes(high));
        self.write_bytes(at, &bytes)
    }

    #[cold]
    fn load_16_slow(&mut self, at: u64) -> Result<__m128i, Break> {
        let mut bytes = [0; 16];
        self.read_bytes(at, &mut bytes)?;
        Ok(from_bytes(&bytes))
    }
}

/// All bits zero.
// SAFETY: every pattern of 16 bytes is valid.
pub(super) const ZERO: __m128i = unsafe { std::mem::transmute::<u128, __m128i>(0) };

/// The top bits of the bytes.
#[inline(always)]
pub(super) fn sign_bits(value: __m128i) -> u64 {
    // SAFETY: every x86-64 CPU has SSE2.
    u64::from(unsafe { std::arch::x86_64::_mm_movemask_epi8(value) } as u32)
}

/// The register that holds these bytes.
pub(super) fn from_bytes(bytes: &[u8]) -> __m128i {
    let value = bytes.first_chunk::<16>().map_or(0, |bytes| u128::from_le_bytes(*bytes));
    // SAFETY: both are 16 bytes of which every pattern is valid.
    unsafe { std::mem::transmute::<u128, __m128i>(value) }
}

/// The bytes of a register.
pub(super) fn to_bytes(value: __m128i) -> [u8; 16] {
    // SAFETY: as above.
    unsafe { std::mem::transmute::<__m128i, [u8; 16]>(value) }
}
