//! Requests about attributes of files and of the file system.

use std::os::fd::OwnedFd;

use rustix::fs::{
    Access, AtFlags, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, accessat, chmodat, chownat,
    fstatvfs, ftruncate, openat, utimensat,
};
use rustix::io::Errno;
use rustix::path::DecInt;

use super::Server;
use super::protocol::{Args, fattr};
use crate::host::identity;

/// What FUSE_SETATTR wants (`struct fuse_setattr_in`).
struct Changes {
    valid: u32,
    handle: u64,
    size: u64,
    /// Seconds and nanoseconds.
    atime: (u64, u32),
    mtime: (u64, u32),
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Changes {
    fn parse(args: &mut Args<'_>) -> Result<Self, Errno> {
        let (valid, _, handle, size, _) = (args.u32()?, args.u32()?, args.u64()?, args.u64()?, args.u64()?);
        let (atime, mtime, _ctime) = (args.u64()?, args.u64()?, args.u64()?);
        let (atime, mtime, _) = ((atime, args.u32()?), (mtime, args.u32()?), args.u32()?);
        let (mode, _, uid, gid, _) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        Ok(Self { valid, handle, size, atime, mtime, mode, uid, gid })
    }

    fn has(&self, any: u32) -> bool {
        self.valid & any != 0
    }

    /// Times as utimensat(2) wants them.
    fn times(&self) -> Timestamps {
        let time = |set, now, (seconds, nanos): (u64, u32)| match (self.has(set), self.has(now)) {
            (_, true) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            (true, false) => Timespec { tv_sec: seconds as i64, tv_nsec: nanos.into() },
            (false, false) => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        };
        Timestamps {
            last_access: time(fattr::ATIME, fattr::ATIME_NOW, self.atime),
            last_modification: time(fattr::MTIME, fattr::MTIME_NOW, self.mtime),
        }
    }
}

impl Server {
    /// FUSE_GETATTR. An open file keeps the descriptor of its node, so the handle does not matter.
    pub(super) fn getattr(&mut self, node: u64, _: &mut Args<'_>) -> Result<(), Errno> {
        let stat = self.inodes.stat(node)?;
        let attributes = self.shown(&stat);
        self.body.getattr(&attributes, self.share.cache.valid());
        Ok(())
    }

    /// FUSE_STATX.
    pub(super) fn statx(&mut self, node: u64, _: &mut Args<'_>) -> Result<(), Errno> {
        let stat = self.inodes.stat(node)?;
        let attributes = self.shown(&stat);
        self.body.statx(&attributes, self.share.cache.valid());
        Ok(())
    }

    /// FUSE_SETATTR.
    pub(super) fn setattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let changes = Changes::parse(args)?;
        self.share.check_writable()?;
        let fd = self.inodes.fd(node)?;
        if changes.has(fattr::UID | fattr::GID) {
            self.change_owner(node, &fd, &changes)?;
        }
        let by_descriptor = DecInt::from_fd(&fd);
        if changes.has(fattr::MODE) {
            let mode = Mode::from_raw_mode(changes.mode & 0o7777);
            chmodat(&self.share.descriptors, by_descriptor, mode, AtFlags::empty())?;
        }
        if changes.has(fattr::SIZE) {
            self.change_size(node, &fd, &changes)?;
        }
        if changes.has(fattr::ATIME | fattr::MTIME | fattr::ATIME_NOW | fattr::MTIME_NOW) {
            utimensat(&self.share.descriptors, DecInt::from_fd(&fd), &changes.times(), AtFlags::empty())?;
        }
        self.getattr(node, args)
    }

    fn change_owner(&mut self, node: u64, fd: &OwnedFd, changes: &Changes) -> Result<(), Errno> {
        let stat = self.inodes.stat(node)?;
        let now = self.share.owners.shown(stat.stx_uid, stat.stx_gid);
        let uid = changes.has(fattr::UID).then_some(changes.uid);
        let gid = changes.has(fattr::GID).then_some(changes.gid);
        match self.share.owners.wanted(uid, gid, now)? {
            (None, None) => Ok(()),
            (uid, gid) => chownat(fd, c"", uid, gid, AtFlags::EMPTY_PATH),
        }
    }

    fn change_size(&mut self, node: u64, fd: &OwnedFd, changes: &Changes) -> Result<(), Errno> {
        let opened;
        let file = if changes.has(fattr::FH) {
            self.handles.file(changes.handle)?
        } else {
            match self.inodes.get(node)?.kind {
                FileType::RegularFile => {}
                FileType::Directory => return Err(Errno::ISDIR),
                _ => return Err(Errno::INVAL),
            }
            let flags = OFlags::WRONLY | OFlags::CLOEXEC;
            opened = openat(&self.share.descriptors, DecInt::from_fd(fd), flags, Mode::empty())?;
            &opened
        };
        match changes.has(fattr::KILL_SUIDGID) {
            true => identity::without_keeping_set_id(|| ftruncate(file, changes.size)),
            false => ftruncate(file, changes.size),
        }
    }

    /// FUSE_STATFS.
    pub(super) fn statfs(&mut self, node: u64) -> Result<(), Errno> {
        let fd = self.inodes.fd(node)?;
        self.body.statfs(&fstatvfs(&fd)?);
        Ok(())
    }

    /// FUSE_ACCESS: what this process may do. The guest's kernel checks permissions itself and does not ask.
    pub(super) fn access(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let wanted = Access::from_bits(args.u32()?).ok_or(Errno::INVAL)?;
        if wanted.contains(Access::WRITE_OK) {
            self.share.check_writable()?;
        }
        let fd = self.inodes.fd(node)?;
        accessat(&self.share.descriptors, DecInt::from_fd(&fd), wanted, AtFlags::empty())
    }
}
