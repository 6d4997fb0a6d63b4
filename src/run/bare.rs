//! A kernel that runs without user space: its own tests, or whatever else it does before there would be any.

use std::sync::Arc;

use super::Error;
use super::prepare::consoles;
use super::report::{KernelReport, Numbers, Stages};
use super::spec::RunSpec;
use crate::debug::Debugger;
use crate::devices::console_output::ConsoleWatcher;
use crate::kernel;
use crate::machine::verdict::Verdict;
use crate::machine::watch::{Companion, Watch};
use crate::machine::{Control, Machine};

/// A machine that has a kernel and nothing else.
#[derive(Debug)]
pub struct Bare {
    /// Goes before the machine.
    debugger: Option<Debugger>,
    machine: Machine,
    kernel: KernelReport,
    limit: Option<u64>,
}

/// What came of it.
#[derive(Debug)]
pub struct BareEnd {
    /// How it ended.
    pub verdict: Verdict,
    /// When it reached what; there are no stages of a command.
    pub stages: Stages,
    /// What was counted.
    pub numbers: Numbers,
    /// Its kernel.
    pub kernel: KernelReport,
}

impl Bare {
    /// Builds the machine of `spec`. Of the rest of it only the time limit counts. The kernel gets `words` on its command
    /// line, before those of the specification; `watchers` see all that the consoles print.
    pub fn new(spec: &RunSpec, words: &str, watchers: Vec<Arc<dyn ConsoleWatcher>>) -> Result<Self, Error> {
        spec.machine.validate_but_kernel()?;
        let wanted = spec.machine.kernel.as_deref().map(|path| path.to_str().ok_or_else(|| Error::Name(path.into())));
        let kernel = kernel::find(wanted.transpose()?, spec.modules.as_deref())?;
        let mut machine = spec.machine.clone();
        machine.kernel = Some(kernel.image.clone());
        consoles(&mut machine, &kernel, false)?;
        match &mut machine.cmdline {
            // It was given as a whole; without these words the kernel would do nothing.
            Some(line) => *line = format!("{line} {words}"),
            None => {
                let user = machine.append.take().unwrap_or_default();
                machine.append = Some(format!("{words} {user}").trim().to_string());
            }
        }
        let builder = watchers.into_iter().fold(Machine::builder(&machine), |b, watcher| b.watch_consoles(watcher));
        let built = builder.build()?;
        let release = kernel.release.clone().or_else(|| built.kernel().version.clone());
        let kernel = KernelReport { path: kernel.image.clone(), release, origin: kernel.origin.clone() };
        let debugger = Debugger::start(&built, &machine)?;
        Ok(Self { debugger, machine: built, kernel, limit: machine.timeout })
    }

    /// How the machine is told to end.
    pub fn control(&self) -> &Arc<Control> {
        self.machine.control()
    }

    /// What the user of a debugger has to know, a sentence each.
    pub fn debugging(&self) -> &[String] {
        self.debugger.as_ref().map_or(&[], Debugger::notices)
    }

    /// Name of the engine that runs the CPUs.
    pub fn engine(&self) -> &'static str {
        self.machine.engine()
    }

    /// Runs it until its end, or until `companion` ends it.
    pub fn until_end(self, companion: &mut dyn Companion) -> BareEnd {
        self.machine.start();
        let limit = self.limit.map(std::time::Duration::from_secs);
        let ending = Watch::new(&self.machine).limit(limit).companion(companion).until_end();
        let verdict = Verdict::of(ending, self.machine.control());
        let numbers = Numbers::of(&self.machine);
        let stages = Stages::new(numbers.timing.begin, &numbers.timing, &super::guest::Progress::default());
        // The last output reaches the watchers before anybody looks at the result.
        drop(self.debugger);
        drop(self.machine);
        BareEnd { verdict, stages, numbers, kernel: self.kernel }
    }
}
