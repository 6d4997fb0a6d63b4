//! `belljar cp`: files from the host to a machine that runs, and back.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Command, value_parser};

use super::Failure;
use crate::run::Remote;
use crate::run::registry::{CONTROL, Registry};

/// Flags and help of the subcommand.
pub fn command() -> Command {
    let path = |name: &'static str, help: &'static str| {
        Arg::new(name).value_name("[NAME:]PATH").value_parser(value_parser!(PathBuf)).required(true).help(help)
    };
    Command::new("cp")
        .about("Copy files to a machine that runs, or from it")
        .long_about(
            "Copy files to a machine that runs, or from it.\n\nOne of the two is NAME:PATH, a path in the machine NAME. \
             Directories are copied with what is in them. Exit code: 0; 125 belljar failed; 2 bad usage.",
        )
        .arg(path("from", "What is copied"))
        .arg(path("to", "Where to: into it if it is a directory, else as it"))
}

#[derive(Debug, thiserror::Error)]
#[error("belljar cp: one of the two must be NAME:PATH, a path in a machine")]
struct OneMachine;

/// Copies.
pub fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let path = |name| matches.get_one::<PathBuf>(name).map(PathBuf::as_path).unwrap_or(Path::new(""));
    let (from, to) = (path("from"), path("to"));
    match (in_machine(from), in_machine(to)) {
        (Some((name, from)), None) => connect(name)?.copy_out(from, to),
        (None, Some((name, to))) => connect(name)?.copy_in(from, to),
        _ => return Err(Failure::usage(OneMachine)),
    }
    .map_err(Failure::failed)?;
    Ok(0)
}

/// Name and path, if `path` is in a machine: what has a slash before its colon is a file of the host.
fn in_machine(path: &Path) -> Option<(&str, &Path)> {
    let (name, rest) = path.to_str()?.split_once(':')?;
    (!name.contains('/')).then_some((name, Path::new(rest)))
}

fn connect(name: &str) -> Result<Remote, Failure> {
    let (_, home) = Registry::user().and_then(|registry| registry.find(name)).map_err(Failure::failed)?;
    Remote::connect(&home.join(CONTROL)).map_err(Failure::failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_in_machines_are_told_from_files() {
        assert_eq!(in_machine(Path::new("web:/etc/hosts")), Some(("web", Path::new("/etc/hosts"))));
        for file in ["/a:b", "./web:x", "plain"] {
            assert_eq!(in_machine(Path::new(file)), None, "{file}");
        }
    }
}
