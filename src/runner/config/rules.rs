//! What shall come of a test: what is expected, which complaints of the kernel matter, what is kept.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use toml::Value;

use super::pattern::Pattern;
use crate::runner::outcome::{Action, Case, SplatKind, Status};
use crate::runner::splat::{Ignore, Policy};

/// What a test shall come to; anything else is a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// Everything passes.
    #[default]
    Pass,
    /// A failure: then the test has failed as expected, and a success is a failure.
    Fail,
    /// The kernel crashes.
    Crash,
    /// The time limit passes.
    Timeout,
    /// The command ends with this status.
    Status(u8),
}

impl Expect {
    pub(super) fn from_toml(value: &Value) -> Result<Self, String> {
        let status = value.as_table().filter(|table| table.len() == 1).and_then(|table| table.get("status"));
        match (value.as_str(), status.and_then(Value::as_integer)) {
            (Some("pass"), _) => Ok(Self::Pass),
            (Some("fail"), _) => Ok(Self::Fail),
            (Some("crash"), _) => Ok(Self::Crash),
            (Some("timeout"), _) => Ok(Self::Timeout),
            (_, Some(number)) if u8::try_from(number).is_ok() => Ok(Self::Status(number as u8)),
            _ => Err("`expect`: write \"pass\", \"fail\", \"crash\", \"timeout\" or { status = 0..255 }".into()),
        }
    }
}

/// What any table may say of its tests, beside how they run.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Rules {
    /// What complaints of the kernel do to the test, if it is not the usual.
    pub splats: BTreeMap<SplatKind, Action>,
    /// Those that do not matter.
    pub ignore_splats: Vec<Ignore>,
    /// How often a test is tried again that belljar or the host did not let run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_infra: Option<u32>,
    /// Files and directories of the guest that are kept: absolute paths.
    pub artifacts: Vec<PathBuf>,
    /// Cases that fail as is known: patterns of `SUITE/CASE`.
    pub expected_failures: Vec<String>,
    /// Directory of the host with installed kselftests.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kselftest_dir: Option<PathBuf>,
}

impl Rules {
    /// What complaints of the kernel do.
    pub fn policy(&self) -> Policy {
        Policy { splats: self.splats.clone(), ignore_splats: self.ignore_splats.clone() }
    }

    /// Cases that fail as is known have failed as expected.
    pub fn expect_failures(&self, cases: &mut [Case]) {
        let patterns: Vec<_> = self.expected_failures.iter().map(|text| Pattern::new(text)).collect();
        for case in cases.iter_mut().filter(|case| case.status == Status::Fail) {
            let name = case.name();
            if patterns.iter().any(|pattern| pattern.matches(&name)) {
                case.status = Status::Xfail;
            }
        }
    }

    /// What is wrong, as far as the types do not tell.
    pub(super) fn mistake(&self) -> Option<String> {
        if let Some(path) = self.artifacts.iter().find(|path| !path.is_absolute()) {
            return Some(format!("`artifacts`: {}: give an absolute path of the guest", path.display()));
        }
        let empty = self.expected_failures.iter().any(String::is_empty);
        empty.then(|| "`expected-failures`: an empty name; write SUITE/CASE".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_expected() {
        let expect = |text: &str| Expect::from_toml(text.parse::<toml::Table>().unwrap().get("x").unwrap());
        assert_eq!(expect("x = \"crash\""), Ok(Expect::Crash));
        assert_eq!(expect("x = { status = 4 }"), Ok(Expect::Status(4)));
        for bad in ["x = \"maybe\"", "x = 1", "x = { status = 256 }", "x = { status = 1, more = 2 }"] {
            assert!(expect(bad).unwrap_err().contains("timeout"), "{bad}");
        }
    }

    #[test]
    fn rules_are_read_and_looked_at() {
        let rules: Rules =
            toml::from_str("splats = { rcu-stall = \"warn\" }\nignore-splats = [\"WARNING in foo\"]").unwrap();
        assert_eq!(rules.policy().splats.get(&SplatKind::RcuStall), Some(&Action::Warn));
        assert_eq!((rules.policy().ignore_splats.len(), rules.mistake()), (1, None));
        let mistake = |text: &str| toml::from_str::<Rules>(text).unwrap().mistake().unwrap();
        assert!(mistake("artifacts = [\"tmp\"]").contains("absolute"));
        assert!(mistake("expected-failures = [\"\"]").contains("SUITE/CASE"));
    }

    #[test]
    fn known_failures_are_expected_by_their_names() {
        let case = |path: [&str; 2], status| Case {
            path: path.map(str::to_owned).to_vec(),
            status,
            message: None,
            seconds: None,
            log: String::new(),
        };
        let rules = Rules { expected_failures: vec!["net/*".into()], ..Rules::default() };
        let mut cases = [
            case(["net", "tls"], Status::Fail),
            case(["mm", "tls"], Status::Fail),
            case(["net", "udp"], Status::Crash),
            case(["net", "tcp"], Status::Pass),
        ];
        rules.expect_failures(&mut cases);
        let statuses = cases.map(|case| case.status);
        assert_eq!(statuses, [Status::Xfail, Status::Fail, Status::Crash, Status::Pass]);
    }
}
