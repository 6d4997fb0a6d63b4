//! All tests of a list: begun on as many threads as wanted, heard of as they end, and put together.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant, SystemTime};

use super::attempt::{self, Bench};
use super::config::{Cell, InFile};
use super::outcome::{Outcome, TestResult};
use super::pool::{self, Stop};
use super::report::live::Observer;

/// How often the caller is asked while tests run.
const TICK: Duration = Duration::from_millis(100);

/// How a list of tests is run.
#[derive(Debug, Clone)]
pub struct Options {
    /// Machines at a time.
    pub jobs: usize,
    /// Begin no further test when one has failed.
    pub fail_fast: bool,
    /// Directory for all that is kept.
    pub directory: PathBuf,
    /// Where the tests are described, for the commands that repeat them.
    pub config: Option<InFile>,
    /// Directory for coverage data.
    pub gcov: Option<PathBuf>,
    /// Give the user's terminal a shell in the guest of a test that failed.
    pub shell_on_fail: bool,
}

/// Runs them. `tick` is called ten times a second on this thread, and may say [`Stop`].
pub fn run(
    cells: Vec<Cell>,
    options: &Options,
    observer: &Arc<dyn Observer>,
    stop: &Arc<Stop>,
    tick: &mut dyn FnMut(),
) -> std::io::Result<Outcome> {
    let (began, clock) = (SystemTime::now(), Instant::now());
    let bench = Bench {
        began: clock,
        directory: options.directory.clone(),
        config: options.config.clone(),
        observer: observer.clone(),
        stop: stop.clone(),
        gcov: options.gcov.clone(),
        shell: options.shell_on_fail,
    };
    let (count, cells) = (cells.len(), Arc::new(cells));
    let list = cells.clone();
    let results = pool::each(count, options.jobs, stop, move |index| {
        let cell = list.get(index)?;
        bench.observer.started(&cell.id, list.len());
        let result = attempt::run(cell, &bench);
        bench.observer.ended(&result);
        Some(result)
    })?;
    let mut tests: Vec<Option<TestResult>> = (0..count).map(|_| None).collect();
    loop {
        match results.recv_timeout(TICK) {
            Ok((index, Some(result))) => {
                if options.fail_fast && !result.status.is_good() {
                    stop.no_more();
                }
                if let Some(slot) = tests.get_mut(index) {
                    *slot = Some(result);
                }
            }
            Ok((_, None)) | Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        tick();
    }
    let not_run =
        cells.iter().zip(&tests).filter(|(_, test)| test.is_none()).map(|(cell, _)| cell.id.clone()).collect();
    Ok(Outcome {
        version: env!("CARGO_PKG_VERSION"),
        began: began.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        seconds: clock.elapsed().as_secs_f64(),
        tests: tests.into_iter().flatten().collect(),
        not_run,
    })
}
