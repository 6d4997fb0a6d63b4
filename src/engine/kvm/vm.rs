//! One VM: memory slots, doorbells, register pages.

// UNSAFETY: gives KVM host addresses to map into the guest.
#![expect(unsafe_code)]

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{CpuId, KVM_CAP_SPLIT_IRQCHIP, KVM_MEM_READONLY, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::msi::KvmMsi;
use super::vcpu::KvmVcpu;
use super::{KvmEngine, NAME, convert, host};
use crate::arch::x86_64::cpuid::CpuidTable;
use crate::engine::{Error, IoAddr, RegisterPages, Result, Vcpu, Vm, VmConfig};
use crate::irq::MsiSink;
use crate::mem::{PAGE, Ram};

/// Where Intel hosts without unrestricted guest mode keep a page table and a TSS: four pages below the firmware area,
/// in a hole of every board (api.rst sections 4.34 and 4.39).
const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;
const TSS_ADDRESS: u64 = 0xfffb_d000;

/// A KVM virtual machine.
pub struct KvmVm {
    fd: Arc<VmFd>,
    supported: CpuId,
    msi: KvmMsi,
    slots: Arc<Slots>,
    ram: Ram,
    /// Taken while coalesced writes are delivered: the ring that holds them is one for all vCPUs.
    late_writes: Option<Arc<Mutex<()>>>,
    /// What to put on KVM's I/O buses when the first vCPU is created, and then at once (`None`). Linux 6.18 changes these
    /// buses without waiting for those that still read the old ones; but a memory slot that is made before they are gone
    /// waits for them, 5 to 8 ms. So while a machine is built all slots come first.
    waiting: Mutex<Option<Vec<IoBusEntry>>>,
}

/// A place on KVM's I/O buses.
#[derive(Debug)]
enum IoBusEntry {
    Doorbell { at: IoAddr, value: Option<u32>, fd: EventFd },
    LateWrites { at: IoAddr, len: u32 },
}

impl std::fmt::Debug for KvmVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KvmVm").finish_non_exhaustive()
    }
}

impl KvmVm {
    pub(super) fn new(engine: &KvmEngine, ram: &Ram, config: &VmConfig) -> Result<Self> {
        let kvm = &engine.kvm;
        let fd = Arc::new(kvm.create_vm().map_err(host("create a VM"))?);
        if kvm.check_extension(Cap::SetTssAddr) {
            fd.set_tss_address(TSS_ADDRESS as usize).map_err(host("set the TSS address"))?;
            fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(host("set the identity map address"))?;
        }
        let mut split = kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
        split.args[0] = u64::from(config.ioapic_pins);
        fd.enable_cap(&split).map_err(host("enable the split irqchip"))?;
        let slots =
            Arc::new(Slots { fd: fd.clone(), used: Mutex::default(), readonly: kvm.check_extension(Cap::ReadonlyMem) });
        for region in ram.regions() {
            slots.map(region.start, region.host, region.len, 0, "map guest RAM")?;
        }
        let supported = engine.supported()?.clone();
        let coalesces = kvm.check_extension(Cap::CoalescedMmio) && kvm.check_extension(Cap::CoalescedPio);
        let late_writes = coalesces.then(Arc::default);
        let msi = KvmMsi::new(fd.clone(), config.ioapic_pins);
        let waiting = Mutex::new(Some(Vec::new()));
        Ok(Self { msi, fd, supported, slots, ram: ram.clone(), late_writes, waiting })
    }

    /// As [`Vm::create_vcpu`].
    pub(super) fn vcpu(&self, index: u32) -> Result<KvmVcpu> {
        let waiting = self.waiting().take();
        waiting.iter().flatten().try_for_each(|entry| self.put_on_io_bus_now(entry))?;
        let fd = self.fd.create_vcpu(u64::from(index)).map_err(host("create a vCPU"))?;
        KvmVcpu::new(fd, index, self.ram.clone(), self.late_writes.clone())
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Vec<IoBusEntry>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put_on_io_bus(&self, entry: IoBusEntry) -> Result<()> {
        match self.waiting().as_mut() {
            Some(waiting) => {
                waiting.push(entry);
                Ok(())
            }
            None => self.put_on_io_bus_now(&entry),
        }
    }

    fn put_on_io_bus_now(&self, entry: &IoBusEntry) -> Result<()> {
        match entry {
            IoBusEntry::Doorbell { at, value: Some(value), fd } => {
                self.fd.register_ioevent(fd, &event_address(*at), *value).map_err(host("register a doorbell"))
            }
            IoBusEntry::Doorbell { at, value: None, fd } => {
                self.fd.register_ioevent(fd, &event_address(*at), NoDatamatch).map_err(host("register a doorbell"))
            }
            IoBusEntry::LateWrites { at, len } => {
                self.fd.register_coalesced_mmio(event_address(*at), *len).map_err(host("coalesce writes"))
            }
        }
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>> {
        Ok(Box::new(self.vcpu(index)?))
    }

    fn msi(&self) -> &dyn MsiSink {
        &self.msi
    }

    fn doorbell(&self, at: IoAddr, value: Option<u32>, fd: &EventFd) -> Result<bool> {
        let fd = fd.try_clone().map_err(|source| Error::Host { engine: NAME, action: "copy an eventfd", source })?;
        self.put_on_io_bus(IoBusEntry::Doorbell { at, value, fd })?;
        Ok(true)
    }

    fn remove_doorbell(&self, at: IoAddr, value: Option<u32>, fd: &EventFd) -> Result<()> {
        if let Some(waiting) = self.waiting().as_mut() {
            waiting.retain(
                |entry| !matches!(entry, IoBusEntry::Doorbell { at: a, value: v, .. } if (*a, *v) == (at, value)),
            );
            return Ok(());
        }
        let at = event_address(at);
        match value {
            Some(value) => self.fd.unregister_ioevent(fd, &at, value),
            None => self.fd.unregister_ioevent(fd, &at, NoDatamatch),
        }
        .map_err(host("remove a doorbell"))
    }

    fn coalesce(&self, at: IoAddr, len: u32) -> Result<bool> {
        if self.late_writes.is_none() {
            return Ok(false);
        }
        self.put_on_io_bus(IoBusEntry::LateWrites { at, len })?;
        Ok(true)
    }

    fn register_pages(&self) -> Option<&dyn RegisterPages> {
        self.slots.readonly.then_some(self as &dyn RegisterPages)
    }

    fn supported_cpuid(&self) -> Result<CpuidTable> {
        Ok(convert::cpuid_from_kvm(&self.supported))
    }
}

impl RegisterPages for KvmVm {
    fn show(&self, at: u64, host: usize, len: u64, owner: Arc<dyn Send + Sync>) -> Result<Box<dyn Send + Sync>> {
        let slot = self.slots.map(at, host, len, KVM_MEM_READONLY, "show register pages")?;
        Ok(Box::new(ShownPages { slots: self.slots.clone(), slot, _owner: owner }))
    }
}

fn event_address(at: IoAddr) -> IoEventAddress {
    match at {
        IoAddr::Port(port) => IoEventAddress::Pio(u64::from(port)),
        IoAddr::Mmio(address) => IoEventAddress::Mmio(address),
    }
}

/// Memory slots by number; numbers are used again, since hosts allow only so many.
struct Slots {
    fd: Arc<VmFd>,
    used: Mutex<Vec<bool>>,
    readonly: bool,
}

impl Slots {
    fn used(&self) -> MutexGuard<'_, Vec<bool>> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn map(&self, at: u64, host_address: usize, len: u64, flags: u32, action: &'static str) -> Result<u32> {
        if len == 0 || [at, host_address as u64, len].iter().any(|n| !n.is_multiple_of(PAGE)) {
            let reason = format!("mapping {at:#x}+{len:#x} is not page aligned");
            return Err(Error::Unsupported { engine: NAME, reason });
        }
        let mut used = self.used();
        let slot = used.iter().position(|taken| !taken).unwrap_or(used.len());
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags,
            guest_phys_addr: at,
            memory_size: len,
            userspace_addr: host_address as u64,
        };
        // SAFETY: `host_address` starts `len` bytes of mapped memory that outlives the slot: guest RAM is kept by
        // KvmVm::ram, register pages by ShownPages::_owner, and both remove the slot or close the VM first.
        unsafe { self.fd.set_user_memory_region(region) }.map_err(host(action))?;
        if slot == used.len() {
            used.push(true);
        } else if let Some(taken) = used.get_mut(slot) {
            *taken = true;
        }
        Ok(slot as u32)
    }

    fn unmap(&self, slot: u32) {
        let region = kvm_userspace_memory_region { slot, ..Default::default() };
        let mut used = self.used();
        // SAFETY: a region of size zero removes the slot; KVM then no longer uses the host memory behind it.
        match unsafe { self.fd.set_user_memory_region(region) } {
            Ok(()) => used.get_mut(slot as usize).into_iter().for_each(|taken| *taken = false),
            Err(e) => tracing::error!("kvm: cannot remove memory slot {slot}: {e}"),
        }
    }
}

/// Keeps register pages in the guest's address space until dropped.
struct ShownPages {
    slots: Arc<Slots>,
    slot: u32,
    _owner: Arc<dyn Send + Sync>,
}

impl Drop for ShownPages {
    fn drop(&mut self) {
        self.slots.unmap(self.slot);
    }
}
