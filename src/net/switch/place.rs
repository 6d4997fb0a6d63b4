//! Where the members of a switch meet: a directory with a socket of each.
//!
//! A new member connects to all that are there; the directory is locked meanwhile, so that of two that come at the same
//! time one is the first, and each two are connected once. Only the user's own programs get into the directory.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with, sockopt,
};

/// Longest name: the path of a socket has at most 107 bytes.
const NAME_MAX: usize = 32;
/// Wish for what may wait in a socket, in bytes. The host gives as much as `net.core.wmem_max` allows.
const SEND_BUFFER: usize = 1 << 20;

/// A switch cannot be joined.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("cannot make the directory {}: {reason}", path.display())]
    Directory { path: PathBuf, reason: io::Error },
    #[error("{} is not a directory that only you can use; remove it, or set XDG_RUNTIME_DIR to one of yours", .0.display())]
    NotOurs(PathBuf),
    #[error("the path {} is too long for a socket (at most 107 bytes); use a shorter name or XDG_RUNTIME_DIR", .0.display())]
    TooLong(PathBuf),
    #[error("it has {0} members already, more are not possible; use another switch for some of the machines")]
    Full(usize),
    #[error("cannot set up a socket: {0}")]
    Socket(io::Error),
}

/// Why `name` cannot be the name of a switch, if so.
pub fn check_name(name: &str) -> Result<(), String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match !name.is_empty() && name.len() <= NAME_MAX && name.chars().all(good) && !name.starts_with('.') {
        true => Ok(()),
        false => Err(format!("`{name}`: give a name of at most {NAME_MAX} letters, digits, -, _ and .")),
    }
}

/// The directory of the switch called `name`, made if it is not there.
pub(super) fn directory(name: &str) -> Result<PathBuf, Error> {
    let user = rustix::process::getuid().as_raw();
    let base = match std::env::var_os("XDG_RUNTIME_DIR").filter(|path| Path::new(path).is_absolute()) {
        Some(runtime) => PathBuf::from(runtime).join("belljar-switch"),
        None => std::env::temp_dir().join(format!("belljar-switch-{user}")),
    };
    let directory = base.join(name);
    for path in [&base, &directory] {
        match DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::Directory { path: path.clone(), reason: e });
            }
            _ => {}
        }
        // In a directory of all users it may be somebody else's.
        let ours = fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && m.uid() == user && m.mode() & 0o077 == 0);
        if !ours {
            return Err(Error::NotOurs(path.clone()));
        }
    }
    Ok(directory)
}

/// A member's own socket in the directory. Dropping it takes it away.
#[derive(Debug)]
pub(super) struct Membership {
    listening: OwnedFd,
    path: PathBuf,
}

impl Membership {
    /// A new member, and its connections to all others, of which there may be fewer than `most`.
    pub(super) fn new(directory: &Path, most: usize) -> Result<(Self, Vec<OwnedFd>), Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let lock = File::open(directory).map_err(Error::Socket)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|e| Error::Socket(e.into()))?;
        let others = connect_all(directory)?;
        if others.len() >= most {
            return Err(Error::Full(others.len() + 1));
        }
        let listening = socket()?;
        loop {
            let path = directory.join(format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
            let address = SocketAddrUnix::new(&path).map_err(|_| Error::TooLong(path.clone()))?;
            match bind(&listening, &address).and_then(|()| listen(&listening, most as i32)) {
                // A process of another container may have our number; there are only so many members.
                Err(Errno::ADDRINUSE) => {}
                bound => {
                    bound.map_err(|e| Error::Socket(e.into()))?;
                    return Ok((Self { listening, path }, others));
                }
            }
        }
    }

    /// The next new member.
    pub(super) fn accept(&self) -> io::Result<OwnedFd> {
        let member = accept_with(&self.listening, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC)?;
        enlarge(&member);
        Ok(member)
    }
}

impl AsRawFd for Membership {
    fn as_raw_fd(&self) -> RawFd {
        self.listening.as_raw_fd()
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        // If it is gone already, so much the better.
        let _ = fs::remove_file(&self.path);
    }
}

/// Connects to each socket in `directory`. Those that nobody listens on any more are removed.
fn connect_all(directory: &Path) -> Result<Vec<OwnedFd>, Error> {
    let mut members = Vec::new();
    for entry in fs::read_dir(directory).map_err(Error::Socket)?.flatten() {
        let path = entry.path();
        let address = SocketAddrUnix::new(&path).map_err(|_| Error::TooLong(path.clone()))?;
        let member = socket()?;
        match connect(&member, &address) {
            Ok(()) => {
                enlarge(&member);
                members.push(member);
            }
            Err(Errno::CONNREFUSED) => drop(fs::remove_file(&path)),
            Err(e) => tracing::warn!("switch: {} cannot be reached: {e}", path.display()),
        }
    }
    Ok(members)
}

fn socket() -> Result<OwnedFd, Error> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).map_err(|e| Error::Socket(e.into()))
}

fn enlarge(socket: &OwnedFd) {
    if let Err(e) = sockopt::set_socket_send_buffer_size(socket, SEND_BUFFER) {
        tracing::debug!("switch: a socket keeps its size: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        for good in ["lan", "a.b-c_9", &"x".repeat(NAME_MAX)] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", ".lan", "a/b", "a b", "ä", &"x".repeat(NAME_MAX + 1)] {
            assert!(check_name(bad).unwrap_err().contains("give a name"), "{bad}");
        }
    }
}
