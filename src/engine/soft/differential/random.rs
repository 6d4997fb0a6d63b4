//! Random numbers and the values that instructions find difficult: limits of integers, special floating-point numbers.

/// A small generator of pseudo-random numbers (xorshift64*).
#[derive(Debug, Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give neighbouring sequences, and zero is a fixed point.
        let mixed = (seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        Self((mixed ^ mixed >> 29) | 1)
    }

    pub fn u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `limit` - 1.
    pub fn below(&mut self, limit: u64) -> u64 {
        ((self.u64() >> 32) * limit) >> 32
    }

    /// True in one case of `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of `from`, which must not be empty.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer, often near a limit.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => self.pick(&[0, 1, u64::MAX, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 2, 10, 0x8000_0000_0000_0000]),
            1 => 1 << self.below(64),
            2 => (1u64 << self.below(64)).wrapping_sub(1),
            3 => !(1u64 << self.below(64)).wrapping_sub(1),
            4 => self.below(256),
            5 => self.u64() & self.u64() & self.u64(),
            _ => self.u64(),
        }
    }

    /// Bits of a single-precision number.
    pub fn single(&mut self) -> u32 {
        const SPECIAL: &[u32] = &[
            0x0000_0000, // 0
            0x3f80_0000, // 1
            0x3f00_0000, // 0.5
            0x3fc0_0000, // 1.5
            0x4020_0000, // 2.5
            0x7f80_0000, // infinity
            0x7fc0_0000, // quiet NaN
            0x7fc1_2345, // another
            0x7f80_0001, // signalling NaN
            0x7fbf_ffff, // another
            0x0000_0001, // least denormal
            0x007f_ffff, // largest denormal
            0x0080_0000, // least normal
            0x7f7f_ffff, // largest
            0x4f00_0000, // 2^31
            0x4eff_ffff, // below 2^31
            0x5f00_0000, // 2^63
            0x4700_0000, // 2^15
            0x477f_e000, // largest half
            0x477f_f000, // rounds to infinity as a half
            0x3300_0000, // 2^-25
        ];
        let sign = (self.u64() as u32) & 0x8000_0000;
        match self.below(4) {
            0 | 1 => self.pick(SPECIAL) ^ sign,
            // Of middling size.
            2 => (self.u64() as u32 & 0x07ff_ffff).wrapping_add(0x3c00_0000) ^ sign,
            _ => self.u64() as u32,
        }
    }

    /// Bits of a double-precision number.
    pub fn double(&mut self) -> u64 {
        const SPECIAL: &[u64] = &[
            0,
            0x3ff0_0000_0000_0000, // 1
            0x3fe0_0000_0000_0000, // 0.5
            0x3ff8_0000_0000_0000, // 1.5
            0x4004_0000_0000_0000, // 2.5
            0x7ff0_0000_0000_0000, // infinity
            0x7ff8_0000_0000_0000, // quiet NaN
            0x7ff8_0000_1234_5678, // another
            0x7ff0_0000_0000_0001, // signalling NaN
            0x7ff7_ffff_ffff_ffff, // another
            0x0000_0000_0000_0001, // least denormal
            0x000f_ffff_ffff_ffff, // largest denormal
            0x0010_0000_0000_0000, // least normal
            0x7fef_ffff_ffff_ffff, // largest
            0x41e0_0000_0000_0000, // 2^31
            0x41df_ffff_ffff_ffff, // below 2^31
            0x43e0_0000_0000_0000, // 2^63
            0x47f0_0000_0000_0000, // above the largest single
            0x36a0_0000_0000_0000, // the least single denormal
            0x3ff0_0000_1000_0000, // halfway between singles
        ];
        let sign = self.u64() & 1 << 63;
        match self.below(4) {
            0 | 1 => self.pick(SPECIAL) ^ sign,
            2 => (self.u64() & 0x00ff_ffff_ffff_ffff).wrapping_add(0x3f80_0000_0000_0000) ^ sign,
            _ => self.u64(),
        }
    }

    /// An x87 register: ten bytes.
    pub fn extended(&mut self) -> [u8; 10] {
        const SPECIAL: &[(u16, u64)] = &[
            (0, 0),
            (0x3fff, 0x8000_0000_0000_0000), // 1
            (0x3ffe, 0x8000_0000_0000_0000), // 0.5
            (0x4000, 0xa000_0000_0000_0000), // 2.5
            (0x3fff, 0xc000_0000_0000_0000), // 1.5
            (0x7fff, 0x8000_0000_0000_0000), // infinity
            (0x7fff, 0xc000_0000_0000_0000), // quiet NaN
            (0x7fff, 0xc000_0000_0000_1234), // another
            (0x7fff, 0x8000_0000_0000_0001), // signalling NaN
            (0x7fff, 0xbfff_ffff_ffff_ffff), // another
            (0x7fff, 0),                     // pseudo-infinity
            (0x7fff, 1),                     // pseudo-NaN
            (0x4000, 1),                     // unnormal
            (0, 0x8000_0000_0000_0000),      // pseudo-denormal
            (0, 1),                          // least denormal
            (1, 0x8000_0000_0000_0000),      // least normal
            (0x7ffe, u64::MAX),              // largest
            (0x401e, 0x8000_0000_0000_0000), // 2^31
            (0x403e, 0x8000_0000_0000_0000), // 2^63
            (0x403d, u64::MAX),              // below 2^63
            (0x403a, 0xde0b_6b3a_763f_fff0), // largest BCD
            (0x4000, 0xc90f_daa2_2168_c235), // pi
        ];
        let sign = (self.u64() as u16) & 0x8000;
        let (exponent, significand) = match self.below(4) {
            0 | 1 => self.pick(SPECIAL),
            2 => (0x3fc0 + self.below(0x80) as u16, self.u64() | 1 << 63),
            _ => (self.u64() as u16, self.u64()),
        };
        let mut bytes = [0; 10];
        bytes[..8].copy_from_slice(&significand.to_le_bytes());
        bytes[8..].copy_from_slice(&(exponent ^ sign).to_le_bytes());
        bytes
    }

    /// Fills `to` with one kind of value.
    pub fn fill(&mut self, to: &mut [u8]) {
        let kind = self.below(5);
        for lane in to.chunks_mut(8) {
            let value = match kind {
                0 => self.double(),
                1 => u64::from(self.single()) | u64::from(self.single()) << 32,
                2 => self.integer(),
                3 => u64::from_le_bytes([(); 8].map(|()| self.pick(&[0, 1, 0x7f, 0x80, 0x81, 0xff, 0x20, 0x41]))),
                _ => self.u64(),
            };
            lane.copy_from_slice(&value.to_le_bytes()[..lane.len()]);
        }
    }
}
