//! Which of the cells run: by name, by what failed before, in parts, several times.

use std::collections::BTreeSet;
use std::str::FromStr;

use serde::Deserialize;

use super::cell::{Cell, plan_id};
use super::pattern::{Pattern, did_you_mean};
use crate::runner::outcome::Status;

/// Most tests of a run.
const MOST: usize = 1_000_000;

/// What is asked for. By default everything, once.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// Filters of ids: a text that is in them, a pattern of all of one (with `*` or `?`), or `=ID` for exactly one. Those
    /// with `!` in front exclude. A cell runs if one of the others matches, or if there are no others.
    pub filters: Vec<String>,
    /// The part of them that runs here.
    pub shard: Option<Shard>,
    /// How often each runs; 0 and 1 are once.
    pub repeat: u32,
    /// Only those with these ids, see [`unfinished`].
    pub rerun: Option<Vec<String>>,
}

/// One part of several, which together are all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    /// Which: 1 to `of`.
    index: usize,
    /// How many there are, at least 1.
    of: usize,
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(index, of)| Some((index.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((index, of)) if (1..=of).contains(&index) => Ok(Self { index, of }),
            _ => Err(format!("`{text}`: write I/N with I from 1 to N, for example 1/4")),
        }
    }
}

/// Nothing can be selected so.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SelectError {
    #[error("--filter {filter} matches no test{near}; --list shows all")]
    Nothing { filter: String, near: String },
    #[error("No test is left by these filters; --list shows all")]
    NothingLeft,
    #[error("--repeat {0}: that makes more than {MOST} tests")]
    TooMany(u32),
    #[error("Not a report of belljar test --json: {0}")]
    Report(String),
}

/// The cells that are asked for, in their order. Parts are made last, so that those of one number are of a size.
pub fn select(cells: Vec<Cell>, selection: &Selection) -> Result<Vec<Cell>, SelectError> {
    let mut cells = filter(cells, &selection.filters)?;
    if let Some(rerun) = &selection.rerun {
        let wanted: BTreeSet<_> = rerun.iter().map(|id| plan_id(id)).collect();
        cells.retain(|cell| wanted.contains(cell.plan_id()));
    }
    let cells = repeat(cells, selection.repeat)?;
    let Some(Shard { index, of }) = selection.shard else { return Ok(cells) };
    Ok(cells.into_iter().skip(index - 1).step_by(of).collect())
}

fn filter(mut cells: Vec<Cell>, filters: &[String]) -> Result<Vec<Cell>, SelectError> {
    let (without, with): (Vec<_>, Vec<_>) = filters.iter().partition(|filter| filter.starts_with('!'));
    for filter in &with {
        if !cells.iter().any(|cell| matches(filter, cell)) {
            let word = plan_id(filter.trim_start_matches('='));
            let near = did_you_mean(word, cells.iter().map(Cell::plan_id));
            return Err(SelectError::Nothing { filter: filter.to_string(), near });
        }
    }
    if !with.is_empty() {
        cells.retain(|cell| with.iter().any(|filter| matches(filter, cell)));
    }
    cells.retain(|cell| !without.iter().any(|filter| matches(filter.trim_start_matches('!'), cell)));
    if cells.is_empty() && !filters.is_empty() { Err(SelectError::NothingLeft) } else { Ok(cells) }
}

fn matches(filter: &str, cell: &Cell) -> bool {
    let id = cell.plan_id();
    match filter.strip_prefix('=') {
        // With the number of a repetition it is the same test.
        Some(exact) => plan_id(exact) == id,
        None if Pattern::is_wild(filter) => Pattern::new(filter).matches(id),
        None => id.contains(filter),
    }
}

/// All of them, then all of them again: so what fails by chance meets other neighbours.
fn repeat(cells: Vec<Cell>, times: u32) -> Result<Vec<Cell>, SelectError> {
    if times <= 1 {
        return Ok(cells);
    }
    if cells.len().saturating_mul(times as usize) > MOST {
        return Err(SelectError::TooMany(times));
    }
    let round =
        |number: u32| cells.iter().map(move |cell| Cell { id: format!("{}#{number}", cell.plan_id()), ..cell.clone() });
    Ok((1..=times).flat_map(round).collect())
}

/// Ids of the tests that have to run again by a report of `--json`: those that went wrong, and those that did not run.
pub fn unfinished(report: &str) -> Result<Vec<String>, SelectError> {
    #[derive(Deserialize)]
    struct Report {
        tests: Vec<Test>,
        #[serde(default, alias = "not-run")]
        not_run: Vec<String>,
    }
    #[derive(Deserialize)]
    struct Test {
        id: String,
        status: Status,
    }
    let report: Report = serde_json::from_str(report).map_err(|error| SelectError::Report(error.to_string()))?;
    let wrong = report.tests.into_iter().filter(|test| !test.status.is_good()).map(|test| test.id);
    Ok(wrong.chain(report.not_run).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::RunSpec;
    use crate::runner::config::What;
    use proptest::prelude::*;

    fn cells(ids: &[&str]) -> Vec<Cell> {
        let cell = |id: &&str| Cell { id: id.to_string(), ..Cell::alone(RunSpec::default(), What::Command) };
        ids.iter().map(cell).collect()
    }

    fn ids(cells: Vec<Cell>) -> Vec<String> {
        cells.into_iter().map(|cell| cell.id).collect()
    }

    fn filtered(filters: &[&str]) -> Result<Vec<String>, SelectError> {
        let filters = filters.iter().map(|filter| filter.to_string()).collect();
        let cells = cells(&["6.1/net", "6.1/net.tls", "6.12/net", "6.12/mm"]);
        select(cells, &Selection { filters, ..Selection::default() }).map(ids)
    }

    #[test]
    fn filters_choose_by_id() {
        assert_eq!(filtered(&["mm"]).unwrap(), ["6.12/mm"]);
        assert_eq!(filtered(&["6.1/*"]).unwrap(), ["6.1/net", "6.1/net.tls"]);
        assert_eq!(filtered(&["=6.1/net"]).unwrap(), ["6.1/net"]);
        assert_eq!(filtered(&["=6.12/net#3", "tls"]).unwrap(), ["6.1/net.tls", "6.12/net"]);
        assert_eq!(filtered(&["!net"]).unwrap(), ["6.12/mm"]);
        assert_eq!(filtered(&["net", "!=6.1/net", "!*.tls"]).unwrap(), ["6.12/net"]);
    }

    #[test]
    fn filters_that_match_nothing_are_slips() {
        let error = filtered(&["=6.12/nte"]).unwrap_err().to_string();
        assert_eq!(error, "--filter =6.12/nte matches no test; did you mean `6.12/net`?; --list shows all");
        assert_eq!(filtered(&["net", "!6.*"]), Err(SelectError::NothingLeft));
    }

    #[test]
    fn tests_are_repeated_by_rounds() {
        let select = |repeat| {
            let selection = Selection { repeat, ..Selection::default() };
            super::select(cells(&["a", "b"]), &selection).map(ids)
        };
        assert_eq!(select(2).unwrap(), ["a#1", "b#1", "a#2", "b#2"]);
        assert_eq!(select(0).unwrap(), ["a", "b"]);
        assert_eq!(select(u32::MAX), Err(SelectError::TooMany(u32::MAX)));
    }

    #[test]
    fn what_went_wrong_runs_again() {
        let report = r#"{"tests": [{"id": "a", "status": "pass"}, {"id": "b#2", "status": "crash", "kernel": "k"},
                        {"id": "c", "status": "error"}, {"id": "d", "status": "xfail"}], "not_run": ["e"]}"#;
        assert_eq!(unfinished(report).unwrap(), ["b#2", "c", "e"]);
        let selection = Selection { rerun: Some(unfinished(report).unwrap()), ..Selection::default() };
        assert_eq!(ids(select(cells(&["a", "b", "c", "d", "e", "f"]), &selection).unwrap()), ["b", "c", "e"]);
        assert!(unfinished("[]").is_err() && unfinished("{\"tests\": [{\"id\": \"a\"}]}").is_err());
    }

    #[test]
    fn shards_are_written_from_one() {
        assert_eq!("2/3".parse(), Ok(Shard { index: 2, of: 3 }));
        for bad in ["0/3", "4/3", "1/0", "1", "a/b", "1/2/3"] {
            assert!(bad.parse::<Shard>().unwrap_err().contains("1/4"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_cell_is_in_exactly_one_shard(count in 0usize..40, of in 1usize..12, repeat in 0u32..4) {
            let names: Vec<_> = (0..count).map(|number| format!("t{number}")).collect();
            let names: Vec<_> = names.iter().map(String::as_str).collect();
            let all = |shard| select(cells(&names), &Selection { shard, repeat, ..Selection::default() }).map(ids).unwrap();
            let parts: Vec<_> = (1..=of).map(|index| all(Some(Shard { index, of }))).collect();
            let sizes = parts.iter().map(Vec::len);
            prop_assert!(sizes.clone().max().unwrap() - sizes.min().unwrap() <= 1);
            let mut together = parts.concat();
            let mut whole = all(None);
            together.sort();
            whole.sort();
            prop_assert_eq!(together, whole);
        }
    }
}
