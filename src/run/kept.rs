//! Output of a command that nobody waits for, in a file.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::agent::Output;

/// Bytes that are kept: a command that prints without end must not fill the disk.
const LIMIT: u64 = 64 << 20;

/// Standard output and error of a command, both into the new file `path`, as they come.
pub fn outputs(path: &Path) -> io::Result<[Output; 2]> {
    let kept = Kept::create(path)?;
    Ok([Output::Writer(Box::new(kept.clone())), Output::Writer(Box::new(kept))])
}

/// A file that takes so much and no more; clones write to the same.
#[derive(Debug, Clone)]
pub struct Kept(Arc<Mutex<State>>);

impl Kept {
    /// The new file `path`.
    pub fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(Arc::new(Mutex::new(State { file: File::create_new(path)?, left: LIMIT }))))
    }
}

#[derive(Debug)]
struct State {
    file: File,
    left: u64,
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let len = bytes.len() as u64;
        if state.left >= len {
            state.left -= len;
            state.file.write_all(bytes)?;
        } else if std::mem::take(&mut state.left) > 0 {
            writeln!(state.file, "\n[belljar: output is kept up to {} MiB]", LIMIT >> 20)?;
        }
        // The command goes on.
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_kept_up_to_a_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("output");
        let mut kept = Kept(Arc::new(Mutex::new(State { file: File::create(&path).unwrap(), left: 10 })));
        for _ in 0..4 {
            assert_eq!(kept.write(b"line\n").unwrap(), 5);
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), "line\nline\n");
        let mut kept = Kept(Arc::new(Mutex::new(State { file: tempfile::tempfile().unwrap(), left: 3 })));
        assert_eq!(kept.write(b"long").unwrap(), 4);
        assert_eq!(kept.0.lock().unwrap().left, 0);
    }
}
