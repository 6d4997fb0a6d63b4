//! Puts virtio devices where the guest finds them: slots of the PCI bus, or fixed addresses.

use std::sync::Arc;

use super::Error;
use crate::board::layout;
use crate::bus::Bus;
use crate::devices::AttachError;
use crate::devices::builder::Placed;
use crate::engine::Vm;
use crate::firmware::{PciHost, VirtioMmio};
use crate::host::event_loop::LoopHandle;
use crate::irq::IrqLine;
use crate::mem::Ram;
use crate::pci::root::{Addresses, Ecam, RootBus};
use crate::spec::Transport;
use crate::virtio::VirtioDevice;
use crate::virtio::transport::core::Parts;
use crate::virtio::transport::mmio::{MmioPlace, MmioTransport};
use crate::virtio::transport::pci::{PciPlace, PciTransport};

/// The machine around the devices.
pub(super) struct Around<'a> {
    pub bus: &'a Arc<Bus>,
    pub vm: &'a Arc<dyn Vm>,
    pub ram: &'a Ram,
    pub events: &'a LoopHandle,
    pub lines: &'a dyn Fn(u32) -> Result<Arc<dyn IrqLine>, AttachError>,
    /// Interrupt of the first device at a fixed address.
    pub first_gsi: u32,
}

/// Devices in their places, and what the ACPI tables must say of them.
#[derive(Debug, Default)]
pub(super) struct Placement {
    pub pci: Option<PciHost>,
    pub virtio_mmio: Vec<VirtioMmio>,
    _ecam: Option<Ecam>,
    _pci: Vec<Arc<PciTransport>>,
    _mmio: Vec<Arc<MmioTransport>>,
}

type Devices = Vec<Placed<Box<dyn VirtioDevice>>>;

impl Placement {
    /// Places `devices` in their order. The PCI bus is there even if it is empty: without one, kernels complain.
    pub fn new(devices: Devices, transport: Transport, around: &Around<'_>) -> Result<Self, Error> {
        match transport {
            Transport::Pci => Self::on_pci(devices, around),
            Transport::Mmio => Self::at_fixed_addresses(devices, around),
        }
    }

    fn on_pci(devices: Devices, around: &Around<'_>) -> Result<Self, Error> {
        let window_last = (layout::PCI_MMIO32_END - 1) as u32;
        let window = layout::PCI_MMIO32 as u32;
        let mut root = RootBus::new(Addresses { ecam: layout::PCI_ECAM, window, window_last })?;
        root.add_host_bridge()?;
        let mut transports = Vec::with_capacity(devices.len());
        for placed in devices {
            let place = PciPlace { root: &mut root, bus: around.bus, vm: around.vm.clone() };
            transports.push(PciTransport::new(around.parts(placed), place)?);
        }
        let pci = PciHost {
            ecam: layout::PCI_ECAM,
            mmio32: (window, layout::PCI_MMIO32_END as u32),
            mmio64: layout::pci_mmio64(around.ram.size()),
        };
        let ecam = root.finish(around.bus, around.vm.as_ref())?;
        Ok(Self { pci: Some(pci), _ecam: Some(ecam), _pci: transports, ..Self::default() })
    }

    fn at_fixed_addresses(devices: Devices, around: &Around<'_>) -> Result<Self, Error> {
        let mut placement = Self::default();
        for (placed, index) in devices.into_iter().zip(0u32..) {
            let gsi = around.first_gsi + index;
            let base = layout::VIRTIO_MMIO + u64::from(index) * layout::VIRTIO_MMIO_STEP;
            let line = (around.lines)(gsi)?;
            let place = MmioPlace { base, gsi, line, bus: around.bus, vm: around.vm.clone() };
            placement._mmio.push(MmioTransport::new(around.parts(placed), place)?);
            placement.virtio_mmio.push(VirtioMmio { base: base as u32, gsi });
        }
        Ok(placement)
    }
}

impl Around<'_> {
    fn parts(&self, placed: Placed<Box<dyn VirtioDevice>>) -> Parts {
        Parts { name: placed.name, device: placed.device, ram: self.ram.clone(), events: self.events.clone() }
    }
}
