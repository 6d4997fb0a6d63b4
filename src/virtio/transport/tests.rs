//! Both faces, driven as a guest's driver would, with a device that fills its buffers.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::host::event_loop::EventLoop;
use crate::irq::MsiMessage;
use crate::mem::{Backing, Ram};
use crate::pci::root::{Addresses, Ecam, RootBus};
use crate::virtio::config::ConfigSpace;
use crate::virtio::queue::Queues;
use crate::virtio::transport::core::Parts;
use crate::virtio::transport::mmio::{MmioPlace, MmioTransport};
use crate::virtio::transport::pci::{PciPlace, PciTransport};
use crate::virtio::transport::testing::{Guest, Line};
use crate::virtio::{ActivateError, Broken, Handler, Info, VirtioDevice};

/// Fills writable buffers with its number of activations; resets are counted.
struct Fill {
    config: ConfigSpace,
    info: Info,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    activated: AtomicUsize,
    reset: AtomicUsize,
    alive: AtomicUsize,
    fail: AtomicUsize,
    features: Mutex<Vec<u64>>,
}

struct FillHandler(u8, Arc<Counts>);

impl Drop for FillHandler {
    fn drop(&mut self) {
        self.1.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

impl VirtioDevice for Fill {
    fn info(&self) -> Info {
        self.info.clone()
    }
    fn config(&self) -> &ConfigSpace {
        &self.config
    }
    fn write_config(&mut self, offset: usize, data: &[u8]) {
        self.config.set(offset, data);
    }
    fn activate(&mut self, features: u64) -> Result<Box<dyn Handler>, ActivateError> {
        self.counts.features.lock().unwrap().push(features);
        if self.counts.fail.load(Ordering::SeqCst) > 0 {
            return Err(ActivateError("out of order".into()));
        }
        let times = self.counts.activated.fetch_add(1, Ordering::SeqCst) + 1;
        self.counts.alive.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FillHandler(times as u8, self.counts.clone())))
    }
    fn reset(&mut self) {
        assert_eq!(self.counts.alive.load(Ordering::SeqCst), 0, "the handler must be gone before the reset");
        self.counts.reset.fetch_add(1, Ordering::SeqCst);
    }
}

impl Handler for FillHandler {
    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        while let Some(mut chain) = queues.queue(index).pop()? {
            let fill = vec![self.0; chain.writable_len()];
            chain.write_all(&fill)?;
            let written = chain.written();
            queues.queue(index).push(chain, written)?;
        }
        Ok(())
    }
}

const ECAM: u64 = 0xe000_0000;
const MMIO: u64 = 0xc000_0000;
const SLOT1: u64 = ECAM + 0x8000;
const ADDRESSES: Addresses = Addresses { ecam: ECAM, window: 0xc100_0000, window_last: 0xc1ff_ffff };
const VERSION_1: u64 = 1 << 32;
const MESSAGE: u64 = 0xfee0_0000;

enum Face {
    Pci(Arc<PciTransport>, #[expect(dead_code, reason = "keeps the configuration space shown")] Ecam),
    Mmio(Arc<MmioTransport>, Arc<Line>),
}

struct Machine {
    guest: Guest,
    ram: Ram,
    counts: Arc<Counts>,
    config: ConfigSpace,
    face: Face,
    _events: EventLoop,
}

impl Machine {
    fn new(pci: bool, abilities: bool, blocking: bool) -> Self {
        let guest = Guest::new(abilities);
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        let events = EventLoop::start("transport").unwrap();
        let (counts, config) = (Arc::<Counts>::default(), ConfigSpace::with(b"configuration"));
        let info = Info { id: 2, features: 0b101, queue_sizes: vec![8, 16], blocking };
        let device = Box::new(Fill { config: config.clone(), info, counts: counts.clone() });
        let parts = Parts { name: "toy0".into(), device, ram: ram.clone(), events: events.handle() };
        let face = if pci {
            let mut root = RootBus::new(ADDRESSES).unwrap();
            root.add_host_bridge().unwrap();
            let place = PciPlace { root: &mut root, bus: &guest.bus, vm: guest.vm.clone() };
            let transport = PciTransport::new(parts, place).unwrap();
            Face::Pci(transport, root.finish(&guest.bus, &*guest.vm).unwrap())
        } else {
            let line = Arc::new(Line::default());
            let place = MmioPlace { base: MMIO, gsi: 5, line: line.clone(), bus: &guest.bus, vm: guest.vm.clone() };
            Face::Mmio(MmioTransport::new(parts, place).unwrap(), line)
        };
        let machine = Self { guest, ram, counts, config, face, _events: events };
        machine.enable();
        machine
    }

    /// What firmware and bus driver do: memory decoding, MSI-X with vector i for message i.
    fn enable(&self) {
        if !self.is_pci() {
            return;
        }
        self.guest.w16(SLOT1 + 4, 6);
        self.guest.w16(SLOT1 + self.msix() + 2, 0xc000);
        for vector in 0..3u64 {
            let entry = self.base() + 0x800 + 16 * vector;
            self.guest.w32(entry, MESSAGE as u32);
            self.guest.w32(entry + 4, 0);
            self.guest.w32(entry + 8, vector as u32);
            self.guest.w32(entry + 12, 0);
        }
        self.guest.w16(SLOT1 + self.msix() + 2, 0x8000);
    }

    fn is_pci(&self) -> bool {
        matches!(self.face, Face::Pci(..))
    }

    fn capability(&self, id: u8, kind: Option<u8>) -> u64 {
        let mut at = self.guest.r8(SLOT1 + 0x34);
        while at != 0 {
            let here = SLOT1 + u64::from(at);
            if self.guest.r8(here) == id && kind.is_none_or(|kind| self.guest.r8(here + 3) == kind) {
                return u64::from(at);
            }
            at = self.guest.r8(here + 1);
        }
        panic!("no capability {id:#x} {kind:?}");
    }

    fn msix(&self) -> u64 {
        self.capability(0x11, None)
    }

    fn base(&self) -> u64 {
        if self.is_pci() { u64::from(self.guest.r32(SLOT1 + 0x10)) } else { MMIO }
    }

    /// Starts, whatever state device and bus are in.
    fn recover(&self) {
        if self.is_pci() {
            self.guest.w32(SLOT1 + 0x10, 0xc110_0000);
        }
        self.enable();
        self.start();
    }

    fn set_status(&self, value: u8) {
        match self.face {
            Face::Pci(..) => self.guest.w8(self.base() + 20, value),
            Face::Mmio(..) => self.guest.w32(MMIO + 0x70, value.into()),
        }
    }

    fn status(&self) -> u8 {
        match self.face {
            Face::Pci(..) => self.guest.r8(self.base() + 20),
            Face::Mmio(..) => self.guest.r32(MMIO + 0x70) as u8,
        }
    }

    fn offered(&self) -> u64 {
        let (select, value) = if self.is_pci() { (0, 4) } else { (0x14, 0x10) };
        (0..2).fold(0, |all, word| {
            self.guest.w32(self.base() + select, word);
            all | u64::from(self.guest.r32(self.base() + value)) << (32 * word)
        })
    }

    fn accept(&self, features: u64) {
        let (select, value) = if self.is_pci() { (8, 12) } else { (0x24, 0x20) };
        for word in 0..2 {
            self.guest.w32(self.base() + select, word);
            self.guest.w32(self.base() + value, (features >> (32 * word)) as u32);
        }
    }

    /// Queue `index` with rings at 0x1000 * (index + 1).
    fn set_up_queue(&self, index: u16) {
        let at = 0x1000 * (u64::from(index) + 1);
        let (g, b) = (&self.guest, self.base());
        self.ram.write(at, &[0; 0x1000]).unwrap();
        let parts = [at, at + 0x400, at + 0x800];
        if self.is_pci() {
            g.w16(b + 22, index);
            assert_eq!(g.r16(b + 24), if index == 0 { 8 } else { 16 });
            assert_eq!(g.r16(b + 30), index);
            g.w16(b + 24, 8);
            g.w16(b + 26, index + 1);
            assert_eq!(g.r16(b + 26), index + 1);
            for (register, address) in [32, 40, 48].into_iter().zip(parts) {
                g.w32(b + register, address as u32);
                g.w32(b + register + 4, (address >> 32) as u32);
            }
            assert_eq!(g.r16(b + 28), 0);
            g.w16(b + 28, 1);
            assert_eq!((g.r16(b + 28), g.r16(b + 24), g.r32(b + 40)), (1, 8, parts[1] as u32));
        } else {
            g.w32(b + 0x30, index.into());
            assert_eq!(g.r32(b + 0x34), if index == 0 { 8 } else { 16 });
            g.w32(b + 0x38, 8);
            for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(parts) {
                g.w32(b + register, address as u32);
                g.w32(b + register + 4, (address >> 32) as u32);
            }
            g.w32(b + 0x44, 1);
            assert_eq!(g.r32(b + 0x44), 1);
        }
    }

    fn negotiate(&self, features: u64) {
        self.set_status(0);
        assert_eq!(self.status(), 0);
        self.set_status(1);
        self.set_status(3);
        self.accept(features);
        self.set_status(11);
    }

    fn start(&self) {
        self.negotiate(VERSION_1 | 1);
        assert_eq!(self.status(), 11);
        if self.is_pci() {
            self.guest.w16(self.base() + 16, 0);
        }
        self.set_up_queue(0);
        self.set_up_queue(1);
        self.set_status(15);
    }

    /// One request of four bytes; returns what the device wrote, after its interrupt.
    fn request(&self, index: u16) -> [u8; 4] {
        let at = 0x1000 * (u64::from(index) + 1);
        let read = |at| {
            let mut bytes = [0; 2];
            self.ram.read(at, &mut bytes).unwrap();
            u16::from_le_bytes(bytes)
        };
        let before = (read(at + 0x402), read(at + 0x802), self.interrupts());
        let buffer = 0x8000u64;
        self.ram.write(buffer, &[0; 4]).unwrap();
        self.ram.write(at, &[&buffer.to_le_bytes()[..], &[4, 0, 0, 0, 2, 0, 0, 0]].concat()).unwrap();
        self.ram.write(at + 0x404 + 2 * u64::from(before.0 % 8), &[0, 0]).unwrap();
        self.ram.write(at + 0x402, &(before.0 + 1).to_le_bytes()).unwrap();
        if self.is_pci() {
            let notify = self.base() + 0x1000 + 4 * u64::from(index);
            self.guest.w16(notify, index);
        } else {
            self.guest.w32(MMIO + 0x50, index.into());
        }
        self.until("request", || read(at + 0x802) != before.1 && self.interrupts() > before.2);
        let mut bytes = [0; 4];
        self.ram.read(buffer, &mut bytes).unwrap();
        bytes
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let start = Instant::now();
        while !done() {
            assert!(start.elapsed() < Duration::from_secs(10), "no {what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn interrupts(&self) -> usize {
        match &self.face {
            Face::Pci(..) => self.guest.vm.sink.0.lock().unwrap().len(),
            Face::Mmio(_, line) => line.0.load(Ordering::Acquire),
        }
    }

    /// Interrupt status, acknowledged.
    fn take_isr(&self) -> u8 {
        if self.is_pci() {
            return self.guest.r8(self.base() + 0x1800);
        }
        let status = self.guest.r32(MMIO + 0x60);
        self.guest.w32(MMIO + 0x64, status);
        status as u8
    }

    fn config_at(&self) -> u64 {
        self.base() + 0x100
    }

    fn generation(&self) -> u32 {
        if self.is_pci() { self.guest.r8(self.base() + 21).into() } else { self.guest.r32(MMIO + 0xfc) }
    }
}

fn machines() -> impl Iterator<Item = Machine> {
    [(true, true), (true, false), (false, true), (false, false)]
        .into_iter()
        .map(|(pci, abilities)| Machine::new(pci, abilities, pci != abilities))
}

#[test]
fn a_device_starts_works_resets_and_starts_again() {
    for machine in machines() {
        for round in 1..=3 {
            machine.start();
            assert_eq!(machine.status(), 15);
            assert_eq!(machine.request(0), [round; 4]);
            assert_eq!(machine.request(1), [round; 4]);
            assert_eq!(machine.request(0), [round; 4]);
            assert_eq!(machine.take_isr(), 1);
            assert_eq!(machine.take_isr(), 0);
            machine.set_status(0);
            assert_eq!((machine.status(), machine.counts.alive.load(Ordering::SeqCst)), (0, 0));
        }
        assert_eq!(*machine.counts.features.lock().unwrap(), [1, 1, 1], "only the device's own features reach it");
        // The machine restarts: as after power-on.
        machine.start();
        machine.request(0);
        match &machine.face {
            Face::Pci(transport, _) => transport.reset(),
            Face::Mmio(transport, _) => transport.reset(),
        }
        assert_eq!(machine.counts.alive.load(Ordering::SeqCst), 0);
        machine.enable();
        machine.start();
        assert_eq!(machine.request(1), [5; 4]);
    }
}

#[test]
fn features_must_be_offered_and_version_1_accepted() {
    for machine in machines() {
        assert_eq!(machine.offered(), VERSION_1 | 0b101 | 1 << 28 | 1 << 29);
        for wrong in [0, 1, VERSION_1 | 2, VERSION_1 | 1 << 40] {
            machine.negotiate(wrong);
            assert_eq!(machine.status(), 3, "{wrong:#x}");
            machine.set_status(7);
            assert_eq!(machine.status(), 3, "no DRIVER_OK without FEATURES_OK");
        }
        machine.negotiate(VERSION_1 | 4);
        assert_eq!(machine.status(), 11);
        machine.accept(VERSION_1 | 0xffff);
        machine.set_status(15);
        assert_eq!(*machine.counts.features.lock().unwrap(), [4], "too late to accept more");
        machine.set_status(1);
        assert_eq!(machine.status(), 15, "bits are only cleared by a reset");
    }
}

#[test]
fn a_device_that_cannot_start_asks_for_a_reset() {
    for machine in machines() {
        machine.counts.fail.store(1, Ordering::SeqCst);
        machine.start();
        assert_eq!((machine.status(), machine.interrupts()), (15 | 64, 1));
        machine.counts.fail.store(0, Ordering::SeqCst);
        machine.start();
        assert_eq!(machine.request(0), [1; 4]);
        // Rings that are not RAM.
        machine.negotiate(VERSION_1);
        machine.set_up_queue(1);
        machine.guest.w32(machine.base() + if machine.is_pci() { 44 } else { 0x94 }, 0x77);
        machine.set_status(15);
        assert_eq!(machine.status(), 15 | 64);
        assert_eq!(machine.counts.alive.load(Ordering::SeqCst), 0);
        // A driver that breaks the rules while the device works.
        machine.start();
        machine.ram.write(0x1402, &[200, 0]).unwrap();
        if machine.is_pci() {
            machine.guest.w16(machine.base() + 0x1000, 0);
        } else {
            machine.guest.w32(MMIO + 0x50, 0);
        }
        machine.until("wish to be reset", || machine.status() == 15 | 64);
        machine.start();
        assert_eq!(machine.request(0), [3; 4]);
    }
}

#[test]
fn configuration_is_shown_written_and_announced() {
    for machine in machines() {
        let mut bytes = [0; 16];
        machine.guest.read(machine.config_at(), &mut bytes);
        assert_eq!(&bytes, b"configuration\0\0\0");
        let generation = machine.generation();
        machine.config.update(|bytes| bytes[0] = b'C');
        assert_ne!(machine.generation(), generation);
        machine.guest.write(machine.config_at() + 1, b"ON");
        machine.guest.write(machine.config_at() + 12, &[7; 8]);
        machine.guest.write(machine.config_at() + 0x600, &[7; 8]);
        machine.guest.read(machine.config_at(), &mut bytes);
        assert_eq!(&bytes, b"CONfiguratio\x07\0\0\0");
        machine.config.announce();
        assert_eq!(machine.interrupts(), 0, "nobody to tell");
        machine.start();
        machine.config.announce();
        assert_eq!((machine.interrupts(), machine.take_isr()), (1, 2));
    }
}

#[test]
fn pci_identity_vectors_and_access_through_configuration_space() {
    for abilities in [true, false] {
        let machine = Machine::new(true, abilities, false);
        let guest = &machine.guest;
        assert_eq!((guest.r32(SLOT1), guest.r32(SLOT1 + 8)), (0x1042_1af4, 0x0100_0001));
        assert_eq!(guest.r32(SLOT1 + 0x2c), 0x0042_1af4);
        machine.start();
        guest.vm.sink.take();
        machine.request(0);
        machine.request(1);
        machine.config.announce();
        let sent: Vec<_> = guest.vm.sink.take();
        assert_eq!(sent, [1, 2, 0].map(|data| MsiMessage { address: MESSAGE, data }));
        // A masked vector waits.
        guest.w32(machine.base() + 0x80c, 1);
        machine.config.announce();
        assert_eq!((guest.vm.sink.take(), guest.r32(machine.base() + 0xc00)), (vec![], 1));
        guest.w32(machine.base() + 0x80c, 0);
        assert_eq!((guest.vm.sink.take().len(), guest.r32(machine.base() + 0xc00)), (1, 0));
        // Vectors that do not exist read back as none.
        guest.w16(machine.base() + 16, 3);
        assert_eq!(guest.r16(machine.base() + 16), 0xffff);
        machine.config.announce();
        assert_eq!(guest.vm.sink.take(), []);
        // Through the access capability: status, then a write to the configuration.
        let access = SLOT1 + machine.capability(9, Some(5));
        guest.w32(access + 8, 20);
        guest.w32(access + 12, 1);
        assert_eq!(guest.r8(access + 16), 15);
        guest.w32(access + 8, 0x100);
        guest.w32(access + 12, 4);
        guest.w32(access + 16, u32::from_le_bytes(*b"abcd"));
        assert_eq!(guest.r32(machine.config_at()), u32::from_le_bytes(*b"abcd"));
        guest.w32(access + 8, 0xffff_fffc);
        guest.w32(access + 16, 1);
        guest.w8(access + 4, 3);
        guest.w32(access + 16, 1);
        assert_eq!(guest.r32(machine.config_at()), u32::from_le_bytes(*b"abcd"));
    }
}

#[test]
fn a_bar_is_sized_and_moves_with_doorbells_and_page() {
    for abilities in [true, false] {
        let machine = Machine::new(true, abilities, false);
        let guest = &machine.guest;
        let bar = SLOT1 + 0x10;
        machine.start();
        machine.request(0);
        let first = machine.base();
        guest.w16(SLOT1 + 4, 0);
        assert_eq!(guest.r32(first), u32::MAX, "nothing answers when decoding is off");
        assert_eq!(guest.vm.doorbells(), 0);
        guest.w32(bar, u32::MAX);
        assert_eq!(guest.r32(bar), 0xffff_e000);
        guest.w32(bar, 0xc1f0_0000);
        guest.w16(SLOT1 + 4, 6);
        assert_eq!(guest.r8(0xc1f0_0000 + 20), 15);
        assert_eq!(guest.vm.doorbells(), if abilities { 2 } else { 0 });
        assert_eq!(machine.request(1), [1; 4]);
        // Outside the window of the bus, and on top of the configuration space: not forwarded.
        for elsewhere in [0xfee0_0000u32, ECAM as u32, 0, 0xc1ff_e000 + 0x2000] {
            guest.w32(bar, elsewhere);
            assert_eq!((guest.r32(SLOT1), guest.vm.doorbells()), (0x1042_1af4, 0));
        }
        guest.w32(bar, 0xc1ff_e000);
        assert_eq!(machine.request(0), [1; 4]);
        guest.w32(bar, first as u32);
        assert_eq!(machine.request(0), [1; 4]);
    }
}

#[test]
fn two_devices_at_one_address_do_not_meet() {
    let guest = Guest::new(true);
    let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
    let events = EventLoop::start("transport").unwrap();
    let mut root = RootBus::new(ADDRESSES).unwrap();
    for name in ["a", "b"] {
        let info = Info { id: 4, features: 0, queue_sizes: vec![8], blocking: false };
        let device = Box::new(Fill { config: ConfigSpace::new(0), info, counts: Arc::default() });
        let parts = Parts { name: name.into(), device, ram: ram.clone(), events: events.handle() };
        let place = PciPlace { root: &mut root, bus: &guest.bus, vm: guest.vm.clone() };
        PciTransport::new(parts, place).unwrap();
    }
    let _ecam = root.finish(&guest.bus, &*guest.vm).unwrap();
    let (first, second) = (guest.r32(ECAM + 0x10), guest.r32(ECAM + 0x8010));
    assert_ne!(first, second);
    guest.w16(ECAM + 4, 2);
    guest.w32(ECAM + 0x8010, first);
    guest.w16(ECAM + 0x8004, 2);
    guest.w8(u64::from(first) + 20, 1);
    assert_eq!((guest.r8(u64::from(first) + 20), guest.vm.doorbells()), (1, 1));
    guest.w32(ECAM + 0x8010, second);
    assert_eq!(guest.r8(u64::from(second) + 20), 0);
    assert_eq!(guest.vm.doorbells(), 2);
}

#[test]
fn reading_registers_costs_no_exit_where_pages_can_be_shown() {
    for pci in [true, false] {
        let machine = Machine::new(pci, true, false);
        machine.start();
        machine.guest.exits.store(0, Ordering::SeqCst);
        machine.request(0);
        machine.request(1);
        assert_eq!((machine.status(), machine.generation() & 1), (15, 0));
        machine.guest.r32(machine.config_at());
        if pci {
            let ones = (0..0x10_0000 / 4).filter(|word| machine.guest.r32(ECAM + 4 * word) == u32::MAX).count();
            assert_eq!(ones, 254 * 1024, "all functions but two are absent");
        }
        assert_eq!(machine.guest.exits.load(Ordering::SeqCst), 0);
    }
}

/// Numbers that look random and are the same every time (xorshift).
struct Dice(u64);
impl Dice {
    fn roll(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

#[test]
fn no_access_of_any_kind_breaks_anything() {
    for (seed, machine) in (1..).zip(machines()) {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 ^ seed);
        let start = Instant::now();
        let mut rounds = 0;
        while rounds < 60_000 && start.elapsed() < Duration::from_secs(20) {
            rounds += 1;
            if dice.roll(500) == 0 {
                machine.recover();
            }
            let at = match dice.roll(if machine.is_pci() { 4 } else { 2 }) {
                0 => machine.base() + dice.roll(0x100),
                1 => machine.base() + dice.roll(0x2000),
                2 => SLOT1 + dice.roll(0x100),
                _ => ECAM + dice.roll(0x10_0000),
            };
            let mut data = [0; 8];
            let len = 1 + dice.roll(8) as usize;
            let style = dice.roll(3);
            data.iter_mut().for_each(|byte| {
                *byte = match style {
                    0 => dice.roll(256) as u8,
                    1 => dice.roll(4) as u8,
                    _ => 0xff * dice.roll(2) as u8,
                }
            });
            if dice.roll(3) == 0 {
                machine.guest.read(at, &mut data[..len]);
            } else {
                machine.guest.write(at, &data[..len]);
            }
        }
        assert!(rounds > 1000, "far too slow: {rounds} accesses");
        machine.recover();
        let times = machine.counts.activated.load(Ordering::SeqCst) as u8;
        assert_eq!(machine.request(0), [times; 4], "still works");
        assert!(machine.guest.vm.doorbells() <= 2);
    }
}
