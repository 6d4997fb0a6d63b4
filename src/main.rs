//! The command line tool; all work is done in the library.

fn main() -> std::process::ExitCode {
    belljar::cli::main()
}
