//! Files from the host to a machine that runs, and back, from another process: one half packs or unpacks in the guest, the
//! other here, with a pipe between them that the machine's process was handed.

use std::io::{self, BufReader, BufWriter, PipeReader, Read};
use std::os::fd::AsFd;
use std::path::Path;

use super::client::{Remote, RemoteError};
use crate::agent::protocol::tree;
use crate::agent::{Exec, Outcome, Task};

/// Bytes that are handed on at once.
const BUFFER: usize = 64 << 10;
/// Bytes of the guest's messages that are shown.
const MESSAGES: u64 = 4 << 10;

impl Remote {
    /// Copies a file or tree of the host into the guest: into `to` if that is a directory, else as `to`. It belongs to root
    /// there.
    pub fn copy_in(&mut self, from: &Path, to: &Path) -> Result<(), RemoteError> {
        let ((reader, writer), (messages, errors)) = (io::pipe()?, io::pipe()?);
        let exec = Exec { stdin: true, ..Exec::task(Task::Unpack(to.into())) };
        // Nothing comes from it as output.
        self.exec(exec, &[reader.as_fd(), errors.as_fd(), errors.as_fd()])?;
        drop((reader, errors));
        let from = from.to_path_buf();
        let packing = std::thread::Builder::new().name("pack".into()).spawn(move || {
            let packed = tree::pack(&from, &mut BufWriter::with_capacity(BUFFER, writer));
            packed.map_err(|e| e.to_string())
        })?;
        let guest = verdict(self.wait(None, None)?, messages);
        let ours = packing.join().unwrap_or_else(|_| Err("packing failed".into()));
        // What one side complains of follows from what failed at the other: the guest knows why it takes no more.
        guest.and(ours.map_err(RemoteError::Failed))
    }

    /// Copies a file or tree of the guest to the host: into `to` if that is a directory, else as `to`.
    pub fn copy_out(&mut self, from: &Path, to: &Path) -> Result<(), RemoteError> {
        let ((reader, writer), (messages, errors)) = (io::pipe()?, io::pipe()?);
        self.exec(Exec::task(Task::Pack(from.into())), &[writer.as_fd(), errors.as_fd()])?;
        drop((writer, errors));
        let mut reader = BufReader::with_capacity(BUFFER, reader);
        let ours = tree::unpack(to, &mut reader);
        // If that failed, the guest shall notice.
        drop(reader);
        let guest = verdict(self.wait(None, None)?, messages);
        guest.and(ours.map_err(|e| RemoteError::Failed(e.to_string())))
    }
}

fn verdict(outcome: Outcome, messages: PipeReader) -> Result<(), RemoteError> {
    let mut text = Vec::new();
    messages.take(MESSAGES).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let text: String = text.trim_end().chars().map(|c| if c.is_control() { '?' } else { c }).collect();
    match outcome {
        Outcome::Exited(0) => Ok(()),
        Outcome::Failed(why) => Err(RemoteError::Failed(why)),
        Outcome::Exited(_) if !text.is_empty() => Err(RemoteError::Failed(format!("In the guest: {text}"))),
        _ => Err(RemoteError::Failed("The copy in the guest broke off".into())),
    }
}
