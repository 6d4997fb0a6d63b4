//! virtio over PCI (section 4.1), modern only: one function with one 32-bit BAR and MSI-X.
//!
//! ```text
//! BAR 0:  0x0000  common configuration        \
//!         0x0100  device-specific configuration | one register page: the guest reads it without an exit
//!         0x0800  MSI-X table                  |
//!         0x0c00  MSI-X pending bits          /
//!         0x1000  notify registers, 4 bytes a queue
//!         0x1800  ISR status: reading clears it, so it cannot be on the page
//! ```
//!
//! Registers and configuration space are accessed by vCPU threads; interrupts are sent from any thread.

use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::bus::{Bus, BusDevice};
use crate::engine::Vm;
use crate::host::register_page::{PAGE, RegisterPage};
use crate::irq::MsiSink;
use crate::pci::Function;
use crate::pci::config::{ConfigSpace, Identity, reg, touches};
use crate::pci::msix::{MAX_VECTORS, Msix, Place};
use crate::pci::root::RootBus;
use crate::virtio::config::{Listener, MAX_LEN};
use crate::virtio::interrupt::Interrupt;
use crate::virtio::transport::Error;
use crate::virtio::transport::core::{Core, DRIVER_OK, NEEDS_RESET, Parts, Status, doorbells};
use crate::virtio::transport::window::{Doorbell, Window};

/// Offsets in the BAR.
const DEVICE_CONFIG: usize = 0x100;
const MSIX_TABLE: usize = 0x800;
const MSIX_PENDING: usize = 0xc00;
const NOTIFY: usize = PAGE;
const ISR: usize = NOTIFY + 0x800;
const BAR_SIZE: u32 = 2 * PAGE as u32;
/// Bytes between the notify registers of two queues.
const NOTIFY_STEP: usize = 4;
const MAX_QUEUES: usize = (ISR - NOTIFY) / NOTIFY_STEP;

/// Common configuration (section 4.1.4.3).
mod common {
    pub const DEVICE_SELECT: usize = 0;
    pub const DEVICE_FEATURE: usize = 4;
    pub const DRIVER_SELECT: usize = 8;
    pub const DRIVER_FEATURE: usize = 12;
    pub const CONFIG_VECTOR: usize = 16;
    pub const NUM_QUEUES: usize = 18;
    pub const STATUS: usize = 20;
    pub const GENERATION: usize = 21;
    pub const QUEUE_SELECT: usize = 22;
    pub const QUEUE_SIZE: usize = 24;
    pub const QUEUE_VECTOR: usize = 26;
    pub const QUEUE_ENABLE: usize = 28;
    pub const QUEUE_NOTIFY_OFF: usize = 30;
    pub const QUEUE_DESC: usize = 32;
    pub const QUEUE_DRIVER: usize = 40;
    pub const QUEUE_DEVICE: usize = 48;
    /// Bytes, the registers of features that are not offered included (they read as zero).
    pub const LEN: usize = 64;
    /// What a driver may write: offset and size.
    pub const WRITABLE: [(usize, usize); 12] = [
        (DEVICE_SELECT, 4),
        (DRIVER_SELECT, 4),
        (DRIVER_FEATURE, 4),
        (CONFIG_VECTOR, 2),
        (STATUS, 1),
        (QUEUE_SELECT, 2),
        (QUEUE_SIZE, 2),
        (QUEUE_VECTOR, 2),
        (QUEUE_ENABLE, 2),
        (QUEUE_DESC, 8),
        (QUEUE_DRIVER, 8),
        (QUEUE_DEVICE, 8),
    ];
}

/// Vendor of virtio devices, and the device ID of type 0 (section 4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// Subsystem IDs from here on mark devices without a legacy interface (section 4.1.2.1).
const FIRST_SUBSYSTEM: u16 = 0x40;
const REVISION: u8 = 1;
/// Vendor-specific capability, and its kinds (section 4.1.4).
const CAPABILITY: u8 = 9;
const CAP_COMMON: u8 = 1;
const CAP_NOTIFY: u8 = 2;
const CAP_ISR: u8 = 3;
const CAP_DEVICE: u8 = 4;
const CAP_ACCESS: u8 = 5;
/// "No vector" in the vector registers (section 4.1.5.1.2).
const NO_VECTOR: u16 = 0xffff;
/// ISR bits (section 4.1.4.5).
const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;

/// PCI class, subclass and interface of a virtio device type.
fn class(id: u16) -> u32 {
    match id {
        1 => 0x02_0000,       // network: Ethernet
        2 | 8 => 0x01_0000,   // block, SCSI host: storage, SCSI
        3 => 0x07_8000,       // console: other communication
        16 => 0x03_8000,      // GPU: other display
        18 => 0x09_8000,      // input: other input
        19 => 0x02_8000,      // socket: other network
        24 | 27 => 0x05_8000, // memory, persistent memory: other memory
        25 => 0x04_0100,      // sound: audio
        26 => 0x01_8000,      // file system: other storage
        _ => 0x00_ff00,       // entropy, balloon and the rest: unclassified
    }
}

/// What configuration space says of a virtio device type.
fn identity(id: u16) -> Identity {
    Identity {
        id: (VENDOR, FIRST_DEVICE.saturating_add(id)),
        class: class(id),
        revision: REVISION,
        subsystem: (VENDOR, FIRST_SUBSYSTEM.saturating_add(id)),
    }
}

/// What the worker and the device reach from other threads.
#[derive(Debug)]
struct Shared {
    page: RegisterPage,
    status: Status,
    msix: Msix,
    config_vector: AtomicU16,
    queue_vectors: Vec<AtomicU16>,
    isr: AtomicU8,
}

impl Shared {
    /// One vector for each queue and one for the configuration, as far as the table goes.
    fn new(page: RegisterPage, queues: usize, sink: &dyn MsiSink) -> Result<Self, crate::engine::Error> {
        let vectors = u16::try_from(queues + 1).unwrap_or(MAX_VECTORS);
        let at = Place { bar: 0, page_offset: 0, page: page.clone(), table: MSIX_TABLE, pending: MSIX_PENDING };
        let none = || AtomicU16::new(NO_VECTOR);
        Ok(Self {
            status: Status { page: page.clone(), offset: common::STATUS },
            page,
            msix: Msix::new(vectors, at, sink)?,
            config_vector: none(),
            queue_vectors: (0..queues).map(|_| none()).collect(),
            isr: AtomicU8::new(0),
        })
    }

    fn interrupt(&self, isr: u8, vector: &AtomicU16) {
        // Without MSI-X there is no interrupt at all (no INTx), but a polling driver finds the bit.
        self.isr.fetch_or(isr, Ordering::AcqRel);
        self.msix.trigger(vector.load(Ordering::Acquire));
    }

    /// A vector register is written: vectors that do not exist read back as none.
    fn set_vector(&self, register: &AtomicU16, value: u16) {
        register.store(if value < self.msix.count() { value } else { NO_VECTOR }, Ordering::Release);
    }

    fn forget_vectors(&self) {
        for register in self.queue_vectors.iter().chain([&self.config_vector]) {
            register.store(NO_VECTOR, Ordering::Release);
        }
        self.isr.store(0, Ordering::Release);
    }
}

impl Interrupt for Shared {
    fn used(&self, index: usize) {
        if let Some(vector) = self.queue_vectors.get(index) {
            self.interrupt(ISR_QUEUE, vector);
        }
    }

    fn config_changed(&self) {
        if self.status.get() & DRIVER_OK != 0 {
            self.interrupt(ISR_CONFIG, &self.config_vector);
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
        self.page.store(common::GENERATION, &[generation.wrapping_sub(1) as u8]);
        self.page.store(DEVICE_CONFIG, bytes.get(..MAX_LEN).unwrap_or(bytes));
        self.page.store(common::GENERATION, &[generation as u8]);
    }

    fn announce(&self) {
        self.config_changed();
    }
}

/// The machine around a PCI device.
pub struct PciPlace<'a> {
    /// The root bus, which gives the device a slot and addresses.
    pub root: &'a mut RootBus,
    /// The bus on which its registers appear.
    pub bus: &'a Arc<Bus>,
    /// The VM, for doorbells, messages and register pages.
    pub vm: Arc<dyn Vm>,
}

impl std::fmt::Debug for PciPlace<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciPlace").field("root", &self.root).finish_non_exhaustive()
    }
}

/// A virtio device as a PCI function.
pub struct PciTransport {
    me: Weak<Self>,
    state: Mutex<State>,
    config: ConfigSpace,
    shared: Arc<Shared>,
    /// Addresses that the bus forwards.
    window: std::ops::RangeInclusive<u64>,
    /// Offset of the message control register.
    msix_control: usize,
    /// Offset of the configuration access capability.
    access: usize,
}

struct State {
    core: Core,
    window: Window,
}

impl std::fmt::Debug for PciTransport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PciTransport").field("shared", &self.shared).finish_non_exhaustive()
    }
}

impl PciTransport {
    /// Makes a function for the device and puts it into the next slot of the root bus.
    pub fn new(parts: Parts, place: PciPlace<'_>) -> Result<Arc<Self>, Error> {
        let name = parts.name.clone();
        let pci = |source| Error::Pci { name: name.clone(), source };
        let info = parts.device.info();
        let queues = info.queue_sizes.len();
        if queues > MAX_QUEUES {
            return Err(Error::Queues { name, count: queues, max: MAX_QUEUES });
        }
        let page = place.root.page().map_err(pci)?;
        let shared = Shared::new(page.clone(), queues, place.vm.msi());
        let shared = Arc::new(shared.map_err(|source| Error::Engine { name: name.clone(), source })?);
        let as_listener: Arc<dyn Listener> = shared.clone();
        parts.device.config().listen(Arc::downgrade(&as_listener));
        let id = info.id;
        let config_len = parts.device.config().len();
        let fds = doorbells(&name, queues)?;
        let bells = fds.iter().enumerate().map(|(index, fd)| Doorbell {
            offset: (NOTIFY + index * NOTIFY_STEP) as u64,
            value: None,
            fd: fd.clone(),
        });
        let window = Window::new(&name, place.bus, place.vm, u64::from(BAR_SIZE), bells.collect(), page);
        let core = Core::new(parts, info, shared.status.clone(), shared.clone(), fds);
        let mut config = ConfigSpace::new(place.root.page().map_err(pci)?, &identity(id));
        config.set_bar(0, place.root.place_bar(BAR_SIZE).map_err(pci)?, BAR_SIZE);
        let msix_control = shared.msix.add_capability(&mut config);
        let access = add_capabilities(&mut config, queues, config_len);
        let addresses = place.root.addresses();
        let last = u64::from(addresses.window_last).saturating_sub(u64::from(BAR_SIZE) - 1);
        let window_range = u64::from(addresses.window)..=last;
        let transport = Arc::new_cyclic(|me| Self {
            me: me.clone(),
            state: Mutex::new(State { core, window }),
            config,
            shared,
            window: window_range,
            msix_control,
            access,
        });
        transport.publish(&transport.state().core);
        place.root.add(transport.clone()).map_err(pci)?;
        Ok(transport)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything as after power-on: when the machine restarts.
    pub fn reset(&self) {
        let mut state = self.state();
        state.core.reset();
        self.shared.forget_vectors();
        self.shared.msix.reset();
        self.config.reset();
        self.publish(&state.core);
        self.place(&mut state);
    }

    /// Stores all common configuration registers (the status is there already) to the page.
    fn publish(&self, core: &Core) {
        let page = &self.shared.page;
        let queue = core.queue();
        let vector = core.selected().and_then(|index| self.shared.queue_vectors.get(index));
        let vector = vector.map_or(NO_VECTOR, |register| register.load(Ordering::Acquire));
        let notify_off = core.selected().unwrap_or(0) as u16;
        let config_vector = self.shared.config_vector.load(Ordering::Acquire);
        page.store(common::DEVICE_SELECT, &core.device_select.to_le_bytes());
        page.store(common::DEVICE_FEATURE, &core.device_features().to_le_bytes());
        page.store(common::DRIVER_SELECT, &core.driver_select.to_le_bytes());
        page.store(common::DRIVER_FEATURE, &core.driver_features().to_le_bytes());
        page.store(common::CONFIG_VECTOR, &config_vector.to_le_bytes());
        page.store(common::NUM_QUEUES, &(core.queue_count() as u16).to_le_bytes());
        page.store(common::QUEUE_SELECT, &(core.queue_select as u16).to_le_bytes());
        page.store(common::QUEUE_SIZE, &queue.size.to_le_bytes());
        page.store(common::QUEUE_VECTOR, &vector.to_le_bytes());
        page.store(common::QUEUE_ENABLE, &u16::from(queue.enabled).to_le_bytes());
        page.store(common::QUEUE_NOTIFY_OFF, &notify_off.to_le_bytes());
        page.store(common::QUEUE_DESC, &queue.descriptors.to_le_bytes());
        page.store(common::QUEUE_DRIVER, &queue.available.to_le_bytes());
        page.store(common::QUEUE_DEVICE, &queue.used.to_le_bytes());
    }

    /// A write of any width and alignment: each register that it touches gets its old bytes with the new ones in
    /// their place.
    fn write_common(&self, state: &mut State, offset: usize, data: &[u8]) {
        let written = offset..offset.saturating_add(data.len());
        for (at, size) in common::WRITABLE {
            if !touches(&written, at..at + size) {
                continue;
            }
            let mut bytes = [0; 8];
            self.shared.page.load(at, bytes.get_mut(..size).unwrap_or_default());
            for (i, byte) in bytes.iter_mut().enumerate().take(size) {
                if let Some(new) = (at + i).checked_sub(offset).and_then(|from| data.get(from)) {
                    *byte = *new;
                }
            }
            self.set_register(&mut state.core, at, u64::from_le_bytes(bytes));
            self.publish(&state.core);
        }
    }

    fn set_register(&self, core: &mut Core, register: usize, value: u64) {
        match register {
            common::DEVICE_SELECT => core.device_select = value as u32,
            common::DRIVER_SELECT => core.driver_select = value as u32,
            common::DRIVER_FEATURE => core.accept_features(value as u32),
            common::CONFIG_VECTOR => self.shared.set_vector(&self.shared.config_vector, value as u16),
            common::STATUS => {
                core.write_status(value as u8);
                if value as u8 == 0 {
                    self.shared.forget_vectors();
                }
            }
            common::QUEUE_SELECT => core.queue_select = value as u16 as u32,
            common::QUEUE_VECTOR => {
                if let Some(vector) = core.selected().and_then(|index| self.shared.queue_vectors.get(index)) {
                    self.shared.set_vector(vector, value as u16);
                }
            }
            common::QUEUE_SIZE => core.change_queue(|queue| queue.size = value as u16),
            // Cannot be disabled again without VIRTIO_F_RING_RESET (section 4.1.4.3.2).
            common::QUEUE_ENABLE => core.change_queue(|queue| queue.enabled |= value as u16 == 1),
            common::QUEUE_DESC => core.change_queue(|queue| queue.descriptors = value),
            common::QUEUE_DRIVER => core.change_queue(|queue| queue.available = value),
            common::QUEUE_DEVICE => core.change_queue(|queue| queue.used = value),
            _ => {}
        }
    }

    fn read_bar(&self, offset: usize, data: &mut [u8]) {
        match offset {
            0..PAGE => self.shared.page.load(offset, data),
            ISR => {
                data.fill(0);
                if let Some(first) = data.first_mut() {
                    *first = self.shared.isr.swap(0, Ordering::AcqRel);
                }
            }
            _ => data.fill(0),
        }
    }

    fn write_bar(&self, state: &mut State, offset: usize, data: &[u8]) {
        match offset {
            0..common::LEN => self.write_common(state, offset, data),
            DEVICE_CONFIG..MSIX_TABLE => state.core.write_config(offset - DEVICE_CONFIG, data),
            NOTIFY..ISR => state.core.notify((offset - NOTIFY) / NOTIFY_STEP),
            _ => drop(self.shared.msix.write(offset, data)),
        }
    }

    /// Puts the registers where the BAR says, if the bus forwards that address.
    fn place(&self, state: &mut State) {
        let at = self.config.bar(0).filter(|at| self.window.contains(at));
        let me: Weak<dyn BusDevice> = self.me.clone();
        state.window.place(at, &me);
    }

    /// The configuration access capability (section 4.1.4.9): registers of the BAR through configuration space. Its
    /// data register is memory to the guest, so it is filled when the guest names a register, not when it reads.
    fn access(&self, state: &mut State, written: &std::ops::Range<usize>) {
        let page = self.config.page();
        let mut bar = [0];
        page.load(self.access + 4, &mut bar);
        let (offset, len) = (page.load_u32(self.access + 8), page.load_u32(self.access + 12));
        let valid = bar == [0] && matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len) && offset < BAR_SIZE;
        let mut data = [0; 4];
        let Some(data) = data.get_mut(..len as usize).filter(|_| valid) else { return };
        let data_at = self.access + 16;
        if touches(written, data_at..data_at + 4) {
            page.load(data_at, data);
            self.write_bar(state, offset as usize, data);
        } else {
            self.read_bar(offset as usize, data);
            page.store(data_at, data);
        }
    }
}

/// Adds the capabilities that say where the registers are; returns the offset of the last, for access to them.
fn add_capabilities(config: &mut ConfigSpace, queues: usize, config_len: usize) -> usize {
    let body = |kind: u8, offset: usize, len: usize, extra: &[u8]| {
        // cap_len, cfg_type, bar, id, padding; then offset and length
        let mut body = vec![16 + extra.len() as u8, kind, 0, 0, 0, 0];
        body.extend((offset as u32).to_le_bytes());
        body.extend((len as u32).to_le_bytes());
        body.extend(extra);
        body
    };
    config.add_capability(CAPABILITY, &body(CAP_COMMON, 0, common::LEN, &[]), &[]);
    config.add_capability(CAPABILITY, &body(CAP_ISR, ISR, 1, &[]), &[]);
    if config_len > 0 {
        config.add_capability(CAPABILITY, &body(CAP_DEVICE, DEVICE_CONFIG, config_len.next_multiple_of(4), &[]), &[]);
    }
    let step = (NOTIFY_STEP as u32).to_le_bytes();
    config.add_capability(CAPABILITY, &body(CAP_NOTIFY, NOTIFY, queues.max(1) * NOTIFY_STEP, &step), &[]);
    // BAR, offset, length and data are the guest's.
    let mut writable = [0xff; 18];
    writable[..6].copy_from_slice(&[0, 0, 0xff, 0, 0, 0]);
    config.add_capability(CAPABILITY, &body(CAP_ACCESS, 0, 0, &[0; 4]), &writable)
}

impl Function for PciTransport {
    fn page(&self) -> &RegisterPage {
        self.config.page()
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let mut state = self.state();
        let written = self.config.write(offset, data);
        if touches(&written, reg::COMMAND..reg::COMMAND + 2) || touches(&written, reg::BAR0..reg::BAR0 + 4) {
            self.place(&mut state);
        }
        if touches(&written, self.msix_control..self.msix_control + 2) {
            self.shared.msix.set_control(self.config.page().load_u16(self.msix_control));
        }
        if touches(&written, self.access..self.access + 20) {
            self.access(&mut state, &written);
        }
    }
}

impl BusDevice for PciTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.read_bar(offset as usize, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.write_bar(&mut self.state(), offset as usize, data);
    }
}
