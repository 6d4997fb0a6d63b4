//! The course of a run: the machine is built and started, its agent awaited, the command run, the end and its verdict.
//!
//! | thread | does |
//! | --- | --- |
//! | the caller's | builds, then watches (`machine::watch`): time limits, signals if it was told of them |
//! | `session` | attends to the agent and the command (`session`) |
//! | `control`, `control-client` | serve other commands of the user (`server`) |
//!
//! Nothing here takes over the process: signals and terminals are the command line's, which hands over what it wants.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::attendant::Attendant;
use super::channel::Channel;
use super::guest::{Guest, LastOutput};
use super::last_words::keep_log;
use super::prepare::Prepared;
use super::registry::{self, Home, Record, Registry};
use super::report::{KernelReport, Numbers, Report, Stages};
use super::server::Server;
use super::session::Session;
use super::spec::RunSpec;
use super::steward::Steward;
use super::{Error, assemble, verdict};
use crate::agent::{self, Agent, Io, Outcome, Size};
use crate::debug::Debugger;
use crate::devices::console_output::ConsoleWatcher;
use crate::host::clock;
use crate::host::signal::Signals;
use crate::machine::leash::Break;
use crate::machine::verdict::Verdict;
use crate::machine::watch::Watch;
use crate::machine::{Machine, MachineBuilder};

/// How long the last output of a command may take to reach its reader when the machine has ended before the command.
const LAST_OUTPUT: Duration = Duration::from_secs(2);

/// A machine that is about to run a command, or does.
pub struct Run {
    debugger: Debugger,
    machine: Machine,
    guest: Arc<Guest>,
    session: Option<Session>,
    spec: RunSpec,
    kernel: KernelReport,
    notices: Vec<String>,
    log: PathBuf,
    begin: u64,
    detached: bool,
    /// Ends before the directory of its socket.
    _server: Server,
    home: Home,
}

impl std::fmt::Debug for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Run").field("name", &self.home.name()).finish_non_exhaustive()
    }
}

impl Run {
    /// Finds the kernel, builds the machine. Nothing runs yet. Of the command's input and output, and of its terminal,
    /// see [`Run::io`].
    pub fn new(spec: &RunSpec) -> Result<Self, Error> {
        Self::watched(spec, Vec::new())
    }

    /// The same; `watchers` see all that the consoles print.
    pub fn watched(spec: &RunSpec, watchers: Vec<Arc<dyn ConsoleWatcher>>) -> Result<Self, Error> {
        let begin = clock::monotonic_nanos();
        let prepared = Prepared::new(spec)?;
        let home = Registry::user()?.create(spec.name.as_deref())?;
        let channel = Channel::new(prepared.channel, &home).map_err(|e| Error::Host("make a socket", e))?;
        let mut machine_spec = prepared.machine.clone();
        channel.add_device(&mut machine_spec)?;
        let log = machine_spec.log.get_or_insert_with(|| home.file(registry::CONSOLE_LOG)).clone();
        let initramfs = assemble::initramfs(&prepared, &channel, home.name())?;
        let console = Arc::new(LastOutput::default());
        let builder = Machine::builder(&machine_spec).initrd(initramfs).watch_consoles(console.clone());
        let machine = watchers.into_iter().fold(builder, MachineBuilder::watch_consoles).build()?;
        let debugger = Debugger::on_request(&machine, &machine_spec)?;
        let guest = Arc::new(Guest::new(machine.control().clone(), debugger.dumps(), console));
        let server = Server::start(&home.file(registry::CONTROL), guest.clone());
        let kernel = KernelReport {
            path: prepared.kernel.image.clone(),
            release: prepared.kernel.release.clone().or_else(|| machine.kernel().version.clone()),
            origin: prepared.kernel.origin.clone(),
        };
        let mut notices = prepared.notices;
        notices.extend(machine.notice().map(str::to_string));
        notices.extend(debugger.notices().iter().cloned());
        Ok(Self {
            session: Some(Session {
                guest: guest.clone(),
                channel,
                exec: prepared.exec,
                io: Io::none(),
                attendant: None,
            }),
            _server: server.map_err(|e| Error::Host("listen for other commands", e))?,
            spec: spec.clone(),
            debugger,
            machine,
            guest,
            kernel,
            notices,
            log,
            begin,
            detached: false,
            home,
        })
    }

    /// The machine's name, for other commands on this host.
    pub fn name(&self) -> &str {
        self.home.name()
    }

    /// What is not as wished, and what is done instead; a sentence each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// What the user of a debugger has to know: a part of [`Run::notices`].
    pub fn debugging(&self) -> &[String] {
        self.debugger.notices()
    }

    /// A file in the machine's directory, which goes with this value.
    pub fn file(&self, name: &str) -> PathBuf {
        self.home.file(name)
    }

    /// Where the command's input comes from and its output goes; without this, nowhere.
    #[must_use]
    pub fn io(mut self, io: Io) -> Self {
        if let Some(session) = &mut self.session {
            session.io = io;
        }
        self
    }

    /// Somebody who does more in the guest, before the command and after it.
    #[must_use]
    pub fn attendant(mut self, attendant: Box<dyn Attendant>) -> Self {
        if let Some(session) = &mut self.session {
            session.attendant = Some(attendant);
        }
        self
    }

    /// The command gets a terminal of this size, which follows that of this process.
    #[must_use]
    pub fn terminal(mut self, size: Size) -> Self {
        let exec = self.session.as_mut().and_then(|session| session.exec.as_mut());
        exec.into_iter().for_each(|exec| exec.terminal = Some(size));
        self
    }

    /// Nobody waits for the command: its output is kept in the machine's directory.
    #[must_use]
    pub fn detached(mut self) -> Self {
        self.detached = true;
        self
    }

    /// Something by which other threads reach the machine.
    pub fn handle(&self) -> Handle {
        Handle(self.guest.clone())
    }

    /// Starts the machine and its command.
    pub fn start(mut self) -> Result<Running, Error> {
        self.home.publish(&self.record())?;
        let session = self.session.take().ok_or(Error::Twice)?;
        let session = session.start().map_err(|e| Error::Host("start a thread", e))?;
        self.machine.start();
        Ok(Running { run: self, session })
    }

    fn record(&self) -> Record {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Record {
            name: self.name().into(),
            pid: std::process::id(),
            started: now.as_secs(),
            engine: self.machine.engine().into(),
            kernel: self.kernel.release.clone().unwrap_or_else(|| self.kernel.origin.clone()),
            command: self.spec.command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
            detached: self.detached,
            log: self.log.clone(),
        }
    }
}

/// Reaches a machine from any thread.
#[derive(Debug, Clone)]
pub struct Handle(Arc<Guest>);

impl Handle {
    /// The guest's agent, for more commands and for files; an error before the guest is ready.
    pub fn agent(&self) -> Result<&Agent, agent::Error> {
        self.0.agent()
    }

    /// Asks the guest to end all its programs and to power off; the second time the machine ends at once.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Does `work`, in which the user looks around in the guest: its time counts for no limit.
    pub fn untimed<T>(&self, work: impl FnOnce() -> T) -> T {
        let control = self.0.control();
        let leash = || control.leash().into_iter();
        leash().for_each(|leash| leash.begin_break(Break::Shell));
        let done = work();
        leash().for_each(|leash| leash.end_break(Break::Shell));
        control.wake();
        done
    }
}

/// A machine that runs.
#[derive(Debug)]
pub struct Running {
    run: Run,
    session: JoinHandle<()>,
}

impl Running {
    /// The machine's name.
    pub fn name(&self) -> &str {
        self.run.name()
    }

    /// Something by which other threads reach the machine.
    pub fn handle(&self) -> Handle {
        self.run.handle()
    }

    /// A file in the machine's directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.run.file(name)
    }

    /// Waits for the end. `signals`, if given, go to the command; `on_ready` is called once when the command runs, or the
    /// guest is ready for those of others.
    pub fn until_end(self, signals: Option<&Signals>, on_ready: &mut dyn FnMut()) -> Result<Ended, Error> {
        let Self { run, session } = self;
        let spec = &run.spec;
        let mut steward = Steward::new(&run.guest, spec, run.machine.engine(), on_ready);
        let limit = spec.machine.timeout.map(Duration::from_secs);
        let watch = Watch::new(&run.machine).limit(limit).signals(signals).companion(&mut steward);
        let ending = watch.until_end();
        let control = run.machine.control().clone();
        let numbers = Numbers::of(&run.machine);
        drop(run.debugger);
        // Closes the channel, so that the session ends too.
        drop(run.machine);
        let limit = Instant::now() + LAST_OUTPUT;
        while !session.is_finished() && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
        let progress = run.guest.progress();
        let verdict = verdict::of_run(ending, &control, &progress);
        let (log, tail) = keep_log(&verdict, &run.log, &run.home, spec.machine.log.is_some());
        let stages = Stages::new(run.begin, &numbers.timing, &progress);
        let name = run.home.name().to_string();
        let report = Report {
            exit_code: verdict.exit_code(),
            verdict,
            name,
            kernel: run.kernel,
            notices: run.notices,
            stages,
            numbers,
            log,
        };
        Ok(Ended { report, tail })
    }
}

/// A machine that has ended.
#[derive(Debug)]
pub struct Ended {
    /// What came of it.
    pub report: Report,
    /// What the consoles printed last, if that matters: a guest that died.
    pub tail: Option<String>,
}

impl Ended {
    /// How the command ended, if it did.
    pub fn status(&self) -> Option<Outcome> {
        match self.report.verdict {
            Verdict::Finished { status } => Some(Outcome::Exited(status)),
            Verdict::Killed { signal } => Some(Outcome::Signalled(signal)),
            _ => None,
        }
    }
}
