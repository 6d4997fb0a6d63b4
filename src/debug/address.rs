//! Where gdb is awaited.

use std::io;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::host::socket::Listening;
use crate::spec::DebugAddress;

/// A socket that gdb connects to.
#[derive(Debug)]
pub(super) enum Listener {
    /// Of this host alone.
    Tcp(TcpListener),
    /// Of this user alone.
    Unix(Listening),
}

impl Listener {
    /// Listens at `address`.
    pub(super) fn new(address: &DebugAddress) -> io::Result<Self> {
        match address {
            DebugAddress::Port(port) => {
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, *port))?;
                listener.set_nonblocking(true)?;
                Ok(Self::Tcp(listener))
            }
            DebugAddress::Unix(path) => Listening::new(path).map(Self::Unix),
        }
    }

    /// What gdb connects to with `target remote`.
    pub(super) fn name(&self, address: &DebugAddress) -> String {
        match self {
            Self::Tcp(listener) => listener.local_addr().map_or_else(|_| address.to_string(), |at| at.to_string()),
            Self::Unix(_) => address.to_string().trim_start_matches("unix:").into(),
        }
    }

    /// Who has connected, as a stream that does not block; none if nobody has.
    pub(super) fn accept(&self) -> Option<OwnedFd> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().ok()?;
                stream.set_nonblocking(true).and_then(|()| stream.set_nodelay(true)).ok()?;
                Some(stream.into())
            }
            Self::Unix(listener) => listener.accept(),
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}
