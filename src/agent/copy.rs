//! Files from host to guest and back: a session of the agent that packs or unpacks, and the other half of that here.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::io::{Input, Io, Output};
use super::protocol::{Task, tree};
use super::pump::thread;
use super::session::printable;
use super::{Agent, Error, Exec, Outcome};

/// Bytes that are handed on at once.
const BUFFER: usize = 64 << 10;
/// Bytes of the guest's messages that are kept.
const MESSAGES: usize = 4 << 10;

pub(super) fn into_guest(agent: &Agent, from: &Path, to: &Path, user: Option<&str>) -> Result<(), Error> {
    let (read, write) = pipe()?;
    let messages = Messages::default();
    let exec = Exec { user: user.map(Into::into), ..Exec::task(Task::Unpack(to.into())) };
    let io = Io { stdin: Input::Fd(read.into()), stdout: Output::Null, stderr: messages.output() };
    let process = agent.exec(&exec, io)?;
    let packed = Arc::new(Mutex::new(Ok(())));
    let (from, result) = (from.to_path_buf(), packed.clone());
    thread("agent-pack", move || {
        let sent = tree::pack(&from, &mut BufWriter::with_capacity(BUFFER, write));
        *result.lock().unwrap_or_else(PoisonError::into_inner) = sent;
    })?;
    let outcome = process.wait(None)?;
    // What the guest complains of comes from what failed here, if something did; the broken pipe does not count.
    let ours = std::mem::replace(&mut *packed.lock().unwrap_or_else(PoisonError::into_inner), Ok(()));
    match (messages.verdict(&outcome), ours) {
        (_, Err(e)) if !e.is_broken_pipe() => Err(Error::Copy(e.to_string())),
        (verdict, _) => verdict,
    }
}

pub(super) fn out_of_guest(agent: &Agent, from: &Path, to: &Path) -> Result<(), Error> {
    let (read, write) = pipe()?;
    let messages = Messages::default();
    let io = Io { stdin: Input::None, stdout: Output::Fd(write.into()), stderr: messages.output() };
    let process = agent.exec(&Exec::task(Task::Pack(from.into())), io)?;
    let mut read = BufReader::with_capacity(BUFFER, read);
    let unpacked = tree::unpack(to, &mut read);
    // If that failed, the guest shall notice.
    drop(read);
    let outcome = process.wait(None)?;
    match unpacked {
        Err(e) if !e.is_cut_short() => Err(Error::Copy(e.to_string())),
        Err(e) => messages.verdict(&outcome).and(Err(Error::Copy(e.to_string()))),
        Ok(()) => messages.verdict(&outcome),
    }
}

fn pipe() -> Result<(io::PipeReader, io::PipeWriter), Error> {
    io::pipe().map_err(|e| Error::Host("make a pipe", Arc::new(e)))
}

/// What the guest's side says.
#[derive(Debug, Clone, Default)]
struct Messages(Arc<Mutex<Vec<u8>>>);

impl Messages {
    fn output(&self) -> Output {
        Output::Writer(Box::new(self.clone()))
    }

    fn verdict(&self, outcome: &Outcome) -> Result<(), Error> {
        let text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let text = printable(String::from_utf8_lossy(&text).trim_end());
        match outcome {
            Outcome::Exited(0) => Ok(()),
            Outcome::Exited(_) if !text.is_empty() => Err(Error::Copy(format!("in the guest: {text}"))),
            Outcome::Failed(why) => Err(Error::Copy(format!("in the guest: {why}"))),
            other => Err(Error::Copy(format!("the copy in the guest broke off: {other:?}"))),
        }
    }
}

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MESSAGES.saturating_sub(kept.len());
        bytes.take(room as u64).read_to_end(&mut kept)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
