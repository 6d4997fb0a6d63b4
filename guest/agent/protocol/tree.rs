//! A file or a tree of files as a stream of bytes, between host and guest in either direction: content, permissions,
//! times of files and directories, symbolic links as they are. What is copied belongs to whoever receives it; special
//! permissions (set-user-ID and the like) are not kept, sockets, pipes and devices are left out.
//!
//! ```text
//!   entry  =  file mode time name (length bytes)* 0  |  directory mode time name entry* end  |  link name target
//!   stream =  entry done
//! ```
//!
//! The receiver trusts nothing: names are single components, nothing is reached through a link that the stream itself
//! may have made (every directory is opened without following links and kept open), and the depth is bounded.

use std::ffi::{OsStr, OsString};
use std::fs::{self, DirBuilder, File, FileTimes, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::wire::Wire;

const DONE: u8 = 0;
const FILE: u8 = 1;
const DIRECTORY: u8 = 2;
const LINK: u8 = 3;
const END: u8 = 4;

/// Most directories within each other: each is an open file.
const DEPTH: usize = 200;
/// Longest name or link (PATH_MAX).
const NAME: usize = 4096;
/// Bytes of content at once.
const PIECE: usize = 64 << 10;
const PERMISSIONS: u32 = 0o777;
const O_NOFOLLOW: i32 = 0o400_000;
const O_DIRECTORY: i32 = 0o200_000;

/// A tree cannot be copied.
#[derive(Debug)]
pub struct Error {
    text: String,
    /// If it is the stream that broke.
    stream: Option<io::ErrorKind>,
}

impl Error {
    fn new(text: String) -> Self {
        Self { text, stream: None }
    }

    /// Whether the receiver has gone, and knows better why.
    pub fn is_broken_pipe(&self) -> bool {
        self.stream == Some(io::ErrorKind::BrokenPipe)
    }

    /// Whether the sender has gone, and knows better why.
    pub fn is_cut_short(&self) -> bool {
        self.stream == Some(io::ErrorKind::UnexpectedEof)
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Self {
        broken(e)
    }
}

fn at<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |e| {
        let reason = e.to_string();
        Error::new(format!(
            "cannot {what} {}: {}",
            path.display(),
            reason.split(" (os error").next().unwrap_or_default()
        ))
    }
}

fn broken(e: io::Error) -> Error {
    let text = match e.kind() {
        io::ErrorKind::UnexpectedEof => "the copy was cut short".into(),
        io::ErrorKind::BrokenPipe => "nobody takes the copy any more".into(),
        _ => format!("the copy broke off: {e}"),
    };
    Error { text, stream: Some(e.kind()) }
}

fn nonsense() -> Error {
    Error::new("what arrives is no copy of files".into())
}

/// Sends `path`. A link is followed only if its name ends in `/`.
pub fn pack(path: &Path, to: &mut impl Write) -> Result<(), Error> {
    // `dir/` and `dir/.` are both called `dir`.
    let name = match path.file_name() {
        Some(name) => name.to_os_string(),
        None => fs::canonicalize(path).map_err(at("find", path))?.file_name().unwrap_or(OsStr::new("root")).into(),
    };
    pack_entry(path, &name, to, DEPTH)?;
    to.write_all(&[DONE]).and_then(|()| to.flush()).map_err(broken)
}

fn pack_entry(path: &Path, name: &OsStr, to: &mut impl Write, depth: usize) -> Result<(), Error> {
    let about = fs::symlink_metadata(path).map_err(at("read", path))?;
    let mut head = Vec::new();
    let mut meta = |kind: u8| {
        kind.put(&mut head);
        about.mode().put(&mut head);
        about.mtime().cast_unsigned().put(&mut head);
        u32::try_from(about.mtime_nsec()).unwrap_or(0).put(&mut head);
        name.to_os_string().put(&mut head);
    };
    if about.is_symlink() {
        LINK.put(&mut head);
        name.to_os_string().put(&mut head);
        fs::read_link(path).map_err(at("read the link", path))?.into_os_string().put(&mut head);
        to.write_all(&head).map_err(broken)
    } else if about.is_dir() {
        let deeper = depth.checked_sub(1).ok_or_else(|| {
            Error::new(format!("{}: more than {DEPTH} directories within each other", path.display()))
        })?;
        meta(DIRECTORY);
        to.write_all(&head).map_err(broken)?;
        for entry in fs::read_dir(path).map_err(at("list", path))? {
            let entry = entry.map_err(at("list", path))?;
            pack_entry(&entry.path(), &entry.file_name(), to, deeper)?;
        }
        to.write_all(&[END]).map_err(broken)
    } else if about.is_file() {
        meta(FILE);
        to.write_all(&head).map_err(broken)?;
        pack_content(path, to)
    } else {
        Ok(())
    }
}

fn pack_content(path: &Path, to: &mut impl Write) -> Result<(), Error> {
    let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW).open(path);
    let mut file = file.map_err(at("read", path))?;
    let mut buffer = vec![0; PIECE];
    loop {
        let n = match file.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            result => result.map_err(at("read", path))?,
        };
        to.write_all(&(n as u32).to_le_bytes()).map_err(broken)?;
        to.write_all(buffer.get(..n).unwrap_or_default()).map_err(broken)?;
        if n == 0 {
            return Ok(());
        }
    }
}

/// Makes what `from` brings: in `path` if that is a directory, else as `path` itself.
pub fn unpack(path: &Path, from: &mut impl Read) -> Result<(), Error> {
    let (directory, name) = match (fs::metadata(path).is_ok_and(|about| about.is_dir()), path.file_name()) {
        (true, _) => (path, None),
        (false, Some(name)) => (path.parent().unwrap_or(Path::new("/")), Some(name)),
        (false, None) => return Err(Error::new(format!("{}: no such directory", path.display()))),
    };
    let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let mut receiver = Receiver { from, stack: Vec::new() };
    let handle = open_directory(directory).map_err(at("write to", directory))?;
    receiver.stack.push(Level { handle, path: directory.into(), finish: None });
    receiver.entry(name)?;
    while receiver.stack.len() > 1 {
        receiver.entry(None)?;
    }
    match receiver.number::<u8>()? {
        DONE => Ok(()),
        _ => Err(nonsense()),
    }
}

fn open_directory(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(O_DIRECTORY).open(path)
}

struct Receiver<'a, R> {
    from: &'a mut R,
    stack: Vec<Level>,
}

/// A directory that is being filled.
struct Level {
    handle: File,
    /// For messages.
    path: PathBuf,
    /// What it gets when it is full; none: it was there before.
    finish: Option<Meta>,
}

#[derive(Clone, Copy)]
struct Meta {
    mode: u32,
    time: SystemTime,
}

impl Meta {
    /// For a file or directory that is open.
    fn apply(self, file: &File) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(self.mode & PERMISSIONS))?;
        file.set_times(FileTimes::new().set_modified(self.time))
    }
}

impl<R: Read> Receiver<'_, R> {
    fn exactly(&mut self, len: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = vec![0; len];
        self.from.read_exact(&mut bytes).map_err(broken)?;
        Ok(bytes)
    }

    fn number<T: Wire>(&mut self) -> Result<T, Error> {
        let bytes = self.exactly(size_of::<T>())?;
        T::get(&mut bytes.as_slice()).map_err(|_| nonsense())
    }

    fn text(&mut self) -> Result<OsString, Error> {
        let len = self.number::<u32>()? as usize;
        if len == 0 || len > NAME {
            return Err(nonsense());
        }
        Ok(OsStr::from_bytes(&self.exactly(len)?).into())
    }

    fn name(&mut self) -> Result<OsString, Error> {
        let name = self.text()?;
        let bytes = name.as_bytes();
        let bad = bytes == b"." || bytes == b".." || bytes.contains(&b'/') || bytes.contains(&0);
        if bad { Err(nonsense()) } else { Ok(name) }
    }

    fn meta(&mut self) -> Result<Meta, Error> {
        let (mode, seconds, nanos) = (self.number()?, self.number::<u64>()?.cast_signed(), self.number::<u32>()?);
        let whole = Duration::from_secs(seconds.unsigned_abs());
        let epoch = SystemTime::UNIX_EPOCH;
        let time = if seconds < 0 { epoch.checked_sub(whole) } else { epoch.checked_add(whole) };
        let time = time.and_then(|time| time.checked_add(Duration::from_nanos(nanos.into())));
        Ok(Meta { mode, time: time.ok_or_else(nonsense)? })
    }

    /// Takes one file or link, or the beginning or end of a directory; the first is called `top`, if that is given.
    fn entry(&mut self, top: Option<&OsStr>) -> Result<(), Error> {
        let kind: u8 = self.number()?;
        if kind == END {
            return self.leave();
        }
        let meta = if kind == LINK { None } else { Some(self.meta()?) };
        let sent = self.name()?;
        let name = top.map_or(sent, OsStr::to_os_string);
        let level = self.stack.last().ok_or_else(nonsense)?;
        // Resolved by the kernel from the open directory, whatever its path leads to by now.
        let place = PathBuf::from(format!("/proc/self/fd/{}", level.handle.as_raw_fd())).join(&name);
        let shown = level.path.join(&name);
        match (kind, meta) {
            (FILE, Some(meta)) => self.file(&place, &shown, meta)?,
            (DIRECTORY, Some(meta)) => self.enter(&place, shown, meta)?,
            (LINK, _) => {
                let target = self.text()?;
                replace(&place)
                    .and_then(|()| std::os::unix::fs::symlink(target, &place))
                    .map_err(at("make", &shown))?;
            }
            _ => return Err(nonsense()),
        }
        Ok(())
    }

    fn file(&mut self, place: &Path, shown: &Path, meta: Meta) -> Result<(), Error> {
        let create = || {
            replace(place)?;
            OpenOptions::new().write(true).create_new(true).mode(0o600).custom_flags(O_NOFOLLOW).open(place)
        };
        let mut file = create().map_err(at("make", shown))?;
        loop {
            let len = self.number::<u32>()? as usize;
            match len {
                0 => return meta.apply(&file).map_err(at("set the permissions of", shown)),
                1..=PIECE => file.write_all(&self.exactly(len)?).map_err(at("write", shown))?,
                _ => return Err(nonsense()),
            }
        }
    }

    fn enter(&mut self, place: &Path, shown: PathBuf, meta: Meta) -> Result<(), Error> {
        if self.stack.len() > DEPTH {
            return Err(nonsense());
        }
        let made = match DirBuilder::new().mode(0o700).create(place) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => false,
            result => result.map(|()| true).map_err(at("make", &shown))?,
        };
        let flags = O_DIRECTORY | O_NOFOLLOW;
        let handle = OpenOptions::new().read(true).custom_flags(flags).open(place).map_err(at("write to", &shown))?;
        self.stack.push(Level { handle, path: shown, finish: made.then_some(meta) });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), Error> {
        let level = self.stack.pop().filter(|_| !self.stack.is_empty()).ok_or_else(nonsense)?;
        match level.finish {
            Some(meta) => meta.apply(&level.handle).map_err(at("set the permissions of", &level.path)),
            None => Ok(()),
        }
    }
}

/// Makes room for a file or link of this name.
fn replace(place: &Path) -> io::Result<()> {
    match fs::remove_file(place) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
