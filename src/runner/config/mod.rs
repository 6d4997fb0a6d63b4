//! `belljar.toml`: kernels, machines, roots and tests, and the cells that they make. A command line without a file is the
//! same with one cell. Called by `belljar test` before anything is started; docs/test-config.md is its page.
//!
//! The tables are parts of one [`RunSpec`], written as in every other file of belljar. For each combination they are
//! merged as tables, in the order `[defaults]`, kernel, machine, root, test, and become a specification once. So a key
//! means the same wherever it stands, and what is new for runs is new for tests without a change here.
//!
//! | file | what it does |
//! | --- | --- |
//! | `read`, `keys`, `source` | from text to tables: what may stand where, and where a mistake is |
//! | `layer` | tables that are parts of one specification |
//! | `what`, `rules` | what a test does, and what shall come of it |
//! | `axis`, `matrix`, `plan` | kernels, machines and roots; which combinations there are; their cells |
//! | `paths` | paths are relative to the file |
//! | `cell`, `reproduce` | a test to be run, and the command line that runs it alone |
//! | `select`, `jobs` | which of the cells run, and how many at once |
//! | `pattern` | `*` and `?`, and names that are nearly right |

mod axis;
mod cell;
mod jobs;
mod keys;
mod layer;
mod matrix;
mod paths;
mod pattern;
mod plan;
mod read;
mod reproduce;
mod rules;
mod select;
mod source;
#[cfg(test)]
mod tests;
mod what;

use std::path::{Path, PathBuf};

pub use cell::Cell;
pub use jobs::jobs;
pub use reproduce::{InFile, quoted, with_value};
pub use rules::{Expect, Rules};
pub use select::{SelectError, Selection, Shard, select, unfinished};
pub use source::{Error, Place};
pub use what::What;

pub(super) use paths::is_of_the_guest;

use crate::run::RunSpec;

/// Name of the file that is looked for where none is named.
pub const FILE: &str = "belljar.toml";

/// Tests, and what they are combined with.
#[derive(Debug, Clone)]
pub struct Suite(Origin);

#[derive(Debug, Clone)]
enum Origin {
    File { file: PathBuf, tables: Box<read::Tables> },
    CommandLine(Box<Cell>),
}

impl Suite {
    /// The suite in `text`, which stands in `file`. All mistakes that can be seen in the text are in the error.
    pub fn from_toml(text: &str, file: &Path) -> Result<Self, Error> {
        let tables = Box::new(read::tables(text, file)?);
        Ok(Self(Origin::File { file: file.to_owned(), tables }))
    }

    /// A suite of one test, as a command line says it.
    pub fn one_liner(run: RunSpec, what: What) -> Self {
        Self(Origin::CommandLine(Box::new(Cell::alone(run, what))))
    }

    /// All tests on all kernels, machines and roots. Here globs are looked up, in the directory of the file.
    pub fn cells(&self) -> Result<Vec<Cell>, Error> {
        self.cells_with(&|pattern| {
            let paths = glob::glob(pattern).map_err(|error| error.to_string())?;
            Ok(paths.filter_map(Result::ok).collect())
        })
    }

    fn cells_with(&self, glob: axis::Glob<'_>) -> Result<Vec<Cell>, Error> {
        match &self.0 {
            Origin::CommandLine(cell) => Ok(vec![Cell::clone(cell)]),
            Origin::File { file, tables } => {
                let base = file.parent().unwrap_or(Path::new(""));
                // Cells are read elsewhere too: in the directory of artifacts.
                let base = std::path::absolute(base.join(".")).unwrap_or_else(|_| base.to_owned());
                plan::cells(tables, file, &base, glob)
            }
        }
    }
}

/// For the fuzz target of this name: the cells of a text, on a host without files.
#[cfg(any(test, feature = "testkit"))]
pub(crate) fn look_at_suite(text: &str) -> Vec<Cell> {
    let suite = Suite::from_toml(text, Path::new("/nowhere/belljar.toml"));
    suite.and_then(|suite| suite.cells_with(&|_| Ok(Vec::new()))).unwrap_or_default()
}
