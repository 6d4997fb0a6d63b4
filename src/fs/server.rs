//! The server of one mount: negotiates, and passes requests on to where they are served.

use std::sync::Arc;

use rustix::fs::Statx;
use rustix::io::Errno;

use super::answer::{Attributes, Body};
use super::handles::Handles;
use super::inodes::{Inodes, Numbers, device, stat_fd};
use super::protocol::{Args, Header, MAJOR, MINOR, OLDEST_MINOR, Opcode, init};
use super::{Cache, Share};
use crate::host::vectored::{IoBuf, Scatter};

/// Pages of one request: 1 MiB, as much as Linux takes.
const MAX_PAGES: u16 = 256;
/// Bytes of data in one request.
const MAX_WRITE: u32 = (MAX_PAGES as u32) << 12;
/// Requests that the guest may have under way without anybody waiting for them, such as readahead.
const MAX_BACKGROUND: u16 = 64;
/// Everything that is understood here. POSIX locks and flock are not on the list, so the guest keeps them for itself.
const OFFERED: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::AUTO_INVAL_DATA
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::CACHE_SYMLINKS
    | init::HANDLE_KILLPRIV_V2
    | init::INIT_EXT
    | init::DIRECT_IO_ALLOW_MMAP;

/// How a request is answered, if not by an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Not at all.
    Nothing,
    /// By [`Server::body`].
    Body,
    /// By this many bytes, which are in place.
    InPlace(usize),
}

/// The server of one mount.
#[derive(Debug)]
pub struct Server {
    pub(super) share: Arc<Share>,
    pub(super) inodes: Inodes,
    pub(super) handles: Handles,
    pub(super) numbers: Numbers,
    pub(super) body: Body,
    pub(super) scatter: Scatter,
    negotiated: bool,
}

/// Memory that goes with a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Data<'a> {
    /// What follows the arguments: data to be written.
    pub readable: &'a [IoBuf],
    /// Room for the answer, behind its header.
    pub writable: &'a [IoBuf],
}

impl Data<'_> {
    /// Bytes of room.
    pub(super) fn room(&self) -> usize {
        self.writable.iter().map(IoBuf::len).sum()
    }
}

impl Server {
    /// A server whose guest has not mounted anything yet.
    pub fn new(share: Arc<Share>) -> Result<Self, Errno> {
        let inodes = Inodes::new(share.root.clone(), share.limits)?;
        let numbers = Numbers::new(device(&stat_fd(&share.root)?));
        let handles = Handles::new(share.limits.handles);
        let (body, scatter) = (Body::default(), Scatter::default());
        Ok(Self { share, inodes, handles, numbers, body, scatter, negotiated: false })
    }

    /// The answer to the last request.
    pub fn body(&self) -> &[u8] {
        &self.body.0
    }

    /// Serves one request. `args` are all its bytes but those of `data`.
    pub fn serve(&mut self, header: &Header, args: &[u8], data: Data<'_>) -> Result<Answer, Errno> {
        self.body.0.clear();
        let opcode = Opcode::new(header.opcode).ok_or(Errno::NOSYS)?;
        let mut args = Args(args);
        match opcode {
            Opcode::Init => return self.init(&mut args),
            Opcode::Destroy => return self.start_again().map(|()| Answer::Body),
            Opcode::Forget => return self.forget(header.node, &mut args),
            Opcode::BatchForget => return self.batch_forget(&mut args),
            Opcode::Interrupt => return Ok(Answer::Nothing),
            _ if !self.negotiated => return Err(Errno::IO),
            Opcode::Read => return self.read(&mut args, data),
            Opcode::Write => return self.write(&mut args, data),
            _ => {}
        }
        let result = self.serve_more(opcode, header, &mut args, data.room());
        // Errors must not be followed by half an answer.
        result.map(|()| Answer::Body).inspect_err(|_| self.body.0.clear())
    }

    fn serve_more(&mut self, opcode: Opcode, header: &Header, args: &mut Args<'_>, room: usize) -> Result<(), Errno> {
        let node = header.node;
        match opcode {
            Opcode::Lookup => self.lookup(node, args),
            Opcode::Getattr => self.getattr(node, args),
            Opcode::Statx => self.statx(node, args),
            Opcode::Setattr => self.setattr(node, args),
            Opcode::Statfs => self.statfs(node),
            Opcode::Access => self.access(node, args),
            Opcode::Readlink => self.readlink(node),
            Opcode::Symlink => self.symlink(header, args),
            Opcode::Mknod => self.mknod(header, args),
            Opcode::Mkdir => self.mkdir(header, args),
            Opcode::Unlink => self.remove(node, args, false),
            Opcode::Rmdir => self.remove(node, args, true),
            Opcode::Rename => self.rename(node, args, false),
            Opcode::Rename2 => self.rename(node, args, true),
            Opcode::Link => self.link(node, args),
            Opcode::Open => self.open(node, args),
            Opcode::Create => self.create(header, args),
            Opcode::Tmpfile => self.tmpfile(header, args),
            Opcode::Release | Opcode::Releasedir => self.release(args),
            Opcode::Flush => self.flush(args),
            Opcode::Fsync => self.fsync(args),
            Opcode::Fsyncdir => self.fsyncdir(args),
            Opcode::Syncfs => self.syncfs(),
            Opcode::Fallocate => self.fallocate(args),
            Opcode::Lseek => self.lseek(args),
            Opcode::CopyFileRange => self.copy_file_range(args),
            Opcode::Opendir => self.opendir(node),
            Opcode::Readdir => self.readdir(args, room, false),
            Opcode::Readdirplus => self.readdir(args, room, true),
            Opcode::Setxattr => self.setxattr(node, args),
            Opcode::Getxattr => self.getxattr(node, args),
            Opcode::Listxattr => self.listxattr(node, args),
            Opcode::Removexattr => self.removexattr(node, args),
            Opcode::Ioctl => Err(Errno::NOTTY),
            _ => Err(Errno::NOSYS),
        }
    }

    /// FUSE_INIT: a mount begins. Another may have ended without a word.
    fn init(&mut self, args: &mut Args<'_>) -> Result<Answer, Errno> {
        let (major, minor) = (args.u32()?, args.u32()?);
        if major < MAJOR || (major == MAJOR && minor < OLDEST_MINOR) {
            return Err(Errno::PROTO);
        }
        self.start_again()?;
        self.body.u32(MAJOR).u32(MINOR);
        if major > MAJOR {
            // The driver asks again in this version.
            self.body.zeros(56);
            return Ok(Answer::Body);
        }
        let (max_readahead, low) = (args.u32()?, args.u32()?);
        let high = if u64::from(low) & init::INIT_EXT != 0 { args.u32().unwrap_or(0) } else { 0 };
        let mut flags = OFFERED & (u64::from(high) << 32 | u64::from(low));
        if self.share.cache == Cache::Always {
            flags &= !init::AUTO_INVAL_DATA;
        }
        self.body.u32(max_readahead).u32(flags as u32).u16(MAX_BACKGROUND).u16(MAX_BACKGROUND / 4 * 3).u32(MAX_WRITE);
        // Times are exact to the nanosecond.
        self.body.u32(1).u16(MAX_PAGES).u16(0).u32((flags >> 32) as u32).zeros(28);
        self.negotiated = true;
        Ok(Answer::Body)
    }

    /// Forgets all that a mount needed.
    fn start_again(&mut self) -> Result<(), Errno> {
        *self = Self::new(self.share.clone())?;
        Ok(())
    }

    fn forget(&mut self, node: u64, args: &mut Args<'_>) -> Result<Answer, Errno> {
        if let Ok(count) = args.u64() {
            self.inodes.forget(node, count);
        }
        Ok(Answer::Nothing)
    }

    fn batch_forget(&mut self, args: &mut Args<'_>) -> Result<Answer, Errno> {
        let (count, _) = (args.u32().unwrap_or(0), args.u32());
        for _ in 0..count {
            let (Ok(node), Ok(lookups)) = (args.u64(), args.u64()) else { break };
            self.inodes.forget(node, lookups);
        }
        Ok(Answer::Nothing)
    }

    /// Attributes as the guest sees them.
    pub(super) fn shown(&mut self, stat: &Statx) -> Attributes {
        let (uid, gid) = self.share.owners.shown(stat.stx_uid, stat.stx_gid);
        Attributes { stat: *stat, number: self.numbers.of(device(stat), stat.stx_ino), uid, gid }
    }

    /// Answers with the file `node`.
    pub(super) fn answer_entry(&mut self, node: u64, stat: &Statx) {
        let attributes = self.shown(stat);
        self.body.entry(node, &attributes, self.share.cache.valid());
    }
}
