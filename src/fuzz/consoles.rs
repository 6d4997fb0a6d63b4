//! What a kernel prints: complaints in it.

use crate::runner::console::Lines;
use crate::runner::splat::samples::SAMPLES;
use crate::runner::splat::{Policy, Scanner};

/// A console's output.
pub(super) fn splats(data: &[u8]) {
    let (mut lines, mut scanner, mut splats, mut number) = (Lines::default(), Scanner::new(Policy::default()), 0, 0);
    let mut look = |line: &str| {
        number += 1;
        splats += usize::from(scanner.line(line, number, Some("case")).is_some());
    };
    lines.add(data, &mut look);
    lines.finish(&mut look);
    while let Some(splat) = scanner.finish() {
        splats += 1;
        assert!(splat.lines.0 <= splat.lines.1 && splat.lines.1 <= number, "{splat:?}");
        assert!(!splat.title.is_empty() && splat.text.len() < 256 << 10, "{splat:?}");
    }
    assert!(splats as u64 <= number, "more reports than lines");
}

pub(super) fn splat_seeds() -> Vec<Vec<u8>> {
    SAMPLES.iter().map(|sample| sample.text.as_bytes().to_vec()).collect()
}
