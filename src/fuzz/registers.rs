//! Registers as a guest accesses them: virtio on both transports, PCI configuration space and BARs, ports, I/O APIC.
//! Behind the transports real devices run on a real event loop.

use std::sync::Arc;

use event_manager::{EventOps, Events, MutEventSubscriber};

use super::{Input, events, memory_file, queues};
use crate::board::ioapic::{self, IoApic};
use crate::board::layout;
use crate::bus::Bus;
use crate::devices::console_output::ConsoleHub;
use crate::devices::{self, AttachError, Builder, Options};
use crate::engine::{CpuIo, IoAddr, Vm};
use crate::firmware::power::{self, PowerPorts};
use crate::mem::{Backing, Ram};
use crate::pci::root::{Addresses, RootBus};
use crate::virtio::VirtioDevice;
use crate::virtio::transport::core::Parts;
use crate::virtio::transport::mmio::{MmioPlace, MmioTransport};
use crate::virtio::transport::pci::{PciPlace, PciTransport};
use crate::virtio::transport::testing::{Guest, Line, TestVm};

const STEPS: usize = 96;
const RAM: u64 = 1 << 20;
/// Each queue has a page for its rings from here on, and one for buffers.
const RINGS: u64 = 0x1_0000;
const QUEUES: u64 = 3;
const QUEUE_SIZE: u16 = 8;

/// An event loop that still answers has not panicked.
fn assert_loop_alive() {
    struct Nothing;
    impl MutEventSubscriber for Nothing {
        fn process(&mut self, _: Events, _: &mut EventOps) {}
        fn init(&mut self, _: &mut EventOps) {}
    }
    let handle = events().handle();
    let id = handle.add(Box::new(Nothing)).expect("the event loop's thread has panicked");
    drop(handle.remove(id).expect("the event loop's thread has panicked"));
}

/// One device of each kind that needs nothing of the host.
fn virtio_devices() -> Vec<(&'static str, Box<dyn VirtioDevice>)> {
    let (file, path) = memory_file(&[]);
    file.set_len(8 << 10).unwrap();
    vec![
        ("rng", queues::device("rng", "")),
        ("console", queues::device("console", "null")),
        ("disk", queues::device("disk", &format!("{path},format=raw,queue-size=16,aio=io_uring"))),
    ]
}

/// Where a device's registers are now.
struct Face {
    /// Configuration space, for PCI.
    space: Option<u64>,
    base: u64,
    number: u64,
}

impl Face {
    fn locate(&mut self, guest: &Guest) {
        if let Some(space) = self.space {
            self.base = u64::from(guest.r32(space + 0x10) & !0xf);
        }
    }

    fn status(&self) -> u64 {
        self.base + if self.space.is_some() { 20 } else { 0x70 }
    }

    /// What a driver does, as far as the choice lets it.
    fn set_up(&self, guest: &Guest, choice: u64) {
        let pci = self.space.is_some();
        guest.w8(self.status(), 0);
        guest.w8(self.status(), 3);
        let (select, accept) = if pci { (8, 12) } else { (0x24, 0x20) };
        guest.w32(self.base + select, 0);
        guest.w32(self.base + accept, choice as u32 & 0x3000_0007);
        guest.w32(self.base + select, 1);
        guest.w32(self.base + accept, 1);
        guest.w8(self.status(), 11);
        for queue in 0..QUEUES {
            let page = self.rings(queue);
            let write = |pci_at: u64, mmio_at: u64, value: u64| {
                if pci {
                    guest.w16(self.base + pci_at, value as u16)
                } else {
                    guest.w32(self.base + mmio_at, value as u32)
                }
            };
            write(22, 0x30, queue);
            write(24, 0x38, QUEUE_SIZE.into());
            for (i, at) in [page, page + 0x200, page + 0x400].into_iter().enumerate() {
                let register = if pci { 32 + 8 * i as u64 } else { 0x80 + 0x10 * i as u64 };
                guest.w32(self.base + register, at as u32);
            }
            if pci {
                guest.w16(self.base + 26, (choice >> 8) as u16 & 3);
            }
            write(28, 0x44, u64::from(choice >> (16 + queue) & 1 == 0));
        }
        guest.w8(self.status(), 15);
    }

    fn rings(&self, queue: u64) -> u64 {
        RINGS + (self.number * QUEUES + queue) * 0x1000
    }

    /// Makes a request available and rings.
    fn request(&self, guest: &Guest, ram: &Ram, input: &mut Input<'_>) {
        let queue = u64::from(input.byte()) % QUEUES;
        let page = self.rings(queue);
        let mut index = [0; 2];
        ram.read(page + 0x202, &mut index).unwrap();
        let index = u16::from_le_bytes(index);
        let count = 1 + input.byte() % 3;
        for slot in 0..count {
            let flags = u16::from(slot + 1 < count) | u16::from(slot > 0 || queue == 0) << 1;
            let mut descriptor = [0; 16];
            descriptor[..8].copy_from_slice(&(0x800 + page + u64::from(slot) * 0x100).to_le_bytes());
            descriptor[8..12].copy_from_slice(&(input.u32() & 0x3ff).to_le_bytes());
            descriptor[12..14].copy_from_slice(&flags.to_le_bytes());
            descriptor[14..].copy_from_slice(&u16::from(slot + 1).to_le_bytes());
            ram.write(page + 16 * u64::from(slot), &descriptor).unwrap();
        }
        ram.write(page + 0x800, input.bytes(16)).unwrap();
        ram.write(page + 0x204 + 2 * u64::from(index % QUEUE_SIZE), &[0; 2]).unwrap();
        ram.write(page + 0x202, &index.wrapping_add(1).to_le_bytes()).unwrap();
        match self.space {
            Some(_) => guest.w16(self.base + 0x1000 + 4 * queue, queue as u16),
            None => guest.w32(self.base + 0x50, queue as u32),
        }
    }
}

/// Accesses of all kinds to the devices behind `faces`.
fn access(guest: &Guest, ram: &Ram, faces: &mut [Face], input: &mut Input<'_>) {
    for _ in 0..STEPS {
        if input.is_empty() {
            return;
        }
        let step = input.byte();
        let count = faces.len();
        let face = &mut faces[usize::from(step >> 4) % count];
        face.locate(guest);
        let size = if face.space.is_some() { 0x2000 } else { 0x1000 };
        match step & 15 {
            0 => face.set_up(guest, input.u32().into()),
            1 | 2 => face.request(guest, ram, input),
            3..=7 => {
                // The first registers matter most.
                let offset = if step & 1 != 0 { u64::from(input.byte()) } else { u64::from(input.u16()) % size };
                let len = 1 + input.below(8);
                write(guest, face.base + offset, input.bytes(len));
            }
            8 | 9 => {
                let offset = u64::from(input.u16()) % size;
                guest.read(face.base + offset, &mut [0; 8][..1 + input.below(8)]);
            }
            10..=13 => {
                let Some(space) = face.space else { continue };
                let offset = if step & 1 != 0 { u64::from(input.byte()) } else { u64::from(input.u16()) % 4096 };
                let len = 1 + input.below(8);
                write(guest, space + offset, input.bytes(len));
                guest.r32((space + offset) & !3);
            }
            14 => {
                // Lets it answer again after its address or command register was changed.
                let Some(space) = face.space else { continue };
                guest.w32(space + 0x10, (0xc100_0000 + 0x2000 * face.number) as u32);
                guest.w16(space + 4, 6);
            }
            _ => drop(guest.vm.sink.take()),
        }
    }
}

fn write(guest: &Guest, at: u64, bytes: &[u8]) {
    if !bytes.is_empty() {
        guest.write(at, bytes);
    }
}

pub(super) fn pci(data: &[u8]) {
    let mut input = Input(data);
    let guest = Guest::new(input.byte() & 1 != 0);
    let ram = Ram::new(&[(0, RAM)], Backing::Anonymous).unwrap();
    let addresses = Addresses { ecam: layout::PCI_ECAM, window: 0xc100_0000, window_last: 0xc10f_ffff };
    let mut root = RootBus::new(addresses).unwrap();
    root.add_host_bridge().unwrap();
    let (mut keep, mut faces) = (Vec::new(), Vec::new());
    for ((name, device), number) in virtio_devices().into_iter().zip(0..) {
        let parts = Parts { name: name.into(), device, ram: ram.clone(), events: events().handle() };
        let place = PciPlace { root: &mut root, bus: &guest.bus, vm: guest.vm.clone() };
        keep.push(PciTransport::new(parts, place).unwrap());
        faces.push(Face { space: Some(layout::PCI_ECAM + 0x8000 * (number + 1)), base: 0, number });
    }
    let ecam = root.finish(&guest.bus, &*guest.vm).unwrap();
    faces.iter().for_each(|face| guest.w16(face.space.unwrap() + 4, 6));
    access(&guest, &ram, &mut faces, &mut input);
    keep.iter().for_each(|transport| transport.reset());
    drop((keep, ecam));
    assert_loop_alive();
}

pub(super) fn mmio(data: &[u8]) {
    let mut input = Input(data);
    let guest = Guest::new(input.byte() & 1 != 0);
    let ram = Ram::new(&[(0, RAM)], Backing::Anonymous).unwrap();
    let (mut keep, mut faces) = (Vec::new(), Vec::new());
    for ((name, device), number) in virtio_devices().into_iter().zip(0..) {
        let base = layout::VIRTIO_MMIO + number * layout::VIRTIO_MMIO_STEP;
        let parts = Parts { name: name.into(), device, ram: ram.clone(), events: events().handle() };
        let line = Arc::new(Line::default());
        let place = MmioPlace { base, gsi: 4, line, bus: &guest.bus, vm: guest.vm.clone() };
        keep.push(MmioTransport::new(parts, place).unwrap());
        faces.push(Face { space: None, base, number });
    }
    access(&guest, &ram, &mut faces, &mut input);
    keep.iter().for_each(|transport| transport.reset());
    drop(keep);
    assert_loop_alive();
}

/// Ports and I/O APIC, with lines that rise and fall meanwhile.
pub(super) fn board(data: &[u8]) {
    let mut input = Input(data);
    let vm = TestVm::new(false);
    let ioapic = IoApic::new(8, vm.msi()).unwrap();
    let bus = Bus::default();
    bus.insert(IoAddr::Mmio(layout::IOAPIC), ioapic::SIZE, ioapic.clone()).unwrap();
    let lines = |gsi| ioapic.line(gsi).ok_or_else(|| AttachError(format!("no pin {gsi}")));
    let notify: devices::Notify = Arc::new(|_| {});
    let ram = Ram::new(&[(0, RAM)], Backing::Anonymous).unwrap();
    let consoles = ConsoleHub::new(None, Vec::new(), notify.clone()).unwrap();
    let mut builder = Builder {
        ram: &ram,
        events: &events().handle(),
        notify: &notify,
        consoles: &consoles,
        lines: &lines,
        virtio: Vec::new(),
        ports: Vec::new(),
        statistics: std::collections::BTreeMap::new(),
        balloon: None,
        deterministic: None,
    };
    let serial = devices::kind("serial").unwrap();
    let mut options = Options::from_flag("serial", serial.keys(), "null").unwrap();
    serial.parse(&mut options).unwrap().attach(&mut builder).unwrap();
    devices::place_fixed(&mut builder, true);
    let ports = builder.ports;
    for placed in &ports {
        bus.insert(IoAddr::Port(placed.base), placed.len.into(), placed.device.clone()).unwrap();
    }
    let power = Arc::new(PowerPorts::new(notify.clone(), lines(3).unwrap()));
    bus.insert(IoAddr::Port(layout::POWER_PORTS), power::PORTS.into(), power.clone()).unwrap();
    for _ in 0..4 * STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        let placed = &ports[usize::from(step >> 4) % ports.len()];
        let port = IoAddr::Port(placed.base.wrapping_add(u16::from(input.byte()) % (placed.len + 1)));
        let register = IoAddr::Mmio(layout::IOAPIC + u64::from(step >> 4 & 1) * 0x10);
        let len = [1, 2, 4, 8][usize::from(step >> 6)];
        match step & 15 {
            0..=4 => bus.write(port, input.bytes(len)),
            5 | 6 => bus.read(port, &mut [0; 8][..len]),
            7..=9 => bus.write(register, input.bytes(len)),
            10 => bus.read(IoAddr::Mmio(layout::IOAPIC + u64::from(input.u16())), &mut [0; 8][..len]),
            11 => ioapic.end_of_interrupt(input.byte()),
            12 => lines(u32::from(step >> 5)).unwrap().set_level(step & 16 != 0),
            13 => power.press_power_button(),
            14 => bus.write(IoAddr::Port(layout::POWER_PORTS + u16::from(step >> 6)), &[input.byte()]),
            _ => bus.read(IoAddr::Port(layout::POWER_PORTS + u16::from(step >> 6)), &mut [0; 8][..len]),
        }
        // Nobody takes them.
        vm.sink.take();
    }
    drop((ports, power));
    assert_loop_alive();
}
