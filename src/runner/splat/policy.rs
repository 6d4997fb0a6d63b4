//! What a report does to its test: by its kind, unless a rule says that it is expected.

use std::collections::BTreeMap;
use std::fmt;

use regex::{Regex, RegexBuilder};
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::runner::outcome::{Action, Splat, SplatKind};

/// Bytes of memory that a compiled pattern may take: far more than sensible ones need.
const PATTERN_SIZE: usize = 1 << 20;

/// What reports do. In a file: `splats = { warning = "warn" }` and
/// `ignore-splats = ["regex", { match = "regex", case = "regex" }]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Policy {
    /// By kind. What is not named fails its test, except for taint, which is shown.
    pub splats: BTreeMap<SplatKind, Action>,
    /// What is expected: a report that one of these matches does nothing.
    pub ignore_splats: Vec<Ignore>,
}

impl Policy {
    /// What `splat` does to its test.
    pub fn action(&self, splat: &Splat) -> Action {
        if self.ignore_splats.iter().any(|rule| rule.matches(splat)) {
            return Action::Ignore;
        }
        let usual = if splat.kind == SplatKind::Taint { Action::Warn } else { Action::Fail };
        self.splats.get(&splat.kind).copied().unwrap_or(usual)
    }

    /// The case that was called `from` when `splat` was printed turns out to be called `to`.
    pub fn rename(&self, splat: &mut Splat, from: &str, to: &str) {
        let case = renamed(splat.case.clone(), from, to);
        if case != splat.case {
            splat.case = case;
            splat.action = self.action(splat);
        }
    }
}

/// What `case` is called when what is called `from` is called `to`: that itself, or what is within it.
pub(super) fn renamed(case: Option<String>, from: &str, to: &str) -> Option<String> {
    let case = case?;
    match case.strip_prefix(from) {
        Some(rest) if rest.is_empty() || rest.starts_with('/') => Some(format!("{to}{rest}")),
        _ => Some(case),
    }
}

/// A rule for expected reports, as a regular expression for title or text. In it, `^` and `$` are the ends of lines.
#[derive(Debug, Clone)]
pub struct Ignore {
    pattern: Regex,
    case: Option<Regex>,
}

impl Ignore {
    /// A rule; with `case`, only while a case with such a name is under way.
    ///
    /// # Errors
    ///
    /// What is wrong with which expression.
    pub fn new(pattern: &str, case: Option<&str>) -> Result<Self, String> {
        Ok(Self { pattern: compile(pattern)?, case: case.map(compile).transpose()? })
    }

    fn matches(&self, splat: &Splat) -> bool {
        let case = splat.case.as_deref().unwrap_or_default();
        self.case.as_ref().is_none_or(|pattern| pattern.is_match(case))
            && (self.pattern.is_match(&splat.title) || self.pattern.is_match(&splat.text))
    }

    /// The expression for title or text.
    pub fn pattern(&self) -> &str {
        self.pattern.as_str()
    }

    /// The expression for the name of the case.
    pub fn case(&self) -> Option<&str> {
        self.case.as_ref().map(Regex::as_str)
    }
}

impl PartialEq for Ignore {
    fn eq(&self, other: &Self) -> bool {
        self.pattern.as_str() == other.pattern.as_str() && self.case() == other.case()
    }
}

fn compile(pattern: &str) -> Result<Regex, String> {
    let compiled = RegexBuilder::new(pattern).multi_line(true).size_limit(PATTERN_SIZE).build();
    compiled.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => format!("the regular expression `{pattern}` is too big"),
        other => {
            // The last line says it; those before it draw the expression.
            let text = other.to_string();
            let what = text.lines().last().unwrap_or_default();
            format!("`{pattern}` is no regular expression: {}", what.strip_prefix("error: ").unwrap_or(what))
        }
    })
}

impl Serialize for Ignore {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Some(case) = self.case() else { return serializer.serialize_str(self.pattern.as_str()) };
        let mut map = serializer.serialize_map(Some(2))?;
        map.serialize_entry("match", self.pattern.as_str())?;
        map.serialize_entry("case", case)?;
        map.end()
    }
}

impl<'de> Deserialize<'de> for Ignore {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IgnoreVisitor)
    }
}

struct IgnoreVisitor;

impl<'de> Visitor<'de> for IgnoreVisitor {
    type Value = Ignore;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a regular expression or { match = .., case = .. }")
    }

    fn visit_str<E: serde::de::Error>(self, pattern: &str) -> Result<Ignore, E> {
        Ignore::new(pattern, None).map_err(E::custom)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Ignore, A::Error> {
        let (mut pattern, mut case) = (None::<String>, None::<String>);
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "match" => pattern = Some(map.next_value()?),
                "case" => case = Some(map.next_value()?),
                other => return Err(A::Error::unknown_field(other, &["match", "case"])),
            }
        }
        let pattern = pattern.ok_or_else(|| A::Error::missing_field("match"))?;
        Ignore::new(&pattern, case.as_deref()).map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splat(kind: SplatKind, title: &str, case: Option<&str>) -> Splat {
        let text = format!("{title}\nCall Trace:\n kunit_try_run_case+0x1/0x2");
        Splat { kind, title: title.into(), action: Action::Fail, case: case.map(str::to_owned), lines: (1, 3), text }
    }

    #[test]
    fn everything_fails_but_taint_unless_the_file_says_otherwise() {
        let policy: Policy = toml::from_str("splats = { warning = \"warn\", rcu-stall = \"ignore\" }").unwrap();
        let action = |policy: &Policy, kind| policy.action(&splat(kind, "x", None));
        assert_eq!(action(&policy, SplatKind::Warning), Action::Warn);
        assert_eq!(action(&policy, SplatKind::RcuStall), Action::Ignore);
        assert_eq!(action(&policy, SplatKind::Kasan), Action::Fail);
        assert_eq!(action(&policy, SplatKind::Taint), Action::Warn);
        assert_eq!(action(&Policy::default(), SplatKind::Warning), Action::Fail);
    }

    #[test]
    fn what_is_expected_is_ignored() {
        let text = "ignore-splats = [\"^WARNING in foo$\", { match = \"kunit_try\", case = \"^fault/\" }]";
        let policy: Policy = toml::from_str(text).unwrap();
        let action = |title, case| policy.action(&splat(SplatKind::Warning, title, case));
        assert_eq!(action("WARNING in foo", None), Action::Ignore);
        assert_eq!(action("WARNING in bar", None), Action::Fail);
        assert_eq!(action("WARNING in bar", Some("fault/null")), Action::Ignore);
        assert_eq!(action("WARNING in bar", Some("other")), Action::Fail);
        assert_eq!(toml::from_str::<Policy>(&toml::to_string(&policy).unwrap()).unwrap(), policy);
    }

    #[test]
    fn wrong_rules_are_named() {
        let error = |text| toml::from_str::<Policy>(text).unwrap_err().to_string();
        for (text, says) in [
            ("ignore-splats = [\"a(b\"]", "`a(b` is no regular expression: unclosed group"),
            ("ignore-splats = [{ match = \"a\", case = \"[\" }]", "`[` is no regular expression: unclosed character"),
            ("ignore-splats = [{ case = \"a\" }]", "missing field `match`"),
            ("ignore-splats = [{ match = \"a\", kase = \"a\" }]", "unknown field `kase`"),
            ("ignore-splats = [3]", "a regular expression or { match"),
            ("ignore-splats = [\"(a{1000}){1000}\"]", "`(a{1000}){1000}` is too big"),
            ("splats = { warn = \"fail\" }", "warning"),
            ("splats = { warning = \"error\" }", "ignore"),
        ] {
            assert!(error(text).contains(says), "{text}: {}", error(text));
        }
    }
}
