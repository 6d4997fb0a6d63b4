//! Kernels that belljar keeps: a directory for each, laid out as distributions install kernels below a root
//! (`boot/vmlinuz-RELEASE`, `lib/modules/RELEASE`), and a note. One appears as a whole or not at all, because it is
//! made under another name and renamed; a lock lets only one process at a time add and remove.
//!
//! There are two such directories: the kernels of `belljar kernel add` in `$XDG_DATA_HOME/belljar/kernels`, and in the
//! cache what was unpacked from packages to be used once.

use std::ffi::OsString;
use std::fs::{self, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::release::{compare, is_release};
use super::{Error, Kernel, compressed, root};
use crate::loader::cache;

const NOTE: &str = "belljar.json";
/// Notes have some 200 bytes.
const NOTE_MAX: u64 = 64 << 10;
const LOCK: &str = ".lock";
/// What another process is just making or removing.
const TEMPORARY: &str = ".tmp-";
/// Unpacking a large package takes ten seconds.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(20);
/// So many unpacked packages are left when another comes, and those of the last hour.
const UNPACKED: usize = 4;
const IN_USE: Duration = Duration::from_secs(3600);

/// A directory of kernels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Store(PathBuf);

/// What is noted of a kernel beside its files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Where it came from.
    pub origin: String,
    /// Its release.
    pub release: Option<String>,
}

/// How a kernel is to be kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct Keep<'a> {
    /// Under this name; its release if not said.
    pub name: Option<&'a str>,
    /// Instead of one that is there.
    pub force: bool,
}

impl Store {
    /// The user's kernels; none without a home directory.
    pub fn user() -> Option<Self> {
        user_directory(|name| std::env::var_os(name)).map(|path| Self(path.join("kernels")))
    }

    /// What was unpacked to be used once.
    pub fn unpacked() -> Option<Self> {
        cache::user_directory(|name| std::env::var_os(name)).map(|path| Self(path.join("packages")))
    }

    /// The kernels in the directory `path`, which need not exist.
    pub fn at(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Names of all kernels, the newest release first.
    pub fn names(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut names: Vec<_> = names.filter(|name| self.holds(name)).collect();
        names.sort_by(|a, b| compare(b, a).then_with(|| a.cmp(b)));
        names
    }

    fn holds(&self, name: &str) -> bool {
        is_release(name) && self.0.join(name).join(NOTE).is_file()
    }

    /// Where the files of the kernel `name` are.
    pub fn root_of(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The kernel `name`, if there is one.
    pub fn kernel(&self, name: &str) -> Option<Result<Kernel, Error>> {
        self.holds(name).then(|| self.open(name))
    }

    fn open(&self, name: &str) -> Result<Kernel, Error> {
        let path = self.root_of(name);
        let note = compressed::read(&path.join(NOTE), NOTE_MAX).ok();
        let note: Note = note.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
        let found = note.release.as_ref().and_then(|release| root::installed(&path, release));
        let found = found.ok_or("its files are not what they were");
        let found = found.map_err(|reason| Error::Directory { path: path.clone(), reason })?;
        Kernel::new(found, format!("kept, from {}", note.origin))
    }

    /// Keeps the kernel that `fill` puts into an empty directory; the name that it has now.
    pub fn add(&self, keep: Keep<'_>, fill: impl FnOnce(&Path) -> Result<Note, Error>) -> Result<String, Error> {
        if let Some(name) = keep.name {
            self.check(name, keep.force)?;
        }
        let _lock = self.lock()?;
        self.sweep();
        let temporary = Temporary::new(self)?;
        let note = fill(&temporary.0)?;
        let name = keep.name.or(note.release.as_deref());
        let name = name.ok_or_else(|| Error::Nameless(note.origin.clone().into()))?.to_owned();
        self.check(&name, keep.force)?;
        self.publish(&temporary, &name, &note)?;
        Ok(name)
    }

    fn check(&self, name: &str, force: bool) -> Result<(), Error> {
        match () {
            () if !is_release(name) => Err(Error::Name(name.to_owned())),
            () if self.holds(name) && !force => Err(Error::Kept { name: name.to_owned() }),
            () => Ok(()),
        }
    }

    /// The kernel `name`, which `fill` makes if it is not there.
    pub(super) fn once(&self, name: &str, fill: impl FnOnce(&Path) -> Result<Note, Error>) -> Result<Kernel, Error> {
        if !self.holds(name) {
            let _lock = self.lock()?;
            // Another process may have done it meanwhile.
            if !self.holds(name) {
                self.sweep();
                self.drop_old();
                let temporary = Temporary::new(self)?;
                let note = fill(&temporary.0)?;
                self.publish(&temporary, name, &note)?;
            }
        }
        // The time of a note is that of the last use.
        let _ = File::open(self.root_of(name).join(NOTE)).and_then(|file| file.set_modified(SystemTime::now()));
        self.open(name)
    }

    fn publish(&self, temporary: &Temporary, name: &str, note: &Note) -> Result<(), Error> {
        let path = temporary.0.join(NOTE);
        let text = serde_json::to_vec(note).map_err(io::Error::from);
        text.and_then(|text| fs::write(&path, text)).map_err(|source| Error::Write { path, source })?;
        let to = self.root_of(name);
        let write = |source| Error::Write { path: to.clone(), source };
        // Whatever the host does after this, no half of a kernel is called by that name.
        File::open(&temporary.0).and_then(|dir| Ok(rustix::fs::syncfs(dir)?)).map_err(write)?;
        let before = Temporary::name(self);
        let replaced = fs::rename(&to, &before.0);
        let renamed = fs::rename(&temporary.0, &to);
        if renamed.is_err() && replaced.is_ok() {
            let _ = fs::rename(&before.0, &to);
        }
        renamed.map_err(write)
    }

    /// Removes the kernel `name`.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        let not_kept = || Error::NotKept { name: name.to_owned() };
        if !self.holds(name) {
            return Err(not_kept());
        }
        let _lock = self.lock()?;
        let gone = Temporary::name(self);
        match fs::rename(self.root_of(name), &gone.0) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(not_kept()),
            Err(source) => Err(Error::Write { path: self.root_of(name), source }),
        }
    }

    /// Only one process at a time changes something.
    fn lock(&self) -> Result<File, Error> {
        let path = self.0.join(LOCK);
        let opened = fs::create_dir_all(&self.0).and_then(|()| File::options().create(true).append(true).open(&path));
        let file = opened.map_err(|source| Error::Write { path: path.clone(), source })?;
        let until = Instant::now() + PATIENCE;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < until => std::thread::sleep(POLL),
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(Error::Busy { path: self.0.clone() }),
                Err(error) => return Err(Error::Write { path, source: error.into() }),
            }
        }
    }

    /// Removes what processes that died left behind. Under the lock, so that all of it is theirs.
    fn sweep(&self) {
        for entry in fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                drop(Temporary(entry.path()));
            }
        }
    }

    /// Makes room for another unpacked package.
    fn drop_old(&self) {
        let used = |name: &String| fs::metadata(self.root_of(name).join(NOTE)).and_then(|note| note.modified()).ok();
        let mut all: Vec<_> = self.names().into_iter().filter_map(|name| Some((used(&name)?, name))).collect();
        all.sort_by(|a, b| b.cmp(a));
        let old = |used: &SystemTime| used.elapsed().is_ok_and(|age| age > IN_USE);
        for (_, name) in all.iter().skip(UNPACKED - 1).filter(|(used, _)| old(used)) {
            let gone = Temporary::name(self);
            let _ = fs::rename(self.root_of(name), &gone.0);
        }
    }
}

/// A directory that goes away again.
struct Temporary(PathBuf);

impl Temporary {
    fn name(store: &Store) -> Self {
        Self(store.0.join(format!("{TEMPORARY}{:016x}", RandomState::new().build_hasher().finish())))
    }

    fn new(store: &Store) -> Result<Self, Error> {
        let new = Self::name(store);
        fs::create_dir(&new.0).map_err(|source| Error::Write { path: new.0.clone(), source })?;
        Ok(new)
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Mostly it has got its real name by now.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The user's directory for what this program keeps.
fn user_directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("XDG_DATA_HOME").or_else(|| set("HOME").map(|path| path.join(".local/share"))).map(|path| path.join("belljar"))
}
