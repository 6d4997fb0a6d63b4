//! Where what is kept of tests is: a directory for all, and in it one for each.
//!
//! ```text
//! DIR/KERNEL/MACHINE/TEST/console.log    what the guest's consoles printed
//!                         output.log     what the command printed
//!                         result.json    the result, as in --json
//!                         run.toml       machine and command, for belljar run --spec
//!                         reproduce.sh   the command that repeats this test alone
//!                         artifacts/     what was asked for
//! ```

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::config::{Cell, quoted};
use super::outcome::TestResult;

/// Directory of one test.
#[derive(Debug, Clone)]
pub(super) struct Place(PathBuf);

impl Place {
    /// The directory for the test `id` below `root`, new and empty: what an earlier run left there goes.
    pub(super) fn new(root: &Path, id: &str) -> io::Result<Self> {
        let path = root.join(relative(id));
        match fs::remove_dir_all(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// One that was made before.
    pub(super) fn at(path: PathBuf) -> Self {
        Self(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn console(&self) -> PathBuf {
        self.0.join("console.log")
    }

    pub(super) fn output(&self) -> PathBuf {
        self.0.join("output.log")
    }

    /// Notes what is about to run.
    pub(super) fn describe(&self, cell: &Cell, reproduce: &str) -> io::Result<()> {
        // Words that are no UTF-8 have no place in TOML.
        if let Ok(text) = cell.run.to_toml() {
            fs::write(self.0.join("run.toml"), text)?;
        }
        let script = self.0.join("reproduce.sh");
        fs::write(&script, format!("#!/bin/sh\n{}exec {reproduce}\n", surroundings()))?;
        fs::set_permissions(&script, Permissions::from_mode(0o755))
    }

    /// Notes what came of it.
    pub(super) fn conclude(&self, result: &TestResult) -> io::Result<()> {
        let text = serde_json::to_string_pretty(result).map_err(io::Error::other)?;
        fs::write(self.0.join("result.json"), text + "\n")
    }
}

/// Lines of a script that bring about what a command line does not say: the directory to which paths are relative, and
/// which belljar it is, as long as that is there.
fn surroundings() -> String {
    let directory = std::env::current_dir().ok().map(|path| format!("cd {} || exit\n", shell_word(&path)));
    let program = std::env::current_exe().ok().filter(|path| path.file_name() == Some("belljar".as_ref()));
    let program = program.as_deref().and_then(Path::parent);
    let search = program.map(|path| format!("PATH={}:$PATH\nexport PATH\n", shell_word(path)));
    directory.into_iter().chain(search).collect()
}

fn shell_word(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

/// A directory of this process for what nobody named a place for.
pub fn temporary() -> io::Result<PathBuf> {
    let base = std::env::temp_dir();
    let mut number = 0;
    loop {
        let path = base.join(format!("belljar-test-{}-{number}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
            other => return other.map(|()| path),
        }
    }
}

/// The directory of the test `id` below whatever is kept by test.
pub(super) fn relative(id: &str) -> PathBuf {
    id.split('/').map(component).collect()
}

/// Part of an id as the name of a directory.
fn component(part: &str) -> String {
    let name: String =
        part.chars().map(|c| if c.is_alphanumeric() || "._-+#=@,".contains(c) { c } else { '_' }).take(100).collect();
    match name.as_str() {
        "" | "." | ".." => "_".into(),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_stay_below_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let place = Place::new(dir.path(), "6.12/smp 2/../a b#1").unwrap();
        assert_eq!(place.path(), dir.path().join("6.12/smp_2/_/a_b#1"));
        fs::write(place.console(), "old").unwrap();
        let again = Place::new(dir.path(), "6.12/smp 2/../a b#1").unwrap();
        assert!(!again.console().exists());
    }
}
