//! What a device may ask of the machine while it is placed. Everything is only collected here; the machine
//! connects it to buses, interrupts and loops.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bus::BusDevice;
use crate::devices::balloon::BalloonHandle;
use crate::devices::console_output::ConsoleHub;
use crate::devices::{AttachError, Notify};
use crate::engine::Deterministic;
use crate::host::event_loop::LoopHandle;
use crate::irq::IrqLine;
use crate::mem::Ram;
use crate::virtio::VirtioDevice;

/// Reads what a device tells of itself.
pub type Statistics = Box<dyn Fn() -> serde_json::Value + Send + Sync>;

/// Plain numbers as JSON, for [`Builder::report`].
pub fn json(numbers: &impl serde::Serialize) -> serde_json::Value {
    // Cannot fail for them; if it ever does the report says null.
    serde_json::to_value(numbers).unwrap_or_default()
}

/// Collects the devices of one machine.
pub struct Builder<'a> {
    /// Guest RAM (only the balloon needs it, to give pages back).
    pub ram: &'a Ram,
    /// The loop for whatever never blocks.
    pub events: &'a LoopHandle,
    /// Where power-off, reset and the like go.
    pub notify: &'a Notify,
    /// Where consoles print and read.
    pub consoles: &'a Arc<ConsoleHub>,
    /// Interrupt lines of the board, by GSI.
    pub lines: &'a dyn Fn(u32) -> Result<Arc<dyn IrqLine>, AttachError>,
    /// Virtio devices, in the order of their PCI slots.
    pub virtio: Vec<Placed<Box<dyn VirtioDevice>>>,
    /// Devices at fixed I/O ports.
    pub ports: Vec<PlacedPorts>,
    /// What devices tell of themselves, by the names of the devices.
    pub statistics: BTreeMap<String, Statistics>,
    /// Steers the balloon, if there is one.
    pub balloon: Option<BalloonHandle>,
    /// The run shall be one that can be repeated: random numbers and the date come from here, and `events` is in step.
    pub deterministic: Option<Deterministic>,
}

/// A device and its name in messages.
#[derive(Debug)]
pub struct Placed<D> {
    /// E.g. `disk0`.
    pub name: String,
    /// The device.
    pub device: D,
}

/// A device at fixed I/O ports.
pub struct PlacedPorts {
    /// E.g. `serial0`.
    pub name: String,
    /// First port.
    pub base: u16,
    /// Number of ports.
    pub len: u16,
    /// GSI it interrupts with.
    pub gsi: Option<u32>,
    /// `_HID` under which ACPI lists it, e.g. `PNP0501`; none for devices that drivers find otherwise.
    pub hid: Option<&'static str>,
    /// The device.
    pub device: Arc<dyn BusDevice>,
}

impl std::fmt::Debug for Builder<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PlacedPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PlacedPorts").field("name", &self.name).field("base", &self.base).finish_non_exhaustive()
    }
}

impl Builder<'_> {
    /// Places a virtio device; its name, which is returned, gets a number: `disk0`, `disk1`.
    pub fn virtio(&mut self, kind: &str, device: Box<dyn VirtioDevice>) -> String {
        let number =
            self.virtio.iter().filter(|p| p.name.trim_end_matches(|c: char| c.is_ascii_digit()) == kind).count();
        let name = format!("{kind}{number}");
        self.virtio.push(Placed { name: name.clone(), device });
        name
    }

    /// The machine's report shall have what `read` returns, under `name`. Any thread may call it, at any time.
    pub fn report(&mut self, name: String, read: impl Fn() -> serde_json::Value + Send + Sync + 'static) {
        self.statistics.insert(name, Box::new(read));
    }
}
