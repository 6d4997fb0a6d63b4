//! How a machine is debugged from outside, as flags and specification files say it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Where a debugger is awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DebugAddress {
    /// TCP port of 127.0.0.1; 0: any that is free.
    Port(u16),
    /// Path of a UNIX socket, for this user alone.
    Unix(PathBuf),
}

impl fmt::Display for DebugAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for DebugAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text.strip_prefix("unix:"), text.parse()) {
            (Some(path), _) if !path.is_empty() => Ok(Self::Unix(path.into())),
            (None, Ok(port)) => Ok(Self::Port(port)),
            _ => Err(format!("`{text}` is no place to wait for gdb; write a port such as 1234, or unix:PATH")),
        }
    }
}

impl Serialize for DebugAddress {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DebugAddress {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        super::scalar(&toml::Value::deserialize(deserializer)?).unwrap_or_default().parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::MachineSpec;

    #[test]
    fn ports_and_paths() {
        assert_eq!("1234".parse(), Ok(DebugAddress::Port(1234)));
        assert_eq!("unix:/run/x".parse(), Ok(DebugAddress::Unix("/run/x".into())));
        for wrong in ["", "unix:", "65536", "localhost:5", "/run/x"] {
            assert!(
                wrong.parse::<DebugAddress>().unwrap_err().contains("a port such as 1234, or unix:PATH"),
                "{wrong}"
            );
        }
        let spec = MachineSpec::from_toml("gdb = 1234\ngdb-on-crash = \"unix:x\"\n").unwrap();
        assert_eq!(
            (spec.gdb, spec.gdb_on_crash),
            (Some(DebugAddress::Port(1234)), Some(DebugAddress::Unix("x".into())))
        );
    }
}
