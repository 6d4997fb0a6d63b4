//! Characters through a pair of virtio queues: what the console and named ports share (virtio 1.3, section 5.3.6).
//! Used by their handlers on the event loop.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vmm_sys_util::eventfd::EventFd;

use crate::host::stream::{Claim, Listener};
use crate::virtio::queue::VirtQueue;
use crate::virtio::{Broken, Chain};

/// Bytes moved at once. They are copied on the way, because the log and the watchers see them too, and a guest could
/// change them between two looks.
const PIECE: usize = 4 << 10;

/// Wakes a handler when its stream has something to say.
#[derive(Debug)]
pub struct Wake {
    fd: EventFd,
    resized: AtomicBool,
}

impl Wake {
    /// One for a handler.
    pub fn new() -> io::Result<Arc<Self>> {
        let fd = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(Arc::new(Self { fd, resized: AtomicBool::new(false) }))
    }

    /// The handler woke up. True if the window may have another size.
    pub fn heard(&self) -> bool {
        // Nothing to read: somebody heard it already.
        let _ = self.fd.read();
        self.resized.swap(false, Ordering::AcqRel)
    }

    fn ring(&self) {
        // A full counter means that it already rings.
        let _ = self.fd.write(1);
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Listener for Wake {
    fn ready(&self) {
        self.ring();
    }

    fn resized(&self) {
        self.resized.store(true, Ordering::Release);
        self.ring();
    }
}

/// Requests under way: at most one each way.
#[derive(Debug, Default)]
pub struct CharacterQueues {
    /// A buffer for input that has not come yet.
    receiving: Option<Chain>,
    /// Output that was not taken whole.
    sending: Option<Chain>,
}

impl CharacterQueues {
    /// Moves waiting input to the driver's buffers.
    pub fn receive(&mut self, input: &Claim, queue: &mut VirtQueue) -> Result<(), Broken> {
        let mut piece = [0; PIECE];
        loop {
            let Some(mut chain) = self.receiving.take().map_or_else(|| queue.pop(), |chain| Ok(Some(chain)))? else {
                return Ok(());
            };
            if chain.writable_len() == 0 {
                return Err(Broken("a buffer for input has no room".into()));
            }
            let count = input.take(piece.get_mut(..chain.writable_len().min(PIECE)).unwrap_or_default());
            if count == 0 {
                self.receiving = Some(chain);
                return Ok(());
            }
            chain.write(piece.get(..count).unwrap_or_default());
            let written = chain.written();
            queue.push(chain, written)?;
        }
    }

    /// Moves the driver's output to `write`, which says how many bytes it took. False if it did not take all: then it
    /// goes on with the next call.
    pub fn send(&mut self, mut write: impl FnMut(&[u8]) -> usize, queue: &mut VirtQueue) -> Result<bool, Broken> {
        let mut piece = [0; PIECE];
        loop {
            let Some(mut chain) = self.sending.take().map_or_else(|| queue.pop(), |chain| Ok(Some(chain)))? else {
                return Ok(true);
            };
            while let Some(buf) = chain.readable().first() {
                let count = buf.copy_to(&mut piece);
                let taken = write(piece.get(..count).unwrap_or_default());
                chain.skip_readable(taken);
                if taken < count {
                    self.sending = Some(chain);
                    return Ok(false);
                }
            }
            queue.push(chain, 0)?;
        }
    }
}
