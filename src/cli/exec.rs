//! `belljar exec`: a command in a machine that runs.

use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, OwnedFd};

use clap::{Arg, ArgMatches, Command};

use super::{Failure, command_flags};
use crate::agent::{Exec, Size};
use crate::host::signal::Signals;
use crate::host::terminal::{self, Terminal};
use crate::run::registry::{CONTROL, Registry};
use crate::run::{self, Remote, RunSpec, environment};

/// Flags and help of the subcommand.
pub fn command() -> Command {
    Command::new("exec")
        .about("Run a command in a machine that runs")
        .long_about(
            "Run a command in a machine that runs.\n\nExit code: that of the command, 128+N if signal N killed it, 126 not \
             executable, 127 not found; 125 belljar failed or the machine ended; 2 bad usage.",
        )
        .args(command_flags::terminal())
        .args(command_flags::args())
        .arg(Arg::new("name").value_name("NAME").required(true).help("The machine, as belljar ps shows it"))
        .arg(command_flags::words("The command and its arguments").required(true))
}

/// Runs it; the exit code is the command's.
pub fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let mut spec = RunSpec::default();
    command_flags::apply(matches, &mut spec);
    let on_terminal = io::stdin().is_terminal();
    let (tty, interactive) = (matches.get_flag("tty"), matches.get_flag("interactive") || !on_terminal);
    if tty && !on_terminal {
        return Err(Failure::usage(super::run::NoTerminal));
    }
    if tty {
        spec.env.insert(0, "TERM".into());
    }
    spec.validate().map_err(Failure::usage)?;
    let name = matches.get_one::<String>("name").map(String::as_str).unwrap_or_default();
    let (_, home) = Registry::user().and_then(|registry| registry.find(name)).map_err(Failure::failed)?;
    let signals = Signals::receive(&super::run::SIGNALS).map_err(Failure::failed)?;
    let exec = Exec {
        env: environment(&spec.env, &spec.env_file).map_err(Failure::failed)?,
        cwd: spec.workdir.clone(),
        user: spec.user.clone(),
        terminal: if tty { run::window_size().or(Some(Size { columns: 80, rows: 24 })) } else { None },
        stdin: interactive,
        ..Exec::new(&spec.command)
    };
    let mut remote = Remote::connect(&home.join(CONTROL)).map_err(Failure::failed)?;
    let raw = if tty { Terminal::enter(io::stdin()).map_err(Failure::failed)? } else { None };
    let streams = streams(&exec).map_err(Failure::failed)?;
    let outcome = remote.exec(exec, &streams.iter().map(AsFd::as_fd).collect::<Vec<_>>()).and_then(|()| {
        drop(streams);
        let resizes = if tty { terminal::resizes().ok().map(AsFd::as_fd) } else { None };
        remote.wait(Some(&signals), resizes.map(|fd| (fd, &run::window_size as &dyn Fn() -> Option<Size>)))
    });
    terminal::restore();
    drop(raw);
    let verdict = run::verdict_of(&outcome.map_err(Failure::failed)?);
    super::run::say(&verdict, None);
    Ok(verdict.exit_code())
}

/// What the machine's process reads and writes itself. Not the terminal's input: that process may be in the background
/// of the same terminal, where reading would stop it.
fn streams(exec: &Exec) -> io::Result<Vec<OwnedFd>> {
    let mut streams = Vec::new();
    if exec.stdin {
        streams.push(match io::stdin().is_terminal() {
            false => io::stdin().as_fd().try_clone_to_owned()?,
            true => {
                let (reader, mut writer) = io::pipe()?;
                std::thread::Builder::new().name("stdin".into()).spawn(move || {
                    // Ends with the terminal, or when the command takes no more.
                    let _ = io::copy(&mut io::stdin().lock(), &mut writer);
                })?;
                reader.into()
            }
        });
    }
    streams.push(io::stdout().as_fd().try_clone_to_owned()?);
    streams.push(io::stderr().as_fd().try_clone_to_owned()?);
    Ok(streams)
}
