//! The registers of a device at an address of the guest: on the bus, with doorbells, and with the page that the guest
//! may read directly. A PCI device moves when the guest rewrites its BAR.

use std::sync::{Arc, Weak};

use vmm_sys_util::eventfd::EventFd;

use crate::bus::{Bus, BusDevice};
use crate::engine::{IoAddr, Vm};
use crate::host::log_limit::LogLimit;
use crate::host::register_page::{PAGE, RegisterPage};

static CANNOT_PLACE: LogLimit = LogLimit::new();

/// A guest write that signals an eventfd.
#[derive(Debug)]
pub(super) struct Doorbell {
    pub(super) offset: u64,
    /// Only this value, if given.
    pub(super) value: Option<u32>,
    pub(super) fd: Arc<EventFd>,
}

impl Doorbell {
    fn address(&self, base: u64) -> IoAddr {
        IoAddr::Mmio(base.saturating_add(self.offset))
    }
}

/// Registers that can be placed.
pub(super) struct Window {
    name: String,
    bus: Weak<Bus>,
    vm: Arc<dyn Vm>,
    /// Bytes on the bus.
    len: u64,
    doorbells: Vec<Doorbell>,
    /// The first page of the registers.
    page: RegisterPage,
    at: Option<u64>,
    /// Indices of the doorbells that the engine serves.
    served: Vec<usize>,
    shown: Option<Box<dyn Send + Sync>>,
}

impl Window {
    pub(super) fn new(
        name: &str,
        bus: &Arc<Bus>,
        vm: Arc<dyn Vm>,
        len: u64,
        doorbells: Vec<Doorbell>,
        page: RegisterPage,
    ) -> Self {
        Self {
            name: name.into(),
            bus: Arc::downgrade(bus),
            vm,
            len,
            doorbells,
            page,
            at: None,
            served: Vec::new(),
            shown: None,
        }
    }

    /// Moves the registers to `at`, or nowhere. False if something else is there already: then they are not reachable.
    pub(super) fn place(&mut self, at: Option<u64>, device: &Weak<dyn BusDevice>) -> bool {
        if at == self.at {
            return true;
        }
        self.unplace();
        let (Some(at), Some(bus), Some(device)) = (at, self.bus.upgrade(), device.upgrade()) else { return true };
        if let Err(e) = bus.insert(IoAddr::Mmio(at), self.len, device) {
            if CANNOT_PLACE.allow() {
                tracing::warn!("{}: the guest moves the device to an impossible place: {e}", self.name);
            }
            return false;
        }
        self.at = Some(at);
        // Before the doorbells: after them KVM takes longer over it.
        if let Some(pages) = self.vm.register_pages() {
            match pages.show(at, self.page.host(), PAGE as u64, Arc::new(self.page.clone())) {
                Ok(shown) => self.shown = Some(shown),
                // Reads come to the bus then.
                Err(e) => self.complain("show registers", &e),
            }
        }
        for (index, doorbell) in self.doorbells.iter().enumerate() {
            // Where the engine cannot, the write arrives on the bus and the device signals its eventfd itself.
            match self.vm.doorbell(doorbell.address(at), doorbell.value, &doorbell.fd) {
                Ok(true) => self.served.push(index),
                Ok(false) => {}
                Err(e) => self.complain("register a doorbell", &e),
            }
        }
        true
    }

    fn unplace(&mut self) {
        self.shown = None;
        let Some(at) = self.at.take() else { return };
        for index in std::mem::take(&mut self.served) {
            let Some(doorbell) = self.doorbells.get(index) else { continue };
            if let Err(e) = self.vm.remove_doorbell(doorbell.address(at), doorbell.value, &doorbell.fd) {
                self.complain("remove a doorbell", &e);
            }
        }
        if let Some(bus) = self.bus.upgrade() {
            bus.remove(IoAddr::Mmio(at));
        }
    }

    fn complain(&self, what: &str, error: &crate::engine::Error) {
        if CANNOT_PLACE.allow() {
            tracing::warn!("{}: cannot {what}: {error}", self.name);
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.unplace();
    }
}
