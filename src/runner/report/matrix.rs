//! Tests in rows, kernels with machines in columns.

use crate::runner::outcome::{Outcome, TestResult};

/// What ran where, in the order of the plan.
#[derive(Debug)]
pub(super) struct Matrix<'a> {
    /// `KERNEL/MACHINE`.
    pub(super) places: Vec<String>,
    /// For each test its name, and for each place what ran there: several if it was repeated.
    pub(super) rows: Vec<(&'a str, Vec<Vec<Cell<'a>>>)>,
}

/// A result and its number among all.
pub(super) type Cell<'a> = (usize, &'a TestResult);

impl<'a> Matrix<'a> {
    pub(super) fn of(outcome: &'a Outcome) -> Self {
        let (mut places, mut names) = (Vec::new(), Vec::new());
        for test in &outcome.tests {
            let place = test.place();
            if !places.contains(&place) {
                places.push(place);
            }
            if !names.contains(&test.test.as_str()) {
                names.push(test.test.as_str());
            }
        }
        let cell = |name: &str, place: &String| {
            let here = |(_, test): &Cell| test.test == name && test.place() == *place;
            outcome.tests.iter().enumerate().filter(here).collect()
        };
        let rows = names.iter().map(|&name| (name, places.iter().map(|place| cell(name, place)).collect())).collect();
        Self { places, rows }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::report::sample;

    #[test]
    fn every_result_has_one_cell() {
        let outcome = sample::outcome();
        let matrix = Matrix::of(&outcome);
        assert_eq!(matrix.places, ["6.12/cpus=1", "6.12/cpus=4", "mainline/cpus=1", "mainline/cpus=4"]);
        let all: usize = matrix.rows.iter().flat_map(|(_, cells)| cells).map(Vec::len).sum();
        assert_eq!(all, outcome.tests.len());
        let (_, stress) = matrix.rows.iter().find(|(name, _)| *name == "stress").unwrap();
        assert_eq!(stress.iter().map(Vec::len).collect::<Vec<_>>(), [0, 0, 2, 0]);
    }
}
