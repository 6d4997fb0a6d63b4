//! What `--cpu-quota` says: how many host CPUs' worth of time the guest's CPUs may use together.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Least: less than 1% of a CPU is no speed at which anything starts.
const LEAST: u32 = 10;
/// Most: [`super::MAX_CPUS`] whole CPUs.
const MOST: u32 = super::MAX_CPUS * 1000;

/// A share of the host's CPUs, in thousandths of one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuQuota(u32);

impl CpuQuota {
    /// Thousandths of a host CPU: 10 to 254,000.
    pub fn thousandths(self) -> u32 {
        self.0
    }
}

impl FromStr for CpuQuota {
    type Err = String;

    /// `150%` or `1.5`.
    fn from_str(text: &str) -> Result<Self, String> {
        let (number, scale) = text.strip_suffix('%').map_or((text, 1000.0), |percent| (percent, 10.0));
        let thousandths = number.trim().parse::<f64>().ok().map(|number| (number * scale).round());
        match thousandths.filter(|value| (f64::from(LEAST)..=f64::from(MOST)).contains(value)) {
            Some(value) => Ok(Self(value as u32)),
            None => Err(format!(
                "`{text}`: give host CPUs' worth of time, such as 50%, 200% or 0.5, 2; from {}% to {}%",
                LEAST / 10,
                MOST / 10
            )),
        }
    }
}

impl fmt::Display for CpuQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 % 10 {
            0 => write!(f, "{}%", self.0 / 10),
            tenth => write!(f, "{}.{tenth}%", self.0 / 10),
        }
    }
}

impl Serialize for CpuQuota {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CpuQuota {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = match toml::Value::deserialize(deserializer)? {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            _ => String::new(),
        };
        text.parse().map_err(|e: String| D::Error::custom(format!("cpu-quota {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_and_numbers_of_cpus_mean_the_same() {
        let cases = [("50%", 500), ("0.5", 500), ("2", 2000), ("200%", 2000), ("12.5%", 125), ("1%", 10)];
        for (text, thousandths) in cases {
            let quota: CpuQuota = text.parse().unwrap();
            assert_eq!(quota.thousandths(), thousandths, "{text}");
            assert_eq!(quota.to_string().parse(), Ok(quota));
        }
        for text in ["", "%", "0", "0.5%", "-1", "nan", "inf", "25500%", "1e9", "fast"] {
            let error = text.parse::<CpuQuota>().unwrap_err();
            assert!(error.contains("from 1% to 25400%"), "{error}");
        }
    }
}
