//! Titles: the same for the same fault, so without addresses and numbers that differ from run to run.

use std::sync::LazyLock;

use regex::{Captures, Regex};

use super::shapes::fixed;

/// Characters of a title.
const LIMIT: usize = 160;

static OFFSET: LazyLock<Regex> =
    LazyLock::new(|| fixed(r"(?:\.(?:cold|isra|part|constprop|llvm)[.\w]*)?\+0x[0-9a-f]+/0x[0-9a-f]+"));
// Not the numbers of names, as in kmalloc-64 and ext4.
static NUMBER: LazyLock<Regex> = LazyLock::new(|| fixed(r"(?P<before>^|[^\w.-])(?:0x[0-9a-fA-F]+|[0-9]+)\b"));
static ADDRESS: LazyLock<Regex> = LazyLock::new(|| fixed(r"\b[0-9a-f]{12,}\b"));

/// The title that a pattern's `template` makes of the first line.
pub(super) fn title(template: &str, captures: &Captures<'_>) -> String {
    let mut title = String::new();
    captures.expand(template, &mut title);
    let title = OFFSET.replace_all(&title, "");
    let title = ADDRESS.replace_all(&title, "N");
    let title = NUMBER.replace_all(&title, "${before}N");
    title.trim().chars().take(LIMIT).collect()
}

/// A name of a function as titles have it.
pub(super) fn function(name: &str) -> String {
    name.chars().take(LIMIT).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_differs_from_run_to_run_goes() {
        let all = fixed("^(.*)$");
        let title = |text| title("x: $1", &all.captures(text).unwrap());
        for (text, expected) in [
            ("Attempted to kill init! exitcode=0x0000000b", "x: Attempted to kill init! exitcode=N"),
            ("stack is corrupted in: f.cold+0x12/0x340", "x: stack is corrupted in: f"),
            ("on unknown-block(0,0)", "x: on unknown-block(N,N)"),
            ("kmalloc-64 of ext4 at ffff888004321000", "x: kmalloc-64 of ext4 at N"),
            ("CPU#3 and 17 more 2", "x: CPU#N and N more N"),
        ] {
            assert_eq!(title(text), expected);
        }
        assert_eq!(title(&"y".repeat(1000)).len(), LIMIT);
    }
}
