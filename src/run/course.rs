//! The course of a run: the machine is built and started, its agent awaited, the command run, the end and its verdict.
//!
//! | thread | does |
//! | --- | --- |
//! | the caller's | builds, then watches (`machine::watch`): time limits, signals if it was told of them |
//! | `session` | attends to the agent and the command (`session`) |
//! | `control`, `control-client` | serve other commands of the user (`server`) |
//!
//! Nothing here takes over the process: signals and terminals are the command line's, which hands over what it wants.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use super::channel::Channel;
use super::guest::{Guest, LastOutput};
use super::prepare::{self, Prepared};
use super::registry::{self, Home, Record, Registry};
use super::report::{KernelReport, Numbers, Report, Stages};
use super::server::Server;
use super::session::Session;
use super::spec::RunSpec;
use super::{Error, assemble, verdict};
use crate::agent::{self, Agent, Io, Outcome, Size};
use crate::host::clock;
use crate::host::signal::Signals;
use crate::machine::verdict::Verdict;
use crate::machine::watch::{Companion, Watch};
use crate::machine::{Ending, Machine};

/// How long a guest may take to power off when its command has ended. Its own file systems may have much to write.
const POWER_OFF: Duration = Duration::from_secs(30);
/// How long a machine may go on without its agent.
const WITHOUT_AGENT: Duration = Duration::from_secs(5);
/// How long the last output of a command may take to reach its reader when the machine has ended before the command.
const LAST_OUTPUT: Duration = Duration::from_secs(2);
/// Signals of one kind that end the machine, whatever its command makes of them.
const INSIST: u32 = 3;
/// How much of the console is shown when a kernel has died.
const TAIL: u64 = 4 << 10;

/// A machine that is about to run a command, or does.
pub struct Run {
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
        let machine = builder.build()?;
        let guest = Arc::new(Guest::new(machine.control().clone(), console));
        let server = Server::start(&home.file(registry::CONTROL), guest.clone());
        let kernel = KernelReport {
            path: prepared.kernel.image.clone(),
            release: prepared.kernel.release.clone().or_else(|| machine.kernel().version.clone()),
            origin: prepared.kernel.origin.clone(),
        };
        let mut notices = prepared.notices;
        notices.extend(machine.notice().map(str::to_string));
        Ok(Self {
            session: Some(Session { guest: guest.clone(), channel, exec: prepared.exec, io: Io::none() }),
            _server: server.map_err(|e| Error::Host("listen for other commands", e))?,
            spec: spec.clone(),
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
        let mut steward = Steward::new(&run, on_ready);
        let limit = spec.machine.timeout.map(Duration::from_secs);
        let watch = Watch::new(&run.machine).limit(limit).signals(signals).companion(&mut steward);
        let ending = watch.until_end();
        let control = run.machine.control().clone();
        let numbers = Numbers::of(&run.machine);
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

/// Decides when a running machine has to end.
struct Steward<'a> {
    guest: &'a Guest,
    on_ready: Option<&'a mut dyn FnMut()>,
    has_command: bool,
    boot: (Instant, u64),
    idle: Option<u64>,
    /// How often each signal came.
    signals: Vec<i32>,
}

impl<'a> Steward<'a> {
    fn new(run: &'a Run, on_ready: &'a mut dyn FnMut()) -> Self {
        let seconds = prepare::boot_timeout(&run.spec, run.machine.engine());
        let deadline = Instant::now() + Duration::from_secs(seconds.min(u64::from(u32::MAX)));
        Self {
            guest: &run.guest,
            on_ready: Some(on_ready),
            has_command: !run.spec.command.is_empty(),
            boot: (deadline, seconds),
            idle: run.spec.idle_timeout,
            signals: Vec::new(),
        }
    }

    /// Ends the machine with `ending` if `at` has come; else that is when to look again.
    fn end_at(&self, at: Option<Instant>, ending: Ending) -> Option<Instant> {
        match at {
            Some(at) if Instant::now() >= at => {
                self.guest.control().end(ending);
                None
            }
            other => other,
        }
    }

    fn idle_deadline(&self) -> Option<Instant> {
        let limit = Duration::from_secs(self.idle?);
        let silence = self.guest.silence()?;
        Some(Instant::now() + limit.saturating_sub(silence))
    }
}

impl Companion for Steward<'_> {
    fn signal(&mut self, signal: i32) -> bool {
        self.signals.push(signal);
        let times = self.signals.iter().filter(|&&s| s == signal).count() as u32;
        let sent = match (self.guest.process().as_ref(), u8::try_from(signal)) {
            (Some(process), Ok(number)) => process.signal(number).is_ok(),
            _ => false,
        };
        if !sent || times >= INSIST {
            self.guest.control().end(Ending::Stopped(Some(signal)));
        }
        true
    }

    fn look(&mut self) -> Option<Instant> {
        let progress = self.guest.progress();
        let waits = progress.started.is_some() || (progress.ready.is_some() && !self.has_command);
        if let (true, Some(on_ready)) = (waits, self.on_ready.take_if(|_| waits)) {
            on_ready();
        }
        let (boot, seconds) = self.boot;
        let boot = Some(boot).filter(|_| progress.ready.is_none() && progress.lost.is_none());
        let ended = progress.outcome.as_ref().map(|(at, _)| *at);
        let power_off = [ended, progress.stopped].into_iter().flatten().max().map(|at| at + POWER_OFF);
        let lost = progress.lost.as_ref().map(|(at, _)| *at + WITHOUT_AGENT);
        let why = progress.lost.map_or_else(String::new, |(_, why)| why);
        let silent = Ending::Silent(self.idle.unwrap_or_default());
        [
            self.end_at(boot, Ending::BootTimedOut(seconds)),
            self.end_at(power_off, Ending::PowerOff),
            self.end_at(lost, Ending::Failed(format!("the agent in the guest is gone: {why}"))),
            self.end_at(if ended.is_none() { self.idle_deadline() } else { None }, silent),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// The console's log of a guest that died outlives the machine's directory; and its end is for the user's eyes.
fn keep_log(verdict: &Verdict, log: &Path, home: &Home, named: bool) -> (Option<PathBuf>, Option<String>) {
    let died = matches!(
        verdict,
        Verdict::Panicked { .. } | Verdict::CpuDied { .. } | Verdict::BootTimedOut { .. } | Verdict::NoVerdict { .. }
    );
    let tail = if died { tail(log) } else { None };
    if named || !died {
        return (named.then(|| log.into()), tail);
    }
    let kept = (0..1000).find_map(|number| {
        let path = std::env::temp_dir().join(format!("belljar-{}-{number}.log", home.name()));
        copy_new(log, &path).then_some(path)
    });
    (kept, tail)
}

/// Copies to a file that did not exist, for the owner only.
fn copy_new(from: &Path, to: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let Ok(mut source) = File::open(from) else { return false };
    let Ok(mut target) = File::options().write(true).create_new(true).mode(0o600).open(to) else { return false };
    std::io::copy(&mut source, &mut target).is_ok()
}

/// The last lines, with nothing in them that does something to a terminal.
fn tail(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line is only a part of one.
    let text = if len > TAIL { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    let keep = |c: &char| !c.is_control() || *c == '\n' || *c == '\t';
    Some(text.chars().filter(keep).collect()).filter(|text: &String| !text.trim().is_empty())
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
