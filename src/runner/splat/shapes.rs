//! What the lines of a report look like, without the kernel's prefix.

use std::sync::LazyLock;

use regex::{Regex, RegexSet};

/// Matches nothing.
const NOTHING: &str = r"[^\s\S]";

/// A fixed expression of this module or of the table of patterns. One with a mistake matches nothing: tests see that, and
/// users should not lose a run by it.
pub(super) fn fixed(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap_or_else(|_| fixed(NOTHING))
}

/// The same for several at once.
pub(super) fn fixed_set<'a>(patterns: impl Iterator<Item = &'a str>) -> RegexSet {
    RegexSet::new(patterns).unwrap_or_default()
}

/// `name+0x12/0x34`; group `f` is the name, without what the compiler appends (`.cold`, `.isra.0`).
pub(super) const SYMBOL: &str = r"(?P<f>[A-Za-z_$][\w$]*)(?:\.[\w.]+)?\+0x[0-9a-f]+/0x[0-9a-f]+";

static FRAME: LazyLock<Regex> =
    LazyLock::new(|| fixed(&format!(r"^\s+(?:\[<[0-9a-f]+>\] )?{SYMBOL}(?: \[[^\]]*\])?(?:\s|$)")));
static GUESS: LazyLock<Regex> = LazyLock::new(|| fixed(&format!(r"^\s+(?:\[<[0-9a-f]+>\] )?\? {SYMBOL}")));
static POINTER: LazyLock<Regex> = LazyLock::new(|| fixed(&format!(r"^[RE]?IP: (?:[0-9a-f]{{4}}:)?{SYMBOL}")));
static PLACE: LazyLock<Regex> = LazyLock::new(|| fixed(&format!(r"(?:, at: |^\[<[0-9a-f]+>\] ){SYMBOL}")));
static IN_TRACE: LazyLock<Regex> = LazyLock::new(|| {
    let registers = r"[RE]?IP: |[RE]?SP: |R[A-DS][XIP]: |R[01]\d: |R0[89]: |[C-G]S: |CR\d: |DR\d: |PKRU: |ORIG_RAX: ";
    fixed(&format!(
        r"^\s*(?:</?(?:TASK|IRQ|NMI|SOFTIRQ|EOI|#\w+|ENTRY_TRAMPOLINE|EXCEPTION|\w+_STACK)>|Code: |Call Trace:|{registers})"
    ))
});

/// The function of a frame of a trace, if this is one that the kernel is sure of.
pub(super) fn frame(text: &str) -> Option<&str> {
    function(&FRAME, text)
}

/// The function of a frame of which the kernel is not sure.
pub(super) fn guess(text: &str) -> Option<&str> {
    function(&GUESS, text)
}

/// The function that the instruction pointer is in, on a line that says so.
pub(super) fn pointer(text: &str) -> Option<&str> {
    function(&POINTER, text)
}

/// A function of which the kernel is sure, in a trace or at the instruction pointer.
pub(in crate::runner) fn certain_function(text: &str) -> Option<&str> {
    // Most lines are no part of a trace.
    if !text.contains("+0x") { None } else { frame(text).or_else(|| pointer(text)) }
}

/// Where a lock is taken, or given back.
pub(super) fn place(text: &str) -> Option<&str> {
    function(&PLACE, text)
}

fn function<'a>(pattern: &Regex, text: &'a str) -> Option<&'a str> {
    Some(pattern.captures(text)?.name("f")?.as_str())
}

/// Whether a trace goes on with this line: frames, names of stacks, registers.
pub(super) fn in_trace(text: &str) -> bool {
    FRAME.is_match(text) || GUESS.is_match(text) || IN_TRACE.is_match(text)
}

/// `======`, around reports.
pub(super) fn is_banner(text: &str) -> bool {
    text.len() >= 20 && text.bytes().all(|byte| byte == b'=')
}

/// `------------[ cut here ]------------`.
pub(super) fn is_cut(text: &str) -> bool {
    text.starts_with("------------[ cut here ]")
}

/// `---[ end trace 0000000000000000 ]---`.
pub(super) fn is_end(text: &str) -> bool {
    text.starts_with("---[ end trace")
}

/// The message without the name of the part of the kernel that prints it.
pub(super) fn untagged(text: &str) -> &str {
    const TAGS: [&str; 6] = ["watchdog: ", "NMI watchdog: ", "rcu: ", "traps: ", "kmemleak: ", "workqueue: "];
    TAGS.iter().find_map(|tag| text.strip_prefix(tag)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_found_where_the_kernel_is_sure() {
        assert_eq!(frame(" do_one+0x12/0x340 [mod]"), Some("do_one"));
        assert_eq!(frame("       lock_it.isra.0+0x12/0x340"), Some("lock_it"));
        assert_eq!(frame(" [<ffffffff81000000>] old+0x1/0x2"), Some("old"));
        assert_eq!(frame(" ? guess+0x12/0x340"), None);
        assert_eq!(guess(" ? guess+0x12/0x340"), Some("guess"));
        assert_eq!(frame("[<ffffffff81000000>] elsewhere+0x1/0x2"), None);
        assert_eq!(frame("hardirqs last  enabled at (12): [<ffffffff81>] x+0x1/0x2"), None);
        assert_eq!(pointer("RIP: 0010:bad.cold+0x1/0x2 [mod]"), Some("bad"));
        assert_eq!(pointer("RIP: 0033:0x7f0012345678"), None);
        assert_eq!(place("ffff888 (&a){+.+.}-{3:3}, at: take_a+0x1/0x2 [mod]"), Some("take_a"));
        assert_eq!(place("[<ffffffffc0000000>] give_a+0x1/0x2 [mod]"), Some("give_a"));
    }

    #[test]
    fn a_trace_is_told_from_what_follows() {
        for line in [
            " <TASK>",
            " </IRQ>",
            " <#DF>",
            " f+0x1/0x2",
            " ? f+0x1/0x2 [m]",
            "RIP: 0033:0x7f00",
            "RSP: 002b:00007ffe EFLAGS: 00000246 ORIG_RAX: 0000000000000010",
            "RAX: ffffffffffffffda RBX: 0 RCX: 0",
            "R10: 0 R11: 0 R12: 0",
            "Code: 0f 0b",
        ] {
            assert!(in_trace(line), "{line}");
        }
        for line in ["", "ok 1 - f", "Modules linked in: x", "INFO: lockdep is turned off.", "a+b"] {
            assert!(!in_trace(line), "{line}");
        }
    }

    #[test]
    fn no_expression_has_a_mistake() {
        for pattern in [&FRAME, &GUESS, &POINTER, &PLACE, &IN_TRACE] {
            assert_ne!(pattern.as_str(), NOTHING);
        }
        assert!(!fixed("(").is_match("(") && !fixed(NOTHING).is_match(""));
    }

    #[test]
    fn marks_and_tags() {
        assert!(is_banner(&"=".repeat(66)) && !is_banner("===") && !is_banner(""));
        assert!(is_cut("------------[ cut here ]------------") && is_end("---[ end trace 0000000000000000 ]---"));
        assert_eq!(untagged("rcu: INFO: x"), "INFO: x");
        assert_eq!(untagged("other: INFO: x"), "other: INFO: x");
    }
}
