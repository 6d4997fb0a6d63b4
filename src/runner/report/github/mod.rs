//! GitHub Actions: annotations, folded logs, the page of a step.
//!
//! The runner reads commands from all that is printed. Guests must not be able to give any: what they print stands
//! between the two lines of a [`Fence`], and in commands of ours nothing of theirs ends an argument or the line.

mod page;

use std::fmt::Write;
use std::io;

use rustix::rand::{GetRandomFlags, getrandom};

use super::{place, text};
use crate::runner::outcome::{Action, Outcome, TestResult};

pub use page::summary;

/// Lines of each log.
const TAIL: usize = 200;

/// Annotations for the cases of one test: GitHub shows ten of a step.
const CASES: usize = 10;

/// Two lines between which the runner reads no commands. Nobody who has not seen the first can write the second.
#[derive(Debug)]
pub struct Fence {
    token: String,
}

impl Fence {
    /// A new one. For anything that is printed while tests run, too: live lines and the summary speak of cases.
    ///
    /// # Errors
    ///
    /// The host has no random numbers.
    pub fn new() -> io::Result<Self> {
        let mut bytes = [0u8; 16];
        getrandom(&mut bytes, GetRandomFlags::empty())?;
        Ok(Self { token: bytes.iter().map(|byte| format!("{byte:02x}")).collect() })
    }

    /// From here on nothing is a command.
    pub fn begin(&self) -> String {
        format!("::stop-commands::{}\n", self.token)
    }

    /// From here on commands are commands.
    pub fn end(&self) -> String {
        format!("::{}::\n", self.token)
    }
}

/// A line for each failed test, and for cases that name a place in the source. GitHub shows them at the top, and beside
/// the source in pull requests.
pub fn annotations(outcome: &Outcome) -> String {
    outcome.tests.iter().map(of_test).collect()
}

/// The log of each failed test, folded.
pub fn logs(outcome: &Outcome, fence: &Fence) -> String {
    let mut page = String::new();
    for test in outcome.tests.iter().filter(|test| !test.status.is_good()) {
        let _ = writeln!(page, "::group::{}", data(&format!("{}: {}", test.status.name(), test.id)));
        page += &fence.begin();
        let _ = writeln!(page, "{}", text::last_lines(&test.tail, TAIL));
        page += &fence.end();
        page += "::endgroup::\n";
    }
    page
}

fn of_test(test: &TestResult) -> String {
    let mut lines = String::new();
    for splat in test.splats.iter().filter(|splat| splat.action == Action::Warn) {
        lines += &command("warning", place::of(&splat.title, &splat.text), &test.id, &splat.title);
    }
    if test.status.is_good() {
        return lines;
    }
    let fatal = || test.splats.iter().filter(|splat| splat.action == Action::Fail);
    let said = test.reason.iter().chain(fatal().map(|splat| &splat.title));
    let message = said.map(|text| text::line(text)).collect::<Vec<_>>().join("\n");
    let at = fatal().find_map(|splat| place::of(&splat.title, &splat.text));
    lines += &command("error", at, &format!("{}: {}", test.status.name(), test.id), &message);
    for case in test.cases.iter().filter(|case| !case.status.is_good()).take(CASES) {
        let message = case.message.as_deref().unwrap_or_default();
        let Some(at) = place::of("", message).or_else(|| place::of("", &case.log)) else { continue };
        let title = format!("{}: {}: {}", case.status.name(), test.id, case.name());
        lines += &command("error", Some(at), &title, text::or(message, case.log.trim_start()));
    }
    lines
}

/// `::error file=a.c,line=3,title=text::message`.
fn command(level: &str, at: Option<place::Place>, title: &str, message: &str) -> String {
    let at = at.map(|at| format!("file={},line={},", property(&at.file), at.line)).unwrap_or_default();
    format!("::{level} {at}title={}::{}\n", property(title), data(message))
}

/// What a command says: may have several lines.
fn data(message: &str) -> String {
    text::lines(message).replace('%', "%25").replace('\n', "%0A")
}

/// An argument of a command.
fn property(value: &str) -> String {
    text::line(value).replace('%', "%25").replace(':', "%3A").replace(',', "%2C")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::report::sample;

    /// What the runner takes for commands: lines that begin so after blanks, outside of fences. The older form, in the
    /// middle of lines, counts only if the line is no command of the newer one.
    fn commands(page: &str) -> Vec<&str> {
        let mut token: Option<&str> = None;
        let mut commands = Vec::new();
        for line in page.lines() {
            match token {
                Some(stop) if line.trim() == format!("::{stop}::") => token = None,
                Some(_) => {}
                None if line.trim_start().starts_with("::") => match line.strip_prefix("::stop-commands::") {
                    Some(stop) => token = Some(stop),
                    None => commands.push(line),
                },
                None => assert!(!line.contains("##["), "{line}"),
            }
        }
        assert_eq!(token, None);
        commands
    }

    #[test]
    fn annotations_name_file_and_line() {
        let page = annotations(&sample::outcome());
        let lines = commands(&page);
        let has = |line: &str| assert!(lines.contains(&line), "{line}\n{page}");
        has("::error title=fail%3A 6.12/cpus=1/kunit::1 of 4 cases failed");
        has("::error file=drivers/misc/planted.c,line=41,title=crash%3A mainline/cpus=4/planted::Kernel panic - not \
             syncing: Fatal exception%0AKASAN: slab-use-after-free in uaf_write%0AKernel panic: Fatal exception");
        has("::warning file=kernel/time/hrtimer.c,line=1027,title=mainline/cpus=4/planted::WARNING in hrtimer_forward");
        let case =
            "::error file=lib/kunit/kunit-example-test.c,line=29,title=fail%3A 6.12/cpus=1/kunit%3A example/add::";
        assert!(
            lines
                .iter()
                .any(|line| line.starts_with(case) && line.contains("::# add") && line.contains("%0A    Expected")),
            "{page}"
        );
        assert!(lines.iter().all(|line| line.starts_with("::error ") || line.starts_with("::warning ")));
        assert_eq!(lines.len(), page.lines().count(), "nothing but commands");
    }

    #[test]
    fn guests_give_no_commands() {
        let outcome = sample::outcome();
        let fence = Fence::new().unwrap();
        let page = logs(&outcome, &fence);
        let lines = commands(&page);
        assert_eq!(lines.len(), 10);
        assert!(lines.iter().all(|line| line.starts_with("::group::") || *line == "::endgroup::"), "{lines:?}");
        assert!(page.contains("\n::set-env name=A"), "the log itself is whole");
        assert_ne!(Fence::new().unwrap().token, fence.token);
        assert_eq!((property("a,b:c%\n"), data("a%\r\nb:")), ("a%2Cb%3Ac%25 ".into(), "a%25%0Ab:".into()));
    }
}
