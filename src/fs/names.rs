//! Requests about names: looking them up, making, linking, moving and removing files.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, FileType, Mode, RenameFlags, Statx, chmodat, linkat, makedev, mkdirat, mknodat, readlinkat, renameat_with,
    symlinkat, unlinkat,
};
use rustix::io::Errno;
use rustix::path::DecInt;

use super::inodes::{kind, locate, stat_at};
use super::protocol::{Args, Header};
use super::{Cache, Server};

impl Server {
    /// FUSE_LOOKUP.
    pub(super) fn lookup(&mut self, parent: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let name = args.name()?;
        match self.inodes.find(parent, name) {
            Ok((node, stat)) => self.answer_entry(node, &stat),
            // The guest may remember that there is nothing.
            Err(Errno::NOENT) if self.share.cache == Cache::Always => {
                self.body.no_entry(self.share.cache.valid());
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// FUSE_READLINK.
    pub(super) fn readlink(&mut self, node: u64) -> Result<(), Errno> {
        if self.inodes.get(node)?.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        let fd = self.inodes.fd(node)?;
        let target = readlinkat(&fd, c"", Vec::new())?;
        self.body.bytes(target.as_bytes());
        Ok(())
    }

    /// FUSE_SYMLINK.
    pub(super) fn symlink(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let (name, target) = (args.name()?, args.text()?);
        self.make(header, name, None, |dir| symlinkat(target, dir, name))
    }

    /// FUSE_MKNOD. What the guest makes a device of is one for the guest's kernel; nobody opens it here.
    pub(super) fn mknod(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let (mode, device, _, _) = (args.u32()?, args.u32()?, args.u32()?, args.u32()?);
        let name = args.name()?;
        let device = makedev(device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Directory | FileType::Symlink | FileType::Unknown => return Err(Errno::INVAL),
            kind => kind,
        };
        self.make(header, name, Some(mode), |dir| mknodat(dir, name, kind, Mode::from_raw_mode(mode), device))
    }

    /// FUSE_MKDIR.
    pub(super) fn mkdir(&mut self, header: &Header, args: &mut Args<'_>) -> Result<(), Errno> {
        let (mode, _) = (args.u32()?, args.u32()?);
        let name = args.name()?;
        self.make(header, name, Some(mode), |dir| mkdirat(dir, name, Mode::from_raw_mode(mode)))
    }

    /// Makes `name` for the guest's user and answers with it.
    fn make(
        &mut self,
        header: &Header,
        name: &CStr,
        mode: Option<u32>,
        work: impl FnOnce(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<(), Errno> {
        self.share.check_writable()?;
        let dir = self.inodes.dir(header.node)?;
        self.share.owners.making(header.uid, header.gid, || work(&dir))?;
        let mut stat = stat_at(&dir, name)?;
        if let Some(lost) = mode.map(|mode| self.lost_mode(mode)).filter(|&lost| lost != 0) {
            let fd = locate(&dir, name)?;
            self.give_mode(&fd, &stat, lost)?;
            stat = stat_at(&dir, name)?;
        }
        let node = self.inodes.enter(header.node, &dir, name, &stat)?;
        self.answer_entry(node, &stat);
        Ok(())
    }

    /// Permissions of a new file with `mode` that this process's umask takes away; the guest has applied its own.
    pub(super) fn lost_mode(&self, mode: u32) -> u32 {
        mode & self.share.umask & 0o777
    }

    /// Gives them back to the file just made.
    pub(super) fn give_mode(&self, fd: &OwnedFd, stat: &Statx, lost: u32) -> Result<(), Errno> {
        if kind(stat) == FileType::Symlink {
            return Ok(());
        }
        let mode = Mode::from_raw_mode(u32::from(stat.stx_mode) | lost);
        chmodat(&self.share.descriptors, DecInt::from_fd(fd), mode, AtFlags::empty())
    }

    /// FUSE_LINK.
    pub(super) fn link(&mut self, parent: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (old, name) = (args.u64()?, args.name()?);
        self.share.check_writable()?;
        let (file, dir) = (self.inodes.fd(old)?, self.inodes.dir(parent)?);
        // By way of the descriptor, since the file may have other names by now, or none.
        linkat(&self.share.descriptors, DecInt::from_fd(&file), &dir, name, AtFlags::SYMLINK_FOLLOW)?;
        let (node, stat) = self.inodes.find(parent, name)?;
        self.answer_entry(node, &stat);
        Ok(())
    }

    /// FUSE_UNLINK, FUSE_RMDIR.
    pub(super) fn remove(&mut self, parent: u64, args: &mut Args<'_>, directory: bool) -> Result<(), Errno> {
        let name = args.name()?;
        self.share.check_writable()?;
        let dir = self.inodes.dir(parent)?;
        let node = self.inodes.before_removal(&dir, name);
        unlinkat(&dir, name, if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() })?;
        if let Some(node) = node {
            self.inodes.lose_name(node, parent, name);
        }
        Ok(())
    }

    /// FUSE_RENAME, FUSE_RENAME2.
    pub(super) fn rename(&mut self, parent: u64, args: &mut Args<'_>, with_flags: bool) -> Result<(), Errno> {
        let to = args.u64()?;
        let flags = if with_flags { (args.u32()?, args.u32()?).0 } else { 0 };
        let (old, new) = (args.name()?, args.name()?);
        let flags = RenameFlags::from_bits_retain(flags);
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        self.share.check_writable()?;
        let (from_dir, to_dir) = (self.inodes.dir(parent)?, self.inodes.dir(to)?);
        let moved = self.inodes.before_removal(&from_dir, old);
        let replaced = self.inodes.before_removal(&to_dir, new);
        renameat_with(&from_dir, old, &to_dir, new, flags)?;
        // Two names of one file: nothing happened (rename(2)).
        if moved.is_some() && moved == replaced {
            return Ok(());
        }
        if let Some(replaced) = replaced {
            match flags.contains(RenameFlags::EXCHANGE) {
                true => self.inodes.rename(replaced, parent, old),
                false => self.inodes.lose_name(replaced, to, new),
            }
        }
        if let Some(moved) = moved {
            self.inodes.rename(moved, to, new);
        }
        Ok(())
    }
}
