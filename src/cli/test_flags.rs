//! Flags of `belljar test` that are about tests: which, how, and what is reported.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, value_parser};

use super::Failure;
use crate::runner::config::{Rules, Shard, What, with_value};
use crate::runner::outcome::{Action, SplatKind};
use crate::runner::report::KcidbOrigin;
use crate::runner::splat::Ignore;

fn switch(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

fn path(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).value_parser(value_parser!(PathBuf)).help(help)
}

fn under(heading: &'static str, args: Vec<Arg>) -> Vec<Arg> {
    args.into_iter().map(|arg| arg.help_heading(heading)).collect()
}

/// Flags that say what the tests are.
pub fn what() -> Vec<Arg> {
    let list = vec![
        path("config", "FILE", "File that describes kernels, machines and tests [default: belljar.toml]"),
        Arg::new("kunit")
            .long("kunit")
            .value_name("FILTER")
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("")
            .help("The kernel's own KUnit tests, without user space; FILTER is SUITE or SUITE.TEST, with * and ?"),
        Arg::new("kselftest")
            .long("kselftest")
            .value_name("COLLECTION[:TEST]")
            .action(ArgAction::Append)
            .requires("kselftest-dir")
            .conflicts_with("kunit")
            .help("Installed kselftests"),
    ];
    under("Tests", list)
}

/// Flags that say what shall come of tests, and what is kept: of any, those of a file too.
pub fn of_any() -> Vec<Arg> {
    let list = vec![
        path("kselftest-dir", "DIR", "Where kselftests are installed: the directory with run_kselftest.sh"),
        Arg::new("keep")
            .long("keep")
            .value_name("PATH")
            .value_parser(value_parser!(PathBuf))
            .action(ArgAction::Append)
            .help("File or directory of the guest that is kept among the artifacts"),
        Arg::new("splat")
            .long("splat")
            .value_name("KIND=ACTION")
            .value_parser(splat)
            .action(ArgAction::Append)
            .help("What a complaint of the kernel does: fail, warn or ignore; e.g. warning=warn, rcu-stall=ignore"),
        Arg::new("ignore-splat")
            .long("ignore-splat")
            .value_name("REGEX")
            .value_parser(|text: &str| Ignore::new(text, None))
            .action(ArgAction::Append)
            .help("Complaints with such a title or text do not matter"),
        Arg::new("ignore-splat-in")
            .long("ignore-splat-in")
            .value_name("CASE=REGEX")
            .value_parser(ignore_in)
            .action(ArgAction::Append)
            .help("The same while a case of such a name is under way; CASE is a regular expression, too, without ="),
    ];
    under("Tests", list)
}

/// Flags that say which of the tests run.
pub fn selection() -> Vec<Arg> {
    let list = vec![
        switch("list", "Print the tests' names, run nothing"),
        Arg::new("filter")
            .long("filter")
            .value_name("PATTERN")
            .action(ArgAction::Append)
            .help("Only tests whose name contains this, or matches it with * and ?; =NAME for exactly one, !PATTERN for all others"),
        Arg::new("shard")
            .long("shard")
            .value_name("I/N")
            .value_parser(|text: &str| text.parse::<Shard>())
            .help("Only this part of the tests, e.g. 1/4"),
        Arg::new("repeat")
            .long("repeat")
            .value_name("N")
            .value_parser(value_parser!(u32).range(1..))
            .help("Run each test so often"),
        path("rerun-failed", "FILE", "Only tests that went wrong, or did not run, by a report of --json"),
    ];
    under("Selection", list)
}

/// Flags that say how they run.
pub fn course() -> Vec<Arg> {
    let list = vec![
        Arg::new("jobs")
            .long("jobs")
            .short('j')
            .value_name("N")
            .value_parser(value_parser!(u16).range(1..))
            .help("Machines at a time [default: what CPUs and memory allow]"),
        switch("fail-fast", "Begin no further test when one has failed"),
        switch("keep-going", "Run all tests, whatever fails [default]").conflicts_with("fail-fast"),
        Arg::new("retry-infra")
            .long("retry-infra")
            .value_name("N")
            .value_parser(value_parser!(u32))
            .help("Try a test again when belljar or the host failed, not the test [default: 0]"),
        switch("shell-on-fail", "A shell in the guest when its test has failed; one test at a time")
            .conflicts_with("jobs"),
        switch("bisect", "Exit codes for git bisect run: 0 good, 1 bad, 125 cannot be told"),
    ];
    under("Course", list)
}

/// Flags that say what is written where.
pub fn reports() -> Vec<Arg> {
    let list = vec![
        path(
            "artifacts",
            "DIR",
            "Keep consoles, outputs and results there [default: a temporary directory, kept if a test fails]",
        ),
        path("junit", "FILE", "Write the results to FILE as JUnit XML"),
        path("json", "FILE", "... as JSON"),
        path("html", "FILE", "... as a page for people"),
        path("kcidb", "FILE", "... as a KCIDB submission"),
        Arg::new("kcidb-origin")
            .long("kcidb-origin")
            .value_name("NAME")
            .value_parser(|text: &str| KcidbOrigin::new(text).ok_or("take small letters, digits and `_`"))
            .requires("kcidb")
            .help("Who submits it [default: belljar]"),
        switch("ktap", "Print the results as KTAP on standard output, and all else on standard error"),
        path("gcov", "DIR", "Collect coverage data of the kernel (CONFIG_GCOV_KERNEL) in DIR"),
    ];
    under("Reports", list)
}

fn splat(text: &str) -> Result<(SplatKind, Action), String> {
    let (kind, action) = text.split_once('=').ok_or("write KIND=ACTION")?;
    let parse = |text: &str| toml::Value::String(text.into());
    let kind = parse(kind).try_into().map_err(|e: toml::de::Error| e.message().to_string())?;
    Ok((kind, parse(action).try_into().map_err(|e: toml::de::Error| e.message().to_string())?))
}

fn ignore_in(text: &str) -> Result<Ignore, String> {
    let (case, pattern) = text.split_once('=').ok_or("write CASE=REGEX")?;
    Ignore::new(pattern, Some(case))
}

/// What the command line says by these flags, as words.
pub fn given(matches: &ArgMatches, flags: &[Arg]) -> Vec<String> {
    let said = |flag: &&Arg| matches.value_source(flag.get_id().as_str()) == Some(ValueSource::CommandLine);
    let words = |flag: &Arg| -> Vec<String> {
        let name = format!("--{}", flag.get_long().unwrap_or_default());
        if matches!(flag.get_action(), ArgAction::SetTrue) {
            return vec![name];
        }
        let values = matches.get_raw(flag.get_id().as_str()).into_iter().flatten().map(|value| value.to_string_lossy());
        // Devices need no value.
        values.flat_map(|value| if value.is_empty() { vec![name.clone()] } else { with_value(&name, &value) }).collect()
    };
    flags.iter().filter(said).flat_map(words).collect()
}

/// The test that the command line is, unless it leaves that to a file.
pub fn one_test(matches: &ArgMatches) -> Result<Option<What>, Failure> {
    let command = matches.contains_id("command");
    if let Some(filter) = matches.get_one::<String>("kunit") {
        let filter = Some(filter.clone()).filter(|filter| !filter.is_empty());
        return if command { Err(Failure::usage(TwoTests("kunit"))) } else { Ok(Some(What::Kunit { filter })) };
    }
    let Some(wanted) = matches.get_many::<String>("kselftest") else { return Ok(command.then_some(What::Command)) };
    if command {
        return Err(Failure::usage(TwoTests("kselftest")));
    }
    let dir = matches.get_one::<PathBuf>("kselftest-dir").cloned().unwrap_or_default();
    let parts: Vec<_> =
        wanted.map(|text| text.split_once(':').map_or((text.as_str(), None), |(c, t)| (c, Some(t)))).collect();
    let collection = parts.first().map_or("", |(collection, _)| collection).to_string();
    if parts.iter().any(|(other, test)| *other != collection || (test.is_none() && parts.len() > 1)) {
        return Err(Failure::usage(TwoCollections));
    }
    let tests = parts.iter().filter_map(|(_, test)| test.map(str::to_string)).collect();
    Ok(Some(What::Kselftest { dir, collection, tests }))
}

#[derive(Debug, thiserror::Error)]
#[error("--{0} is a test of its own; leave the command out")]
struct TwoTests(&'static str);

#[derive(Debug, thiserror::Error)]
#[error("--kselftest: one collection, or several tests of one; more go into belljar.toml")]
struct TwoCollections;

/// Adds what the flags say of any test.
pub fn rules(matches: &ArgMatches, rules: &mut Rules) {
    rules.splats.extend(matches.get_many::<(SplatKind, Action)>("splat").into_iter().flatten().copied());
    for name in ["ignore-splat", "ignore-splat-in"] {
        rules.ignore_splats.extend(matches.get_many::<Ignore>(name).into_iter().flatten().cloned());
    }
    rules.artifacts.extend(matches.get_many::<PathBuf>("keep").into_iter().flatten().cloned());
    rules.retry_infra = matches.get_one("retry-infra").copied().or(rules.retry_infra);
}
