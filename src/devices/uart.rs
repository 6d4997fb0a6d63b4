//! A second serial port, COM2 (`ttyS1`), for data: what a program in the guest writes there arrives on the host as it is,
//! and nothing is lost. For guests whose kernel has no driver for better ports; it is slow.
//!
//! The registers are those of `serial`. Both ports share an interrupt, as those of a PC may: a driver that is interrupted
//! asks each of them.

use std::sync::Arc;

use crate::devices::builder::PlacedPorts;
use crate::devices::serial::{GSI, Output, REGISTERS, SerialPort};
use crate::devices::{AttachError, Builder, Key, Kind as DeviceKind, OptionError, Options, Spec, place};
use crate::host::chardev::Target;
use crate::host::stream::{Stream, Style};

/// First port of COM2.
const PORT: u16 = 0x2f8;
/// It is the second one even if there is no first.
const NUMBER: u32 = 2;

/// `--uart`.
#[derive(Debug)]
pub struct Kind;

impl DeviceKind for Kind {
    fn name(&self) -> &'static str {
        "uart"
    }

    fn about(&self) -> &'static str {
        "Second serial port (ttyS1), for data"
    }

    fn keys(&self) -> &'static [Key] {
        &[place::OF_A_PORT]
    }

    fn repeatable(&self) -> bool {
        false
    }

    fn parse(&self, options: &mut Options) -> Result<Box<dyn Spec>, OptionError> {
        Ok(Box::new(UartSpec { target: place::of_a_port(options)? }))
    }
}

#[derive(Debug)]
struct UartSpec {
    target: Target,
}

impl Spec for UartSpec {
    fn timed(&self) -> Option<&'static str> {
        self.target.is_live().then_some("--uart to=pty or to=socket")
    }

    fn serial_ports(&self) -> u32 {
        NUMBER
    }

    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError> {
        let style = Style { lines: false, patience: None, quit: Arc::new(|| {}) };
        let stream = Stream::open("uart", &self.target, style, builder.events);
        let stream = stream.map_err(|e| AttachError(e.to_string()))?;
        builder.ports.push(PlacedPorts {
            name: "uart".into(),
            base: PORT,
            len: REGISTERS,
            gsi: Some(GSI),
            hid: Some("PNP0501"),
            device: SerialPort::new(Output::Data(stream), (builder.lines)(GSI)?),
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::BusDevice;
    use crate::host::event_loop::EventLoop;
    use crate::irq::IrqLine;
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::{Duration, Instant};

    #[derive(Debug, Default)]
    struct Pulses(AtomicU32);

    impl IrqLine for Pulses {
        fn set_level(&self, high: bool) {
            self.0.fetch_add(u32::from(high), Ordering::AcqRel);
        }
    }

    /// A driver that sends 16 bytes whenever the port says that it is idle, woken by interrupts alone.
    #[test]
    fn a_slow_reader_makes_the_guest_wait_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let events = EventLoop::start("uart-test").unwrap();
        let style = Style { lines: false, patience: None, quit: Arc::new(|| {}) };
        let stream = Stream::open("uart", &Target::Socket(path.clone()), style, &events.handle()).unwrap();
        let pulses = Arc::new(Pulses::default());
        let port = SerialPort::new(Output::Data(stream.clone()), pulses.clone());
        let mut client = UnixStream::connect(path).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !stream.connected() {
            assert!(Instant::now() < end);
            std::thread::yield_now();
        }
        const ALL: usize = 1_000_000;
        let byte = |n: usize| (n % 251) as u8;
        let status = || {
            let mut data = [0];
            port.read(5, &mut data);
            data[0]
        };
        port.write(1, &[2]);
        let (mut sent, mut handled, mut waited, mut reader) = (0, u32::MAX, false, None);
        while sent < ALL {
            assert!(Instant::now() < end, "stuck after {sent} bytes");
            let raised = pulses.0.load(Ordering::Acquire);
            if raised == std::mem::replace(&mut handled, raised) {
                // Nobody reads before the guest had to wait once.
                waited = true;
                let mut client = client.try_clone().unwrap();
                reader.get_or_insert_with(|| {
                    std::thread::spawn(move || {
                        let mut seen = vec![0; ALL];
                        client.read_exact(&mut seen).map(|()| seen)
                    })
                });
                std::thread::yield_now();
                continue;
            }
            port.read(2, &mut [0]);
            if status() & 0x20 != 0 {
                for _ in 0..16 {
                    port.write(0, &[byte(sent)]);
                    sent += 1;
                }
            }
        }
        assert!(waited, "there was always room");
        let seen = reader.unwrap().join().unwrap().unwrap();
        assert!(seen.into_iter().enumerate().all(|(n, seen)| seen == byte(n)));
        client.set_nonblocking(true).unwrap();
        assert!(client.read(&mut [0]).is_err(), "no more than that");
    }
}
