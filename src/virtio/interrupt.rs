//! How a device reaches its driver: each transport implements this with its own kind of interrupt.

use std::fmt::Debug;

/// From device to driver. Callable from any thread; never blocks.
pub trait Interrupt: Send + Sync + Debug {
    /// Queue `index` has used buffers that the driver wants to hear of.
    fn used(&self, index: usize);
    /// The device-specific configuration changed (section 2.3.1).
    fn config_changed(&self);
    /// The device cannot go on until it is reset: sets DEVICE_NEEDS_RESET and tells the driver (section 2.1.2).
    fn needs_reset(&self);
}
