//! Where a guest's characters go to and come from: the text on the command line, and the host's file behind it.
//!
//! Writes never block whoever makes them (often a vCPU thread): a [`Sink`] says [`io::ErrorKind::WouldBlock`] instead.
//! `host::stream` adds buffers and the event loop.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::net::SendFlags;
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, ptsname, unlockpt};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

/// A place for characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Nowhere.
    Null,
    /// Standard input and output.
    Stdio,
    /// Standard error; only output.
    Stderr,
    /// A file; only output.
    File(PathBuf),
    /// A new pseudo-terminal.
    Pty,
    /// A UNIX stream socket that listens at this path.
    Socket(PathBuf),
}

/// What [`Target`] looks like on the command line.
pub const TARGETS: &str = "stdio|stderr|file=PATH|pty|socket=PATH|null";

/// A text that names no place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a place for characters; say {TARGETS}")]
pub struct TargetError(String);

impl FromStr for Target {
    type Err = TargetError;

    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.split_once('=') {
            None if text == "stdio" => Ok(Self::Stdio),
            None if text == "stderr" => Ok(Self::Stderr),
            None if text == "pty" => Ok(Self::Pty),
            None if text == "null" => Ok(Self::Null),
            Some(("file", path)) if !path.is_empty() => Ok(Self::File(path.into())),
            Some(("socket", path)) if !path.is_empty() => Ok(Self::Socket(path.into())),
            _ => Err(TargetError(text.into())),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Stdio => f.write_str("stdio"),
            Self::Stderr => f.write_str("stderr"),
            Self::File(path) => write!(f, "file={}", path.display()),
            Self::Pty => f.write_str("pty"),
            Self::Socket(path) => write!(f, "socket={}", path.display()),
        }
    }
}

impl Target {
    /// Whether somebody at the other end connects and writes when he likes.
    pub fn is_live(&self) -> bool {
        matches!(self, Self::Pty | Self::Socket(_))
    }
}

/// The output side of a place.
#[derive(Debug)]
pub struct Sink {
    fd: OwnedFd,
    how: How,
}

/// How a write is kept from blocking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    /// The descriptor is non-blocking, or a regular file.
    Plain,
    /// A socket whose flags belong to somebody else: asked at each write.
    Socket,
    /// Flags belong to somebody else and there is no way around: small writes, after asking whether there is room.
    Polled,
}

/// Bytes that a pipe or terminal takes when it says that it is writable; a pipe takes a page, a terminal less.
const POLLED_WRITE: usize = 256;

impl Sink {
    /// Standard output.
    pub fn stdout() -> io::Result<Self> {
        Self::shared(rustix::stdio::stdout())
    }

    /// Standard error.
    pub fn stderr() -> io::Result<Self> {
        Self::shared(rustix::stdio::stderr())
    }

    /// A descriptor whose flags are shared with other programs (the shell, the rest of a pipeline), so they are not
    /// changed: a second open file of the same pipe or terminal is made non-blocking.
    fn shared(theirs: BorrowedFd<'_>) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(theirs)?.st_mode);
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let how = match kind {
            FileType::RegularFile | FileType::BlockDevice => How::Plain,
            FileType::Socket => How::Socket,
            _ => match rustix::fs::open(format!("/proc/self/fd/{}", theirs.as_raw_fd()), flags, Mode::empty()) {
                Ok(fd) => return Ok(Self { fd, how: How::Plain }),
                // No /proc, a terminal of another user, a pipe whose reader is gone.
                Err(_) => How::Polled,
            },
        };
        Ok(Self { fd: rustix::io::fcntl_dupfd_cloexec(theirs, 0)?, how })
    }

    /// A file, made or emptied.
    pub fn file(path: &Path) -> io::Result<Self> {
        Ok(Self { fd: create(path)?.into(), how: How::Plain })
    }

    /// A descriptor that is already non-blocking.
    pub fn nonblocking(fd: OwnedFd) -> Self {
        Self { fd, how: How::Plain }
    }

    /// Writes some of `bytes`, at once or not at all ([`io::ErrorKind::WouldBlock`]).
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.how {
            How::Plain => Ok(rustix::io::write(&self.fd, bytes)?),
            How::Socket => Ok(rustix::net::send(&self.fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?),
            How::Polled if self.wait(Timespec { tv_sec: 0, tv_nsec: 0 }) => {
                Ok(rustix::io::write(&self.fd, bytes.get(..POLLED_WRITE).unwrap_or(bytes))?)
            }
            How::Polled => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Waits until a write is possible (or fails at once); false if the time is over.
    pub fn wait(&self, time: Timespec) -> bool {
        poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], Some(&time)).is_ok_and(|ready| ready > 0)
    }
}

impl AsRawFd for Sink {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

/// Makes or empties a file for output. Opening never blocks, and what it gives does not block either if it is a pipe.
pub fn create(path: &Path) -> io::Result<File> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened =
        OpenOptions::new().write(true).create(true).truncate(true).custom_flags(flags.bits().cast_signed()).open(path);
    opened.map_err(|e| match rustix::io::Errno::from_io_error(&e) {
        Some(rustix::io::Errno::NXIO) => io::Error::other("nobody reads this pipe yet; start its reader first"),
        _ => e,
    })
}

/// Standard input, and whether it is a terminal.
pub fn stdin() -> io::Result<(OwnedFd, bool)> {
    let fd = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 0)?;
    let terminal = fd.is_terminal();
    Ok((fd, terminal))
}

/// A new pseudo-terminal.
#[derive(Debug)]
pub struct Pty {
    /// Our side, non-blocking.
    pub ours: OwnedFd,
    /// The other side, kept open so that ours does not hang up whenever its user leaves.
    pub theirs: OwnedFd,
    /// Where its user finds it.
    pub path: PathBuf,
}

impl Pty {
    /// Makes one. Its line discipline is off, or else it would echo the guest's output back as input.
    pub fn open() -> io::Result<Self> {
        use std::os::unix::ffi::OsStringExt;
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&ours)?;
        unlockpt(&ours)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        let mut modes = tcgetattr(theirs.as_fd())?;
        modes.make_raw();
        tcsetattr(&theirs, OptionalActions::Now, &modes)?;
        let path = std::ffi::OsString::from_vec(ptsname(&ours, Vec::new())?.into_bytes()).into();
        Ok(Self { ours, theirs, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn targets_are_read_and_printed_alike() {
        for text in ["stdio", "stderr", "pty", "null", "file=/tmp/a=b", "socket=relative.sock"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in ["", "file", "file=", "socket=", "tty=/dev/ttyS0", "STDIO", "stdio=1"] {
            let error = text.parse::<Target>().unwrap_err().to_string();
            assert!(error.contains("stdio|stderr|file=PATH"), "{error}");
        }
    }

    #[test]
    fn files_are_emptied_and_directories_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        std::fs::write(&path, "a long old content").unwrap();
        assert_eq!(Sink::file(&path).unwrap().write(b"new").unwrap(), 3);
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert!(Sink::file(dir.path()).unwrap_err().to_string().contains("directory"));
    }

    #[test]
    fn a_pipe_without_reader_is_refused_and_a_full_one_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, Mode::RUSR | Mode::WUSR).unwrap();
        assert!(Sink::file(&path).unwrap_err().to_string().contains("start its reader"));
        let _reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
        for how in [How::Plain, How::Polled] {
            let sink = Sink { how, ..Sink::file(&path).unwrap() };
            let full = std::iter::repeat_with(|| sink.write(&[b'x'; 5000])).take(10_000).find_map(Result::err);
            assert_eq!(full.unwrap().kind(), io::ErrorKind::WouldBlock);
            assert!(!sink.wait(Timespec { tv_sec: 0, tv_nsec: 1 }));
        }
    }

    #[test]
    fn a_pty_carries_bytes_unchanged_both_ways() {
        let pty = Pty::open().unwrap();
        assert!(pty.path.starts_with("/dev/pts/"));
        let mut user = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(&pty.path).unwrap();
        let mut ours = File::from(pty.ours.try_clone().unwrap());
        ours.write_all(b"\x03\r\n").unwrap();
        let mut seen = [0; 3];
        user.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"\x03\r\n");
        user.write_all(b"\x04\r").unwrap();
        ours.read_exact(&mut seen[..2]).unwrap();
        assert_eq!(&seen[..2], b"\x04\r");
        drop(user);
        assert_eq!(ours.read(&mut seen).unwrap_err().kind(), io::ErrorKind::WouldBlock, "no hang-up, no echo");
    }
}
