//! Virtio (OASIS Virtual I/O Device specification 1.3): what a device is, apart from how a guest reaches it.
//!
//! ```text
//!            vCPU thread                              event loop thread
//!   guest -> transport (pci | mmio) -> core --activate--> Worker { Handler, Queues }
//!                                        |<---reset-----------'
//! ```
//!
//! A [`VirtioDevice`] answers the transport; when the driver is ready (DRIVER_OK) it makes a [`Handler`], which owns
//! the data path and lives on an event loop until the device is reset.

use std::os::fd::RawFd;

use crate::virtio::config::ConfigSpace;
use crate::virtio::queue::Queues;

pub mod chain;
pub mod config;
pub mod interrupt;
#[cfg(any(test, feature = "testkit"))]
pub mod kit;
pub mod queue;
#[cfg(test)]
mod tests;
pub mod transport;
mod watch;
pub mod worker;

pub use chain::Chain;
pub use watch::Interest;

/// Fixed properties of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// Device type (section 5), e.g. 2 for block.
    pub id: u16,
    /// Feature bits that the device offers, beside those that the transport adds (VERSION_1, EVENT_IDX, INDIRECT_DESC).
    pub features: u64,
    /// Largest size of each queue, powers of two.
    pub queue_sizes: Vec<u16>,
    /// The handler may block (synchronous disk I/O): it gets an event loop of its own.
    pub blocking: bool,
}

/// The device is what it is, but cannot start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ActivateError(pub String);

/// A virtio device as its transport sees it. Called on vCPU threads, never concurrently.
pub trait VirtioDevice: Send {
    /// Fixed properties.
    fn info(&self) -> Info;
    /// Device-specific configuration; the transport reads it and watches it for changes.
    fn config(&self) -> &ConfigSpace;
    /// The driver wrote to the configuration. Only devices with writable fields care.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) {}
    /// The driver accepted `features` and set DRIVER_OK. The handler must keep no state that a reset should not drop.
    fn activate(&mut self, features: u64) -> Result<Box<dyn Handler>, ActivateError>;
    /// The driver reset the device; its handler is already gone.
    fn reset(&mut self) {}
}

/// The data path of an active device. Called on one event loop thread.
///
/// `Err(Broken)` means that the driver broke the rules of the specification: the core sets DEVICE_NEEDS_RESET,
/// tells the driver, logs one line, and calls the handler no more until the reset.
pub trait Handler: Send {
    /// Descriptors to watch for readability beside the queues: (fd, token passed to [`Handler::on_fd`]). They stay
    /// open as long as the handler; those that come and go are for [`Queues::watch`].
    fn fds(&self) -> Vec<(RawFd, u32)> {
        Vec::new()
    }
    /// Once, before any other call.
    fn start(&mut self, _queues: &mut Queues) -> Result<(), Broken> {
        Ok(())
    }
    /// The driver made buffers available in queue `index`. A handler takes what it can use ([`queue::VirtQueue::pop`]
    /// until it gives none) or leaves buffers for later; it is called again when a queue that it found empty gets
    /// more, or when it was stopped for the sake of others. Interrupts are sent by the core after it returns.
    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken>;
    /// The descriptor with `token` is readable (or hung up).
    fn on_fd(&mut self, _token: u32, _queues: &mut Queues) -> Result<(), Broken> {
        Ok(())
    }
}

/// The driver broke the rules: what it did.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Broken(pub String);
