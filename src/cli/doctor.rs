//! `belljar doctor`: what this host can do, and what to do where something is missing.

use std::io::Write;

use clap::{Arg, ArgAction, ArgMatches, Command};
use serde::Serialize;

use super::Failure;
use crate::engine::kvm::KvmEngine;
use crate::engine::kvm::probe::{Trouble, Works};
use crate::host::survey::{self, Finding, Mark, executable, namespaces};
use crate::loader::cache::Cache;
use crate::machine::choose;
use crate::machine::verdict::EXIT_FAILED;

/// Flags and help of the subcommand.
pub fn command() -> Command {
    Command::new("doctor")
        .about("Tell what this host can do, and what to do where something is missing")
        .long_about(
            "Tell what this host can do, and what to do where something is missing.\n\nA line for each item: ok, limited or \
             missing, what was found, and the remedy. Exit code: 0 if guests run here, otherwise 125.",
        )
        .arg(Arg::new("json").long("json").action(ArgAction::SetTrue).help("Print it as JSON"))
}

/// One line of the report.
#[derive(Debug, Serialize)]
struct Item {
    item: &'static str,
    #[serde(flatten)]
    finding: Finding,
}

/// The whole report.
#[derive(Debug, Serialize)]
struct Report {
    /// What `--engine auto` takes, if there is anything.
    engine: Option<&'static str>,
    items: Vec<Item>,
}

/// Looks, prints, and says by the exit code whether guests run here.
pub fn run(matches: &ArgMatches) -> Result<u8, Failure> {
    let report = report();
    let text = if matches.get_flag("json") {
        serde_json::to_string(&report).map_err(Failure::failed)? + "\n"
    } else {
        report.lines()
    };
    // Nobody reads any more: then only the exit code counts.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(if report.engine.is_some() { 0 } else { EXIT_FAILED })
}

fn report() -> Report {
    let kvm = KvmEngine::open_or_say().and_then(|engine| engine.probe());
    let software = choose::software();
    let engine = match (&kvm, &software) {
        (Ok(_), _) => Some("kvm"),
        (_, Ok(_)) => Some("soft"),
        _ => None,
    };
    let software = software.map(drop).map_err(|e| e.to_string());
    let findings = [
        ("KVM", kvm_finding(&kvm)),
        ("software CPU", software_finding(software, executable::probe())),
        ("CPU level", survey::cpu_level()),
        ("tap interfaces", survey::tap()),
        ("user namespaces", namespaces::user_namespaces()),
        ("huge pages", survey::huge_pages()),
        ("io_uring", survey::io_uring()),
        ("memory", survey::memory()),
        ("cache", cache_finding()),
    ];
    let items = findings.into_iter().map(|(item, finding)| Item { item, finding }).collect();
    Report { engine, items }
}

fn kvm_finding(found: &Result<Works, Trouble>) -> Finding {
    match found {
        Ok(works) => Finding::ok(works.to_string()),
        Err(trouble) if trouble.opens() => Finding::limited(trouble.to_string(), trouble.remedy()),
        Err(trouble) => Finding::missing(trouble.to_string(), trouble.remedy()),
    }
}

fn software_finding(opened: Result<(), String>, executable: std::io::Result<()>) -> Finding {
    match (opened, executable) {
        (Err(e), _) => Finding::missing(e, "use a host whose KVM runs guests"),
        (Ok(()), Ok(())) => Finding::ok("runs unmodified kernels, slower than KVM"),
        (Ok(()), Err(e)) => Finding::limited(
            format!("runs unmodified kernels, without code made at run time ({e}): slow"),
            "allow executable memory (SELinux execmem, systemd MemoryDenyWriteExecute=no)",
        ),
    }
}

fn cache_finding() -> Finding {
    match Cache::try_user() {
        Ok(base) => Finding::ok(format!("unpacked kernels are kept in {}", base.display())),
        Err((Some(base), e)) => Finding::limited(
            format!("{}/kernels is not used: {e}: kernels are unpacked at every start", base.display()),
            "make it writable for you and private (chmod 700), or set BELLJAR_CACHE to a directory",
        ),
        Err((None, e)) => {
            Finding::limited(format!("{e}: kernels are unpacked at every start"), "set BELLJAR_CACHE to a directory")
        }
    }
}

impl Report {
    fn lines(&self) -> String {
        let mut text = String::new();
        for Item { item, finding } in &self.items {
            let mark = match finding.mark {
                Mark::Ok => "ok",
                Mark::Limited => "limited",
                Mark::Missing => "missing",
            };
            text.push_str(&format!("{mark:<8} {item}: {}", finding.found));
            if let Some(remedy) = &finding.remedy {
                text.push_str(&format!("; remedy: {remedy}"));
            }
            text.push('\n');
        }
        text.push_str(match self.engine {
            Some("kvm") => "guests run on KVM\n",
            Some(_) => "guests run on the software CPU\n",
            None => "guests do not run on this host\n",
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_one_line_with_its_remedy() {
        let findings = [
            ("KVM", kvm_finding(&Err(Trouble::Denied))),
            ("KVM", kvm_finding(&Err(Trouble::Paravirtual))),
            ("software CPU", software_finding(Ok(()), Ok(()))),
            ("software CPU", software_finding(Ok(()), Err(std::io::ErrorKind::PermissionDenied.into()))),
            ("software CPU", software_finding(Err("not here".into()), Ok(()))),
        ];
        let items: Vec<_> = findings.into_iter().map(|(item, finding)| Item { item, finding }).collect();
        let count = items.len();
        let text = Report { engine: None, items }.lines();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), count + 1);
        assert!(lines[0].starts_with("missing  KVM: /dev/kvm: permission denied; remedy: add yourself to group kvm"));
        assert!(lines[1].starts_with("limited  KVM: /dev/kvm is a paravirtual (PVM) host"));
        assert_eq!(lines[2], "ok       software CPU: runs unmodified kernels, slower than KVM");
        assert!(lines[3].starts_with("limited  software CPU") && lines[3].contains("execmem"));
        assert!(lines[4].starts_with("missing  software CPU: not here; remedy: "));
        assert_eq!(lines[5], "guests do not run on this host");
    }
}
