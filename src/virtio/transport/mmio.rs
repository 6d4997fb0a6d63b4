//! virtio over MMIO (section 4.2), version 2: one page of registers and one interrupt line. Registers are accessed by
//! vCPU threads; interrupts are sent from any thread.
//!
//! No register changes by being read, so all of them are on a register page.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use virtio_bindings::virtio_mmio::{
    VIRTIO_MMIO_CONFIG, VIRTIO_MMIO_CONFIG_GENERATION, VIRTIO_MMIO_DEVICE_FEATURES, VIRTIO_MMIO_DEVICE_FEATURES_SEL,
    VIRTIO_MMIO_DEVICE_ID, VIRTIO_MMIO_DRIVER_FEATURES, VIRTIO_MMIO_DRIVER_FEATURES_SEL, VIRTIO_MMIO_INT_CONFIG,
    VIRTIO_MMIO_INT_VRING, VIRTIO_MMIO_INTERRUPT_ACK, VIRTIO_MMIO_INTERRUPT_STATUS, VIRTIO_MMIO_MAGIC_VALUE,
    VIRTIO_MMIO_QUEUE_AVAIL_HIGH, VIRTIO_MMIO_QUEUE_AVAIL_LOW, VIRTIO_MMIO_QUEUE_DESC_HIGH, VIRTIO_MMIO_QUEUE_DESC_LOW,
    VIRTIO_MMIO_QUEUE_NOTIFY, VIRTIO_MMIO_QUEUE_NUM, VIRTIO_MMIO_QUEUE_NUM_MAX, VIRTIO_MMIO_QUEUE_READY,
    VIRTIO_MMIO_QUEUE_SEL, VIRTIO_MMIO_QUEUE_USED_HIGH, VIRTIO_MMIO_QUEUE_USED_LOW, VIRTIO_MMIO_SHM_BASE_HIGH,
    VIRTIO_MMIO_SHM_BASE_LOW, VIRTIO_MMIO_SHM_LEN_HIGH, VIRTIO_MMIO_SHM_LEN_LOW, VIRTIO_MMIO_STATUS,
    VIRTIO_MMIO_VENDOR_ID, VIRTIO_MMIO_VERSION,
};

use crate::bus::{Bus, BusDevice};
use crate::engine::Vm;
use crate::host::register_page::{PAGE, RegisterPage};
use crate::irq::IrqLine;
use crate::virtio::config::Listener;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::transport::Error;
use crate::virtio::transport::core::{Core, DRIVER_OK, NEEDS_RESET, Parts, Status, doorbells, with_half};
use crate::virtio::transport::window::{Doorbell, Window};

/// Bytes of registers.
pub const SIZE: u64 = PAGE as u64;
/// Name of such devices in ACPI tables.
pub const ACPI_HID: &str = "LNRO0005";

const MAGIC: [u8; 4] = *b"virt";
const VERSION: u32 = 2;
const VENDOR: [u8; 4] = *b"BELL";
const INTERRUPT_STATUS: usize = VIRTIO_MMIO_INTERRUPT_STATUS as usize;
const STATUS: usize = VIRTIO_MMIO_STATUS as usize;
const GENERATION: usize = VIRTIO_MMIO_CONFIG_GENERATION as usize;
const CONFIG: usize = VIRTIO_MMIO_CONFIG as usize;

/// What the worker and the device reach from other threads.
#[derive(Debug)]
struct Shared {
    page: RegisterPage,
    status: Status,
    line: Arc<dyn IrqLine>,
}

impl Shared {
    /// Sets a bit of the interrupt status and pulses the line (edge-triggered, as the ACPI tables say).
    fn interrupt(&self, bit: u32) {
        if let Some(byte) = self.page.byte(INTERRUPT_STATUS) {
            byte.fetch_or(bit as u8, Ordering::AcqRel);
        }
        self.line.pulse();
    }
}

impl Interrupt for Shared {
    fn used(&self, _: usize) {
        self.interrupt(VIRTIO_MMIO_INT_VRING);
    }

    fn config_changed(&self) {
        if self.status.get() & DRIVER_OK != 0 {
            self.interrupt(VIRTIO_MMIO_INT_CONFIG);
        }
    }

    fn needs_reset(&self) {
        self.status.set(NEEDS_RESET);
        self.config_changed();
    }
}

impl Listener for Shared {
    fn changed(&self, bytes: &[u8], generation: u32) {
        // The generation differs before, during and after the change: a driver that reads in between tries again.
        self.page.store(GENERATION, &generation.wrapping_sub(1).to_le_bytes());
        self.page.store(CONFIG, bytes);
        self.page.store(GENERATION, &generation.to_le_bytes());
    }

    fn announce(&self) {
        self.config_changed();
    }
}

/// The machine around an MMIO device.
pub struct MmioPlace<'a> {
    /// Guest-physical address of the registers, page aligned.
    pub base: u64,
    /// The interrupt line's number, for the ACPI tables.
    pub gsi: u32,
    /// The interrupt line.
    pub line: Arc<dyn IrqLine>,
    /// The bus on which the registers appear.
    pub bus: &'a Arc<Bus>,
    /// The VM, for doorbells and register pages.
    pub vm: Arc<dyn Vm>,
}

impl std::fmt::Debug for MmioPlace<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioPlace").field("base", &self.base).field("gsi", &self.gsi).finish_non_exhaustive()
    }
}

/// What ACPI must say of the device: a [`ACPI_HID`] with these registers and this edge-triggered, active-high
/// interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resources {
    /// Guest-physical address of the registers.
    pub base: u64,
    /// Bytes of registers.
    pub size: u64,
    /// Interrupt.
    pub gsi: u32,
}

/// A virtio device with memory-mapped registers.
pub struct MmioTransport {
    state: Mutex<State>,
    shared: Arc<Shared>,
    resources: Resources,
}

struct State {
    core: Core,
    _window: Option<Window>,
}

impl std::fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MmioTransport").field("resources", &self.resources).finish_non_exhaustive()
    }
}

impl MmioTransport {
    /// Puts the device on the bus.
    pub fn new(parts: Parts, place: MmioPlace<'_>) -> Result<Arc<Self>, Error> {
        let name = parts.name.clone();
        let page = RegisterPage::alone().map_err(|source| Error::Host { name: name.clone(), source })?;
        let status = Status { page: page.clone(), offset: STATUS };
        let shared = Arc::new(Shared { page: page.clone(), status, line: place.line });
        let as_listener: Arc<dyn Listener> = shared.clone();
        parts.device.config().listen(Arc::downgrade(&as_listener));
        let info = parts.device.info();
        let fds = doorbells(&name, info.queue_sizes.len())?;
        let bells = fds.iter().enumerate().map(|(index, fd)| Doorbell {
            offset: u64::from(VIRTIO_MMIO_QUEUE_NOTIFY),
            value: Some(index as u32),
            fd: fd.clone(),
        });
        let mut window = Window::new(&name, place.bus, place.vm, SIZE, bells.collect(), page.clone());
        for (register, value) in [
            (VIRTIO_MMIO_MAGIC_VALUE, MAGIC),
            (VIRTIO_MMIO_VERSION, VERSION.to_le_bytes()),
            (VIRTIO_MMIO_DEVICE_ID, u32::from(info.id).to_le_bytes()),
            (VIRTIO_MMIO_VENDOR_ID, VENDOR),
            // There are no shared memory regions (section 4.2.2).
            (VIRTIO_MMIO_SHM_LEN_LOW, [0xff; 4]),
            (VIRTIO_MMIO_SHM_LEN_HIGH, [0xff; 4]),
            (VIRTIO_MMIO_SHM_BASE_LOW, [0xff; 4]),
            (VIRTIO_MMIO_SHM_BASE_HIGH, [0xff; 4]),
        ] {
            page.store(register as usize, &value);
        }
        let core = Core::new(parts, info, shared.status.clone(), shared.clone(), fds);
        let resources = Resources { base: place.base, size: SIZE, gsi: place.gsi };
        let state = Mutex::new(State { core, _window: None });
        let transport = Arc::new(Self { state, shared, resources });
        transport.publish(&transport.state().core);
        let device: Arc<dyn BusDevice> = transport.clone();
        if !window.place(Some(place.base), &Arc::downgrade(&device)) {
            return Err(Error::Taken { name, at: place.base });
        }
        transport.state()._window = Some(window);
        Ok(transport)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What ACPI must say of the device.
    pub fn resources(&self) -> Resources {
        self.resources
    }

    /// Everything as after power-on: when the machine restarts.
    pub fn reset(&self) {
        let mut state = self.state();
        state.core.reset();
        self.acknowledge(0xff);
        self.publish(&state.core);
    }

    /// Stores the registers that depend on a selector to the page.
    fn publish(&self, core: &Core) {
        let page = &self.shared.page;
        page.store(VIRTIO_MMIO_DEVICE_FEATURES as usize, &core.device_features().to_le_bytes());
        page.store(VIRTIO_MMIO_QUEUE_NUM_MAX as usize, &u32::from(core.queue_max()).to_le_bytes());
        page.store(VIRTIO_MMIO_QUEUE_READY as usize, &u32::from(core.queue().enabled).to_le_bytes());
    }

    fn acknowledge(&self, bits: u8) {
        if let Some(byte) = self.shared.page.byte(INTERRUPT_STATUS) {
            byte.fetch_and(!bits, Ordering::AcqRel);
        }
    }

    fn set_register(&self, core: &mut Core, register: u32, value: u32) {
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => core.device_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => core.driver_select = value,
            VIRTIO_MMIO_DRIVER_FEATURES => core.accept_features(value),
            VIRTIO_MMIO_QUEUE_SEL => core.queue_select = value,
            VIRTIO_MMIO_QUEUE_NUM => core.change_queue(|queue| queue.size = u16::try_from(value).unwrap_or(0)),
            VIRTIO_MMIO_QUEUE_READY => core.change_queue(|queue| queue.enabled = value & 1 != 0),
            VIRTIO_MMIO_QUEUE_NOTIFY => core.notify(value as usize),
            VIRTIO_MMIO_INTERRUPT_ACK => self.acknowledge(value as u8),
            VIRTIO_MMIO_STATUS => {
                core.write_status(value as u8);
                if value as u8 == 0 {
                    self.acknowledge(0xff);
                }
            }
            VIRTIO_MMIO_QUEUE_DESC_LOW | VIRTIO_MMIO_QUEUE_DESC_HIGH => core.change_queue(|queue| {
                queue.descriptors = with_half(queue.descriptors, value, register == VIRTIO_MMIO_QUEUE_DESC_HIGH);
            }),
            VIRTIO_MMIO_QUEUE_AVAIL_LOW | VIRTIO_MMIO_QUEUE_AVAIL_HIGH => core.change_queue(|queue| {
                queue.available = with_half(queue.available, value, register == VIRTIO_MMIO_QUEUE_AVAIL_HIGH);
            }),
            VIRTIO_MMIO_QUEUE_USED_LOW | VIRTIO_MMIO_QUEUE_USED_HIGH => core.change_queue(|queue| {
                queue.used = with_half(queue.used, value, register == VIRTIO_MMIO_QUEUE_USED_HIGH);
            }),
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.shared.page.load(offset as usize, data);
    }

    /// Registers are 32 bits wide (section 4.2.2.2). A narrower write at the start of one is taken as its value, a
    /// wider one as two; any other is dropped.
    fn write(&self, offset: u64, data: &[u8]) {
        let mut state = self.state();
        let offset = offset as usize;
        if let Some(at) = offset.checked_sub(CONFIG) {
            return state.core.write_config(at, data);
        }
        if !offset.is_multiple_of(4) {
            return;
        }
        for (index, part) in data.chunks(4).enumerate() {
            let mut word = [0; 4];
            word.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            self.set_register(&mut state.core, (offset + 4 * index) as u32, u32::from_le_bytes(word));
            self.publish(&state.core);
        }
    }
}
