//! What firmware leaves behind for a kernel: ACPI tables made from a plain list of what the machine has, and the
//! power registers they speak of. The machine is a "hardware-reduced" one (ACPI section 4.1), so that kernels do
//! not look for the devices of an old PC.

mod dsdt;
pub mod power;
mod reset_vector;
mod tables;

pub use tables::{Error, write};

/// What ACPI tables describe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    /// Number of CPUs, 1 to 255; APIC ids count from 0.
    pub cpus: u32,
    /// PCI host bridge.
    pub pci: Option<PciHost>,
    /// Virtio devices on fixed addresses.
    pub virtio_mmio: Vec<VirtioMmio>,
    /// Devices at fixed I/O ports.
    pub isa: Vec<IsaDevice>,
    /// GSI that announces events such as the power button (edge-triggered).
    pub event_gsi: u32,
}

/// A PCI host bridge with one bus; windows are (first address, end).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciHost {
    /// Configuration space of bus 0.
    pub ecam: u64,
    /// 32-bit window for BARs.
    pub mmio32: (u32, u32),
    /// 64-bit window for BARs.
    pub mmio64: (u64, u64),
}

/// A virtio device at a fixed address, 4 KiB, with an edge-triggered interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Guest-physical address, below 4 GiB.
    pub base: u32,
    /// Interrupt.
    pub gsi: u32,
}

/// A device at fixed I/O ports, with an edge-triggered interrupt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IsaDevice {
    /// `_HID`, e.g. `PNP0501`.
    pub hid: &'static str,
    /// First port.
    pub port: u16,
    /// Number of ports.
    pub ports: u8,
    /// Interrupt.
    pub gsi: Option<u32>,
}

/// `_HID` of a PC's real-time clock.
pub const HID_RTC: &str = "PNP0B00";
