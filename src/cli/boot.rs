//! `belljar boot`: a guest operating system from the command line.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde::Serialize;

use super::{Failure, device_flags};
use crate::arch::x86_64::level::CpuLevel;
use crate::engine::ExitStats;
use crate::host::footprint;
use crate::host::limits;
use crate::host::signal::Signals;
use crate::host::terminal;
use crate::loader::Protocol;
use crate::machine::verdict::Verdict;
use crate::machine::watch::Watch;
use crate::machine::{Machine, Timing};
use crate::spec::{EngineName, MachineSpec, Size, SpecError, TraceSpec, Transport, trace};

/// Flags and help of the subcommand.
pub fn command() -> Command {
    Command::new("boot")
        .about("Boot a guest operating system")
        .long_about(
            "Boot a guest operating system.\n\nThe guest's console is this terminal; Ctrl-A x quits, Ctrl-A h lists more keys. \
             Exit code: 0 when the guest powered off, rebooted or halted; 120 kernel panic; 121 virtual CPU died; \
             124 --timeout passed; 125 belljar failed; 2 bad usage.",
        )
        .args(machine_args())
        .args(device_flags::args())
        .args(run_args())
}

fn machine_args() -> Vec<Arg> {
    let path = || value_parser!(PathBuf);
    vec![
        Arg::new("spec")
            .long("spec")
            .value_name("FILE")
            .value_parser(path())
            .help("Machine specification (TOML); flags are added to it or replace it"),
        Arg::new("kernel")
            .long("kernel")
            .short('k')
            .value_name("FILE")
            .value_parser(path())
            .help("Kernel image: bzImage, or ELF (vmlinux, PVH)"),
        Arg::new("initrd")
            .long("initrd")
            .short('i')
            .value_name("FILE")
            .value_parser(path())
            .action(ArgAction::Append)
            .help("Initial RAM disk; several are concatenated"),
        Arg::new("append")
            .long("append")
            .short('a')
            .value_name("WORDS")
            .help("Add words to the default kernel command line"),
        Arg::new("cmdline").long("cmdline").value_name("WORDS").help("Replace the default kernel command line"),
        Arg::new("self-extract")
            .long("self-extract")
            .action(ArgAction::SetTrue)
            .help("Let a bzImage decompress itself (slower; with KASLR)"),
        Arg::new("entry")
            .long("entry")
            .value_name("NAME")
            .value_parser(value_parser!(Protocol))
            .help("Where the kernel is entered [default: auto]"),
        Arg::new("cpus")
            .long("cpus")
            .short('c')
            .value_name("N")
            .value_parser(value_parser!(u32))
            .help("Number of CPUs [default: 1]"),
        Arg::new("memory")
            .long("memory")
            .short('m')
            .value_name("SIZE")
            .value_parser(|text: &str| text.parse::<Size>())
            .help("RAM, e.g. 512M or 2G [default: 512M]"),
        Arg::new("engine")
            .long("engine")
            .value_name("NAME")
            .value_parser(value_parser!(EngineName))
            .help("What runs the CPUs [default: auto]"),
        Arg::new("cpu")
            .long("cpu")
            .value_name("LEVEL")
            .value_parser(value_parser!(CpuLevel))
            .help("What the CPUs can do at most [default: all that engine and host have]"),
        Arg::new("deterministic")
            .long("deterministic")
            .action(ArgAction::SetTrue)
            .help("The same inputs give the same run, instruction by instruction (software CPU, one CPU)"),
        Arg::new("seed")
            .long("seed")
            .value_name("N")
            .value_parser(value_parser!(u64))
            .help("With --deterministic: other random numbers [default: 0]"),
        Arg::new("trace")
            .long("trace")
            .value_name("FILE,..")
            .help(trace_help()),
        Arg::new("transport")
            .long("transport")
            .value_name("BUS")
            .value_parser(value_parser!(Transport))
            .help("How virtio devices are attached [default: pci]"),
    ]
}

fn trace_help() -> String {
    let keys = trace::KEYS.iter().map(|key| format!("\n  {}={}: {}", key.name, key.value, key.about));
    format!("Keep executed blocks and registers in FILE (software CPU):{}", keys.collect::<String>())
}

fn run_args() -> Vec<Arg> {
    let path = || value_parser!(PathBuf);
    let switch =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    vec![
        Arg::new("timeout")
            .long("timeout")
            .value_name("SECONDS")
            .value_parser(value_parser!(u64))
            .help("End the machine after this time, with exit code 124"),
        Arg::new("log")
            .long("log")
            .value_name("FILE")
            .value_parser(path())
            .help("Keep the output of all consoles in FILE"),
        Arg::new("report")
            .long("report")
            .value_name("FILE")
            .value_parser(path())
            .help("Write what happened to FILE, as JSON"),
        switch("stats", "Print exits by kind, and instructions, to stderr at the end"),
        switch("timing", "Print when the machine reached what to stderr at the end"),
        switch("dry-run", "Print the specification as TOML and the kernel command line, start nothing"),
    ]
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
    footprint::give_back();
    if let Some(notice) = machine.notice() {
        // The machine may have made the terminal raw.
        eprint!("belljar: {notice}{}", if terminal::is_raw() { "\r\n" } else { "\n" });
    }
    machine.start();
    let limit = spec.timeout.map(Duration::from_secs);
    let ending = Watch::new(&machine, limit, &signals).until_end();
    let verdict = Verdict::of(ending, machine.control());
    let ram_sha256 = spec.deterministic.then(|| machine.ram_sha256()).transpose().map_err(Failure::failed)?;
    let report = Report {
        exit_code: verdict.exit_code(),
        engine: machine.engine(),
        exits: machine.stats(),
        instructions: machine.instructions(),
        cpu_seconds: machine.cpus().cpu_time().as_secs_f64(),
        ram_sha256,
        timing: machine.timing(),
        devices: machine.device_statistics(),
        verdict,
    };
    // Flushes the consoles and gives the terminal back before anything else is printed on it.
    drop(machine);
    terminal::restore();
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
    /// CPU time of the vCPU threads.
    cpu_seconds: f64,
    /// With `--deterministic`: all RAM at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    ram_sha256: Option<String>,
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
        if let Some(count) = report.instructions {
            let (seconds, millions) = (report.cpu_seconds, count as f64 / 1e6);
            let speed = millions / seconds.max(1e-9);
            eprintln!("belljar: instructions: {count} in {seconds:.2} s of CPU time, {speed:.0} MIPS");
        }
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

fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(Failure::failed)
}

fn file_failure(action: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(std::io::Error::other(format!("Cannot {action}: {}: {error}", path.display())))
}

/// The specification that file and flags make together.
fn spec(matches: &ArgMatches) -> Result<MachineSpec, Failure> {
    let mut spec = match matches.get_one::<PathBuf>("spec") {
        None => MachineSpec::default(),
        Some(path) => {
            let text = fs::read_to_string(path).map_err(|e| match e.kind() {
                ErrorKind::InvalidData => Failure::usage(SpecError::Toml(format!("{} is not a text", path.display()))),
                _ => file_failure("read the specification", path, &e),
            })?;
            MachineSpec::from_toml(&text)
                .map_err(|e| Failure::usage(SpecError::Toml(format!("{}: {}", path.display(), super::chain(&e)))))?
        }
    };
    let given = |name| matches.get_one::<PathBuf>(name).cloned();
    spec.kernel = given("kernel").or(spec.kernel);
    spec.log = given("log").or(spec.log);
    spec.initrd.extend(matches.get_many::<PathBuf>("initrd").into_iter().flatten().cloned());
    spec.append = matches.get_one::<String>("append").cloned().or(spec.append);
    spec.cmdline = matches.get_one::<String>("cmdline").cloned().or(spec.cmdline);
    spec.self_extract |= matches.get_flag("self-extract");
    spec.entry = *matches.get_one("entry").unwrap_or(&spec.entry);
    spec.cpus = *matches.get_one("cpus").unwrap_or(&spec.cpus);
    spec.memory = *matches.get_one("memory").unwrap_or(&spec.memory);
    spec.engine = *matches.get_one("engine").unwrap_or(&spec.engine);
    spec.cpu = matches.get_one("cpu").copied().or(spec.cpu);
    spec.deterministic |= matches.get_flag("deterministic");
    spec.seed = matches.get_one("seed").copied().or(spec.seed);
    if let Some(text) = matches.get_one::<String>("trace") {
        spec.trace = Some(TraceSpec::from_flag(text).map_err(Failure::usage)?);
    }
    spec.transport = *matches.get_one("transport").unwrap_or(&spec.transport);
    spec.timeout = matches.get_one("timeout").copied().or(spec.timeout);
    device_flags::apply(matches, &mut spec).map_err(Failure::usage)?;
    Ok(spec)
}
