//! What the guest has open: files and directories, by numbers that are never used twice.

use std::collections::VecDeque;
use std::ffi::CString;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustc_hash::FxHashMap;
use rustix::fs::{FileType, RawDir, SeekFrom, seek};
use rustix::io::Errno;

/// Bytes of directory entries that are read at once: a few hundred entries.
const BATCH: usize = 16 << 10;

/// Something open.
#[derive(Debug)]
pub(super) enum Handle {
    File(OwnedFd),
    Directory(Directory),
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    /// None for one that is found empty.
    pub(super) fd: Option<OwnedFd>,
    /// Entries read from the host and not yet told.
    ahead: VecDeque<Entry>,
    /// Where `ahead` begins.
    at: u64,
}

/// A name in a directory.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: CString,
    pub(super) number: u64,
    pub(super) kind: FileType,
    /// Where the next one is.
    pub(super) next: u64,
}

impl Directory {
    pub(super) fn new(fd: Option<OwnedFd>) -> Self {
        Self { fd, ahead: VecDeque::new(), at: 0 }
    }

    /// The entry at `offset`, which is 0 or [`Entry::next`] of another.
    pub(super) fn entry(&mut self, offset: u64) -> Result<Option<&Entry>, Errno> {
        let Some(fd) = &self.fd else { return Ok(None) };
        if self.at != offset {
            self.ahead.clear();
            seek(fd, SeekFrom::Start(offset))?;
            self.at = offset;
        }
        if self.ahead.is_empty() {
            let mut buffer = [MaybeUninit::uninit(); BATCH];
            let mut entries = RawDir::new(fd, &mut buffer);
            while let Some(entry) = entries.next() {
                let entry = entry?;
                self.ahead.push_back(Entry {
                    name: entry.file_name().into(),
                    number: entry.ino(),
                    kind: entry.file_type(),
                    next: entry.next_entry_cookie(),
                });
                if entries.is_buffer_empty() {
                    break;
                }
            }
        }
        Ok(self.ahead.front())
    }

    /// Takes the entry that [`Directory::entry`] showed, and goes on behind it.
    pub(super) fn take(&mut self) -> Option<Entry> {
        let entry = self.ahead.pop_front()?;
        self.at = entry.next;
        Some(entry)
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Handles {
    /// With the node that each is of.
    table: FxHashMap<u64, (u64, Handle)>,
    next: u64,
    limit: usize,
}

impl Handles {
    pub(super) fn new(limit: usize) -> Self {
        Self { table: FxHashMap::default(), next: 1, limit }
    }

    /// Whether the guest may open one more.
    pub(super) fn check_room(&self) -> Result<(), Errno> {
        if self.table.len() < self.limit { Ok(()) } else { Err(Errno::NFILE) }
    }

    /// Adds one; returns its number.
    pub(super) fn add(&mut self, node: u64, handle: Handle) -> u64 {
        let number = self.next;
        self.next += 1;
        self.table.insert(number, (node, handle));
        number
    }

    /// The open file `number`.
    pub(super) fn file(&self, number: u64) -> Result<&OwnedFd, Errno> {
        match self.table.get(&number) {
            Some((_, Handle::File(file))) => Ok(file),
            _ => Err(Errno::BADF),
        }
    }

    /// The open directory `number` and its node.
    pub(super) fn directory(&mut self, number: u64) -> Result<(u64, &mut Directory), Errno> {
        match self.table.get_mut(&number) {
            Some((node, Handle::Directory(directory))) => Ok((*node, directory)),
            _ => Err(Errno::BADF),
        }
    }

    /// Takes one out; returns its node.
    pub(super) fn remove(&mut self, number: u64) -> Result<u64, Errno> {
        self.table.remove(&number).map(|(node, _)| node).ok_or(Errno::BADF)
    }
}
