//! The status flags, kept the way the host's CPU hands them out: `lahf` leaves SF ZF AF PF CF in AH, `seto al` adds OF.
//! Arithmetic runs on the host's own instructions, so flags are exact, undefined ones included, and never lazy.

/// Status flags: bit 15 SF, 14 ZF, 12 AF, 10 PF, 8 CF, 0 OF; bit 9 is one, as in RFLAGS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Flags(pub(super) u16);

/// Status flags and DF within RFLAGS (SDM volume 1, 3.4.3).
pub(super) mod rflags {
    pub(crate) const CF: u64 = 1;
    pub(crate) const FIXED: u64 = 1 << 1;
    pub(crate) const PF: u64 = 1 << 2;
    pub(crate) const AF: u64 = 1 << 4;
    pub(crate) const ZF: u64 = 1 << 6;
    pub(crate) const SF: u64 = 1 << 7;
    pub(crate) const TF: u64 = 1 << 8;
    pub(crate) const IF: u64 = 1 << 9;
    pub(crate) const DF: u64 = 1 << 10;
    pub(crate) const OF: u64 = 1 << 11;
    pub(crate) const IOPL: u64 = 3 << 12;
    pub(crate) const NT: u64 = 1 << 14;
    pub(crate) const RF: u64 = 1 << 16;
    pub(crate) const VM: u64 = 1 << 17;
    pub(crate) const AC: u64 = 1 << 18;
    pub(crate) const VIF: u64 = 1 << 19;
    pub(crate) const VIP: u64 = 1 << 20;
    pub(crate) const ID: u64 = 1 << 21;
    /// All six status flags.
    pub(crate) const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
}

impl Flags {
    pub(super) const CF: u16 = 1 << 8;
    pub(super) const PF: u16 = 1 << 10;
    pub(super) const AF: u16 = 1 << 12;
    pub(super) const ZF: u16 = 1 << 14;
    pub(super) const SF: u16 = 1 << 15;
    pub(super) const OF: u16 = 1;

    /// From the status bits of an RFLAGS value.
    pub(super) const fn from_rflags(value: u64) -> Self {
        Self(((value & 0xd5) as u16 | 2) << 8 | (value >> 11 & 1) as u16)
    }

    /// As status bits of RFLAGS; all other bits are zero.
    pub(super) const fn to_rflags(self) -> u64 {
        ((self.0 >> 8) & 0xd5) as u64 | ((self.0 & 1) as u64) << 11
    }

    #[inline(always)]
    pub(super) const fn carry(self) -> bool {
        self.0 & Self::CF != 0
    }

    /// Replaces the flags of `mask` (bits as in this type).
    #[inline(always)]
    pub(super) fn set(&mut self, mask: u16, on: bool) {
        self.0 = if on { self.0 | mask } else { self.0 & !mask };
    }

    /// Whether condition `C` (0 to 15, the low four bits of Jcc, SETcc, CMOVcc; SDM volume 1, appendix B) holds.
    #[inline(always)]
    pub(super) const fn holds<const C: u8>(self) -> bool {
        let f = self.0;
        let less = (f >> 15 ^ f) & 1 != 0;
        let base = match C >> 1 {
            0 => f & Self::OF != 0,
            1 => f & Self::CF != 0,
            2 => f & Self::ZF != 0,
            3 => f & (Self::CF | Self::ZF) != 0,
            4 => f & Self::SF != 0,
            5 => f & Self::PF != 0,
            6 => less,
            _ => less || f & Self::ZF != 0,
        };
        base != (C & 1 != 0)
    }
}

impl Default for Flags {
    fn default() -> Self {
        Self::from_rflags(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversion_is_exact() {
        for bits in 0..64u64 {
            let value = [0, 2, 4, 6, 7, 11].iter().enumerate().map(|(i, bit)| (bits >> i & 1) << bit).sum();
            assert_eq!(Flags::from_rflags(value).to_rflags(), value);
            assert_eq!(Flags::from_rflags(value | !rflags::STATUS).to_rflags(), value);
        }
    }

    #[test]
    fn conditions() {
        let f = |value| Flags::from_rflags(value);
        assert!(f(rflags::OF).holds::<0>() && f(0).holds::<1>());
        assert!(f(rflags::CF).holds::<2>() && f(rflags::CF).holds::<6>() && !f(rflags::CF).holds::<7>());
        assert!(f(rflags::ZF).holds::<4>() && f(rflags::ZF).holds::<6>() && f(rflags::ZF).holds::<14>());
        assert!(f(rflags::SF).holds::<8>() && f(rflags::SF).holds::<12>() && !f(rflags::SF | rflags::OF).holds::<12>());
        assert!(f(rflags::PF).holds::<10>() && f(rflags::SF | rflags::OF).holds::<15>());
    }
}
