//! Requests about the content of files.

use std::ffi::CStr;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    FallocateFlags, FileType, Mode, OFlags, SeekFrom, Statx, copy_file_range, fallocate, fdatasync, fsync, ftruncate,
    openat, seek, syncfs,
};
use rustix::io::{Errno, fcntl_dupfd_cloexec};
use rustix::path::DecInt;

use super::handles::Handle;
use super::inodes::{Version, stat_fd};
use super::protocol::{Args, FSYNC_FDATASYNC, Header, OPEN_KILL_SUIDGID, ROOT, WRITE_CACHE, WRITE_KILL_SUIDGID, fopen};
use super::server::{Answer, Data};
use super::{Cache, Server};
use crate::host::{identity, vectored};

/// Bytes copied from file to file in one request, so that one does not keep others waiting for long.
const MOST_COPIED: u64 = 16 << 20;
/// A file changed more recently may change again without its times telling: clocks of file systems tick this slowly.
const TICK: i128 = 20_000_000;

/// Flags of open(2) that are passed on. Appending is done by each write; O_DIRECT is about the guest's cache.
const PASSED: OFlags = OFlags::ACCMODE.union(OFlags::DSYNC).union(OFlags::SYNC).union(OFlags::NOATIME);

pub(super) fn errno(e: &io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

/// Whether `flags` allow to write.
fn writes(flags: OFlags) -> bool {
    flags.intersects(OFlags::ACCMODE)
}

impl Server {
    /// Opens what `fd` stands for, which must be a regular file or a directory.
    pub(super) fn reopen(&self, fd: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        let open = |flags| openat(&self.share.descriptors, DecInt::from_fd(fd), flags, Mode::empty());
        if self.share.writable && !flags.contains(OFlags::NOATIME) {
            return open(flags);
        }
        // Reading leaves no trace on the host, where this process may ask for that.
        match open(flags | OFlags::NOATIME) {
            Err(Errno::PERM) => open(flags - OFlags::NOATIME),
            result => result,
        }
    }

    /// FUSE_OPEN.
    pub(super) fn open(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (flags, more) = (OFlags::from_bits_retain(args.u32()?), args.u32()?);
        self.open_node(node, flags, more)
    }

    fn open_node(&mut self, node: u64, flags: OFlags, more: u32) -> Result<(), Errno> {
        self.handles.check_room()?;
        let truncates = flags.contains(OFlags::TRUNC);
        if truncates || writes(flags) {
            self.share.check_writable()?;
        }
        match self.inodes.get(node)?.kind {
            FileType::RegularFile if !flags.contains(OFlags::ACCMODE) => {}
            FileType::RegularFile => return Err(Errno::INVAL),
            FileType::Directory => return Err(Errno::ISDIR),
            FileType::Symlink => return Err(Errno::LOOP),
            // The guest's kernel opens those itself.
            _ => return Err(Errno::NXIO),
        }
        let fd = self.inodes.fd(node)?;
        let file = self.reopen(&fd, flags & PASSED)?;
        if truncates {
            match more & OPEN_KILL_SUIDGID != 0 {
                true => identity::without_keeping_set_id(|| ftruncate(&file, 0))?,
                false => ftruncate(&file, 0)?,
            }
        }
        self.answer_open(node, file, flags)
    }

    /// Makes a handle and answers with it.
    fn answer_open(&mut self, node: u64, file: OwnedFd, flags: OFlags) -> Result<(), Errno> {
        let mut answer = match self.share.cache {
            Cache::Never => fopen::DIRECT_IO,
            Cache::Always => fopen::KEEP_CACHE,
            Cache::Auto => {
                let version = settled_version(&stat_fd(&file)?);
                let inode = self.inodes.get(node)?;
                let same = version.is_some() && inode.opened == version;
                inode.opened = version;
                if same { fopen::KEEP_CACHE } else { 0 }
            }
        };
        if !writes(flags) {
            answer |= fopen::NOFLUSH;
        }
        let handle = self.handles.add(node, Handle::File(file));
        self.inodes.opened(node);
        self.body.u64(handle).u32(answer).u32(0);
        Ok(())
    }

    /// FUSE_CREATE.
    pub(super) fn create(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let (flags, mode, _, more) = (OFlags::from_bits_retain(args.u32()?), args.u32()?, args.u32()?, args.u32()?);
        let name = args.name()?;
        self.share.check_writable()?;
        self.handles.check_room()?;
        let dir = self.inodes.dir(header.node)?;
        // Only a file that was not there is opened by name: what is there may be anything.
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        match self.open_new(header, &dir, name, flags | new, mode) {
            Ok((file, stat)) => {
                let node = self.inodes.enter(header.node, &dir, name, &stat)?;
                // The descriptor must be there before the name can go.
                self.inodes.fd(node)?;
                self.answer_entry(node, &stat);
                self.answer_open(node, file, flags)
            }
            Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
                let (node, stat) = self.inodes.find(header.node, name)?;
                self.answer_entry(node, &stat);
                self.open_node(node, flags, more).inspect_err(|_| self.inodes.forget(node, 1))
            }
            Err(e) => Err(e),
        }
    }

    /// FUSE_TMPFILE: a file without a name.
    pub(super) fn tmpfile(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let (flags, mode) = (OFlags::from_bits_retain(args.u32()?), args.u32()?);
        self.share.check_writable()?;
        self.handles.check_room()?;
        if !writes(flags) {
            return Err(Errno::INVAL);
        }
        let dir = self.inodes.dir(header.node)?;
        // With O_EXCL it could never get a name.
        let exclusive = flags & OFlags::EXCL;
        let (file, stat) = self.open_new(header, &dir, c".", flags | exclusive | OFlags::TMPFILE, mode)?;
        let node = self.inodes.enter_nameless(fcntl_dupfd_cloexec(&file, 0)?, &stat)?;
        self.answer_entry(node, &stat);
        self.answer_open(node, file, flags)
    }

    /// Makes a file for the guest's user and opens it.
    fn open_new(
        &mut self,
        header: &Header,
        dir: &OwnedFd,
        name: &CStr,
        flags: OFlags,
        mode: u32,
    ) -> Result<(OwnedFd, Statx), Errno> {
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::TMPFILE;
        let flags = flags & (PASSED | new) | OFlags::CLOEXEC;
        let access = Mode::from_raw_mode(mode & 0o7777);
        let file = self.share.owners.making(header.uid, header.gid, || openat(dir, name, flags, access))?;
        let mut stat = stat_fd(&file)?;
        let lost = self.lost_mode(mode);
        if lost != 0 {
            self.give_mode(&file, &stat, lost)?;
            stat = stat_fd(&file)?;
        }
        Ok((file, stat))
    }

    /// FUSE_READ.
    pub(super) fn read(&mut self, args: &mut Args<'_>, data: Data<'_>) -> Result<Answer, Errno> {
        let (handle, offset, size) = (args.u64()?, args.u64()?, args.u32()?);
        let file = self.handles.file(handle)?;
        let read = |bufs: &[_]| if bufs.is_empty() { Ok(0) } else { vectored::read_at(file, offset, bufs) };
        let count = self.scatter.up_to(data.writable, size as usize, read);
        count.map(Answer::InPlace).map_err(|e| errno(&e))
    }

    /// FUSE_WRITE.
    pub(super) fn write(&mut self, args: &mut Args<'_>, data: Data<'_>) -> Result<Answer, Errno> {
        let (handle, offset, size, how, _) = (args.u64()?, args.u64()?, args.u32()?, args.u32()?, args.u64()?);
        let flags = OFlags::from_bits_retain(args.u32()?);
        self.share.check_writable()?;
        let file = self.handles.file(handle)?;
        let there: usize = data.readable.iter().map(vectored::IoBuf::len).sum();
        if there < size as usize {
            return Err(Errno::INVAL);
        }
        // A page that is written back goes where it belongs, and nobody hears of a part.
        let page = how & WRITE_CACHE != 0;
        let write = |bufs: &[_]| match (page, flags.contains(OFlags::APPEND)) {
            _ if bufs.is_empty() => Ok(0),
            (true, _) => vectored::write_all_at(file, offset, bufs).map(|()| size as usize),
            (false, true) => vectored::append(file, bufs),
            (false, false) => vectored::write_at(file, offset, bufs),
        };
        let scatter = &mut self.scatter;
        let mut work = || scatter.up_to(data.readable, size as usize, write).map_err(|e| errno(&e));
        let count = match how & WRITE_KILL_SUIDGID != 0 {
            true => identity::without_keeping_set_id(work)?,
            false => work()?,
        };
        self.body.u32(count as u32).u32(0);
        Ok(Answer::Body)
    }

    /// FUSE_RELEASE, FUSE_RELEASEDIR.
    pub(super) fn release(&mut self, args: &mut Args<'_>) -> Result<(), Errno> {
        let node = self.handles.remove(args.u64()?)?;
        self.inodes.closed(node);
        Ok(())
    }

    /// FUSE_FLUSH: the guest closed a descriptor of several. Network file systems send what they have when one is
    /// closed.
    pub(super) fn flush(&mut self, args: &mut Args<'_>) -> Result<(), Errno> {
        fcntl_dupfd_cloexec(self.handles.file(args.u64()?)?, 0).map(drop)
    }

    /// FUSE_FSYNC.
    pub(super) fn fsync(&mut self, args: &mut Args<'_>) -> Result<(), Errno> {
        let (handle, flags) = (args.u64()?, args.u32()?);
        let file = self.handles.file(handle)?;
        if flags & FSYNC_FDATASYNC != 0 { fdatasync(file) } else { fsync(file) }
    }

    /// FUSE_SYNCFS. What the guest cannot change needs no writing.
    pub(super) fn syncfs(&mut self) -> Result<(), Errno> {
        if !self.share.writable {
            return Ok(());
        }
        let root = self.inodes.fd(ROOT)?;
        syncfs(self.reopen(&root, OFlags::DIRECTORY)?)
    }

    /// FUSE_FALLOCATE.
    pub(super) fn fallocate(&mut self, args: &mut Args<'_>) -> Result<(), Errno> {
        let (handle, offset, len, mode) = (args.u64()?, args.u64()?, args.u64()?, args.u32()?);
        self.share.check_writable()?;
        fallocate(self.handles.file(handle)?, FallocateFlags::from_bits_retain(mode), offset, len)
    }

    /// FUSE_LSEEK: where data or a hole is. Other positions are the guest's own business.
    pub(super) fn lseek(&mut self, args: &mut Args<'_>) -> Result<(), Errno> {
        let (handle, offset, whence) = (args.u64()?, args.u64()?, args.u32()?);
        let to = match whence as i32 {
            libc::SEEK_DATA => SeekFrom::Data(offset),
            libc::SEEK_HOLE => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        let found = seek(self.handles.file(handle)?, to)?;
        self.body.u64(found);
        Ok(())
    }

    /// FUSE_COPY_FILE_RANGE.
    pub(super) fn copy_file_range(&mut self, args: &mut Args<'_>) -> Result<(), Errno> {
        let (from, mut from_at, _, to, mut to_at) = (args.u64()?, args.u64()?, args.u64()?, args.u64()?, args.u64()?);
        let (len, flags) = (args.u64()?, args.u64()?);
        self.share.check_writable()?;
        if flags != 0 {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.handles.file(from)?, self.handles.file(to)?);
        let len = len.min(MOST_COPIED) as usize;
        let count = copy_file_range(from, Some(&mut from_at), to, Some(&mut to_at), len)?;
        self.body.u32(count as u32).u32(0);
        Ok(())
    }
}

/// What the file is like now, if any later change will show.
fn settled_version(stat: &Statx) -> Option<Version> {
    let nanos = |time: &rustix::fs::StatxTimestamp| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as i128);
    let latest = nanos(&stat.stx_mtime).max(nanos(&stat.stx_ctime));
    let (mtime, ctime) = (stat.stx_mtime, stat.stx_ctime);
    (now - latest > TICK).then_some((stat.stx_size, mtime.tv_sec, mtime.tv_nsec, ctime.tv_sec, ctime.tv_nsec))
}
