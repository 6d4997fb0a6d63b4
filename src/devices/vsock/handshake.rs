//! How a program of the host says which port of the guest it wants: `CONNECT <port>\n`, in decimal.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

/// Longest line, more than `CONNECT 4294967295\r\n`.
const MAX_LINE: usize = 32;

/// A program that has not yet said what it wants.
#[derive(Debug)]
pub(super) struct Handshake {
    stream: OwnedFd,
    line: Vec<u8>,
    /// Until when it has time to.
    pub deadline: Instant,
}

/// How far it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The line is not complete.
    More,
    /// It wants this port.
    Port(u32),
    /// It says something else, or is gone.
    Wrong,
}

impl Handshake {
    pub(super) fn new(stream: OwnedFd, deadline: Instant) -> Self {
        Self { stream, line: Vec::new(), deadline }
    }

    pub(super) fn stream(&self) -> &OwnedFd {
        &self.stream
    }

    pub(super) fn into_stream(self) -> OwnedFd {
        self.stream
    }

    /// Reads on, but nothing of what follows the line: that is for the guest.
    pub(super) fn advance(&mut self) -> Progress {
        let mut bytes = [0; MAX_LINE];
        let room = bytes.get_mut(..MAX_LINE - self.line.len()).unwrap_or_default();
        let count = match recv(&self.stream, &mut *room, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
            Ok((count, _)) if count > 0 => count,
            Err(Errno::AGAIN | Errno::INTR) => return Progress::More,
            _ => return Progress::Wrong,
        };
        let seen = room.get(..count).unwrap_or_default();
        let end = seen.iter().position(|&byte| byte == b'\n');
        let take = end.map_or(count, |end| end + 1);
        let Some(room) = room.get_mut(..take) else { return Progress::Wrong };
        if !matches!(recv(&self.stream, &mut *room, RecvFlags::DONTWAIT), Ok((n, _)) if n == take) {
            return Progress::Wrong;
        }
        self.line.extend_from_slice(room);
        match end {
            Some(_) => parse(&self.line).map_or(Progress::Wrong, Progress::Port),
            None if self.line.len() == MAX_LINE => Progress::Wrong,
            None => Progress::More,
        }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let mut words = std::str::from_utf8(line).ok()?.split_ascii_whitespace();
    let port = (words.next()?.eq_ignore_ascii_case("connect")).then(|| words.next())??;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    port.parse().ok().filter(|_| digits && words.next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    #[test]
    fn the_line_is_read_in_pieces_and_nothing_after_it() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut reader = ours.try_clone().unwrap();
        let mut handshake = Handshake::new(ours.into(), Instant::now());
        assert_eq!(handshake.advance(), Progress::More);
        for piece in ["CON", "NECT 10", "24"] {
            theirs.write_all(piece.as_bytes()).unwrap();
            assert_eq!(handshake.advance(), Progress::More);
            assert_eq!(handshake.advance(), Progress::More, "what was read does not wake again");
        }
        theirs.write_all(b"\nfor the guest").unwrap();
        assert_eq!(handshake.advance(), Progress::Port(1024));
        let mut rest = [0; 13];
        reader.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"for the guest");
    }

    #[test]
    fn anything_else_is_wrong() {
        assert_eq!(parse(b"connect 5\r\n"), Some(5));
        for bad in
            ["CONNECT\n", "CONNECT 4294967296\n", "CONNECT -1\n", "CONNECT +1\n", "CONNECT 1 2\n", "GET / 1\n", "\n"]
        {
            assert_eq!(parse(bad.as_bytes()), None, "{bad:?}");
        }
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut handshake = Handshake::new(ours.into(), Instant::now());
        theirs.write_all(&[b'x'; 100]).unwrap();
        assert_eq!(handshake.advance(), Progress::Wrong, "no end of line in sight");
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert_eq!(Handshake::new(ours.into(), Instant::now()).advance(), Progress::Wrong);
    }
}
