//! Numbers that look random and are the same in each run: for machines whose runs can be repeated. No secret of anybody's
//! may depend on them.

/// A stream of numbers (splitmix64: Steele, Lea, Flood, 2014).
#[derive(Debug, Clone)]
pub struct Seeded(u64);

/// The golden ratio in 64 bits.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Seeded {
    /// The stream of `seed` for the user called `name`: each gets another one.
    pub fn new(seed: u64, name: &str) -> Self {
        let start = Self(seed).next();
        Self(name.bytes().fold(start, |state, byte| Self(state ^ u64::from(byte)).next()))
    }

    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(8) {
            let number = self.next().to_le_bytes();
            piece.iter_mut().zip(number).for_each(|(to, from)| *to = from);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_differ_by_seed_and_name_and_repeat() {
        // The first numbers of splitmix64 from 1234567, as its authors' code gives them.
        let mut plain = Seeded(1_234_567);
        assert_eq!([plain.next(), plain.next()], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
        let first = |seed, name| {
            let mut bytes = [0; 13];
            Seeded::new(seed, name).fill(&mut bytes);
            bytes
        };
        assert_eq!(first(1, "rng"), first(1, "rng"));
        assert!(first(1, "rng") != first(2, "rng") && first(1, "rng") != first(1, "cpu"));
    }
}
