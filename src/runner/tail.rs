//! The last lines of what was printed, for people who read a failure.

use std::collections::VecDeque;

/// Lines that are kept.
const LINES: usize = 60;
/// Characters of a line that are kept.
const WIDTH: usize = 400;

/// Keeps the last lines.
#[derive(Debug, Clone, Default)]
pub(super) struct Tail(VecDeque<String>);

impl Tail {
    pub(super) fn add(&mut self, line: &str) {
        if self.0.len() == LINES {
            self.0.pop_front();
        }
        self.0.push_back(line.chars().take(WIDTH).collect());
    }

    /// All of them, each with an end of line.
    pub(super) fn text(&self) -> String {
        self.0.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_stay() {
        let mut tail = Tail::default();
        assert_eq!(tail.text(), "");
        (0..100).for_each(|number| tail.add(&format!("{number}{}", "x".repeat(1000))));
        assert!(tail.text().starts_with("40x") && tail.text().ends_with("x\n"));
        assert_eq!((tail.text().lines().count(), tail.text().lines().map(str::len).max()), (LINES, Some(WIDTH)));
    }
}
