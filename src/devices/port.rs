//! A named port between guest and host: `/dev/virtio-ports/NAME` in the guest, a socket or the like on the host
//! (virtio 1.3, section 5.3, with MULTIPORT). One device each, without a console. Runs on the event loop.
//!
//! ```text
//! driver -> DEVICE_READY    device -> PORT_ADD
//! driver -> PORT_READY      device -> PORT_NAME, and PORT_OPEN whenever somebody connects or leaves on the host
//! driver -> PORT_OPEN       (somebody opened or closed it in the guest: input flows only while it is open)
//! ```
//!
//! Nothing is lost: a guest that writes faster than the host reads waits, and so does the host's writer.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use crate::devices::character_queues::{CharacterQueues, Wake};
use crate::devices::{AttachError, Builder, Key, Kind as DeviceKind, OptionError, Options, Spec, place};
use crate::host::chardev::Target;
use crate::host::stream::{Claim, Listener, Stream, Style, WhenFull};
use crate::virtio::config::ConfigSpace;
use crate::virtio::queue::Queues;
use crate::virtio::{ActivateError, Broken, Handler, Info, VirtioDevice};

/// VIRTIO_CONSOLE_F_MULTIPORT (section 5.3.3).
const F_MULTIPORT: u64 = 1 << 1;

/// Queues (section 5.3.2).
const RECEIVE: usize = 0;
const TRANSMIT: usize = 1;
const CONTROL_RECEIVE: usize = 2;
const CONTROL_TRANSMIT: usize = 3;
const QUEUE_SIZE: u16 = 32;

/// Configuration (section 5.3.4): columns, rows, number of ports (32 bits), emergency write.
const CONFIG_LEN: usize = 12;
const MAX_NR_PORTS: usize = 4;

/// Control messages (section 5.3.6.2): port (32 bits), event, value (16 bits each).
const MESSAGE_LEN: usize = 8;
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;
/// The only port.
const PORT: u32 = 0;

/// Bytes of a name; it becomes a file name in the guest.
const NAME_LIMIT: usize = 64;

const WAKE: u32 = 0;

/// `--port`.
#[derive(Debug)]
pub struct Kind;

const KEYS: &[Key] =
    &[Key { name: "name", value: "NAME", about: "its name: /dev/virtio-ports/NAME in the guest" }, place::OF_A_PORT];

impl DeviceKind for Kind {
    fn name(&self) -> &'static str {
        "port"
    }

    fn about(&self) -> &'static str {
        "Named character port between guest and host"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn parse(&self, options: &mut Options) -> Result<Box<dyn Spec>, OptionError> {
        let name = options.required("name")?;
        if name.len() > NAME_LIMIT || !name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
            let reason = format!("name={name}: take letters, digits, `.`, `_` and `-`, at most {NAME_LIMIT}");
            return Err(options.error(reason));
        }
        let name = name.to_string();
        Ok(Box::new(PortSpec { name, target: place::of_a_port(options)? }))
    }
}

#[derive(Debug)]
struct PortSpec {
    name: String,
    target: Target,
}

impl Spec for PortSpec {
    fn exclusive(&self) -> Option<String> {
        // Programs in the guest find a port by its name.
        Some(format!("--port name={}", self.name))
    }

    fn timed(&self) -> Option<&'static str> {
        self.target.is_live().then_some("--port to=pty or to=socket")
    }

    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError> {
        // A driver sleeps while it waits for a port, so there is no hurry, and whole messages want no delay.
        let style = Style { lines: false, patience: None, quit: Arc::new(|| {}) };
        let label = format!("port {}", self.name);
        let stream = Stream::open(&label, &self.target, style, builder.events);
        let stream = stream.map_err(|e| AttachError(e.to_string()))?;
        builder.virtio("port", Box::new(Port::new(self.name.clone(), stream)));
        Ok(())
    }
}

/// A named port over any stream.
#[derive(Debug)]
pub struct Port {
    name: String,
    stream: Stream,
    config: ConfigSpace,
}

impl Port {
    /// A port called `name` (at most 64 bytes) in the guest.
    pub fn new(name: String, stream: Stream) -> Self {
        let config = ConfigSpace::new(CONFIG_LEN);
        config.set(MAX_NR_PORTS, &1u32.to_le_bytes());
        Self { name, stream, config }
    }
}

impl VirtioDevice for Port {
    fn info(&self) -> Info {
        let queue_sizes = vec![QUEUE_SIZE; 4];
        Info { id: VIRTIO_ID_CONSOLE as u16, features: F_MULTIPORT, queue_sizes, blocking: false }
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn activate(&mut self, features: u64) -> Result<Box<dyn Handler>, ActivateError> {
        if features & F_MULTIPORT == 0 {
            return Err(ActivateError(format!("port {}: the guest's driver knows no named ports", self.name)));
        }
        let wake = Wake::new().map_err(|e| ActivateError(format!("cannot make an event descriptor: {e}")))?;
        let listener: Arc<dyn Listener> = wake.clone();
        let input = self.stream.claim(Arc::downgrade(&listener));
        Ok(Box::new(Active {
            name: self.name.clone(),
            stream: self.stream.clone(),
            input,
            wake,
            characters: CharacterQueues::default(),
            due: Due::default(),
            guest_open: false,
        }))
    }
}

/// Control messages that the driver has yet to get. They are made from this state when there is a buffer for them, so
/// that a driver which asks without end and gives no buffers costs nothing.
#[derive(Debug, Default)]
struct Due {
    add: bool,
    name: bool,
    /// The port exists for the driver, which was last told this of the host's side.
    open: Option<bool>,
}

struct Active {
    name: String,
    stream: Stream,
    input: Claim,
    wake: Arc<Wake>,
    characters: CharacterQueues,
    due: Due,
    guest_open: bool,
}

impl Active {
    /// Takes in what the driver says.
    fn hear(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        while let Some(mut chain) = queues.queue(CONTROL_TRANSMIT).pop()? {
            let mut message = [0; MESSAGE_LEN];
            chain.read_exact(&mut message)?;
            let [p0, p1, p2, p3, e0, e1, v0, v1] = message;
            let value = u16::from_le_bytes([v0, v1]);
            match (u32::from_le_bytes([p0, p1, p2, p3]), u16::from_le_bytes([e0, e1])) {
                (_, DEVICE_READY) if value == 1 => self.due.add = true,
                (PORT, PORT_READY) if value == 1 => {
                    self.due.name = true;
                    self.due.open = Some(false);
                }
                (PORT, PORT_OPEN) => self.guest_open = value == 1,
                // A driver that failed, or a message of a later version: nothing to do.
                _ => {}
            }
            queues.queue(CONTROL_TRANSMIT).push(chain, 0)?;
        }
        Ok(())
    }

    /// Tells the driver what is due, as far as there are buffers.
    fn tell(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        let connected = self.stream.connected();
        loop {
            let open = self.due.open.is_some_and(|told| told != connected);
            let (event, value, text) = match () {
                () if self.due.add => (PORT_ADD, 1, ""),
                () if self.due.name => (PORT_NAME, 1, self.name.as_str()),
                () if open => (PORT_OPEN, u16::from(connected), ""),
                () => return Ok(()),
            };
            let queue = queues.queue(CONTROL_RECEIVE);
            let Some(mut chain) = queue.pop()? else { return Ok(()) };
            chain.write_all(&PORT.to_le_bytes())?;
            chain.write_all(&event.to_le_bytes())?;
            chain.write_all(&value.to_le_bytes())?;
            chain.write_all(text.as_bytes())?;
            let written = chain.written();
            queue.push(chain, written)?;
            match event {
                PORT_ADD => self.due.add = false,
                PORT_NAME => self.due.name = false,
                _ => self.due.open = Some(connected),
            }
        }
    }

    fn transmit(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        let stream = &self.stream;
        self.characters.send(|bytes| stream.write(bytes, WhenFull::Wait), queues.queue(TRANSMIT))?;
        Ok(())
    }

    fn receive(&mut self, queues: &mut Queues) -> Result<(), Broken> {
        if !self.guest_open {
            return Ok(());
        }
        self.characters.receive(&self.input, queues.queue(RECEIVE))
    }
}

impl Handler for Active {
    fn fds(&self) -> Vec<(RawFd, u32)> {
        vec![(self.wake.as_raw_fd(), WAKE)]
    }

    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        match index {
            TRANSMIT => self.transmit(queues),
            RECEIVE => self.receive(queues),
            CONTROL_RECEIVE => self.tell(queues),
            _ => {
                self.hear(queues)?;
                self.tell(queues)?;
                self.receive(queues)
            }
        }
    }

    fn on_fd(&mut self, _: u32, queues: &mut Queues) -> Result<(), Broken> {
        self.wake.heard();
        self.tell(queues)?;
        self.receive(queues)?;
        self.transmit(queues)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::event_loop::EventLoop;
    use crate::virtio::kit::{Kit, LIMIT, Part};
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::path::PathBuf;
    use std::time::Duration;

    struct Bench {
        kit: Kit,
        path: PathBuf,
        _events: EventLoop,
        _dir: tempfile::TempDir,
    }

    fn bench() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let events = EventLoop::start("port-test").unwrap();
        let style = Style { lines: false, patience: None, quit: Arc::new(|| {}) };
        let stream = Stream::open("port", &Target::Socket(path.clone()), style, &events.handle()).unwrap();
        let kit = Kit::new(Box::new(Port::new("org.belljar.test".into(), stream)));
        Bench { kit, path, _events: events, _dir: dir }
    }

    fn message(port: u32, event: u16, value: u16) -> Vec<u8> {
        [&port.to_le_bytes()[..], &event.to_le_bytes(), &value.to_le_bytes()].concat()
    }

    impl Bench {
        fn connect(&self) -> UnixStream {
            let client = UnixStream::connect(&self.path).unwrap();
            client.set_read_timeout(Some(LIMIT)).unwrap();
            client.set_write_timeout(Some(LIMIT)).unwrap();
            client
        }

        fn say(&mut self, event: u16, value: u16) {
            self.kit.request(CONTROL_TRANSMIT, &[&message(PORT, event, value)], &[]);
        }

        /// The next control message from the device.
        fn hear(&mut self) -> Vec<u8> {
            self.kit.add(CONTROL_RECEIVE, &[Part::In(128)]);
            self.kit.notify(CONTROL_RECEIVE);
            self.kit.wait_used(CONTROL_RECEIVE).data
        }

        /// What a driver does until the port can be used.
        fn handshake(&mut self) {
            self.kit.activate_on_loop(F_MULTIPORT);
            self.say(DEVICE_READY, 1);
            assert_eq!(self.hear(), message(PORT, PORT_ADD, 1));
            self.say(PORT_READY, 1);
            assert_eq!(self.hear(), [&message(PORT, PORT_NAME, 1)[..], b"org.belljar.test"].concat());
        }
    }

    #[test]
    fn a_port_is_announced_opened_and_used_again_after_a_reset() {
        let mut bench = bench();
        for _ in 0..2 {
            bench.handshake();
            for _ in 0..2 {
                let mut client = bench.connect();
                assert_eq!(bench.hear(), message(PORT, PORT_OPEN, 1));
                client.write_all(b"request").unwrap();
                bench.kit.add(RECEIVE, &[Part::In(64)]);
                bench.kit.notify(RECEIVE);
                let early = bench.kit.used_within(RECEIVE, Duration::from_millis(50));
                assert_eq!(early, None, "nothing comes before somebody in the guest opened the port");
                bench.say(PORT_OPEN, 1);
                assert_eq!(bench.kit.wait_used(RECEIVE).data, b"request");
                bench.kit.request(TRANSMIT, &[b"answer without newline"], &[]);
                let mut seen = [0; 22];
                client.read_exact(&mut seen).unwrap();
                assert_eq!(&seen, b"answer without newline");
                bench.say(PORT_OPEN, 0);
                drop(client);
                assert_eq!(bench.hear(), message(PORT, PORT_OPEN, 0));
            }
            bench.kit.reset();
        }
    }

    #[test]
    fn large_transfers_lose_nothing() {
        let mut bench = bench();
        bench.handshake();
        let mut client = bench.connect();
        assert_eq!(bench.hear(), message(PORT, PORT_OPEN, 1));
        bench.say(PORT_OPEN, 1);
        let content: Vec<u8> = (0..1_000_000u32).map(|n| (n % 251) as u8).collect();
        let wanted = content.len();
        let reading = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            let mut seen = vec![0; wanted];
            client.read_exact(&mut seen).unwrap();
            client.write_all(&seen).unwrap();
        });
        for piece in content.chunks(50_000) {
            bench.kit.request(TRANSMIT, &[piece], &[]);
        }
        let mut seen = Vec::new();
        while seen.len() < wanted {
            bench.kit.add(RECEIVE, &[Part::In(4096)]);
            bench.kit.notify(RECEIVE);
            seen.extend(bench.kit.wait_used(RECEIVE).data);
        }
        assert!(seen == content);
        reading.join().unwrap();
    }

    #[test]
    fn hostile_control_messages_are_bounded_or_stop_the_device() {
        let mut bench = bench();
        bench.kit.activate(F_MULTIPORT);
        for _ in 0..1000 {
            bench.say(DEVICE_READY, 1);
            bench.say(PORT_READY, 1);
        }
        for odd in [message(7, PORT_READY, 1), message(PORT, 99, 1), message(PORT, PORT_READY, 0)] {
            bench.kit.request(CONTROL_TRANSMIT, &[&odd, b"and more"], &[]);
        }
        assert_eq!(bench.hear(), message(PORT, PORT_ADD, 1));
        assert!(bench.hear().ends_with(b"org.belljar.test"));
        bench.kit.add(CONTROL_RECEIVE, &[Part::In(128)]);
        bench.kit.notify(CONTROL_RECEIVE);
        assert_eq!(bench.kit.try_used(CONTROL_RECEIVE), None, "each is told once");
        bench.kit.add(CONTROL_TRANSMIT, &[Part::Out(&[1, 2, 3])]);
        bench.kit.notify(CONTROL_TRANSMIT);
        bench.kit.wait_broken();
        bench.kit.reset();
        bench.kit.activate(F_MULTIPORT);
        bench.say(DEVICE_READY, 1);
        bench.kit.add(CONTROL_RECEIVE, &[Part::In(5)]);
        bench.kit.notify(CONTROL_RECEIVE);
        bench.kit.wait_broken();
        bench.kit.reset();
        assert!(bench.kit.try_activate(0).is_err(), "a driver without MULTIPORT cannot use it");
        bench.handshake();
    }

    #[test]
    fn options_need_a_name_and_a_place() {
        let spec = |text| Kind.parse(&mut Options::from_flag("port", KEYS, text).unwrap());
        assert!(spec("org.belljar.agent,to=socket=/tmp/s").is_ok());
        for (text, says) in [
            ("", "name= is missing"),
            ("a", "to= is missing"),
            ("a/b,to=pty", "take letters"),
            ("a,to=stdio", "say file=PATH"),
            ("a,to=null", "say file=PATH"),
        ] {
            let wrong = spec(text).unwrap_err().to_string();
            assert!(wrong.contains(says), "{text}: {wrong}");
        }
    }
}
