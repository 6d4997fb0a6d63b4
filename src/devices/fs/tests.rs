//! A driver that mounts a directory and asks for everything, checked against what is really there.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use tempfile::TempDir;

use super::*;
use crate::fs::protocol::{ROOT, fattr, fopen, init};
use crate::virtio::kit::{Kit, LIMIT, Part};

mod changes;
mod hostile;
mod reading;

/// The queue that everything but FORGET uses.
const REQUESTS: usize = 1;
/// Room for most answers.
const ROOM: usize = 8192;

/// A directory of the host, mounted.
struct Mount {
    dir: TempDir,
    kit: Kit,
    unique: u64,
    /// Who asks.
    user: (u32, u32),
}

/// A file as LOOKUP and the like show it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    node: u64,
    valid: u64,
    number: u64,
    size: u64,
    mode: u32,
    links: u32,
    owner: (u32, u32),
    mtime: u64,
    device: u32,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Entry {
    fn parse(bytes: &[u8]) -> Self {
        Self { node: u64_at(bytes, 0), valid: u64_at(bytes, 16), ..Self::attributes(&bytes[40..128]) }
    }

    fn attributes(attr: &[u8]) -> Self {
        Self {
            node: 0,
            valid: 0,
            number: u64_at(attr, 0),
            size: u64_at(attr, 8),
            mode: u32_at(attr, 60),
            links: u32_at(attr, 64),
            owner: (u32_at(attr, 68), u32_at(attr, 72)),
            mtime: u64_at(attr, 32),
            device: u32_at(attr, 76),
        }
    }
}

/// Arguments: numbers and texts one after the other.
macro_rules! args {
    ($($part:expr),* $(,)?) => { [$(Bytes::bytes(&$part)),*].concat() };
}
use args;

trait Bytes {
    fn bytes(&self) -> Vec<u8>;
}
impl Bytes for u32 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().into()
    }
}
impl Bytes for u64 {
    fn bytes(&self) -> Vec<u8> {
        self.to_le_bytes().into()
    }
}
impl Bytes for &str {
    fn bytes(&self) -> Vec<u8> {
        [str::as_bytes(self), &[0]].concat()
    }
}
impl Bytes for &[u8] {
    fn bytes(&self) -> Vec<u8> {
        self.to_vec()
    }
}

impl Mount {
    /// An empty directory, mounted with `options`.
    fn new(options: &str) -> Self {
        let dir = crate::fs::testing::scratch();
        Self::of(dir, options)
    }

    fn of(dir: TempDir, options: &str) -> Self {
        let text = format!("{},tag=t{options}", dir.path().display());
        let spec = fs_spec(&text).unwrap();
        let limits = Limits { nodes: 1000, descriptors: 8, handles: 16 };
        let share = Share::open(&spec.path, spec.writable, spec.cache, limits).unwrap();
        let mut kit = Kit::new(Box::new(Fs::new(&spec, share)));
        kit.activate(0);
        let mut mount = Self { dir, kit, unique: 0, user: (0, 0) };
        mount.init();
        mount
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn init(&mut self) -> Vec<u8> {
        let all = !(1u64 << 31);
        self.call(
            Opcode::Init,
            0,
            &args![7u32, 41u32, 0x2_0000u32, all as u32, (all >> 32) as u32, [0u8; 44].as_slice()],
        )
        .unwrap()
    }

    fn header(&mut self, opcode: u32, node: u64, len: usize) -> Vec<u8> {
        self.unique += 1;
        let (uid, gid) = self.user;
        args![(REQUEST_HEADER + len) as u32, opcode, self.unique, node, uid, gid, 4711u32, 0u32]
    }

    /// One request; its answer without the header, or the number of an error.
    fn call(&mut self, opcode: Opcode, node: u64, args: &[u8]) -> Result<Vec<u8>, i32> {
        self.call_with_room(opcode as u32, node, args, ROOM)
    }

    fn call_with_room(&mut self, opcode: u32, node: u64, args: &[u8], room: usize) -> Result<Vec<u8>, i32> {
        // Each request begins with the same memory, however many there were.
        let header = self.header(opcode, node, args.len());
        self.kit.rewind();
        let used = self.kit.request(REQUESTS, &[&header, args], &[ANSWER_HEADER, room.max(1)]);
        assert!(used.data.len() >= ANSWER_HEADER, "no answer");
        assert_eq!(u32_at(&used.data, 0) as usize, used.data.len());
        assert_eq!(u64_at(&used.data, 8), self.unique);
        match -(u32_at(&used.data, 4) as i32) {
            0 => Ok(used.data[ANSWER_HEADER..].to_vec()),
            error => {
                assert_eq!(used.data.len(), ANSWER_HEADER, "an error and a body");
                Err(error)
            }
        }
    }

    fn forget(&mut self, node: u64, count: u64) {
        let header = self.header(Opcode::Forget as u32, node, 8);
        self.kit.rewind();
        let used = self.kit.request(0, &[&header, &count.to_le_bytes()], &[]);
        assert_eq!(used.len, 0);
    }

    fn lookup(&mut self, parent: u64, name: &str) -> Result<Entry, i32> {
        self.call(Opcode::Lookup, parent, &args![name]).map(|bytes| Entry::parse(&bytes))
    }

    /// The node of a path within the mount.
    fn walk(&mut self, path: &str) -> u64 {
        path.split('/').fold(ROOT, |node, name| self.lookup(node, name).unwrap_or_else(|e| panic!("{name}: {e}")).node)
    }

    fn getattr(&mut self, node: u64) -> Result<Entry, i32> {
        self.call(Opcode::Getattr, node, &args![0u32, 0u32, 0u64]).map(|bytes| Entry::attributes(&bytes[16..]))
    }

    fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        self.call(Opcode::Open, node, &args![flags as u32, 0u32]).map(|bytes| u64_at(&bytes, 0))
    }

    fn read(&mut self, handle: u64, offset: u64, size: u32) -> Result<Vec<u8>, i32> {
        let args = args![handle, offset, size, 0u32, 0u64, 0u32, 0u32];
        self.call_with_room(Opcode::Read as u32, 0, &args, size as usize)
    }

    fn write(&mut self, handle: u64, offset: u64, data: &[u8]) -> Result<u32, i32> {
        self.write_with(handle, offset, data, 0, 0)
    }

    fn write_with(&mut self, handle: u64, offset: u64, data: &[u8], how: u32, flags: i32) -> Result<u32, i32> {
        let args = args![handle, offset, data.len() as u32, how, 0u64, flags as u32, 0u32, data];
        self.call(Opcode::Write, 0, &args).map(|bytes| u32_at(&bytes, 0))
    }

    fn release(&mut self, handle: u64) -> Result<Vec<u8>, i32> {
        self.call(Opcode::Release, 0, &args![handle, 0u32, 0u32, 0u64])
    }

    fn opendir(&mut self, node: u64) -> Result<u64, i32> {
        self.call(Opcode::Opendir, node, &args![0u32, 0u32]).map(|bytes| u64_at(&bytes, 0))
    }

    /// Names in a directory, with what `plus` tells of each; `room` bytes at a time.
    fn list(&mut self, node: u64, plus: bool, room: usize) -> Vec<(String, u64, Option<Entry>)> {
        let handle = self.opendir(node).unwrap();
        let (mut found, mut offset) = (Vec::new(), 0u64);
        loop {
            let opcode = if plus { Opcode::Readdirplus } else { Opcode::Readdir };
            let args = args![handle, offset, room as u32, 0u32, 0u64, 0u32, 0u32];
            let bytes = self.call_with_room(opcode as u32, node, &args, room).unwrap();
            assert!(bytes.len() <= room);
            if bytes.is_empty() {
                break;
            }
            let mut rest = &bytes[..];
            while !rest.is_empty() {
                let entry = plus.then(|| Entry::parse(rest));
                rest = &rest[if plus { 128 } else { 0 }..];
                let len = u32_at(rest, 16) as usize;
                found.push((String::from_utf8(rest[24..24 + len].to_vec()).unwrap(), u64_at(rest, 0), entry));
                offset = u64_at(rest, 8);
                rest = &rest[(24 + len).next_multiple_of(8)..];
            }
        }
        self.call(Opcode::Releasedir, node, &args![handle, 0u32, 0u32, 0u64]).unwrap();
        found
    }

    /// `struct fuse_setattr_in` with these fields.
    fn setattr(&mut self, node: u64, change: Change) -> Result<Entry, i32> {
        let Change { valid, handle, size, atime, mtime, mode, uid, gid } = change;
        let args = args![
            valid, 0u32, handle, size, 0u64, atime.0, mtime.0, 0u64, atime.1, mtime.1, 0u32, mode, 0u32, uid, gid, 0u32
        ];
        self.call(Opcode::Setattr, node, &args).map(|bytes| Entry::attributes(&bytes[16..]))
    }

    fn create(&mut self, parent: u64, name: &str, flags: i32, mode: u32) -> Result<(Entry, u64), i32> {
        let bytes = self.call(Opcode::Create, parent, &args![flags as u32, mode, 0u32, 0u32, name])?;
        Ok((Entry::parse(&bytes), u64_at(&bytes, 128)))
    }

    fn mkdir(&mut self, parent: u64, name: &str, mode: u32) -> Result<Entry, i32> {
        self.call(Opcode::Mkdir, parent, &args![mode, 0u32, name]).map(|bytes| Entry::parse(&bytes))
    }

    fn unlink(&mut self, parent: u64, name: &str) -> Result<(), i32> {
        self.call(Opcode::Unlink, parent, &args![name]).map(drop)
    }

    fn rename(&mut self, (from, old): (u64, &str), (to, new): (u64, &str), flags: u32) -> Result<(), i32> {
        self.call(Opcode::Rename2, from, &args![to, flags, 0u32, old, new]).map(drop)
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Change {
    valid: u32,
    handle: u64,
    size: u64,
    atime: (u64, u32),
    mtime: (u64, u32),
    mode: u32,
    uid: u32,
    gid: u32,
}

fn fs_spec(text: &str) -> Result<FsSpec, OptionError> {
    parse(&Options::from_flag("fs", KEYS, text)?)
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[test]
fn options() {
    let spec = fs_spec("/x,tag=home,mode=rw,cache=never,queues=4").unwrap();
    assert_eq!((spec.path.to_str(), spec.writable, spec.cache, spec.queues), (Some("/x"), true, Cache::Never, 4));
    assert!(!fs_spec("path=/x,tag=home").unwrap().writable);
    let long = format!("/x,tag={}", "x".repeat(37));
    for wrong in ["/x", "tag=x", "/x,tag=", &long, "/x,tag=x,mode=wr", "/x,tag=x,cache=1", "/x,tag=x,queues=0"] {
        assert!(fs_spec(wrong).is_err(), "{wrong}");
    }
    let spec = fs_spec("/nonexistent/x,tag=x").unwrap();
    let limits = limits(10);
    let error = Share::open(&spec.path, false, Cache::Auto, limits).unwrap_err().to_string();
    assert!(error.contains("cannot share /nonexistent/x: No such file"), "{error}");
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(Share::open(file.path(), false, Cache::Auto, limits).is_err(), "it is no directory");
}

#[test]
fn configuration_and_negotiation() {
    let mut mount = Mount::new("");
    assert_eq!(mount.kit.device.info().queue_sizes.len(), 2);
    let mut config = [0xff; 40];
    mount.kit.device.config().read(0, &mut config);
    assert_eq!((&config[..3], &config[36..]), (&b"t\0\0"[..], &[1, 0, 0, 0][..]));
    let answer = mount.init();
    assert_eq!((answer.len(), u32_at(&answer, 0)), (64, 7));
    assert!(u32_at(&answer, 4) >= OLDEST, "minor version");
    assert_eq!((u32_at(&answer, 20), u32_at(&answer, 28) & 0xffff), (1 << 20, 256), "requests of 1 MiB");
    let flags = u64::from(u32_at(&answer, 32)) << 32 | u64::from(u32_at(&answer, 12));
    assert_ne!(flags & init::DO_READDIRPLUS, 0);
    assert_eq!(
        flags & (1 << 1 | 1 << 10 | 1 << 16 | 1 << 20),
        0,
        "locks, write-back, ACLs are the guest's own business"
    );
    // A driver of the future asks again; one of the past does without.
    let newer = mount.call(Opcode::Init, 0, &args![8u32, 0u32]).unwrap();
    assert_eq!(u32_at(&newer, 0), 7);
    assert_eq!(mount.call(Opcode::Init, 0, &args![7u32, 30u32, 0u32, 0u32]), Err(libc::EPROTO));
    let old = mount.call(Opcode::Init, 0, &args![7u32, 31u32, 0u32, 0u32]).unwrap();
    assert_eq!(u32_at(&old, 12), 0);
}
const OLDEST: u32 = 31;

#[test]
fn nothing_survives_a_second_mount_or_a_reset() {
    let mut mount = Mount::new("");
    fs::write(mount.path("file"), "x").unwrap();
    let node = mount.walk("file");
    let handle = mount.open(node, libc::O_RDONLY).unwrap();
    mount.call(Opcode::Destroy, 0, &[]).unwrap();
    assert_eq!(mount.call(Opcode::Lookup, ROOT, &args!["file"]), Err(libc::EIO), "INIT comes first");
    mount.init();
    assert_eq!(mount.getattr(node), Err(libc::ESTALE));
    assert_eq!(mount.read(handle, 0, 10), Err(libc::EBADF));
    mount.kit.reset();
    mount.kit.activate_on_loop(0);
    mount.init();
    assert_eq!(mount.getattr(node), Err(libc::ESTALE));
    let node = mount.walk("file");
    let handle = mount.open(node, libc::O_RDONLY).unwrap();
    assert_eq!(mount.read(handle, 0, 10).unwrap(), b"x");
}
