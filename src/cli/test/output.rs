//! Where `belljar test` tells what came of it: terminal, files, and the pages of CI servers.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use clap::ArgMatches;

use super::super::{Failure, file_failure};
use crate::runner::ktap;
use crate::runner::outcome::Outcome;
use crate::runner::report::github::{self, Fence};
use crate::runner::report::live::{self, Observer};
use crate::runner::report::paint::Paint;
use crate::runner::report::{self, gitlab, summary};

/// A report as text.
type Report = fn(&Outcome, &ArgMatches) -> String;

/// Flags that name files, and what goes there.
const FILES: [(&str, Report); 4] = [
    ("junit", |outcome, _| report::junit(outcome)),
    ("json", |outcome, _| report::json(outcome)),
    ("html", |outcome, _| report::html(outcome)),
    ("kcidb", |outcome, matches| report::kcidb(outcome, &matches.get_one("kcidb-origin").cloned().unwrap_or_default())),
];

/// All places where something is written.
pub(super) struct Outputs<'a> {
    matches: &'a ArgMatches,
    files: Vec<(PathBuf, File, Report)>,
    /// In GitHub Actions: guests' words are no commands.
    fence: Option<Fence>,
}

/// Whether this CI server runs this process.
fn on(server: &str) -> bool {
    std::env::var_os(server).is_some_and(|value| value == "true")
}

impl<'a> Outputs<'a> {
    /// Opens the files that the flags name.
    pub(super) fn create(matches: &'a ArgMatches) -> Result<Self, Failure> {
        let named = FILES.into_iter().filter_map(|(flag, report)| Some((matches.get_one::<PathBuf>(flag)?, report)));
        let open = |(path, report): (&PathBuf, Report)| {
            let file = File::create(path).map_err(|e| file_failure("write the report", path, &e))?;
            Ok((path.clone(), file, report))
        };
        let files = named.map(open).collect::<Result<_, Failure>>()?;
        let fence = if on("GITHUB_ACTIONS") { Some(Fence::new().map_err(Failure::failed)?) } else { None };
        Ok(Self { matches, files, fence })
    }

    /// Who shows how tests get on.
    pub(super) fn observer(&self) -> Arc<dyn Observer> {
        live::on_stderr().into()
    }

    /// Tests are about to run, and to print.
    pub(super) fn begin(&self) {
        self.fence.iter().for_each(|fence| eprint!("{}", fence.begin()));
    }

    /// Writes all reports.
    pub(super) fn write(mut self, outcome: &Outcome) -> Result<(), Failure> {
        for (path, file, report) in &mut self.files {
            let text = report(outcome, self.matches);
            file.write_all(text.as_bytes()).map_err(|e| file_failure("write the report", path, &e))?;
        }
        eprint!("{}", summary::text(outcome, Paint::of_stderr()));
        if self.matches.get_flag("ktap") {
            // Nobody reads any more: the files and the exit code say it too.
            let _ = std::io::stdout().write_all(ktap::document(outcome).as_bytes());
        }
        self.ci_server(outcome)
    }

    /// What the server that runs this process shows beside its log.
    fn ci_server(&self, outcome: &Outcome) -> Result<(), Failure> {
        if let Some(fence) = &self.fence {
            eprint!("{}{}{}", fence.end(), github::logs(outcome, fence), github::annotations(outcome));
            if let Some(path) = std::env::var_os("GITHUB_STEP_SUMMARY").map(PathBuf::from) {
                let file = OpenOptions::new().append(true).create(true).open(&path);
                let written = file.and_then(|mut file| file.write_all(github::summary(outcome).as_bytes()));
                written.map_err(|e| file_failure("write the summary", &path, &e))?;
            }
        } else if on("GITLAB_CI") {
            eprint!("{}", gitlab::logs(outcome));
        }
        Ok(())
    }
}
