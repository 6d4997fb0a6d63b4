//! Folded logs in GitLab CI: sections of the job's log.

use std::fmt::Write;

use super::text;
use crate::runner::outcome::Outcome;

/// Lines of each log.
const TAIL: usize = 200;

/// Begins a section, folded, at `time` in seconds since 1970. Anything that is not allowed in names becomes `_`.
pub fn section_start(name: &str, title: &str, time: u64) -> String {
    let (name, title) = (word(name), text::line(title));
    format!("\u{1b}[0Ksection_start:{time}:{name}[collapsed=true]\r\u{1b}[0K{title}\n")
}

/// Ends the section of that name.
pub fn section_end(name: &str, time: u64) -> String {
    format!("\u{1b}[0Ksection_end:{time}:{}\r\u{1b}[0K\n", word(name))
}

/// A section with the log of each failed test; GitLab shows how long the test took.
pub fn logs(outcome: &Outcome) -> String {
    let mut page = String::new();
    for (number, test) in outcome.tests.iter().enumerate().filter(|(_, test)| !test.status.is_good()) {
        // Names are different even if their tests' are not, once written this way.
        let name = format!("belljar_{}_{}", number + 1, test.id);
        let at = |seconds: f64| outcome.began.saturating_add(seconds.max(0.0) as u64);
        page += &section_start(&name, &format!("{}: {}", test.status.name(), test.id), at(test.start));
        let _ = writeln!(page, "{}", text::last_lines(&test.tail, TAIL));
        page += &section_end(&name, at(test.start + test.seconds));
    }
    page
}

fn word(name: &str) -> String {
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    name.chars().map(|c| if fits(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::report::sample;

    #[test]
    fn sections_are_those_of_belljar_alone() {
        let page = logs(&sample::outcome());
        // GitLab looks for a name between the word and a carriage return with an escape sequence.
        assert_eq!(page.matches("\r\u{1b}[0K").count(), 10);
        assert_eq!(page.matches("\u{1b}[0Ksection_start:").count(), 5);
        assert_eq!(page.matches("\u{1b}[0Ksection_end:").count(), 5);
        assert!(page.contains(
            "\u{1b}[0Ksection_start:1795392001:belljar_13_6.12_cpus_1_kunit[collapsed=true]\r\u{1b}[0Kfail: 6.12/cpus=1/kunit\n"
        ));
        let start = page.split("section_start:").nth(1).unwrap().split('[').next().unwrap();
        assert!(start.split(':').nth(1).unwrap().chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)));
        assert_eq!(section_end("a b", 5), "\u{1b}[0Ksection_end:5:a_b\r\u{1b}[0K\n");
    }
}
