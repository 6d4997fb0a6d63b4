//! Virtqueues: the ring code over memory of any content, and the handlers of all devices behind the driver-side kit.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with, socketpair,
};

use super::{Input, events, memory_file};
use crate::devices::console_output::ConsoleHub;
use crate::devices::port::Port;
use crate::devices::{Builder, Options, kind, net as card};
use crate::host::chardev::Target;
use crate::host::stream::{Stream, Style};
use crate::host::vectored::{self, IoBuf};
use crate::mem::{Backing, Ram};
use crate::net::Backend;
use crate::virtio::VirtioDevice;
use crate::virtio::interrupt::Interrupt;
use crate::virtio::kit::{Descriptor, Kit, Part};
use crate::virtio::queue::{Layout, Queues};

/// Calls of a handler for one input.
const STEPS: usize = 64;
/// Two pieces with a hole between them. Too small for huge pages, which would take longest of all.
const PIECE: u64 = 1 << 20;
const SECOND: u64 = 1 << 32;

fn ram() -> Ram {
    Ram::new(&[(0, PIECE), (SECOND, PIECE)], Backing::Anonymous).unwrap()
}

#[derive(Debug)]
struct Deaf;

impl Interrupt for Deaf {
    fn used(&self, _: usize) {}
    fn config_changed(&self) {}
    fn needs_reset(&self) {}
}

/// One queue, laid out and filled by the input.
pub(super) fn memory(data: &[u8]) {
    let mut input = Input(data);
    let ram = ram();
    let layout = Layout {
        size: 1 << (input.byte() % 11),
        descriptors: u64::from(input.u16()) & !15,
        available: u64::from(input.u16()) & !1,
        used: u64::from(input.u16()) & !3,
        enabled: true,
        event_idx: input.byte() & 1 != 0,
    };
    let moves = input.bytes(24);
    ram.write(0x10, input.0).unwrap();
    let Ok(mut queues) = Queues::new(ram, &[(layout, 1024)], Arc::new(Deaf)) else { return };
    let (mut held, mut again) = (Vec::new(), Vec::new());
    for &step in moves {
        let queue = queues.queue(0);
        if queue.begin().is_err() {
            return;
        }
        match step % 4 {
            0 | 1 => {
                while let Ok(Some(mut chain)) = queue.pop() {
                    let readable = chain.readable_len();
                    let mut bytes = [0; 100];
                    assert_eq!(chain.read(&mut bytes), readable.min(100));
                    if step & 4 != 0 {
                        chain.limit_writable(usize::from(step));
                        chain.limit_readable(usize::from(step));
                    }
                    let status = step & 8 != 0 && chain.take_status().is_ok();
                    let room = chain.writable_len();
                    assert_eq!(chain.write(&bytes), room.min(100));
                    assert_eq!(chain.writable_len(), room - room.min(100));
                    if status {
                        chain.set_status(1);
                    }
                    held.push(chain);
                }
                assert!(held.len() <= usize::from(layout.size));
            }
            2 => held.pop().into_iter().for_each(|chain| drop(queue.push(chain, u32::from(step)))),
            _ => {
                let mut all: Vec<_> = held.drain(..).map(|chain| (chain, 1)).collect();
                if queue.push_all(&mut all).is_err() {
                    return;
                }
            }
        }
        if queues.signal().is_err() || queues.end_turn(&mut again).is_err() {
            return;
        }
    }
}

/// The device that the flag `--KIND TEXT` makes.
pub(super) fn device(name: &str, text: &str) -> Box<dyn VirtioDevice> {
    let kind = kind(name).unwrap();
    let spec = kind.parse(&mut Options::from_flag(kind.name(), kind.keys(), text).unwrap()).unwrap();
    let (ram, consoles) = (ram(), ConsoleHub::new(None, Vec::new(), Arc::new(|_| {})).unwrap());
    let mut builder = Builder {
        ram: &ram,
        events: &events().handle(),
        notify: &(Arc::new(|_| {}) as crate::devices::Notify),
        consoles: &consoles,
        lines: &|_| panic!("virtio devices need no lines here"),
        virtio: Vec::new(),
        ports: Vec::new(),
        statistics: std::collections::BTreeMap::new(),
        balloon: None,
        deterministic: None,
    };
    spec.attach(&mut builder).unwrap();
    builder.virtio.pop().unwrap().device
}

pub(super) fn disk(data: &[u8]) {
    let mut input = Input(data);
    let how = input.byte();
    let (file, path) = memory_file(&[]);
    file.set_len(64 << 10).unwrap();
    let aio = if how & 1 != 0 { "auto" } else { "sync" };
    let more = ["", ",readonly", ",snapshot", ",queues=2"][usize::from(how >> 1 & 3)];
    drive(device("disk", &format!("{path},format=raw,queue-size=16,aio={aio}{more}")), &mut input, &mut |_| {});
}

pub(super) fn console(data: &[u8]) {
    drive(device("console", "null"), &mut Input(data), &mut |_| {});
}

pub(super) fn port(data: &[u8]) {
    // A stream stays on its loop until the loop ends, so there is one for all inputs.
    static STREAM: OnceLock<Stream> = OnceLock::new();
    let stream = STREAM.get_or_init(|| {
        let style = Style { lines: false, patience: None, quit: Arc::new(|| {}) };
        Stream::open("port", &Target::File("/dev/null".into()), style, &events().handle()).unwrap()
    });
    drive(Box::new(Port::new("fuzz".into(), stream.clone())), &mut Input(data), &mut |_| {});
}

pub(super) fn rng(data: &[u8]) {
    drive(device("rng", ""), &mut Input(data), &mut |_| {});
}

/// It takes pages away, those of rings among them.
pub(super) fn balloon(data: &[u8]) {
    let device = device("balloon", "size=64K,stats=1,free-page-reporting");
    run(device, Driver { trusts: false, ..Driver::default() }, &mut Input(data), &mut |_| {});
}

/// Programs of the host connect, talk and leave; one serves port 1.
pub(super) fn vsock(data: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = std::env::temp_dir().join(format!("belljar-fuzz-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("s");
    let server = UnixListener::bind(dir.join("s_1")).unwrap();
    server.set_nonblocking(true).unwrap();
    let device = device("vsock", path.to_str().unwrap());
    // From the guest to the host, port 1 to port 1, no data, a stream, a request.
    let mut packet = [0; 44];
    [(0, 3), (8, 2), (16, 1), (20, 1), (28, 1), (30, 1), (37, 1)].into_iter().for_each(|(at, byte)| packet[at] = byte);
    let mut programs: Vec<UnixStream> = Vec::new();
    let mut outside = |input: &mut Input<'_>| {
        let (step, which) = (input.byte(), input.byte());
        let index = usize::from(which) % programs.len().max(1);
        match (step % 6, programs.get(index)) {
            (0, _) if programs.len() < 8 => {
                // Only the handler accepts, which runs on this thread: a full backlog must not make us wait for it.
                let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
                let program = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
                if connect(&program, &SocketAddrUnix::new(&path).unwrap()).is_err() {
                    return;
                }
                let mut program = UnixStream::from(program);
                let _ = match which & 8 {
                    0 => program.write(format!("CONNECT {}\n", which & 7).as_bytes()),
                    _ => program.write(input.bytes(usize::from(which))),
                };
                programs.push(program);
            }
            (1, _) => {
                let accepted = server.accept().into_iter().map(|(program, _)| program);
                programs.extend(accepted.inspect(|program| program.set_nonblocking(true).unwrap()));
            }
            (2, Some(mut program)) => drop(program.write(&vec![step; usize::from(which) << 6])),
            (3, Some(mut program)) => drop(program.read(&mut vec![0; usize::from(which) << 6])),
            (4, Some(program)) => drop(program.shutdown(std::net::Shutdown::Write)),
            (5, Some(_)) => drop(programs.swap_remove(index)),
            _ => {}
        }
    };
    run(device, Driver { header: &packet, ..Driver::default() }, &mut Input(data), &mut outside);
    std::fs::remove_dir_all(&dir).unwrap();
}

/// A cable instead of a tap.
#[derive(Debug)]
struct Cable(OwnedFd);

impl Backend for Cable {
    fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
    fn send(&self, packet: &[IoBuf]) -> std::io::Result<()> {
        vectored::send(&self.0, packet).map(drop)
    }
    fn receive(&self, room: &[IoBuf]) -> std::io::Result<usize> {
        vectored::read(&self.0, room)
    }
    fn set_offload(&self, _: u64) -> std::io::Result<()> {
        Ok(())
    }
    fn set_enabled(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }
    fn drain(&self) {
        while rustix::io::read(&self.0, &mut [0; 1]).is_ok() {}
    }
}

pub(super) fn net(data: &[u8]) {
    let mut input = Input(data);
    let mut wires = Vec::new();
    let mut backends: Vec<Arc<dyn Backend>> = Vec::new();
    for _ in 0..1 + input.byte() % 2 {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (ours, wire) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        backends.push(Arc::new(Cable(ours)));
        wires.push(wire);
    }
    drive(card::over(backends), &mut input, &mut |input| {
        let wire = &wires[input.below(wires.len())];
        let packet = vec![input.byte(); input.below(3000)];
        // A full cable drops it.
        let _ = send(wire, &packet, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        while rustix::io::read(wire, &mut [0; 1]).is_ok() {}
    });
}

/// A driver that does what the input says. `outside` lets something happen on the host.
fn drive(device: Box<dyn VirtioDevice>, input: &mut Input<'_>, outside: &mut dyn FnMut(&mut Input<'_>)) {
    run(device, Driver::default(), input, outside);
}

/// What is special about a device.
#[derive(Clone, Copy)]
struct Driver<'a> {
    /// It writes to no other memory than its buffers.
    trusts: bool,
    /// Requests begin like this.
    header: &'a [u8],
}

impl Default for Driver<'_> {
    fn default() -> Self {
        Self { trusts: true, header: &[0; 16] }
    }
}

fn run(
    device: Box<dyn VirtioDevice>,
    driver: Driver<'_>,
    input: &mut Input<'_>,
    outside: &mut dyn FnMut(&mut Input<'_>),
) {
    let offered = device.info().features;
    let count = device.info().queue_sizes.len();
    let mut kit = Kit::with_ram(device, ram());
    if !activate(&mut kit, offered, input) {
        return;
    }
    // As long as the driver keeps to the rules of rings, the device must as well: the kit checks what comes back.
    let mut honest = driver.trusts;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let step = input.byte();
        let index = usize::from(step >> 4) % count;
        match step & 15 {
            0..=5 => honest &= request(&mut kit, index, driver.header, input),
            6 | 7 => kit.notify(index),
            8 => drop(kit.poll_fds(Duration::ZERO)),
            9 => outside(input),
            10 => {
                let (offset, len) = (input.below(64), input.below(9));
                kit.device.write_config(offset, input.bytes(len));
            }
            11 => {
                honest = false;
                dishonest(&mut kit, index, input);
            }
            12 if honest => while kit.try_used(index).is_some() {},
            13 => kit.suppress_interrupts(index, input.u16()),
            14 => {
                kit.reset();
                honest = driver.trusts;
                if !activate(&mut kit, offered, input) {
                    return;
                }
            }
            _ => kit.notify(index),
        }
    }
    if honest && kit.is_active() {
        (0..count).for_each(|index| while kit.try_used(index).is_some() {});
    }
    kit.reset();
}

fn activate(kit: &mut Kit, offered: u64, input: &mut Input<'_>) -> bool {
    let choice = input.byte();
    let features = if choice & 1 != 0 { input.u64() & offered } else { offered };
    kit.event_idx(choice & 2 != 0);
    kit.try_activate(features).is_ok()
}

/// A request of the shape that most devices know: small numbers first, then data, then room. False if a device may
/// now write to the rings.
fn request(kit: &mut Kit, index: usize, header: &[u8], input: &mut Input<'_>) -> bool {
    let shape = input.byte();
    let (outs, ins) = (usize::from(shape & 3), usize::from(shape >> 2 & 3));
    let mut honest = true;
    let mut parts = Vec::new();
    let mut header = header.to_vec();
    if outs > 0 {
        for _ in 0..4 {
            let (at, change) = (input.below(header.len()), input.byte());
            header[at] ^= change;
        }
    }
    for i in 0..outs + ins {
        let kind = input.byte();
        let part = match (i < outs, kind & 7) {
            (true, 0) => Part::OutAt(input.u64(), input.u32()),
            (true, 1) => Part::OutAt(PIECE - u64::from(input.byte()), input.u32()),
            (true, _) if i == 0 => Part::Out(&header),
            (true, _) => Part::Out(input.bytes(usize::from(kind >> 1))),
            (false, 0) => {
                let (at, len) = (input.u64() | PIECE, input.u32());
                honest = at > PIECE && !(SECOND..SECOND + PIECE).contains(&at);
                Part::InAt(at, len)
            }
            (false, 1) => Part::InAt(SECOND + PIECE - u64::from(input.byte()), input.u32()),
            (false, 2) => Part::In(input.below(20_000)),
            (false, 3) => Part::In(1),
            (false, _) => Part::In(usize::from(kind >> 3) * 16),
        };
        parts.push(part);
    }
    let needed: usize = parts.iter().map(|part| if let Part::In(len) = part { len + 32 } else { 288 }).sum();
    if parts.is_empty() || kit.free_descriptors(index) < parts.len() || kit.free_memory() < needed + 4096 {
        return honest;
    }
    if shape & 0x10 != 0 {
        kit.add_indirect(index, &parts);
    } else {
        kit.add(index, &parts);
    }
    if shape & 0x20 == 0 {
        kit.notify(index);
    }
    honest
}

/// What no driver would do.
fn dishonest(kit: &mut Kit, index: usize, input: &mut Input<'_>) {
    let size = kit.layout(index).size;
    match input.byte() % 4 {
        0 => kit.write_available_index(index, input.u16()),
        1 => kit.publish(index, input.u16() % size.saturating_mul(2)),
        2 => {
            let at = if input.byte() & 1 != 0 { input.u64() } else { input.u32().into() };
            let descriptor = Descriptor { at, len: input.u32(), flags: input.u16(), next: input.u16() };
            kit.write_descriptor(index, input.u16() % size, descriptor);
        }
        _ => {
            let layout = kit.layout(index);
            let at = [layout.available, layout.used, layout.descriptors][input.below(3)] + input.below(300) as u64;
            let len = input.below(40);
            kit.ram.write(at, input.bytes(len)).unwrap();
        }
    }
    kit.notify(index);
}
