//! One test on one kernel, machine and root.

use serde::Serialize;

use super::axis;
use super::rules::{Expect, Rules};
use super::what::What;
use crate::run::RunSpec;

/// A test to be run, in a machine of its own.
#[derive(Debug, Clone, Serialize)]
pub struct Cell {
    /// Unique: `KERNEL/MACHINE/ROOT/TEST`, of which those are left out that the file has no table of; `#N` follows if it
    /// is repeated.
    pub id: String,
    /// Label of the kernel.
    pub kernel: String,
    /// Label of the machine.
    pub machine: String,
    /// Label of the root.
    pub root: String,
    /// Name of the test.
    pub test: String,
    /// What it does.
    pub what: What,
    /// What shall come of it.
    pub expect: Expect,
    /// What else is said of it.
    pub rules: Rules,
    /// How it runs.
    pub run: RunSpec,
}

impl Cell {
    /// The only one of a command line.
    pub(super) fn alone(run: RunSpec, what: What) -> Self {
        let kernel = run.machine.kernel.as_ref().map(|kernel| axis::label(&kernel.to_string_lossy()));
        let test = match &what {
            What::Command => run.command.first().map_or_else(
                || "command".into(),
                |program| {
                    let program = program.to_string_lossy();
                    axis::as_name(program.rsplit('/').next().unwrap_or(&program))
                },
            ),
            What::Kunit { .. } => "kunit".into(),
            What::Kselftest { collection, .. } => axis::as_name(collection),
        };
        Self {
            id: test.clone(),
            kernel: kernel.unwrap_or_else(|| axis::DEFAULT.into()),
            machine: axis::DEFAULT.into(),
            root: axis::DEFAULT.into(),
            test,
            what,
            expect: Expect::default(),
            rules: Rules::default(),
            run,
        }
    }

    /// The id without the number of a repetition.
    pub fn plan_id(&self) -> &str {
        plan_id(&self.id)
    }
}

/// The id without the number of a repetition, which no name can hold.
pub(super) fn plan_id(id: &str) -> &str {
    id.split_once('#').map_or(id, |(id, _)| id)
}
