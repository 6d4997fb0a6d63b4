//! What is taken out of a guest around its test: whether the kernel is tainted, files that shall be kept, coverage. And
//! the shell for who wants to look around after a failure. On the thread of the session.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::coverage;
use super::report::live::Observer;
use crate::agent::{Agent, Exec, Io, Outcome, Process, Size};
use crate::host::causes::causes;
use crate::host::terminal::{self, Terminal};
use crate::run::{self, Attendant, Handle};

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
    /// A shell on the user's terminal if the test fails.
    pub shell: Option<Shell>,
}

/// Whether a test has failed: by how its command ended, and by the kernel's taint before and after.
pub(super) type Fails = Box<dyn Fn(&Outcome, [Option<u64>; 2]) -> bool + Send>;

/// When there is to be a shell, and what stands back for it.
pub(super) struct Shell {
    /// Whether there is.
    pub fails: Fails,
    /// Its time limits.
    pub machine: Handle,
    /// What is shown of running tests.
    pub observer: Arc<dyn Observer>,
}

impl std::fmt::Debug for Shell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shell").finish_non_exhaustive()
    }
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
        let before = self.found.lock().unwrap_or_else(PoisonError::into_inner).taint[0];
        let Some(wanted) = self.wanted.shell.as_ref().filter(|shell| (shell.fails)(outcome, [before, taint])) else {
            return;
        };
        let mut ended = Ok(());
        wanted.machine.untimed(|| wanted.observer.aside(&mut || ended = shell(agent)));
        ended.unwrap_or_else(|e| self.note(|found| found.problems.push(format!("No shell: {e}"))));
    }
}

/// A shell in the guest on the user's terminal, until it ends.
fn shell(agent: &Agent) -> Result<(), Box<dyn std::error::Error>> {
    let size = run::window_size().unwrap_or(Size { columns: 80, rows: 24 });
    let raw = Terminal::enter(std::io::stdin())?;
    eprintln!("belljar: the test failed; this shell is in its guest, which ends with it\r");
    let exec = Exec { terminal: Some(size), ..Exec::new(&["/bin/sh"]) };
    let ended = Io::inherit().map_err(Into::into).and_then(|io| until_exit(&agent.exec(&exec, io)?));
    terminal::restore();
    drop(raw);
    ended
}

/// Waits for the end of the shell, which follows the size of the terminal.
fn until_exit(shell: &Process) -> Result<(), Box<dyn std::error::Error>> {
    let resizes = terminal::resizes()?;
    loop {
        let mut fds = [PollFd::new(shell, PollFlags::IN), PollFd::new(resizes, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(Errno::INTR) => continue,
            other => other?,
        };
        let [over, _] = fds;
        if !over.revents().is_empty() {
            shell.wait(None)?;
            return Ok(());
        }
        let _ = rustix::io::read(resizes, &mut [0; 8]);
        run::window_size().into_iter().try_for_each(|size| shell.resize(size))?;
    }
}
