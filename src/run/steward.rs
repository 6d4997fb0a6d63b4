//! Decides when a machine that runs a command has to end: time limits, signals, a guest that does not power off, an agent
//! that is gone. On the watching thread.

use std::time::{Duration, Instant};

use super::guest::Guest;
use super::spec::RunSpec;
use crate::machine::Ending;
use crate::machine::watch::Companion;

/// How long a guest may take to power off when its command has ended. Its own file systems may have much to write.
const POWER_OFF: Duration = Duration::from_secs(30);
/// How long a machine may go on without its agent.
const WITHOUT_AGENT: Duration = Duration::from_secs(5);
/// Signals of one kind that end the machine, whatever its command makes of them.
const INSIST: u32 = 3;

/// Decides when a running machine has to end.
pub(super) struct Steward<'a> {
    guest: &'a Guest,
    on_ready: Option<&'a mut dyn FnMut()>,
    has_command: bool,
    boot: (Instant, u64),
    idle: Option<u64>,
    /// How often each signal came.
    signals: Vec<i32>,
}

impl<'a> Steward<'a> {
    /// For a machine that `engine` is about to run.
    pub(super) fn new(guest: &'a Guest, spec: &RunSpec, engine: &str, on_ready: &'a mut dyn FnMut()) -> Self {
        let seconds = boot_timeout(spec, engine);
        let deadline = Instant::now() + Duration::from_secs(seconds.min(u64::from(u32::MAX)));
        Self {
            guest,
            on_ready: Some(on_ready),
            has_command: !spec.command.is_empty(),
            boot: (deadline, seconds),
            idle: spec.idle_timeout,
            signals: Vec::new(),
        }
    }

    /// Ends the machine with `ending` if `at` has come; else that is when to look again.
    fn end_at(&self, at: Option<Instant>, ending: Ending) -> Option<Instant> {
        match at.and_then(|at| self.guest.control().extend(at)) {
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
        let since = Instant::now().checked_sub(silence)?;
        since.checked_add(limit)
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
        let power_off = [progress.over, progress.stopped].into_iter().flatten().max().map(|at| at + POWER_OFF);
        let lost = progress.lost.as_ref().map(|(at, _)| *at + WITHOUT_AGENT);
        let why = progress.lost.map_or_else(String::new, |(_, why)| why);
        let silent = Ending::Silent(self.idle.unwrap_or_default());
        [
            self.end_at(boot, Ending::BootTimedOut(seconds)),
            self.end_at(power_off, Ending::PowerOff),
            self.end_at(lost, Ending::Failed(format!("the agent in the guest is gone: {why}"))),
            self.end_at(if progress.over.is_none() { self.idle_deadline() } else { None }, silent),
        ]
        .into_iter()
        .flatten()
        .min()
    }
}

/// Seconds within which a guest must be ready, unless something else is said.
fn boot_timeout(spec: &RunSpec, engine: &str) -> u64 {
    // The software CPU is slower by one or two orders of magnitude, and hosts without KVM tend to be loaded.
    let usual = if engine == "kvm" { 60 } else { 300 };
    spec.boot_timeout.unwrap_or(usual)
}
