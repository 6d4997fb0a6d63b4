//! Starting `belljar test` in tests.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::run::runs;
use super::{Outcome, asset, belljar, engine, scratch};

/// What kernels say of QEMU's emulation of SVM, where `scripts/nested` needs it: they see another size of XSAVE's area than
/// they have just chosen, as if XSETBV had not reached KVM.
pub const OF_QEMU: &str = "XSAVE consistency problem";

/// A directory in which `belljar test` runs, on the engine under test.
pub struct Bench {
    /// The directory.
    pub dir: tempfile::TempDir,
    engine: &'static str,
    kernel: PathBuf,
}

impl Bench {
    /// With a kernel asset; none where there is nothing to run it on.
    pub fn new(kernel: &str) -> Option<Self> {
        Some(Self { engine: engine()?, kernel: asset(kernel)?, dir: scratch() })
    }

    /// The kernel.
    pub fn kernel(&self) -> &str {
        self.kernel.to_str().unwrap()
    }

    /// `belljar test` with these words.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(belljar());
        command.arg("test").args(["--engine", self.engine]).args(words).current_dir(&self.dir);
        on_no_server(&mut command);
        command
    }

    /// Runs the script that repeats the test of which `kept` holds what was kept, from somewhere else.
    #[track_caller]
    pub fn repeat(&self, kept: &str) -> Outcome {
        let mut command = Command::new(self.path(kept).join("reproduce.sh"));
        on_no_server(command.current_dir("/"));
        runs(command)
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(&self, words: &[&str]) -> Outcome {
        runs(self.command(words))
    }

    /// The same on the kernel.
    #[track_caller]
    pub fn on_kernel(&self, words: &[&str]) -> Outcome {
        self.run(&[&["--kernel", self.kernel(), "--timeout", "100"], words].concat())
    }

    /// Runs the suite `text`, in which KERNEL stands for the kernel; with `words`, and a report as JSON.
    #[track_caller]
    pub fn suite(&self, text: &str, words: &[&str]) -> (Outcome, serde_json::Value) {
        self.write("belljar.toml", &text.replace("KERNEL", self.kernel()));
        let outcome = self.run(&[&["--json", "result.json"], words].concat());
        let report = serde_json::from_str(&self.read("result.json")).unwrap_or_default();
        (outcome, report)
    }

    /// A path in the directory.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file in the directory, which is there.
    #[track_caller]
    pub fn read(&self, name: impl AsRef<Path>) -> String {
        let path = self.path(name);
        std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    /// Makes one.
    #[track_caller]
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.path(name), text).unwrap();
    }
}

/// What a CI server that runs these tests says of itself is not meant for the one under test.
fn on_no_server(command: &mut Command) {
    ["GITHUB_ACTIONS", "GITLAB_CI", "GITHUB_STEP_SUMMARY"].iter().for_each(|name| {
        command.env_remove(name);
    });
}

/// The test `id` of a report.
#[track_caller]
pub fn test<'a>(report: &'a serde_json::Value, id: &str) -> &'a serde_json::Value {
    let found = report["tests"].as_array().and_then(|tests| tests.iter().find(|test| test["id"] == id));
    found.unwrap_or_else(|| panic!("no test {id} in {report:#}"))
}
