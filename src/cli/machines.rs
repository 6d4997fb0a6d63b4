//! `belljar ps`, `stop` and `logs`: machines that run.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use rustix::process::{Pid, Signal, kill_process};

use super::Failure;
use crate::run::Remote;
use crate::run::registry::{CONTROL, OUTPUT_LOG, Record, Registry};

/// How long a machine may take to end when it was told twice.
const LAST: Duration = Duration::from_secs(5);
/// How often a machine or file is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// Flags and help of `belljar ps`.
pub fn ps_command() -> Command {
    Command::new("ps")
        .about("List machines that run a command")
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print them as JSON"))
}

/// Flags and help of `belljar stop`.
pub fn stop_command() -> Command {
    Command::new("stop")
        .about("End machines that run")
        .long_about(
            "End machines that run: their guests end all programs, write back their disks and power off.\n\nExit code: 0 when \
             they have ended; 125 belljar failed; 2 bad usage.",
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("SECONDS")
                .value_parser(value_parser!(u64))
                .help("How long the guest may take before the machine is ended [default: 10]"),
        )
        .arg(names().num_args(1..))
}

/// Flags and help of `belljar logs`.
pub fn logs_command() -> Command {
    Command::new("logs")
        .about("Show what a machine that runs has printed")
        .long_about(
            "Show what a machine that runs has printed: a detached command's output, else its consoles.\n\nExit code: 0; 125 \
             belljar failed; 2 bad usage.",
        )
        .arg(Arg::new("follow").long("follow").short('f').action(ArgAction::SetTrue).help("Go on until the machine ends"))
        .arg(Arg::new("console").long("console").action(ArgAction::SetTrue).help("Show what the consoles printed"))
        .arg(names())
}

fn names() -> Arg {
    Arg::new("name").value_name("NAME").required(true).help("The machine, as belljar ps shows it")
}

fn registry() -> Result<Registry, Failure> {
    Registry::user().map_err(Failure::failed)
}

/// `belljar ps`.
pub fn ps(matches: &ArgMatches) -> Result<u8, Failure> {
    let records = registry()?.list().map_err(Failure::failed)?;
    let text = if matches.get_flag("json") { super::json(&records)? + "\n" } else { table(&records) };
    // Nobody reads any more: there is nothing else to do.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(0)
}

fn table(records: &[Record]) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let line = |record: &Record| {
        let age = age(now.saturating_sub(record.started));
        let command = record.command.join(" ");
        let command: String = command.chars().take(60).map(|c| if c.is_control() { ' ' } else { c }).collect();
        [record.name.clone(), record.pid.to_string(), record.engine.clone(), record.kernel.clone(), age, command]
    };
    let head = ["NAME", "PID", "ENGINE", "KERNEL", "AGE", "COMMAND"].map(String::from);
    let lines: Vec<_> = std::iter::once(head).chain(records.iter().map(line)).collect();
    let width = |column: usize| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or(0);
    let widths: Vec<_> = (0..6).map(width).collect();
    let row = |line: &[String; 6]| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect::<Vec<_>>();
        format!("{}\n", cells.join("  ").trim_end())
    };
    lines.iter().map(row).collect()
}

fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86400 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86400),
    }
}

/// `belljar stop`.
pub fn stop(matches: &ArgMatches) -> Result<u8, Failure> {
    let registry = registry()?;
    let time = Duration::from_secs(matches.get_one("timeout").copied().unwrap_or(10));
    for name in matches.get_many::<String>("name").into_iter().flatten() {
        let (record, home) = registry.find(name).map_err(Failure::failed)?;
        stop_one(&registry, &record, &home, time)?;
        let _ = writeln!(io::stdout(), "{name}");
    }
    Ok(0)
}

fn stop_one(registry: &Registry, record: &Record, home: &Path, time: Duration) -> Result<(), Failure> {
    let ended = |time: Duration| {
        let until = Instant::now() + time;
        loop {
            let gone = registry.find(&record.name).map_or(true, |(now, _)| now.pid != record.pid);
            if gone || Instant::now() >= until {
                return gone;
            }
            std::thread::sleep(LOOK);
        }
    };
    let told = Remote::connect(&home.join(CONTROL)).and_then(|mut remote| {
        remote.stop()?;
        if !ended(time) {
            remote.stop()?;
        }
        Ok(())
    });
    // Refused if it has just ended.
    if told.is_err() && ended(Duration::ZERO) {
        return Ok(());
    }
    if !ended(LAST)
        && let Some(pid) = i32::try_from(record.pid).ok().and_then(Pid::from_raw)
    {
        // Its process does not answer at all.
        kill_process(pid, Signal::KILL).map_err(|e| Failure::failed(io::Error::from(e)))?;
    }
    Ok(())
}

/// `belljar logs`.
pub fn logs(matches: &ArgMatches) -> Result<u8, Failure> {
    let registry = registry()?;
    let name = matches.get_one::<String>("name").map(String::as_str).unwrap_or_default();
    let (record, home) = registry.find(name).map_err(Failure::failed)?;
    let console = matches.get_flag("console") || !record.detached;
    let path = if console { record.log.clone() } else { home.join(OUTPUT_LOG) };
    let mut file = File::open(&path).map_err(|e| super::file_failure("read the log", &path, &e))?;
    loop {
        // Asked first: what was printed until the end is then shown.
        let more = matches.get_flag("follow") && registry.find(name).is_ok_and(|(now, _)| now.pid == record.pid);
        if copy(&mut file).is_err() || !more {
            return Ok(0);
        }
        std::thread::sleep(LOOK);
    }
}

fn copy(from: &mut impl Read) -> io::Result<u64> {
    let mut stdout = io::stdout().lock();
    let copied = io::copy(from, &mut stdout)?;
    stdout.flush()?;
    Ok(copied)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_are_a_table() {
        let record = Record {
            name: "web".into(),
            pid: 77,
            started: 0,
            engine: "kvm".into(),
            kernel: "6.12.1".into(),
            command: vec!["sh".into(), "-c".into(), "a\nb".into()],
            detached: true,
            log: "/x".into(),
        };
        let text = table(&[record]);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], "NAME  PID  ENGINE  KERNEL  AGE      COMMAND");
        assert!(lines[1].starts_with("web   77   kvm     6.12.1  ") && lines[1].ends_with(" d  sh -c a b"), "{text}");
        assert_eq!([age(59), age(3599), age(7200), age(90000)], ["59 s", "59 min", "2 h", "1 d"]);
    }
}
