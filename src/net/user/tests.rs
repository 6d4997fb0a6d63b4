//! The network with a guest that is a second smoltcp: frames pass between the two without a card, so that everything
//! happens in one thread and in an order that repeats.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use smoltcp::iface::{Config as InterfaceConfig, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{ChecksumCapabilities, Device, DeviceCapabilities, Medium};
use smoltcp::socket::{dhcpv4, tcp, udp};
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr};

use super::addresses::{DNS, GATEWAY, GATEWAY6, GUEST, GUEST6, MAC, MTU};
use super::config::{Config, list};
use super::counters::Counters;
use super::frame::BEFORE;
use super::stack::Stack;
use super::tcp::Offload;
use crate::host::limits;
use crate::net::HEADER_LEN;

mod dns;
mod flows;
mod frames;
mod streams;

/// How long a test waits for what should happen at once.
const LIMIT: Duration = Duration::from_secs(30);
const GUEST_MAC: EthernetAddress = EthernetAddress([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

/// The network as the guest's interface sees it.
struct Cable {
    stack: Stack,
    mtu: u16,
    /// Headers of frames that came, as the virtio device has them.
    headers: Vec<[u8; HEADER_LEN]>,
    /// Resets of IPv4 connections that came.
    resets: usize,
    /// Bytes in their segments.
    lens: Vec<usize>,
}

struct Input(Vec<u8>);
struct Output<'a>(&'a mut Stack);

impl smoltcp::phy::RxToken for Input {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(&self.0)
    }
}

impl smoltcp::phy::TxToken for Output<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = vec![0; HEADER_LEN + len];
        let result = write(&mut frame[HEADER_LEN..]);
        self.0.input(&frame);
        result
    }
}

impl Device for Cable {
    type RxToken<'a> = Input;
    type TxToken<'a> = Output<'a>;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Input, Output<'_>)> {
        let frame = self.stack.output()?.to_vec();
        self.headers.push(*frame.first_chunk().unwrap());
        let (ip, flags) = (frame[BEFORE - 2..BEFORE] == [8, 0], frame.get(BEFORE + 33));
        if ip && frame[BEFORE + 9] == 6 {
            self.lens.push(frame.len() - BEFORE - 20 - usize::from(frame[BEFORE + 32] >> 4) * 4);
        }
        self.resets += usize::from(ip && frame[BEFORE + 9] == 6 && flags.is_some_and(|flags| flags & 4 != 0));
        Some((Input(frame[HEADER_LEN..].to_vec()), Output(&mut self.stack)))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Output<'_>> {
        Some(Output(&mut self.stack))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut all = DeviceCapabilities::default();
        all.medium = Medium::Ethernet;
        all.max_transmission_unit = usize::from(self.mtu) + 14;
        // With offloads they are unfinished when they come; the tests of frames check them without.
        all.checksum = ChecksumCapabilities::default();
        all.checksum.tcp = smoltcp::phy::Checksum::Tx;
        all
    }
}

struct Guest {
    cable: Cable,
    interface: Interface,
    sockets: SocketSet<'static>,
    counters: Arc<Counters>,
    began: Instant,
    next_port: u16,
}

fn guest(config: &Config) -> Guest {
    guest_with_mtu(config, MTU)
}

fn guest_with_mtu(config: &Config, mtu: u16) -> Guest {
    let counters = Arc::new(Counters::default());
    let stack = Stack::new(config, counters.clone()).unwrap();
    let mut cable = Cable { stack, mtu, headers: Vec::new(), resets: 0, lens: Vec::new() };
    let config = InterfaceConfig::new(HardwareAddress::Ethernet(GUEST_MAC));
    let mut interface = Interface::new(config, &mut cable, smoltcp::time::Instant::ZERO);
    interface.update_ip_addrs(|addresses| {
        addresses.push(IpCidr::new(GUEST.into(), 24)).unwrap();
        addresses.push(IpCidr::new(GUEST6.into(), 64)).unwrap();
    });
    interface.routes_mut().add_default_ipv4_route(GATEWAY).unwrap();
    interface.routes_mut().add_default_ipv6_route(GATEWAY6).unwrap();
    let sockets = SocketSet::new(Vec::new());
    Guest { cable, interface, sockets, counters, began: Instant::now(), next_port: 40_000 }
}

/// The host's loopback is open.
fn open() -> Config {
    Config { host: true, ..Config::default() }
}

impl Guest {
    fn poll(&mut self) {
        let now = smoltcp::time::Instant::from_micros(self.began.elapsed().as_micros() as i64);
        self.interface.poll(now, &mut self.cable, &mut self.sockets);
    }

    /// Lets time pass until `done`.
    fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        loop {
            self.poll();
            if done(self) {
                return;
            }
            assert!(start.elapsed() < LIMIT, "{what} takes too long");
            let mut fds = [rustix::event::PollFd::new(self.cable.stack.poller(), rustix::event::PollFlags::IN)];
            let moment = rustix::time::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
            rustix::event::poll(&mut fds, Some(&moment)).unwrap();
        }
    }

    /// Begins a connection.
    fn connect(&mut self, to: SocketAddr) -> SocketHandle {
        self.connect_with(to, 64 << 10)
    }

    fn connect_with(&mut self, to: SocketAddr, buffer: usize) -> SocketHandle {
        let room = || tcp::SocketBuffer::new(vec![0; buffer]);
        let handle = self.sockets.add(tcp::Socket::new(room(), room()));
        self.next_port += 1;
        let port = self.next_port;
        let socket = self.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(self.interface.context(), to, port).unwrap();
        handle
    }

    fn tcp(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    /// A connection that stands.
    fn connected(&mut self, to: SocketAddr) -> SocketHandle {
        let handle = self.connect(to);
        self.until("connecting", |guest| guest.tcp(handle).may_send());
        handle
    }

    /// Whether a connection with `to` is refused, rather than made.
    fn is_refused(&mut self, to: SocketAddr) -> bool {
        let handle = self.connect(to);
        self.until("an answer", |guest| {
            let socket = guest.tcp(handle);
            socket.may_send() || !socket.is_open()
        });
        let refused = !self.tcp(handle).is_open();
        self.tcp(handle).abort();
        self.poll();
        refused
    }

    fn write_all(&mut self, handle: SocketHandle, mut bytes: &[u8]) {
        self.until("writing", |guest| {
            bytes = &bytes[guest.tcp(handle).send_slice(bytes).unwrap()..];
            bytes.is_empty()
        });
    }

    fn read_exact(&mut self, handle: SocketHandle, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("reading", |guest| {
            let wanted = len - bytes.len();
            let more = guest.tcp(handle).recv(|b| (b.len().min(wanted), b[..b.len().min(wanted)].to_vec())).unwrap();
            bytes.extend(more);
            bytes.len() == len
        });
        bytes
    }

    /// Everything until the stream ends.
    fn read_to_end(&mut self, handle: SocketHandle) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.until("the end of the stream", |guest| {
            match guest.tcp(handle).recv(|b| (b.len(), b.to_vec())) {
                Ok(more) => bytes.extend(more),
                Err(error) => return error == tcp::RecvError::Finished,
            }
            false
        });
        bytes
    }

    fn udp(&mut self, port: u16) -> SocketHandle {
        let room = || udp::PacketBuffer::new(vec![udp::PacketMetadata::EMPTY; 8], vec![0; 1 << 17]);
        let mut socket = udp::Socket::new(room(), room());
        socket.bind(port).unwrap();
        self.sockets.add(socket)
    }

    /// The next datagram at a socket.
    fn datagram(&mut self, handle: SocketHandle) -> (Vec<u8>, SocketAddr) {
        let mut received = None;
        self.until("a datagram", |guest| {
            let socket = guest.sockets.get_mut::<udp::Socket<'_>>(handle);
            received = socket.recv().ok().map(|(bytes, from)| (bytes.to_vec(), from.endpoint.into()));
            received.is_some()
        });
        received.unwrap()
    }

    fn count(&self, counter: impl Fn(&Counters) -> &std::sync::atomic::AtomicU64) -> u64 {
        counter(&self.counters).load(std::sync::atomic::Ordering::Relaxed)
    }

    /// How often it was kept from what.
    fn denials(&self) -> Vec<String> {
        let mut denials: Vec<_> =
            self.counters.denials.lock().unwrap().iter().map(|(what, times)| format!("{times} {what}")).collect();
        denials.sort();
        denials
    }
}

/// Bytes that do not repeat soon.
fn content(len: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..len.div_ceil(4)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

/// A server on the host's loopback: `work` gets its first client.
fn server<T: Send + 'static>(work: impl FnOnce(TcpStream) -> T + Send + 'static) -> (u16, JoinHandle<T>) {
    server_at(Ipv4Addr::LOCALHOST.into(), work)
}

fn server_at<T: Send + 'static>(
    at: IpAddr,
    work: impl FnOnce(TcpStream) -> T + Send + 'static,
) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind((at, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let client = listener.accept().unwrap().0;
        client.set_read_timeout(Some(LIMIT)).unwrap();
        client.set_write_timeout(Some(LIMIT)).unwrap();
        work(client)
    });
    (port, thread)
}

/// The host as the guest sees it.
fn host(port: u16) -> SocketAddr {
    SocketAddr::new(GATEWAY.into(), port)
}
