//! Interrupt messages: an irqfd a vector, and the GSI routing table that gives each its message
//! (api.rst sections 4.52 and 4.75).

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry};
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{NAME, host};
use crate::engine::{Error, Result};
use crate::irq::{MsiMessage, MsiSink, MsiVector};

/// KVM's limit on GSIs (`KVM_MAX_IRQ_ROUTES`).
const MAX_GSIS: u32 = 4096;

/// Hands out vectors.
#[derive(Debug)]
pub(super) struct KvmMsi(Arc<Routes>);

struct Routes {
    vm: Arc<VmFd>,
    table: Mutex<Table>,
}

impl std::fmt::Debug for Routes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Routes").finish_non_exhaustive()
    }
}

struct Table {
    next_gsi: u32,
    /// (gsi, message), sorted by gsi.
    routes: Vec<(u32, MsiMessage)>,
}

impl KvmMsi {
    pub(super) fn new(vm: Arc<VmFd>, pins: u32) -> Self {
        let table = Mutex::new(Table { next_gsi: pins, routes: Vec::new() });
        Self(Arc::new(Routes { vm, table }))
    }
}

impl MsiSink for KvmMsi {
    fn vector(&self) -> Result<Arc<dyn MsiVector>> {
        let mut table = self.0.table.lock().unwrap_or_else(PoisonError::into_inner);
        let gsi = table.next_gsi;
        if gsi >= MAX_GSIS {
            let reason = format!("more than {MAX_GSIS} interrupt vectors");
            return Err(Error::Unsupported { engine: NAME, reason });
        }
        table.next_gsi += 1;
        Ok(Arc::new(KvmVector { gsi, routes: self.0.clone(), fd: OnceLock::new() }))
    }

    fn pin(&self, pin: u32) -> Result<Arc<dyn MsiVector>> {
        Ok(Arc::new(KvmVector { gsi: pin, routes: self.0.clone(), fd: OnceLock::new() }))
    }
}

impl Routes {
    fn set(&self, gsi: u32, message: Option<MsiMessage>) -> Result<()> {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let before = table.routes.clone();
        match (table.routes.binary_search_by_key(&gsi, |route| route.0), message) {
            (Ok(at), Some(message)) => {
                let Some(route) = table.routes.get_mut(at).filter(|route| route.1 != message) else { return Ok(()) };
                route.1 = message;
            }
            (Ok(at), None) => drop(table.routes.remove(at)),
            (Err(at), Some(message)) => table.routes.insert(at, (gsi, message)),
            (Err(_), None) => return Ok(()),
        }
        let entries: Vec<_> = table.routes.iter().map(|&(gsi, message)| routing_entry(gsi, message)).collect();
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|_| Error::Unsupported { engine: NAME, reason: "too many interrupt routes".into() })?;
        self.vm.set_gsi_routing(&routing).map_err(host("set interrupt routes")).inspect_err(|_| table.routes = before)
    }
}

fn routing_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

/// One vector. Its irqfd is made when it first gets a message: most vectors of most guests never do.
#[derive(Debug)]
struct KvmVector {
    gsi: u32,
    routes: Arc<Routes>,
    fd: OnceLock<EventFd>,
}

impl MsiVector for KvmVector {
    fn route(&self, message: Option<MsiMessage>) -> Result<()> {
        self.routes.set(self.gsi, message)?;
        if message.is_some() && self.fd.get().is_none() {
            let io = |source| Error::Host { engine: NAME, action: "create an interrupt eventfd", source };
            let fd = EventFd::new(EFD_NONBLOCK).map_err(io)?;
            self.routes.vm.register_irqfd(&fd, self.gsi).map_err(host("register an interrupt eventfd"))?;
            // Two threads that route one vector for the first time at once: the second irqfd is simply not used.
            let _ = self.fd.set(fd);
        }
        Ok(())
    }

    fn trigger(&self) {
        let Some(fd) = self.fd.get() else { return };
        if let Err(e) = fd.write(1) {
            tracing::debug!("kvm: interrupt eventfd of gsi {}: {e}", self.gsi);
        }
    }
}

impl Drop for KvmVector {
    fn drop(&mut self) {
        if let Some(fd) = self.fd.get()
            && let Err(e) = self.routes.vm.unregister_irqfd(fd, self.gsi)
        {
            tracing::debug!("kvm: cannot remove the interrupt eventfd of gsi {}: {e}", self.gsi);
        }
    }
}
