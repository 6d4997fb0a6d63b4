//! The connection to the host: frames in, frames out, neither ever waited for.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::protocol::frame::{MAGIC, put_data};
use crate::protocol::{Decoder, Frame, Message, Stream, TO_GUEST};
use crate::sys::{self, PollFd};

/// Bytes that wait to be sent before output of commands is left in its pipes.
const ENOUGH: usize = 256 << 10;
/// Read at once.
const BUFFER: usize = 64 << 10;
/// How long the last words may take.
const LAST: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Link {
    file: File,
    decoder: Decoder,
    /// What is to be sent, and how much of it was.
    out: Vec<u8>,
    sent: usize,
    buffer: Vec<u8>,
}

impl Link {
    /// Begins to speak. Nothing is sent before the next [`Self::flush`].
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        sys::set_nonblocking(&fd)?;
        let decoder = Decoder::new(TO_GUEST);
        Ok(Self { file: fd.into(), decoder, out: MAGIC.to_vec(), sent: 0, buffer: vec![0; BUFFER] })
    }

    /// Queues a message.
    pub fn say(&mut self, session: u32, message: Message) {
        Frame::new(session, message).put(&mut self.out);
    }

    /// Queues output.
    pub fn say_data(&mut self, session: u32, stream: Stream, bytes: &[u8]) {
        put_data(session, stream, bytes, &mut self.out);
    }

    /// Whether output of commands can wait where it is.
    pub fn is_full(&self) -> bool {
        self.out.len() - self.sent >= ENOUGH
    }

    /// For the wait: input, and room for output if there is any.
    pub fn poll(&self) -> PollFd {
        PollFd::new(&self.file, if self.out.is_empty() { sys::IN } else { sys::IN | sys::OUT })
    }

    /// Sends what the host takes now.
    pub fn flush(&mut self) -> io::Result<()> {
        while let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => self.sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out.clear();
        self.sent = 0;
        Ok(())
    }

    /// Reads what there is, once.
    pub fn fill(&mut self) -> io::Result<()> {
        match self.file.read(&mut self.buffer) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                self.decoder.push(self.buffer.get(..n).unwrap_or_default());
                Ok(())
            }
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// The next message that was read.
    pub fn next(&mut self) -> io::Result<Option<Frame>> {
        self.decoder.next_frame().map_err(io::Error::other)
    }

    /// Sends the last words, waiting for the host for a few seconds.
    pub fn finish(&mut self) {
        let end = std::time::Instant::now() + LAST;
        while self.flush().is_ok() && !self.out.is_empty() {
            let left = end.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() || sys::wait(&mut [PollFd::new(&self.file, sys::OUT)], Some(left)).is_err() {
                return;
            }
        }
    }
}
