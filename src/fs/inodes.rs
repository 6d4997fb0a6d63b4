//! The files that the guest knows, by node number, with exact counts of how often it was told of each.
//!
//! A guest may know hundreds of thousands of files, more than a process may have open. So a node is first of all a
//! parent and a name, by which most requests are served (`statx` in the parent). A descriptor (`O_PATH`, which opens
//! nothing) is made where one is needed, and the least used are closed again beyond a limit. Whatever is found again
//! under its name must be the same file as before: device, inode number, mount, and time of birth where the file system
//! has one; otherwise the guest gets ESTALE and looks the name up anew. Nodes without a name (removed while in use) and
//! open files keep their descriptors.
//!
//! Names are single components and never followed when they are symbolic links, so nothing outside of the shared
//! directory can be reached, whatever is moved about meanwhile.

use std::collections::VecDeque;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustc_hash::FxHashMap;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags, openat, statx};
use rustix::io::Errno;

use super::protocol::ROOT;
use super::sealed;

/// Directories deep that a descriptor is looked for. Deeper ones need a descriptor on the way, which they get as soon as
/// the guest walks there.
const DEPTH: usize = 4096;
/// Descriptors looked at when one must go.
const TRIES: usize = 64;

/// A file of the host, as long as it exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FileId {
    device: u64,
    number: u64,
    /// The same directory mounted at two places is two for the guest, which knows no directory with two names.
    mount: u64,
}

impl FileId {
    fn of(stat: &Statx) -> Self {
        Self { device: device(stat), number: stat.stx_ino, mount: stat.stx_mnt_id }
    }
}

/// Time of birth, where there is one.
type Born = (i64, u32);

fn born(stat: &Statx) -> Born {
    match StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME) {
        true => (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
        false => (0, 0),
    }
}

/// The device that a file is on.
pub(super) fn device(stat: &Statx) -> u64 {
    u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor)
}

/// What kind of file it is.
pub(super) fn kind(stat: &Statx) -> FileType {
    FileType::from_raw_mode(stat.stx_mode.into())
}

/// What there is to know about a file.
const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

/// Attributes of `name` in `dir`.
pub(super) fn stat_at(dir: impl AsFd, name: &CStr) -> Result<Statx, Errno> {
    statx(dir, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, WANTED)
}

/// Attributes of an open file.
pub(super) fn stat_fd(fd: impl AsFd) -> Result<Statx, Errno> {
    statx(fd, c"", AtFlags::EMPTY_PATH, WANTED)
}

/// A descriptor for `name` in `dir`, which opens nothing.
pub(super) fn locate(dir: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// A file that the guest knows.
#[derive(Debug)]
pub(super) struct Inode {
    file: FileId,
    born: Born,
    pub(super) kind: FileType,
    parent: u64,
    name: CString,
    fd: Option<Arc<OwnedFd>>,
    /// How often the guest was told of it and has not forgotten it.
    lookups: u64,
    /// Nodes that are found by way of this one.
    children: u64,
    /// Open handles.
    opens: u64,
    /// It has no name any more: the descriptor must stay.
    nameless: bool,
    /// The descriptor was used since somebody looked for one to close.
    recent: bool,
    /// A directory that the guest finds empty, see [`sealed`].
    pub(super) sealed: bool,
    /// What the file was like when it was last opened.
    pub(super) opened: Option<Version>,
}

/// What changes whenever the content of a file does: size, mtime, ctime.
pub(super) type Version = (u64, i64, u32, i64, u32);

/// Bounds on what a guest can make the host keep.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Files that the guest may know.
    pub nodes: usize,
    /// Descriptors kept for them, beside those of open files.
    pub descriptors: usize,
    /// Files and directories that the guest may have open.
    pub handles: usize,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Inodes {
    table: FxHashMap<u64, Inode>,
    by_file: FxHashMap<FileId, u64>,
    next: u64,
    /// Nodes with descriptors, in the order in which those may be closed.
    ring: VecDeque<u64>,
    descriptors: usize,
    nameless: usize,
    limits: Limits,
}

impl Inodes {
    /// A table that has only the root.
    pub(super) fn new(root: Arc<OwnedFd>, limits: Limits) -> Result<Self, Errno> {
        let stat = stat_fd(&root)?;
        let file = FileId::of(&stat);
        let mut inode = Inode::new(file, &stat, 0, c"");
        (inode.fd, inode.lookups, inode.nameless) = (Some(root), 1, true);
        Ok(Self {
            table: FxHashMap::from_iter([(ROOT, inode)]),
            by_file: FxHashMap::from_iter([(file, ROOT)]),
            next: ROOT + 1,
            ring: VecDeque::new(),
            descriptors: 0,
            nameless: 0,
            limits,
        })
    }

    /// The node, which the guest must know.
    pub(super) fn get(&mut self, node: u64) -> Result<&mut Inode, Errno> {
        self.table.get_mut(&node).ok_or(Errno::STALE)
    }

    /// A descriptor of `node`. It opens nothing; it is good for `*at` calls and for opening the file.
    pub(super) fn fd(&mut self, node: u64) -> Result<Arc<OwnedFd>, Errno> {
        let (mut missing, mut at) = (Vec::new(), node);
        let mut fd = loop {
            let inode = self.get(at)?;
            if let Some(fd) = &inode.fd {
                inode.recent = true;
                break fd.clone();
            }
            missing.push(at);
            if missing.len() > DEPTH {
                return Err(Errno::STALE);
            }
            at = inode.parent;
        };
        while let Some(node) = missing.pop() {
            fd = self.find_again(node, &fd)?;
        }
        Ok(fd)
    }

    /// A descriptor of `node`, if it is a directory whose content the guest may see.
    pub(super) fn dir(&mut self, node: u64) -> Result<Arc<OwnedFd>, Errno> {
        match self.get(node)? {
            inode if inode.kind != FileType::Directory => Err(Errno::NOTDIR),
            inode if inode.sealed => Err(Errno::ACCESS),
            _ => self.fd(node),
        }
    }

    /// Device and number of `node`; zeros if the guest does not know it.
    pub(super) fn place(&self, node: u64) -> (u64, u64) {
        self.table.get(&node).map_or((0, 0), |inode| (inode.file.device, inode.file.number))
    }

    /// Attributes of `node`.
    pub(super) fn stat(&mut self, node: u64) -> Result<Statx, Errno> {
        let inode = self.get(node)?;
        if let Some(fd) = &inode.fd {
            let stat = stat_fd(fd)?;
            // On overlay file systems it may have become another file when it was first written to.
            inode.born = born(&stat);
            return Ok(stat);
        }
        let parent = inode.parent;
        let dir = self.fd(parent)?;
        let inode = self.get(node)?;
        let stat = stat_at(&dir, &inode.name).map_err(gone)?;
        inode.must_be(&stat).map(|()| stat)
    }

    /// Looks `name` up in the directory `parent`. The guest is told of what is found, once more.
    pub(super) fn find(&mut self, parent: u64, name: &CStr) -> Result<(u64, Statx), Errno> {
        if self.get(parent)?.sealed {
            return Err(Errno::NOENT);
        }
        let dir = self.dir(parent)?;
        let stat = stat_at(&dir, name)?;
        Ok((self.enter(parent, &dir, name, &stat)?, stat))
    }

    /// The guest is told of the file `stat`, which was found as `name` in `parent`. Returns its node.
    pub(super) fn enter(&mut self, parent: u64, dir: &OwnedFd, name: &CStr, stat: &Statx) -> Result<u64, Errno> {
        let file = FileId::of(stat);
        if let Some(&node) = self.by_file.get(&file)
            && let Some(inode) = self.table.get_mut(&node)
        {
            // With a descriptor the number cannot have been given to another file.
            if inode.fd.is_some() || inode.must_be(stat).is_ok() {
                (inode.born, inode.kind) = (born(stat), kind(stat));
                inode.lookups = inode.lookups.saturating_add(1);
                self.rename(node, parent, name);
                return Ok(node);
            }
        }
        let mut inode = Inode::new(file, stat, parent, name);
        if inode.kind == FileType::Directory
            && let Some(above) = self.table.get(&parent)
            && (above.file.mount, above.file.device) != (file.mount, file.device)
        {
            inode.sealed = sealed::is_sealed(&locate(dir, name)?);
        }
        inode.lookups = 1;
        self.insert(inode)
    }

    /// The same for a file that has no name (O_TMPFILE).
    pub(super) fn enter_nameless(&mut self, fd: OwnedFd, stat: &Statx) -> Result<u64, Errno> {
        if self.nameless >= self.limits.descriptors {
            return Err(Errno::NFILE);
        }
        let mut inode = Inode::new(FileId::of(stat), stat, ROOT, c"");
        (inode.fd, inode.lookups, inode.nameless) = (Some(Arc::new(fd)), 1, true);
        self.nameless += 1;
        self.descriptors += 1;
        self.insert(inode)
    }

    fn insert(&mut self, inode: Inode) -> Result<u64, Errno> {
        if self.table.len() >= self.limits.nodes {
            return Err(Errno::NOMEM);
        }
        let node = self.next;
        self.next += 1;
        if let Some(parent) = self.table.get_mut(&inode.parent) {
            parent.children += 1;
        }
        self.by_file.insert(inode.file, node);
        self.table.insert(node, inode);
        Ok(node)
    }

    /// The guest forgets `count` times that it was told of `node`.
    pub(super) fn forget(&mut self, node: u64, count: u64) {
        if let Some(inode) = self.table.get_mut(&node).filter(|_| node != ROOT) {
            inode.lookups = inode.lookups.saturating_sub(count);
            self.drop_unused(node);
        }
    }

    /// A handle of `node` is made.
    pub(super) fn opened(&mut self, node: u64) {
        if let Some(inode) = self.table.get_mut(&node) {
            inode.opens += 1;
        }
    }

    /// A handle of `node` is closed.
    pub(super) fn closed(&mut self, node: u64) {
        if let Some(inode) = self.table.get_mut(&node) {
            inode.opens = inode.opens.saturating_sub(1);
            self.drop_unused(node);
        }
    }

    /// The node of the file `name` in `dir`, if the guest knows it. Its descriptor is made, since the name is about to
    /// be taken away.
    pub(super) fn before_removal(&mut self, dir: &OwnedFd, name: &CStr) -> Option<u64> {
        let stat = stat_at(dir, name).ok()?;
        let &node = self.by_file.get(&FileId::of(&stat))?;
        if self.get(node).ok()?.fd.is_none() {
            self.table.get(&node)?.must_be(&stat).ok()?;
            let fd = locate(dir, name).ok()?;
            if FileId::of(&stat_fd(&fd).ok()?) != FileId::of(&stat) {
                return None;
            }
            self.keep(node, fd);
        }
        Some(node)
    }

    /// The name `name` in `parent`, under which `node` was known, is gone.
    pub(super) fn lose_name(&mut self, node: u64, parent: u64, name: &CStr) {
        let full = self.nameless >= self.limits.descriptors;
        if let Some(inode) = self.table.get_mut(&node).filter(|_| node != ROOT)
            && !inode.nameless
            && inode.fd.is_some()
            && !full
            && (inode.parent, inode.name.as_c_str()) == (parent, name)
        {
            inode.nameless = true;
            self.nameless += 1;
        }
    }

    /// `node` is found as `name` in `parent` from now on.
    pub(super) fn rename(&mut self, node: u64, parent: u64, name: &CStr) {
        let Some(inode) = self.table.get_mut(&node).filter(|_| node != ROOT && node != parent) else { return };
        if std::mem::take(&mut inode.nameless) {
            self.nameless -= 1;
            self.ring.push_back(node);
        }
        if inode.name.as_c_str() != name {
            inode.name = name.into();
        }
        let before = std::mem::replace(&mut inode.parent, parent);
        if before != parent {
            if let Some(new) = self.table.get_mut(&parent) {
                new.children += 1;
            }
            self.lose_child(before);
        }
    }

    fn lose_child(&mut self, node: u64) {
        if let Some(inode) = self.table.get_mut(&node) {
            inode.children = inode.children.saturating_sub(1);
            self.drop_unused(node);
        }
    }

    /// Drops `node` if nothing needs it, and its parents for the same reason.
    fn drop_unused(&mut self, mut node: u64) {
        while let Some(inode) = self.table.get(&node).filter(|inode| node != ROOT && inode.is_unused()) {
            let (file, parent) = (inode.file, inode.parent);
            self.descriptors -= usize::from(inode.fd.is_some());
            self.nameless -= usize::from(inode.nameless);
            self.table.remove(&node);
            if self.by_file.get(&file) == Some(&node) {
                self.by_file.remove(&file);
            }
            if let Some(above) = self.table.get_mut(&parent) {
                above.children = above.children.saturating_sub(1);
            }
            node = parent;
        }
    }

    /// Opens `node` by its name in `dir`, if it is still what it was.
    fn find_again(&mut self, node: u64, dir: &OwnedFd) -> Result<Arc<OwnedFd>, Errno> {
        let inode = self.get(node)?;
        if inode.name.is_empty() {
            return Err(Errno::STALE);
        }
        let fd = locate(dir, &inode.name).map_err(gone)?;
        inode.must_be(&stat_fd(&fd)?)?;
        Ok(self.keep(node, fd))
    }

    /// Keeps `fd` for `node`, and closes another if there are too many.
    fn keep(&mut self, node: u64, fd: OwnedFd) -> Arc<OwnedFd> {
        let fd = Arc::new(fd);
        if let Some(inode) = self.table.get_mut(&node) {
            self.descriptors += usize::from(inode.fd.is_none());
            (inode.fd, inode.recent) = (Some(fd.clone()), true);
            self.ring.push_back(node);
        }
        for _ in 0..TRIES {
            if self.descriptors <= self.limits.descriptors && self.ring.len() <= 2 * self.limits.descriptors {
                break;
            }
            let Some(oldest) = self.ring.pop_front() else { break };
            let Some(inode) = self.table.get_mut(&oldest).filter(|inode| inode.fd.is_some() && !inode.nameless) else {
                continue;
            };
            if inode.opens > 0 || std::mem::take(&mut inode.recent) {
                self.ring.push_back(oldest);
            } else {
                inode.fd = None;
                self.descriptors -= 1;
            }
        }
        fd
    }
}

impl Inode {
    fn new(file: FileId, stat: &Statx, parent: u64, name: &CStr) -> Self {
        Self {
            file,
            born: born(stat),
            kind: kind(stat),
            parent,
            name: name.into(),
            fd: None,
            lookups: 0,
            children: 0,
            opens: 0,
            nameless: false,
            recent: false,
            sealed: false,
            opened: None,
        }
    }

    fn is_unused(&self) -> bool {
        self.lookups == 0 && self.children == 0 && self.opens == 0
    }

    /// Whether the file that was found is the one that the guest knows.
    fn must_be(&self, found: &Statx) -> Result<(), Errno> {
        let same = self.file == FileId::of(found) && self.born == born(found) && self.kind == kind(found);
        if same { Ok(()) } else { Err(Errno::STALE) }
    }
}

/// A name that is not there any more: the guest shall look again.
fn gone(e: Errno) -> Errno {
    match e {
        Errno::NOENT | Errno::NOTDIR => Errno::STALE,
        other => other,
    }
}

/// Numbers by which the guest tells files apart that are on several devices of the host.
#[derive(Debug)]
pub(super) struct Numbers {
    /// The root's comes first: files there keep their numbers.
    devices: Vec<u64>,
}

/// Bits of a file's number that stay beside the one of its device.
const NUMBER_BITS: u32 = 48;
/// Devices told apart by a number; more of them are mixed into the file's.
const MAX_DEVICES: usize = 0x7fff;

impl Numbers {
    pub(super) fn new(root: u64) -> Self {
        Self { devices: vec![root] }
    }

    /// The number of file `number` on `device`.
    pub(super) fn of(&mut self, device: u64, number: u64) -> u64 {
        let known = self.devices.iter().position(|&other| other == device);
        let index = known.unwrap_or(self.devices.len());
        if known.is_none() && index < MAX_DEVICES {
            self.devices.push(device);
        }
        if number >> NUMBER_BITS == 0 && index < MAX_DEVICES {
            return (index as u64) << NUMBER_BITS | number;
        }
        use std::hash::BuildHasher;
        1 << 63 | rustc_hash::FxBuildHasher.hash_one((device, number)) >> 1
    }
}
