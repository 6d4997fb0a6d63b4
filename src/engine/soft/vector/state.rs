//! The x87, MMX, SSE and AVX registers, in the layout in which XSAVE stores them (SDM volume 1, 13.4), which is also how
//! thunks load them.

/// Bytes of the standard layout with x87, SSE and AVX state: legacy area, header, upper halves of YMM0 to YMM15.
pub(in crate::engine::soft) const SIZE: usize = 512 + 64 + 256;

/// The registers of one CPU.
#[derive(Debug, Clone)]
#[repr(C, align(64))]
pub(in crate::engine::soft) struct VectorState {
    /// As XSAVE stores it.
    pub(in crate::engine::soft) area: [u8; SIZE],
}

impl Default for VectorState {
    /// The state after RESET: FCW 37Fh (as after FNINIT), MXCSR 1F80h, all else zero, tags empty.
    fn default() -> Self {
        let mut area = [0; SIZE];
        area[0..2].copy_from_slice(&0x037f_u16.to_le_bytes());
        area[24..28].copy_from_slice(&0x1f80_u32.to_le_bytes());
        Self { area }
    }
}
