//! The x87, MMX, SSE and AVX registers, in the layout in which XSAVE stores them (SDM volume 1, 13.4), which is also how
//! thunks load them.

// UNSAFETY: reads and writes registers at offsets that lie within the area for every register number.
#![expect(unsafe_code)]

use std::arch::x86_64::{__m128i, _mm_set_epi64x};

use super::mxcsr::Ready;

/// Bytes of the standard layout with x87, SSE and AVX state: legacy area, header, upper halves of YMM0 to YMM15.
pub(in crate::engine::soft) const SIZE: usize = 512 + 64 + 256;

/// MXCSR after RESET: all exceptions masked, round to nearest.
pub(in crate::engine::soft) const MXCSR_DEFAULT: u32 = 0x1f80;
/// Bits of MXCSR that exist.
pub(in crate::engine::soft) const MXCSR_MASK: u32 = 0xffff;
/// FCW after FNINIT.
pub(in crate::engine::soft) const FCW_DEFAULT: u16 = 0x037f;
/// The top of the x87 stack in FSW.
pub(super) const TOP: u16 = 7 << 11;

/// Offsets in the area.
pub(super) mod at {
    pub(in crate::engine::soft) const FCW: usize = 0;
    pub(in crate::engine::soft) const FSW: usize = 2;
    /// A bit for each physical x87 register that is not empty.
    pub(in crate::engine::soft) const TAGS: usize = 4;
    /// FOP, then FIP and FDP with their selectors.
    pub(in crate::engine::soft) const POINTERS: std::ops::Range<usize> = 6..24;
    pub(in crate::engine::soft) const MXCSR: usize = 24;
    pub(in crate::engine::soft) const MXCSR_MASK: usize = 28;
    /// ST0 to ST7, sixteen bytes each.
    pub(in crate::engine::soft) const ST: usize = 32;
    /// XMM0 to XMM15.
    pub(in crate::engine::soft) const XMM: usize = 160;
    /// End of XMM15.
    pub(in crate::engine::soft) const XMM_END: usize = 416;
    /// Upper halves of YMM0 to YMM15.
    pub(in crate::engine::soft) const YMM: usize = 576;
}

/// The registers of one CPU.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(in crate::engine::soft) struct VectorState {
    /// As XSAVE stores it.
    pub(in crate::engine::soft) area: [u8; SIZE],
    /// What MXCSR being the host's allows; then the area's is out of date.
    pub(super) ready: Ready,
}

impl Default for VectorState {
    /// The state after RESET: FCW 37Fh (as after FNINIT), MXCSR 1F80h, all else zero, tags empty.
    fn default() -> Self {
        let mut state = Self { area: [0; SIZE], ready: Ready::Nothing };
        state.set_word(at::FCW, FCW_DEFAULT);
        state.set_mxcsr(MXCSR_DEFAULT);
        state
    }
}

impl VectorState {
    /// Where register `number` (its low four bits) starts: XMM, and from [`at::YMM`] the upper half of YMM.
    #[inline(always)]
    pub(super) fn register(&mut self, number: u64) -> *mut u8 {
        // SAFETY: 160 + 16 * 15 lies within the area.
        unsafe { self.area.as_mut_ptr().add(at::XMM + 16 * (number & 15) as usize) }
    }

    /// XMM register `number`, of which the low four bits count.
    #[inline(always)]
    pub(super) fn xmm(&self, number: u64) -> __m128i {
        // SAFETY: 160 + 16 * 16 bytes lie within the area.
        unsafe { self.area.as_ptr().add(at::XMM + 16 * (number & 15) as usize).cast::<__m128i>().read_unaligned() }
    }

    /// Sets an XMM register and leaves the upper half of the YMM register alone.
    #[inline(always)]
    pub(super) fn set_xmm(&mut self, number: u64, value: __m128i) {
        // SAFETY: as in `xmm`.
        unsafe { self.register(number).cast::<__m128i>().write_unaligned(value) }
    }

    /// Upper half of YMM register `number`.
    #[inline(always)]
    pub(super) fn high(&self, number: u64) -> __m128i {
        // SAFETY: 576 + 16 * 16 bytes are the whole area.
        unsafe { self.area.as_ptr().add(at::YMM + 16 * (number & 15) as usize).cast::<__m128i>().read_unaligned() }
    }

    /// Sets the upper half of a YMM register.
    #[inline(always)]
    pub(super) fn set_high(&mut self, number: u64, value: __m128i) {
        // SAFETY: as in `high`.
        unsafe {
            let to = self.area.as_mut_ptr().add(at::YMM + 16 * (number & 15) as usize);
            to.cast::<__m128i>().write_unaligned(value);
        }
    }

    /// Low 64 bits of an XMM register.
    #[inline(always)]
    pub(super) fn low64(&self, number: u64) -> u64 {
        // SAFETY: as in `xmm`.
        unsafe { self.area.as_ptr().add(at::XMM + 16 * (number & 15) as usize).cast::<u64>().read_unaligned() }
    }

    /// Bits 127 to 64 of an XMM register.
    #[inline(always)]
    pub(super) fn high64(&self, number: u64) -> u64 {
        // SAFETY: as in `xmm`.
        unsafe { self.area.as_ptr().add(at::XMM + 8 + 16 * (number & 15) as usize).cast::<u64>().read_unaligned() }
    }

    /// Replaces an XMM register by two halves.
    #[inline(always)]
    pub(super) fn set_halves(&mut self, number: u64, low: u64, high: u64) {
        // SAFETY: as in `xmm`.
        unsafe {
            // At once: what reads all of it next need not wait for two stores.
            self.register(number).cast::<__m128i>().write_unaligned(_mm_set_epi64x(high as i64, low as i64));
        }
    }

    /// A YMM register as bytes.
    pub(super) fn ymm_bytes(&self, number: u64) -> [u8; 32] {
        let mut bytes = [0; 32];
        let (low, high) = bytes.split_at_mut(16);
        let n = 16 * (number & 15) as usize;
        low.copy_from_slice(self.area.get(at::XMM + n..at::XMM + n + 16).unwrap_or(&[0; 16]));
        high.copy_from_slice(self.area.get(at::YMM + n..at::YMM + n + 16).unwrap_or(&[0; 16]));
        bytes
    }

    /// Replaces a YMM register.
    pub(super) fn set_ymm_bytes(&mut self, number: u64, bytes: &[u8; 32]) {
        let (low, high) = bytes.split_at(16);
        let n = 16 * (number & 15) as usize;
        if let Some(to) = self.area.get_mut(at::XMM + n..at::XMM + n + 16) {
            to.copy_from_slice(low);
        }
        if let Some(to) = self.area.get_mut(at::YMM + n..at::YMM + n + 16) {
            to.copy_from_slice(high);
        }
    }

    /// MXCSR.
    #[inline(always)]
    pub(in crate::engine::soft) fn mxcsr(&self) -> u32 {
        debug_assert!(self.ready == Ready::Nothing, "MXCSR was not settled");
        // SAFETY: bytes 24 to 27, aligned, of the area.
        unsafe { self.area.as_ptr().add(at::MXCSR).cast::<u32>().read() }
    }

    /// Sets MXCSR; the caller has checked reserved bits. The host's is no longer the guest's.
    #[inline(always)]
    pub(in crate::engine::soft) fn set_mxcsr(&mut self, value: u32) {
        self.ready = Ready::Nothing;
        // SAFETY: as in `mxcsr`.
        unsafe { self.area.as_mut_ptr().add(at::MXCSR).cast::<u32>().write(value) }
    }

    /// FCW or FSW.
    pub(super) fn word(&self, offset: usize) -> u16 {
        self.area.get(offset..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u16::from_le_bytes(*bytes))
    }

    /// Sets FCW or FSW.
    pub(super) fn set_word(&mut self, offset: usize, value: u16) {
        if let Some(bytes) = self.area.get_mut(offset..).and_then(|rest| rest.first_chunk_mut()) {
            *bytes = value.to_le_bytes();
        }
    }

    /// Whether the next waiting x87 instruction raises #MF: an exception is flagged that FCW does not mask.
    pub(super) fn x87_pending(&self) -> bool {
        self.word(at::FSW) & !self.word(at::FCW) & 0x3f != 0
    }

    /// Makes FSW.ES and FSW.B say what [`VectorState::x87_pending`] says, and FCW's fixed bits what they are: after a load
    /// of x87 state from memory.
    pub(super) fn settle_x87(&mut self) {
        let fcw = self.word(at::FCW) & 0x1f3f | 0x40;
        self.set_word(at::FCW, fcw);
        let fsw = self.word(at::FSW) & 0x7f7f;
        self.set_word(at::FSW, fsw);
        if self.x87_pending() {
            self.set_word(at::FSW, fsw | 0x8080);
        }
    }

    /// Top of the x87 stack, 0 to 7.
    pub(super) fn top(&self) -> usize {
        usize::from((self.word(at::FSW) & TOP) >> 11)
    }

    /// What any MMX instruction does to the x87 state: TOP becomes 0, all registers valid. The area has the registers in the
    /// order of the stack.
    pub(super) fn enter_mmx(&mut self) {
        let top = self.top();
        if let Some(registers) = self.area.get_mut(at::ST..at::XMM) {
            registers.rotate_right(16 * top);
        }
        self.set_word(at::FSW, self.word(at::FSW) & !TOP);
        if let Some(tags) = self.area.get_mut(at::TAGS) {
            *tags = 0xff;
        }
    }

    /// Clears what cannot be, in a state that came from outside: stubs load it as it is, which must not fault.
    pub(in crate::engine::soft) fn make_valid(&mut self) {
        self.set_mxcsr(self.mxcsr() & MXCSR_MASK);
        self.settle_x87();
    }

    /// Forgets FIP, FDP and FOP: this CPU does not keep them, and after a stub they would show addresses of the host.
    #[inline]
    pub(super) fn forget_pointers(&mut self) {
        if let Some(pointers) = self.area.get_mut(at::POINTERS) {
            pointers.fill(0);
        }
    }
}
