//! One attempt at one test: its machine from the start to the judgement. On a thread of the pool.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use super::config::{Cell, InFile, What};
use super::consoles::{Consoles, Heard, OnCase};
use super::judge::{Seen, is_over, is_without_user_space, judge};
use super::keeper::{Fails, Found, Keeper, Shell, Wanted};
use super::ktap::{End, Ktap};
use super::outcome::{Action, Case, Splat, Status, TestResult};
use super::output::Printed;
use super::place::Place;
use super::pool::{Running, Stop};
use super::report::live::Observer;
use super::{backtrace, kselftest, kunit, taint};
use crate::host::causes::causes;
use crate::host::contain::contain;
use crate::machine::verdict::Verdict;
use crate::run::{self, KernelReport, Run, RunSpec, Stages};

/// What all tests have in common.
pub(super) struct Bench {
    pub began: Instant,
    /// Where all that is kept goes.
    pub directory: PathBuf,
    /// Where the tests are described.
    pub config: Option<InFile>,
    pub observer: Arc<dyn Observer>,
    pub stop: Arc<Stop>,
    /// Where coverage data go.
    pub gcov: Option<PathBuf>,
    /// A shell for who wants to look around after a failure.
    pub shell: bool,
}

/// How a machine ran.
pub(super) struct Course {
    pub verdict: Verdict,
    pub stages: Stages,
    pub engine: &'static str,
    pub kernel: KernelReport,
    pub heard: Heard,
    /// Cases and last lines of the command's output.
    pub printed: Option<(Ktap, String)>,
    pub found: Found,
}

/// A machine did not come to run.
pub(super) struct Unable {
    pub why: String,
    /// Another attempt may do better.
    pub again: bool,
}

impl From<run::Error> for Unable {
    fn from(error: run::Error) -> Self {
        let again = matches!(error, run::Error::Machine(_) | run::Error::Host(..) | run::Error::Registry(_));
        Self { why: causes(&error), again }
    }
}

impl From<std::io::Error> for Unable {
    fn from(error: std::io::Error) -> Self {
        Self { why: format!("Cannot keep what the test prints: {error}"), again: false }
    }
}

/// Runs the test, again if it is not the test's fault that it did not come to an end.
pub(super) fn run(cell: &Cell, bench: &Bench) -> TestResult {
    let tries = 1 + cell.rules.retry_infra.unwrap_or(0);
    let mut number = 1;
    loop {
        let (result, again) = attempt(cell, bench, number);
        if !again || number >= tries || bench.stop.is_now() {
            return result;
        }
        number += 1;
    }
}

/// One attempt, and whether another one may do better.
fn attempt(cell: &Cell, bench: &Bench, number: u32) -> (TestResult, bool) {
    let start = Instant::now();
    let mut result = blank(cell, bench, number);
    let course = contain("the test's thread", || {
        let place = Place::new(&bench.directory, &cell.id)?;
        place.describe(cell, &result.reproduce)?;
        result.artifacts = Some(place.path().into());
        match &cell.what {
            What::Kunit { filter } => kunit::course(cell, filter.as_deref(), bench, &place),
            What::Kselftest { dir, collection, tests } => {
                command(cell, &kselftest::run(&cell.run, dir, collection, tests), bench, &place)
            }
            What::Command => command(cell, &cell.run, bench, &place),
        }
    });
    let again = match course.unwrap_or_else(|why| Err(Unable { why, again: false })) {
        Ok(course) => conclude(cell, course, &mut result),
        Err(unable) => {
            (result.status, result.reason) = (Status::Error, Some(unable.why));
            unable.again
        }
    };
    result.seconds = start.elapsed().as_secs_f64();
    if let Some(Err(e)) = result.artifacts.clone().map(|path| Place::at(path).conclude(&result)) {
        tracing::warn!("{}: cannot keep the result: {e}", cell.id);
    }
    (result, again)
}

fn blank(cell: &Cell, bench: &Bench, attempt: u32) -> TestResult {
    TestResult {
        id: cell.id.clone(),
        kernel: cell.kernel.clone(),
        machine: cell.machine.clone(),
        test: cell.test.clone(),
        status: Status::Error,
        reason: None,
        cases: Vec::new(),
        splats: Vec::new(),
        verdict: None,
        attempt,
        start: bench.began.elapsed().as_secs_f64(),
        seconds: 0.0,
        stages: None,
        engine: None,
        release: None,
        tail: String::new(),
        notes: Vec::new(),
        artifacts: None,
        reproduce: cell.reproduce(bench.config.as_ref()),
    }
}

/// Hears of cases for the observer.
pub(super) fn on_case(cell: &Cell, bench: &Bench) -> OnCase {
    let (id, observer) = (cell.id.clone(), bench.observer.clone());
    Arc::new(move |case: &Case| observer.case(&id, case))
}

/// A command in a guest.
fn command(cell: &Cell, run: &RunSpec, bench: &Bench, place: &Place) -> Result<Course, Unable> {
    let consoles = Consoles::new(&cell.rules.policy(), on_case(cell, bench));
    let printed = Printed::new(&place.output(), consoles.clone(), on_case(cell, bench))?;
    let run_spec = talkative(run, place);
    let tree = run.machine.kernel.clone().filter(|kernel| kernel.is_dir());
    let run = Run::watched(&run_spec, vec![consoles.clone()])?;
    let (keeper, found) = Keeper::new(Wanted {
        artifacts: cell.rules.artifacts.clone(),
        to: place.path().into(),
        gcov: bench.gcov.as_ref().map(|to| to.join(super::place::relative(&cell.id))),
        tree,
        shell: bench.shell.then(|| Shell {
            fails: fails(cell, &consoles, &printed),
            machine: run.handle(),
            observer: bench.observer.clone(),
        }),
    });
    let run = run.io(printed.io()).attendant(Box::new(keeper));
    run.debugging().iter().for_each(|notice| bench.observer.note(notice));
    let _watched = bench.stop.watch(Running::Run(run.handle()));
    let ended = run.start()?.until_end(None, &mut || {})?;
    let end = end(&ended.report.verdict);
    let found = std::mem::take(&mut *found.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Course {
        verdict: ended.report.verdict,
        stages: ended.report.stages,
        engine: ended.report.numbers.engine,
        kernel: ended.report.kernel,
        heard: consoles.finish(end),
        printed: Some(printed.finish(end)),
        found,
    })
}

/// Says before the machine ends whether the test has failed, by what was printed so far.
fn fails(cell: &Cell, consoles: &Arc<Consoles>, printed: &Printed) -> Fails {
    let (cell, consoles, printed) = (cell.clone(), consoles.clone(), printed.clone());
    Box::new(move |outcome, taint| {
        let (verdict, heard) = (run::verdict_of(outcome), consoles.so_far());
        let (tainted, _) = taint::judge(taint, &cell.rules.policy());
        let (ktap, splats) = gathered(&cell, &verdict, printed.so_far().and(heard.ktap), heard.splats, tainted);
        let seen = Seen { what: &cell.what, verdict: &verdict, ktap: &ktap, splats: &splats };
        !judge(&seen, cell.expect).0.is_good()
    })
}

/// The same run, with all that the kernel says in the log: complaints are read from there.
fn talkative(spec: &RunSpec, place: &Place) -> RunSpec {
    let mut spec = spec.clone();
    spec.machine.log = Some(place.console());
    // Who replaces the whole line has it as he wants it.
    if spec.machine.cmdline.is_none() {
        let user = spec.machine.append.take().unwrap_or_default();
        spec.machine.append = Some(format!("loglevel=7 {user}").trim().to_string());
    }
    spec
}

/// How the sources of results ended.
pub(super) fn end(verdict: &Verdict) -> End {
    match verdict {
        Verdict::Panicked { .. } | Verdict::CpuDied { .. } | Verdict::NoVerdict { .. } => End::Died,
        Verdict::BootTimedOut { .. } | Verdict::TimedOut | Verdict::Silent { .. } => End::TimedOut,
        _ => End::Whole,
    }
}

/// Cases and complaints as they count for this test.
fn gathered(
    cell: &Cell,
    verdict: &Verdict,
    mut ktap: Ktap,
    mut splats: Vec<Splat>,
    tainted: Option<Splat>,
) -> (Ktap, Vec<Splat>) {
    cell.rules.expect_failures(&mut ktap.cases);
    splats.extend(tainted);
    let over = is_over(&Seen { what: &cell.what, verdict, ktap: &ktap, splats: &[] });
    splats.retain(|splat: &Splat| !(over && is_without_user_space(&splat.title)));
    (ktap, splats)
}

/// From what was seen to the result; whether another attempt may do better.
fn conclude(cell: &Cell, course: Course, result: &mut TestResult) -> bool {
    let Course { verdict, stages, engine, kernel, heard, printed, found } = course;
    let (output, tail) = printed.unwrap_or_default();
    let (tainted, note) = taint::judge(found.taint, &cell.rules.policy());
    let (ktap, mut splats) = gathered(cell, &verdict, output.and(heard.ktap), heard.splats, tainted);
    backtrace::decode(&mut splats, &kernel, &cell.run);
    let seen = Seen { what: &cell.what, verdict: &verdict, ktap: &ktap, splats: &splats };
    (result.status, result.reason) = judge(&seen, cell.expect);
    let again = result.status == Status::Error && matches!(verdict, Verdict::Failed { .. });
    // A guest that died says more on its console than its command did.
    let complained = splats.iter().any(|splat| splat.action == Action::Fail);
    let by_console = tail.is_empty() || matches!(end(&verdict), End::Died) || complained;
    result.tail = if by_console { heard.tail } else { tail };
    result.notes = found.problems;
    result.notes.extend(ktap.problems);
    result.notes.extend(note);
    (result.cases, result.splats) = (ktap.cases, splats);
    (result.verdict, result.stages, result.engine) = (Some(verdict), Some(stages), Some(engine.into()));
    result.release = kernel.release;
    again
}
