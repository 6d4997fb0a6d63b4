//! The network as a whole: what the guest sends goes to the part that it is for, what happens on the host to the flow
//! that it is about, and packets for the guest are made when it has room.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::wire::{EthernetProtocol, IpProtocol, UdpPacket};

use super::addresses::{Role, role};
use super::config::Config;
use super::context::{Context, is_guests};
use super::counters::{Counters, add, count};
use super::dns::Dns;
use super::frame::{self, Datagram, Frame};
use super::icmp::{self, Unreachable};
use super::ping::Pings;
use super::poller::{Event, Source};
use super::publish::Ports;
use super::rules::{Rules, Way};
use super::tcp::{self, Offload, Tcp};
use super::udp::{self, Udp};
use super::{Error, dhcp, link};
use crate::host::log_limit::LogLimit;
use crate::host::vectored::IoBuf;

/// Frames made before the host's sockets are looked at again.
const FRAMES_A_TURN: u32 = 16;
/// How often flows are looked at whether they are still in use.
const SWEEP: Duration = Duration::from_secs(10);

/// The network.
pub(super) struct Stack {
    context: Context,
    tcp: Tcp,
    udp: Udp,
    pings: Pings,
    dns: Dns,
    ports: Ports,
    events: Vec<Event>,
    /// Frames made since the host's sockets were looked at.
    frames: u32,
    swept: Instant,
    /// Where datagrams of the host are received.
    room: Vec<u8>,
    /// A frame whose turn it is.
    out: Vec<u8>,
    /// Where frames of the guest are put together.
    inbox: Vec<u8>,
}

/// Where the next frame for the guest is.
enum Made {
    Out,
    Segment(usize),
}

impl Stack {
    /// A network as `config` says; published ports listen from now on.
    pub(super) fn new(config: &Config, counters: Arc<Counters>) -> Result<Self, Error> {
        let rules = Rules::new(&config.allow, config.host);
        let context = Context::new(rules, counters).map_err(Error::Make)?;
        context.poller.watch_level(&context.alarm, Source::Alarm).map_err(Error::Make)?;
        let ports = Ports::open(&context, &config.publish)?;
        let tcp = Tcp::new(context.now).map_err(Error::Make)?;
        Ok(Self {
            tcp,
            udp: Udp::new(),
            pings: Pings::default(),
            dns: Dns::new(config.dns),
            ports,
            events: Vec::new(),
            frames: 0,
            swept: context.now,
            room: vec![0; frame::MAX_IP],
            out: Vec::new(),
            inbox: Vec::new(),
            context,
        })
    }

    /// The descriptor that is readable while there is something to do.
    pub(super) fn poller(&self) -> &super::poller::Poller {
        &self.context.poller
    }

    /// What packets for the guest may leave to it.
    pub(super) fn set_offload(&mut self, offload: Offload) -> std::io::Result<()> {
        self.tcp.set_offload(offload)
    }

    /// Forgets frames that wait.
    pub(super) fn drain(&mut self) {
        self.context.clear();
        self.settle();
    }

    /// Takes a frame of the guest's from where it lies in its memory.
    pub(super) fn input_from(&mut self, packet: &[IoBuf]) {
        let mut bytes = std::mem::take(&mut self.inbox);
        bytes.resize(packet.iter().map(IoBuf::len).sum(), 0);
        let mut rest = bytes.as_mut_slice();
        for buf in packet {
            let (part, after) = rest.split_at_mut(buf.len().min(rest.len()));
            buf.copy_to(part);
            rest = after;
        }
        self.input(&bytes);
        self.inbox = bytes;
    }

    /// Takes a frame of the guest's, with its virtio header.
    pub(super) fn input(&mut self, bytes: &[u8]) {
        self.context.now = Instant::now();
        if frame::parse(bytes).and_then(|frame| self.frame(&frame)).is_none() {
            count(&self.context.counters.dropped);
        }
        self.settle();
    }

    /// The next frame for the guest, with its virtio header.
    pub(super) fn output(&mut self) -> Option<&[u8]> {
        self.context.now = Instant::now();
        if self.frames >= FRAMES_A_TURN {
            self.turn();
        }
        let made = self.make_frame().or_else(|| {
            self.turn();
            self.make_frame()
        });
        self.frames += 1;
        self.settle();
        Some(match made? {
            Made::Out => &self.out,
            Made::Segment(len) => self.tcp.frame(len),
        })
    }

    fn make_frame(&mut self) -> Option<Made> {
        match self.context.next_frame() {
            Some(frame) => {
                self.out = frame;
                Some(Made::Out)
            }
            None => self.tcp.make_frame(&mut self.context).map(Made::Segment),
        }
    }

    /// Rings while something is left to be done, and sets the alarm for what comes later.
    fn settle(&mut self) {
        let work = self.context.has_frames() || self.tcp.has_work() || self.ports.has_work(&self.context, &self.tcp);
        self.context.poller.ring(work);
        let still = self.udp.is_empty() && self.pings.is_empty();
        let sweep = (!still).then(|| self.swept + SWEEP);
        if let Some(next) = [self.tcp.next_time(), self.dns.next_time(), sweep].into_iter().flatten().min() {
            self.context.alarm.set(next.saturating_duration_since(self.context.now));
        }
    }

    /// Looks at what has happened on the host.
    fn turn(&mut self) {
        self.frames = 0;
        let mut events = std::mem::take(&mut self.events);
        self.context.poller.ready(&mut events);
        for event in events.drain(..) {
            self.event(event);
        }
        self.events = events;
        self.ports.serve(&mut self.context, &mut self.tcp, &mut self.udp, &mut self.room);
    }

    fn event(&mut self, event: Event) {
        let context = &mut self.context;
        match event.source {
            Source::Bell => {}
            Source::Alarm => self.alarm(),
            Source::Tcp(id) => self.tcp.ready(context, id, event),
            Source::Udp(id) => self.udp.ready(context, id, &mut self.room),
            Source::Ping(id) => self.pings.ready(context, id, &mut self.room),
            Source::Query(id) => self.dns.ready(context, id),
            Source::DnsClient(id) => self.dns.client_ready(context, id),
            Source::Port(id) => self.ports.ready(id),
        }
    }

    fn alarm(&mut self) {
        self.context.alarm.stop();
        self.tcp.expire(&mut self.context);
        self.dns.expire(&mut self.context);
        if self.context.now >= self.swept + SWEEP {
            self.swept = self.context.now;
            self.udp.expire(self.context.now);
            self.pings.expire(self.context.now);
        }
    }

    /// None if the frame is of no use.
    fn frame(&mut self, frame: &Frame<'_>) -> Option<()> {
        self.context.neighbours.seen(frame.from);
        if frame.protocol == EthernetProtocol::Arp {
            return link::arp(&mut self.context, frame);
        }
        let datagram = frame::datagram(frame)?;
        if datagram.protocol == IpProtocol::Icmpv6 && link::discovery(&mut self.context, &datagram).is_some() {
            return Some(());
        }
        if is_dhcp(&datagram) {
            return dhcp::answer(&mut self.context, &datagram);
        }
        if is_for_all(datagram.target) {
            // Nobody else is here to hear it.
            return Some(());
        }
        if !is_guests(datagram.source) {
            return None;
        }
        self.context.neighbours.learn(datagram.source, datagram.from);
        match datagram.protocol {
            IpProtocol::Tcp => self.segment(&datagram),
            IpProtocol::Udp => self.message(&datagram),
            IpProtocol::Icmp | IpProtocol::Icmpv6 => self.ping(&datagram),
            _ => None,
        }
    }

    fn segment(&mut self, datagram: &Datagram<'_>) -> Option<()> {
        let (ends, begins) = tcp::ends(datagram)?;
        if self.tcp.input(&mut self.context, datagram, ends) {
            return Some(());
        }
        if !begins {
            self.tcp.refuse(&mut self.context, datagram);
            return Some(());
        }
        match self.context.rules.way(ends.outside) {
            Way::To(to) => self.tcp.connect(&mut self.context, datagram, ends, to),
            Way::Relay => match self.dns.connect(&self.context) {
                Ok(socket) => self.tcp.begin(&mut self.context, datagram, ends, socket),
                Err(_) => self.tcp.refuse(&mut self.context, datagram),
            },
            Way::Nobody => self.nobody(datagram),
            Way::Denied => {
                self.denied("tcp", ends.outside);
                self.tcp.refuse(&mut self.context, datagram);
            }
        }
        Some(())
    }

    fn message(&mut self, datagram: &Datagram<'_>) -> Option<()> {
        let ends = udp::ends(datagram)?;
        let payload = UdpPacket::new_checked(datagram.payload).ok()?.payload();
        if let Some((port, client)) = self.udp.client(&self.context, ends) {
            add(&self.context.counters.sent_bytes, self.ports.answer(port, client, payload));
            return Some(());
        }
        match self.context.rules.way(ends.outside) {
            Way::To(to) => self.udp.output(&mut self.context, datagram, ends, to),
            Way::Relay => self.dns.datagram(&mut self.context, ends, payload),
            Way::Nobody => self.nobody(datagram),
            Way::Denied => {
                self.denied("udp", ends.outside);
                icmp::complain(&mut self.context, datagram, Unreachable::Prohibited);
            }
        }
        Some(())
    }

    fn ping(&mut self, datagram: &Datagram<'_>) -> Option<()> {
        let echo = icmp::echo(datagram)?;
        match role(datagram.target) {
            Role::Gateway | Role::Dns => icmp::pong(&mut self.context, datagram, &echo),
            Role::Guest | Role::Reserved => self.nobody(datagram),
            Role::Outside => self.pings.request(&mut self.context, datagram, &echo),
        }
        Some(())
    }

    /// There is nobody, or nothing at the port of one of ours.
    fn nobody(&mut self, datagram: &Datagram<'_>) {
        match role(datagram.target) {
            Role::Gateway | Role::Dns if datagram.protocol == IpProtocol::Tcp => {
                self.tcp.refuse(&mut self.context, datagram);
            }
            Role::Gateway | Role::Dns => icmp::complain(&mut self.context, datagram, Unreachable::Port),
            _ => icmp::complain(&mut self.context, datagram, Unreachable::Host),
        }
    }

    fn denied(&self, protocol: &str, to: SocketAddr) {
        static DENIED: LogLimit = LogLimit::new();
        self.context.counters.deny(format!("{protocol} {to}"));
        if DENIED.allow() {
            let remedy = match role(to.ip()) {
                Role::Gateway => {
                    format!("; for services of the host's loopback say host=on or allow=host.internal:{}", to.port())
                }
                _ => String::new(),
            };
            tracing::info!("the guest may not reach {to} ({protocol}){remedy}");
        }
    }
}

fn is_dhcp(datagram: &Datagram<'_>) -> bool {
    let to_server = |udp: UdpPacket<&[u8]>| udp.dst_port() == dhcp::SERVER;
    let ours = |v4: std::net::Ipv4Addr| v4.is_broadcast() || role(v4.into()) == Role::Gateway;
    datagram.protocol == IpProtocol::Udp
        && matches!(datagram.target, IpAddr::V4(v4) if ours(v4))
        && UdpPacket::new_checked(datagram.payload).is_ok_and(to_server)
}

fn is_for_all(target: IpAddr) -> bool {
    match target {
        IpAddr::V4(v4) => v4.is_multicast() || v4.is_broadcast() || role(target) == Role::Reserved,
        IpAddr::V6(v6) => v6.is_multicast(),
    }
}
