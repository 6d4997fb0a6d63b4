//! What a line of KTAP is, by itself (Documentation/dev-tools/ktap.rst).

use crate::runner::outcome::Status;

/// A line, without what the kernel puts before its messages.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Line<'a> {
    /// `KTAP version 1`, `TAP version 14`: a document begins, or tests within a test.
    Version { known: bool },
    /// `# Subtest: name`.
    Header(&'a str),
    /// `1..5`; `skipped` is what follows `# SKIP`.
    Plan { count: u64, skipped: Option<&'a str> },
    /// `ok 1 name # note`.
    Result(Outcome<'a>),
    /// Notes of tests, and what others print.
    Other,
}

/// What came of a test, as its line says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Outcome<'a> {
    pub ok: bool,
    pub number: u64,
    /// Empty if it says none.
    pub name: &'a str,
    /// What follows `#`: a directive, or more about the result.
    pub note: &'a str,
}

impl<'a> Line<'a> {
    pub(super) fn of(line: &'a str) -> Self {
        let line = line.trim();
        if let Some(version) = version(line) {
            return version;
        }
        if let Some(name) = line.strip_prefix("# Subtest: ") {
            return Self::Header(name);
        }
        if let Some((count, rest)) = line.strip_prefix("1..").and_then(number) {
            let skipped = rest.trim_start().strip_prefix("# ").and_then(|note| directive(note, "SKIP"));
            return Self::Plan { count, skipped };
        }
        Outcome::of(line).map_or(Self::Other, Self::Result)
    }
}

/// The line of a document's version.
fn version(line: &str) -> Option<Line<'_>> {
    let (known, number): (&[u64], _) = match line.strip_prefix("KTAP version ") {
        Some(number) => (&[1], number),
        None => (&[13, 14], line.strip_prefix("TAP version ")?),
    };
    let (number, rest) = self::number(number)?;
    rest.is_empty().then_some(Line::Version { known: known.contains(&number) })
}

/// Where in a line a version line begins that something stands before, in bytes.
pub(super) fn version_within(line: &str) -> Option<usize> {
    ["KTAP version ", "TAP version "].iter().find_map(|text| {
        let at = line.find(text)?;
        version(line.get(at..)?.trim_end()).map(|_| at)
    })
}

/// A decimal number at the beginning, and what follows it. What is too large is as large as can be.
fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at_checked(end)?;
    (!digits.is_empty()).then(|| (digits.parse().unwrap_or(u64::MAX), rest))
}

/// What follows the word at the beginning of a note, if it is this one in capitals or not.
fn directive<'a>(note: &'a str, word: &str) -> Option<&'a str> {
    let (begin, rest) = note.split_at_checked(word.len())?;
    begin.eq_ignore_ascii_case(word).then(|| rest.trim_start_matches([':', ' ']))
}

impl<'a> Outcome<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let (ok, rest) = match line.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, line.strip_prefix("ok ")?),
        };
        let (number, rest) = number(rest)?;
        if rest.is_empty() {
            return Some(Self { ok, number, name: "", note: "" });
        }
        let rest = rest.strip_prefix(' ')?;
        let rest = rest.strip_prefix("- ").unwrap_or(rest);
        if let Some(note) = rest.strip_prefix("# ") {
            return Some(Self { ok, number, name: "", note });
        }
        // Names have no `#`: such a line is somebody's prose.
        let (name, note) = match rest.split_once('#') {
            Some((name, note)) => (name.strip_suffix(' ')?, note.strip_prefix(' ')?),
            None => (rest, ""),
        };
        Some(Self { ok, number, name, note })
    }

    /// What the line means, and why, if it says.
    pub(super) fn status(&self) -> (Status, Option<&'a str>) {
        let note = self.note;
        let skip = directive(note, "SKIP").or_else(|| note.split_once(" # SKIP").map(|(_, reason)| reason.trim()));
        let (status, reason) = match skip {
            Some(reason) => (Status::Skip, reason),
            None => match (directive(note, "XFAIL"), directive(note, "TODO")) {
                (Some(reason), _) => (Status::Xfail, reason),
                (_, Some(reason)) if !self.ok => (Status::Xfail, reason),
                _ if self.ok => (Status::Pass, ""),
                _ if directive(note, "TIMEOUT").is_some() => (Status::Timeout, note),
                // ERROR too: the test could not go on in the guest, and the host is not at fault.
                _ => (Status::Fail, note),
            },
        };
        (status, (!reason.is_empty()).then_some(reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(line: &str) -> (Status, u64, &str, Option<&str>) {
        match Line::of(line) {
            Line::Result(outcome) => {
                let (status, reason) = outcome.status();
                (status, outcome.number, outcome.name, reason)
            }
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn results_say_what_came_of_it() {
        let name = "selftests: timers: posix_timers";
        assert_eq!(result("ok 1 a b"), (Status::Pass, 1, "a b", None));
        assert_eq!(result("\tnot ok 12 - a"), (Status::Fail, 12, "a", None));
        assert_eq!(result("ok 1 selftests: timers: posix_timers # SKIP"), (Status::Skip, 1, name, None));
        assert_eq!(
            result("not ok 2 selftests: timers: posix_timers # TIMEOUT 45 seconds"),
            (Status::Timeout, 2, name, Some("TIMEOUT 45 seconds"))
        );
        assert_eq!(result("not ok 3 a # exit=1"), (Status::Fail, 3, "a", Some("exit=1")));
        assert_eq!(result("ok 3 a # rcode=0"), (Status::Pass, 3, "a", None));
        assert_eq!(result("not ok 3 a # skip: no device"), (Status::Skip, 3, "a", Some("no device")));
        assert_eq!(result("ok 3 a # exit=4 # SKIP x"), (Status::Skip, 3, "a", Some("x")));
        assert_eq!(result("ok 3 # SKIP no device"), (Status::Skip, 3, "", Some("no device")));
        assert_eq!(result("not ok 3 a # TODO later"), (Status::Xfail, 3, "a", Some("later")));
        assert_eq!(result("ok 3 a # TODO later"), (Status::Pass, 3, "a", None));
        assert_eq!(result("ok 3 a # XFAIL known"), (Status::Xfail, 3, "a", Some("known")));
        assert_eq!(result("not ok 3 a # ERROR no memory"), (Status::Fail, 3, "a", Some("ERROR no memory")));
        assert_eq!(result("ok 99999999999999999999"), (Status::Pass, u64::MAX, "", None));
    }

    #[test]
    fn the_other_lines_are_told_apart() {
        assert_eq!(Line::of("  KTAP version 1"), Line::Version { known: true });
        assert_eq!(Line::of("TAP version 13\r"), Line::Version { known: true });
        assert_eq!(Line::of("KTAP version 2"), Line::Version { known: false });
        assert_eq!(Line::of("    # Subtest: a b"), Line::Header("a b"));
        assert_eq!(Line::of("1..12"), Line::Plan { count: 12, skipped: None });
        assert_eq!(Line::of("1..0 # SKIP no root"), Line::Plan { count: 0, skipped: Some("no root") });
        for text in [
            "",
            "ok",
            "okay 1",
            "ok a",
            "ok 1a",
            "not ok",
            "ok 1 a#b",
            "ok 1 a #b",
            "# ok 1 a",
            "KTAP version x",
            "1..",
        ] {
            assert_eq!(Line::of(text), Line::Other, "{text}");
        }
        assert_eq!(version_within("12:00:01 TAP version 14"), Some(9));
        assert_eq!(version_within("TAP version fourteen"), None);
    }
}
