//! Runs a command in a machine of its own and takes its output: what `belljar run` does, from a program.
//!
//!     cargo run --example run_command -- [KERNEL [ENGINE]]
//!
//! The library takes over neither the process nor its signals or terminal: this program could do anything else meanwhile.

use std::process::ExitCode;

use belljar::run::{self, RunSpec};
use belljar::spec::EngineName;

fn main() -> ExitCode {
    let mut spec =
        RunSpec { command: ["sh", "-c", "uname -sm; id -un >&2; exit 7"].map(Into::into).into(), ..RunSpec::default() };
    // Everything that flags and files can say can be said here.
    spec.machine.kernel = std::env::args_os().nth(1).map(Into::into);
    if std::env::args().nth(2).is_some_and(|name| name == "soft") {
        spec.machine.engine = EngineName::Soft;
    }
    match run::output(&spec) {
        Ok(output) => {
            println!("stdout: {}", String::from_utf8_lossy(&output.stdout).trim_end());
            println!("stderr: {}", String::from_utf8_lossy(&output.stderr).trim_end());
            println!("verdict: {}, after {:.1} s", output.report.verdict, output.report.stages.end);
            ExitCode::from(output.report.exit_code)
        }
        Err(e) => {
            eprintln!("run_command: {e}");
            ExitCode::FAILURE
        }
    }
}
