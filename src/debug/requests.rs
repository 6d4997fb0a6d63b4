//! Core dumps of a running machine that other threads ask for. The thread `debug` writes them, so that nobody stops the
//! machine, or lets it go, while gdb does.

use std::fs::File;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use super::memory::Memory;
use super::{Error, dump};
use crate::arch::x86_64::state::CpuState;

/// A dump that somebody waits for.
pub(super) struct Request {
    /// Empty.
    pub(super) file: File,
    /// Whether somebody still waits.
    pub(super) wanted: Box<dyn Fn() -> bool + Send>,
    answer: Sender<Result<(), Error>>,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Request {
    /// Writes the dump of a machine that stands still, with these states of its CPUs, while `goes_on` says so. Tells who waits.
    pub(super) fn serve(self, memory: &Memory, cpus: Result<Vec<CpuState>, Error>, goes_on: &dyn Fn() -> bool) {
        let wanted = || goes_on() && (self.wanted)();
        let written = cpus.and_then(|cpus| dump::write_to(&self.file, memory, &cpus, &wanted).map_err(Error::File));
        // Whoever has given up has nothing to be told.
        let _ = self.answer.send(match written {
            Err(_) if !goes_on() => Err(Error::Ended),
            other => other,
        });
    }
}

/// Those that nobody has taken yet; none when nobody will any more.
#[derive(Debug)]
pub(super) struct Requests(Mutex<Option<Vec<Request>>>);

impl Default for Requests {
    fn default() -> Self {
        Self(Mutex::new(Some(Vec::new())))
    }
}

impl Requests {
    /// Adds one; where its answer comes, or nothing if there will be none.
    pub(super) fn add(&self, file: File, wanted: Box<dyn Fn() -> bool + Send>) -> Receiver<Result<(), Error>> {
        let (answer, answered) = channel();
        let mut requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(requests) = requests.as_mut() {
            requests.push(Request { file, wanted, answer });
        }
        answered
    }

    /// Takes all that there are.
    pub(super) fn take(&self) -> Vec<Request> {
        let mut requests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        requests.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// No more are taken.
    pub(super) fn close(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Backing, Ram};

    #[test]
    fn whoever_waits_is_answered_or_left_alone_at_the_end() {
        let requests = Requests::default();
        let memory = Memory::new(Ram::new(&[(0, 4 << 20)], Backing::Anonymous).unwrap());
        let file = || tempfile::tempfile().unwrap();
        let read_only = File::open("/dev/null").unwrap();
        let files = [(file(), true), (read_only, true), (file(), false), (file(), true), (file(), true)];
        let waiting = files.map(|(file, wanted)| requests.add(file, Box::new(move || wanted)));
        let mut taken = requests.take().into_iter();
        assert!(requests.take().is_empty());
        let goes_on = [true, true, true, false];
        for (request, goes_on) in taken.by_ref().zip(goes_on) {
            request.serve(&memory, Ok(vec![CpuState::default()]), &|| goes_on);
        }
        drop(taken);
        let [written, refused, unwanted, ended, left] = waiting.map(|answer| answer.recv());
        assert!(written.unwrap().is_ok());
        assert!(matches!(refused.unwrap(), Err(Error::File(e)) if e.raw_os_error() == Some(libc::EBADF)));
        assert!(matches!(unwanted.unwrap(), Err(Error::File(_))));
        assert!(matches!(ended.unwrap(), Err(Error::Ended)));
        assert!(left.is_err());
        let waiting = requests.add(file(), Box::new(|| true));
        requests.close();
        let late = requests.add(file(), Box::new(|| true));
        assert!(waiting.recv().is_err() && late.recv().is_err() && requests.take().is_empty());
    }
}
