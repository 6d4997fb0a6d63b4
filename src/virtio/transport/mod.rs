//! How a guest reaches a virtio device: one state machine ([`core`]) with two faces, [`pci`] (section 4.1) and
//! [`mmio`] (section 4.2).
//!
//! Both faces keep their registers on a register page, which the guest reads without an exit where the engine can
//! show it; a write goes to the core, and what it changed is stored to the page before the guest's vCPU continues.

pub mod core;
pub mod mmio;
pub mod pci;
mod window;

#[cfg(any(test, feature = "testkit"))]
pub mod testing;
#[cfg(test)]
mod tests;

/// A transport could not be built; never caused by a guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Host resources ran out.
    #[error("Cannot set up virtio device {name}: {source}")]
    Host {
        /// Which device.
        name: String,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The engine refused.
    #[error("Cannot set up virtio device {name}: {source}")]
    Engine {
        /// Which device.
        name: String,
        /// Why.
        source: crate::engine::Error,
    },
    /// The PCI bus refused.
    #[error("Cannot set up virtio device {name}: {source}")]
    Pci {
        /// Which device.
        name: String,
        /// Why.
        source: crate::pci::Error,
    },
    /// The addresses are in use.
    #[error("Cannot set up virtio device {name}: something else is at {at:#x}")]
    Taken {
        /// Which device.
        name: String,
        /// Guest-physical address.
        at: u64,
    },
    /// The device has more queues than the transport can address.
    #[error("virtio device {name} has {count} queues; at most {max} are possible")]
    Queues {
        /// Which device.
        name: String,
        /// How many it has.
        count: usize,
        /// The limit.
        max: usize,
    },
}
