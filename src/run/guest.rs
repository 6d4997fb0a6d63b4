//! A running guest, as the threads of its run share it: the watching thread, the one that attends to the agent, and those
//! that serve other commands.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::agent::{self, Agent, Outcome, Process, Ready};
use crate::debug::Dumps;
use crate::devices::console_output::ConsoleWatcher;
use crate::machine::Control;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Guest {
    control: Arc<Control>,
    dumps: Dumps,
    agent: OnceLock<Agent>,
    /// Its command.
    process: Mutex<Option<Process>>,
    progress: Mutex<Progress>,
    console: Arc<LastOutput>,
}

/// How far a guest has come, and when.
#[derive(Debug, Clone, Default)]
pub(super) struct Progress {
    /// The agent carried out its plan; what it says.
    pub ready: Option<(Instant, Ready)>,
    /// The command runs.
    pub started: Option<Instant>,
    /// Its first output came.
    pub first_output: Option<Instant>,
    /// It ended; all its output is written.
    pub outcome: Option<(Instant, Outcome)>,
    /// The guest is about to be asked to power off, since its command has ended.
    pub over: Option<Instant>,
    /// Somebody asked for the end of the guest.
    pub stopped: Option<Instant>,
    /// The agent is gone, and why.
    pub lost: Option<(Instant, String)>,
}

/// When a console printed last.
#[derive(Debug, Default)]
pub(super) struct LastOutput(Mutex<Option<Instant>>);

impl ConsoleWatcher for LastOutput {
    fn output(&self, _source: &str, _bytes: &[u8]) {
        *lock(&self.0) = Some(Instant::now());
    }
}

impl Guest {
    pub(super) fn new(control: Arc<Control>, dumps: Dumps, console: Arc<LastOutput>) -> Self {
        let (agent, process, progress) = Default::default();
        Self { control, dumps, agent, process, progress, console }
    }

    pub(super) fn control(&self) -> &Control {
        &self.control
    }

    /// Writes core dumps of it.
    pub(super) fn dumps(&self) -> &Dumps {
        &self.dumps
    }

    /// How far it has come.
    pub(super) fn progress(&self) -> Progress {
        lock(&self.progress).clone()
    }

    /// Notes something and makes the watching thread look at it.
    pub(super) fn note(&self, change: impl FnOnce(&mut Progress)) {
        change(&mut lock(&self.progress));
        self.control.wake();
    }

    /// The agent is there, and ready.
    pub(super) fn set_agent(&self, agent: Agent, ready: Ready) {
        // A guest has one agent, and one thread that attends to it.
        let _ = self.agent.set(agent);
        self.note(|progress| progress.ready = Some((Instant::now(), ready)));
    }

    /// The agent, once it is ready.
    pub(super) fn agent(&self) -> Result<&Agent, agent::Error> {
        self.agent.get().ok_or(agent::Error::NotReady)
    }

    /// The command of this guest, while it runs.
    pub(super) fn process(&self) -> MutexGuard<'_, Option<Process>> {
        lock(&self.process)
    }

    /// How long nobody has printed anything; none before the guest was ready.
    pub(super) fn silence(&self) -> Option<Duration> {
        let (ready, _) = self.progress().ready?;
        let command = self.process().as_ref().and_then(Process::last_output);
        let last = [Some(ready), command, *lock(&self.console.0)].into_iter().flatten().max();
        last.map(|last| last.elapsed())
    }

    /// Asks the guest to power off. The second time, or if it cannot be asked, the machine ends at once.
    pub(super) fn stop(&self) {
        let asked = lock(&self.progress).stopped.is_some();
        let shutdown = || self.agent().and_then(Agent::shutdown).is_ok();
        if asked || !shutdown() {
            self.control.end(crate::machine::Ending::Stopped(Some(libc::SIGTERM)));
        }
        self.note(|progress| {
            progress.stopped.get_or_insert_with(Instant::now);
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
