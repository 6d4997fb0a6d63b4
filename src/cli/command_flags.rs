//! Flags that are about a command in a guest, whether its machine is new or runs already.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use crate::run::RunSpec;

const HEADING: &str = "Command";

/// How the command is connected to this process.
pub fn terminal() -> [Arg; 2] {
    let switch = |name: &'static str, short: char, help: &'static str| {
        Arg::new(name).long(name).short(short).action(ArgAction::SetTrue).help(help).help_heading(HEADING)
    };
    [
        switch("interactive", 'i', "Pass standard input also when it is a terminal"),
        switch("tty", 't', "Give the command a terminal"),
    ]
}

/// What surrounds the command.
pub fn args() -> Vec<Arg> {
    vec![
        Arg::new("env")
            .long("env")
            .short('e')
            .value_name("NAME[=VALUE]")
            .value_parser(value_parser!(OsString))
            .action(ArgAction::Append)
            .help("Variable of the command's environment; without a value, as it is here")
            .help_heading(HEADING),
        Arg::new("env-file")
            .long("env-file")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .action(ArgAction::Append)
            .help("File with such variables, one on a line")
            .help_heading(HEADING),
        Arg::new("workdir")
            .long("workdir")
            .short('w')
            .value_name("DIR")
            .value_parser(value_parser!(PathBuf))
            .help("Working directory [default: this one if the guest has this host's root, else /]")
            .help_heading(HEADING),
        Arg::new("user")
            .long("user")
            .short('u')
            .value_name("USER[:GROUP]")
            .help("Who runs it, by name or number [default: root]")
            .help_heading(HEADING),
    ]
}

/// The command itself: all words from the first on that is no flag.
pub fn words(help: &'static str) -> Arg {
    Arg::new("command")
        .value_name("COMMAND")
        .value_parser(value_parser!(OsString))
        .num_args(0..)
        .trailing_var_arg(true)
        .help(help)
}

/// Puts what they say into `spec`.
pub fn apply(matches: &ArgMatches, spec: &mut RunSpec) {
    let words: Vec<_> = matches.get_many::<OsString>("command").into_iter().flatten().cloned().collect();
    if !words.is_empty() {
        spec.command = words;
    }
    spec.env.extend(matches.get_many::<OsString>("env").into_iter().flatten().cloned());
    spec.env_file.extend(matches.get_many::<PathBuf>("env-file").into_iter().flatten().cloned());
    spec.workdir = matches.get_one::<PathBuf>("workdir").cloned().or(spec.workdir.take());
    spec.user = matches.get_one::<String>("user").cloned().or(spec.user.take());
}
