//! What a guest's CPU can do, in the levels that compilers and distributions build for (x86-64 psABI, section 3.1.1).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

#[cfg(test)]
mod tests {
    use super::*;

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
