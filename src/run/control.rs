//! How other commands of the user reach a running machine: a UNIX socket in its directory, on which the process that runs
//! it speaks the messages of the agent's protocol. Streams are not carried by messages here: a client passes its own
//! descriptors with [`Message::Exec`], stdin (if there is input), stdout, and stderr (if there is no terminal).
//!
//! ```text
//!   client                                     the machine's process
//!     Exec, with descriptors  ------------>      starts it in the guest
//!     Signal, Resize          ------------>
//!     Dump, with a descriptor ------------>      writes a core dump of the machine there
//!                             <------------    Started, Ended
//!     Shutdown                ------------>      the guest powers off; the second time the machine ends at once
//!                             <------------    Failed: why that cannot be
//! ```

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};

use crate::agent::protocol::frame::MAGIC;
use crate::agent::protocol::{Decoder, Frame, Message, TO_GUEST};

/// Most descriptors that come at once: stdin, stdout, stderr.
const DESCRIPTORS: usize = 3;

/// One end of such a connection.
#[derive(Debug)]
pub(super) struct Line {
    stream: UnixStream,
    decoder: Decoder,
    begun: bool,
    /// Descriptors that came and were not taken yet.
    descriptors: VecDeque<OwnedFd>,
}

impl Line {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self { stream, decoder: Decoder::new(TO_GUEST), begun: false, descriptors: VecDeque::new() }
    }

    /// Sends a message, with descriptors. Waits while the other side reads nothing.
    pub(super) fn send(&mut self, message: Message, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let mut bytes = if self.begun { Vec::new() } else { MAGIC.to_vec() };
        self.begun = true;
        Frame::new(0, message).put(&mut bytes);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let sent = sendmsg(&self.stream, &[IoSlice::new(rest)], &mut ancillary, SendFlags::NOSIGNAL)?;
            // They went with the first bytes.
            ancillary.clear();
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// The next message; none when the other side is gone.
    pub(super) fn receive(&mut self) -> io::Result<Option<Message>> {
        loop {
            if let Some(message) = self.received()? {
                return Ok(Some(message));
            }
            let mut buffer = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let flags = RecvFlags::CMSG_CLOEXEC;
            let got = match recvmsg(&self.stream, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, flags) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?.bytes,
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    self.descriptors.extend(descriptors);
                    self.descriptors.truncate(DESCRIPTORS);
                }
            }
            if got == 0 {
                return Ok(None);
            }
            self.decoder.push(buffer.get(..got).unwrap_or_default());
        }
    }

    /// The next message of those that came with an earlier one.
    pub(super) fn received(&mut self) -> io::Result<Option<Message>> {
        let frame = self.decoder.next_frame().map_err(io::Error::other)?;
        Ok(frame.map(|frame| frame.message))
    }

    /// The next descriptor that came.
    pub(super) fn descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Exec;
    use std::io::{Read, Write};

    #[test]
    fn descriptors_come_with_their_message() {
        let (here, there) = UnixStream::pair().unwrap();
        let (mut here, mut there) = (Line::new(here), Line::new(there));
        let (mut reader, writer) = io::pipe().unwrap();
        let exec = Exec { env: vec![("LONG".into(), "x".repeat(200_000).into())], ..Exec::new(["true"]) };
        let sent = exec.clone();
        let sender = std::thread::spawn(move || {
            here.send(Message::Exec(sent), &[writer.as_fd()]).unwrap();
            drop(writer);
            here.send(Message::Signal { number: 15 }, &[]).unwrap();
        });
        assert_eq!(there.receive().unwrap(), Some(Message::Exec(exec)));
        assert_eq!(there.receive().unwrap(), Some(Message::Signal { number: 15 }));
        sender.join().unwrap();
        assert_eq!(there.receive().unwrap(), None);
        std::fs::File::from(there.descriptor().unwrap()).write_all(b"through").unwrap();
        assert!(there.descriptor().is_none());
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "through");
    }
}
