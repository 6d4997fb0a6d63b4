//! A 16550 serial port, COM1 (`ttyS0`): early messages, and the console of kernels without a virtio console driver. Also
//! the registers of COM2, which `uart` makes a port for data of.
//!
//! Registers are those of the TI TL16C550 data sheet (`vm-superio`). Guest accesses come on vCPU threads, input comes
//! on the event loop. Output of a console never waits: what a slow reader leaves no room for is lost and counted. On a
//! port for data the transmitter stays busy until there is room.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vm_superio::serial::NoEvents;
use vm_superio::{Serial, Trigger};

use crate::bus::BusDevice;
use crate::devices::builder::PlacedPorts;
use crate::devices::console_output::ConsoleOutput;
use crate::devices::{AttachError, Builder, Key, Kind as DeviceKind, OptionError, Options, PlainConsole, Spec, place};
use crate::host::chardev::Target;
use crate::host::stream::{Claim, Listener, Stream, WhenFull};
use crate::irq::IrqLine;

/// First port of COM1.
pub const PORT: u16 = 0x3f8;
/// Interrupt of COM1. Not the 4 of a PC: every pin of the I/O APIC costs a starting kernel some 25 exits.
pub const GSI: u32 = 1;
/// Number of registers.
pub(super) const REGISTERS: u16 = 8;

/// Receive buffer, and what is to be sent.
const RBR: u8 = 0;
const THR: u8 = 0;
/// Interrupt enable; bit 0: received data.
const IER: u8 = 1;
const IER_RECEIVED: u8 = 1;
/// Interrupt identification: bit 0 none, or 4 for received data.
const IIR: u8 = 2;
const IIR_NONE: u8 = 1;
const IIR_RECEIVED: u8 = 4;
const IIR_WHAT: u8 = 0xf;
/// Line control; bit 7 shows the divisor instead of the first two registers.
const LCR: u8 = 3;
const LCR_DIVISOR: u8 = 0x80;
/// Modem control; bit 4 connects the output to the input.
const MCR: u8 = 4;
const MCR_LOOPBACK: u8 = 0x10;
/// Line status; bits 5 and 6: nothing waits to be sent.
const LSR: u8 = 5;
const LSR_SENT: u8 = 0x60;

/// Bytes of the receive FIFO of `vm-superio`.
const FIFO: usize = 64;

/// Bytes that a guest may write although it was told that the transmitter is busy, or after it was told that it is not.
const HELD: usize = 64;

/// So many reads of the line status in a row, and nothing else, mean that the guest waits for input without
/// interrupts. Output reads it once a character.
const POLLING: u8 = 8;

/// `--serial`.
#[derive(Debug)]
pub struct Kind;

impl DeviceKind for Kind {
    fn name(&self) -> &'static str {
        "serial"
    }

    fn about(&self) -> &'static str {
        "Serial port (ttyS0), for early messages and plain consoles"
    }

    fn keys(&self) -> &'static [Key] {
        &[place::OF_A_CONSOLE]
    }

    fn repeatable(&self) -> bool {
        false
    }

    fn parse(&self, options: &mut Options) -> Result<Box<dyn Spec>, OptionError> {
        Ok(Box::new(SerialSpec { target: place::of_a_console(options)? }))
    }
}

#[derive(Debug)]
struct SerialSpec {
    /// None: the machine has no serial port.
    target: Option<Target>,
}

impl Spec for SerialSpec {
    fn timed(&self) -> Option<&'static str> {
        self.target.as_ref().is_some_and(Target::is_live).then_some("--serial to=pty or to=socket")
    }

    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError> {
        let Some(target) = &self.target else { return Ok(()) };
        let name = "serial0";
        let output = builder.consoles.open(name, target, builder.events)?;
        builder.ports.push(PlacedPorts {
            name: name.into(),
            base: PORT,
            len: REGISTERS,
            gsi: Some(GSI),
            hid: Some("PNP0501"),
            device: SerialPort::new(Output::Console(output), (builder.lines)(GSI)?),
        });
        Ok(())
    }

    fn serial_ports(&self) -> u32 {
        self.target.is_some().into()
    }

    fn plain_console(&self) -> Option<PlainConsole> {
        self.target.as_ref().map(|_| PlainConsole { main: "console=ttyS0", early: "earlyprintk=ttyS0" })
    }
}

struct Line(Arc<dyn IrqLine>);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.pulse();
        Ok(())
    }
}

/// Where the guest's bytes go.
pub(super) enum Output {
    /// What there is no room for is lost.
    Console(ConsoleOutput),
    /// Nothing is lost: also what is sent before somebody connects on the host waits.
    Data(Stream),
}

impl Output {
    fn stream(&self) -> &Stream {
        match self {
            Self::Console(output) => output.stream(),
            Self::Data(stream) => stream,
        }
    }

    fn has_room(&self) -> bool {
        match self {
            Self::Console(_) => true,
            Self::Data(stream) => stream.has_room(),
        }
    }
}

impl io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Ok(match self {
            Self::Console(output) => output.write(bytes, WhenFull::Drop),
            Self::Data(stream) => stream.write(bytes, WhenFull::Drop),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The port on the bus.
pub(super) struct SerialPort {
    uart: Mutex<Uart>,
}

struct Uart {
    registers: Serial<Line, NoEvents, Output>,
    input: Claim,
    /// Bytes that the guest has sent and there is no room for yet: the transmitter is busy.
    held: VecDeque<u8>,
    /// Reads of the line status in a row.
    polls: u8,
}

impl SerialPort {
    pub(super) fn new(output: Output, line: Arc<dyn IrqLine>) -> Arc<Self> {
        Arc::new_cyclic(|this: &Weak<Self>| {
            let listener: Weak<dyn Listener> = this.clone();
            let input = output.stream().claim(listener);
            let registers = Serial::new(Line(line), output);
            Self { uart: Mutex::new(Uart { registers, input, held: VecDeque::new(), polls: 0 }) }
        })
    }

    fn uart(&self) -> std::sync::MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Uart {
    /// Whether the guest takes input: bytes that come while its driver still sets the port up or tests it would be
    /// lost.
    fn listens(&mut self) -> bool {
        (self.interrupts() || self.polls >= POLLING) && self.registers.read(MCR) & MCR_LOOPBACK == 0
    }

    /// Whether a write to the first register is something to be sent.
    fn sends(&mut self, register: u8) -> bool {
        register == THR && self.registers.read(LCR) & LCR_DIVISOR == 0 && self.registers.read(MCR) & MCR_LOOPBACK == 0
    }

    fn send(&mut self, byte: u8) {
        if self.held.is_empty() && self.registers.writer().has_room() {
            // Cannot fail: the line always works, and so does output.
            let _ = self.registers.write(THR, byte);
        } else if self.held.len() < HELD {
            self.held.push_back(byte);
        }
    }

    /// Sends what was held back, as far as there is room. The last byte interrupts, as that of a real port does.
    fn release(&mut self) {
        while self.registers.writer().has_room()
            && let Some(byte) = self.held.pop_front()
        {
            // As above.
            let _ = self.registers.write(THR, byte);
        }
    }

    /// What interrupted. `vm-superio` forgets received data at the first byte read, but a driver that took a part asks
    /// here whether there is more, and would wait for ever if told that there is not.
    fn identify(&mut self) -> u8 {
        let what = self.registers.read(IIR);
        let more = self.registers.fifo_capacity() < FIFO && self.interrupts();
        if what & IIR_NONE != 0 && more { (what & !IIR_WHAT) | IIR_RECEIVED } else { what }
    }

    /// Whether received data interrupts.
    fn interrupts(&mut self) -> bool {
        let divisor = self.registers.read(LCR) & LCR_DIVISOR != 0;
        !divisor && self.registers.read(IER) & IER_RECEIVED != 0
    }

    /// Takes what the guest has not read out of its FIFO again. A driver that starts first looks what kind of port it
    /// has, in which Linux switches all interrupts on for a moment, and then empties the port, once for each of its
    /// stages: a real port would have nothing to lose there, because nobody types before a machine runs. A pipe does.
    /// So the guest has received bytes only while it waits for them, and they are here again when it stops to.
    fn withdraw(&mut self) {
        let mut bytes = [0; FIFO];
        let waiting = FIFO.saturating_sub(self.registers.fifo_capacity());
        if waiting == 0 {
            return;
        }
        let bytes = bytes.get_mut(..waiting).unwrap_or_default();
        bytes.iter_mut().for_each(|byte| *byte = self.registers.read(RBR));
        self.input.give_back(bytes);
    }

    /// Moves waiting input to the guest's FIFO, as much as it has room for.
    fn fill(&mut self) {
        let room = self.registers.fifo_capacity();
        if room == 0 || !self.listens() {
            return;
        }
        let mut bytes = [0; FIFO];
        let n = self.input.take(bytes.get_mut(..room).unwrap_or_default());
        if n > 0 {
            // Cannot fail: there is room, and the line always works.
            let _ = self.registers.enqueue_raw_bytes(bytes.get(..n).unwrap_or_default());
        }
    }
}

impl BusDevice for SerialPort {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let (Some(first), Ok(register)) = (data.first_mut(), u8::try_from(offset)) else { return };
        let mut uart = self.uart();
        let before = uart.polls;
        uart.polls = if register == LSR { before.saturating_add(1) } else { 0 };
        // A guest that polls still does when it reads what it was waiting for.
        if register == RBR && before >= POLLING {
            uart.polls = before;
        }
        if register == LSR && before < POLLING && uart.polls >= POLLING {
            uart.fill();
        }
        *first = match register {
            IIR => uart.identify(),
            LSR if !uart.held.is_empty() => uart.registers.read(LSR) & !LSR_SENT,
            _ => uart.registers.read(register),
        };
        if register == RBR && uart.registers.fifo_capacity() == FIFO {
            uart.fill();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let (Some(&value), Ok(register)) = (data.first(), u8::try_from(offset)) else { return };
        let mut uart = self.uart();
        uart.polls = 0;
        if uart.sends(register) {
            uart.send(value);
            return;
        }
        // Neither can fail: the line cannot, and output never does.
        let _ = uart.registers.write(register, value);
        // With the divisor shown, neither of the two registers is what it else is.
        if register == IER && uart.registers.read(LCR) & LCR_DIVISOR == 0 {
            match value & IER_RECEIVED {
                0 => uart.withdraw(),
                _ => uart.fill(),
            }
        }
    }
}

impl Listener for SerialPort {
    fn ready(&self) {
        let mut uart = self.uart();
        uart.release();
        uart.fill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::console_output::tests::quiet_hub;
    use crate::host::event_loop::EventLoop;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    const LONG: Duration = Duration::from_secs(20);

    #[derive(Debug, Default)]
    struct Pulses(AtomicU32);

    impl IrqLine for Pulses {
        fn set_level(&self, high: bool) {
            self.0.fetch_add(u32::from(high), Ordering::Relaxed);
        }
    }

    struct Bench {
        port: Arc<SerialPort>,
        pulses: Arc<Pulses>,
        client: UnixStream,
        _events: EventLoop,
        _dir: tempfile::TempDir,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let events = EventLoop::start("serial-test").unwrap();
        let output = quiet_hub().open("serial0", &Target::Socket(path.clone()), &events.handle()).unwrap();
        let stream = output.stream().clone();
        let pulses = Arc::new(Pulses::default());
        let port = SerialPort::new(Output::Console(output), pulses.clone());
        let client = UnixStream::connect(path).unwrap();
        client.set_read_timeout(Some(LONG)).unwrap();
        wait(|| stream.connected());
        Bench { port, pulses, client, _events: events, _dir: dir }
    }

    fn wait(mut until: impl FnMut() -> bool) {
        let end = Instant::now() + LONG;
        while !until() {
            assert!(Instant::now() < end, "waited too long");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn get(port: &SerialPort, register: u8) -> u8 {
        let mut data = [0xee];
        BusDevice::read(port, register.into(), &mut data);
        data[0]
    }

    fn set(port: &SerialPort, register: u8, value: u8) {
        BusDevice::write(port, register.into(), &[value]);
    }

    #[test]
    fn output_arrives() {
        let mut bench = bench();
        b"hello\n".iter().for_each(|&byte| set(&bench.port, 0, byte));
        let mut seen = [0; 6];
        bench.client.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"hello\n");
    }

    #[test]
    fn input_waits_for_the_driver_and_is_paced_by_it() {
        let mut bench = bench();
        let sent: Vec<u8> = (0..20_000u32).map(|n| (n % 253) as u8).collect();
        let content = sent.clone();
        let mut client = bench.client.try_clone().unwrap();
        let writer = std::thread::spawn(move || client.write_all(&sent).unwrap());
        // A driver sets the port up: FIFO, self-test, divisor, one stray read.
        set(&bench.port, MCR, MCR_LOOPBACK | 0xa);
        assert_eq!(get(&bench.port, 6) & 0xf0, 0x90, "the loopback test of the 8250 driver");
        set(&bench.port, 2, 7);
        set(&bench.port, MCR, 0xb);
        set(&bench.port, LCR, 0x83);
        set(&bench.port, 1, 1);
        set(&bench.port, LCR, 3);
        get(&bench.port, RBR);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(get(&bench.port, LSR) & 1, 0, "nothing before interrupts are on");
        assert_eq!(bench.pulses.0.load(Ordering::Relaxed), 0);
        set(&bench.port, IER, IER_RECEIVED);
        let mut seen = Vec::new();
        wait(|| {
            while get(&bench.port, LSR) & 1 != 0 && seen.len() < content.len() {
                seen.push(get(&bench.port, RBR));
            }
            seen.len() == content.len()
        });
        assert!(seen == content);
        assert!(bench.pulses.0.load(Ordering::Relaxed) > 0);
        writer.join().unwrap();
        set(&bench.port, 0, b'\n');
        bench.client.read_exact(&mut [0]).unwrap();
    }

    /// A driver that is woken by interrupts alone and reads a bounded number of bytes in each round, as Linux does.
    #[test]
    fn interrupts_alone_move_all_input() {
        let bench = bench();
        set(&bench.port, IER, IER_RECEIVED);
        let content: Vec<u8> = (0..20_000u32).map(|n| (n % 253) as u8).collect();
        let sent = content.clone();
        let mut client = bench.client.try_clone().unwrap();
        let writer = std::thread::spawn(move || client.write_all(&sent).unwrap());
        let (mut seen, mut handled) = (Vec::new(), 0);
        wait(|| {
            let raised = bench.pulses.0.load(Ordering::Acquire);
            if raised == std::mem::replace(&mut handled, raised) {
                return false;
            }
            while get(&bench.port, IIR) & IIR_NONE == 0 {
                for _ in 0..100 {
                    if get(&bench.port, LSR) & 1 == 0 {
                        break;
                    }
                    seen.push(get(&bench.port, RBR));
                }
            }
            seen.len() == content.len()
        });
        assert!(seen == content);
        writer.join().unwrap();
    }

    #[test]
    fn a_guest_that_polls_gets_input_too() {
        let mut bench = bench();
        bench.client.write_all(b"polled").unwrap();
        let mut seen = Vec::new();
        wait(|| {
            if get(&bench.port, LSR) & 1 != 0 {
                seen.push(get(&bench.port, RBR));
            }
            seen.len() == 6
        });
        assert_eq!(seen, b"polled");
        assert_eq!(bench.pulses.0.load(Ordering::Relaxed), 0);
    }

    /// What Linux' 8250 driver does to a port before it listens, twice: when it finds it, and when it is opened.
    #[test]
    fn input_survives_a_driver_that_looks_around() {
        let mut bench = bench();
        let content: Vec<u8> = (0..200).collect();
        bench.client.write_all(&content).unwrap();
        wait(|| bench.port.uart().input.waiting() == content.len());
        for _ in 0..2 {
            set(&bench.port, IER, 0);
            set(&bench.port, IER, 0xf);
            assert_eq!(get(&bench.port, IER), 0xf);
            set(&bench.port, IER, 0);
            set(&bench.port, 2, 7);
            set(&bench.port, 2, 0);
            for register in [LSR, RBR, RBR, IIR, 6] {
                assert_eq!(get(&bench.port, register) & u8::from(register == LSR), 0);
            }
        }
        let mut seen = Vec::new();
        while seen.len() < content.len() {
            set(&bench.port, IER, 5);
            for _ in 0..7 {
                assert_eq!(get(&bench.port, LSR) & 1, u8::from(seen.len() < content.len()));
                seen.push(get(&bench.port, RBR));
            }
            // As for every line that the kernel prints.
            set(&bench.port, IER, 0);
            assert_eq!(get(&bench.port, LSR) & 1, 0);
        }
        assert_eq!(&seen[..content.len()], content);
    }

    /// A guest that sends to itself and calls that received cannot fill the host's memory.
    #[test]
    fn what_is_given_back_is_bounded() {
        let bench = bench();
        for _ in 0..1000 {
            set(&bench.port, MCR, MCR_LOOPBACK);
            (0..FIFO).for_each(|_| set(&bench.port, RBR, b'x'));
            set(&bench.port, MCR, 0);
            set(&bench.port, IER, 0);
        }
        let waiting = bench.port.uart().input.waiting();
        assert!(waiting < 1 << 14, "{waiting} bytes wait");
    }

    #[test]
    fn odd_accesses_do_no_harm() {
        let bench = bench();
        for offset in [0u64, 1, 3, 5, 7, 8, 255, 256, u64::MAX] {
            let mut data = [0xee; 8];
            BusDevice::read(&*bench.port, offset, &mut data);
            assert_eq!(data[1..], [0; 7]);
            BusDevice::read(&*bench.port, offset, &mut []);
            BusDevice::write(&*bench.port, offset, &[0xff; 8]);
            BusDevice::write(&*bench.port, offset, &[]);
        }
    }

    #[test]
    fn options_name_a_place_or_none() {
        let spec = |text| Kind.parse(&mut Options::from_flag("serial", Kind.keys(), text).unwrap());
        assert!(format!("{:?}", spec("").unwrap()).contains("Stdio"));
        assert!(format!("{:?}", spec("file=/tmp/x").unwrap()).contains("/tmp/x"));
        assert_eq!(spec("off").unwrap().plain_console(), None);
        let wrong = spec("tty").unwrap_err().to_string();
        assert_eq!(wrong, "--serial: to=tty: say stdio|stderr|file=PATH|pty|socket=PATH|null or off");
    }
}
