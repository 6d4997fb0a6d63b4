//! Operand widths: the integer types that instructions work on.

/// An operand width: `u8`, `u16`, `u32` or `u64`.
pub(super) trait Width: Copy + Eq + Ord + Default + std::fmt::LowerHex + 'static {
    /// Bytes.
    const BYTES: u64;
    /// Bits.
    const BITS: u32;
    /// Zero-extended.
    fn to_u64(self) -> u64;
    /// Sign-extended.
    fn to_i64(self) -> i64;
    /// The low bits of `value`.
    fn from_u64(value: u64) -> Self;
}

macro_rules! widths {
    ($($unsigned:ty, $signed:ty;)*) => { $(
        impl Width for $unsigned {
            const BYTES: u64 = size_of::<$unsigned>() as u64;
            const BITS: u32 = <$unsigned>::BITS;
            #[inline(always)]
            fn to_u64(self) -> u64 {
                self as u64
            }
            #[inline(always)]
            fn to_i64(self) -> i64 {
                self as $signed as i64
            }
            #[inline(always)]
            fn from_u64(value: u64) -> Self {
                value as $unsigned
            }
        }
    )* };
}

widths! { u8, i8; u16, i16; u32, i32; u64, i64; }
