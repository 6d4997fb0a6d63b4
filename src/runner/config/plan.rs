//! From the tables of a file to cells: all combinations of kernels, machines, roots and tests that there shall be.

use std::path::Path;

use toml::{Table, Value};

use super::axis::{Axis, Glob, Variant};
use super::cell::Cell;
use super::keys::{RULES, Section};
use super::layer::{self, Layer};
use super::matrix::Labels;
use super::paths;
use super::read::{Tables, Test, as_keys};
use super::rules::Rules;
use super::source::{Error, Place, Problems};
use super::what::{Task, What};
use crate::run::RunSpec;

/// Most combinations of a suite.
const MOST: usize = 100_000;

/// All cells of `tables`, in the order of the file: for each kernel the machines, for each machine the roots, for each
/// root the tests.
pub(super) fn cells(tables: &Tables, file: &Path, base: &Path, glob: Glob<'_>) -> Result<Vec<Cell>, Error> {
    let mut problems = Problems::default();
    let axes = [
        Axis::kernels(&tables.kernels, base, glob, &mut problems),
        Axis::plain(Section::Machine, &tables.machines, &mut problems),
        Axis::plain(Section::Root, &tables.roots, &mut problems),
    ];
    let tests: Vec<_> = tables.tests.iter().flat_map(|test| test.tasks.iter().map(move |task| (test, task))).collect();
    check_patterns(tables, &axes, &mut problems);
    let combinations = axes.iter().map(|axis| axis.variants.len()).fold(tests.len(), usize::saturating_mul);
    if combinations > MOST {
        problems.add(Place::START, format!("{combinations} combinations: a suite has at most {MOST}"));
    }
    problems.result(file)?;
    let mut plan = Plan { tables, base, axes: &axes, problems: Problems::default(), cells: Vec::new() };
    plan.combine(&tests);
    if plan.cells.is_empty() && plan.problems.count() == 0 {
        plan.problems
            .add(tables.matrix.place, "no test is left: `include`, `exclude` and the tests' own lists leave none");
    }
    plan.problems.result(file).map(|()| plan.cells)
}

fn check_patterns(tables: &Tables, axes: &[Axis; 3], problems: &mut Problems) {
    let tests = tables.tests.iter().flat_map(|test| {
        let labels = test.tasks.iter().filter(|task| task.0.is_some()).map(|task| test_label(test, task));
        labels.chain([test.name.clone()])
    });
    let tests: Vec<_> = tests.collect();
    let [kernels, machines, roots] = axes;
    let tests = tests.iter().map(String::as_str).collect();
    let names = [kernels.labels(), machines.labels(), roots.labels(), tests];
    tables.matrix.check(&names, problems);
    tables.tests.iter().for_each(|test| test.only.check(&names, problems));
}

fn test_label(test: &Test, task: &Task) -> String {
    task.0.as_ref().map_or_else(|| test.name.clone(), |suffix| format!("{}.{suffix}", test.name))
}

struct Plan<'a> {
    tables: &'a Tables,
    base: &'a Path,
    axes: &'a [Axis; 3],
    problems: Problems,
    cells: Vec<Cell>,
}

impl Plan<'_> {
    fn combine(&mut self, tests: &[(&Test, &Task)]) {
        let [kernels, machines, roots] = self.axes;
        for kernel in &kernels.variants {
            for machine in &machines.variants {
                for root in &roots.variants {
                    for (test, task) in tests {
                        if self.problems.enough() {
                            return;
                        }
                        self.add([kernel, machine, root], test, task);
                    }
                }
            }
        }
    }

    fn add(&mut self, variants: [&Variant; 3], test: &Test, task: &Task) {
        let label = test_label(test, task);
        let [kernel, machine, root] = variants.map(|variant| variant.label.as_str());
        let labels = Labels { axes: [kernel, machine, root, &label], table: &test.name };
        if !self.tables.matrix.has(&labels) || !test.only.has(&labels) {
            return;
        }
        let written = variants.iter().zip(self.axes).filter(|(_, axis)| axis.written);
        let parts: Vec<_> = written.map(|(variant, _)| variant.label.as_str()).chain([label.as_str()]).collect();
        let id = parts.join("/");
        let [a, b, c] = variants.map(|variant| &variant.layer);
        let layers = [&self.tables.defaults, a, b, c, &test.layer];
        let Some((run, rules, what)) = self.settings(&layers, &task.1) else { return };
        let [kernel, machine, root] = [kernel, machine, root].map(str::to_owned);
        self.cells.push(Cell { id, kernel, machine, root, test: label, what, expect: test.expect, rules, run });
    }

    /// What all layers say together; nothing if that is wrong.
    fn settings(&mut self, layers: &[&Layer], what: &What) -> Option<(RunSpec, Rules, What)> {
        let mut run = layer::merge(layers);
        let mut rules = Table::new();
        for key in RULES {
            rules.extend(run.remove(*key).map(|value| ((*key).to_owned(), value)));
        }
        // What no table says is as for every run, not as for every machine.
        run.entry("memory").or_insert_with(|| Value::String(RunSpec::default().machine.memory.to_string()));
        let here = layer::place(layers, "");
        let parsed = run.try_into::<RunSpec>().and_then(|run| Ok((run, rules.try_into::<Rules>()?)));
        // Each key was looked at by itself; only together they can still be wrong.
        let (mut run, mut rules) = parsed.map_err(|error| self.problems.add(here, error.message().trim())).ok()?;
        paths::rebase(&mut run, self.base);
        rules.kselftest_dir = rules.kselftest_dir.map(|dir| paths::at(self.base, &dir));
        let mut what = what.clone();
        if let What::Kselftest { dir, .. } = &mut what {
            let Some(installed) = &rules.kselftest_dir else {
                let text =
                    "kselftest needs `kselftest-dir`, a directory made by make -C tools/testing/selftests install";
                self.problems.add(here, text);
                return None;
            };
            dir.clone_from(installed);
        }
        if let Err(error) = run.validate() {
            let text = error.to_string();
            let key = text.strip_prefix("--").and_then(|text| text.split([' ', ':']).next()).unwrap_or_default();
            self.problems.add(layer::place(layers, key), as_keys(&text));
            return None;
        }
        Some((run, rules, what))
    }
}
