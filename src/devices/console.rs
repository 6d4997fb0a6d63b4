//! The console of a guest with virtio drivers, `hvc0` (virtio 1.3, section 5.3): one notification a write instead of
//! an exit a character, and it knows the size of the user's terminal.
//!
//! One port, without MULTIPORT: then the window size travels in the configuration, where drivers agree on it. Named
//! ports are devices of their own (`port`). The handler runs on the event loop, emergency writes come on vCPU threads.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use crate::devices::character_queues::{CharacterQueues, Wake};
use crate::devices::console_output::ConsoleOutput;
use crate::devices::{AttachError, Builder, Key, Kind as DeviceKind, OptionError, Options, Spec, place};
use crate::host::alarm::Alarm;
use crate::host::chardev::Target;
use crate::host::stream::{Claim, Listener, WhenFull};
use crate::host::terminal::WindowSize;
use crate::virtio::config::ConfigSpace;
use crate::virtio::queue::Queues;
use crate::virtio::{ActivateError, Broken, Handler, Info, VirtioDevice};

/// VIRTIO_CONSOLE_F_SIZE (section 5.3.3): the configuration has the window's size.
const F_SIZE: u64 = 1 << 0;
/// VIRTIO_CONSOLE_F_EMERG_WRITE: characters can be written to the configuration, without queues.
const F_EMERG_WRITE: u64 = 1 << 2;

/// Queues (section 5.3.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
/// Buffers in each; Linux uses one for output at a time and fills the other with pages.
const QUEUE_SIZE: u16 = 32;

/// Configuration (section 5.3.4): columns, rows (16 bits each), number of ports, emergency write.
const CONFIG_LEN: usize = 12;
const EMERG_WR: usize = 8;

const WAKE: u32 = 0;
const ALARM: u32 = 1;

/// Linux offers buffers for input before it knows whose they are, and throws away what comes in that moment: nobody
/// types so early, but a pipe does. It prints before it reads, so input waits for the first output; and for a driver
/// that only reads no longer than this.
const PATIENCE: Duration = Duration::from_secs(1);

/// `--console`.
#[derive(Debug)]
pub struct Kind;

impl DeviceKind for Kind {
    fn name(&self) -> &'static str {
        "console"
    }

    fn about(&self) -> &'static str {
        "Virtio console (hvc0)"
    }

    fn keys(&self) -> &'static [Key] {
        &[place::OF_A_CONSOLE]
    }

    fn repeatable(&self) -> bool {
        false
    }

    fn parse(&self, options: &mut Options) -> Result<Box<dyn Spec>, OptionError> {
        Ok(Box::new(ConsoleSpec { target: place::of_a_console(options)? }))
    }
}

#[derive(Debug)]
struct ConsoleSpec {
    /// None: the machine has no virtio console.
    target: Option<Target>,
}

impl Spec for ConsoleSpec {
    fn timed(&self) -> Option<&'static str> {
        self.target.as_ref().is_some_and(Target::is_live).then_some("--console to=pty or to=socket")
    }

    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError> {
        let Some(target) = &self.target else { return Ok(()) };
        let output = builder.consoles.open("console0", target, builder.events)?;
        builder.virtio("console", Box::new(Console::new(output)));
        Ok(())
    }

    fn kernel_words(&self) -> Vec<String> {
        self.target.iter().map(|_| "console=hvc0".into()).collect()
    }
}

struct Console {
    output: Arc<ConsoleOutput>,
    config: ConfigSpace,
    /// Whether there is a terminal. Without one there is no size, and a guest assumes its own.
    sized: bool,
}

impl Console {
    fn new(output: ConsoleOutput) -> Self {
        let config = ConfigSpace::new(CONFIG_LEN);
        let size = output.stream().window_size();
        size.into_iter().for_each(|size| set_size(&config, size));
        Self { output: Arc::new(output), config, sized: size.is_some() }
    }
}

fn set_size(config: &ConfigSpace, size: WindowSize) {
    let mut bytes = [0; 4];
    let (columns, rows) = (size.columns.to_le_bytes(), size.rows.to_le_bytes());
    columns.iter().chain(&rows).zip(&mut bytes).for_each(|(from, to)| *to = *from);
    config.set(0, &bytes);
}

impl VirtioDevice for Console {
    fn info(&self) -> Info {
        let features = F_EMERG_WRITE | if self.sized { F_SIZE } else { 0 };
        Info { id: VIRTIO_ID_CONSOLE as u16, features, queue_sizes: vec![QUEUE_SIZE; 2], blocking: false }
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        if let (EMERG_WR, Some(byte)) = (offset, data.get(..1)) {
            self.output.write(byte, WhenFull::Drop);
        }
    }

    fn activate(&mut self, features: u64) -> Result<Box<dyn Handler>, ActivateError> {
        let wake = Wake::new().map_err(|e| ActivateError(format!("cannot make an event descriptor: {e}")))?;
        let alarm = Alarm::new().map_err(|e| ActivateError(format!("cannot make a timer: {e}")))?;
        let listener: Arc<dyn Listener> = wake.clone();
        // From now on input is for this console and not for a serial port that shares its place, until the reset.
        let input = self.output.stream().claim(Arc::downgrade(&listener));
        Ok(Box::new(Active {
            output: self.output.clone(),
            config: self.config.clone(),
            input,
            wake,
            alarm,
            listens: false,
            characters: CharacterQueues::default(),
            size_due: features & F_SIZE != 0,
            sized: features & F_SIZE != 0,
        }))
    }
}

struct Active {
    output: Arc<ConsoleOutput>,
    config: ConfigSpace,
    input: Claim,
    wake: Arc<Wake>,
    /// Ends the wait for the first output.
    alarm: Alarm,
    /// The driver is far enough to take input.
    listens: bool,
    characters: CharacterQueues,
    /// The driver knows of the window's size.
    sized: bool,
    /// The driver has yet to be told the size once: before 6.15 Linux reads it only when it changes.
    size_due: bool,
}

impl Active {
    fn transmit(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        let mut sent = false;
        let write = |bytes: &[u8]| {
            sent = true;
            self.output.write(bytes, WhenFull::Wait)
        };
        self.characters.send(write, queues.queue(TRANSMIT))?;
        // Output means that the driver is far enough to take the size in, and input.
        if sent && std::mem::take(&mut self.size_due) {
            self.resize(queues);
        }
        if sent && !std::mem::replace(&mut self.listens, true) {
            self.receive(queues)?;
        }
        Ok(())
    }

    fn receive(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        if self.listens {
            return self.characters.receive(&self.input, queues.queue(RECEIVE));
        }
        if !self.output.stream().in_step() {
            self.alarm.set(PATIENCE);
        }
        Ok(())
    }

    fn resize(&mut self, queues: &Queues) {
        if let (true, Some(size)) = (self.sized, self.output.stream().window_size()) {
            set_size(&self.config, size);
            queues.config_changed();
        }
    }
}

impl Handler for Active {
    fn fds(&self) -> Vec<(RawFd, u32)> {
        vec![(self.wake.as_raw_fd(), WAKE), (self.alarm.as_raw_fd(), ALARM)]
    }

    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        match index {
            TRANSMIT => self.transmit(queues),
            _ => self.receive(queues),
        }
    }

    fn on_fd(&mut self, token: u32, queues: &mut Queues) -> Result<(), Broken> {
        if token == ALARM {
            self.alarm.stop();
            self.listens = true;
        } else if self.wake.heard() {
            self.resize(queues);
        }
        self.receive(queues)?;
        self.transmit(queues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::console_output::tests::{output_over, quiet_hub};
    use crate::host::event_loop::EventLoop;
    use crate::host::stream::tests::{fifo, on_pty, read};
    use crate::virtio::kit::{Kit, LIMIT, Part};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::time::Instant;

    /// A console that leads to a socket, and its client.
    fn bench() -> (Kit, UnixStream, Arc<ConsoleOutput>, EventLoop, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let events = EventLoop::start("console-test").unwrap();
        let output = quiet_hub().open("console0", &Target::Socket(path.clone()), &events.handle()).unwrap();
        let client = UnixStream::connect(path).unwrap();
        client.set_read_timeout(Some(LIMIT)).unwrap();
        let start = Instant::now();
        while !output.stream().connected() {
            assert!(start.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(1));
        }
        let console = Console::new(output);
        let output = console.output.clone();
        (Kit::new(Box::new(console)), client, output, events, dir)
    }

    #[test]
    fn characters_go_both_ways_again_after_a_reset() {
        let (mut kit, mut client, _output, _events, _dir) = bench();
        for _ in 0..2 {
            kit.activate_on_loop(F_EMERG_WRITE);
            let used = kit.request(TRANSMIT, &[b"hel", b"lo\n"], &[]);
            assert_eq!(used.len, 0);
            let mut seen = [0; 6];
            client.read_exact(&mut seen).unwrap();
            assert_eq!(&seen, b"hello\n");
            kit.add(RECEIVE, &[Part::In(2), Part::In(100)]);
            kit.notify(RECEIVE);
            client.write_all(b"ls\r").unwrap();
            assert_eq!(kit.wait_used(RECEIVE).data, b"ls\r");
            kit.reset();
        }
    }

    #[test]
    fn input_waits_until_the_driver_prints() {
        let (mut kit, mut client, _output, _events, _dir) = bench();
        client.write_all(b"early").unwrap();
        kit.activate_on_loop(0);
        let start = Instant::now();
        kit.add(RECEIVE, &[Part::In(100)]);
        kit.notify(RECEIVE);
        if start.elapsed() < PATIENCE / 2 {
            assert!(kit.used_within(RECEIVE, PATIENCE / 10).is_none());
        }
        kit.request(TRANSMIT, &[b"# "], &[]);
        assert_eq!(kit.wait_used(RECEIVE).data, b"early");
    }

    #[test]
    fn input_waits_for_buffers_and_is_the_serial_ports_after_a_reset() {
        let (mut kit, mut client, output, _events, _dir) = bench();
        let serial: Arc<dyn Listener> = Wake::new().unwrap();
        let serial = output.stream().claim(Arc::downgrade(&serial));
        kit.activate_on_loop(0);
        client.write_all(&[b'x'; 3000]).unwrap();
        let mut seen = 0;
        while seen < 3000 {
            kit.add(RECEIVE, &[Part::In(1000)]);
            kit.notify(RECEIVE);
            let used = kit.wait_used(RECEIVE);
            assert!(used.data.iter().all(|&byte| byte == b'x'));
            seen += used.len;
        }
        assert_eq!(serial.take(&mut [0; 1]), 0);
        kit.reset();
        client.write_all(b"y").unwrap();
        let start = Instant::now();
        let mut byte = [0];
        while serial.take(&mut byte) == 0 {
            assert!(start.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(byte, [b'y']);
    }

    #[test]
    fn a_slow_reader_keeps_buffers_in_the_queue_and_loses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (target, reader) = fifo(dir.path());
        let events = EventLoop::start("console-test").unwrap();
        let output = quiet_hub().open("console0", &target, &events.handle()).unwrap();
        let mut kit = Kit::new(Box::new(Console::new(output)));
        kit.activate(0);
        let content: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
        for piece in content.chunks(10_000) {
            kit.add(TRANSMIT, &[Part::Out(piece)]);
        }
        kit.notify(TRANSMIT);
        let mut back = 0;
        while kit.try_used(TRANSMIT).is_some() {
            back += 1;
        }
        assert!((5..30).contains(&back), "{back} of 30 came back before anybody read");
        let reading = std::thread::spawn(move || read(&reader, 300_000));
        for _ in back..30 {
            kit.wait_used(TRANSMIT);
        }
        assert!(reading.join().unwrap() == content);
        kit.reset();
        kit.activate(0);
        kit.request(TRANSMIT, &[b"again"], &[]);
    }

    #[test]
    fn odd_requests_do_no_harm() {
        let (mut kit, mut client, _output, _events, _dir) = bench();
        kit.activate(0);
        assert_eq!(kit.request(TRANSMIT, &[], &[16]).room, [0xa5; 16], "nothing is written for the driver");
        kit.request(TRANSMIT, &[b"\n"], &[]);
        client.read_exact(&mut [0]).unwrap();
        kit.add(RECEIVE, &[Part::Out(b"no room here")]);
        kit.notify(RECEIVE);
        kit.wait_broken();
        kit.reset();
        kit.activate(0);
        kit.add(TRANSMIT, &[Part::OutAt(u64::MAX - 3, 16)]);
        kit.notify(TRANSMIT);
        kit.wait_broken();
        kit.reset();
        kit.activate(0);
        kit.request(TRANSMIT, &[b"ok\n"], &[]);
        let mut seen = [0; 3];
        client.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"ok\n");
    }

    #[test]
    fn emergency_writes_need_no_queues() {
        let (mut kit, mut client, _output, _events, _dir) = bench();
        for (offset, data) in [(EMERG_WR, &b"!\0\0\0"[..]), (0, b"x"), (EMERG_WR, b""), (EMERG_WR + 1, b"x")] {
            kit.device.write_config(offset, data);
        }
        kit.device.write_config(EMERG_WR, b"\n");
        let mut seen = [0; 2];
        client.read_exact(&mut seen).unwrap();
        assert_eq!(&seen, b"!\n");
    }

    #[test]
    fn the_guest_knows_the_size_of_the_window() {
        let events = EventLoop::start("console-test").unwrap();
        let (stream, pty) = on_pty(&events.handle());
        pty.resize(120, 40);
        let mut kit = Kit::new(Box::new(Console::new(output_over(&quiet_hub(), &stream))));
        let config = kit.device.config().clone();
        let size = || {
            let mut bytes = [0; 4];
            config.read(0, &mut bytes);
            bytes
        };
        assert_eq!(size(), [120, 0, 40, 0]);
        for round in 0..2 {
            kit.activate(F_SIZE);
            assert_eq!(kit.config_interrupts(), 0);
            kit.request(TRANSMIT, &[b"login: "], &[]);
            assert_eq!(kit.config_interrupts(), 1, "once, for drivers that do not read it at start");
            pty.resize(300, 50 + round);
            stream.tell_resized();
            assert!(kit.poll_fds(LIMIT));
            assert_eq!(kit.config_interrupts(), 2);
            assert_eq!(size(), [44, 1, 50 + round as u8, 0]);
            kit.reset();
        }
        kit.activate(0);
        stream.tell_resized();
        kit.poll_fds(LIMIT);
        assert_eq!(kit.config_interrupts(), 0, "a driver without the feature is left alone");
    }

    #[test]
    fn options_name_a_place_or_none() {
        let spec = |text| Kind.parse(&mut Options::from_flag("console", Kind.keys(), text).unwrap());
        assert_eq!(spec("socket=/tmp/s").unwrap().kernel_words(), ["console=hvc0"]);
        assert!(spec("off").unwrap().kernel_words().is_empty());
        assert!(spec("vt100").unwrap_err().to_string().starts_with("--console: to=vt100: say stdio|"));
    }
}
