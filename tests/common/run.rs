//! Starting `belljar run` in tests.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

use super::{BOOT, Outcome, Session, asset, belljar, engine};

/// Flags for `belljar run`, on the engine under test.
#[derive(Clone)]
pub struct Runner {
    /// What runs it.
    pub engine: &'static str,
    flags: Vec<std::ffi::OsString>,
    limit: u64,
    variables: Vec<(String, String)>,
}

impl Runner {
    /// With a kernel asset, such as `6.12-cloud`, as its package has it; none where there is nothing to run it on.
    pub fn new(kernel: &str) -> Option<Self> {
        Self::with_kernel(&format!("kernel-{kernel}"))
    }

    /// The same with any asset that has a kernel.
    pub fn with_kernel(name: &str) -> Option<Self> {
        Self::with_path(&asset(name)?)
    }

    /// The same with any kernel.
    pub fn with_path(kernel: &Path) -> Option<Self> {
        let engine = engine()?;
        let runner = Self { engine, flags: Vec::new(), limit: 110, variables: Vec::new() };
        Some(runner.with(&["--engine", engine]).arg("--kernel", kernel))
    }

    /// More flags.
    #[must_use]
    pub fn with(&self, flags: &[&str]) -> Self {
        let mut runner = self.clone();
        runner.flags.extend(flags.iter().map(Into::into));
        runner
    }

    /// Seconds after which belljar shall end the machine.
    #[must_use]
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = seconds;
        self
    }

    /// A flag and its value.
    #[must_use]
    pub fn arg(mut self, flag: &str, value: impl AsRef<OsStr>) -> Self {
        self.flags.extend([flag.into(), value.as_ref().into()]);
        self
    }

    /// A variable of belljar's own environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// `belljar run` of this command.
    pub fn command(&self, command: &[&str]) -> Command {
        let mut run = Command::new(belljar());
        run.arg("run").args(["--timeout", &self.limit.to_string()]).args(&self.flags).arg("--").args(command);
        run.envs(self.variables.iter().map(|(name, value)| (name, value)));
        run
    }

    /// Starts it, with pipes.
    pub fn start(&self, command: &[&str]) -> Session {
        Session::start(self.command(command))
    }

    /// Runs it to its end, without input. The console of the outcome is the command's standard output.
    #[track_caller]
    pub fn run(&self, command: &[&str]) -> Outcome {
        runs(self.command(command))
    }
}

/// Runs a verb of belljar to its end, without input.
#[track_caller]
pub fn runs(command: Command) -> Outcome {
    let mut session = Session::start(command);
    session.close_input();
    session.finish(BOOT)
}

impl Outcome {
    /// belljar itself says nothing.
    #[track_caller]
    pub fn is_silent(&self) -> &Self {
        assert_eq!(self.errors, "", "{self}");
        self
    }

    /// belljar itself says one line, with this in it, and no more.
    #[track_caller]
    pub fn says_one_line(&self, text: &str) -> &Self {
        assert!(self.errors.contains(text) && self.errors.lines().count() == 1, "not one line with `{text}`:\n{self}");
        self
    }
}
