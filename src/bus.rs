//! The bus: which device answers a port or memory-mapped access. Called by vCPU threads.
//!
//! Accesses that nobody claims read as all ones and are dropped on write, as on real hardware.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use crate::engine::{CpuIo, IoAddr};

/// A device that answers register accesses from any vCPU thread.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1 to 8 bytes) from the register at `offset` bytes into the device's range.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Stores `data` (1 to 8 bytes) in the register at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device whose registers need exclusive access; put it on the bus as `Mutex<D>`.
pub trait BusDeviceMut: Send {
    /// See [`BusDevice::read`].
    fn read(&mut self, offset: u64, data: &mut [u8]);
    /// See [`BusDevice::write`].
    fn write(&mut self, offset: u64, data: &[u8]);
}

impl<D: BusDeviceMut> BusDevice for Mutex<D> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }
}

/// Two devices claim the same address.
#[derive(Debug, thiserror::Error)]
#[error("{at:x?}+{len:#x} overlaps a device that is already on the bus")]
pub struct Overlap {
    at: IoAddr,
    len: u64,
}

struct Slot {
    len: u64,
    device: Arc<dyn BusDevice>,
}

/// Address space of ports and of memory-mapped registers.
#[derive(Default)]
pub struct Bus {
    ports: RwLock<BTreeMap<u64, Slot>>,
    mmio: RwLock<BTreeMap<u64, Slot>>,
}

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bus").finish_non_exhaustive()
    }
}

impl Bus {
    fn space(&self, at: IoAddr) -> (&RwLock<BTreeMap<u64, Slot>>, u64) {
        match at {
            IoAddr::Port(port) => (&self.ports, u64::from(port)),
            IoAddr::Mmio(address) => (&self.mmio, address),
        }
    }

    /// Places `device` at `at` for `len` bytes. A device may be placed while the machine runs (PCI BARs move).
    pub fn insert(&self, at: IoAddr, len: u64, device: Arc<dyn BusDevice>) -> Result<(), Overlap> {
        let (space, start) = self.space(at);
        let mut space = space.write().unwrap_or_else(PoisonError::into_inner);
        let end = start.checked_add(len).ok_or(Overlap { at, len })?;
        let before = space.range(..end).next_back();
        if len == 0 || before.is_some_and(|(&other, slot)| other + slot.len > start) {
            return Err(Overlap { at, len });
        }
        space.insert(start, Slot { len, device });
        Ok(())
    }

    /// Takes the device that was placed at exactly `at` off the bus.
    pub fn remove(&self, at: IoAddr) -> Option<Arc<dyn BusDevice>> {
        let (space, start) = self.space(at);
        space.write().unwrap_or_else(PoisonError::into_inner).remove(&start).map(|slot| slot.device)
    }

    /// The device at `at` and the offset into it. The bus is not locked while the device works, so that a
    /// device may move other devices.
    fn find(&self, at: IoAddr) -> Option<(Arc<dyn BusDevice>, u64)> {
        let (space, address) = self.space(at);
        let space = space.read().unwrap_or_else(PoisonError::into_inner);
        let (&start, slot) = space.range(..=address).next_back()?;
        (address - start < slot.len).then(|| (slot.device.clone(), address - start))
    }
}

impl CpuIo for Bus {
    fn read(&self, at: IoAddr, data: &mut [u8]) {
        match self.find(at) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&self, at: IoAddr, data: &[u8]) {
        if let Some((device, offset)) = self.find(at) {
            device.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Echo(u8);
    impl BusDeviceMut for Echo {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.fill(self.0 + offset as u8);
        }
        fn write(&mut self, _: u64, data: &[u8]) {
            self.0 = data[0];
        }
    }

    #[test]
    fn accesses_find_their_device_and_holes_read_as_ones() {
        let bus = Bus::default();
        bus.insert(IoAddr::Port(0x10), 4, Arc::new(Mutex::new(Echo(1)))).unwrap();
        bus.insert(IoAddr::Mmio(0x10), 4, Arc::new(Mutex::new(Echo(50)))).unwrap();
        let read = |at| {
            let mut data = [0; 2];
            bus.read(at, &mut data);
            data
        };
        assert_eq!(read(IoAddr::Port(0x12)), [3, 3]);
        assert_eq!(read(IoAddr::Mmio(0x13)), [53, 53]);
        assert_eq!(read(IoAddr::Port(0x14)), [0xff, 0xff]);
        bus.write(IoAddr::Port(0x10), &[9]);
        bus.write(IoAddr::Port(0xf), &[70]);
        assert_eq!(read(IoAddr::Port(0x10)), [9, 9]);
    }

    #[test]
    fn overlaps_are_refused_and_devices_can_move() {
        let bus = Bus::default();
        let device = || Arc::new(Mutex::new(Echo(1)));
        bus.insert(IoAddr::Mmio(0x1000), 0x1000, device()).unwrap();
        assert!(bus.insert(IoAddr::Mmio(0x1fff), 1, device()).is_err());
        assert!(bus.insert(IoAddr::Mmio(0xfff), 2, device()).is_err());
        assert!(bus.insert(IoAddr::Mmio(u64::MAX), 2, device()).is_err());
        bus.insert(IoAddr::Mmio(0x2000), 1, device()).unwrap();
        let moved = bus.remove(IoAddr::Mmio(0x1000)).unwrap();
        bus.insert(IoAddr::Mmio(0x800), 0x1000, moved).unwrap();
    }
}
