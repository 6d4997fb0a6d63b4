//! PCI (PCI Local Bus specification 3.0; PCI Express base specification section 7.2.2 for ECAM): one flat bus of
//! functions that interrupt by MSI-X. No ports 0xcf8/0xcfc: configuration space is memory, and where the engine can
//! show register pages, reading it costs the guest no exit.

pub mod config;
pub mod msix;
pub mod root;
#[cfg(any(test, feature = "testkit"))]
pub mod testing;

/// The PCI topology could not be built; never caused by a guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No slot is free.
    #[error("The PCI bus is full: it has {0} slots; use fewer devices")]
    Full(usize),
    /// The address window for BARs is used up.
    #[error("No room for {0:#x} bytes in the address window for PCI devices; use fewer devices")]
    NoSpace(u64),
    /// Pages for registers could not be mapped.
    #[error("Cannot map pages for PCI registers: {0}")]
    Map(std::io::Error),
    /// The engine refused.
    #[error("Cannot set up PCI: {0}")]
    Engine(#[from] crate::engine::Error),
    /// Addresses of the root bus are taken.
    #[error("Cannot place the PCI configuration space: {0}")]
    Overlap(#[from] crate::bus::Overlap),
}

/// A function on the bus. Called on vCPU threads, concurrently.
pub trait Function: Send + Sync {
    /// Its configuration space, for reading.
    fn page(&self) -> &crate::host::register_page::RegisterPage;
    /// The guest writes `data` (1 to 8 bytes) at `offset` (below 4096).
    fn write_config(&self, offset: usize, data: &[u8]);
}
