//! A core dump of a running machine, from another process: that makes the file, so that it is the caller's, and the machine's
//! process writes it.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::client::{Remote, RemoteError};
use crate::agent::protocol::Message;
use crate::debug::Draft;
use crate::host::signal::Signals;

impl Remote {
    /// Writes a core dump of the machine, which stands still meanwhile, to `path`; that appears when it is complete, in the
    /// place of what was there. Returns the number of a signal if one came first: then there is no dump.
    pub fn dump(mut self, path: &Path, signals: &Signals) -> Result<Option<i32>, RemoteError> {
        let failed = |why: String| RemoteError::Dump { path: path.into(), why };
        let draft = Draft::new(path).map_err(|e| failed(e.to_string()))?;
        self.line.send(Message::Dump, &[draft.file().as_fd()])?;
        loop {
            let mut fds = [PollFd::new(&self.line, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
            match poll(&mut fds, None) {
                Err(Errno::INTR) => continue,
                other => other.map_err(io::Error::from)?,
            };
            if let Some(signal) = signals.next() {
                return Ok(Some(signal));
            }
            let [said, _] = fds.map(|fd| !fd.revents().is_empty());
            if said {
                return match self.line.receive()? {
                    Some(Message::Ended(_)) => draft.keep().map(|()| None).map_err(|e| failed(e.to_string())),
                    Some(Message::Failed { what }) => Err(failed(what)),
                    _ => Err(failed("the machine has ended".into())),
                };
            }
        }
    }
}
