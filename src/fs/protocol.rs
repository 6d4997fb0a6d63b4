//! The words of FUSE: what comes in a request and how it is taken apart. Names and numbers are those of Linux's
//! `include/uapi/linux/fuse.h`, version 7.38; all fields are little-endian, as in an x86 guest.

use std::ffi::CStr;

use rustix::io::Errno;

/// Bytes before the arguments of a request (`struct fuse_in_header`).
pub const REQUEST_HEADER: usize = 40;
/// Bytes before the rest of an answer (`struct fuse_out_header`).
pub const ANSWER_HEADER: usize = 16;
/// Arguments of FUSE_WRITE, before the data (`struct fuse_write_in`).
pub const WRITE_ARGS: usize = 40;

/// Version spoken here.
pub const MAJOR: u32 = 7;
/// As above.
pub const MINOR: u32 = 38;
/// Older drivers than those of Linux 5.4 know no virtio-fs.
pub const OLDEST_MINOR: u32 = 31;

/// The node that a mount begins with (`FUSE_ROOT_ID`).
pub const ROOT: u64 = 1;
/// Longest name of a directory entry (`FUSE_NAME_MAX` is 1024; no host file system takes more than this).
pub const NAME_MAX: usize = 255;

macro_rules! opcodes {
    ($($name:ident = $value:literal,)*) => {
        /// What a request asks for (`enum fuse_opcode`).
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(missing_docs, reason = "the names are those of the protocol")]
        pub enum Opcode { $($name = $value,)* }

        impl Opcode {
            /// The one with this number.
            pub fn new(number: u32) -> Option<Self> {
                match number { $($value => Some(Self::$name),)* _ => None }
            }
        }
    };
}

opcodes! {
    Lookup = 1, Forget = 2, Getattr = 3, Setattr = 4, Readlink = 5, Symlink = 6, Mknod = 8, Mkdir = 9, Unlink = 10,
    Rmdir = 11, Rename = 12, Link = 13, Open = 14, Read = 15, Write = 16, Statfs = 17, Release = 18, Fsync = 20,
    Setxattr = 21, Getxattr = 22, Listxattr = 23, Removexattr = 24, Flush = 25, Init = 26, Opendir = 27, Readdir = 28,
    Releasedir = 29, Fsyncdir = 30, Access = 34, Create = 35, Interrupt = 36, Destroy = 38, Ioctl = 39,
    BatchForget = 42, Fallocate = 43, Readdirplus = 44, Rename2 = 45, Lseek = 46, CopyFileRange = 47, Syncfs = 50,
    Tmpfile = 51, Statx = 52,
}

/// Flags of FUSE_INIT. Those above bit 31 travel in a field of their own, which INIT_EXT announces.
pub mod init {
    #![expect(missing_docs, reason = "the names are those of the protocol")]
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const AUTO_INVAL_DATA: u64 = 1 << 12;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
}

/// Flags of FUSE_SETATTR: which fields are to be set (`FATTR_*`).
pub mod fattr {
    #![expect(missing_docs, reason = "the names are those of the protocol")]
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// Flags of an answer to FUSE_OPEN and the like (`FOPEN_*`).
pub mod fopen {
    #![expect(missing_docs, reason = "the names are those of the protocol")]
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
    pub const NOFLUSH: u32 = 1 << 5;
}

/// `FUSE_GETATTR_FH`: the file handle is valid.
pub const GETATTR_FH: u32 = 1 << 0;
/// `FUSE_OPEN_KILL_SUIDGID`: truncating takes set-user-ID and set-group-ID away.
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
/// `FUSE_WRITE_CACHE`: the guest's kernel writes back a page, on behalf of whomever.
pub const WRITE_CACHE: u32 = 1 << 0;
/// `FUSE_WRITE_KILL_SUIDGID`: writing takes set-user-ID and set-group-ID away.
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// `FUSE_FSYNC_FDATASYNC`: times need not be written.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;

/// Who asks for what (`struct fuse_in_header`).
#[derive(Debug, Clone, Copy)]
pub struct Header {
    /// Number of what is asked for, see [`Opcode`].
    pub opcode: u32,
    /// Names the request in its answer.
    pub unique: u64,
    /// What it is about.
    pub node: u64,
    /// Who asks, as the guest knows them.
    pub uid: u32,
    /// As above.
    pub gid: u32,
}

impl Header {
    /// Takes a header apart.
    pub fn parse(bytes: &[u8; REQUEST_HEADER]) -> Self {
        let mut args = Args(bytes);
        // There are enough bytes for all of them; the first four are the length, which the queue knows better.
        let _ = args.u32();
        let opcode = args.u32().unwrap_or_default();
        let unique = args.u64().unwrap_or_default();
        let node = args.u64().unwrap_or_default();
        let uid = args.u32().unwrap_or_default();
        let gid = args.u32().unwrap_or_default();
        Self { opcode, unique, node, uid, gid }
    }
}

/// The arguments of a request, taken one after another. Too few of them are EINVAL.
#[derive(Debug, Clone)]
pub struct Args<'a>(pub &'a [u8]);

impl<'a> Args<'a> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(*taken)
    }

    /// A number of 32 bits.
    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_le_bytes)
    }

    /// A number of 64 bits.
    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_le_bytes)
    }

    /// Bytes up to a NUL.
    pub fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = self.0.get(text.to_bytes_with_nul().len()..).unwrap_or_default();
        Ok(text)
    }

    /// The name of one entry of a directory: nothing that leads elsewhere.
    pub fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text()?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }
}
