//! A listening UNIX stream socket at a path, for one client at a time. Used by `host::stream`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect, listen, socket_with,
};

/// Clients that may wait in line.
const BACKLOG: i32 = 4;

/// The socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct Listening {
    fd: OwnedFd,
    path: PathBuf,
    /// Device and inode, so that somebody else's file of that name stays.
    identity: Option<(u64, u64)>,
}

impl Listening {
    /// Listens at `path`, for the owner only. A socket file that nobody listens on any more is replaced.
    pub fn new(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path).map_err(|_| {
            io::Error::other("the path is too long for a socket (at most 107 bytes); use a shorter or a relative one")
        })?;
        let fd = stream_socket()?;
        // The file gets the mode of the socket's inode: no moment at which others may connect.
        rustix::fs::fchmod(&fd, Mode::RUSR | Mode::WUSR)?;
        match bind(&fd, &address) {
            Err(Errno::ADDRINUSE) => {
                remove_stale(path, &address)?;
                bind(&fd, &address)?;
            }
            other => other?,
        }
        let identity = std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()));
        let listening = Self { fd, path: path.into(), identity };
        listen(&listening.fd, BACKLOG)?;
        Ok(listening)
    }

    /// The next client, non-blocking; none if nobody waits.
    pub fn accept(&self) -> Option<OwnedFd> {
        accept_with(&self.fd, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC).ok()
    }
}

impl AsRawFd for Listening {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let now = std::fs::symlink_metadata(&self.path).ok().map(|m| (m.dev(), m.ino()));
        if now.is_some() && now == self.identity {
            // Somebody may have removed it just now, which is as well.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn stream_socket() -> io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

fn remove_stale(path: &Path, address: &SocketAddrUnix) -> io::Result<()> {
    if !std::fs::symlink_metadata(path)?.file_type().is_socket() {
        return Err(io::Error::other(
            "there is a file of that name, and it is not a socket; remove it or name another",
        ));
    }
    match connect(stream_socket()?, address) {
        Err(Errno::CONNREFUSED) => std::fs::remove_file(path),
        _ => Err(io::Error::other("somebody already listens there; name another path or end the other program")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn the_file_is_private_and_goes_with_the_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let socket = Listening::new(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(socket.accept().is_none());
        let _client = UnixStream::connect(&path).unwrap();
        assert!(socket.accept().is_some());
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn stale_sockets_are_replaced_and_live_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let live = UnixListener::bind(&path).unwrap();
        assert!(Listening::new(&path).unwrap_err().to_string().contains("already listens"));
        drop(live);
        let socket = Listening::new(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(socket);
        assert!(path.exists(), "somebody else's file stays");
        assert!(Listening::new(&path).unwrap_err().to_string().contains("not a socket"));
        let long = dir.path().join("x".repeat(120));
        assert!(Listening::new(&long).unwrap_err().to_string().contains("too long"));
    }
}
