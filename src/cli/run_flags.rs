//! Flags of the verbs that run a command in a machine of its own, and the specification that they are.

use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::{Failure, command_flags, machine_flags};
use crate::run::{RootAccess, RunSpec, RunSpecError, Volume};

/// Flags of the guest's files.
pub fn root() -> Vec<Arg> {
    let path = || value_parser!(PathBuf);
    let access = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).action(ArgAction::SetTrue).help(help).help_heading("Files")
    };
    vec![
        Arg::new("root")
            .long("root")
            .value_name("PATH")
            .value_parser(path())
            .help("Directory, or cpio or tar archive, that becomes the guest's root [default: /]")
            .help_heading("Files"),
        Arg::new("disk-root")
            .long("disk-root")
            .value_name("FILE")
            .value_parser(path())
            .help("Disk image with a file system that becomes the guest's root")
            .help_heading("Files"),
        access("overlay", "The guest may change its root; changes are thrown away [default]"),
        access("ro", "The guest's root is read-only").conflicts_with_all(["overlay", "rw"]),
        access("rw", "What the guest changes in its root stays").conflicts_with("overlay"),
        Arg::new("volume")
            .long("volume")
            .short('v')
            .value_name("HOST:GUEST[:ro]")
            .value_parser(|text: &str| text.parse::<Volume>())
            .action(ArgAction::Append)
            .help("Directory of the host in the guest, writable unless :ro")
            .help_heading("Files"),
    ]
}

/// Flags of the guest around its command.
pub fn guest() -> Vec<Arg> {
    let text = |name: &'static str, value: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name(value).help(help)
    };
    vec![
        text("modules", "DIR", "Where the kernel's modules are [default: where they belong]")
            .value_parser(value_parser!(PathBuf)),
        text("hostname", "NAME", "Name of the guest, for itself [default: the machine's name]"),
        text("init", "PATH", "The root's own init becomes process 1, with arguments after blanks"),
        text("publish", "HOST:GUEST[/udp]", "Port of the host that leads to one of the guest (with --net user)")
            .short('p')
            .action(ArgAction::Append),
        text("allow", "HOST[:PORT]", "All that the guest may reach (with --net user)").action(ArgAction::Append),
        Arg::new("no-panic-on-oops")
            .long("no-panic-on-oops")
            .action(ArgAction::SetTrue)
            .help("The guest's kernel goes on after an oops"),
        Arg::new("panic-on-oops")
            .long("panic-on-oops")
            .action(ArgAction::SetTrue)
            .conflicts_with("no-panic-on-oops")
            .help("An oops of the guest's kernel is a panic [default]"),
    ]
}

/// Time limits beside that of the whole.
pub fn limits() -> [Arg; 2] {
    let seconds = |name: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("SECONDS").value_parser(value_parser!(u64)).help(help)
    };
    [
        seconds("boot-timeout", "How long the guest may take to start [default: 60, or 300 on the software CPU]"),
        seconds("idle-timeout", "End the machine when nothing was printed for so long, with exit code 124"),
    ]
}

/// The specification that `--spec` and these flags make together.
pub fn spec(matches: &ArgMatches) -> Result<RunSpec, Failure> {
    let mut spec = match machine_flags::spec_file(matches)? {
        None => RunSpec::default(),
        Some((path, text)) => RunSpec::from_toml(&text).map_err(|e| match e {
            RunSpecError::Machine(e) => machine_flags::spec_failure(path, &e),
            other => Failure::usage(other),
        })?,
    };
    apply(matches, &mut spec)?;
    Ok(spec)
}

/// Puts what these flags say into `spec`: it is added to what is there or replaces it.
pub fn apply(matches: &ArgMatches, spec: &mut RunSpec) -> Result<(), Failure> {
    machine_flags::apply(matches, &mut spec.machine)?;
    command_flags::apply(matches, spec);
    let path = |name| matches.get_one::<PathBuf>(name).cloned();
    let text = |name| matches.get_one::<String>(name).cloned();
    let texts = |name| matches.get_many::<String>(name).into_iter().flatten().cloned();
    if let (Some(_), None) | (None, Some(_)) = (path("root"), path("disk-root")) {
        // A guest has one root.
        (spec.root, spec.disk_root) = (None, None);
    }
    spec.root = path("root").or(spec.root.take());
    spec.disk_root = path("disk-root").or(spec.disk_root.take());
    spec.modules = path("modules").or(spec.modules.take());
    let access = [("ro", RootAccess::Ro), ("rw", RootAccess::Rw), ("overlay", RootAccess::Overlay)];
    let access = access.into_iter().find(|(name, _)| matches.get_flag(name)).map(|(_, access)| access);
    spec.access = access.or(spec.access);
    spec.volumes.extend(matches.get_many::<Volume>("volume").into_iter().flatten().cloned());
    spec.hostname = text("hostname").or(spec.hostname.take());
    spec.init = text("init").or(spec.init.take());
    spec.publish.extend(texts("publish"));
    spec.allow.extend(texts("allow"));
    let seconds = |name| matches.get_one::<u64>(name).copied();
    spec.boot_timeout = seconds("boot-timeout").or(spec.boot_timeout);
    spec.idle_timeout = seconds("idle-timeout").or(spec.idle_timeout);
    spec.no_panic_on_oops =
        (spec.no_panic_on_oops || matches.get_flag("no-panic-on-oops")) && !matches.get_flag("panic-on-oops");
    Ok(())
}
