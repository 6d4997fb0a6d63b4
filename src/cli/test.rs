//! `belljar test`: tests of kernels, each in a machine of its own.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Arg, ArgMatches, Command};

use super::{Failure, command_flags, device_flags, file_failure, machine_flags, run_flags, test_flags};
use crate::host::signal::Signals;
use crate::host::{limits, terminal};
use crate::runner::config::{self, Cell, InFile, Selection, Suite, What};
use crate::runner::{self, Options, Stop};

mod output;

use output::Outputs;

/// Signals that end everything: the first asks the guests, the second does not.
const SIGNALS: [libc::c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];
/// What `git bisect run` takes for a revision that cannot be tested.
pub const SKIP: u8 = 125;

/// Flags and help of the subcommand.
pub fn command() -> Command {
    Command::new("test")
        .about("Test kernels, each test in a machine of its own")
        .long_about(
            "Test kernels, each test in a machine of its own.\n\nA command, --kunit or --kselftest is the one test, and flags say \
             where it runs, as for belljar run. Without those, belljar.toml describes kernels, machines and tests, and flags \
             replace what it says. Exit code: 0 all is well; 1 a test failed; 3 a kernel crashed; 4 a test took too long; \
             125 belljar or the host failed; 2 bad usage. With --bisect: 0 good, 1 bad, 125 cannot be told.",
        )
        .args(test_flags::what())
        .args(test_flags::of_any())
        .args(test_flags::selection())
        .args(test_flags::course())
        .args(test_flags::reports())
        .args(machines())
        .arg(command_flags::words("The command that is the test, and its arguments"))
}

/// Flags that say how tests run, and count more than what a file says.
fn machines() -> Vec<Arg> {
    let lists = [run_flags::root(), command_flags::args(), run_flags::guest(), machine_flags::machine()];
    let devices = device_flags::args().chain(run_flags::limits()).chain([machine_flags::timeout()]);
    lists.into_iter().flatten().chain(devices).chain(machine_flags::debugging()).collect()
}

/// Runs the tests. The exit code is that of [`Outcome::exit_code`].
pub fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let bisect = matches.get_flag("bisect");
    match test(matches) {
        Ok(code) if bisect => Ok(for_bisect(code)),
        Err(failure) if bisect => Err(Failure { code: SKIP, ..failure }),
        other => other,
    }
}

/// Whether the command line, which cannot be understood, is one for `git bisect run`: that takes 2 for a bad revision.
pub fn is_bisect() -> bool {
    let mut words = std::env::args().skip(1).take_while(|word| word != "--");
    words.next().is_some_and(|verb| verb == "test") && words.any(|word| word == "--bisect")
}

/// As `git bisect run` wants it: whatever the kernel did wrong is bad, and nothing ends the search.
fn for_bisect(code: u8) -> u8 {
    match code {
        0 => 0,
        1 | 3 | 4 => 1,
        _ => SKIP,
    }
}

fn test(matches: &ArgMatches) -> Result<u8, Failure> {
    let Planned { cells, config } = planned(matches)?;
    let cells = config::select(cells, &selection(matches)?).map_err(Failure::usage)?;
    if matches.get_flag("list") {
        // Nobody reads any more: that is all right.
        let _ = cells.iter().try_for_each(|cell| writeln!(std::io::stdout(), "{}", cell.id));
        return Ok(0);
    }
    let debugging = ["gdb", "gdb-on-crash", "dump"].into_iter().find(|flag| matches.contains_id(flag));
    if let Some(flag) = debugging.filter(|_| cells.len() != 1) {
        return Err(Failure::usage(ForOneTest(flag, cells.len())));
    }
    // Opened first: what was a long run should not end with the news that its result cannot be kept.
    let outputs = Outputs::create(matches)?;
    limits::raise_open_files();
    // Before any thread exists, so that all of them leave these signals to the main thread.
    let signals = Signals::receive(&SIGNALS).map_err(Failure::failed)?;
    let given = matches.get_one::<PathBuf>("artifacts").cloned();
    let kept = given.is_some();
    let directory = given.map_or_else(runner::temporary, |path| std::fs::create_dir_all(&path).map(|()| path));
    let directory =
        directory.map_err(|e| file_failure("make the directory of artifacts", Path::new("--artifacts"), &e))?;
    let options = options(matches, &cells, directory, config)?;
    let stop = Arc::new(Stop::default());
    let mut asked = false;
    let mut tick = || {
        while let Some(signal) = signals.next() {
            if std::mem::replace(&mut asked, true) {
                terminal::restore();
                std::process::exit(128 + signal);
            }
            stop.now();
        }
    };
    let observer = outputs.observer();
    outputs.begin();
    let outcome = runner::run(cells, &options, &observer, &stop, &mut tick).map_err(Failure::failed)?;
    outputs.write(&outcome)?;
    if !kept && outcome.exit_code() == 0 {
        // Nobody will look at it; what cannot be removed is in the way of nobody either.
        let _ = std::fs::remove_dir_all(&options.directory);
    }
    Ok(outcome.exit_code())
}

/// What there is to do.
struct Planned {
    cells: Vec<Cell>,
    /// Where it says so, if in a file.
    config: Option<InFile>,
}

fn planned(matches: &ArgMatches) -> Result<Planned, Failure> {
    let named = matches.get_one::<PathBuf>("config").cloned();
    if let Some(what) = test_flags::one_test(matches)? {
        if let Some(path) = named {
            return Err(Failure::usage(TwoPlans(path)));
        }
        let spec = run_flags::spec(matches)?;
        spec.validate().map_err(Failure::usage)?;
        let mut cells = Suite::one_liner(spec, what).cells().map_err(Failure::usage)?;
        for cell in &mut cells {
            test_flags::rules(matches, &mut cell.rules);
        }
        return Ok(Planned { cells, config: None });
    }
    if let Some(spec) = matches.get_one::<PathBuf>("spec") {
        return Err(Failure::usage(NoCommand(spec.clone())));
    }
    let path = named.unwrap_or_else(|| config::FILE.into());
    let text = std::fs::read_to_string(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => Failure::usage(NoPlan(path.clone())),
        _ => file_failure("read the tests", &path, &e),
    })?;
    let mut cells = Suite::from_toml(&text, &path).and_then(|suite| suite.cells()).map_err(Failure::usage)?;
    replace(matches, &mut cells)?;
    let flags = test_flags::given(matches, &[machines(), test_flags::of_any()].concat());
    Ok(Planned { cells, config: Some(InFile { file: path, flags }) })
}

/// What flags say counts more than what a file says.
fn replace(matches: &ArgMatches, cells: &mut [Cell]) -> Result<(), Failure> {
    let several = cells.iter().any(|cell| Some(&cell.kernel) != cells.first().map(|cell| &cell.kernel));
    if several && matches.contains_id("kernel") {
        return Err(Failure::usage(SeveralKernels));
    }
    for cell in cells {
        run_flags::apply(matches, &mut cell.run)?;
        test_flags::rules(matches, &mut cell.rules);
        if let (What::Kselftest { dir, .. }, Some(given)) = (&mut cell.what, matches.get_one("kselftest-dir")) {
            PathBuf::clone_from(dir, given);
        }
        cell.run.validate().map_err(Failure::usage)?;
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
#[error("--config {}: a command, --kunit or --kselftest is a test of its own; leave one of the two out", .0.display())]
struct TwoPlans(PathBuf);

#[derive(Debug, thiserror::Error)]
#[error("--spec {}: one test needs its command, after --, and tests of a file have their own machines", .0.display())]
struct NoCommand(PathBuf);

#[derive(Debug, thiserror::Error)]
#[error("{}: there is no such file; give the tests with --config FILE, or one test: a command after --, or --kunit", .0.display())]
struct NoPlan(PathBuf);

#[derive(Debug, thiserror::Error)]
#[error("--{0} is for one test, and these are {1}; choose it with --filter")]
struct ForOneTest(&'static str, usize);

#[derive(Debug, thiserror::Error)]
#[error("--kernel: the file names several kernels; choose among them with --filter")]
struct SeveralKernels;

fn selection(matches: &ArgMatches) -> Result<Selection, Failure> {
    let rerun = matches.get_one::<PathBuf>("rerun-failed").map(|path| {
        let text = std::fs::read_to_string(path).map_err(|e| file_failure("read the report", path, &e))?;
        config::unfinished(&text).map_err(Failure::usage)
    });
    Ok(Selection {
        filters: matches.get_many::<String>("filter").into_iter().flatten().cloned().collect(),
        shard: matches.get_one("shard").copied(),
        repeat: matches.get_one("repeat").copied().unwrap_or(1),
        rerun: rerun.transpose()?,
    })
}

fn options(
    matches: &ArgMatches,
    cells: &[Cell],
    directory: PathBuf,
    config: Option<InFile>,
) -> Result<Options, Failure> {
    let shell_on_fail = matches.get_flag("shell-on-fail");
    if shell_on_fail && !std::io::stdin().is_terminal() {
        return Err(Failure::usage(NoTerminal));
    }
    let jobs = matches.get_one::<u16>("jobs").map(|jobs| usize::from(*jobs));
    let usual = || match shell_on_fail {
        true => 1,
        false => config::jobs(cells, std::thread::available_parallelism().map_or(1, usize::from), limits::memory()),
    };
    Ok(Options {
        jobs: jobs.unwrap_or_else(usual),
        fail_fast: matches.get_flag("fail-fast"),
        directory,
        config,
        gcov: matches.get_one::<PathBuf>("gcov").cloned(),
        shell_on_fail,
    })
}

#[derive(Debug, thiserror::Error)]
#[error("--shell-on-fail: standard input is not a terminal; leave it out")]
struct NoTerminal;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(words: &[String]) -> Planned {
        let matches = command().try_get_matches_from(words).unwrap();
        let Planned { cells, config } = planned(&matches).unwrap_or_else(|failure| panic!("{words:?}: {failure:?}"));
        Planned { cells: config::select(cells, &selection(&matches).unwrap()).unwrap(), config }
    }

    /// The line that repeats the only test of a command line, as a shell reads it, without `belljar`.
    fn repeated(plan: &Planned) -> Vec<String> {
        let line = plan.cells[0].reproduce(plan.config.as_ref());
        let output = std::process::Command::new("sh").args(["-c", &format!("printf '%s\\0' {line}")]).output().unwrap();
        let words: Vec<_> =
            String::from_utf8(output.stdout).unwrap().split_terminator('\0').map(str::to_owned).collect();
        assert_eq!(words[0], "belljar");
        words[1..].to_vec()
    }

    #[track_caller]
    fn repeats(words: &[&str]) -> Vec<String> {
        let words: Vec<_> = ["test"].iter().chain(words).map(|word| word.to_string()).collect();
        let first = plan(&words);
        let line = repeated(&first);
        let second = plan(&line);
        let cells = |plan: &Planned| serde_json::to_value(&plan.cells).unwrap();
        assert_eq!(cells(&first), cells(&second), "{words:?}\n{line:?}");
        assert_eq!((first.cells.len(), repeated(&second)), (1, line.clone()));
        line
    }

    /// Flags of all sorts, with values that shells and this program could take for something else.
    const FLAGS: &[&str] = &[
        "--timeout=5",
        "--append=-x 'y' \"$z\" `w`",
        "--env=A=it's",
        "--env=-B",
        "--volume=a dir:/mnt:ro",
        "--cpus=3",
        "--memory=1G",
        "--no-panic-on-oops",
        "--boot-timeout=7",
        "--disk=path=a,,b=c,readonly=on",
        "--rng",
        "--net=user",
        "--ro",
        "--keep=/tmp/a b",
        "--splat=rcu-stall=warn",
        "--splat=taint=fail",
        "--ignore-splat=^WARNING in (a|b)$",
        "--ignore-splat-in=^s/p.1$=KASAN: a=b",
    ];

    #[test]
    fn a_command_line_is_repeated_by_its_line() {
        let command = ["--", "sh", "-c", "echo \"it's $1\"; exit 3", "-x"];
        repeats(&[&["--kernel", "a kernel"], FLAGS, &command].concat());
        repeats(&[FLAGS, &["--kunit=ext4*.a?"]].concat());
        repeats(&["--kselftest=net:a", "--kselftest=net:b", "--kselftest-dir=-k", "--disk-root=x"]);
        repeats(&["true"]);
    }

    #[test]
    fn what_is_said_beside_a_file_is_said_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("my 'tests'.toml");
        let text = "[defaults]\nkernel = \"k\"\ncpus = 4\nappend = \"quiet\"\nroot = \"/r\"\n\
                    [[kernel]]\nname = \"one\"\n[[test]]\nname = \"a\"\ncommand = [\"true\"]\n[[test]]\nname = \"b\"\nkselftest = \"size\"\nkselftest-dir = \"k\"\n";
        std::fs::write(&file, text).unwrap();
        let config = ["--config", file.to_str().unwrap(), "--filter", "a", "--jobs=2"];
        let other = repeats(&["--config", config[1], "--filter", "=one/b", "--kselftest-dir", "there"]);
        assert_eq!(other[5..], ["--kselftest-dir", "there"]);
        let plain = repeats(&config);
        assert_eq!(plain[3..], ["--filter", "=one/a"]);
        let line = repeats(&[&config, FLAGS, &["--kernel=other", "--disk-root=image"]].concat());
        let cell = &plan(&line).cells[0];
        let machine = &cell.run.machine;
        assert_eq!((machine.cpus, machine.timeout, machine.kernel.as_deref()), (3, Some(5), Some(Path::new("other"))));
        assert_eq!((cell.run.root.as_deref(), cell.run.disk_root.as_deref()), (None, Some(Path::new("image"))));
        assert_eq!(cell.rules.ignore_splats[1].case(), Some("^s/p.1$"));
        assert!(!line.iter().any(|word| word.contains("jobs")), "{line:?}");
    }
}
