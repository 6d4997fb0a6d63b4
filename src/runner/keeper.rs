//! What is taken out of a guest around its test: whether the kernel is tainted, files that shall be kept, coverage. And
//! the shell for who wants to look around after a failure. On the thread of the session.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::coverage;
use crate::agent::{Agent, Exec, Io, Outcome, Size};
use crate::host::causes::causes;
use crate::run::{self, Attendant};

/// The kernel's own mark that something happened (Documentation/admin-guide/tainted-kernels.rst).
const TAINTED: &str = "/proc/sys/kernel/tainted";

/// What shall be taken.
#[derive(Debug)]
pub(super) struct Wanted {
    /// Files and directories of the guest.
    pub artifacts: Vec<PathBuf>,
    /// Directory of the host for all of it; it is there.
    pub to: PathBuf,
    /// Where coverage data go.
    pub gcov: Option<PathBuf>,
    /// The kernel's build tree, if it is at hand.
    pub tree: Option<PathBuf>,
    /// A shell on the user's terminal if the command fails.
    pub shell: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Taint before and after the test.
    pub taint: [Option<u64>; 2],
    /// What could not be taken, a sentence each.
    pub problems: Vec<String>,
}

/// See the module's head.
pub(super) struct Keeper {
    wanted: Wanted,
    found: Arc<Mutex<Found>>,
}

impl Keeper {
    /// A keeper, and where what it finds will be.
    pub(super) fn new(wanted: Wanted) -> (Self, Arc<Mutex<Found>>) {
        let found = Arc::default();
        (Self { wanted, found: Arc::clone(&found) }, found)
    }

    fn note(&self, change: impl FnOnce(&mut Found)) {
        change(&mut self.found.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn taint(&self, agent: &Agent) -> Option<u64> {
        let to = self.wanted.to.join(".tainted");
        agent.copy_out(Path::new(TAINTED), &to).ok()?;
        let text = std::fs::read_to_string(&to).ok()?;
        let _ = std::fs::remove_file(&to);
        text.trim().parse().ok()
    }

    fn artifacts(&self, agent: &Agent) {
        let to = self.wanted.to.join("artifacts");
        if self.wanted.artifacts.is_empty() {
            return;
        }
        if let Err(e) = std::fs::create_dir_all(&to) {
            return self.note(|found| found.problems.push(format!("Cannot make {}: {e}", to.display())));
        }
        for path in &self.wanted.artifacts {
            if let Err(e) = agent.copy_out(path, &to) {
                self.note(|found| found.problems.push(format!("Cannot keep {}: {e}", path.display())));
            }
        }
    }

    fn coverage(&self, agent: &Agent) {
        let Some(to) = &self.wanted.gcov else { return };
        let collected = coverage::collect(agent, self.wanted.tree.as_deref(), to);
        let problem = match collected {
            Ok(coverage) if coverage.without_notes.is_empty() => return,
            Ok(coverage) => {
                format!("gcov cannot read {} files: no notes of the same build", coverage.without_notes.len())
            }
            Err(e) => causes(&e),
        };
        self.note(|found| found.problems.push(problem));
    }
}

impl Attendant for Keeper {
    fn before(&mut self, agent: &Agent) {
        let taint = self.taint(agent);
        self.note(|found| found.taint[0] = taint);
    }

    fn after(&mut self, agent: &Agent, outcome: &Outcome) {
        let taint = self.taint(agent);
        self.note(|found| found.taint[1] = taint);
        self.artifacts(agent);
        self.coverage(agent);
        if self.wanted.shell && *outcome != Outcome::Exited(0) {
            let shell = shell(agent);
            shell.unwrap_or_else(|e| self.note(|found| found.problems.push(format!("No shell: {e}"))));
        }
    }
}

/// A shell in the guest on the user's terminal, until it ends.
fn shell(agent: &Agent) -> Result<(), Box<dyn std::error::Error>> {
    let size = run::window_size().unwrap_or(Size { columns: 80, rows: 24 });
    let raw = crate::host::terminal::Terminal::enter(std::io::stdin())?;
    eprintln!("belljar: the test failed; this shell is in its guest, which ends with it\r");
    let exec = Exec { terminal: Some(size), ..Exec::new(&["/bin/sh"]) };
    let ended = agent.exec(&exec, Io::inherit()?).and_then(|process| process.wait(None));
    crate::host::terminal::restore();
    drop(raw);
    ended?;
    Ok(())
}
