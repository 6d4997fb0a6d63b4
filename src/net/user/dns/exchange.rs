//! One question to one resolver of the host's, by UDP or by TCP (RFC 7766).

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with};

/// Longest message: its length is two bytes.
pub(super) const MAX_MESSAGE: usize = 65535;

pub(super) struct Exchange {
    socket: OwnedFd,
    stream: bool,
    /// What is still to be sent, with its length before it on a stream.
    output: Vec<u8>,
    input: Vec<u8>,
}

/// How far an exchange is.
pub(super) enum Progress {
    Waiting,
    /// A message, which may not be the answer.
    Message(Vec<u8>),
    Failed,
}

impl Exchange {
    /// Sends `message` to `resolver`.
    pub(super) fn new(resolver: SocketAddr, message: &[u8], stream: bool) -> Result<Self, Errno> {
        let family = if resolver.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let kind = if stream { SocketType::STREAM } else { SocketType::DGRAM };
        let socket = socket_with(family, kind, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC, None)?;
        match connect(&socket, &resolver) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let output = if stream { framed(message) } else { message.to_vec() };
        Ok(Self { socket, stream, output, input: Vec::new() })
    }

    pub(super) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Does what can be done without waiting.
    pub(super) fn advance(&mut self) -> Progress {
        match self.write().and_then(|()| self.read()) {
            Ok(Some(message)) => Progress::Message(message),
            Ok(None) | Err(Errno::AGAIN | Errno::NOTCONN) => Progress::Waiting,
            Err(_) => Progress::Failed,
        }
    }

    fn write(&mut self) -> Result<(), Errno> {
        while !self.output.is_empty() {
            match send(&self.socket, &self.output, SendFlags::NOSIGNAL) {
                Ok(len) => drop(self.output.drain(..len.min(self.output.len()))),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self) -> Result<Option<Vec<u8>>, Errno> {
        let mut room = vec![0; MAX_MESSAGE];
        loop {
            let len = match recv(&self.socket, room.as_mut_slice(), RecvFlags::empty()) {
                Ok((len, _)) => len,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            };
            let bytes = room.get(..len).unwrap_or_default();
            if !self.stream {
                return Ok(Some(bytes.to_vec()));
            }
            if len == 0 {
                return Err(Errno::CONNRESET);
            }
            self.input.extend(bytes);
            if let Some(message) = unframe(&mut self.input) {
                return Ok(Some(message));
            }
        }
    }
}

/// A message as it stands on a stream.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let message = message.get(..MAX_MESSAGE).unwrap_or(message);
    let mut bytes = (message.len() as u16).to_be_bytes().to_vec();
    bytes.extend(message);
    bytes
}

/// Takes the first message off a stream, if it is there as a whole.
pub(super) fn unframe(stream: &mut Vec<u8>) -> Option<Vec<u8>> {
    let len = usize::from(u16::from_be_bytes(*stream.first_chunk()?));
    let message = stream.get(2..2 + len)?.to_vec();
    stream.drain(..2 + len);
    Some(message)
}
