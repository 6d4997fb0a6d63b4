//! A machine whose run can be repeated: its CPU waits, at each access that may make a device work, until all devices have
//! done what there was to do. So interrupts come at a place in the guest's code that depends on the guest alone.

use std::sync::{Arc, OnceLock};

use crate::engine::Kicker;
use crate::host::event_loop::LoopHandle;
use crate::machine::control::Control;

/// What the CPU waits for.
pub(super) struct InStep {
    devices: LoopHandle,
    control: Arc<Control>,
    cpu: OnceLock<Arc<dyn Kicker>>,
}

impl InStep {
    /// Waits for `devices`, which are all on this loop.
    pub(super) fn new(devices: LoopHandle, control: Arc<Control>) -> Self {
        Self { devices, control, cpu: OnceLock::new() }
    }

    /// The CPU that waits.
    pub(super) fn set_cpu(&self, cpu: Arc<dyn Kicker>) {
        // There is one CPU, and it is set once.
        let _ = self.cpu.set(cpu);
    }

    /// On the CPU's thread, after it wrote to a device. If that ended the machine the CPU goes no further, or else it
    /// would until it is stopped.
    pub(super) fn settle(&self) {
        self.devices.settle();
        if let (true, Some(cpu)) = (self.control.has_ended(), self.cpu.get()) {
            cpu.kick();
        }
    }
}
