//! What the kernel holds against itself: the bits of `/proc/sys/kernel/tainted`
//! (linux/Documentation/admin-guide/tainted-kernels.rst).

use super::outcome::{Action, Splat, SplatKind};
use super::splat::Policy;

/// Letters of the bits, from bit 0, and what they say of the kernel.
const FLAGS: [(char, &str); 19] = [
    ('P', "proprietary module was loaded"),
    ('F', "module was loaded by force"),
    ('S', "CPU or machine is out of specification"),
    ('R', "module was unloaded by force"),
    ('M', "machine check exception"),
    ('B', "bad page, or memory error that a sanitizer found"),
    ('U', "a program asked for it"),
    ('D', "died: oops or BUG"),
    ('A', "ACPI table was replaced"),
    ('W', "warning"),
    ('C', "staging driver was loaded"),
    ('I', "workaround for a severe bug in firmware"),
    ('O', "module from outside of the tree was loaded"),
    ('E', "unsigned module was loaded"),
    ('L', "soft lockup"),
    ('K', "live patched"),
    ('X', "distribution's own reason"),
    ('T', "structures in random order"),
    ('N', "test module was loaded"),
];

/// What was added between two readings, as a title, `tainted: W (warning), O (module ..)`; none if nothing was.
pub fn describe(before: u64, after: u64) -> Option<String> {
    let added = after & !before;
    let bits = (0..u64::BITS).filter(|bit| added & (1 << bit) != 0);
    let words: Vec<_> = bits.map(word).collect();
    (!words.is_empty()).then(|| format!("tainted: {}", words.join(", ")))
}

/// The same as a complaint of the kernel; none if a reading is missing.
pub(super) fn splat(readings: [Option<u64>; 2], policy: &Policy) -> Option<Splat> {
    let [before, after] = readings;
    let title = describe(before?, after?)?;
    let text = title.clone();
    let mut splat = Splat { kind: SplatKind::Taint, title, action: Action::Warn, case: None, lines: (0, 0), text };
    splat.action = policy.action(&splat);
    Some(splat)
}

fn word(bit: u32) -> String {
    match FLAGS.get(bit as usize) {
        Some((letter, meaning)) => format!("{letter} ({meaning})"),
        None => format!("bit {bit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_described() {
        assert_eq!(describe(0, 0), None);
        assert_eq!(describe(1 << 12, 1 << 12), None);
        assert_eq!(describe(1 << 12, 1 << 12 | 1 << 9).as_deref(), Some("tainted: W (warning)"));
        let both = "tainted: B (bad page, or memory error that a sanitizer found), D (died: oops or BUG)";
        assert_eq!(describe(0, 1 << 5 | 1 << 7).as_deref(), Some(both));
        assert_eq!(describe(0, 1 << 18).as_deref(), Some("tainted: N (test module was loaded)"));
        assert_eq!(describe(0, 1 << 63).as_deref(), Some("tainted: bit 63"));
        // Nothing takes a taint away; if a reading says so, there is nothing to tell.
        assert_eq!(describe(1, 0), None);
    }
}
