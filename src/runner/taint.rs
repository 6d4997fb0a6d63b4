//! What the kernel holds against itself: the bits of `/proc/sys/kernel/tainted`
//! (linux/Documentation/admin-guide/tainted-kernels.rst). Some say that something went wrong, or was done by force, so that
//! nothing after it can be trusted: a complaint. Others only say what was loaded or asked for, which whoever wrote the
//! test knows: a note.

use super::outcome::{Action, Splat, SplatKind};
use super::splat::Policy;

/// Letters of the bits, from bit 0, and what they say of the kernel.
const FLAGS: [(char, &str); 20] = [
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
    ('N', "test was run in the kernel"),
    ('J', "firmware was changed by a debugging interface"),
];

/// Letters of those that are no complaint.
const FACTS: &str = "PUACOEKXTNJ";

/// What was added between two readings: a complaint, and a note. None if a reading is missing, or nothing was added.
pub(super) fn judge(readings: [Option<u64>; 2], policy: &Policy) -> (Option<Splat>, Option<String>) {
    let [Some(before), Some(after)] = readings else { return (None, None) };
    let (facts, faults) = (0..u64::BITS).filter(|bit| after & !before & (1 << bit) != 0).partition(|bit| is_fact(*bit));
    let note = words(facts).map(|words| format!("The kernel is tainted by what was loaded or asked for: {words}"));
    (words(faults).map(|words| splat(format!("tainted: {words}"), policy)), note)
}

fn splat(title: String, policy: &Policy) -> Splat {
    let text = title.clone();
    let mut splat = Splat { kind: SplatKind::Taint, title, action: Action::Warn, case: None, lines: (0, 0), text };
    splat.action = policy.action(&splat);
    splat
}

/// Whether it is no complaint. What later kernels may say is one.
fn is_fact(bit: u32) -> bool {
    FLAGS.get(bit as usize).is_some_and(|(letter, _)| FACTS.contains(*letter))
}

/// `W (warning), D (..)`; none for no bits.
fn words(bits: Vec<u32>) -> Option<String> {
    (!bits.is_empty()).then(|| bits.into_iter().map(word).collect::<Vec<_>>().join(", "))
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

    /// What comes of bits that were added: title and action of a complaint, and the note.
    fn added(before: u64, after: u64) -> (Option<String>, Option<String>) {
        let (splat, note) = judge([Some(before), Some(after)], &Policy::default());
        assert!(splat.iter().all(|splat| (splat.kind, splat.action) == (SplatKind::Taint, Action::Warn)));
        (splat.map(|splat| splat.title), note)
    }

    #[test]
    fn what_went_wrong_is_a_complaint() {
        assert_eq!(added(0, 0), (None, None));
        assert_eq!(added(1 << 12, 1 << 12 | 1 << 9), (Some("tainted: W (warning)".into()), None));
        let both = "tainted: B (bad page, or memory error that a sanitizer found), D (died: oops or BUG)";
        assert_eq!(added(0, 1 << 5 | 1 << 7).0.as_deref(), Some(both));
        assert_eq!(added(0, 1 << 63).0.as_deref(), Some("tainted: bit 63"));
        // Nothing takes a taint away; if a reading says so, there is nothing to tell.
        assert_eq!(added(1, 0), (None, None));
        assert_eq!(judge([None, Some(1 << 9)], &Policy::default()), (None, None));
        let complaints: String =
            FLAGS.iter().map(|(letter, _)| letter).filter(|letter| !FACTS.contains(**letter)).collect();
        assert_eq!(complaints, "FSRMBDWIL");
    }

    #[test]
    fn what_was_loaded_is_a_note() {
        let note = "The kernel is tainted by what was loaded or asked for: O (module from outside of the tree was loaded), \
                    E (unsigned module was loaded)";
        assert_eq!(added(0, 1 << 12 | 1 << 13), (None, Some(note.into())));
        let (title, note) = added(0, 1 << 18 | 1 << 9);
        assert_eq!(title.as_deref(), Some("tainted: W (warning)"));
        assert_eq!(
            note.as_deref(),
            Some("The kernel is tainted by what was loaded or asked for: N (test was run in the kernel)")
        );
        // Nor is it one for who wants complaints of this kind to fail.
        let strict = Policy { splats: [(SplatKind::Taint, Action::Fail)].into(), ..Policy::default() };
        assert_eq!(judge([Some(0), Some(1 << 12)], &strict).0, None);
        assert_eq!(judge([Some(0), Some(1 << 7)], &strict).0.unwrap().action, Action::Fail);
    }
}
