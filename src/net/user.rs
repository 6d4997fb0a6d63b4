//! `--net user`: a network inside this program, for which nobody needs root. The guest has a gateway, a DNS relay and an
//! address by DHCP or router advertisements; its connections become sockets of this process, and published ports of the
//! host lead to it.
//!
//! ```text
//!   card --send--> stack --+-> link, dhcp, icmp   answered here
//!                          +-> rules              may it?
//!                          +-> tcp                smoltcp towards the guest <-> a socket of the host
//!                          +-> udp, ping          a socket of the host for each flow
//!                          +-> dns                names of the host, else its resolvers
//!   card <-receive- stack <-- publish             clients of published ports
//! ```
//!
//! **Threads.** It has none of its own: everything runs on the event loop of the card, in [`Backend::send`] and
//! [`Backend::receive`], and nothing blocks. All descriptors are in one epoll set (`poller`), which is the descriptor
//! that the card watches; so a packet goes from guest to host and back without waking any other thread. Packets for the
//! guest are made only when it has room for them: until then bytes stay in the host's sockets, whose senders wait.
//!
//! **What a guest can do.** It cannot reach more than `rules` says, whatever it sends: it is never the packet that goes
//! out, but the bytes in it, by a socket that was connected after the rules were asked. Packets from addresses that are
//! not the guest's are dropped. Connections, flows, questions and frames that wait are all bounded; the bounds are
//! constants at the head of each file.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4};

use crate::host::vectored::IoBuf;
use crate::net::Backend;

mod addresses;
pub mod config;
mod context;
pub mod counters;
mod dhcp;
mod dns;
mod frame;
mod icmp;
mod link;
mod ping;
mod poller;
mod publish;
mod rules;
mod stack;
mod tcp;
#[cfg(test)]
mod tests;
mod udp;

pub use addresses::{DNS, DNS6, GATEWAY, GATEWAY6, GUEST, GUEST6, MTU, NETWORK6, PREFIX, PREFIX6};
pub use config::Config;
pub use counters::Counters;
use stack::Stack;
use tcp::Offload;

/// A network cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that every host has is missing.
    #[error("cannot make the network: {0}")]
    Make(io::Error),
    /// A port of the host cannot be had.
    #[error(transparent)]
    Publish(#[from] publish::Error),
}

/// A network with one guest.
pub struct UserNet {
    stack: Mutex<Stack>,
    /// That of the stack's epoll set, which lives as long.
    fd: RawFd,
    counters: Arc<Counters>,
}

impl UserNet {
    /// Makes the network; published ports listen from now on.
    pub fn open(config: &Config) -> Result<Self, Error> {
        let counters = Arc::new(Counters::default());
        let stack = Stack::new(config, counters.clone())?;
        let fd = stack.poller().as_raw_fd();
        Ok(Self { stack: Mutex::new(stack), fd, counters })
    }

    /// What it tells of itself.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Takes a frame, for fuzzing.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn input(&self, frame: &[u8]) {
        self.stack().input(frame);
    }

    /// The next frame, for fuzzing.
    #[cfg(any(test, feature = "testkit"))]
    pub(crate) fn output(&self) -> Option<Vec<u8>> {
        self.stack().output().map(<[u8]>::to_vec)
    }

    fn stack(&self) -> MutexGuard<'_, Stack> {
        self.stack.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for UserNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UserNet").field("fd", &self.fd).finish_non_exhaustive()
    }
}

impl Backend for UserNet {
    fn fd(&self) -> RawFd {
        self.fd
    }

    fn send(&self, packet: &[IoBuf]) -> io::Result<()> {
        self.stack().input_from(packet);
        Ok(())
    }

    fn receive(&self, room: &[IoBuf]) -> io::Result<usize> {
        let mut stack = self.stack();
        let frame = stack.output().ok_or(io::ErrorKind::WouldBlock)?;
        let (mut rest, mut len) = (frame, 0);
        for buf in room {
            let count = buf.copy_from(rest);
            len += count;
            rest = rest.get(count..).unwrap_or_default();
        }
        Ok(len)
    }

    fn set_offload(&self, features: u64) -> io::Result<()> {
        let has = |bit: u32| features & 1 << bit != 0;
        // All others depend on it (section 5.1.3.1).
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        self.stack().set_offload(Offload { checksum, segments: has(VIRTIO_NET_F_GUEST_TSO4) })
    }

    fn set_enabled(&self, _: bool) -> io::Result<()> {
        // There is one pair of queues.
        Ok(())
    }

    fn drain(&self) {
        self.stack().drain();
    }
}
