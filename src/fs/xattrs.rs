//! Requests about extended attributes. They are the host's, with its rules; only POSIX ACLs are not passed on, since the
//! guest's kernel would not keep to them.

use std::ffi::CStr;

use rustix::fs::{XattrFlags, getxattr, getxattr_query, listxattr, removexattr, setxattr};
use rustix::io::Errno;

use super::Server;
use super::protocol::Args;

/// Most bytes of a value, and of a list of names (`XATTR_SIZE_MAX`, `XATTR_LIST_MAX`).
const MAX: usize = 64 << 10;

fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

/// A name that may be passed on.
fn allowed<'a>(args: &mut Args<'a>) -> Result<&'a CStr, Errno> {
    let name = args.text()?;
    if is_acl(name.to_bytes()) { Err(Errno::OPNOTSUPP) } else { Ok(name) }
}

impl Server {
    /// Calls `work` with a path that leads to `node` and nowhere else.
    fn by_path<T>(&mut self, node: u64, work: impl FnOnce(&str) -> Result<T, Errno>) -> Result<T, Errno> {
        use std::os::fd::AsRawFd;
        let fd = self.inodes.fd(node)?;
        work(&format!("/proc/self/fd/{}", fd.as_raw_fd()))
    }

    /// FUSE_SETXATTR.
    pub(super) fn setxattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (size, flags) = (args.u32()? as usize, args.u32()?);
        let name = allowed(args)?;
        let value = args.0.get(..size).filter(|value| value.len() <= MAX).ok_or(Errno::INVAL)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        self.share.check_writable()?;
        self.by_path(node, |path| setxattr(path, name, value, flags))
    }

    /// FUSE_GETXATTR.
    pub(super) fn getxattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (size, _) = (args.u32()? as usize, args.u32()?);
        let name = allowed(args)?;
        if size == 0 {
            let len = self.by_path(node, |path| getxattr_query(path, name))?;
            return self.answer_sized(&[], len, size);
        }
        let mut value = vec![0; size.min(MAX)];
        let len = self.by_path(node, |path| getxattr(path, name, &mut value[..]))?;
        self.answer_sized(value.get(..len).unwrap_or_default(), len, size)
    }

    /// FUSE_LISTXATTR.
    pub(super) fn listxattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let (size, _) = (args.u32()? as usize, args.u32()?);
        let mut names = vec![0; MAX];
        let len = self.by_path(node, |path| listxattr(path, &mut names[..]))?;
        let names = names.get(..len).unwrap_or_default().split_inclusive(|&byte| byte == 0);
        let shown = names.filter(|name| !is_acl(name)).collect::<Vec<_>>().concat();
        self.answer_sized(&shown, shown.len(), size)
    }

    /// A value, or only how long it is when the guest has no room at all.
    fn answer_sized(&mut self, value: &[u8], len: usize, room: usize) -> Result<(), Errno> {
        if room == 0 {
            self.body.u32(len as u32).u32(0);
        } else if len > room {
            return Err(Errno::RANGE);
        } else {
            self.body.bytes(value);
        }
        Ok(())
    }

    /// FUSE_REMOVEXATTR.
    pub(super) fn removexattr(&mut self, node: u64, args: &mut Args<'_>) -> Result<(), Errno> {
        let name = allowed(args)?;
        self.share.check_writable()?;
        self.by_path(node, |path| removexattr(path, name))
    }
}
