//! `belljar kernel`: the kernels that machines can be started with, and those that belljar keeps.

use std::io::Write;
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use serde::Serialize;

use super::Failure;
use crate::host::causes::causes;
use crate::kernel::store::Keep;
use crate::kernel::{self, FOR_A_DIRECTORY, FOR_ANY_RUN, Kernel, Places};
use crate::spec::approximate;

/// Flags and help of the subcommand.
pub fn command() -> Command {
    let add =
        Command::new("add")
            .about("Keep a kernel with its modules, for --kernel NAME and as the default")
            .arg(Arg::new("from").value_name("FILE|DIR|RELEASE").required(true).action(ArgAction::Append).help(
                "Debian or RPM package (several make one kernel), bzImage, vmlinux, build tree, installed release",
            ))
            .arg(Arg::new("name").long("name").value_name("NAME").help("Name to keep it under [default: its release]"))
            .arg(
                Arg::new("modules")
                    .long("modules")
                    .value_name("DIR")
                    .value_parser(value_parser!(PathBuf))
                    .help("Where its modules are, if not with it"),
            )
            .arg(Arg::new("force").long("force").action(ArgAction::SetTrue).help("Replace one of the same name"));
    let list = Command::new("list")
        .about("List kernels that --kernel takes by name; a star marks the one taken without --kernel")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print it as JSON"));
    let rm = Command::new("rm")
        .about("Remove kernels that were kept")
        .arg(Arg::new("name").value_name("NAME").required(true).action(ArgAction::Append).help("Name in the list"));
    Command::new("kernel")
        .about("Kernels for machines: keep, list, remove")
        .long_about(
            "Kernels for machines: keep, list, remove.\n\nKept kernels are in $XDG_DATA_HOME/belljar/kernels or \
             ~/.local/share/belljar/kernels. Exit code: 0, 125 if something cannot be read or written, 2 bad usage.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([add, list, rm])
}

/// Does what the arguments say.
pub fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    match matches.subcommand() {
        Some(("add", matches)) => add(matches),
        Some(("rm", matches)) => remove(matches),
        Some((_, matches)) => list(matches.get_flag("json")),
        None => Ok(super::EXIT_USAGE),
    }
}

fn add(matches: &ArgMatches) -> Result<u8, Failure> {
    let from: Vec<_> = matches.get_many::<String>("from").into_iter().flatten().map(String::as_str).collect();
    let modules = matches.get_one::<PathBuf>("modules").map(PathBuf::as_path);
    let keep = Keep { name: matches.get_one::<String>("name").map(String::as_str), force: matches.get_flag("force") };
    let (name, kernel) = Places::host().keep(&from, modules, keep).map_err(Failure::failed)?;
    let mut text = format!("{name}: {}, {} modules\n", approximate(kernel.size()), kernel.number_of_modules());
    let lacks = lacks(&kernel);
    for lack in &lacks {
        text.push_str(&format!("{name}: for belljar run, {}\n", lack.text));
    }
    if kernel.number_of_modules() == 0 && !lacks.is_empty() {
        text.push_str(
            "Modules may be in packages of their own: give them together, for example linux-image-* and linux-modules-* \
             of Ubuntu, kernel-core, kernel-modules-core and kernel-modules of Fedora\n",
        );
    }
    print(&text);
    Ok(0)
}

fn remove(matches: &ArgMatches) -> Result<u8, Failure> {
    let places = Places::host();
    for name in matches.get_many::<String>("name").into_iter().flatten() {
        places.forget(name).map_err(Failure::failed)?;
    }
    Ok(0)
}

fn lacks(kernel: &Kernel) -> Vec<kernel::Lack> {
    kernel.lacks(&[FOR_ANY_RUN, FOR_A_DIRECTORY].concat())
}

/// One line of the list.
#[derive(Debug, Serialize)]
struct Row {
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    release: Option<String>,
    /// Taken without `--kernel`.
    default: bool,
    /// In belljar's own store, not merely installed.
    kept: bool,
    origin: String,
    bytes: u64,
    /// What `belljar run` would want and this kernel has not.
    lacks: Vec<String>,
    /// It cannot be used at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

fn list(json: bool) -> Result<u8, Failure> {
    let places = Places::host();
    let default = places.find(None, None).ok().map(|kernel| kernel.image);
    let rows: Vec<_> = places
        .all()
        .into_iter()
        .map(|(name, kept, kernel)| match kernel {
            Ok(kernel) => Row {
                name,
                default: default.as_ref() == Some(&kernel.image),
                kept,
                bytes: kernel.size(),
                lacks: lacks(&kernel).into_iter().map(|lack| lack.feature.described()).collect(),
                release: kernel.release,
                origin: kernel.origin,
                error: None,
            },
            Err(error) => Row {
                name,
                default: false,
                kept,
                bytes: 0,
                lacks: Vec::new(),
                release: None,
                origin: String::new(),
                error: Some(causes(&error)),
            },
        })
        .collect();
    print(&if json { serde_json::to_string(&rows).map_err(Failure::failed)? + "\n" } else { table(&rows) });
    Ok(0)
}

fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "No kernel is installed here that this user sees, and none is kept: see belljar kernel add --help\n"
            .into();
    }
    let width = rows.iter().map(|row| row.name.len()).max().unwrap_or_default();
    let line = |row: &Row| {
        let star = if row.default { '*' } else { ' ' };
        let size = approximate(row.bytes);
        let about = match (&row.error, row.lacks.is_empty()) {
            (Some(error), _) => error.clone(),
            (None, true) => row.origin.clone(),
            (None, false) => format!("{}; for belljar run it lacks {}", row.origin, row.lacks.join(", ")),
        };
        format!("{star} {:width$}  {size:>8}  {about}\n", row.name)
    };
    rows.iter().map(line).collect()
}

/// Prints, unless nobody reads any more.
fn print(text: &str) {
    let _ = std::io::stdout().write_all(text.as_bytes());
}
