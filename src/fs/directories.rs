//! Requests about the content of directories.

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, OFlags, fsync};
use rustix::io::Errno;

use super::answer::ENTRY;
use super::handles::{Directory, Entry, Handle};
use super::inodes::stat_at;
use super::protocol::{Args, ROOT, fopen};
use super::{Cache, Server};

/// Bytes of `struct fuse_dirent` before the name.
const DIRENT: usize = 24;

impl Server {
    /// FUSE_OPENDIR.
    pub(super) fn opendir(&mut self, node: u64) -> Result<(), Errno> {
        self.handles.check_room()?;
        let fd = match self.inodes.get(node)?.sealed {
            true => None,
            false => {
                let fd = self.inodes.dir(node)?;
                Some(self.reopen(&fd, OFlags::DIRECTORY)?)
            }
        };
        let handle = self.handles.add(node, Handle::Directory(Directory::new(fd)));
        self.inodes.opened(node);
        let flags = if self.share.cache == Cache::Always { fopen::CACHE_DIR | fopen::KEEP_CACHE } else { 0 };
        self.body.u64(handle).u32(flags).u32(0);
        Ok(())
    }

    /// FUSE_READDIR, FUSE_READDIRPLUS: as many entries as there is room for. `plus` looks each of them up as well.
    pub(super) fn readdir(&mut self, args: &mut Args<'_>, room: usize, plus: bool) -> Result<(), Errno> {
        let (handle, mut offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let room = room.min(size as usize);
        let before = if plus { ENTRY } else { 0 };
        loop {
            let (node, directory) = self.handles.directory(handle)?;
            let entry = match directory.entry(offset) {
                Ok(Some(entry)) => entry,
                // What was found before an error must be told first: it was counted.
                Err(e) if self.body.0.is_empty() => return Err(e),
                Ok(None) | Err(_) => return Ok(()),
            };
            let len = before + (DIRENT + entry.name.as_bytes().len()).next_multiple_of(8);
            if self.body.0.len() + len > room {
                return if self.body.0.is_empty() { Err(Errno::INVAL) } else { Ok(()) };
            }
            let (Some(entry), Some(fd)) = (directory.take(), &directory.fd) else { return Ok(()) };
            offset = entry.next;
            if plus {
                match look_up(&mut self.inodes, node, fd, &entry) {
                    Ok(Some((node, stat))) => self.answer_entry(node, &stat),
                    Err(Errno::NOENT) => continue,
                    // The guest gets the name alone, and asks itself if it wants to know more.
                    Ok(None) | Err(_) => {
                        self.body.zeros(ENTRY);
                    }
                }
            }
            self.dirent(node, &entry);
        }
    }

    /// `struct fuse_dirent`.
    fn dirent(&mut self, node: u64, entry: &Entry) {
        let name = entry.name.as_bytes();
        let (device, own) = self.inodes.place(node);
        // What is above the root is not for the guest.
        let number = if node == ROOT && name == b".." { own } else { entry.number };
        let number = self.numbers.of(device, number);
        let kind = match entry.kind {
            FileType::Unknown => 0,
            kind => kind.as_raw_mode() >> 12,
        };
        self.body.u64(number).u64(entry.next).u32(name.len() as u32).u32(kind).bytes(name);
        let len = (DIRENT + name.len()).next_multiple_of(8) - DIRENT - name.len();
        self.body.zeros(len);
    }

    /// FUSE_FSYNCDIR.
    pub(super) fn fsyncdir(&mut self, args: &mut Args<'_>) -> Result<(), Errno> {
        match self.handles.directory(args.u64()?)?.1.fd.as_ref().filter(|_| self.share.writable) {
            Some(fd) => fsync(fd),
            None => Ok(()),
        }
    }
}

/// The file that `entry` of the directory `node` is, of which the guest is told thereby; none for `.` and `..`.
fn look_up(
    inodes: &mut super::inodes::Inodes,
    node: u64,
    dir: &OwnedFd,
    entry: &Entry,
) -> Result<Option<(u64, rustix::fs::Statx)>, Errno> {
    if matches!(entry.name.as_bytes(), b"." | b"..") {
        return Ok(None);
    }
    let stat = stat_at(dir, &entry.name)?;
    Ok(Some((inodes.enter(node, dir, &entry.name, &stat)?, stat)))
}
