//! What `--trace` and the table `trace` say.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::devices::{Key, OptionError, Options};
use crate::engine::trace::{Keep, Trace};

/// Keys of the flag; in a file they are those of the table.
pub const KEYS: &[Key] = &[
    Key { name: "path", value: "FILE", about: "where the trace is written, as text" },
    Key { name: "last", value: "N", about: "the last N blocks, when the machine ends (default 10000)" },
    Key { name: "all", value: "on|off", about: "all blocks, as they are executed (default off)" },
    Key { name: "sums", value: "N", about: "only a sum over all registers, every N instructions" },
    Key { name: "from", value: "N", about: "begin when N instructions were executed (default 0)" },
    Key { name: "to", value: "N", about: "end when N instructions were executed (default never)" },
];

/// Blocks of a ring unless said otherwise.
const LAST: u64 = 10_000;
/// A block of the ring takes some 250 bytes.
const MOST: u64 = 10_000_000;

/// A trace that a machine shall write.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceSpec {
    /// The file.
    pub path: PathBuf,
    /// The last so many blocks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<u64>,
    /// All blocks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
    /// Sums, about every so many instructions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sums: Option<u64>,
    /// Number of executed instructions at which it begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
    /// Number of executed instructions at which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<u64>,
}

impl TraceSpec {
    /// From the text of the flag.
    pub fn from_flag(text: &str) -> Result<Self, OptionError> {
        let options = Options::from_flag("trace", KEYS, text)?;
        let number = |key| match options.text(key) {
            None => Ok(None),
            Some(_) => options.number(key, 0, 0..=u64::MAX).map(Some),
        };
        let (last, sums, from, to) = (number("last")?, number("sums")?, number("from")?, number("to")?);
        let all = options.switch("all", false)?;
        Ok(Self { path: PathBuf::from(options.required("path")?), last, all, sums, from, to })
    }

    /// What is wrong with it, if anything.
    pub(super) fn mistake(&self) -> Option<String> {
        let kinds = usize::from(self.all) + usize::from(self.last.is_some()) + usize::from(self.sums.is_some());
        if kinds > 1 {
            return Some("last, all and sums: choose one".into());
        }
        match (self.last, self.sums) {
            (Some(last), _) if !(1..=MOST).contains(&last) => Some(format!("last={last}: give 1 to {MOST}")),
            (_, Some(0)) => Some("sums=0: give at least 1".into()),
            _ => None,
        }
    }

    /// The same for an engine, with the file made.
    pub(crate) fn open(&self) -> io::Result<Trace> {
        let keep = match (self.sums, self.all) {
            (Some(every), _) => Keep::Sums(every),
            (None, true) => Keep::All,
            (None, false) => Keep::Last(usize::try_from(self.last.unwrap_or(LAST)).unwrap_or(usize::MAX)),
        };
        let range = self.from.unwrap_or(0)..self.to.unwrap_or(u64::MAX);
        Ok(Trace { file: File::create(&self.path)?, keep, range })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_traces() {
        let keep = |text: &str| {
            let dir = tempfile::tempdir().unwrap();
            let spec = TraceSpec::from_flag(&format!("{}/t{text}", dir.path().display())).unwrap();
            assert_eq!(spec.mistake(), None);
            let trace = spec.open().unwrap();
            (trace.keep, trace.range)
        };
        assert_eq!(keep(""), (Keep::Last(10_000), 0..u64::MAX));
        assert_eq!(keep(",all,from=5,to=9"), (Keep::All, 5..9));
        assert_eq!(keep(",last=7"), (Keep::Last(7), 0..u64::MAX));
        assert_eq!(keep(",sums=1000"), (Keep::Sums(1000), 0..u64::MAX));
        let mistake = |text: &str| TraceSpec::from_flag(text).unwrap().mistake().unwrap();
        assert!(mistake("t,all,last=3").contains("choose one"));
        assert!(mistake("t,last=0").contains("1 to") && mistake("t,sums=0").contains("at least 1"));
        assert!(TraceSpec::from_flag("all").is_err(), "no file");
        assert!(TraceSpec::from_flag("t,from=x").is_err() && TraceSpec::from_flag("").is_err());
    }
}
