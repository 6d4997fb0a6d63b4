//! `belljar dump`: a core dump of a machine that runs.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};

use super::Failure;
use super::run::SIGNALS;
use crate::host::signal::Signals;
use crate::run::Remote;
use crate::run::registry::{CONTROL, Registry};

/// Flags and help of the subcommand.
pub fn command() -> Command {
    Command::new("dump")
        .about("Write memory and registers of a machine that runs to a file, for crash or gdb")
        .long_about(
            "Write memory and registers of a machine that runs to a file, for crash or gdb: an ELF core dump, as --dump writes \
             it.\n\nThe machine stands still meanwhile and then goes on. FILE appears when it is complete, in the place of one \
             that is there. Exit code: 0; 125 belljar failed or the machine ended; 128+N signal N came first; 2 bad usage.",
        )
        .arg(Arg::new("name").value_name("NAME").required(true).help("The machine, as belljar ps shows it"))
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .required(true)
                .help("Where the dump goes; it takes up what the guest uses of its memory"),
        )
}

/// Writes the dump.
pub fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let name = matches.get_one::<String>("name").map(String::as_str).unwrap_or_default();
    let path = matches.get_one::<PathBuf>("file").map(PathBuf::as_path).unwrap_or(Path::new(""));
    let (_, home) = Registry::user().and_then(|registry| registry.find(name)).map_err(Failure::failed)?;
    // So that nothing half-written is left.
    let signals = Signals::receive(&SIGNALS).map_err(Failure::failed)?;
    let remote = Remote::connect(&home.join(CONTROL)).map_err(Failure::failed)?;
    let signal = remote.dump(path, &signals).map_err(Failure::failed)?;
    Ok(signal.map_or(0, |signal| 128 | u8::try_from(signal).unwrap_or_default()))
}
