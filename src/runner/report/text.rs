//! Guests' text made harmless; numbers and times as people write them.

use chrono::{DateTime, TimeDelta, Utc};

use crate::runner::console::plain;
use crate::runner::outcome::Counts;

/// On one line, without anything that does something to a terminal or to the order of characters. Tabs become blanks.
pub(super) fn line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for character in plain(text.replace(['\n', '\r'], " ").as_bytes()).chars() {
        match character {
            '\t' => line.push_str("    "),
            // Overrides of the direction of text, and what is no character in XML.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{fffe}' | '\u{ffff}' => {}
            other => line.push(other),
        }
    }
    line
}

/// The same, of `limit` characters at most.
pub(super) fn short(text: &str, limit: usize) -> String {
    let line = line(text);
    match line.char_indices().nth(limit) {
        Some((end, _)) => line.get(..end).unwrap_or_default().to_string() + "…",
        None => line,
    }
}

/// The same as [`line`] for each of several lines; none is empty at the end.
pub(super) fn lines(text: &str) -> String {
    let lines: Vec<String> = text.split('\n').map(|part| line(part.trim_end_matches('\r'))).collect();
    lines.join("\n").trim_end().to_string()
}

/// The first `count` lines of `text`, made harmless.
pub(super) fn first_lines(text: &str, count: usize) -> String {
    lines(text).lines().take(count).collect::<Vec<_>>().join("\n")
}

/// The last `count` lines of `text`, made harmless.
pub(super) fn last_lines(text: &str, count: usize) -> String {
    let text = lines(text);
    let skipped = text.lines().count().saturating_sub(count);
    text.lines().skip(skipped).collect::<Vec<_>>().join("\n")
}

/// The end of `text`, of `limit` bytes at most, from the beginning of a line if there is one.
pub(super) fn last_bytes(text: &str, limit: usize) -> &str {
    if text.len() <= limit {
        return text;
    }
    let from = text.ceil_char_boundary(text.len().saturating_sub(limit));
    let end = text.get(from..).unwrap_or_default();
    end.split_once('\n').map_or(end, |(_, rest)| rest)
}

/// `otherwise` where there is no text.
pub(super) fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

/// How long something took: `12 ms`, `3.2 s`, `4 min 05 s`, `2 h 03 min`.
pub(super) fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    match seconds {
        seconds if seconds < 0.0995 => format!("{:.0} ms", seconds.max(0.0) * 1e3),
        seconds if seconds < 99.95 => format!("{seconds:.1} s"),
        _ if whole < 3_600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3_600, whole / 60 % 60),
    }
}

/// The moment `seconds` after `began`, which is in seconds since 1970.
pub(super) fn moment(began: u64, seconds: f64) -> DateTime<Utc> {
    let began = i64::try_from(began).ok().and_then(|began| DateTime::from_timestamp(began, 0)).unwrap_or_default();
    let later = TimeDelta::milliseconds((seconds * 1e3) as i64);
    began.checked_add_signed(later).unwrap_or(began)
}

/// `3 passed, 1 skipped, 2 failed`: those that are there.
pub(super) fn counts(counts: &Counts) -> String {
    let words = [
        (counts.pass, "passed"),
        (counts.skip, "skipped"),
        (counts.xfail, "failed as expected"),
        (counts.fail, "failed"),
        (counts.timeout, "timed out"),
        (counts.crash, "crashed"),
        (counts.error, "not judged"),
    ];
    let there: Vec<String> =
        words.into_iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
    if there.is_empty() { "none".to_string() } else { there.join(", ") }
}

/// `1 test`, `2 tests`.
pub(super) fn number(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_text_is_harmless() {
        assert_eq!(line("a\nb\r\u{1b}[31mc\u{7}\t\u{202e}d\u{ffff}\0"), "a b c    d");
        assert_eq!(lines("a\r\n\u{1b}]0;x\u{7}b\n\n"), "a\nb");
        assert_eq!((short("a\näb", 3), short("äb", 2)), ("a ä…".into(), "äb".into()));
        assert_eq!(last_lines("1\n2\n3\n", 2), "2\n3");
        assert_eq!(last_lines("", 2), "");
    }

    #[test]
    fn ends_are_cut_between_characters_and_lines() {
        assert_eq!(last_bytes("one\ntwo\nthree", 9), "three");
        assert_eq!(last_bytes("ääää", 3), "ä");
        assert_eq!(last_bytes("short", 100), "short");
    }

    #[test]
    fn times_are_as_people_write_them() {
        let written = [0.0, 0.0123, 3.21, 99.94, 245.2, 7_384.0, -1.0].map(duration);
        assert_eq!(written, ["0 ms", "12 ms", "3.2 s", "99.9 s", "4 min 05 s", "2 h 03 min", "0 ms"]);
        assert_eq!(moment(1_795_392_000, 1.5).to_rfc3339(), "2026-11-23T00:00:01.500+00:00");
        moment(u64::MAX, f64::INFINITY);
    }

    #[test]
    fn counts_name_what_is_there() {
        assert_eq!(counts(&Counts { pass: 3, crash: 1, ..Counts::default() }), "3 passed, 1 crashed");
        assert_eq!((counts(&Counts::default()).as_str(), number(1, "case").as_str()), ("none", "1 case"));
    }
}
