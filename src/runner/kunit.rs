//! Tests that are part of the kernel (KUnit, built in): it runs them before there would be user space, and tells the
//! results on its console. Nothing else is needed: neither root nor agent.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempt::{Bench, Course, Unable, end, on_case};
use super::config::Cell;
use super::consoles::Consoles;
use super::keeper::Found;
use super::place::Place;
use super::pool::Running;
use crate::machine::watch::Companion;
use crate::machine::{Control, Ending};
use crate::run::Bare;

/// How often the results are looked at.
const LOOK: Duration = Duration::from_millis(100);
/// How long a kernel that has told all its results may take to end by itself: what it says last belongs to them.
const LAST_WORDS: Duration = Duration::from_millis(300);

/// Runs the kernel until it has told all its results, or ends.
pub(super) fn course(cell: &Cell, filter: Option<&str>, bench: &Bench, place: &Place) -> Result<Course, Unable> {
    let consoles = Consoles::new(&cell.rules.policy(), on_case(cell, bench));
    let mut spec = cell.run.clone();
    spec.machine.log = Some(place.console());
    let bare = Bare::new(&spec, &words(filter), vec![consoles.clone()])?;
    bare.debugging().iter().for_each(|notice| bench.observer.note(notice));
    let _watched = bench.stop.watch(Running::Bare(bare.control().clone()));
    let mut until_complete =
        UntilComplete { consoles: consoles.clone(), control: bare.control().clone(), complete: None };
    let engine = bare.engine();
    let ended = bare.until_end(&mut until_complete);
    let heard = consoles.finish(end(&ended.verdict));
    Ok(Course {
        verdict: ended.verdict,
        stages: ended.stages,
        engine,
        kernel: ended.kernel,
        heard,
        printed: None,
        found: Found::default(),
    })
}

/// What makes the kernel run its tests, and end if it knows how (Documentation/dev-tools/kunit/run_manual.rst). A kernel
/// that has no KUnit takes no notice.
fn words(filter: Option<&str>) -> String {
    let filter = filter.map(|filter| format!(" kunit.filter_glob={filter}")).unwrap_or_default();
    format!("loglevel=7 kunit.enable=1 kunit_shutdown=poweroff{filter}")
}

/// Ends the machine when all results are there: what a kernel without root does next is no part of its tests.
struct UntilComplete {
    consoles: Arc<Consoles>,
    control: Arc<Control>,
    complete: Option<Instant>,
}

impl Companion for UntilComplete {
    fn signal(&mut self, _signal: i32) -> bool {
        false
    }

    fn look(&mut self) -> Option<Instant> {
        let now = Instant::now();
        if self.complete.is_none() && self.consoles.is_complete() {
            self.complete = Some(now);
        }
        if self.complete.is_some_and(|since| now.duration_since(since) >= LAST_WORDS) {
            self.control.end(Ending::PowerOff);
            return None;
        }
        Some(now + LOOK)
    }
}
