//! The command line: one file per subcommand.

mod boot;
mod command_flags;
mod cp;
mod device_flags;
mod doctor;
mod dump;
mod exec;
mod kernel;
mod machine_flags;
mod machines;
mod run;
mod run_flags;
mod test;
mod test_flags;

use std::path::Path;
use std::process::ExitCode;

use clap::Command;
use clap::error::ErrorKind;
use serde::Serialize;

use crate::host::causes::causes;
use crate::host::contain;
use crate::machine::verdict::EXIT_FAILED;
use crate::runner::report::diagnostics::Diagnostics;

/// Exit code for a command line that cannot be understood, as of most tools.
const EXIT_USAGE: u8 = 2;

/// What a subcommand failed with: the exit code, and the error with its causes.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The user asked for something that cannot be.
    fn usage(error: impl std::error::Error) -> Self {
        Self { code: EXIT_USAGE, message: causes(&error) }
    }

    /// belljar or the host failed.
    fn failed(error: impl std::error::Error) -> Self {
        Self { code: EXIT_FAILED, message: remedy(causes(&error)) }
    }
}

/// A file that the user named cannot be used.
fn file_failure(action: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::failed(std::io::Error::other(format!("Cannot {action}: {}: {error}", path.display())))
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(Failure::failed)
}

/// Says what to do if all that `message` ends with is the host's reason. The number that Rust adds to it helps nobody.
fn remedy(message: String) -> String {
    let Some((text, number)) = message.trim_end_matches(')').rsplit_once(" (os error ") else { return message };
    match number {
        "2" => format!("{text}: check the path"),
        "13" => format!("{text}: let this user open it (ls -l shows who may), or give a copy"),
        "21" => format!("{text}: give a file"),
        "28" => format!("{text}: make room"),
        _ => message,
    }
}

/// What clap says about a command line, on one line and without the usage, which `--help` prints.
fn usage_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let said = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let said = said.filter(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let words: Vec<_> = said.map(|line| line.trim_start_matches("error: ")).collect();
    let begun = std::env::args().nth(1).filter(|word| command().find_subcommand(word).is_some());
    let verb = begun.map(|verb| format!(" {verb}")).unwrap_or_default();
    format!("belljar: {}; belljar{verb} --help lists what there is", words.join(" "))
}

/// The whole command line, as help, completions and tests see it.
pub fn command() -> Command {
    Command::new("belljar")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Virtual machines from one command: boot an operating system, run a command, test a kernel")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .max_term_width(100)
        .subcommand(run::command())
        .subcommand(test::command())
        .subcommand(exec::command())
        .subcommand(cp::command())
        .subcommand(dump::command())
        .subcommand(machines::ps_command())
        .subcommand(machines::stop_command())
        .subcommand(machines::logs_command())
        .subcommand(boot::command())
        .subcommand(kernel::command())
        .subcommand(doctor::command())
}

/// Runs what the arguments say; the exit code is documented in README.md.
pub fn main() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(e) => {
            if e.use_stderr() && e.kind() != ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                eprintln!("{}", usage_line(&e));
                return if test::is_bisect() { test::SKIP } else { EXIT_USAGE }.into();
            }
            // Help and version are no errors; a closed pipe while printing them is none either.
            let _ = e.print();
            return if e.use_stderr() { EXIT_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    start_logging();
    contain::install();
    let result = match matches.subcommand() {
        Some(("run", matches)) => run::run(matches),
        Some(("test", matches)) => test::run(matches),
        Some(("exec", matches)) => exec::run(matches),
        Some(("cp", matches)) => cp::run(matches),
        Some(("dump", matches)) => dump::run(matches),
        Some(("ps", matches)) => machines::ps(matches),
        Some(("stop", matches)) => machines::stop(matches),
        Some(("logs", matches)) => machines::logs(matches),
        Some(("boot", matches)) => boot::run(matches),
        Some(("kernel", matches)) => kernel::run(matches),
        Some(("doctor", matches)) => doctor::run(matches),
        _ => return EXIT_USAGE.into(),
    };
    result.map_or_else(
        |failure| {
            eprintln!("belljar: {}", failure.message);
            failure.code.into()
        },
        ExitCode::from,
    )
}

/// Diagnostics go to stderr: warnings, or what `BELLJAR_LOG` asks for (`debug`, `info,belljar::virtio=trace`).
fn start_logging() {
    let filter = std::env::var("BELLJAR_LOG").unwrap_or_else(|_| "warn".into());
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new(filter))
        .with_writer(|| Diagnostics)
        .without_time()
        .with_target(false)
        .init();
}
