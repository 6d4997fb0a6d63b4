//! What came of a run, as `--report` writes it. docs/run.md describes the fields.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::guest::Progress;
use crate::engine::ExitStats;
use crate::host::clock;
use crate::machine::quota;
use crate::machine::verdict::Verdict;
use crate::machine::{Machine, Timing};

/// The report of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// What came of it.
    #[serde(flatten)]
    pub verdict: Verdict,
    /// The exit code that stands for the verdict.
    pub exit_code: u8,
    /// The machine's name.
    pub name: String,
    /// Its kernel.
    pub kernel: KernelReport,
    /// What was not as wished, and what was done instead; a sentence each.
    pub notices: Vec<String>,
    /// When it reached what.
    pub stages: Stages,
    /// What was counted.
    #[serde(flatten)]
    pub numbers: Numbers,
    /// What the consoles printed, if it was kept.
    pub log: Option<PathBuf>,
}

/// What a machine counted until its end.
#[derive(Debug, Serialize)]
pub struct Numbers {
    /// What ran its CPUs.
    pub engine: &'static str,
    /// Most memory that this process had, guest RAM included, in bytes.
    pub peak_memory: u64,
    /// Exits to user space.
    pub exits: ExitStats,
    /// Guest instructions, if the engine counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instructions: Option<u64>,
    /// The CPU quota and who keeps it, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_quota: Option<quota::Report>,
    /// CPU time of the vCPU threads.
    pub cpu_seconds: f64,
    /// When what happened, on the host's monotonic clock.
    #[serde(skip)]
    pub timing: Timing,
    /// What devices tell of themselves.
    pub devices: BTreeMap<String, serde_json::Value>,
}

impl Numbers {
    /// Before the machine is taken apart.
    pub(super) fn of(machine: &Machine) -> Self {
        Self {
            engine: machine.engine(),
            peak_memory: peak_memory(),
            exits: machine.stats(),
            instructions: machine.instructions(),
            cpu_quota: machine.cpu_quota(),
            cpu_seconds: machine.cpus().cpu_time().as_secs_f64(),
            timing: machine.timing(),
            devices: machine.device_statistics(),
        }
    }
}

/// A kernel, for reports.
#[derive(Debug, Clone, Serialize)]
pub struct KernelReport {
    /// Its image.
    pub path: PathBuf,
    /// Its release, if it says.
    pub release: Option<String>,
    /// How it was found.
    pub origin: String,
}

/// When a run reached what, in seconds since it began. None: not at all, or not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Stages {
    /// The guest's first instruction.
    pub first_instruction: Option<f64>,
    /// The first byte on a console. A quiet kernel may print none.
    pub first_console_byte: Option<f64>,
    /// The agent, which is the guest's init, answered.
    pub init: Option<f64>,
    /// The command was started.
    pub command: Option<f64>,
    /// Its first byte of output.
    pub first_output: Option<f64>,
    /// The command ended.
    pub command_end: Option<f64>,
    /// The machine ended.
    pub end: f64,
}

impl Stages {
    /// Counted from `begin`, on the monotonic clock.
    pub(super) fn new(begin: u64, timing: &Timing, progress: &Progress) -> Self {
        let seconds = |nanos: u64| nanos.saturating_sub(begin) as f64 / 1e9;
        let (now, now_nanos) = (Instant::now(), clock::monotonic_nanos());
        let instant = |at: Instant| {
            let ago = u64::try_from(now.saturating_duration_since(at).as_nanos()).unwrap_or(u64::MAX);
            seconds(now_nanos.saturating_sub(ago))
        };
        Self {
            first_instruction: timing.first_run.map(seconds),
            first_console_byte: timing.first_output.map(seconds),
            init: progress.ready.as_ref().map(|(at, _)| instant(*at)),
            command: progress.started.map(instant),
            first_output: progress.first_output.map(instant),
            command_end: progress.outcome.as_ref().map(|(at, _)| instant(*at)),
            end: seconds(timing.end),
        }
    }
}

/// `VmHWM` of proc(5), in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(0) << 10
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_count_from_the_beginning() {
        let begin = clock::monotonic_nanos();
        let timing =
            Timing { begin, first_run: Some(begin + 500_000_000), end: begin + 2_000_000_000, ..Timing::default() };
        let progress = Progress { started: Some(Instant::now()), ..Progress::default() };
        let stages = Stages::new(begin, &timing, &progress);
        assert_eq!((stages.first_instruction, stages.first_output, stages.end), (Some(0.5), None, 2.0));
        assert!(stages.command.is_some_and(|at| (0.0..60.0).contains(&at)));
        assert!(peak_memory() > 1 << 20);
    }
}
