//! Flags that every verb that starts a machine has, and the part of the specification that they are.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::{Failure, device_flags, file_failure};
use crate::arch::x86_64::level::CpuLevel;
use crate::host::causes::causes;
use crate::loader::Protocol;
use crate::spec::{CpuQuota, DebugAddress, EngineName, MachineSpec, Size, SpecError, TraceSpec, Transport, trace};

/// Flags of the machine itself.
pub fn machine() -> Vec<Arg> {
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
            .help("Kernel: bzImage or ELF file, build tree, package, or a name of belljar kernel list"),
        Arg::new("initrd")
            .long("initrd")
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
        Arg::new("cpu-quota")
            .long("cpu-quota")
            .value_name("PERCENT|N")
            .value_parser(|text: &str| text.parse::<CpuQuota>())
            .help("Host CPUs' worth of time that they may use together, e.g. 50% or 2 [default: no limit]"),
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
        Arg::new("trace").long("trace").value_name("FILE,..").help(trace_help()),
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

/// The time limit.
pub fn timeout() -> Arg {
    Arg::new("timeout")
        .long("timeout")
        .value_name("SECONDS")
        .value_parser(value_parser!(u64))
        .help("End the machine after this time, with exit code 124")
}

/// Flags about the course of a run and what is kept of it.
pub fn course() -> Vec<Arg> {
    let path = || value_parser!(PathBuf);
    let switch =
        |name: &'static str, help: &'static str| Arg::new(name).long(name).action(ArgAction::SetTrue).help(help);
    vec![
        timeout(),
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

/// Flags for those who look into a guest from outside.
pub fn debugging() -> Vec<Arg> {
    vec![
        Arg::new("gdb")
            .long("gdb")
            .value_name("PORT|unix:PATH")
            .value_parser(|text: &str| text.parse::<DebugAddress>())
            .help("Wait for gdb (on 127.0.0.1) before the first instruction"),
        Arg::new("gdb-on-crash")
            .long("gdb-on-crash")
            .value_name("PORT|unix:PATH")
            .value_parser(|text: &str| text.parse::<DebugAddress>())
            .help("Keep a guest whose kernel panicked, or whose CPU died, for gdb"),
        Arg::new("dump")
            .long("dump")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help("Write RAM and registers of such a guest to FILE, for crash or gdb"),
    ]
}

/// The text of the file that `--spec` names, if it is given, with its name for messages.
pub fn spec_file(matches: &ArgMatches) -> Result<Option<(&Path, String)>, Failure> {
    let Some(path) = matches.get_one::<PathBuf>("spec") else { return Ok(None) };
    let text = fs::read_to_string(path).map_err(|e| match e.kind() {
        ErrorKind::InvalidData => Failure::usage(SpecError::Toml(format!("{} is not a text", path.display()))),
        _ => file_failure("read the specification", path, &e),
    })?;
    Ok(Some((path, text)))
}

/// Something is wrong in the file that `--spec` names.
pub fn spec_failure(path: &Path, error: &SpecError) -> Failure {
    Failure::usage(SpecError::Toml(format!("{}: {}", path.display(), causes(error))))
}

/// Puts what the flags say into `spec`: it is added to what is there or replaces it.
pub fn apply(matches: &ArgMatches, spec: &mut MachineSpec) -> Result<(), Failure> {
    let given = |name| matches.get_one::<PathBuf>(name).cloned();
    spec.kernel = given("kernel").or(spec.kernel.take());
    // Not all verbs have it.
    let log = matches.try_get_one::<PathBuf>("log").ok().flatten();
    spec.log = log.cloned().or(spec.log.take());
    spec.initrd.extend(matches.get_many::<PathBuf>("initrd").into_iter().flatten().cloned());
    spec.append = matches.get_one::<String>("append").cloned().or(spec.append.take());
    spec.cmdline = matches.get_one::<String>("cmdline").cloned().or(spec.cmdline.take());
    spec.self_extract |= matches.get_flag("self-extract");
    spec.entry = *matches.get_one("entry").unwrap_or(&spec.entry);
    spec.cpus = *matches.get_one("cpus").unwrap_or(&spec.cpus);
    spec.cpu_quota = matches.get_one("cpu-quota").copied().or(spec.cpu_quota);
    spec.memory = *matches.get_one("memory").unwrap_or(&spec.memory);
    spec.engine = *matches.get_one("engine").unwrap_or(&spec.engine);
    spec.cpu = matches.get_one("cpu").copied().or(spec.cpu);
    spec.deterministic |= matches.get_flag("deterministic");
    spec.seed = matches.get_one("seed").copied().or(spec.seed);
    if let Some(text) = matches.get_one::<String>("trace") {
        spec.trace = Some(TraceSpec::from_flag(text).map_err(Failure::usage)?);
    }
    spec.transport = *matches.get_one("transport").unwrap_or(&spec.transport);
    spec.gdb = matches.get_one("gdb").cloned().or(spec.gdb.take());
    spec.gdb_on_crash = matches.get_one("gdb-on-crash").cloned().or(spec.gdb_on_crash.take());
    spec.dump = given("dump").or(spec.dump.take());
    spec.timeout = matches.get_one("timeout").copied().or(spec.timeout);
    device_flags::apply(matches, spec).map_err(Failure::usage)
}

/// The line of `--stats` about instructions, if the engine counts them.
pub fn say_speed(instructions: Option<u64>, seconds: f64) {
    let Some(count) = instructions else { return };
    let speed = count as f64 / 1e6 / seconds.max(1e-9);
    eprintln!("belljar: instructions: {count} in {seconds:.2} s of CPU time, {speed:.0} MIPS");
}
