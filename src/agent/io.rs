//! Where a command's input comes from and where its output goes.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// Input of a command.
pub enum Input {
    /// `/dev/null` in the guest.
    None,
    /// What this file, pipe or terminal gives.
    Fd(OwnedFd),
    /// What this gives. A reader that blocks keeps its thread until it returns, even if the command has ended long ago.
    Reader(Box<dyn Read + Send>),
}

/// Output of a command.
pub enum Output {
    /// Thrown away.
    Null,
    /// To this file, pipe or terminal. If it breaks, the command gets a broken pipe too.
    Fd(OwnedFd),
    /// To this. An error counts as a broken pipe.
    Writer(Box<dyn Write + Send>),
}

/// Input and outputs of a command. On a terminal `stderr` gets nothing.
#[derive(Debug)]
pub struct Io {
    /// Input.
    pub stdin: Input,
    /// Output.
    pub stdout: Output,
    /// Messages.
    pub stderr: Output,
}

impl Io {
    /// No input, and output thrown away.
    pub fn none() -> Self {
        Self { stdin: Input::None, stdout: Output::Null, stderr: Output::Null }
    }

    /// Standard input, output and error of this process.
    pub fn inherit() -> io::Result<Self> {
        let copy = |fd: &dyn AsFd| fd.as_fd().try_clone_to_owned();
        Ok(Self {
            stdin: Input::Fd(copy(&io::stdin())?),
            stdout: Output::Fd(copy(&io::stdout())?),
            stderr: Output::Fd(copy(&io::stderr())?),
        })
    }
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Fd(fd) => f.debug_tuple("Fd").field(fd).finish(),
            Self::Reader(_) => f.write_str("Reader"),
        }
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("Null"),
            Self::Fd(fd) => f.debug_tuple("Fd").field(fd).finish(),
            Self::Writer(_) => f.write_str("Writer"),
        }
    }
}
