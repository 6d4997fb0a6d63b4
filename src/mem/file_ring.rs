//! Reading and writing one file from and to guest RAM without waiting (io_uring(7)). Used on one event loop thread.
//!
//! The kernel writes to guest RAM until a request is complete, so the ring keeps the RAM mapped, takes no buffers
//! that lie elsewhere, and when it is dropped it waits.

// UNSAFETY: hands addresses to the kernel for longer than a call.
#![expect(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, opcode};

use crate::host::vectored::{IoBuf, MAX_BUFS, as_iovecs};
use crate::mem::Ram;

/// Requests under way.
#[derive(Debug)]
struct Flight {
    count: u32,
    most: u32,
}

/// A ring for one file.
pub struct FileRing {
    ring: IoUring,
    file: File,
    ram: Option<Ram>,
    /// Lists of buffers that the kernel has not read yet: it does when the requests are submitted.
    lists: Vec<Vec<IoBuf>>,
    flight: Flight,
}

impl std::fmt::Debug for FileRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileRing").field("flight", &self.flight).finish_non_exhaustive()
    }
}

impl FileRing {
    /// Whether the host allows it: containers often do not.
    pub fn probe() -> io::Result<()> {
        IoUring::new(1).map(drop)
    }

    /// A ring for `file` with room for `entries` requests.
    pub fn new(file: File, entries: u32) -> io::Result<Self> {
        let ring = IoUring::builder().setup_clamp().build(entries)?;
        let most = ring.params().cq_entries();
        Ok(Self { ring, file, ram: None, lists: Vec::new(), flight: Flight { count: 0, most } })
    }

    /// Readable when requests are complete.
    pub fn fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// From now on buffers in `ram` can be used.
    pub fn use_ram(&mut self, ram: &Ram) {
        if self.ram.is_none() {
            self.ram = Some(ram.clone());
        }
    }

    /// Requests under way.
    pub fn in_flight(&self) -> u32 {
        self.flight.count
    }

    /// Whether one more request finds room.
    pub fn has_room(&self) -> bool {
        self.flight.count < self.flight.most
    }

    /// Fills `into` from `at` on; `token` names the request when it is complete.
    pub fn read(&mut self, at: u64, into: &[IoBuf], token: u64) -> io::Result<()> {
        let (list, count) = self.keep(into)?;
        let entry = opcode::Readv::new(Fd(self.file.as_raw_fd()), list, count).offset(at).build();
        self.push(&entry.user_data(token))
    }

    /// Writes `from` at `at`.
    pub fn write(&mut self, at: u64, from: &[IoBuf], token: u64) -> io::Result<()> {
        let (list, count) = self.keep(from)?;
        let entry = opcode::Writev::new(Fd(self.file.as_raw_fd()), list, count).offset(at).build();
        self.push(&entry.user_data(token))
    }

    /// Makes permanent what was written by all requests made before, and holds back those made after.
    pub fn sync(&mut self, token: u64) -> io::Result<()> {
        self.make_room()?;
        let entry = opcode::Fsync::new(Fd(self.file.as_raw_fd())).flags(FsyncFlags::DATASYNC).build();
        self.push(&entry.flags(Flags::IO_DRAIN).user_data(token))
    }

    /// Starts what was asked for. One system call, none if there is nothing new.
    pub fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() {
            return Ok(());
        }
        self.enter(0)
    }

    /// Waits until at least one request is complete, unless none is under way.
    pub fn wait(&mut self) -> io::Result<()> {
        let want = self.flight.count.min(1);
        self.enter(want as usize)
    }

    /// A complete request: its token, and bytes moved or the error.
    pub fn completed(&mut self) -> Option<(u64, io::Result<usize>)> {
        let entry = self.ring.completion().next()?;
        self.flight.count = self.flight.count.saturating_sub(1);
        let result = entry.result();
        Some((entry.user_data(), usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))))
    }

    /// Room for one more entry. Before its list is kept: submitting drops all lists.
    fn make_room(&mut self) -> io::Result<()> {
        let full = self.ring.submission().is_full();
        match full {
            true => self.enter(0),
            false => Ok(()),
        }
    }

    fn enter(&mut self, want: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(want) {
                Ok(_) if self.ring.submission().is_empty() => break,
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.lists.clear();
        Ok(())
    }

    /// A copy of the list that stays where it is until it is submitted, if all of it is guest RAM.
    fn keep(&mut self, bufs: &[IoBuf]) -> io::Result<(*const libc::iovec, u32)> {
        self.make_room()?;
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let ram = self.ram.as_ref().ok_or_else(invalid)?;
        if bufs.len() > MAX_BUFS {
            return Err(invalid());
        }
        let mut list = Vec::with_capacity(bufs.len());
        for buf in bufs {
            let (start, len) = (buf.volatile().ptr_guard_mut().as_ptr(), buf.len());
            let inside = |host: usize, size: u64| {
                let offset = (start as usize).wrapping_sub(host) as u64;
                offset < size && len as u64 <= size - offset
            };
            if !ram.regions().any(|r| inside(r.host, r.len)) {
                return Err(invalid());
            }
            // SAFETY: the range lies within `self.ram`, which this ring keeps mapped as long as it exists.
            list.push(unsafe { IoBuf::new(start, len) });
        }
        let result = as_iovecs(&list);
        self.lists.push(list);
        Ok(result)
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        // SAFETY: the descriptor is that of `self.file`; the list of buffers is in `self.lists` until it is
        // submitted, after which the kernel has its own copy (every kernel since 5.5); the buffers are in
        // `self.ram`, which is not dropped before the request is complete (`drop` waits).
        unsafe { self.ring.submission().push(entry) }.map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.flight.count += 1;
        Ok(())
    }
}

impl Drop for FileRing {
    fn drop(&mut self) {
        while self.flight.count > 0 {
            if let Err(e) = self.wait() {
                tracing::error!("cannot wait for a disk: {e}");
                // The kernel may still write there: it stays mapped for ever.
                std::mem::forget(self.ram.take());
                return;
            }
            while self.completed().is_some() {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Backing;
    use crate::mem::buffers::Buffers;

    fn wait(ring: &mut FileRing) -> (u64, io::Result<usize>) {
        ring.submit().unwrap();
        loop {
            if let Some(done) = ring.completed() {
                return done;
            }
            ring.wait().unwrap();
        }
    }

    #[test]
    fn reads_writes_and_syncs_complete_with_their_tokens() {
        if let Err(e) = FileRing::probe() {
            eprintln!("\nSKIPPED: the host refuses io_uring: {e}");
            return;
        }
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        let file = tempfile::tempfile().unwrap();
        let mut ring = FileRing::new(file.try_clone().unwrap(), 4).unwrap();
        let mut bufs = Buffers::new(ram.clone());
        bufs.push(100, 1000).unwrap();
        bufs.push(5000, 24).unwrap();
        assert!(ring.read(0, bufs.list(), 1).is_err(), "no RAM yet");
        ring.use_ram(&ram);
        ram.write(100, &[7; 1000]).unwrap();
        ram.write(5000, &[8; 24]).unwrap();
        ring.write(512, bufs.list(), 11).unwrap();
        assert_eq!(ring.in_flight(), 1);
        assert!(matches!(wait(&mut ring), (11, Ok(1024))));
        ring.sync(12).unwrap();
        assert!(matches!(wait(&mut ring), (12, Ok(0))));
        ram.write(100, &[0; 8000]).unwrap();
        // More than the ring has entries.
        for token in 0..8 {
            let mut bufs = Buffers::new(ram.clone());
            bufs.push(0x1_0000 + token * 1024, 512).unwrap();
            bufs.push(0x2_0000 + token * 1024, 512).unwrap();
            ring.read(512, bufs.list(), token).unwrap();
        }
        let mut seen: Vec<_> = (0..8).map(|_| wait(&mut ring)).map(|(token, n)| (token, n.unwrap())).collect();
        seen.sort();
        assert_eq!(seen, (0..8).map(|token| (token, 1024)).collect::<Vec<_>>());
        ring.read(512, bufs.list(), 20).unwrap();
        assert!(matches!(wait(&mut ring), (20, Ok(1024))));
        let mut bytes = [0; 24];
        ram.read(5000, &mut bytes).unwrap();
        assert_eq!(bytes, [8; 24]);
        for token in 0..8 {
            let mut bytes = [0; 1024];
            ram.read(0x1_0000 + token * 1024, &mut bytes).unwrap();
            assert_eq!((bytes[0], bytes[511], bytes[512]), (7, 7, 0), "{token}");
        }
        let other = Ram::new(&[(0, 4096)], Backing::Anonymous).unwrap();
        let mut elsewhere = Buffers::new(other.clone());
        elsewhere.push(0, 512).unwrap();
        assert!(ring.read(0, elsewhere.list(), 1).is_err());
        ring.read(0, bufs.list(), 1).unwrap();
        ring.submit().unwrap();
        drop(ring);
    }
}
