//! The root bus: 32 slots of one function each, their configuration space (ECAM, PCI Express 3.0 section 7.2.2) and
//! the address window from which BARs are placed. Built before the machine runs; afterwards vCPU threads access the
//! configuration space.
//!
//! ```text
//!   guest     | slot 0: fn 0, 7 x absent | slot 1: fn 0, 7 x absent | ... | slot 31 |     1 MiB, one page a function
//!   memfd     | absent x 8 | slot 0 fn 0 | slot 1 fn 0 | registers of devices ... |
//! ```

use std::sync::Arc;

use crate::bus::{Bus, BusDevice};
use crate::engine::{IoAddr, Vm};
use crate::host::register_page::{PAGE, RegisterMemory, RegisterPage, View};
use crate::pci::config::{ConfigSpace, Identity};
use crate::pci::{Error, Function};

/// Slots on the bus.
pub const SLOTS: usize = 32;
/// Functions of a slot; only the first is ever present.
const FUNCTIONS: usize = 8;
/// Bytes of configuration space of one bus.
pub const ECAM_SIZE: u64 = (SLOTS * FUNCTIONS * PAGE) as u64;
/// Pages for the registers of functions: configuration space and BAR of each, and some to spare.
const REGISTER_PAGES: usize = FUNCTIONS + 3 * SLOTS;

/// Address ranges of the bus, from the board.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Guest-physical address of the configuration space ([`ECAM_SIZE`] bytes, 1 MiB aligned).
    pub ecam: u64,
    /// First address of the 32-bit window for BARs.
    pub window: u32,
    /// Last address of that window.
    pub window_last: u32,
}

/// The root bus while the machine is built.
pub struct RootBus {
    addresses: Addresses,
    memory: Arc<RegisterMemory>,
    absent: Vec<RegisterPage>,
    functions: Vec<Arc<dyn Function>>,
    next_bar: u64,
}

impl std::fmt::Debug for RootBus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootBus").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl RootBus {
    /// An empty bus.
    pub fn new(addresses: Addresses) -> Result<Self, Error> {
        let memory = RegisterMemory::new(REGISTER_PAGES).map_err(Error::Map)?;
        let absent: Vec<_> = (0..FUNCTIONS).map(|_| memory.page()).collect::<Result<_, _>>().map_err(Error::Map)?;
        for page in &absent {
            page.store(0, &[0xff; PAGE]);
        }
        let next_bar = u64::from(addresses.window);
        Ok(Self { addresses, memory, absent, functions: Vec::new(), next_bar })
    }

    /// Address ranges, for the ACPI tables (MCFG and the resources of PNP0A08).
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// A zeroed page for registers.
    pub fn page(&self) -> Result<RegisterPage, Error> {
        self.memory.page().map_err(Error::Map)
    }

    /// Address for a 32-bit BAR of `size` bytes, a power of two.
    pub fn place_bar(&mut self, size: u32) -> Result<u32, Error> {
        let full = Error::NoSpace(u64::from(size));
        let at = self.next_bar.next_multiple_of(u64::from(size.max(1)));
        let end = at + u64::from(size);
        if end > u64::from(self.addresses.window_last) + 1 {
            return Err(full);
        }
        self.next_bar = end;
        u32::try_from(at).map_err(|_| full)
    }

    /// Puts a function into the next slot; returns the slot's number.
    pub fn add(&mut self, function: Arc<dyn Function>) -> Result<usize, Error> {
        if self.functions.len() >= SLOTS {
            return Err(Error::Full(SLOTS));
        }
        self.functions.push(function);
        Ok(self.functions.len() - 1)
    }

    /// Puts a host bridge into the next slot (by custom the first): software finds it where it looks for one. A
    /// kernel sizes its BARs like any other's, which costs some exits.
    pub fn add_host_bridge(&mut self) -> Result<(), Error> {
        // Red Hat's IDs for a bridge without any registers of its own.
        let identity = Identity { id: (0x1b36, 0x0008), class: 0x06_0000, revision: 0, subsystem: (0x1af4, 0x1100) };
        let bridge = HostBridge(std::sync::Mutex::new(()), ConfigSpace::new(self.page()?, &identity));
        self.add(Arc::new(bridge)).map(|_| ())
    }

    /// Puts the configuration space on the machine's bus, and shows it to the guest where the engine can.
    pub fn finish(self, bus: &Bus, vm: &dyn Vm) -> Result<Ecam, Error> {
        let registers = Arc::new(Registers { functions: self.functions });
        bus.insert(IoAddr::Mmio(self.addresses.ecam), ECAM_SIZE, registers.clone())?;
        let shown = match vm.register_pages() {
            None => None,
            Some(pages) => {
                let mut order = Vec::with_capacity(SLOTS * FUNCTIONS);
                for slot in 0..SLOTS {
                    order.extend(&self.absent);
                    if let (Some(function), Some(page)) =
                        (registers.functions.get(slot), order.get_mut(slot * FUNCTIONS))
                    {
                        *page = function.page();
                    }
                }
                let view: Arc<View> = Arc::new(self.memory.view(&order).map_err(Error::Map)?);
                Some(pages.show(self.addresses.ecam, view.host(), ECAM_SIZE, view)?)
            }
        };
        Ok(Ecam { addresses: self.addresses, _shown: shown })
    }
}

/// Keeps the configuration space in the guest's address space.
pub struct Ecam {
    addresses: Addresses,
    _shown: Option<Box<dyn Send + Sync>>,
}

impl std::fmt::Debug for Ecam {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ecam").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

impl Ecam {
    /// Address ranges, for the ACPI tables.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }
}

/// Configuration space as the bus sees it.
struct Registers {
    functions: Vec<Arc<dyn Function>>,
}

impl Registers {
    fn find(&self, offset: u64) -> Option<(&dyn Function, usize)> {
        let (page, offset) = (offset as usize / PAGE, offset as usize % PAGE);
        let function = self.functions.get(page / FUNCTIONS).filter(|_| page.is_multiple_of(FUNCTIONS))?;
        Some((&**function, offset))
    }
}

impl BusDevice for Registers {
    fn read(&self, offset: u64, data: &mut [u8]) {
        match self.find(offset) {
            Some((function, offset)) => function.page().load(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some((function, offset)) = self.find(offset) {
            function.write_config(offset, data);
        }
    }
}

/// A host bridge has nothing but its header.
struct HostBridge(std::sync::Mutex<()>, ConfigSpace);

impl Function for HostBridge {
    fn page(&self) -> &RegisterPage {
        self.1.page()
    }

    fn write_config(&self, offset: usize, data: &[u8]) {
        let _one_at_a_time = self.0.lock();
        self.1.write(offset, data);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::CpuIo;
    use crate::virtio::transport::testing::TestVm;

    const ADDRESSES: Addresses = Addresses { ecam: 0xe000_0000, window: 0xc100_0000, window_last: 0xc1ff_ffff };

    fn read(bus: &Bus, at: u64) -> u32 {
        let mut data = [0; 4];
        bus.read(IoAddr::Mmio(at), &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn present_functions_show_their_header_and_absent_ones_read_as_ones() {
        for pages in [false, true] {
            let (bus, vm) = (Bus::default(), TestVm::new(pages));
            let mut root = RootBus::new(ADDRESSES).unwrap();
            root.add_host_bridge().unwrap();
            let ecam = root.finish(&bus, &*vm).unwrap();
            let look = |at| if pages { vm.read_shown(at).unwrap() } else { read(&bus, at) };
            assert_eq!(look(0xe000_0000), 0x0008_1b36);
            assert_eq!(look(0xe000_0008) >> 8, 0x06_0000);
            for function in 1..SLOTS * FUNCTIONS {
                assert_eq!(look(0xe000_0000 + (function * PAGE) as u64), u32::MAX);
                assert_eq!(look(0xe000_0000 + (function * PAGE) as u64 + 0xffc), u32::MAX);
            }
            bus.write(IoAddr::Mmio(0xe000_0010), &[0xff; 4]);
            bus.write(IoAddr::Mmio(0xe000_1010), &[0; 4]);
            bus.write(IoAddr::Mmio(0xe000_0004), &[2, 0]);
            assert_eq!((look(0xe000_0010), look(0xe000_1010), look(0xe000_0004)), (0, u32::MAX, 2));
            drop(ecam);
            assert_eq!(vm.read_shown(0xe000_0000), None);
        }
    }

    #[test]
    fn slots_and_addresses_run_out_with_an_error() {
        let mut root = RootBus::new(ADDRESSES).unwrap();
        assert_eq!(root.place_bar(0x10).unwrap(), 0xc100_0000);
        assert_eq!(root.place_bar(0x2000).unwrap(), 0xc100_2000);
        assert!(matches!(root.place_bar(0x100_0000), Err(Error::NoSpace(_))));
        assert!(root.place_bar(0x80_0000).is_ok());
        for _ in 0..SLOTS {
            root.add_host_bridge().unwrap();
        }
        assert!(matches!(root.add_host_bridge(), Err(Error::Full(_))));
    }
}
