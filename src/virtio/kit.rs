//! The driver's side for tests of devices: RAM, rings, notifications, used buffers, interrupts, and whatever a hostile
//! driver might try. Every wait has a time limit.
//!
//! ```text
//! let mut kit = Kit::new(Box::new(device));
//! kit.activate(FEATURES);                             // or activate_on_loop: the same on a real event loop
//! let answer = kit.request(0, &[&header, &data], &[512, 1]);
//! kit.reset();
//! kit.activate(FEATURES);                             // everything must work a second time
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use event_manager::SubscriberId;
use virtio_bindings::bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use crate::host::event_loop::EventLoop;
use crate::mem::{Backing, Ram};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Layout, Queues};
use crate::virtio::worker::{Runner, Worker};
use crate::virtio::{ActivateError, VirtioDevice};

/// How long a test waits for what should happen at once.
pub const LIMIT: Duration = Duration::from_secs(10);

/// `VRING_DESC_F_NEXT` and the others as they stand in a descriptor.
pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
/// The device may write to the buffer.
pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
/// The buffer is a table of descriptors.
pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub enum Part<'a> {
    /// Bytes for the device to read.
    Out(&'a [u8]),
    /// Room for this many bytes.
    In(usize),
    /// Any address and length, readable.
    OutAt(u64, u32),
    /// Any address and length, writable.
    InAt(u64, u32),
}

/// A descriptor as it lies in memory (section 2.7.5).
#[derive(Debug, Clone, Copy)]
pub struct Descriptor {
    /// Guest-physical address.
    pub at: u64,
    /// Length in bytes.
    pub len: u32,
    /// [`NEXT`], [`WRITE`], [`INDIRECT`].
    pub flags: u16,
    /// Index of the next one.
    pub next: u16,
}

impl Descriptor {
    fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.at.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A chain that the device gave back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// What `add` returned.
    pub head: u16,
    /// Used length.
    pub len: u32,
    /// The first `len` bytes of the writable parts.
    pub data: Vec<u8>,
    /// All bytes of the writable parts (a device need not fill them in order).
    pub room: Vec<u8>,
}

/// Interrupts as they came.
#[derive(Debug, Default)]
struct Recorder {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Seen {
    used: BTreeMap<usize, usize>,
    config: usize,
    broken: bool,
}

impl Interrupt for Recorder {
    fn used(&self, index: usize) {
        *self.seen.lock().unwrap().used.entry(index).or_default() += 1;
        self.changed.notify_all();
    }
    fn config_changed(&self) {
        self.seen.lock().unwrap().config += 1;
        self.changed.notify_all();
    }
    fn needs_reset(&self) {
        self.seen.lock().unwrap().broken = true;
        self.changed.notify_all();
    }
}

/// A chain that the device has: its descriptors and its writable parts.
type Busy = (Vec<u16>, Vec<(u64, u32)>);

/// A queue from the driver's side.
#[derive(Debug)]
pub struct DriverQueue {
    layout: Layout,
    free: Vec<u16>,
    /// By head.
    busy: BTreeMap<u16, Busy>,
    available: u16,
    used: u16,
    used_early: VecDeque<Used>,
}

enum Active {
    Here { runner: Box<Runner>, paused: Vec<u32> },
    OnLoop { looped: EventLoop, id: SubscriberId, doorbells: Vec<Arc<EventFd>> },
}

/// A device under test and its driver.
pub struct Kit {
    /// Guest RAM: 16 MiB from 0 and 16 MiB from 4 GiB, unless given.
    pub ram: Ram,
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    queues: Vec<DriverQueue>,
    recorder: Arc<Recorder>,
    active: Option<Active>,
    next: u64,
    /// Where the rings of the activation end.
    start: u64,
    event_idx: bool,
}

impl std::fmt::Debug for Kit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kit").field("queues", &self.queues).finish_non_exhaustive()
    }
}

/// First address given out by `alloc`.
const ALLOC_START: u64 = 0x1_0000;
/// End of the lower piece of RAM.
const ALLOC_END: u64 = 16 << 20;

impl Kit {
    /// A kit with RAM of its own.
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let layout = [(0, ALLOC_END), (1 << 32, 16 << 20)];
        Self::with_ram(device, Ram::new(&layout, Backing::Anonymous).unwrap())
    }

    /// A kit that uses `ram`, of which at least the first MiB must exist.
    pub fn with_ram(device: Box<dyn VirtioDevice>, ram: Ram) -> Self {
        let recorder = Arc::default();
        Self {
            ram,
            device,
            queues: Vec::new(),
            recorder,
            active: None,
            next: ALLOC_START,
            start: ALLOC_START,
            event_idx: true,
        }
    }

    /// Whether the next activation negotiates EVENT_IDX (it does unless told otherwise).
    pub fn event_idx(&mut self, on: bool) {
        self.event_idx = on;
    }

    /// Memory for the driver's own use, 16-byte aligned, never given back before the reset.
    pub fn alloc(&mut self, len: usize) -> u64 {
        let at = self.next;
        self.next = (at + len as u64).next_multiple_of(16);
        let end = self.ram.region_of(0).unwrap().len;
        assert!(self.next <= end, "the test uses up the kit's RAM");
        at
    }

    /// Gives back what was allocated since the activation, or the last call: the driver needs none of it any more.
    pub fn rewind(&mut self) {
        self.next = self.start;
    }

    /// Bytes that `alloc` can still give out.
    pub fn free_memory(&self) -> usize {
        self.ram.region_of(0).map_or(0, |region| region.len.saturating_sub(self.next) as usize)
    }

    /// Descriptors of queue `index` that the driver has.
    pub fn free_descriptors(&self, index: usize) -> usize {
        self.queues[index].free.len()
    }

    /// Whether the device is active.
    pub fn is_active(&self) -> bool {
        self.active.is_some()
    }

    fn start(&mut self, features: u64) -> Result<Runner, ActivateError> {
        assert!(self.active.is_none(), "reset first");
        let info = self.device.info();
        assert_eq!(features & !info.features, 0, "these features are not offered");
        let handler = self.device.activate(features)?;
        self.recorder = Arc::default();
        self.queues.clear();
        let mut layouts = Vec::new();
        for size in info.queue_sizes {
            let layout = Layout {
                size,
                descriptors: self.alloc(16 * usize::from(size)),
                available: self.alloc(6 + 2 * usize::from(size)),
                used: self.alloc(6 + 8 * usize::from(size)),
                enabled: true,
                event_idx: self.event_idx,
            };
            self.ram.write(layout.available, &vec![0; 6 + 2 * usize::from(size)]).unwrap();
            self.ram.write(layout.used, &vec![0; 6 + 8 * usize::from(size)]).unwrap();
            layouts.push((layout, size));
            self.queues.push(DriverQueue {
                layout,
                free: (0..size).rev().collect(),
                busy: BTreeMap::new(),
                available: 0,
                used: 0,
                used_early: VecDeque::new(),
            });
        }
        self.start = self.next;
        let queues = Queues::new(self.ram.clone(), &layouts, self.recorder.clone()).unwrap();
        Ok(Runner::new("test".into(), handler, queues))
    }

    /// Activates the device; its handler runs in the calls of this kit.
    pub fn activate(&mut self, features: u64) {
        self.try_activate(features).unwrap();
    }

    /// Like `activate`, for devices that shall refuse.
    pub fn try_activate(&mut self, features: u64) -> Result<(), ActivateError> {
        let mut runner = Box::new(self.start(features)?);
        runner.start();
        self.active = Some(Active::Here { runner, paused: Vec::new() });
        self.settle();
        Ok(())
    }

    /// Activates the device on an event loop of its own.
    pub fn activate_on_loop(&mut self, features: u64) {
        let runner = self.start(features).unwrap();
        let looped = EventLoop::start("kit").unwrap();
        let doorbells: Vec<_> =
            self.queues.iter().map(|_| Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())).collect();
        let id = looped.handle().add(Box::new(Worker::new(runner, doorbells.clone()))).unwrap();
        self.active = Some(Active::OnLoop { looped, id, doorbells });
    }

    /// Resets the device. What the driver allocated is gone.
    pub fn reset(&mut self) {
        match self.active.take() {
            Some(Active::OnLoop { looped, id, .. }) => drop(looped.handle().remove(id).unwrap()),
            here => drop(here),
        }
        self.queues.clear();
        self.next = ALLOC_START;
        self.device.reset();
    }

    /// Layout of queue `index`.
    pub fn layout(&self, index: usize) -> Layout {
        self.queues[index].layout
    }

    /// Writes descriptor `slot` of queue `index`.
    pub fn write_descriptor(&self, index: usize, slot: u16, descriptor: Descriptor) {
        let at = self.queues[index].layout.descriptors + 16 * u64::from(slot);
        self.ram.write(at, &descriptor.bytes()).unwrap();
    }

    /// Makes the chain at `head` available without more ado.
    pub fn publish(&mut self, index: usize, head: u16) {
        let queue = &mut self.queues[index];
        let at = queue.layout.available + 4 + 2 * u64::from(queue.available % queue.layout.size);
        queue.available = queue.available.wrapping_add(1);
        let next = queue.available;
        self.ram.write(at, &head.to_le_bytes()).unwrap();
        self.write_available_index(index, next);
    }

    /// Overwrites the available index: what a hostile driver might do.
    pub fn write_available_index(&self, index: usize, value: u16) {
        self.ram.write(self.queues[index].layout.available + 2, &value.to_le_bytes()).unwrap();
    }

    fn place(&mut self, parts: &[Part<'_>]) -> Vec<(u64, u32, u16)> {
        let mut placed = Vec::new();
        for part in parts {
            placed.push(match *part {
                Part::Out(bytes) => {
                    let at = self.alloc(bytes.len());
                    self.ram.write(at, bytes).unwrap();
                    (at, bytes.len() as u32, 0)
                }
                Part::In(len) => {
                    let at = self.alloc(len);
                    // Neither zeros nor ones, so that what the device left alone can be told.
                    self.ram.write(at, &vec![0xa5; len]).unwrap();
                    (at, len as u32, WRITE)
                }
                Part::OutAt(at, len) => (at, len, 0),
                Part::InAt(at, len) => (at, len, WRITE),
            });
        }
        placed
    }

    /// Makes a chain of `parts` available; returns its head.
    pub fn add(&mut self, index: usize, parts: &[Part<'_>]) -> u16 {
        let placed = self.place(parts);
        let slots: Vec<u16> =
            (0..placed.len()).map(|_| self.queues[index].free.pop().expect("the queue is full")).collect();
        for (i, &(at, len, flags)) in placed.iter().enumerate() {
            let next = slots.get(i + 1);
            let flags = flags | if next.is_some() { NEXT } else { 0 };
            self.write_descriptor(index, slots[i], Descriptor { at, len, flags, next: next.copied().unwrap_or(0) });
        }
        self.remember(index, slots, &placed)
    }

    /// The same with one indirect descriptor.
    pub fn add_indirect(&mut self, index: usize, parts: &[Part<'_>]) -> u16 {
        let placed = self.place(parts);
        let table = self.alloc(16 * placed.len());
        for (i, &(at, len, flags)) in placed.iter().enumerate() {
            let flags = flags | if i + 1 < placed.len() { NEXT } else { 0 };
            let descriptor = Descriptor { at, len, flags, next: i as u16 + 1 };
            self.ram.write(table + 16 * i as u64, &descriptor.bytes()).unwrap();
        }
        let slot = self.queues[index].free.pop().expect("the queue is full");
        let len = 16 * placed.len() as u32;
        self.write_descriptor(index, slot, Descriptor { at: table, len, flags: INDIRECT, next: 0 });
        self.remember(index, vec![slot], &placed)
    }

    fn remember(&mut self, index: usize, slots: Vec<u16>, placed: &[(u64, u32, u16)]) -> u16 {
        let head = slots[0];
        let room = placed.iter().filter(|p| p.2 & WRITE != 0).map(|p| (p.0, p.1)).collect();
        self.queues[index].busy.insert(head, (slots, room));
        self.publish(index, head);
        head
    }

    /// Notifies queue `index`, whether the device wants it or not.
    pub fn notify(&mut self, index: usize) {
        match self.active.as_mut().expect("activate first") {
            Active::Here { runner, .. } => runner.on_queue(index),
            Active::OnLoop { doorbells, .. } => doorbells[index].write(1).unwrap(),
        }
        self.settle();
    }

    /// Whether the device wants to be notified of the next buffer.
    pub fn wants_notification(&self, index: usize) -> bool {
        let queue = &self.queues[index];
        let mut bytes = [0; 2];
        if queue.layout.event_idx {
            self.ram.read(queue.layout.used + 4 + 8 * u64::from(queue.layout.size), &mut bytes).unwrap();
            return u16::from_le_bytes(bytes) == queue.available;
        }
        self.ram.read(queue.layout.used, &mut bytes).unwrap();
        u16::from_le_bytes(bytes) & VRING_USED_F_NO_NOTIFY as u16 == 0
    }

    /// Asks for no interrupts from queue `index` (or for the next one, under EVENT_IDX: only from entry `after` on).
    pub fn suppress_interrupts(&mut self, index: usize, after: u16) {
        let layout = self.queues[index].layout;
        if layout.event_idx {
            let at = layout.available + 4 + 2 * u64::from(layout.size);
            self.ram.write(at, &after.to_le_bytes()).unwrap();
        } else {
            self.ram.write(layout.available, &(VRING_AVAIL_F_NO_INTERRUPT as u16).to_le_bytes()).unwrap();
        }
    }

    fn settle(&mut self) {
        let Some(Active::Here { runner, paused }) = &mut self.active else { return };
        let start = Instant::now();
        loop {
            for (token, pause) in runner.take_pauses() {
                paused.retain(|&other| other != token);
                if pause {
                    paused.push(token);
                }
            }
            let Some(index) = runner.take_again() else { return };
            assert!(start.elapsed() < LIMIT, "the handler asks for turns without end");
            runner.on_queue(index);
        }
    }

    /// Serves the handler's descriptors once (only without a loop); waits for them at most `limit`. True if any was
    /// ready.
    pub fn poll_fds(&mut self, limit: Duration) -> bool {
        let Some(Active::Here { runner, paused }) = &mut self.active else { return false };
        if runner.is_broken() {
            return false;
        }
        let (mut fds, watches) = runner.poll_fds();
        fds.retain(|(_, token)| !paused.contains(token));
        let all: Vec<_> = fds.iter().map(|&(fd, _)| fd).chain(watches).collect();
        let ready = ready_fds(&all, limit);
        for (&fd, &(_, token)) in all.iter().zip(&fds) {
            if ready.contains(&fd) {
                runner.on_fd(token);
            }
        }
        if watches.is_some_and(|fd| ready.contains(&fd)) {
            runner.on_watches();
        }
        self.settle();
        !ready.is_empty()
    }

    /// The next chain given back by the device, if it is there already.
    pub fn try_used(&mut self, index: usize) -> Option<Used> {
        let queue = &mut self.queues[index];
        if let Some(used) = queue.used_early.pop_front() {
            return Some(used);
        }
        let mut bytes = [0; 2];
        self.ram.read(queue.layout.used + 2, &mut bytes).unwrap();
        if u16::from_le_bytes(bytes) == queue.used {
            return None;
        }
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        let mut entry = [0; 8];
        self.ram.read(queue.layout.used + 4 + 8 * u64::from(queue.used % queue.layout.size), &mut entry).unwrap();
        queue.used = queue.used.wrapping_add(1);
        let entry = u64::from_le_bytes(entry);
        let (head, len) = (entry as u32 as u16, (entry >> 32) as u32);
        let (slots, parts) = queue.busy.remove(&head).unwrap_or_default();
        queue.free.extend(slots);
        let mut room = Vec::new();
        for (at, len) in parts {
            let mut bytes = vec![0; len as usize];
            // A part that is no RAM has no bytes.
            if self.ram.read(at, &mut bytes).is_ok() {
                room.extend(bytes);
            }
        }
        let data = room[..room.len().min(len as usize)].to_vec();
        assert!(len as usize <= room.len(), "used length {len} is more than the {} writable bytes", room.len());
        if queue.layout.event_idx {
            // As drivers do: an interrupt for the next one, please.
            let at = queue.layout.available + 4 + 2 * u64::from(queue.layout.size);
            self.ram.write(at, &queue.used.to_le_bytes()).unwrap();
        }
        Some(Used { head, len, data, room })
    }

    /// Waits for the next chain given back.
    pub fn wait_used(&mut self, index: usize) -> Used {
        self.used_within(index, LIMIT).unwrap_or_else(|| panic!("queue {index}: nothing came back in {LIMIT:?}"))
    }

    /// The next chain given back within `limit`.
    pub fn used_within(&mut self, index: usize, limit: Duration) -> Option<Used> {
        let start = Instant::now();
        loop {
            if let Some(used) = self.try_used(index) {
                return Some(used);
            }
            let left = limit.checked_sub(start.elapsed())?;
            if matches!(self.active, Some(Active::Here { .. })) {
                self.poll_fds(left.min(Duration::from_millis(20)));
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }

    /// One request from start to end: `out` for the device to read, room for `room` bytes each. Returns the chain as
    /// used; the driver must also have got an interrupt.
    pub fn request(&mut self, index: usize, out: &[&[u8]], room: &[usize]) -> Used {
        let parts: Vec<_> =
            out.iter().map(|bytes| Part::Out(bytes)).chain(room.iter().map(|&len| Part::In(len))).collect();
        let before = self.interrupts(index);
        let head = self.add(index, &parts);
        self.notify(index);
        if matches!(self.active, Some(Active::OnLoop { .. })) {
            // Taking the buffer first could tell the device, before it looks, that no interrupt is needed.
            self.wait_interrupts(index, before + 1);
        }
        let used = self.wait_used(index);
        assert_eq!(used.head, head, "another request came back");
        self.wait_interrupts(index, before + 1);
        used
    }

    /// Interrupts of queue `index` since activation.
    pub fn interrupts(&self, index: usize) -> usize {
        self.recorder.seen.lock().unwrap().used.get(&index).copied().unwrap_or(0)
    }

    /// Waits until queue `index` had `count` interrupts.
    pub fn wait_interrupts(&self, index: usize, count: usize) {
        self.wait_seen(&format!("interrupt {count} of queue {index}"), |seen| {
            seen.used.get(&index).is_some_and(|&c| c >= count)
        });
    }

    /// Configuration change interrupts since activation.
    pub fn config_interrupts(&self) -> usize {
        self.recorder.seen.lock().unwrap().config
    }

    /// Whether the device asked to be reset.
    pub fn is_broken(&self) -> bool {
        self.recorder.seen.lock().unwrap().broken
    }

    /// Waits until the device asks to be reset.
    pub fn wait_broken(&self) {
        self.wait_seen("wish to be reset", |seen| seen.broken);
    }

    fn wait_seen(&self, what: &str, done: impl Fn(&Seen) -> bool) {
        let seen = self.recorder.seen.lock().unwrap();
        let (seen, result) = self.recorder.changed.wait_timeout_while(seen, LIMIT, |seen| !done(seen)).unwrap();
        assert!(!result.timed_out(), "no {what} in {LIMIT:?}: {seen:?}");
    }
}

fn ready_fds(fds: &[RawFd], limit: Duration) -> Vec<RawFd> {
    let epoll = Epoll::new().unwrap();
    for &fd in fds {
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, fd as u64)).unwrap();
    }
    let mut events = [EpollEvent::default(); 16];
    let count = match epoll.wait(limit.as_millis() as i32, &mut events) {
        // io_uring interrupts waits on the thread that made the request; whoever waits here asks again.
        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => 0,
        count => count.unwrap(),
    };
    events[..count].iter().map(EpollEvent::fd).collect()
}
