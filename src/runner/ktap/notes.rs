//! What is printed while a case is under way: its log, and what that tells about it.

use std::collections::VecDeque;

use crate::runner::splat::certain_function;

/// Bytes of a case's log that are kept: the last ones say why it failed.
pub(super) const LOG_LIMIT: usize = 16 << 10;
/// Characters of a message.
const MESSAGE_LIMIT: usize = 500;
/// Lines that explain a failed expectation.
const EXPLANATION_LINES: usize = 4;
/// What KUnit prints after `# case: ` when a case is lost.
const FAILURES: [&str; 4] = ["EXPECTATION FAILED at ", "ASSERTION FAILED at ", "try timed out", "try faulted"];
/// What stands in the place of a case's name in notes about other things.
const NOT_CASES: [&str; 4] = ["Totals", "module", "is_init", "Subtest"];
/// Calls the function of a KUnit case, for which the case is named (KUNIT_CASE, include/kunit/test.h).
const KUNIT_CALLER: &str = "kunit_try_run_case";
/// How kselftest's runner announces a program, and later names it.
const KSELFTEST: &str = "selftests: ";

/// Notes on the case that is under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Notes {
    lines: VecDeque<String>,
    bytes: usize,
    hint: Option<String>,
    /// The last function of a trace.
    function: Option<String>,
    failure: Option<String>,
    /// Lines of the failure's explanation that may still follow.
    explanation: usize,
}

impl Notes {
    /// Adds a line. True if it told a name that was not known before.
    pub(super) fn add(&mut self, line: &str) -> bool {
        self.bytes += line.len() + 1;
        self.lines.push_back(line.to_owned());
        while self.bytes > LOG_LIMIT {
            let Some(gone) = self.lines.pop_front() else { break };
            self.bytes -= gone.len() + 1;
        }
        let Some(note) = line.trim_start().strip_prefix("# ") else {
            self.explain(line);
            return self.trace(line);
        };
        self.explanation = 0;
        let (name, text) = note.split_once(": ").unwrap_or((note, ""));
        if self.failure.is_none() && FAILURES.iter().any(|failure| text.starts_with(failure)) {
            self.failure = Some(text.trim().to_owned());
            self.explanation = EXPLANATION_LINES;
        }
        self.guess(note, name)
    }

    /// `Expected a == b, but` and the like, which are indented.
    fn explain(&mut self, line: &str) {
        let Some(failure) = self.failure.as_mut().filter(|_| self.explanation > 0) else { return };
        self.explanation -= 1;
        if line.starts_with([' ', '\t']) && !line.trim().is_empty() {
            let separator = if failure.contains(": ") { " " } else { ": " };
            failure.push_str(separator);
            failure.push_str(line.trim());
        }
    }

    /// A kernel that dies of a case has not named it, but its trace does.
    fn trace(&mut self, line: &str) -> bool {
        let Some(function) = self.hint.is_none().then(|| certain_function(line)).flatten() else { return false };
        if function == KUNIT_CALLER {
            self.hint = self.function.take();
            return self.hint.is_some();
        }
        self.function = Some(function.to_owned());
        false
    }

    /// KUnit names a case in its notes, kselftest's runner before it starts a program.
    fn guess(&mut self, note: &str, name: &str) -> bool {
        let kselftest = note.starts_with(KSELFTEST);
        let known = self.hint.as_deref().unwrap_or_default();
        let name = if kselftest { note.trim_end() } else { name };
        let is_word = !name.is_empty() && name.len() < note.trim_end().len() && !name.contains([' ', '.']);
        if known == name || known.starts_with(KSELFTEST) || !(kselftest || is_word && !NOT_CASES.contains(&name)) {
            return false;
        }
        self.hint = Some(name.to_owned());
        true
    }

    /// What the case is probably called.
    pub(super) fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Why the case failed, as far as the notes tell.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.as_deref().map(|text| text.chars().take(MESSAGE_LIMIT).collect())
    }

    /// The last lines.
    pub(super) fn log(&self) -> String {
        let mut log = String::with_capacity(self.bytes);
        for line in &self.lines {
            log.push_str(line);
            log.push('\n');
        }
        log
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_expectation_is_told_with_its_values() {
        let mut notes = Notes::default();
        assert!(notes.add("    # sum_test: initializing"));
        for line in [
            "    # sum_test: EXPECTATION FAILED at lib/sum-test.c:30",
            "    Expected 1 + 1 == 3, but",
            "        1 + 1 == 2 (0x2)",
            "    # sum_test: EXPECTATION FAILED at lib/sum-test.c:31",
            "    Expected a, but",
            "    # sum_test: cleaning up",
        ] {
            assert!(!notes.add(line));
        }
        let failure = "EXPECTATION FAILED at lib/sum-test.c:30: Expected 1 + 1 == 3, but 1 + 1 == 2 (0x2)";
        assert_eq!(notes.failure().as_deref(), Some(failure));
        assert_eq!(notes.hint(), Some("sum_test"));
        assert!(notes.log().starts_with("    # sum_test: initializing\n") && notes.log().ends_with("cleaning up\n"));
    }

    #[test]
    fn names_are_not_taken_from_everything() {
        let mut notes = Notes::default();
        for line in ["# Totals: pass:1", "# module: m", "# a.speed: slow", "# two words: x", "# plain", "name: x", "#"]
        {
            assert!(!notes.add(line), "{line}");
        }
        assert!(notes.add("# selftests: timers: nanosleep"));
        assert!(!notes.add("# ok: a word of the program"));
        assert_eq!(notes.hint(), Some("selftests: timers: nanosleep"));
    }

    #[test]
    fn a_trace_names_the_case_that_calls() {
        let mut notes = Notes::default();
        for line in [
            "BUG: kernel NULL pointer dereference, address: 0000000000000000",
            "RIP: 0010:follow_it+0x12/0x40",
            "Call Trace:",
            " <TASK>",
            " ? page_fault_oops+0x1/0x2",
            " list_test.isra.0+0x30/0x50 [list_kunit]",
            " ? __pfx_kunit_try_run_case+0x10/0x10",
        ] {
            assert!(!notes.add(line), "{line}");
        }
        assert!(notes.add(" kunit_try_run_case+0x1/0x2"));
        assert_eq!(notes.hint(), Some("list_test"));
        assert!(!notes.add(" kunit_generic_run_threadfn_adapter+0x1/0x2") && !notes.add(" kunit_try_run_case+0x1/0x2"));
        // What the case itself says counts more.
        assert!(notes.add("# other: cleaning up"));
        let mut alone = Notes::default();
        assert!(!alone.add(" kunit_try_run_case+0x1/0x2"));
        assert!(!alone.add("RIP: 0010:case_of_it+0x12/0x40") && alone.add(" kunit_try_run_case+0x1/0x2"));
        assert_eq!(alone.hint(), Some("case_of_it"));
    }

    #[test]
    fn the_log_keeps_its_end() {
        let mut notes = Notes::default();
        (0..10_000).for_each(|number| assert!(!notes.add(&format!("line {number}"))));
        assert!(notes.log().ends_with("line 9999\n"));
        assert!(notes.log().len() <= LOG_LIMIT);
    }
}
