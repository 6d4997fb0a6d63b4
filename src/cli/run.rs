//! `belljar run`: a command in a machine of its own.

use std::ffi::OsString;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, ArgMatches, Command};

use super::{Failure, command_flags, device_flags, file_failure, machine_flags, run_flags};
use crate::agent::{Input, Io, Output};
use crate::host::detach::{self, Caller, Side};
use crate::host::signal::Signals;
use crate::host::terminal::Terminal;
use crate::host::{footprint, limits, terminal};
use crate::machine::kernel_command_line;
use crate::machine::verdict::Verdict;
use crate::run::{self, Ended, Prepared, Run, RunSpec, Running, kept, registry};

/// Signals that go to the command.
pub(super) const SIGNALS: [libc::c_int; 4] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT];
/// Messages of a detached process.
const MESSAGES: &str = "belljar.log";

/// Flags and help of the subcommand.
pub fn command() -> Command {
    Command::new("run")
        .about("Run a command in a machine of its own")
        .long_about(
            "Run a command in a machine of its own.\n\nWithout --root and --disk-root the guest sees this host's own files, and \
             its changes are thrown away. Exit code: that of the command, 128+N if signal N killed it, 126 not executable, \
             127 not found; 120 kernel panic; 121 virtual CPU died; 122 the guest did not start in time; 123 it ended before \
             the command; 124 --timeout or --idle-timeout; 125 belljar failed; 2 bad usage.",
        )
        .args(run_flags::root())
        .args(command_flags::terminal())
        .args(command_flags::args())
        .args(run_flags::guest())
        .args(machine_flags::machine())
        .args(device_flags::args())
        .args(run_flags::limits())
        .args(machine_flags::course())
        .args(machine_flags::debugging())
        .args(end_args())
        .arg(command_flags::words("The command and its arguments [default: a shell]"))
}

fn end_args() -> Vec<Arg> {
    vec![
        Arg::new("name")
            .long("name")
            .value_name("NAME")
            .help("Name of the machine, for belljar exec, stop, logs and cp [default: made up]"),
        Arg::new("detach")
            .long("detach")
            .short('d')
            .action(ArgAction::SetTrue)
            .help("Go on in the background; the machine's name is printed when it is ready"),
        Arg::new("verbose")
            .long("verbose")
            .action(ArgAction::SetTrue)
            .help("Show all that the guest's kernel says on standard error"),
    ]
}

/// The specification that file and flags make together.
fn spec(matches: &ArgMatches) -> Result<RunSpec, Failure> {
    let mut spec = run_flags::spec(matches)?;
    spec.name = matches.get_one::<String>("name").cloned().or(spec.name);
    spec.verbose |= matches.get_flag("verbose");
    Ok(spec)
}

/// How the command is connected to this process.
#[derive(Debug, Clone, Copy)]
struct Connected {
    stdin: bool,
    terminal: bool,
    detach: bool,
}

impl Connected {
    /// Without a command there is a shell; on a terminal it gets that.
    fn new(matches: &ArgMatches, spec: &mut RunSpec) -> Result<Self, Failure> {
        let detach = matches.get_flag("detach");
        let on_terminal = std::io::stdin().is_terminal();
        let shell = spec.command.is_empty() && !detach;
        if shell {
            spec.command = vec![shell_of(spec)];
        }
        let terminal = matches.get_flag("tty") || (shell && on_terminal);
        if terminal && !on_terminal {
            return Err(Failure::usage(NoTerminal));
        }
        if terminal && detach {
            return Err(Failure::usage(DetachedTerminal));
        }
        if terminal {
            // As it is here; what the user says counts more.
            spec.env.insert(0, "TERM".into());
        }
        // As from a pipe of any other program. Who sits at a terminal says that he wants to type, as for containers.
        let stdin = (matches.get_flag("interactive") || !on_terminal || shell) && !detach;
        Ok(Self { stdin, terminal, detach })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("--tty: standard input is not a terminal; leave -t out")]
pub(super) struct NoTerminal;

#[derive(Debug, thiserror::Error)]
#[error("--tty does not go with --detach: nobody sits at that terminal; use belljar exec -it later")]
struct DetachedTerminal;

/// The user's shell, where the guest has what the host has.
fn shell_of(spec: &RunSpec) -> OsString {
    let host_root = spec.disk_root.is_none() && spec.root_path() == Path::new("/");
    let own = std::env::var_os("SHELL").filter(|shell| host_root && Path::new(shell).is_absolute());
    own.unwrap_or_else(|| "/bin/sh".into())
}

/// Runs the command. The exit code is the verdict's.
pub fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let mut spec = spec(matches)?;
    let connected = Connected::new(matches, &mut spec)?;
    spec.validate().map_err(Failure::usage)?;
    if matches.get_flag("dry-run") {
        return dry_run(&spec);
    }
    // Opened first: what was a long run should not end with the news that its result cannot be kept.
    let report = matches.get_one::<PathBuf>("report");
    let report =
        report.map(|path| Ok((path, File::create(path).map_err(|e| file_failure("write the report", path, &e))?)));
    let report = report.transpose()?;
    let caller = match connected.detach {
        false => None,
        true => match detach::detach().map_err(Failure::failed)? {
            Side::Child(caller) => Some(caller),
            Side::Parent(child) => return in_background(child),
        },
    };
    limits::raise_open_files();
    // Before any thread exists, so that all of them leave these signals to the main thread.
    let signals = Signals::receive(&SIGNALS).map_err(Failure::failed)?;
    match course(&spec, connected, &signals, caller) {
        Ok(ended) => conclude(matches, &ended, report),
        Err(failure) => {
            if let Some((path, mut file)) = report {
                let failed = serde_json::json!({
                    "verdict": "failed", "reason": failure.message, "exit_code": failure.code,
                });
                writeln!(file, "{failed}").map_err(|e| file_failure("write the report", path, &e))?;
            }
            Err(failure)
        }
    }
}

fn failure(error: run::Error) -> Failure {
    if error.is_usage() { Failure::usage(error) } else { Failure::failed(error) }
}

fn dry_run(spec: &RunSpec) -> Result<u8, Failure> {
    let prepared = Prepared::new(spec).map_err(failure)?;
    print!("{}", spec.to_toml().map_err(Failure::failed)?);
    println!();
    prepared.describe().iter().for_each(|line| println!("# {line}"));
    println!("# kernel command line: {}", kernel_command_line(prepared.machine()).map_err(Failure::usage)?);
    Ok(0)
}

fn in_background(child: detach::Child) -> Result<u8, Failure> {
    match child.wait().map_err(Failure::failed)? {
        Ok(name) => {
            // Nobody reads any more: the machine runs all the same.
            let _ = writeln!(std::io::stdout(), "{name}");
            Ok(0)
        }
        Err(code) => Ok(code),
    }
}

fn course(spec: &RunSpec, connected: Connected, signals: &Signals, caller: Option<Caller>) -> Result<Ended, Failure> {
    let mut run = Run::new(spec).map_err(failure)?;
    footprint::give_back();
    run.notices().iter().for_each(|notice| eprintln!("belljar: {notice}"));
    let io = io(&run, connected).map_err(Failure::failed)?;
    run = run.io(io);
    let mut raw = None;
    if connected.terminal {
        run = run.terminal(run::window_size().unwrap_or(crate::agent::Size { columns: 80, rows: 24 }));
        raw = Terminal::enter(std::io::stdin()).map_err(Failure::failed)?;
    }
    if connected.detach {
        run = run.detached();
    }
    let running: Running = run.start().map_err(failure)?;
    let (name, messages) = (running.name().to_string(), running.file(MESSAGES));
    let mut caller = caller;
    let mut on_ready = || {
        let Some(caller) = caller.take() else { return };
        if let Err(e) = File::create(&messages).and_then(|file| caller.ready(&name, file)) {
            tracing::warn!("cannot tell that the machine is ready: {e}");
        }
    };
    let ended = running.until_end(Some(signals), &mut on_ready);
    // Before anything else is printed on the terminal.
    terminal::restore();
    drop(raw);
    ended.map_err(failure)
}

fn io(run: &Run, connected: Connected) -> std::io::Result<Io> {
    if connected.detach {
        let [stdout, stderr] = kept::outputs(&run.file(registry::OUTPUT_LOG))?;
        return Ok(Io { stdin: Input::None, stdout, stderr });
    }
    let stdin = match connected.stdin {
        true => Input::Fd(std::io::stdin().as_fd().try_clone_to_owned()?),
        false => Input::None,
    };
    let stdout = Output::Fd(std::io::stdout().as_fd().try_clone_to_owned()?);
    let stderr = Output::Fd(std::io::stderr().as_fd().try_clone_to_owned()?);
    Ok(Io { stdin, stdout, stderr })
}

fn conclude(matches: &ArgMatches, ended: &Ended, report: Option<(&PathBuf, File)>) -> Result<u8, Failure> {
    let numbers = &ended.report.numbers;
    if let Some(tail) = &ended.tail {
        eprint!("{}{}", tail, if tail.ends_with('\n') { "" } else { "\n" });
    }
    say(&ended.report.verdict, ended.report.log.as_deref().filter(|_| ended.tail.is_some()));
    if matches.get_flag("stats") {
        eprintln!("belljar: exits to user space: {} {}", numbers.exits.total(), super::json(&numbers.exits)?);
        machine_flags::say_speed(numbers.instructions, numbers.cpu_seconds);
    }
    if matches.get_flag("timing") {
        eprintln!("belljar: timing: {}", super::json(&ended.report.stages)?);
    }
    if let Some((path, mut file)) = report {
        let text = super::json(&ended.report)? + "\n";
        file.write_all(text.as_bytes()).map_err(|e| file_failure("write the report", path, &e))?;
    }
    Ok(ended.report.exit_code)
}

/// Says what it was if it is not the command's own status: those have lines of their own, if any.
pub(super) fn say(verdict: &Verdict, log: Option<&Path>) {
    let log = log.map_or_else(String::new, |path| format!("; all that it printed is in {}", path.display()));
    if !matches!(verdict, Verdict::Finished { .. } | Verdict::Killed { .. }) {
        eprintln!("belljar: {verdict}{log}");
    }
}
