//! Packets for the guest (section 5.1.6.4), read straight into its buffers.
//!
//! How long a packet is shows only when it has been read. So with mergeable buffers enough of them are gathered for
//! the longest packet, and used in part; the others serve the next packet. If the guest offers less, a tail of our own
//! catches the end of a packet, which then waits a moment for more buffers.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_MRG_RXBUF,
};

use super::handler::{Setup, guest_offloads};
use super::transmit::ETHERNET;
use super::{Counters, add};
use crate::devices::throttle::Throttle;
use crate::host::log_limit::LogLimit;
use crate::host::vectored::{MAX_BUFS, Scatter};
use crate::net::{Backend, HEADER_LEN};
use crate::virtio::queue::Queues;
use crate::virtio::{Broken, Chain};

/// A VLAN tag in the Ethernet header.
const VLAN: usize = 4;
/// Longest packet with its headers: 64 KiB of segments that are to be cut up.
pub(super) const MAX_PACKET: usize = HEADER_LEN + ETHERNET + VLAN + 65536;
/// MTU if nobody said.
const USUAL_MTU: u16 = 1500;
/// Packets received before others on the loop get their turn.
const MOST_PACKETS: usize = 64;
/// Where `num_buffers` is in the header: bytes before it, after the flags.
const HEADER_MIDDLE: usize = 9;

/// A packet that has filled all buffers in hand.
struct Parked {
    /// Number of those buffers.
    chains: usize,
    /// The bytes that follow.
    rest: Vec<u8>,
}

pub(super) struct Receiver {
    /// Number of the queue pair, which is the token of the backend's descriptor as well.
    pair: usize,
    backend: Arc<dyn Backend>,
    counters: Arc<Counters>,
    mergeable: bool,
    /// Present features `VIRTIO_NET_F_GUEST_*`.
    offloads: u64,
    mtu: u16,
    /// Buffers in hand and the room in each.
    held: VecDeque<(Chain, usize)>,
    parked: Option<Parked>,
    paused: bool,
    /// The backend failed for good.
    dead: bool,
    scatter: Scatter,
    /// Catches what is longer than the guest's buffers.
    tail: Vec<u8>,
    /// Buffers of the packet that is given to the guest.
    batch: Vec<(Chain, u32)>,
    throttle: Option<Arc<Throttle>>,
}

impl Receiver {
    pub(super) fn new(pair: usize, backend: Arc<dyn Backend>, setup: &Setup) -> Self {
        Self {
            pair,
            backend,
            counters: setup.counters.clone(),
            mergeable: setup.features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0,
            offloads: guest_offloads(setup.features),
            mtu: setup.mtu.unwrap_or(USUAL_MTU),
            held: VecDeque::new(),
            parked: None,
            paused: false,
            dead: false,
            scatter: Scatter::default(),
            tail: Vec::new(),
            batch: Vec::new(),
            throttle: setup.throttles.receive.clone(),
        }
    }

    pub(super) fn set_offloads(&mut self, offloads: u64) {
        self.offloads = offloads;
    }

    /// Receives until the backend has no more packets, the guest has no more buffers, limits forbid more, or it is the
    /// turn of others.
    /// False if a packet waits for buffers.
    pub(super) fn run(&mut self, queues: &mut Queues) -> Result<bool, Broken> {
        for _ in 0..MOST_PACKETS {
            if self.dead {
                break;
            }
            let enough = self.gather(queues)?;
            if self.parked.is_some() {
                if !enough {
                    self.pause(queues, true);
                    return Ok(false);
                }
                self.unpark(queues)?;
                continue;
            }
            if self.held.is_empty() {
                // Without buffers the backend keeps its packets, and the guest will tell when it has some. A queue
                // that is not empty was only taken too much from for one turn.
                let empty = queues.queue(self.queue()).is_empty()?;
                self.pause(queues, empty);
                return Ok(true);
            }
            if self.throttle.as_ref().is_some_and(|throttle| throttle.holds_back()) {
                // The backend keeps its packets until the alarm of the throttle rings.
                self.pause(queues, true);
                return Ok(true);
            }
            match self.read() {
                Ok(0) => self.die(&io::ErrorKind::UnexpectedEof.into()),
                Ok(len) => self.received(len, queues)?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => self.die(&e),
            }
        }
        self.pause(queues, self.dead);
        Ok(self.parked.is_none())
    }

    /// Drops a packet that waits for buffers.
    pub(super) fn give_up(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        if self.parked.take().is_some() {
            self.drop_packet("the guest has too few buffers for it");
            self.pause(queues, false);
        }
        Ok(())
    }

    fn queue(&self) -> usize {
        2 * self.pair
    }

    fn pause(&mut self, queues: &mut Queues, paused: bool) {
        if self.paused != paused {
            self.paused = paused;
            queues.pause(self.pair as u32, paused);
        }
    }

    fn die(&mut self, error: &io::Error) {
        // Once for each activation, of which there can be as many as the guest likes.
        static DEAD: LogLimit = LogLimit::new();
        self.dead = true;
        if DEAD.allow() {
            tracing::warn!("the network card receives no more packets: {error}");
        }
    }

    fn drop_packet(&self, why: &str) {
        static DROPPED: LogLimit = LogLimit::new();
        add(&self.counters.received_dropped, 1);
        if DROPPED.allow() {
            tracing::debug!("packet for the guest dropped: {why}");
        }
    }

    /// Bytes of the longest packet that is to be expected.
    fn wanted(&self) -> usize {
        if self.offloads & (1 << VIRTIO_NET_F_GUEST_TSO4 | 1 << VIRTIO_NET_F_GUEST_TSO6) != 0 {
            // One more tells that nothing was cut off.
            return MAX_PACKET + 1;
        }
        HEADER_LEN + ETHERNET + VLAN + usize::from(self.mtu)
    }

    fn room(&self) -> usize {
        self.held.iter().map(|(_, room)| room).sum()
    }

    /// Takes buffers from the queue until they are enough: for the waiting packet, or for any. False if there are
    /// not as many.
    fn gather(&mut self, queues: &mut Queues) -> Result<bool, Broken> {
        let (mut room, mut bufs) = (0, 0);
        for (chain, len) in &self.held {
            room += len;
            bufs += chain.writable().len();
        }
        let wanted = match &self.parked {
            Some(parked) => self.held.iter().take(parked.chains).map(|(_, len)| len).sum::<usize>() + parked.rest.len(),
            None if self.mergeable => self.wanted(),
            None => 1,
        };
        // One system call takes so many, and a chain has no more than half of them.
        while room < wanted && bufs < MAX_BUFS / 2 {
            let Some(chain) = queues.queue(self.queue()).pop()? else { return Ok(false) };
            let len = chain.writable_len();
            if len < HEADER_LEN {
                return Err(Broken(format!("a receive buffer has {len} writable bytes, less than a header")));
            }
            room += len;
            bufs += chain.writable().len();
            self.held.push_back((chain, len));
        }
        Ok(room >= wanted)
    }

    /// Reads one packet into the buffers in hand and the tail; returns its length.
    fn read(&mut self) -> io::Result<usize> {
        let room = self.room();
        let tail = match room {
            _ if room > MAX_PACKET => 0,
            _ if self.mergeable => MAX_PACKET + 1,
            // The packet will be dropped, if it reaches the tail.
            _ => 1,
        };
        if self.tail.len() < tail {
            // New memory, which costs nothing until a packet reaches it; it is not kept from a smaller one.
            self.tail = vec![0; tail];
        }
        let lists = self.held.iter().map(|(chain, _)| chain.writable());
        let tail = self.tail.get_mut(..tail).unwrap_or_default();
        self.scatter.with(lists, tail, |bufs| self.backend.receive(bufs))
    }

    /// A packet of `len` bytes was read.
    fn received(&mut self, len: usize, queues: &mut Queues) -> Result<(), Broken> {
        let room = self.room();
        if !(HEADER_LEN..=MAX_PACKET).contains(&len) {
            self.drop_packet("it is too long or too short");
        } else if len <= room {
            self.deliver(len, queues)?;
        } else if self.mergeable {
            let rest = self.tail.get(..len - room).unwrap_or_default().to_vec();
            self.parked = Some(Parked { chains: self.held.len(), rest });
        } else {
            self.drop_packet("it is longer than the guest's buffer");
        }
        Ok(())
    }

    /// Enough buffers are in hand for the packet that waited.
    fn unpark(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        let Some(parked) = self.parked.take() else { return Ok(()) };
        let mut len = self.held.iter().take(parked.chains).map(|(_, room)| room).sum();
        let mut rest = parked.rest.as_slice();
        for (chain, _) in self.held.iter_mut().skip(parked.chains) {
            let count = chain.write(rest);
            len += count;
            rest = rest.get(count..).unwrap_or_default();
        }
        self.deliver(len, queues)
    }

    /// Gives the first `len` bytes of the buffers in hand to the guest as one packet.
    fn deliver(&mut self, len: usize, queues: &mut Queues) -> Result<(), Broken> {
        let mut left = len;
        while left > 0 {
            let Some((chain, room)) = self.held.pop_front() else { break };
            let part = room.min(left);
            left -= part;
            self.batch.push((chain, part as u32));
        }
        let buffers = self.batch.len() as u16;
        if let Some((first, _)) = self.batch.first_mut() {
            if self.offloads & 1 << VIRTIO_NET_F_GUEST_CSUM == 0 {
                // The guest knows none of the flags.
                first.write(&[0]);
            } else {
                first.skip_writable(1);
            }
            first.skip_writable(HEADER_MIDDLE);
            first.write(&buffers.to_le_bytes());
        }
        self.counters.received(len);
        if let Some(throttle) = &self.throttle {
            throttle.passed(len.saturating_sub(HEADER_LEN));
        }
        queues.queue(self.queue()).push_all(&mut self.batch)
    }
}
