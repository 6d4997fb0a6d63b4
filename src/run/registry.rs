//! The machines of this user that run: a directory each, which its process locks, with what other commands need to find
//! and to reach it.
//!
//! ```text
//! $XDG_RUNTIME_DIR/belljar/  (or /tmp/belljar-UID/)      0700
//!   NAME/lock          locked by the process as long as the machine exists
//!        machine.json  what `belljar ps` shows
//!        control       UNIX socket of the process (`control`)
//!        vsock, port   sockets of the machine's channel to its agent
//!        console.log, output.log, belljar.log
//! ```
//!
//! A directory whose lock is free belongs to a process that died: it is removed by whoever notices. Called from the
//! main thread of the verbs.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::spec::is_name;
use crate::host::file_lock::{Kind, others_lock, try_lock};

const LOCK: &str = "lock";
const RECORD: &str = "machine.json";
/// Socket of the process that runs a machine.
pub const CONTROL: &str = "control";
/// What the consoles printed.
pub const CONSOLE_LOG: &str = "console.log";
/// What a detached command printed.
pub const OUTPUT_LOG: &str = "output.log";
/// How long somebody else may be busy making or removing a directory.
const PATIENCE: Duration = Duration::from_secs(5);
/// First words of names that are made up.
const ADJECTIVES: [&str; 16] = [
    "amber", "brisk", "calm", "clear", "deft", "eager", "fair", "glad", "keen", "light", "merry", "neat", "quick",
    "still", "warm", "wry",
];
/// Second words.
const NOUNS: [&str; 16] = [
    "bell", "bird", "brook", "cedar", "comet", "fern", "finch", "glass", "lark", "moss", "otter", "pebble", "reed",
    "spark", "tern", "wren",
];

/// Something is wrong with the directories of running machines.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("Cannot use {} for the directories of running machines: {reason}; set XDG_RUNTIME_DIR to a directory of yours", .path.display())]
    Base { path: PathBuf, reason: String },
    #[error("A machine called {0} runs already; choose another --name, or end it: belljar stop {0}")]
    Taken(String),
    #[error("No machine called {0} runs; belljar ps lists those that do")]
    None(String),
    #[error("Cannot {what} {}", .path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
}

/// What a running machine says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// Its process.
    pub pid: u32,
    /// When it was started, in seconds since 1970.
    pub started: u64,
    /// What runs its CPUs.
    pub engine: String,
    /// Release of its kernel, or where that comes from.
    pub kernel: String,
    /// Its command, as words.
    pub command: Vec<String>,
    /// Its command's output is kept, because nobody waits for it.
    pub detached: bool,
    /// Where its consoles are logged.
    pub log: PathBuf,
}

/// The directories of all machines of this user.
#[derive(Debug, Clone)]
pub struct Registry {
    base: PathBuf,
}

/// The directory of one machine of this process. It goes with its owner.
#[derive(Debug)]
pub struct Home {
    name: String,
    path: PathBuf,
    registry: Registry,
    /// Locked.
    _lock: File,
}

impl Registry {
    /// That of the user who runs this process; made if it is not there.
    pub fn user() -> Result<Self, Error> {
        let uid = rustix::process::getuid().as_raw();
        let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
        // The variable may be left over from another user (su), or from a session that has ended.
        let usable = |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.is_dir() && m.uid() == uid);
        let base = match given.filter(usable) {
            Some(path) => path.join("belljar"),
            None => PathBuf::from(format!("/tmp/belljar-{uid}")),
        };
        Self::at(base)
    }

    /// One in the directory `base`, which is made if it is not there.
    pub fn at(base: PathBuf) -> Result<Self, Error> {
        let fail = |reason: String| Error::Base { path: base.clone(), reason };
        match DirBuilder::new().mode(0o700).create(&base) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(fail(e.to_string())),
            _ => {}
        }
        // In /tmp somebody else may have been first.
        let found = fs::symlink_metadata(&base).map_err(|e| fail(e.to_string()))?;
        if !found.is_dir() || found.uid() != rustix::process::getuid().as_raw() {
            return Err(fail("it belongs to somebody else".into()));
        }
        if found.mode() & 0o077 != 0 {
            return Err(fail("others may look into it (chmod 700)".into()));
        }
        Ok(Self { base })
    }

    /// Makes the directory of a new machine, called `name` or something made up.
    pub fn create(&self, name: Option<&str>) -> Result<Home, Error> {
        let _turn = self.turn()?;
        if let Some(name) = name {
            return self.make(name)?.ok_or_else(|| Error::Taken(name.into()));
        }
        let seed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos() as usize;
        for attempt in seed.. {
            let word = |words: &[&'static str], number: usize| words.get(number % words.len()).copied().unwrap_or("it");
            let mut name = format!("{}-{}", word(&ADJECTIVES, attempt), word(&NOUNS, attempt / ADJECTIVES.len()));
            if attempt - seed > ADJECTIVES.len() * NOUNS.len() {
                name = format!("{name}-{}", attempt - seed);
            }
            if let Some(home) = self.make(&name)? {
                return Ok(home);
            }
        }
        Err(Error::Taken("any name".into()))
    }

    /// None if the name is taken.
    fn make(&self, name: &str) -> Result<Option<Home>, Error> {
        let path = self.base.join(name);
        if path.exists() && self.is_alive(&path) {
            return Ok(None);
        }
        remove(&path);
        let fail = |source| Error::File { what: "make", path: path.clone(), source };
        DirBuilder::new().mode(0o700).create(&path).map_err(fail)?;
        let lock = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path.join(LOCK)).map_err(fail)?;
        if !try_lock(&lock, Kind::Exclusive, 0..1).map_err(fail)? {
            return Ok(None);
        }
        Ok(Some(Home { name: name.into(), path: path.clone(), registry: self.clone(), _lock: lock }))
    }

    /// Waits until nobody else makes or removes directories; the lock ends with the file.
    fn turn(&self) -> Result<File, Error> {
        let path = self.base.join(".lock");
        let fail = |source| Error::File { what: "lock", path: path.clone(), source };
        let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path).map_err(fail)?;
        let until = Instant::now() + PATIENCE;
        while !try_lock(&file, Kind::Exclusive, 0..1).map_err(fail)? {
            if Instant::now() >= until {
                return Err(fail(io::Error::other("somebody holds it")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(file)
    }

    fn is_alive(&self, path: &Path) -> bool {
        let Ok(lock) = OpenOptions::new().read(true).write(true).open(path.join(LOCK)) else { return false };
        others_lock(&lock, 0..1).unwrap_or(true)
    }

    /// Machines that run, by name. What dead processes left is removed.
    pub fn list(&self) -> Result<Vec<Record>, Error> {
        let fail = |source| Error::File { what: "read", path: self.base.clone(), source };
        let _turn = self.turn()?;
        let mut records = Vec::new();
        for entry in fs::read_dir(&self.base).map_err(fail)?.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_name(&name) {
                continue;
            }
            if !self.is_alive(&entry.path()) {
                remove(&entry.path());
            } else if let Some(record) = read(&entry.path()) {
                records.push(record);
            }
        }
        records.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(records)
    }

    /// The machine `name`, if it runs.
    pub fn find(&self, name: &str) -> Result<(Record, PathBuf), Error> {
        let path = self.base.join(name);
        if !is_name(name) || !self.is_alive(&path) {
            return Err(Error::None(name.into()));
        }
        let record = read(&path).ok_or_else(|| Error::None(name.into()))?;
        Ok((record, path))
    }
}

impl Home {
    /// The machine's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A file in the directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Others find the machine from now on.
    pub fn publish(&self, record: &Record) -> Result<(), Error> {
        let path = self.path.join(RECORD);
        let fail = |source| Error::File { what: "write", path: path.clone(), source };
        // Readers see all of it or nothing.
        let draft = self.path.join("machine.json.new");
        let text = serde_json::to_vec(record).map_err(|e| fail(e.into()))?;
        fs::write(&draft, text).map_err(fail)?;
        fs::rename(&draft, &path).map_err(fail)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        // Without the turn a new machine of the same name could lose its directory to this one.
        let turn = self.registry.turn();
        if turn.is_ok() {
            remove(&self.path);
        }
    }
}

fn read(path: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(path.join(RECORD)).ok()?).ok()
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => tracing::warn!("cannot remove {}: {e}", path.display()),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry() -> (Registry, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        (Registry::at(dir.path().join("belljar")).unwrap(), dir)
    }

    fn record(home: &Home) -> Record {
        Record {
            name: home.name().into(),
            pid: 1,
            started: 2,
            engine: "soft".into(),
            kernel: "6.12".into(),
            command: vec!["true".into()],
            detached: false,
            log: home.file(CONSOLE_LOG),
        }
    }

    #[test]
    fn machines_are_found_while_they_run() {
        let (registry, _dir) = registry();
        let home = registry.create(Some("one")).unwrap();
        assert!(registry.list().unwrap().is_empty(), "not published yet");
        home.publish(&record(&home)).unwrap();
        assert_eq!(registry.list().unwrap(), [record(&home)]);
        assert_eq!(registry.find("one").unwrap().0, record(&home));
        let taken = registry.create(Some("one")).unwrap_err().to_string();
        assert!(taken.contains("called one runs already"), "{taken}");
        let path = home.file("");
        drop(home);
        assert!(!path.exists());
        assert!(matches!(registry.find("one"), Err(Error::None(_))));
        assert!(matches!(registry.find("../one"), Err(Error::None(_))));
    }

    #[test]
    fn made_up_names_differ() {
        let (registry, _dir) = registry();
        let homes: Vec<_> = (0..20).map(|_| registry.create(None).unwrap()).collect();
        assert!(homes.iter().all(|home| is_name(home.name())));
        let names: std::collections::BTreeSet<_> = homes.iter().map(Home::name).collect();
        assert_eq!(names.len(), 20);
    }

    #[test]
    fn what_a_dead_process_left_is_removed() {
        let (registry, dir) = registry();
        let home = registry.create(Some("dead")).unwrap();
        home.publish(&record(&home)).unwrap();
        let copy = dir.path().join("belljar/left");
        fs::create_dir(&copy).unwrap();
        for name in [LOCK, RECORD] {
            fs::copy(home.file(name), copy.join(name)).unwrap();
        }
        assert_eq!(registry.list().unwrap().len(), 1);
        assert!(!copy.exists());
        fs::create_dir(&copy).unwrap();
        registry.create(Some("left")).unwrap();
    }

    #[test]
    fn directories_of_others_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        DirBuilder::new().mode(0o755).create(&open).unwrap();
        assert!(Registry::at(open).unwrap_err().to_string().contains("chmod 700"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(Registry::at(link).unwrap_err().to_string().contains("somebody else"));
    }
}
