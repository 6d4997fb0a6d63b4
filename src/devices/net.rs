//! A network card (virtio 1.3, section 5.1), connected to one of the networks that `network` knows.
//!
//! Packets go straight between guest RAM and the network, with checksums and segmentation left to whichever side has
//! hardware for it. `Net` answers the transport on vCPU threads; the data path (`handler`) runs
//! on the event loop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};

use crate::devices::builder::{Statistics, json};
use crate::devices::throttle::{self, Rates, Throttle};
use crate::devices::{AttachError, Builder, Key, Kind as DeviceKind, OptionError, Options, Spec};
use crate::net::mac::Mac;
use crate::net::{Backend, HEADER_LEN};
use crate::virtio::config::ConfigSpace;
use crate::virtio::{ActivateError, Handler, Info, VirtioDevice};

mod control;
mod handler;
mod network;
mod receive;
#[cfg(test)]
mod tests;
mod transmit;

use network::Network;

/// Packets that may wait in each direction; what drivers are used to.
const QUEUE_SIZE: u16 = 256;
/// Commands that may wait. Linux waits for each.
const CONTROL_SIZE: u16 = 16;
/// Most pairs of queues: more than CPUs of most guests, and each is a descriptor of ours.
const MAX_PAIRS: usize = 16;
/// Least MTU that a device may name (section 5.1.4.1).
const MIN_MTU: u16 = 68;

/// How long a packet waits for buffers that the guest has had and may give back. Linux does so within a few
/// milliseconds; a guest that never does would otherwise receive nothing any more.
const PATIENCE: Duration = Duration::from_millis(100);

/// Features by which the guest takes packets that are not finished (section 5.1.3): commands change them as well.
const GUEST_OFFLOADS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN;
/// The same in the other direction.
const HOST_OFFLOADS: u64 =
    1 << VIRTIO_NET_F_CSUM | 1 << VIRTIO_NET_F_HOST_TSO4 | 1 << VIRTIO_NET_F_HOST_TSO6 | 1 << VIRTIO_NET_F_HOST_ECN;

/// Bytes of the configuration (section 5.1.4): MAC, status, pairs of queues, MTU.
const CONFIG_LEN: usize = 12;
const CONFIG_MAC: usize = 0;
const CONFIG_STATUS: usize = 6;
const CONFIG_PAIRS: usize = 8;
const CONFIG_MTU: usize = 10;

/// `--net`.
#[derive(Debug)]
pub struct Kind;

const KEYS: &[Key] = &[
    Key { name: "tap", value: "NAME", about: "tap interface of the host that the card is connected to" },
    Key { name: "user", value: "on|off", about: "instead of a tap a network inside this program, without root" },
    Key {
        name: "publish",
        value: "[ADDR:]HOST:GUEST[/udp]",
        about: "user: ports of the host (127.0.0.1) that lead to the guest, + between",
    },
    Key {
        name: "allow",
        value: "HOST[:PORT]",
        about: "user: the only hosts, networks, names to be reached, + between",
    },
    Key {
        name: "host",
        value: "on|off",
        about: "user: let the guest reach the host's loopback as host.internal (off)",
    },
    Key { name: "dns", value: "ADDR[:PORT]", about: "user: resolver to ask instead of the host's" },
    Key { name: "switch", value: "NAME", about: "instead of a tap a switch that your machines on this host share" },
    Key { name: "passt", value: "SOCKET", about: "instead of a tap a passt that listens at this socket" },
    Key { name: "mac", value: "MAC", about: "address of the card (random)" },
    Key { name: "mtu", value: "BYTES", about: "largest packet that the guest shall send (that of the tap)" },
    Key { name: "queues", value: "N", about: "pairs of queues, for guests with several CPUs (1)" },
    Key { name: "offload", value: "on|off", about: "leave checksums and segmentation to the receiver (on)" },
    Key { name: "pcap", value: "FILE", about: "keep all packets in FILE, for tcpdump or Wireshark" },
    throttle::BANDWIDTH,
    throttle::OPERATIONS,
];

impl DeviceKind for Kind {
    fn name(&self) -> &'static str {
        "net"
    }

    fn about(&self) -> &'static str {
        "Network card"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn parse(&self, options: &mut Options) -> Result<Box<dyn Spec>, OptionError> {
        let network = Network::parse(options)?;
        let mac = match options.text("mac") {
            None => None,
            Some(text) => Some(text.parse::<Mac>().map_err(|()| {
                options.error(format!("mac={text}: give an address of one card, such as 52:54:00:12:34:56"))
            })?),
        };
        let mtu = match options.text("mtu") {
            None => None,
            Some(_) => Some(options.number("mtu", 0, MIN_MTU..=u16::MAX)?),
        };
        let queues = options.number("queues", 1, 1..=MAX_PAIRS)?;
        let offload = options.switch("offload", true)?;
        let (pcap, rates) = (options.path("pcap")?, Rates::parse(options)?);
        Ok(Box::new(NetSpec { network, mac, mtu, queues, offload, pcap, rates }))
    }
}

#[derive(Debug)]
struct NetSpec {
    network: Network,
    mac: Option<Mac>,
    mtu: Option<u16>,
    queues: usize,
    offload: bool,
    pcap: Option<PathBuf>,
    /// In each direction.
    rates: Rates,
}

impl Spec for NetSpec {
    fn exclusive(&self) -> Option<String> {
        self.network.exclusive().then(|| format!("--net {}", self.network.name()))
    }

    fn timed(&self) -> Option<&'static str> {
        Some("--net")
    }

    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError> {
        let fail = |e: String| AttachError(format!("--net {}: {e}", self.network.name()));
        let mut connection = self.network.open(self.queues).map_err(fail)?;
        if let Some(path) = &self.pcap {
            connection.capture(path).map_err(fail)?;
        }
        let offload = self.offload && connection.backends.iter().all(|backend| backend.takes_offloads());
        let mac = match self.mac {
            Some(mac) => mac,
            None => Mac::random().map_err(|e| fail(format!("cannot make a random address: {e}")))?,
        };
        let mut net = Net::new(connection.backends, mac, self.mtu.or(connection.mtu), offload);
        net.throttles = Throttles::new(&self.rates).map_err(|e| fail(format!("cannot make a timer: {e}")))?;
        let counters = net.counters.clone();
        let name = builder.virtio("net", Box::new(net));
        builder.report(name, move || report(&counters, &connection.statistics));
        Ok(())
    }
}

/// The card's counters, and under its own name what the network has to say.
fn report(counters: &Counters, network: &Option<(&'static str, Statistics)>) -> serde_json::Value {
    let mut value = json(counters);
    if let (Some(object), Some((name, statistics))) = (value.as_object_mut(), network) {
        object.insert((*name).into(), statistics());
    }
    value
}

/// What became of packets, which may be up to 64 KiB long where segmentation is left to the receiver. Bytes are those of
/// the Ethernet frames. Only grows.
#[derive(Debug, Default, Serialize)]
pub struct Counters {
    /// Packets that the guest received.
    pub received_packets: AtomicU64,
    /// Their bytes.
    pub received_bytes: AtomicU64,
    /// Packets for the guest that were dropped: too long for its buffers.
    pub received_dropped: AtomicU64,
    /// Packets that the guest sent.
    pub sent_packets: AtomicU64,
    /// Their bytes.
    pub sent_bytes: AtomicU64,
    /// Packets of the guest that were dropped: not valid, or refused by the host.
    pub sent_dropped: AtomicU64,
}

impl Counters {
    /// The guest received a packet of `len` bytes, with its virtio header.
    fn received(&self, len: usize) {
        add(&self.received_packets, 1);
        add(&self.received_bytes, len.saturating_sub(HEADER_LEN));
    }

    /// The guest sent a packet of `len` bytes, with its virtio header.
    fn sent(&self, len: usize) {
        add(&self.sent_packets, 1);
        add(&self.sent_bytes, len.saturating_sub(HEADER_LEN));
    }
}

fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}

/// What keeps packets to the limits of the card: each direction to its own, all queues of it together.
#[derive(Debug, Clone, Default)]
struct Throttles {
    receive: Option<Arc<Throttle>>,
    transmit: Option<Arc<Throttle>>,
}

impl Throttles {
    fn new(rates: &Rates) -> std::io::Result<Self> {
        Ok(Self { receive: rates.throttle()?, transmit: rates.throttle()? })
    }
}

struct Net {
    backends: Vec<Arc<dyn Backend>>,
    mac: Mac,
    mtu: Option<u16>,
    features: u64,
    config: ConfigSpace,
    counters: Arc<Counters>,
    patience: Duration,
    throttles: Throttles,
}

impl Net {
    /// A card with one pair of queues for each of `backends` (at least one).
    fn new(backends: Vec<Arc<dyn Backend>>, mac: Mac, mtu: Option<u16>, offload: bool) -> Self {
        let bits = [
            (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, offload),
            (VIRTIO_NET_F_MTU, mtu.is_some()),
            (VIRTIO_NET_F_MAC, true),
            (VIRTIO_NET_F_MRG_RXBUF, true),
            (VIRTIO_NET_F_STATUS, true),
            (VIRTIO_NET_F_CTRL_VQ, true),
            (VIRTIO_NET_F_CTRL_RX, true),
            (VIRTIO_NET_F_CTRL_MAC_ADDR, true),
            (VIRTIO_NET_F_MQ, backends.len() > 1),
        ];
        let offloads = if offload { GUEST_OFFLOADS | HOST_OFFLOADS } else { 0 };
        let features = bits.iter().filter(|(_, on)| *on).fold(offloads, |all, (bit, _)| all | 1 << bit);
        let config = ConfigSpace::new(CONFIG_LEN);
        config.set(CONFIG_MAC, &mac.bytes());
        config.set(CONFIG_STATUS, &(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config.set(CONFIG_PAIRS, &u16::try_from(backends.len()).unwrap_or(u16::MAX).to_le_bytes());
        config.set(CONFIG_MTU, &mtu.unwrap_or(0).to_le_bytes());
        let (counters, throttles) = Default::default();
        Self { backends, mac, mtu, features, config, counters, patience: PATIENCE, throttles }
    }

    /// Makes the backends forget what an earlier driver wished.
    fn prepare(&self, features: u64) -> std::io::Result<()> {
        for (pair, backend) in self.backends.iter().enumerate() {
            backend.set_enabled(pair == 0)?;
        }
        if let Some(first) = self.backends.first() {
            first.set_offload(features & GUEST_OFFLOADS)?;
        }
        self.backends.iter().for_each(|backend| backend.drain());
        Ok(())
    }
}

/// A card over any backends, for tests.
#[cfg(any(test, feature = "testkit"))]
pub(crate) fn over(backends: Vec<Arc<dyn Backend>>) -> Box<dyn VirtioDevice> {
    let mac = Mac::new([0x52, 0x54, 0, 0, 0, 1]).unwrap_or_else(|| unreachable!("it is an address of one card"));
    Box::new(Net::new(backends, mac, Some(1500), true))
}

impl VirtioDevice for Net {
    fn info(&self) -> Info {
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * self.backends.len()];
        queue_sizes.push(CONTROL_SIZE);
        Info { id: VIRTIO_ID_NET as u16, features: self.features, queue_sizes, blocking: false }
    }

    fn config(&self) -> &ConfigSpace {
        &self.config
    }

    fn activate(&mut self, features: u64) -> Result<Box<dyn Handler>, ActivateError> {
        self.prepare(features).map_err(|e| ActivateError(format!("the tap interface cannot be set up: {e}")))?;
        let mtu = self.mtu.filter(|_| features & 1 << VIRTIO_NET_F_MTU != 0);
        let setup = handler::Setup {
            backends: self.backends.clone(),
            features,
            mtu,
            config: self.config.clone(),
            counters: self.counters.clone(),
            patience: self.patience,
            throttles: self.throttles.clone(),
        };
        Ok(Box::new(handler::NetHandler::new(setup)))
    }

    fn reset(&mut self) {
        self.config.set(CONFIG_MAC, &self.mac.bytes());
        tracing::debug!("network card reset; packets so far: {:?}", self.counters);
    }
}
