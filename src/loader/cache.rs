//! Unpacked kernels, kept from one start to the next: `kernels/` in `$BELLJAR_CACHE`, `$XDG_CACHE_HOME/belljar` or
//! `~/.cache/belljar`. Called by [`super::load`]; any number of processes may use the directory at once.
//!
//! An entry is an ELF file and a note beside it. The entry's name is made from the identity of the packed file
//! (device, inode, size, times), so that a start need not read it. The note holds the SHA-256 of the entry and its
//! identity at the time it was last hashed: as long as that is the same, and the host was not booted since, the entry
//! is used as it is. Otherwise it is hashed again, and made anew if that fails. That is why nothing is ever synced to
//! disk: what a crash of the host leaves behind does not have the right hash.
//!
//! Nothing here is needed for booting: whatever is wrong with the cache, kernels are unpacked without it.

use std::ffi::OsString;
use std::fs::{DirBuilder, File};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Counts up when entries are made in another way.
const FORMAT: u32 = 1;
/// What the directory may hold; a kernel takes 30 to 50 MB.
const MAX_ENTRIES: usize = 16;
const MAX_BYTES: u64 = 1 << 30;
/// Files change within the resolution of their times; younger ones are not cached.
const SETTLED: Duration = Duration::from_secs(2);
/// Files that a process left behind are removed after this time, and a use is noted once in it.
const STALE: Duration = Duration::from_secs(3600);
/// How long to wait for another process that fills the cache.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);
const TEMPORARY: &str = "tmp-";
const NOTE_SUFFIX: &str = ".json";
/// Notes are some 500 bytes.
const NOTE_MAX: u64 = 4096;

/// Which cache to use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Policy {
    /// The user's.
    #[default]
    User,
    /// The one in this directory.
    At(PathBuf),
    /// None.
    Off,
}

/// What tells one version of a file from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        let m = file.metadata()?;
        Ok(Self {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        })
    }

    /// Whether any later change will show in the times.
    fn settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() as i64;
        let wait = SETTLED.as_secs() as i64;
        self.modified.0.saturating_add(wait) < now && self.changed.0.saturating_add(wait) < now
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    format: u32,
    source: Identity,
    entry: Identity,
    sha256: String,
    boot: String,
}

/// The cache, opened and found safe to use.
#[derive(Debug)]
pub struct Cache {
    dir: File,
}

/// What a kernel is kept under.
#[derive(Debug)]
pub struct Key {
    source: Identity,
    name: String,
}

impl Cache {
    /// Opens the directory, made if need be. None, with a line in the log, if it is not to be used or not safe.
    pub fn open(policy: &Policy) -> Option<Self> {
        let base = match policy {
            Policy::User => {
                let base = user_directory(|name| std::env::var_os(name));
                if base.is_none() {
                    tracing::debug!("no home directory: kernel cache not used");
                }
                base?
            }
            Policy::At(path) => path.clone(),
            Policy::Off => return None,
        };
        match open_directory(&base.join("kernels")) {
            Ok(dir) => Some(Self { dir }),
            Err(error) => {
                tracing::debug!(directory = %base.display(), %error, "kernel cache not used");
                None
            }
        }
    }

    /// Whether the user's directory can be used: where it is, or where it would be (if it is known) and what is wrong.
    pub fn try_user() -> Result<PathBuf, (Option<PathBuf>, io::Error)> {
        let Some(base) = user_directory(|name| std::env::var_os(name)) else {
            return Err((None, io::Error::other("no home directory")));
        };
        let writes = |cache: Self| {
            let name = temporary();
            let file = RemoveOnDrop(&cache, &name);
            cache.create(&name)?.write_all(b"x")?;
            drop(file);
            Ok(())
        };
        match open_directory(&base.join("kernels")).and_then(|dir| writes(Self { dir })) {
            Ok(()) => Ok(base),
            Err(error) => Err((Some(base), error)),
        }
    }

    /// The key of what is unpacked from `source`.
    pub fn key(&self, source: &File) -> io::Result<Key> {
        let source = Identity::of(source)?;
        let text = serde_json::to_vec(&(FORMAT, source))?;
        let digest = Sha256::digest(text);
        let name = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
        Ok(Key { source, name })
    }

    /// The entry for `key`, if there is one that is sound.
    pub fn find(&self, key: &Key) -> Option<File> {
        match self.check(key) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::debug!(entry = key.name, %error, "kernel cache entry not used");
                None
            }
        }
    }

    fn check(&self, key: &Key) -> io::Result<Option<File>> {
        let mut text = String::with_capacity(NOTE_MAX as usize);
        let file = self.open_own(&note_name(&key.name))?;
        (&file).take(NOTE_MAX).read_to_string(&mut text)?;
        let mut note: Note = serde_json::from_str(&text)?;
        let entry = self.open_own(&key.name)?;
        if note.format != FORMAT || note.source != key.source {
            return Ok(None);
        }
        let boot = boot_id()?;
        if note.entry != Identity::of(&entry)? || note.boot != boot {
            if hash(&entry)? != note.sha256 {
                return Ok(None);
            }
            note.entry = Identity::of(&entry)?;
            note.boot = boot;
            self.write_note(key, &note)?;
        } else if file.metadata()?.modified()?.elapsed().is_ok_and(|age| age > STALE) {
            // The time of a note is that of the last use, by which entries are kept or dropped.
            file.set_modified(SystemTime::now())?;
        }
        Ok(Some(entry))
    }

    /// Lets `make` fill an empty file, keeps it under `key`, and returns it. If another process is just doing the
    /// same, waits for that.
    pub fn insert<E: From<io::Error>>(
        &self,
        key: &Key,
        source: &File,
        make: impl FnOnce(&File) -> Result<(), E>,
    ) -> Result<File, E> {
        let _lock = self.lock();
        if let Some(entry) = self.find(key) {
            return Ok(entry);
        }
        let name = temporary();
        let file = self.create(&name)?;
        let remove = RemoveOnDrop(self, &name);
        make(&file)?;
        if let Err(error) = self.publish(key, source, &file, &name) {
            tracing::debug!(%error, "kernel not kept in the cache");
        }
        drop(remove);
        Ok(file)
    }

    fn publish(&self, key: &Key, source: &File, file: &File, name: &str) -> io::Result<()> {
        if Identity::of(source)? != key.source || !key.source.settled(SystemTime::now()) {
            return Err(io::Error::other("the kernel file has just changed"));
        }
        let sha256 = hash(file)?;
        rustix::fs::fchmod(file, Mode::RUSR)?;
        rustix::fs::renameat(&self.dir, name, &self.dir, &key.name)?;
        let note = Note { format: FORMAT, source: key.source, entry: Identity::of(file)?, sha256, boot: boot_id()? };
        self.write_note(key, &note)?;
        self.prune()
    }

    fn write_note(&self, key: &Key, note: &Note) -> io::Result<()> {
        let name = temporary();
        let mut file = self.create(&name)?;
        let remove = RemoveOnDrop(self, &name);
        file.write_all(&serde_json::to_vec(note)?)?;
        rustix::fs::renameat(&self.dir, &name, &self.dir, note_name(&key.name))?;
        drop(remove);
        Ok(())
    }

    fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.dir, name, flags, Mode::RUSR | Mode::WUSR)?))
    }

    /// Removes what is over the limits, least recently used first, and what was left behind.
    fn prune(&self) -> io::Result<()> {
        let mut entries = Vec::new();
        for item in rustix::fs::Dir::read_from(&self.dir)? {
            let item = item?;
            let Ok(name) = item.file_name().to_str() else { continue };
            let stat = rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let age = SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(stat.st_mtime.max(0) as u64));
            if name.starts_with(TEMPORARY) && age.is_ok_and(|age| age > STALE) {
                self.remove(name)?;
            } else if let Some(entry) = name.strip_suffix(NOTE_SUFFIX) {
                entries.push((stat.st_mtime, entry.to_owned()));
            }
        }
        entries.sort_by(|a, b| b.cmp(a));
        let mut bytes = 0;
        for (index, (_, name)) in entries.iter().enumerate() {
            bytes += rustix::fs::statat(&self.dir, name, AtFlags::SYMLINK_NOFOLLOW).map_or(0, |s| s.st_size as u64);
            if index >= MAX_ENTRIES || bytes > MAX_BYTES {
                self.remove(&note_name(name))?;
                self.remove(name)?;
            }
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Err(rustix::io::Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Keeps others from making the same entry; none if that takes too long, then work is merely done twice.
    fn lock(&self) -> Option<File> {
        let dir =
            rustix::fs::openat(&self.dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let dir = File::from(dir.ok()?);
        let until = Instant::now() + PATIENCE;
        while let Err(error) = rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK || Instant::now() > until {
                return None;
            }
            std::thread::sleep(POLL);
        }
        Some(dir)
    }

    /// Opens a file that nobody else can have written.
    fn open_own(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat(&self.dir, name, flags, Mode::empty())?);
        let m = file.metadata()?;
        if !m.is_file() || m.uid() != rustix::process::geteuid().as_raw() || m.mode() & 0o022 != 0 {
            return Err(io::Error::other("it is not ours alone to write"));
        }
        Ok(file)
    }
}

struct RemoveOnDrop<'a>(&'a Cache, &'a str);

impl Drop for RemoveOnDrop<'_> {
    fn drop(&mut self) {
        // Gone already if all went well.
        let _ = self.0.remove(self.1);
    }
}

/// A name that no other process uses, even one that has our number in another container.
fn temporary() -> String {
    format!("{TEMPORARY}{:016x}", RandomState::new().build_hasher().finish())
}

fn note_name(entry: &str) -> String {
    format!("{entry}{NOTE_SUFFIX}")
}

/// The user's cache directory for everything that this program keeps.
pub fn user_directory(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    set("BELLJAR_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|path| path.join("belljar")))
        .or_else(|| set("HOME").map(|path| path.join(".cache/belljar")))
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            rustix::fs::openat(CWD, path, flags, Mode::empty())?
        }
        other => other?,
    };
    let dir = File::from(dir);
    let m = dir.metadata()?;
    if m.uid() != rustix::process::geteuid().as_raw() || m.mode() & 0o077 != 0 {
        return Err(io::Error::other("the directory is not private to this user; make it mode 0700"));
    }
    Ok(dir)
}

/// SHA-256 of the whole file, in hexadecimal.
fn hash(mut file: &File) -> io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    file.rewind()?;
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => digest.update(buffer.get(..n).unwrap_or_default()),
        }
    }
    Ok(digest.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

/// Changes whenever the host boots.
fn boot_id() -> io::Result<String> {
    let mut text = String::with_capacity(64);
    File::open("/proc/sys/kernel/random/boot_id")?.take(63).read_to_string(&mut text)?;
    Ok(text.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, PermissionsExt};

    struct Setup {
        dir: tempfile::TempDir,
        cache: Cache,
        source: File,
    }

    impl Setup {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let cache = Cache::open(&Policy::At(dir.path().to_owned())).unwrap();
            let mut source = File::create(dir.path().join("source")).unwrap();
            source.write_all(b"packed").unwrap();
            Self { dir, cache, source }
        }

        /// A key as of a file that is old enough.
        fn key(&self) -> Key {
            let mut key = self.cache.key(&self.source).unwrap();
            key.source.modified.0 -= 10;
            key.source.changed.0 -= 10;
            key
        }

        fn make(&self, key: &Key, content: &[u8]) {
            let note = |file: &File| Identity::of(file).unwrap();
            let name = "tmp-test";
            let mut file = File::create_new(self.path(name)).unwrap();
            file.write_all(content).unwrap();
            let sha256 = hash(&File::open(self.path(name)).unwrap()).unwrap();
            std::fs::rename(self.path(name), self.path(&key.name)).unwrap();
            let entry = note(&file);
            let note = Note { format: FORMAT, source: key.source, entry, sha256, boot: boot_id().unwrap() };
            self.cache.write_note(key, &note).unwrap();
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join("kernels").join(name)
        }

        fn note(&self, key: &Key) -> Note {
            serde_json::from_slice(&std::fs::read(self.path(&note_name(&key.name))).unwrap()).unwrap()
        }
    }

    fn content(file: File) -> Vec<u8> {
        let mut data = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut data, 0).unwrap();
        data
    }

    /// A file that has been there for long.
    fn settled() -> File {
        File::open("/bin/sh").unwrap()
    }

    #[test]
    fn many_at_once_do_the_work_once() {
        let dir = tempfile::tempdir().unwrap();
        let made = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    let cache = Cache::open(&Policy::At(dir.path().to_owned())).unwrap();
                    let source = settled();
                    let key = cache.key(&source).unwrap();
                    let make = |mut file: &File| {
                        made.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(50));
                        file.write_all(b"unpacked")
                    };
                    assert_eq!(content(cache.insert::<io::Error>(&key, &source, make).unwrap()), b"unpacked");
                });
            }
        });
        assert_eq!(made.into_inner(), 1);
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_kept_and_later_it_is() {
        let s = Setup::new();
        let key = s.cache.key(&s.source).unwrap();
        let fill = |mut file: &File| file.write_all(b"unpacked");
        assert_eq!(content(s.cache.insert::<io::Error>(&key, &s.source, fill).unwrap()), b"unpacked");
        assert!(s.cache.find(&key).is_none());
        let source = settled();
        let key = s.cache.key(&source).unwrap();
        assert_eq!(content(s.cache.insert::<io::Error>(&key, &source, fill).unwrap()), b"unpacked");
        assert_eq!(content(s.cache.find(&key).unwrap()), b"unpacked");
        let never = |_: &File| -> io::Result<()> { panic!("made twice") };
        assert_eq!(content(s.cache.insert(&key, &source, never).unwrap()), b"unpacked");
        assert_eq!(std::fs::metadata(s.path(&key.name)).unwrap().permissions().mode() & 0o777, 0o400);
        assert_eq!(std::fs::read_dir(s.path("")).unwrap().count(), 2, "nothing is left behind");
    }

    #[test]
    fn a_failure_leaves_nothing_behind() {
        let s = Setup::new();
        let fail = |_: &File| Err(io::Error::other("damaged"));
        assert_eq!(s.cache.insert(&s.key(), &s.source, fail).unwrap_err().to_string(), "damaged");
        assert_eq!(std::fs::read_dir(s.path("")).unwrap().count(), 0);
    }

    #[test]
    fn changed_entries_are_found_out() {
        let s = Setup::new();
        let key = s.key();
        s.make(&key, b"unpacked");
        assert!(s.cache.find(&key).is_some());
        // The same content with other times is hashed and accepted; then its new identity is known.
        File::options().write(true).open(s.path(&key.name)).unwrap().set_modified(UNIX_EPOCH).unwrap();
        assert!(s.cache.find(&key).is_some());
        assert_eq!(s.note(&key).entry.modified, (0, 0));
        // Another boot of the host: hashed, accepted.
        let mut note = s.note(&key);
        note.boot = "another".into();
        s.cache.write_note(&key, &note).unwrap();
        assert!(s.cache.find(&key).is_some());
        assert_eq!(s.note(&key).boot, boot_id().unwrap());
        // Other content of the same size.
        std::fs::write(s.path(&key.name), b"UNPACKED").unwrap();
        assert!(s.cache.find(&key).is_none());
        s.make(&key, b"unpacked");
        std::fs::write(s.path(&note_name(&key.name)), b"{").unwrap();
        assert!(s.cache.find(&key).is_none(), "damaged note");
        s.make(&key, b"unpacked");
        std::fs::set_permissions(s.path(&key.name), PermissionsExt::from_mode(0o620)).unwrap();
        assert!(s.cache.find(&key).is_none(), "writable by others");
        std::fs::remove_file(s.path(&key.name)).unwrap();
        std::os::unix::fs::symlink("/etc/hostname", s.path(&key.name)).unwrap();
        assert!(s.cache.find(&key).is_none(), "a link");
    }

    #[test]
    fn old_entries_go() {
        let s = Setup::new();
        let old = s.path("tmp-1-left");
        File::create(&old).unwrap().set_modified(UNIX_EPOCH).unwrap();
        for i in 0..MAX_ENTRIES as u64 + 3 {
            let mut key = s.key();
            key.name = format!("{i:032x}");
            s.make(&key, b"x");
            let note = File::options().write(true).open(s.path(&note_name(&key.name))).unwrap();
            note.set_modified(UNIX_EPOCH + Duration::from_secs(1000 + i)).unwrap();
        }
        s.cache.prune().unwrap();
        assert!(!old.exists());
        assert_eq!(std::fs::read_dir(s.path("")).unwrap().count(), 2 * MAX_ENTRIES);
        assert!(!s.path(&format!("{:032x}", 2)).exists() && s.path(&format!("{:032x}", 3)).exists());
    }

    #[test]
    fn unsafe_or_missing_directories_are_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let at = || Cache::open(&Policy::At(dir.path().to_owned()));
        assert!(Cache::open(&Policy::Off).is_none());
        assert!(at().is_some());
        let kernels = dir.path().join("kernels");
        std::fs::set_permissions(&kernels, PermissionsExt::from_mode(0o770)).unwrap();
        assert!(at().is_none());
        std::fs::remove_dir(&kernels).unwrap();
        std::os::unix::fs::symlink("/tmp", &kernels).unwrap();
        assert!(at().is_none());
        assert!(Cache::open(&Policy::At("/proc/belljar".into())).is_none());
    }

    #[test]
    fn the_directory_follows_the_environment() {
        let find = |vars: &[(&str, &str)]| {
            user_directory(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
        };
        assert_eq!(find(&[("HOME", "/h")]), Some("/h/.cache/belljar".into()));
        assert_eq!(find(&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")]), Some("/x/belljar".into()));
        assert_eq!(find(&[("BELLJAR_CACHE", "/b"), ("XDG_CACHE_HOME", "/x")]), Some("/b".into()));
        assert_eq!(find(&[("HOME", ""), ("XDG_CACHE_HOME", "relative")]), None);
    }
}
