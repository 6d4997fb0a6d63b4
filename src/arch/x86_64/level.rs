//! What a guest's CPU can do, in the levels that compilers and distributions build for (x86-64 psABI, section 3.1.1).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::cpuid::{CpuidTable, Leaf};

/// A level of the x86-64 architecture; each has all that those below it have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum)]
pub enum CpuLevel {
    /// The baseline: SSE2.
    #[serde(rename = "x86-64-v1")]
    #[value(name = "x86-64-v1")]
    V1,
    /// SSE4.2, POPCNT, CMPXCHG16B.
    #[serde(rename = "x86-64-v2")]
    #[value(name = "x86-64-v2")]
    V2,
    /// AVX2, BMI, FMA.
    #[serde(rename = "x86-64-v3")]
    #[value(name = "x86-64-v3")]
    V3,
}

impl CpuLevel {
    /// All levels, lowest first.
    pub const ALL: [Self; 3] = [Self::V1, Self::V2, Self::V3];

    /// Name as on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1 => "x86-64-v1",
            Self::V2 => "x86-64-v2",
            Self::V3 => "x86-64-v3",
        }
    }
}

impl fmt::Display for CpuLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// No level has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no CPU level: it must be x86-64-v1, x86-64-v2 or x86-64-v3")]
pub struct UnknownLevel(String);

impl FromStr for CpuLevel {
    type Err = UnknownLevel;

    fn from_str(name: &str) -> Result<Self, UnknownLevel> {
        Self::ALL.into_iter().find(|level| level.name() == name).ok_or_else(|| UnknownLevel(name.to_string()))
    }
}

/// Registers of an answer of CPUID.
#[derive(Debug, Clone, Copy)]
enum Word {
    Ebx,
    Ecx,
    Edx,
}

impl Word {
    fn of(self, leaf: &mut Leaf) -> &mut u32 {
        match self {
            Self::Ebx => &mut leaf.ebx,
            Self::Ecx => &mut leaf.ecx,
            Self::Edx => &mut leaf.edx,
        }
    }
}

/// What levels above the baseline must have (psABI table 3.1): leaf, register, bits.
const NEEDED: &[(CpuLevel, u32, Word, &[u32])] = &[
    // SSE3, SSSE3, CMPXCHG16B, SSE4.1, SSE4.2, POPCNT; LAHF.
    (CpuLevel::V2, 1, Word::Ecx, &[0, 9, 13, 19, 20, 23]),
    (CpuLevel::V2, 0x8000_0001, Word::Ecx, &[0]),
    // FMA, MOVBE, XSAVE, AVX, F16C; BMI1, AVX2, BMI2; LZCNT.
    (CpuLevel::V3, 1, Word::Ecx, &[12, 22, 26, 28, 29]),
    (CpuLevel::V3, 7, Word::Ebx, &[3, 5, 8]),
    (CpuLevel::V3, 0x8000_0001, Word::Ecx, &[5]),
];

/// What came with or after a level without being part of it: PCLMULQDQ, AES, RDRAND, RDSEED, ADX, SHA; VAES, VPCLMULQDQ,
/// GFNI.
const BESIDE: &[(CpuLevel, u32, Word, &[u32])] = &[
    (CpuLevel::V2, 1, Word::Ecx, &[1, 25, 30]),
    (CpuLevel::V2, 7, Word::Ebx, &[18, 19, 29]),
    (CpuLevel::V3, 7, Word::Ecx, &[8, 9, 10]),
];

/// AVX-512 and AMX, which no level here has.
const BEYOND: &[(u32, Word, &[u32])] = &[
    (7, Word::Ebx, &[16, 17, 21, 26, 27, 28, 30, 31]),
    (7, Word::Ecx, &[1, 6, 11, 12, 14]),
    (7, Word::Edx, &[2, 3, 8, 22, 23, 24, 25]),
];

/// State components of XSAVE that these levels use (x87, SSE, AVX), and the size of an area for them.
const XSAVE_LEAF: u32 = 0xd;
const XSAVE_COMPONENTS: u32 = 7;
const XSAVE_SIZE: u32 = 512 + 64 + 256;

fn mask(bits: &[u32]) -> u32 {
    bits.iter().fold(0, |mask, bit| mask | 1 << bit)
}

impl CpuidTable {
    /// The highest level all of which is there.
    pub fn level(&self) -> CpuLevel {
        let has = |(_, number, word, bits): &(CpuLevel, u32, Word, &[u32])| {
            let leaf = self.0.iter().find(|leaf| leaf.leaf == *number && leaf.subleaf == 0);
            leaf.copied().is_some_and(|mut leaf| *word.of(&mut leaf) & mask(bits) == mask(bits))
        };
        let up_to = |level| NEEDED.iter().filter(|needed| needed.0 <= level).all(has);
        CpuLevel::ALL.into_iter().rev().find(|level| up_to(*level)).unwrap_or(CpuLevel::V1)
    }

    /// Hides what is not of `level` or below.
    pub fn limit(&mut self, level: CpuLevel) {
        let above = NEEDED.iter().chain(BESIDE).filter(|feature| feature.0 > level);
        let hidden = above.map(|(_, leaf, word, bits)| (*leaf, *word, *bits)).chain(BEYOND.iter().copied());
        for (number, word, bits) in hidden {
            for leaf in self.0.iter_mut().filter(|leaf| leaf.leaf == number && leaf.subleaf == 0) {
                *word.of(leaf) &= !mask(bits);
            }
        }
        let components = if level >= CpuLevel::V3 { XSAVE_COMPONENTS } else { 0 };
        self.0.retain(|leaf| leaf.leaf != XSAVE_LEAF || leaf.subleaf < 2 || components >> leaf.subleaf & 1 != 0);
        for leaf in self.0.iter_mut().filter(|leaf| leaf.leaf == XSAVE_LEAF && leaf.subleaf == 0) {
            leaf.eax &= components;
            leaf.edx = 0;
            (leaf.ebx, leaf.ecx) = if components == 0 { (0, 0) } else { (XSAVE_SIZE, XSAVE_SIZE) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hide_what_is_above_and_nothing_else() {
        let all = |leaf, subleaf| Leaf { leaf, subleaf, indexed: true, eax: !0, ebx: !0, ecx: !0, edx: !0 };
        let everything = CpuidTable(vec![
            all(1, 0),
            all(7, 0),
            all(7, 1),
            all(0xd, 0),
            all(0xd, 1),
            all(0xd, 2),
            all(0xd, 5),
            all(0x8000_0001, 0),
        ]);
        assert_eq!(everything.level(), CpuLevel::V3);
        for level in CpuLevel::ALL {
            let mut table = everything.clone();
            table.limit(level);
            assert_eq!(table.level(), level);
            let find = |number, subleaf| table.0.iter().find(|l| l.leaf == number && l.subleaf == subleaf).copied();
            assert_eq!(find(1, 0).unwrap().ecx >> 25 & 1 != 0, level >= CpuLevel::V2, "AES");
            assert_eq!(find(7, 0).unwrap().ebx >> 16 & 1, 0, "AVX-512");
            assert_eq!(find(7, 1).unwrap().ebx, !0);
            assert_eq!(find(0xd, 2).is_some(), level >= CpuLevel::V3);
            assert!(find(0xd, 5).is_none() && find(0xd, 1).is_some());
            assert_eq!(find(0xd, 0).unwrap().ecx, if level >= CpuLevel::V3 { 832 } else { 0 });
        }
    }

    #[test]
    fn names_and_order() {
        for level in CpuLevel::ALL {
            assert_eq!(level.to_string().parse(), Ok(level));
            let json = serde_json::to_string(&level).unwrap();
            assert_eq!(json, format!("\"{level}\""));
            assert_eq!(serde_json::from_str::<CpuLevel>(&json).unwrap(), level);
            let value = clap::ValueEnum::to_possible_value(&level).unwrap();
            assert_eq!(value.get_name(), level.name());
        }
        assert!(CpuLevel::V1 < CpuLevel::V2 && CpuLevel::V2 < CpuLevel::V3);
        assert_eq!("x86-64-v4".parse::<CpuLevel>().unwrap_err().to_string().find("x86-64-v4"), Some(1));
    }
}
