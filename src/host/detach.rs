//! Going on in the background: a child without a terminal, while the parent waits until that says it is ready.
//!
//! Called by the command line before any thread exists.

// UNSAFETY: fork has no safe wrapper.
#![expect(unsafe_code)]

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsFd;

use rustix::process::{Pid, WaitOptions, setsid, waitpid};

/// Which process this is.
#[derive(Debug)]
pub enum Side {
    /// The one that was started.
    Parent(Child),
    /// The one that goes on.
    Child(Caller),
}

/// The process that goes on, as the parent sees it.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    news: PipeReader,
}

/// The process that waits, as the child sees it.
#[derive(Debug)]
pub struct Caller {
    news: PipeWriter,
}

/// Splits the process. The child has no controlling terminal, and standard input is empty; its messages still reach the
/// caller's standard error, until [`Caller::ready`].
pub fn detach() -> io::Result<Side> {
    let (reader, writer) = io::pipe()?;
    // SAFETY: no other thread exists (see the module's head), so that the child inherits no lock that is held.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            drop(reader);
            setsid()?;
            rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
            Ok(Side::Child(Caller { news: writer }))
        }
        pid => {
            drop(writer);
            let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("no child"))?;
            Ok(Side::Parent(Child { pid, news: reader }))
        }
    }
}

impl Child {
    /// Waits until the child is ready: what it said, or the exit code with which it ended instead.
    pub fn wait(mut self) -> io::Result<Result<String, u8>> {
        let mut text = String::new();
        self.news.read_to_string(&mut text)?;
        if !text.is_empty() {
            return Ok(Ok(text));
        }
        loop {
            match waitpid(Some(self.pid), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(Some((_, status))) => {
                    let signal = || status.terminating_signal().map(|signal| 128 + signal);
                    let code = status.exit_status().or_else(signal).unwrap_or_default();
                    return Ok(Err(u8::try_from(code).unwrap_or(u8::MAX)));
                }
                Ok(None) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl Caller {
    /// Tells the parent, which then ends. From now on messages go to `messages`.
    pub fn ready(mut self, text: &str, messages: impl AsFd) -> io::Result<()> {
        self.news.write_all(text.as_bytes())?;
        rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?;
        Ok(rustix::stdio::dup2_stderr(messages)?)
    }
}
