//! The queues of an active device (section 2.7, split virtqueues), as its handler uses them:
//!
//! ```text
//! while let Some(mut chain) = queues.queue(index).pop()? {
//!     ...                                        // read, write, or keep the chain for later
//!     let written = chain.written();
//!     queues.queue(index).push(chain, written)?;
//! }
//! ```
//!
//! Notifications in both directions are the core's business ([`crate::virtio::worker`]): a queue remembers what it
//! owes. Used on one event loop thread.

use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_NEXT};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::host::vectored::IoBuf;
use crate::mem::Ram;
use crate::mem::buffers::Buffers;
use crate::virtio::Broken;
use crate::virtio::chain::Chain;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::watch::{Interest, Watches};

/// Chains that one wake-up may take from a queue before other queues and devices get their turn. A driver that adds
/// buffers as fast as they are used would otherwise keep the loop to itself.
pub const BUDGET: u32 = 256;

/// Buffer lists kept for reuse by each queue; at most 16 bytes times the descriptors of a chain each.
const POOL: usize = 16;
/// Lists with more room than this are not kept.
const POOL_ROOM: usize = 512;

/// Where the driver put a queue, and its features.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Layout {
    /// Number of descriptors, a power of two.
    pub size: u16,
    /// Guest-physical address of the descriptor table.
    pub descriptors: u64,
    /// Guest-physical address of the available ring (driver area).
    pub available: u64,
    /// Guest-physical address of the used ring (device area).
    pub used: u64,
    /// Whether the driver enabled the queue.
    pub enabled: bool,
    /// Whether VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
}

/// A queue that needs another turn.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Again {
    pub(crate) queue: usize,
    /// It had all that it may have in one turn, so others go first. Otherwise the driver made something available
    /// after the handler had found the queue empty and before it was asked to notify.
    pub(crate) throttled: bool,
}

/// What a handler sees of its device and guest.
#[derive(Debug)]
pub struct Queues {
    ram: Ram,
    list: Vec<VirtQueue>,
    /// Stands for a queue that the device does not have; always empty.
    absent: VirtQueue,
    interrupt: Arc<dyn Interrupt>,
    pub(crate) watches: Watches,
}

impl Queues {
    /// Queues at `layouts`, each given with the largest size that the device offers.
    pub fn new(ram: Ram, layouts: &[(Layout, u16)], interrupt: Arc<dyn Interrupt>) -> Result<Self, Broken> {
        let list = layouts.iter().enumerate().map(|(index, &(layout, max))| VirtQueue::new(&ram, index, layout, max));
        let list = list.collect::<Result<_, _>>()?;
        let absent = VirtQueue::new(&ram, usize::MAX, Layout::default(), 1)?;
        Ok(Self { ram, list, absent, interrupt, watches: Watches::default() })
    }

    /// Guest RAM.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Number of queues that the device has.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// Whether the device has no queues.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Queue `index`; one that the driver did not enable is always empty.
    pub fn queue(&mut self, index: usize) -> &mut VirtQueue {
        self.list.get_mut(index).unwrap_or(&mut self.absent)
    }

    /// Tells the driver that the device-specific configuration changed.
    pub fn config_changed(&self) {
        self.interrupt.config_changed();
    }

    /// Watches `fd` beside those of [`super::Handler::fds`]; replaces what was asked for it before. `on_fd` gets
    /// `token`. Withdraw it with [`Queues::unwatch`] before closing the descriptor.
    pub fn watch(&mut self, fd: RawFd, token: u32, interest: Interest) -> std::io::Result<()> {
        self.watches.watch(fd, token, interest)
    }

    /// No longer watches `fd`.
    pub fn unwatch(&mut self, fd: RawFd) {
        self.watches.unwatch(fd);
    }

    /// Pauses (or resumes) watching the descriptor of [`super::Handler::fds`] with `token`: otherwise a readable
    /// descriptor for whose data there is no buffer would wake the loop over and over.
    pub fn pause(&mut self, token: u32, paused: bool) {
        self.watches.pause(token, paused);
    }

    /// After a turn: the driver notifies what the handler waits for. Adds queues that need another turn to `again`.
    pub(crate) fn end_turn(&mut self, again: &mut Vec<Again>) -> Result<(), Broken> {
        for queue in &mut self.list {
            let throttled = queue.throttled;
            if !queue.end()? {
                continue;
            }
            match again.iter_mut().find(|again| again.queue == queue.index) {
                Some(known) => known.throttled |= throttled,
                None => again.push(Again { queue: queue.index, throttled }),
            }
        }
        Ok(())
    }

    /// Tells the driver that the device stopped.
    pub(crate) fn needs_reset(&self) {
        self.interrupt.needs_reset();
    }

    /// Sends the interrupts that are due. The core does so after every call of the handler; a handler that works for
    /// long may do so in between.
    pub fn signal(&mut self) -> Result<(), Broken> {
        for queue in &mut self.list {
            if queue.signal_due()? {
                self.interrupt.used(queue.index);
            }
        }
        Ok(())
    }
}

/// One queue.
#[derive(Debug)]
pub struct VirtQueue {
    index: usize,
    ram: Ram,
    ring: Queue,
    /// Used entries that the driver was not yet considered for an interrupt about.
    unsignalled: u16,
    /// Chains popped and not yet pushed.
    in_flight: u32,
    /// Chains that may still be popped in this turn.
    budget: u32,
    /// The handler found the queue empty, so the driver must notify the next buffer.
    drained: bool,
    /// The handler was stopped by its budget.
    throttled: bool,
    pool: Vec<Vec<IoBuf>>,
}

impl VirtQueue {
    fn new(ram: &Ram, index: usize, layout: Layout, max: u16) -> Result<Self, Broken> {
        let invalid = |e: virtio_queue::Error| Broken(format!("queue {index} is set up wrongly: {e}"));
        let mut ring = Queue::new(max).map_err(invalid)?;
        if layout.enabled {
            ring.try_set_size(layout.size).map_err(invalid)?;
            ring.try_set_desc_table_address(GuestAddress(layout.descriptors)).map_err(invalid)?;
            ring.try_set_avail_ring_address(GuestAddress(layout.available)).map_err(invalid)?;
            ring.try_set_used_ring_address(GuestAddress(layout.used)).map_err(invalid)?;
            ring.set_event_idx(layout.event_idx);
            ring.set_ready(true);
            if layout.available == 0 || !ring.is_valid(ram.memory()) {
                return Err(Broken(format!("queue {index} is set up wrongly: {layout:x?} is not in RAM")));
            }
        }
        Ok(Self {
            index,
            ram: ram.clone(),
            ring,
            unsignalled: 0,
            in_flight: 0,
            budget: BUDGET,
            drained: false,
            throttled: false,
            pool: Vec::new(),
        })
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Whether the driver enabled the queue.
    pub fn enabled(&self) -> bool {
        self.ring.ready()
    }

    /// Takes the next request. None if there is none, or if it is the turn of other queues first: in both cases the
    /// handler is called again when there is more.
    pub fn pop(&mut self) -> Result<Option<Chain>, Broken> {
        if self.is_empty()? {
            return Ok(None);
        }
        if self.budget == 0 {
            self.throttled = true;
            return Ok(None);
        }
        // A driver that reuses descriptors before it has them back could make the device hold ever more.
        if self.in_flight >= u32::from(self.ring.size()) {
            return Err(self.broken("has more requests under way than descriptors"));
        }
        let memory = self.ram.memory();
        let mut heads = self.ring.iter(memory).map_err(|e| Broken(format!("queue {}: {e}", self.index)))?;
        let Some(descriptors) = heads.next() else { return Ok(None) };
        let head = descriptors.head_index();
        // Up to the largest size offered, which devices derive their limits from; also bounds the list's memory.
        let limit = self.ring.max_size();
        let mut buffers = Buffers::recycled(self.ram.clone(), self.pool.pop().unwrap_or_default());
        let (mut count, mut split, mut writable, mut more) = (0, 0, false, true);
        for descriptor in descriptors {
            count += 1;
            if count > limit {
                return Err(self.broken("has a request with more buffers than the queue holds"));
            }
            if !descriptor.is_write_only() && writable {
                return Err(self.broken("has a request with a readable buffer after a writable one"));
            }
            writable = descriptor.is_write_only();
            let (at, len) = (descriptor.addr().0, u64::from(descriptor.len()));
            buffers.push(at, len).map_err(|e| Broken(format!("queue {}: {e}", self.index)))?;
            if !writable {
                split = buffers.list().len();
            }
            more = descriptor.flags() & VRING_DESC_F_NEXT as u16 != 0;
        }
        // virtio_queue ends its iteration where a chain is not valid: then the last descriptor named a next one.
        if more {
            return Err(self.broken("has a request whose descriptors are not valid"));
        }
        if buffers.list().is_empty() {
            return Err(self.broken("has a request without any bytes"));
        }
        self.in_flight += 1;
        self.budget -= 1;
        Ok(Some(Chain::new(head, buffers, split)))
    }

    /// Whether no request waits. If so, the driver will notify the next one.
    pub fn is_empty(&mut self) -> Result<bool, Broken> {
        if !self.enabled() {
            return Ok(true);
        }
        let available = self.ring.avail_idx(self.ram.memory(), Ordering::Acquire);
        let available = available.map_err(|e| Broken(format!("queue {}: {e}", self.index)))?;
        let empty = available.0 == self.ring.next_avail();
        self.drained |= empty;
        Ok(empty)
    }

    /// Gives a request back, of whose writable buffers the first `written` bytes were filled. Each popped chain must
    /// come back, unless the device is reset.
    pub fn push(&mut self, chain: Chain, written: u32) -> Result<(), Broken> {
        let head = chain.head();
        let pushed = self.ring.add_used(self.ram.memory(), head, written);
        self.returned(chain);
        pushed.map_err(|e| Broken(format!("queue {}: {e}", self.index)))
    }

    /// Gives several requests back such that the driver sees all or none of them (a received packet in several
    /// buffers, section 5.1.6.4). Leaves `chains` empty.
    pub fn push_all(&mut self, chains: &mut Vec<(Chain, u32)>) -> Result<(), Broken> {
        let fail = |e: virtio_queue::Error| Broken(format!("used ring: {e}"));
        let memory = self.ram.memory();
        let first = self.ring.next_used();
        let mut next = first;
        // Entries are written behind the published index, from which the guest learns of them at the end.
        for (chain, written) in chains.iter() {
            let slot = u64::from(next % self.ring.size());
            let at = GuestAddress(self.ring.used_ring() + USED_HEADER + slot * USED_ENTRY);
            let entry = u64::from(*written) << 32 | u64::from(chain.head());
            memory.write_obj(entry.to_le(), at).map_err(|e| fail(virtio_queue::Error::GuestMemory(e)))?;
            next = next.wrapping_add(1);
        }
        let published = memory.store(next.to_le(), GuestAddress(self.ring.used_ring() + 2), Ordering::Release);
        published.map_err(|e| fail(virtio_queue::Error::GuestMemory(e)))?;
        self.ring.set_next_used(next);
        for (chain, _) in chains.drain(..) {
            self.returned(chain);
        }
        Ok(())
    }

    fn returned(&mut self, chain: Chain) {
        self.unsignalled = self.unsignalled.saturating_add(1);
        self.in_flight = self.in_flight.saturating_sub(1);
        let list = chain.recycle();
        if self.pool.len() < POOL && list.capacity() <= POOL_ROOM {
            self.pool.push(list);
        }
    }

    fn broken(&self, what: &str) -> Broken {
        Broken(format!("queue {} {what}", self.index))
    }

    /// A turn begins: the handler may take [`BUDGET`] chains, and the driver need not notify meanwhile.
    pub(crate) fn begin(&mut self) -> Result<(), Broken> {
        (self.budget, self.throttled, self.drained) = (BUDGET, false, false);
        if !self.enabled() {
            return Ok(());
        }
        self.ring.disable_notification(self.ram.memory()).map_err(|e| Broken(format!("queue {}: {e}", self.index)))
    }

    /// A turn ends: if the queue was drained, asks the driver for notifications. True if the handler must have
    /// another turn.
    pub(crate) fn end(&mut self) -> Result<bool, Broken> {
        self.budget = BUDGET;
        let mut more = std::mem::take(&mut self.throttled);
        if std::mem::take(&mut self.drained) && self.enabled() {
            let available = self.ring.enable_notification(self.ram.memory());
            more |= available.map_err(|e| Broken(format!("queue {}: {e}", self.index)))?;
        }
        Ok(more)
    }

    /// Whether the driver wants an interrupt about what was pushed since the last call (section 2.7.7).
    fn signal_due(&mut self) -> Result<bool, Broken> {
        let added = std::mem::take(&mut self.unsignalled);
        if added == 0 {
            return Ok(false);
        }
        // The used index must be visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let flags = GuestAddress(self.ring.avail_ring());
        let offset = if self.ring.event_idx_enabled() { 4 + 2 * u64::from(self.ring.size()) } else { 0 };
        let wish = self.ram.memory().load::<u16>(GuestAddress(flags.0 + offset), Ordering::Relaxed);
        let wish = wish.map(u16::from_le).map_err(|e| Broken(format!("queue {}: {e}", self.index)))?;
        if self.ring.event_idx_enabled() {
            let used = self.ring.next_used();
            return Ok(used.wrapping_sub(wish).wrapping_sub(1) < added);
        }
        Ok(wish & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
    }
}

/// Bytes before the entries of a used ring (section 2.7.8).
const USED_HEADER: u64 = 4;
/// Bytes of one entry.
const USED_ENTRY: u64 = 8;
