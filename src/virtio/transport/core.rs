//! The state machine of a virtio device (sections 2.1, 2.2, 3.1): status, feature negotiation, queue set-up,
//! activation and reset. Called by both faces on vCPU threads, under their lock.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use event_manager::SubscriberId;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET, VIRTIO_F_VERSION_1,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::host::event_loop::{EventLoop, LoopHandle};
use crate::host::log_limit::LogLimit;
use crate::host::register_page::RegisterPage;
use crate::mem::Ram;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::queue::{Layout, Queues};
use crate::virtio::transport::Error;
use crate::virtio::worker::{Runner, Worker};
use crate::virtio::{ActivateError, Info, VirtioDevice};

/// Features that are the transport's business.
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const TRANSPORT_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Device status bits (section 2.1).
pub(super) const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
pub(super) const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
pub(super) const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;

static CANNOT_START: LogLimit = LogLimit::new();

/// The device status register: a byte on the register page, since a worker may set a bit at any time.
#[derive(Debug, Clone)]
pub(super) struct Status {
    pub(super) page: RegisterPage,
    pub(super) offset: usize,
}

impl Status {
    pub(super) fn get(&self) -> u8 {
        self.page.byte(self.offset).map_or(0, |byte| byte.load(Ordering::Acquire))
    }

    /// Sets bits; returns what was set before.
    pub(super) fn set(&self, bits: u8) -> u8 {
        self.page.byte(self.offset).map_or(0, |byte| byte.fetch_or(bits, Ordering::AcqRel))
    }

    fn clear(&self) {
        self.page.store(self.offset, &[0]);
    }
}

/// What a transport needs of the machine.
pub struct Parts {
    /// Name in messages, e.g. `disk0`.
    pub name: String,
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Guest RAM.
    pub ram: Ram,
    /// The loop for handlers that never block; others get a loop of their own.
    pub events: LoopHandle,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One virtio device behind a face.
pub(super) struct Core {
    parts: Parts,
    info: Info,
    status: Status,
    interrupt: Arc<dyn Interrupt>,
    doorbells: Vec<Arc<EventFd>>,
    /// Features that the driver accepted.
    accepted: u64,
    pub(super) device_select: u32,
    pub(super) driver_select: u32,
    pub(super) queue_select: u32,
    queues: Vec<Layout>,
    active: Option<(LoopHandle, SubscriberId)>,
    own_loop: Option<EventLoop>,
}

impl Core {
    pub(super) fn new(
        parts: Parts,
        info: Info,
        status: Status,
        interrupt: Arc<dyn Interrupt>,
        doorbells: Vec<Arc<EventFd>>,
    ) -> Self {
        let queues = initial_layouts(&info);
        Self {
            parts,
            info,
            status,
            interrupt,
            doorbells,
            accepted: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            queues,
            active: None,
            own_loop: None,
        }
    }

    /// The word of the offered features that `device_select` names.
    pub(super) fn device_features(&self) -> u32 {
        word(self.info.features | TRANSPORT_FEATURES, self.device_select)
    }

    /// The word of the accepted features that `driver_select` names.
    pub(super) fn driver_features(&self) -> u32 {
        word(self.accepted, self.driver_select)
    }

    /// The driver accepts features. Too late once FEATURES_OK is set.
    pub(super) fn accept_features(&mut self, value: u32) {
        let shift = match self.driver_select {
            0 => 0,
            1 => 32,
            _ => return,
        };
        if self.status.get() & FEATURES_OK == 0 {
            self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
        }
    }

    /// The driver writes the status register: 0 resets, other values set bits.
    pub(super) fn write_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        let mut bits = value & !NEEDS_RESET;
        let before = self.status.get();
        if bits & !before & FEATURES_OK != 0 && !self.features_are_acceptable() {
            bits &= !FEATURES_OK;
        }
        if bits & !before & DRIVER_OK != 0 && (before | bits) & FEATURES_OK == 0 {
            // Section 3.1.1: a driver must not go on without FEATURES_OK.
            bits &= !DRIVER_OK;
        }
        let start = bits & !before & DRIVER_OK != 0;
        self.status.set(bits);
        if start && before & NEEDS_RESET == 0 {
            self.start();
        }
    }

    fn features_are_acceptable(&self) -> bool {
        let offered = self.info.features | TRANSPORT_FEATURES;
        self.accepted & !offered == 0 && self.accepted >> VIRTIO_F_VERSION_1 & 1 == 1
    }

    fn start(&mut self) {
        if let Err(e) = self.activate() {
            if CANNOT_START.allow() {
                tracing::warn!("{}: the device cannot start: {e}", self.parts.name);
            }
            self.interrupt.needs_reset();
        }
    }

    fn activate(&mut self) -> Result<(), ActivateError> {
        let event_idx = self.accepted & EVENT_IDX != 0;
        let sized = self.queues.iter().zip(&self.info.queue_sizes);
        let layouts: Vec<_> = sized.map(|(&layout, &max)| (Layout { event_idx, ..layout }, max)).collect();
        let broken = |e: crate::virtio::Broken| ActivateError(e.to_string());
        let queues = Queues::new(self.parts.ram.clone(), &layouts, self.interrupt.clone()).map_err(broken)?;
        let events = self.events()?;
        let handler = self.parts.device.activate(self.accepted & self.info.features)?;
        let runner = Runner::new(self.parts.name.clone(), handler, queues);
        let worker = Worker::new(runner, self.doorbells.clone());
        let id = events.add(Box::new(worker)).map_err(|e| ActivateError(e.to_string()))?;
        self.active = Some((events, id));
        Ok(())
    }

    /// The loop for the handler. A blocking handler's own one is started when first needed.
    fn events(&mut self) -> Result<LoopHandle, ActivateError> {
        if !self.info.blocking || self.parts.events.in_step() {
            return Ok(self.parts.events.clone());
        }
        let own = match self.own_loop.take() {
            Some(own) => own,
            None => self.parts.events.start_another(&self.parts.name).map_err(|e| ActivateError(e.to_string()))?,
        };
        Ok(self.own_loop.insert(own).handle())
    }

    /// Stops the handler, waits until it is gone, and forgets all that the driver set.
    pub(super) fn reset(&mut self) {
        if let Some((events, id)) = self.active.take()
            && let Err(e) = events.remove(id)
        {
            tracing::error!("{}: {e}", self.parts.name);
        }
        self.accepted = 0;
        (self.device_select, self.driver_select, self.queue_select) = (0, 0, 0);
        self.queues = initial_layouts(&self.info);
        self.parts.device.reset();
        self.status.clear();
    }

    pub(super) fn queue_count(&self) -> usize {
        self.queues.len()
    }

    /// Index of the queue that `queue_select` names, if the device has it.
    pub(super) fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_select).ok().filter(|&index| index < self.queues.len())
    }

    /// Set-up of the selected queue; all zeros if there is none.
    pub(super) fn queue(&self) -> Layout {
        self.selected().and_then(|index| self.queues.get(index)).copied().unwrap_or_default()
    }

    /// Largest size of the selected queue, 0 if there is none.
    pub(super) fn queue_max(&self) -> u16 {
        self.selected().and_then(|index| self.info.queue_sizes.get(index)).copied().unwrap_or(0)
    }

    /// Changes the selected queue. Ignored while the device works with it.
    pub(super) fn change_queue(&mut self, change: impl FnOnce(&mut Layout)) {
        if self.active.is_none()
            && let Some(queue) = self.selected().and_then(|index| self.queues.get_mut(index))
        {
            change(queue);
        }
    }

    /// The guest wrote to the notify register of queue `index` and the engine could not signal the eventfd itself.
    pub(super) fn notify(&self, index: usize) {
        if let Some(doorbell) = self.doorbells.get(index) {
            // Cannot fail: the counter would have to reach 2^64.
            let _ = doorbell.write(1);
        }
    }

    /// The driver writes to the device-specific configuration; what lies beyond its end is dropped.
    pub(super) fn write_config(&mut self, offset: usize, data: &[u8]) {
        let room = self.parts.device.config().len().saturating_sub(offset);
        let data = data.get(..room).unwrap_or(data);
        if !data.is_empty() {
            self.parts.device.write_config(offset, data);
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        if let Some((events, id)) = self.active.take() {
            // Fails if the loop has ended already, and then the worker is gone as well.
            let _ = events.remove(id);
        }
    }
}

fn initial_layouts(info: &Info) -> Vec<Layout> {
    info.queue_sizes.iter().map(|&size| Layout { size, ..Layout::default() }).collect()
}

fn word(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

/// One eventfd for each queue.
pub(super) fn doorbells(name: &str, count: usize) -> Result<Vec<Arc<EventFd>>, Error> {
    let one = || EventFd::new(EFD_NONBLOCK).map(Arc::new);
    let all: Result<_, _> = (0..count).map(|_| one()).collect();
    all.map_err(|source| Error::Host { name: name.into(), source })
}

/// Replaces the low or the high half of an address.
pub(super) fn with_half(address: u64, value: u32, high: bool) -> u64 {
    if high { address & 0xffff_ffff | u64::from(value) << 32 } else { address & !0xffff_ffff | u64::from(value) }
}
