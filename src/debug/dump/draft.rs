//! The file of a core dump while it is written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// A file that gets its name when it is complete, in the place of one that has it, and is gone otherwise. It holds all that
/// the guest knows: for the owner alone.
#[derive(Debug)]
pub struct Draft {
    file: File,
    path: PathBuf,
    /// What it shall be called.
    name: PathBuf,
    kept: bool,
}

impl Draft {
    /// One that is to be called `name`, beside it; an error if that is something else than a file.
    pub fn new(name: &Path) -> io::Result<Self> {
        if fs::metadata(name).is_ok_and(|meta| !meta.is_file()) {
            return Err(io::Error::other("there is something else than a file; choose another name"));
        }
        let mut draft = name.file_name().ok_or(ErrorKind::InvalidInput)?.to_owned();
        draft.push(format!(".{}.tmp", std::process::id()));
        let path = name.with_file_name(draft);
        // Left by a process that had this number before. What somebody else has put there stays, and is not written to.
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Self { file, path, name: name.into(), kept: false })
    }

    /// Where it is written.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// It is complete.
    pub fn keep(mut self) -> io::Result<()> {
        fs::rename(&self.path, &self.name)?;
        self.kept = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.kept {
            // Whatever prevents it has been told by what failed before.
            let _ = fs::remove_file(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_file_appears_when_it_is_complete_and_devices_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().join("core");
        let names = || {
            let found = fs::read_dir(dir.path()).unwrap();
            found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
        };
        fs::write(&name, "old").unwrap();
        let draft = Draft::new(&name).unwrap();
        draft.file().write_all(b"new").unwrap();
        assert_eq!((names().len(), fs::read(&name).unwrap()), (2, b"old".to_vec()));
        drop(draft);
        assert_eq!(names(), ["core"], "given up");
        let draft = Draft::new(&name).unwrap();
        draft.file().write_all(b"new").unwrap();
        draft.keep().unwrap();
        assert_eq!((names(), fs::read(&name).unwrap()), (vec!["core".to_string()], b"new".to_vec()));
        for other in [dir.path(), Path::new("/dev/null"), Path::new("/"), &dir.path().join("none/core")] {
            assert!(Draft::new(other).is_err(), "{}", other.display());
        }
        assert_eq!(names(), ["core"]);
    }
}
