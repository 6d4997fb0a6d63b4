//! What shall come of a test: what is expected, which complaints of the kernel matter, what is kept.

use std::collections::BTreeMap;
use std::path::PathBuf;

use regex::Regex;
use serde::{Deserialize, Serialize};
use toml::Value;

use crate::runner::outcome::{Action, SplatKind};

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

/// A complaint of the kernel that does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "IgnoreText")]
pub struct Ignore {
    /// Regular expression that is found in the complaint's title.
    pub title: String,
    /// Pattern (`*`, `?`) of the cases in which it does not matter; in all, if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "write a regular expression, or { title = \"REGEX\", case = \"PATTERN\" }")]
enum IgnoreText {
    Title(String),
    #[serde(rename_all = "kebab-case")]
    Table {
        title: String,
        #[serde(default)]
        case: Option<String>,
    },
}

impl From<IgnoreText> for Ignore {
    fn from(text: IgnoreText) -> Self {
        match text {
            IgnoreText::Title(title) => Self { title, case: None },
            IgnoreText::Table { title, case } => Self { title, case },
        }
    }
}

/// What any table may say of its tests, beside how they run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
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
    /// What is wrong, as far as the types do not tell.
    pub(super) fn mistake(&self) -> Option<String> {
        let title = self.ignore_splats.iter().find_map(|ignore| Regex::new(&ignore.title).err());
        if let Some(error) = title {
            let line = error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            return Some(format!("`ignore-splats`: not a regular expression: {line}"));
        }
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
    fn complaints_are_ignored_by_title_and_case() {
        let rules: Rules = toml::from_str(
            "splats = { rcu-stall = \"warn\" }\nignore-splats = [\"WARNING in foo\", { title = \"^BUG\", case = \"a/*\" }]",
        )
        .unwrap();
        assert_eq!(rules.splats.get(&SplatKind::RcuStall), Some(&Action::Warn));
        let case = rules.ignore_splats.iter().map(|ignore| ignore.case.as_deref()).collect::<Vec<_>>();
        assert_eq!(case, [None, Some("a/*")]);
        assert_eq!(rules.mistake(), None);
        let mistake = |text: &str| toml::from_str::<Rules>(text).unwrap().mistake().unwrap();
        assert!(mistake("ignore-splats = [\"(\"]").contains("unclosed group"));
        assert!(mistake("artifacts = [\"tmp\"]").contains("absolute"));
        assert!(mistake("expected-failures = [\"\"]").contains("SUITE/CASE"));
    }
}
