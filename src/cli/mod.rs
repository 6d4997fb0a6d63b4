//! The command line: one file per subcommand.

mod boot;
mod device_flags;

use std::process::ExitCode;

use clap::Command;

use crate::machine::verdict::EXIT_FAILED;

/// Exit code for a command line that cannot be understood, as of most tools.
const EXIT_USAGE: u8 = 2;

/// What a subcommand failed with: the exit code and the chain of causes.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// The user asked for something that cannot be.
    fn usage(error: impl std::error::Error) -> Self {
        Self { code: EXIT_USAGE, message: chain(&error) }
    }

    /// belljar or the host failed.
    fn failed(error: impl std::error::Error) -> Self {
        Self { code: EXIT_FAILED, message: chain(&error) }
    }
}

/// The error and what caused it, on one line. A cause that its effect already quotes is not said twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

/// The whole command line, as help, completions and tests see it.
pub fn command() -> Command {
    Command::new("belljar")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Virtual machines from one command: boot an operating system, run a command, test a kernel")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .max_term_width(100)
        .subcommand(boot::command())
}

/// Runs what the arguments say; the exit code is documented in README.md.
pub fn main() -> ExitCode {
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        Err(e) => {
            // Help and version are no errors; a closed pipe while printing them is none either.
            let _ = e.print();
            return if e.use_stderr() { EXIT_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    start_logging();
    let result = match matches.subcommand() {
        Some(("boot", matches)) => boot::run(matches),
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
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
}
