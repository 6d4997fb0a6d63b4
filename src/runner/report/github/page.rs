//! The page of a step: Markdown for `GITHUB_STEP_SUMMARY`.

use std::fmt::Write;

use crate::runner::outcome::{Action, Outcome, Status, TestResult};
use crate::runner::report::matrix::Matrix;
use crate::runner::report::text;

/// Lines of each log.
const TAIL: usize = 40;

/// Bytes of the page, without the last failure: GitHub takes 1 MiB.
const LIMIT: usize = 900 << 10;

/// Tests by kernel and machine as a table, and what failed with the ends of its logs.
pub fn summary(outcome: &Outcome) -> String {
    let counts = outcome.counts();
    let mut page = format!("### belljar: {}\n\n", text::counts(&counts));
    let cases = outcome.case_counts();
    let _ = writeln!(
        page,
        "{}, {}, {}\n",
        text::number(counts.total(), "test"),
        text::number(cases.total(), "case"),
        text::duration(outcome.seconds)
    );
    page += &table(outcome);
    let bad: Vec<&TestResult> = outcome.tests.iter().filter(|test| !test.status.is_good()).collect();
    for (shown, test) in bad.iter().enumerate() {
        if page.len() > LIMIT {
            let _ = writeln!(page, "\nand {} more", bad.len().saturating_sub(shown));
            break;
        }
        page += &failure(test);
    }
    if !outcome.not_run.is_empty() {
        let names: Vec<String> = outcome.not_run.iter().map(|id| words(id)).collect();
        let _ = writeln!(page, "\nNot run: {}", names.join(", "));
    }
    page
}

fn table(outcome: &Outcome) -> String {
    let matrix = Matrix::of(outcome);
    let heads: Vec<String> = matrix.places.iter().map(|place| words(place)).collect();
    let mut table = format!("| test | {} |\n| --- |{}\n", heads.join(" | "), " --- |".repeat(heads.len()));
    for (name, cells) in &matrix.rows {
        let _ = write!(table, "| {} |", words(name));
        for cell in cells {
            let all: Vec<String> = cell.iter().map(|(_, test)| sign(test.status)).collect();
            let _ = write!(table, " {} |", all.join(", "));
        }
        table.push('\n');
    }
    table
}

fn failure(test: &TestResult) -> String {
    let mut page = format!("\n<details><summary>{} {}", sign(test.status), html(&test.id));
    if let Some(reason) = &test.reason {
        let _ = write!(page, ": {}", html(reason));
    }
    page += "</summary>\n\n";
    for splat in test.splats.iter().filter(|splat| splat.action != Action::Ignore) {
        let _ = writeln!(page, "- {}", words(&splat.title));
    }
    for case in test.cases.iter().filter(|case| !case.status.is_good()) {
        let message = case.message.as_deref().unwrap_or_default();
        let _ = writeln!(page, "- {} {} {}", sign(case.status), words(&case.name()), words(message));
    }
    // Within <pre> Markdown is not read, and an escaped text does not end it.
    let tail = text::last_lines(&test.tail, TAIL);
    let _ = write!(page, "\n<pre>{}</pre>\n\n<pre>{}</pre>\n</details>\n", escaped(&tail), html(&test.reproduce));
    page
}

/// A status with a sign that is seen from afar.
fn sign(status: Status) -> String {
    let sign = match status {
        Status::Pass => "✅",
        Status::Skip | Status::Xfail => "⚪",
        Status::Fail => "❌",
        Status::Timeout => "⏰",
        Status::Crash => "💥",
        Status::Error => "⚠️",
    };
    format!("{sign} {}", status.name())
}

/// One line within HTML.
fn html(line: &str) -> String {
    escaped(&text::line(line))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// One line of Markdown that has no other meaning: no links, mentions, tables, tags.
fn words(line: &str) -> String {
    let mut written = String::new();
    for character in text::line(line).chars() {
        match character {
            '@' => written.push_str("@<!-- -->"),
            '<' | '>' | '&' => written.push_str(&escaped(character.encode_utf8(&mut [0; 4]))),
            special if special.is_ascii_punctuation() && !"/=-.,".contains(special) => written.extend(['\\', special]),
            other => written.push(other),
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::report::sample;

    #[test]
    fn the_page_has_a_table_and_failures() {
        let page = summary(&sample::outcome());
        assert!(
            page.contains("\n| test | 6.12/cpus=1 | 6.12/cpus=4 | mainline/cpus=1 | mainline/cpus=4 |\n"),
            "{page}"
        );
        assert!(page.contains("\n| stress |  |  | ✅ pass, ✅ pass |  |\n"), "{page}");
        assert!(page.contains("<summary>💥 crash mainline/cpus=4/planted: Kernel panic - not syncing"), "{page}");
        assert!(page.contains("- KASAN\\: slab-use-after-free in uaf\\_write\n"), "{page}");
        assert_eq!((page.matches("<details>").count(), page.matches("</details>").count()), (5, 5));
        assert_eq!((page.matches("<pre>").count(), page.matches("</pre>").count()), (10, 10));
        assert!(!page.contains("<script"));
        assert_eq!(words("a|b](c) <d> @e"), "a\\|b\\]\\(c\\) &lt;d&gt; @<!-- -->e");
    }

    #[test]
    fn many_failures_fit() {
        let mut outcome = sample::outcome();
        let mut test = sample::test("k", "m", "t", Status::Fail);
        test.tail = "x".repeat(100_000);
        outcome.tests = vec![test; 40];
        let page = summary(&outcome);
        assert!(page.len() < 1 << 20 && page.contains("\nand 30 more\n"), "{}", page.len());
    }
}
