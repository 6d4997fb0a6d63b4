//! The place in the source that a failure speaks of.

use std::sync::LazyLock;

use regex::Regex;

/// A file of the kernel's source and a line in it, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// As the kernel names it: from the top of its source, mostly.
    pub(super) file: String,
    /// Its line.
    pub(super) line: u32,
}

/// A source file and a line: `mm/slub.c:123`.
static PLACE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"([A-Za-z0-9_+.\-/]+\.(?:c|h|S|rs|sh|py)):([0-9]{1,7})\b").ok());

/// Files that report faults of others: their lines are on top of call traces.
const REPORTERS: [&str; 9] = [
    "lib/dump_stack.c",
    "mm/kasan/",
    "mm/kmsan/",
    "mm/kfence/",
    "kernel/kcsan/",
    "kernel/panic.c",
    "kernel/locking/lockdep.c",
    "lib/ubsan.c",
    "lib/bug.c",
];

/// The place that a text speaks of: best one on a line with the name that ends `title`, as in `KASAN: use-after-free in
/// foo_bar`; otherwise the first that is not of the code that prints reports.
pub(super) fn of(title: &str, text: &str) -> Option<Place> {
    let function = title.rsplit(' ').next().filter(|_| title.contains(" in ")).map(|name| format!("{name}+"));
    let named = function.and_then(|name| text.lines().filter(|line| line.contains(&name)).find_map(first));
    named.or_else(|| text.lines().find_map(first))
}

fn first(line: &str) -> Option<Place> {
    PLACE.as_ref()?.captures_iter(line).find_map(|found| {
        let file = found.get(1)?.as_str().trim_start_matches("./");
        let place = Place { file: file.to_string(), line: found.get(2)?.as_str().parse().ok()? };
        (!REPORTERS.iter().any(|reporter| file.contains(reporter))).then_some(place)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(title: &str, text: &str) -> Option<(String, u32)> {
        of(title, text).map(|place| (place.file, place.line))
    }

    #[test]
    fn places_are_those_of_the_fault() {
        let kunit = "    # add: EXPECTATION FAILED at lib/kunit/example-test.c:29\n    Expected 1 + 1 == 3";
        assert_eq!(place("", kunit), Some(("lib/kunit/example-test.c".into(), 29)));
        assert_eq!(place("", "kernel BUG at ./mm/slub.c:4201!"), Some(("mm/slub.c".into(), 4201)));
        let trace = " dump_stack_lvl+0x1/0x2 lib/dump_stack.c:12\n kasan_report+0x1/0x2 mm/kasan/report.c:9\n \
                     helper+0x3/0x9 fs/a.c:5\n foo_bar+0x1/0x2 fs/b.c:77";
        assert_eq!(place("KASAN: slab-use-after-free in foo_bar", trace), Some(("fs/b.c".into(), 77)));
        assert_eq!(place("KASAN: slab-use-after-free in elsewhere", trace), Some(("fs/a.c".into(), 5)));
        assert_eq!(place("", "at 12:30 nothing happened in a.conf:3"), None);
    }
}
