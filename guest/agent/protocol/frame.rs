//! Messages in a stream of bytes: length of the payload (32 bits), session (32 bits), kind (8 bits), payload. A stream
//! begins with [`MAGIC`]; what a line sent before it (a serial port that a driver has tried out) is skipped.

use super::message::{Message, Stream};
use super::wire::{Malformed, Wire, bytes};

/// The first bytes from each side.
pub const MAGIC: [u8; 8] = *b"\0bljr\x01\r\n";
/// Bytes before it that are forgiven.
const NOISE: usize = 4 << 10;
/// Bytes of a head.
const HEAD: usize = 9;

/// A message and the session it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// 0: the machine; else a command.
    pub session: u32,
    /// The message.
    pub message: Message,
}

impl Frame {
    /// Puts them together.
    pub fn new(session: u32, message: Message) -> Self {
        Self { session, message }
    }

    /// Appends the frame's bytes.
    pub fn put(&self, to: &mut Vec<u8>) {
        let start = begin(self.session, self.message.kind(), to);
        self.message.put(to);
        finish(start, to);
    }
}

/// Appends a [`Message::Data`] without a copy in between.
pub fn put_data(session: u32, stream: Stream, data: &[u8], to: &mut Vec<u8>) {
    let kind = Message::Data { stream, bytes: Vec::new() }.kind();
    let start = begin(session, kind, to);
    stream.put(to);
    to.extend_from_slice(data);
    finish(start, to);
}

fn begin(session: u32, kind: u8, to: &mut Vec<u8>) -> usize {
    let start = to.len();
    0u32.put(to);
    session.put(to);
    kind.put(to);
    start
}

fn finish(start: usize, to: &mut [u8]) {
    let len = to.len().saturating_sub(start + HEAD);
    if let Some(head) = to.get_mut(start..).and_then(|frame| frame.first_chunk_mut()) {
        *head = u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes();
    }
}

/// Finds the frames in bytes as they come.
#[derive(Debug)]
pub struct Decoder {
    limit: usize,
    buffer: Vec<u8>,
    /// Bytes of the buffer that are done with.
    done: usize,
    /// Whether the magic was seen.
    begun: bool,
}

impl Decoder {
    /// For frames with at most `limit` bytes of payload.
    pub fn new(limit: usize) -> Self {
        Self { limit, buffer: Vec::new(), done: 0, begun: false }
    }

    /// Adds bytes. Holds at most a frame more than what is added at once, if [`Self::next_frame`] is called until it has none.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.done.min(self.buffer.len()));
        self.done = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame. Messages that are not known are passed over. After an error the stream means nothing.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, Malformed> {
        if !self.begin()? {
            return Ok(None);
        }
        loop {
            let mut rest = self.buffer.get(self.done..).unwrap_or_default();
            if rest.len() < HEAD {
                return Ok(None);
            }
            let (len, session, kind) = (u32::get(&mut rest)? as usize, u32::get(&mut rest)?, u8::get(&mut rest)?);
            if len > self.limit {
                return Err(Malformed);
            }
            let Ok(payload) = bytes(&mut rest, len) else { return Ok(None) };
            let message = Message::get(kind, payload)?;
            self.done += HEAD + len;
            if let Some(message) = message {
                return Ok(Some(Frame { session, message }));
            }
        }
    }

    /// Looks for the magic.
    fn begin(&mut self) -> Result<bool, Malformed> {
        if self.begun {
            return Ok(true);
        }
        match self.buffer.windows(MAGIC.len()).position(|window| window == MAGIC) {
            Some(at) if at <= NOISE => {
                self.done = at + MAGIC.len();
                self.begun = true;
                Ok(true)
            }
            None if self.buffer.len() < NOISE + MAGIC.len() => Ok(false),
            _ => Err(Malformed),
        }
    }
}
