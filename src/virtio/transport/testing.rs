//! A machine without CPUs for tests of transports and of PCI: it accesses registers as a guest would, through shown
//! pages and doorbells where there are any, and records interrupts.

// UNSAFETY: reads shown pages by address, as an engine's guest does.
#![expect(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::cpuid::CpuidTable;
use crate::bus::Bus;
use crate::engine::{CpuIo, Error, IoAddr, RegisterPages, Result, Vcpu, Vm};
use crate::irq::{IrqLine, MsiSink};
use crate::pci::testing::Sink;

type Shown = Arc<Mutex<BTreeMap<u64, (usize, u64)>>>;

/// Address, value, the caller's descriptor, the same as ours.
type Bell = (IoAddr, Option<u32>, i32, EventFd);

/// A VM that runs nothing.
#[derive(Debug)]
pub struct TestVm {
    /// Messages sent.
    pub sink: Sink,
    pages: Option<Pages>,
    bells: Mutex<Vec<Bell>>,
    /// Whether it serves doorbells.
    pub serves_doorbells: bool,
}

#[derive(Debug, Default, Clone)]
struct Pages(Shown);

struct Guard {
    shown: Shown,
    at: u64,
    _owner: Arc<dyn Send + Sync>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shown.lock().unwrap().remove(&self.at);
    }
}

impl RegisterPages for Pages {
    fn show(&self, at: u64, host: usize, len: u64, owner: Arc<dyn Send + Sync>) -> Result<Box<dyn Send + Sync>> {
        assert!(at.is_multiple_of(4096) && host.is_multiple_of(4096) && len.is_multiple_of(4096));
        let mut shown = self.0.lock().unwrap();
        let before = shown.range(..at + len).next_back();
        assert!(before.is_none_or(|(&start, &(_, len))| start + len <= at), "shown twice at {at:#x}");
        shown.insert(at, (host, len));
        Ok(Box::new(Guard { shown: self.0.clone(), at, _owner: owner }))
    }
}

impl TestVm {
    /// A VM that shows register pages and serves doorbells, or neither.
    pub fn new(abilities: bool) -> Arc<Self> {
        Arc::new(Self {
            sink: Sink::default(),
            pages: abilities.then(Pages::default),
            bells: Mutex::default(),
            serves_doorbells: abilities,
        })
    }

    fn shown_bytes(&self, at: u64, data: &mut [u8]) -> bool {
        let Some(pages) = &self.pages else { return false };
        let shown = pages.0.lock().unwrap();
        let Some((&start, &(host, len))) = shown.range(..=at).next_back() else { return false };
        if at + data.len() as u64 > start + len {
            return false;
        }
        for (i, byte) in data.iter_mut().enumerate() {
            // SAFETY: the page is mapped as long as it is in the list, which is locked.
            *byte = unsafe { std::ptr::read_volatile((host + (at - start) as usize + i) as *const u8) };
        }
        true
    }

    /// What a guest reads from a shown page at `at`.
    pub fn read_shown(&self, at: u64) -> Option<u32> {
        let mut data = [0; 4];
        self.shown_bytes(at, &mut data).then(|| u32::from_le_bytes(data))
    }

    /// Number of doorbells.
    pub fn doorbells(&self) -> usize {
        self.bells.lock().unwrap().len()
    }

    fn ring(&self, at: IoAddr, data: &[u8]) -> bool {
        let mut value = [0; 4];
        value.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let value = u32::from_le_bytes(value);
        let bells = self.bells.lock().unwrap();
        let Some(bell) = bells.iter().find(|bell| bell.0 == at && bell.1.is_none_or(|v| v == value)) else {
            return false;
        };
        bell.3.write(1).unwrap();
        true
    }
}

fn unsupported() -> Error {
    Error::Unsupported { engine: "test", reason: "it runs nothing".into() }
}

impl Vm for TestVm {
    fn coalesce(&self, _: IoAddr, _: u32) -> Result<bool> {
        Ok(false)
    }
    fn create_vcpu(&self, _: u32) -> Result<Box<dyn Vcpu>> {
        Err(unsupported())
    }
    fn msi(&self) -> &dyn MsiSink {
        &self.sink
    }
    fn doorbell(&self, at: IoAddr, value: Option<u32>, fd: &EventFd) -> Result<bool> {
        if self.serves_doorbells {
            self.bells.lock().unwrap().push((at, value, fd.as_raw_fd(), fd.try_clone().unwrap()));
        }
        Ok(self.serves_doorbells)
    }
    fn remove_doorbell(&self, at: IoAddr, value: Option<u32>, fd: &EventFd) -> Result<()> {
        let mut bells = self.bells.lock().unwrap();
        let index = bells.iter().position(|b| (b.0, b.1, b.2) == (at, value, fd.as_raw_fd()));
        bells.remove(index.ok_or_else(unsupported)?);
        Ok(())
    }
    fn register_pages(&self) -> Option<&dyn RegisterPages> {
        self.pages.as_ref().map(|pages| pages as _)
    }
    fn supported_cpuid(&self) -> Result<CpuidTable> {
        Err(unsupported())
    }
}

/// Counts pulses.
#[derive(Debug, Default)]
pub struct Line(pub AtomicUsize);
impl IrqLine for Line {
    fn set_level(&self, high: bool) {
        self.0.fetch_add(usize::from(high), Ordering::AcqRel);
    }
}

/// What guest code would see.
#[derive(Debug)]
pub struct Guest {
    /// The VM.
    pub vm: Arc<TestVm>,
    /// The bus.
    pub bus: Arc<Bus>,
    /// Accesses that would have left guest mode.
    pub exits: AtomicUsize,
}

impl Guest {
    /// See [`TestVm::new`].
    pub fn new(abilities: bool) -> Self {
        Self { vm: TestVm::new(abilities), bus: Arc::default(), exits: AtomicUsize::new(0) }
    }

    /// Reads any number of bytes.
    pub fn read(&self, at: u64, data: &mut [u8]) {
        if !self.vm.shown_bytes(at, data) {
            self.exits.fetch_add(1, Ordering::Relaxed);
            self.bus.read(IoAddr::Mmio(at), data);
        }
    }

    /// Writes 1 to 8 bytes.
    pub fn write(&self, at: u64, data: &[u8]) {
        if !self.vm.ring(IoAddr::Mmio(at), data) {
            self.exits.fetch_add(1, Ordering::Relaxed);
            self.bus.write(IoAddr::Mmio(at), data);
        }
    }

    /// Reads a byte.
    pub fn r8(&self, at: u64) -> u8 {
        let mut data = [0; 1];
        self.read(at, &mut data);
        data[0]
    }
    /// Reads 16 bits.
    pub fn r16(&self, at: u64) -> u16 {
        let mut data = [0; 2];
        self.read(at, &mut data);
        u16::from_le_bytes(data)
    }
    /// Reads 32 bits.
    pub fn r32(&self, at: u64) -> u32 {
        let mut data = [0; 4];
        self.read(at, &mut data);
        u32::from_le_bytes(data)
    }
    /// Writes a byte.
    pub fn w8(&self, at: u64, value: u8) {
        self.write(at, &[value]);
    }
    /// Writes 16 bits.
    pub fn w16(&self, at: u64, value: u16) {
        self.write(at, &value.to_le_bytes());
    }
    /// Writes 32 bits.
    pub fn w32(&self, at: u64, value: u32) {
        self.write(at, &value.to_le_bytes());
    }
}
