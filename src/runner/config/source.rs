//! Places in belljar.toml, and what is wrong there.

use std::fmt;
use std::path::Path;

/// Mistakes that are shown of one file.
const SHOWN: usize = 10;

/// A place in a text, both counted from 1; columns in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

impl Place {
    /// The beginning: for what is about the file as a whole.
    pub(super) const START: Self = Self { line: 1, column: 1 };

    /// Of the byte with this number.
    pub(super) fn of(text: &str, byte: usize) -> Self {
        let bytes = text.as_bytes().get(..byte).unwrap_or(text.as_bytes());
        let begin = memchr::memrchr(b'\n', bytes).map_or(0, |at| at + 1);
        let line = 1 + memchr::memchr_iter(b'\n', bytes).count();
        let before = bytes.get(begin..).unwrap_or_default();
        Self { line, column: 1 + String::from_utf8_lossy(before).chars().count() }
    }
}

/// What is wrong with a suite: a line each, `FILE:LINE:COLUMN: what`, in the order of the file.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub struct Error {
    file: String,
    problems: Vec<(Place, String)>,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (place, text)) in self.problems.iter().take(SHOWN).enumerate() {
            let end = if index == 0 { "" } else { "\n" };
            write!(f, "{end}{}:{}:{}: {text}", self.file, place.line, place.column)?;
        }
        match self.problems.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n{}: and {more} more", self.file),
        }
    }
}

/// Mistakes as they are found.
#[derive(Debug, Default)]
pub(super) struct Problems(Vec<(Place, String)>);

impl Problems {
    /// One more, unless it was named before.
    pub(super) fn add(&mut self, place: Place, text: impl Into<String>) {
        let problem = (place, text.into());
        if !self.0.contains(&problem) {
            self.0.push(problem);
        }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// Enough to stop looking for more.
    pub(super) fn enough(&self) -> bool {
        self.count() > SHOWN
    }

    /// Nothing, if there are none.
    pub(super) fn result(mut self, file: &Path) -> Result<(), Error> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.0.sort_by_key(|(place, _)| *place);
        Err(Error { file: file.display().to_string(), problems: self.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters() {
        let text = "ab\nä = x\n";
        assert_eq!(Place::of(text, 0), Place::START);
        assert_eq!(Place::of(text, text.find('x').unwrap()), Place { line: 2, column: 5 });
        assert_eq!(Place::of(text, 1000), Place { line: 3, column: 1 });
    }

    #[test]
    fn mistakes_come_in_the_files_order_and_not_too_many() {
        let mut problems = Problems::default();
        for line in (1..=12).rev() {
            problems.add(Place { line, column: 1 }, "bad");
            problems.add(Place { line, column: 1 }, "bad");
        }
        assert!(problems.enough());
        let text = problems.result(Path::new("x")).unwrap_err().to_string();
        assert!(text.starts_with("x:1:1: bad\nx:2:1: bad\n"), "{text}");
        assert!(text.ends_with("x:10:1: bad\nx: and 2 more"), "{text}");
    }
}
