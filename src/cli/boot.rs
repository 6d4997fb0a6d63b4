//! `belljar boot`: a guest operating system from the command line.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgMatches, Command};
use serde::Serialize;

use super::{Failure, device_flags, file_failure, json, machine_flags};
use crate::debug::Debugger;
use crate::engine::ExitStats;
use crate::host::footprint;
use crate::host::limits;
use crate::host::signal::Signals;
use crate::host::terminal;
use crate::machine::quota;
use crate::machine::verdict::Verdict;
use crate::machine::watch::Watch;
use crate::machine::{Machine, Timing};
use crate::spec::MachineSpec;

/// Said before a run with `--deterministic` at a terminal.
const TYPED: &str =
    "--deterministic: what is typed here comes at a time of its own: give input by <FILE for a run that repeats";
/// Said after one that did not end by itself.
const TIMED: &str = "--deterministic: a signal, a key or a time limit ended this run: the next one may end elsewhere";

/// Flags and help of the subcommand.
pub fn command() -> Command {
    Command::new("boot")
        .about("Boot a guest operating system")
        .long_about(
            "Boot a guest operating system.\n\nThe guest's console is this terminal; Ctrl-A x quits, Ctrl-A h lists more keys. \
             Exit code: 0 when the guest powered off, rebooted or halted; 120 kernel panic; 121 virtual CPU died; \
             124 --timeout passed; 125 belljar failed; 2 bad usage.",
        )
        .args(machine_flags::machine())
        .mut_arg("initrd", |arg| arg.short('i'))
        .args(device_flags::args())
        .args(machine_flags::course())
        .args(machine_flags::debugging())
}

/// Boots, waits for the end and reports. The exit code is the verdict's.
pub fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let spec = spec(matches)?;
    spec.validate().map_err(Failure::usage)?;
    if matches.get_flag("dry-run") {
        print!("{}", spec.to_toml().map_err(Failure::failed)?);
        println!("\n# kernel command line: {}", crate::machine::kernel_command_line(&spec).map_err(Failure::usage)?);
        return Ok(0);
    }
    // Opened first: what was a long run should not end with the news that its result cannot be kept.
    let mut report_file = None;
    if let Some(path) = matches.get_one::<PathBuf>("report") {
        report_file = Some(File::create(path).map_err(|e| file_failure("write the report", path, &e))?);
    }
    limits::raise_open_files();
    // Before any thread exists, so that all of them leave these signals to the main thread.
    let signals =
        Signals::receive(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT]).map_err(Failure::failed)?;
    let machine = Machine::new(&spec).map_err(Failure::failed)?;
    let debugger = Debugger::start(&machine, &spec).map_err(Failure::failed)?;
    footprint::give_back();
    let typed = (spec.deterministic && terminal::is_raw()).then_some(TYPED);
    let debug = debugger.iter().flat_map(Debugger::notices).map(String::as_str);
    for notice in machine.notice().into_iter().chain(typed).chain(debug) {
        // The machine may have made the terminal raw.
        eprint!("belljar: {notice}{}", if terminal::is_raw() { "\r\n" } else { "\n" });
    }
    machine.start();
    let limit = spec.timeout.map(Duration::from_secs);
    let ending = Watch::new(&machine).limit(limit).signals(Some(&signals)).until_end();
    drop(debugger);
    let timed = machine.control().timed();
    let verdict = Verdict::of(ending, machine.control());
    let ram_sha256 = spec.deterministic.then(|| machine.ram_sha256()).transpose().map_err(Failure::failed)?;
    let report = Report {
        exit_code: verdict.exit_code(),
        engine: machine.engine(),
        exits: machine.stats(),
        instructions: machine.instructions(),
        cpu_quota: machine.cpu_quota(),
        cpu_seconds: machine.cpus().cpu_time().as_secs_f64(),
        ram_sha256,
        repeatable: spec.deterministic.then_some(!timed && typed.is_none()),
        timing: machine.timing(),
        devices: machine.device_statistics(),
        verdict,
    };
    // Flushes the consoles and gives the terminal back before anything else is printed on it.
    drop(machine);
    terminal::restore();
    if spec.deterministic && timed {
        eprintln!("belljar: {TIMED}");
    }
    conclude(matches, &report, report_file)
}

/// What `--report` writes.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    verdict: Verdict,
    exit_code: u8,
    engine: &'static str,
    exits: ExitStats,
    /// Guest instructions, if the engine counts them.
    #[serde(skip_serializing_if = "Option::is_none")]
    instructions: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_quota: Option<quota::Report>,
    /// CPU time of the vCPU threads.
    cpu_seconds: f64,
    /// With `--deterministic`: all RAM at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    ram_sha256: Option<String>,
    /// With `--deterministic`: nothing that comes at a time of its own had a part in the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    repeatable: Option<bool>,
    timing: Timing,
    devices: BTreeMap<String, serde_json::Value>,
}

fn conclude(matches: &ArgMatches, report: &Report, file: Option<File>) -> Result<u8, Failure> {
    if !matches!(report.verdict, Verdict::PoweredOff | Verdict::Quit) {
        eprintln!("belljar: {}", report.verdict);
    }
    if matches.get_flag("stats") {
        let total = report.exits.total();
        eprintln!("belljar: exits to user space: {total} {}", json(&report.exits)?);
        machine_flags::say_speed(report.instructions, report.cpu_seconds);
        if let Some(hash) = &report.ram_sha256 {
            eprintln!("belljar: RAM at the end: sha256 {hash}");
        }
    }
    if matches.get_flag("timing") {
        eprintln!("belljar: timing: {}", json(&report.timing)?);
    }
    if let (Some(path), Some(mut file)) = (matches.get_one::<PathBuf>("report"), file) {
        let text = json(report)? + "\n";
        file.write_all(text.as_bytes()).map_err(|e| file_failure("write the report", path, &e))?;
    }
    Ok(report.exit_code)
}

/// The specification that file and flags make together.
fn spec(matches: &ArgMatches) -> Result<MachineSpec, Failure> {
    let mut spec = match machine_flags::spec_file(matches)? {
        None => MachineSpec::default(),
        Some((path, text)) => MachineSpec::from_toml(&text).map_err(|e| machine_flags::spec_failure(path, &e))?,
    };
    machine_flags::apply(matches, &mut spec)?;
    Ok(spec)
}
