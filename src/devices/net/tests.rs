//! The network card through the driver-side kit, on a pair of sockets instead of a tap; on real ones in [`tap`].

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::receive::MAX_PACKET;
use super::*;
use crate::host::vectored::{self, IoBuf};
use crate::net::HEADER_LEN;
use crate::virtio::kit::{Kit, LIMIT, Part};

mod tap;

const RX: usize = 0;
const TX: usize = 1;
const CONTROL: usize = 2;
const MERGE: u64 = 1 << VIRTIO_NET_F_MRG_RXBUF;
const SOON: Duration = Duration::from_millis(30);

#[derive(Debug)]
struct Fake {
    socket: OwnedFd,
    offload: Mutex<Vec<u64>>,
    enabled: Mutex<bool>,
}

impl Backend for Fake {
    fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
    fn send(&self, packet: &[IoBuf]) -> std::io::Result<()> {
        vectored::send(&self.socket, packet).map(drop)
    }
    fn receive(&self, room: &[IoBuf]) -> std::io::Result<usize> {
        vectored::read(&self.socket, room)
    }
    fn set_offload(&self, features: u64) -> std::io::Result<()> {
        self.offload.lock().unwrap().push(features);
        Ok(())
    }
    fn set_enabled(&self, enabled: bool) -> std::io::Result<()> {
        *self.enabled.lock().unwrap() = enabled;
        Ok(())
    }
    fn drain(&self) {
        while rustix::io::read(&self.socket, &mut [0; 1]).is_ok() {}
    }
}

/// A card and the network's end of its cables.
struct Bench {
    kit: Kit,
    wires: Vec<OwnedFd>,
    fakes: Vec<Arc<Fake>>,
    counters: Arc<Counters>,
    features: u64,
}

fn bench(pairs: usize) -> Bench {
    // Longer than any test: time must not decide what they see.
    patient_bench(pairs, 10 * LIMIT)
}

fn patient_bench(pairs: usize, patience: Duration) -> Bench {
    let (mut wires, mut fakes) = (Vec::new(), Vec::new());
    for _ in 0..pairs {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let (socket, wire) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        wires.push(wire);
        fakes.push(Arc::new(Fake { socket, offload: Mutex::default(), enabled: Mutex::new(true) }));
    }
    let backends = fakes.iter().map(|fake| fake.clone() as Arc<dyn Backend>).collect();
    let mut net = Net::new(backends, "52:54:00:00:00:01".parse().unwrap(), Some(1500), true);
    net.patience = patience;
    let (counters, features) = (net.counters.clone(), net.features);
    Bench { kit: Kit::new(Box::new(net)), wires, fakes, counters, features }
}

fn packet(len: usize, seed: u8) -> Vec<u8> {
    let mut packet = vec![0; HEADER_LEN];
    packet[0] = 2;
    packet.extend((HEADER_LEN..len).map(|i| (i % 251) as u8 ^ seed));
    packet
}

impl Bench {
    fn backends(&self) -> Vec<Arc<dyn Backend>> {
        self.fakes.iter().map(|fake| fake.clone() as Arc<dyn Backend>).collect()
    }

    fn arrive(&self, packet: &[u8]) {
        assert_eq!(send(&self.wires[0], packet, SendFlags::empty()).unwrap(), packet.len());
    }

    fn leave(&self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; MAX_PACKET + 1];
        let (len, _) = recv(&self.wires[0], bytes.as_mut_slice(), RecvFlags::empty()).ok()?;
        bytes.truncate(len);
        Some(bytes)
    }

    /// The next packet in `n` buffers, and its number of buffers as the header has it.
    fn received(&mut self) -> (Vec<u8>, u16) {
        let mut packet = self.kit.wait_used(RX).data;
        let buffers = u16::from_le_bytes([packet[10], packet[11]]);
        for _ in 1..buffers {
            packet.extend(self.kit.try_used(RX).expect("the other buffers come at the same time").data);
        }
        packet[10..12].fill(0);
        (packet, buffers)
    }

    fn dropped(&self) -> (u64, u64) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (get(&self.counters.received_dropped), get(&self.counters.sent_dropped))
    }

    fn command(&mut self, queue: usize, parts: &[&[u8]]) -> u8 {
        let used = self.kit.request(queue, parts, &[1]);
        assert_eq!(used.len, 1);
        used.data[0]
    }
}

#[test]
fn packets_go_both_ways_again_after_a_reset() {
    let mut bench = bench(1);
    for _ in 0..2 {
        bench.arrive(&packet(100, 9));
        bench.kit.activate_on_loop(bench.features);
        for seed in 0..100 {
            bench.kit.add(RX, &[Part::In(12), Part::In(1600)]);
            bench.kit.notify(RX);
            let (out, back) = (packet(60 + usize::from(seed), seed), packet(1526 - usize::from(seed), seed));
            bench.kit.request(TX, &[&out[..12], &out[12..30], &out[30..]], &[]);
            assert_eq!(bench.leave().unwrap(), out);
            bench.arrive(&back);
            assert_eq!(bench.received(), (back, 1), "and nothing from before the driver's time");
        }
        bench.kit.reset();
    }
    assert_eq!(bench.dropped(), (0, 0));
}

#[test]
fn long_packets_take_several_buffers_and_leave_the_rest_to_others() {
    let mut bench = bench(1);
    bench.kit.activate(bench.features);
    for _ in 0..60 {
        bench.kit.add(RX, &[Part::In(1536)]);
    }
    bench.kit.notify(RX);
    bench.arrive(&packet(60_000, 1));
    bench.arrive(&packet(61, 2));
    bench.arrive(&packet(1536, 3));
    bench.arrive(&packet(1537, 4));
    let lens = [(60_000, 1, 40), (61, 2, 1), (1536, 3, 1), (1537, 4, 2)];
    for (len, seed, buffers) in lens {
        assert_eq!(bench.received(), (packet(len, seed), buffers));
    }
    bench.kit.reset();
    // The same without offloads: packets are short, but a long one is no harm.
    bench.kit.activate(MERGE);
    for _ in 0..8 {
        bench.kit.add(RX, &[Part::In(600)]);
    }
    bench.arrive(&packet(1514, 5));
    bench.arrive(&packet(1515, 6));
    bench.kit.notify(RX);
    for seed in [5, 6] {
        let mut expected = packet(1509 + usize::from(seed), seed);
        expected[0] = 0;
        assert_eq!(bench.received(), (expected, 3), "no flags that were not negotiated");
    }
}

#[test]
fn packets_wait_where_they_are_until_the_guest_has_buffers() {
    let mut bench = bench(1);
    bench.kit.activate_on_loop(bench.features);
    (0..5).for_each(|seed| bench.arrive(&packet(200, seed)));
    std::thread::sleep(SOON);
    for seed in 0..5 {
        assert!(bench.kit.wants_notification(RX));
        bench.kit.add(RX, &[Part::In(300)]);
        bench.kit.notify(RX);
        assert_eq!(bench.received(), (packet(200, seed), 1));
    }
    assert_eq!(bench.dropped(), (0, 0));
}

#[test]
fn a_packet_that_has_started_waits_a_while_for_more_buffers() {
    let mut bench = bench(1);
    bench.kit.activate_on_loop(bench.features);
    bench.kit.add(RX, &[Part::In(1000)]);
    bench.kit.notify(RX);
    bench.arrive(&packet(2500, 1));
    bench.arrive(&packet(100, 2));
    std::thread::sleep(SOON);
    assert_eq!(bench.kit.try_used(RX), None);
    bench.kit.add(RX, &[Part::In(1000)]);
    bench.kit.notify(RX);
    bench.kit.add(RX, &[Part::In(1000)]);
    bench.kit.add(RX, &[Part::In(1000)]);
    bench.kit.notify(RX);
    assert_eq!(bench.received(), (packet(2500, 1), 3));
    assert_eq!(bench.received(), (packet(100, 2), 1));
    assert_eq!(bench.dropped(), (0, 0));
}

#[test]
fn a_packet_that_has_started_does_not_wait_for_ever() {
    let mut bench = patient_bench(1, SOON);
    bench.kit.activate_on_loop(bench.features);
    bench.kit.add(RX, &[Part::In(1000)]);
    bench.kit.notify(RX);
    bench.arrive(&packet(2500, 3));
    bench.arrive(&packet(300, 4));
    assert_eq!(bench.received(), (packet(300, 4), 1));
    assert_eq!(bench.dropped(), (1, 0));
}

#[test]
fn without_mergeable_buffers_a_packet_fits_or_is_dropped() {
    let mut bench = bench(1);
    bench.kit.activate(0);
    for _ in 0..3 {
        bench.kit.add(RX, &[Part::In(1000), Part::In(526)]);
    }
    bench.kit.notify(RX);
    bench.arrive(&packet(1527, 1));
    bench.arrive(&packet(1526, 2));
    bench.arrive(&packet(5, 3)[..5]);
    bench.arrive(&packet(60, 4));
    for (len, seed) in [(1526, 2), (60, 4)] {
        let (received, buffers) = bench.received();
        assert_eq!((received.len(), &received[12..], buffers), (len, &packet(len, seed)[12..], 1));
    }
    assert_eq!(bench.dropped(), (2, 0));
}

#[test]
fn a_full_network_holds_the_guest_back_and_loses_nothing() {
    let mut bench = bench(1);
    bench.kit.activate_on_loop(0);
    let mut expected = VecDeque::new();
    for seed in 0..100 {
        expected.push_back(packet(40_000, seed));
        bench.kit.add(TX, &[Part::Out(&packet(40_000, seed))]);
    }
    bench.kit.notify(TX);
    bench.kit.wait_used(TX);
    std::thread::sleep(SOON);
    let mut done = 1;
    while bench.kit.try_used(TX).is_some() {
        done += 1;
    }
    assert!(done < 100, "the socket takes it all: the test tests nothing");
    let start = std::time::Instant::now();
    while let Some(first) = expected.front() {
        assert!(start.elapsed() < LIMIT);
        match bench.leave() {
            Some(packet) => {
                assert!(packet == *first);
                expected.pop_front();
            }
            None => std::thread::sleep(Duration::from_millis(1)),
        }
    }
    (done..100).for_each(|_| drop(bench.kit.wait_used(TX)));
    assert_eq!(bench.dropped(), (0, 0));
}

#[test]
fn packets_that_are_none_are_dropped() {
    let mut bench = bench(1);
    bench.kit.activate(0);
    bench.kit.request(TX, &[&[0; 5]], &[]);
    bench.kit.request(TX, &[&[0; HEADER_LEN]], &[]);
    bench.kit.request(TX, &[], &[100]);
    bench.kit.add(TX, &[Part::OutAt(0x1000, MAX_PACKET as u32), Part::Out(&[1])]);
    bench.kit.add(TX, &[Part::OutAt(0, 16 << 20), Part::OutAt(1 << 32, 16 << 20)]);
    bench.kit.notify(TX);
    bench.kit.wait_used(TX);
    bench.kit.wait_used(TX);
    assert_eq!(bench.dropped(), (0, 5));
    assert_eq!(bench.leave(), None);
    let last = packet(MAX_PACKET, 1);
    bench.kit.request(TX, &[&last], &[]);
    assert_eq!(bench.leave(), Some(last));
}

#[test]
fn buffers_that_are_none_stop_the_device_until_reset() {
    let mut bench = bench(1);
    let bad: [&[Part<'_>]; 3] = [&[Part::In(11)], &[Part::Out(b"wrong direction")], &[Part::InAt(32 << 20, 2000)]];
    for parts in bad {
        bench.kit.activate(bench.features);
        bench.kit.add(RX, parts);
        bench.kit.notify(RX);
        bench.arrive(&packet(60, 1));
        bench.kit.poll_fds(SOON);
        bench.kit.wait_broken();
        bench.kit.reset();
    }
    bench.kit.activate(bench.features);
    bench.kit.add(CONTROL, &[Part::Out(&[0, 0, 1])]);
    bench.kit.notify(CONTROL);
    bench.kit.wait_broken();
}

#[test]
fn many_tiny_buffers_are_no_harm() {
    let mut bench = patient_bench(1, SOON);
    bench.kit.activate_on_loop(bench.features);
    let tiny = vec![Part::In(1); 250];
    for _ in 0..QUEUE_SIZE {
        bench.kit.add_indirect(RX, &tiny);
    }
    bench.kit.notify(RX);
    bench.arrive(&packet(600, 1));
    assert_eq!(bench.received(), (packet(600, 1), 3));
    bench.arrive(&packet(40_000, 2));
    bench.arrive(&packet(250, 3));
    assert_eq!(bench.received(), (packet(250, 3), 1), "what cannot be gathered is dropped");
    assert_eq!(bench.dropped(), (1, 0));
}

#[test]
fn a_network_that_goes_away_costs_nothing_and_harms_nothing() {
    let mut bench = bench(1);
    bench.kit.activate(bench.features);
    bench.kit.add(RX, &[Part::In(2000)]);
    bench.kit.notify(RX);
    bench.wires.clear();
    assert!(bench.kit.poll_fds(SOON));
    assert!(!bench.kit.poll_fds(SOON), "it is no longer watched");
    bench.kit.request(TX, &[&packet(60, 1)], &[]);
    assert_eq!(bench.dropped(), (0, 1));
    assert!(!bench.kit.is_broken());
}

#[test]
fn commands_are_obeyed_or_refused() {
    let mut bench = bench(1);
    bench.kit.activate(bench.features);
    let mac = |bench: &Bench| {
        let mut bytes = [0; 6];
        bench.kit.device.config().read(CONFIG_MAC, &mut bytes);
        bytes
    };
    let checksum = 1u64 << VIRTIO_NET_F_GUEST_CSUM;
    let cases: [(&[&[u8]], u8); 14] = [
        (&[&[0, 0], &[1]], 0),
        (&[&[0, 1, 1]], 0),
        (&[&[0, 2, 1]], 1),
        (&[&[0, 0]], 1),
        (&[&[0]], 1),
        (&[&[1, 0], &[0; 8]], 0),
        (&[&[1, 1], &[2, 3, 4, 5, 6, 7]], 0),
        (&[&[1, 1], &[3, 3, 4, 5, 6, 7]], 1),
        (&[&[1, 1], &[2, 3]], 1),
        (&[&[2, 0], &[1, 0]], 1),
        (&[&[4, 0], &[1, 0]], 1),
        (&[&[5, 0], &checksum.to_le_bytes()], 0),
        (&[&[5, 0], &u64::MAX.to_le_bytes()], 1),
        (&[&[255, 255], &[0; 100]], 1),
    ];
    for (parts, status) in cases {
        assert_eq!(bench.command(CONTROL, parts), status, "{parts:?}");
    }
    assert_eq!(mac(&bench), [2, 3, 4, 5, 6, 7]);
    assert_eq!(*bench.fakes[0].offload.lock().unwrap(), [GUEST_OFFLOADS, checksum]);
    bench.kit.reset();
    assert_eq!(mac(&bench), [0x52, 0x54, 0, 0, 0, 1]);
    bench.kit.activate(bench.features & !(1 << VIRTIO_NET_F_CTRL_RX | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR));
    assert_eq!(bench.command(CONTROL, &[&[0, 0, 1]]), 1);
    assert_eq!(bench.command(CONTROL, &[&[1, 1], &[2, 3, 4, 5, 6, 7]]), 1);
}

#[test]
fn several_queues_work_when_the_guest_asks_for_them() {
    let mut bench = bench(3);
    let enabled = |bench: &Bench| bench.fakes.iter().map(|fake| *fake.enabled.lock().unwrap()).collect::<Vec<_>>();
    bench.kit.activate_on_loop(bench.features);
    assert_eq!(enabled(&bench), [true, false, false]);
    for (pairs, status) in [(0u16, 1), (4, 1), (u16::MAX, 1), (2, 0), (3, 0)] {
        assert_eq!(bench.command(6, &[&[4, 0], &pairs.to_le_bytes()]), status, "{pairs}");
    }
    assert_eq!(enabled(&bench), [true; 3]);
    for pair in [2, 0, 1] {
        bench.wires.swap(0, pair);
        let sent = packet(500, pair as u8);
        bench.kit.request(2 * pair + 1, &[&sent], &[]);
        assert_eq!(bench.leave(), Some(sent.clone()));
        bench.kit.add(2 * pair, &[Part::In(1000)]);
        bench.kit.notify(2 * pair);
        bench.arrive(&sent);
        assert_eq!(bench.kit.wait_used(2 * pair).data[12..], sent[12..]);
        bench.wires.swap(0, pair);
    }
    bench.kit.reset();
    // A driver that knows one pair finds the control queue after it.
    bench.kit.activate(bench.features & !(1 << VIRTIO_NET_F_MQ));
    assert_eq!(enabled(&bench), [true, false, false]);
    assert_eq!(bench.command(CONTROL, &[&[0, 0, 1]]), 0);
    assert_eq!(bench.command(CONTROL, &[&[4, 0, 1, 0]]), 1);
}

#[test]
fn options_are_checked() {
    let parse = |text| Kind.parse(&mut Options::from_flag("net", KEYS, text).unwrap());
    let spec = parse("t0,mac=52:54:00:12:34:56,mtu=9000,queues=2,offload=off").unwrap();
    assert_eq!(spec.exclusive().as_deref(), Some("--net tap=t0"));
    let user = parse("user,publish=8080:80+53:53/udp,allow=example.org:443,host,dns=192.0.2.1,mtu=1500").unwrap();
    assert!(user.exclusive().is_none() && format!("{user:?}").contains("192.0.2.1:53"));
    let shown = format!("{spec:?}");
    assert!(shown.contains("Some(9000)") && shown.contains("queues: 2, offload: false"), "{shown}");
    for (bad, says) in [
        ("", "tap= is missing"),
        ("t0,mac=01:00:5e:00:00:01", "give an address of one card"),
        ("t0,mtu=60", "from 68 to 65535"),
        ("t0,queues=0", "from 1 to 16"),
        ("a/b", "cannot be the name"),
        ("tap=a,user", "give one"),
        ("a,publish=1:2", "publish goes with user"),
        ("user,publish=1", "publish=`1` is no [ADDRESS:]"),
        ("user,allow=a:b", "allow=`a:b` is no HOST"),
        ("user,dns=x", "dns=`x` is no ADDRESS"),
        ("user,host=x", "host=x: say on or off"),
        ("user=x", "user=x: say on or off"),
    ] {
        let error = parse(bad).unwrap_err().to_string();
        assert!(error.starts_with("--net: ") && error.contains(says), "{error}");
    }
}

fn offer(kit: &mut Kit, queue: usize, count: usize, len: usize) {
    for _ in 0..count {
        kit.add(queue, &[Part::In(len)]);
    }
}

#[test]
fn packets_wait_for_tokens_and_other_queues_go_on() {
    let rates = Rates { bytes: Some(1 << 20), operations: Some(100) };
    let (mut bench, throttles) = (bench(1), Throttles::new(&rates).unwrap());
    let (receive, transmit) = (throttles.receive.clone().unwrap(), throttles.transmit.clone().unwrap());
    let mut net = Net::new(bench.backends(), "52:54:00:00:00:01".parse().unwrap(), Some(1500), true);
    net.throttles = throttles;
    bench.kit = Kit::new(Box::new(net));
    for _ in 0..2 {
        bench.kit.activate(bench.features);
        offer(&mut bench.kit, RX, 8, 1536);
        bench.kit.notify(RX);
        transmit.exhaust();
        let out = packet(1000, 1);
        for _ in 0..3 {
            bench.kit.add(TX, &[Part::Out(&out)]);
        }
        bench.kit.notify(TX);
        bench.arrive(&packet(700, 2));
        assert_eq!(bench.received(), (packet(700, 2), 1), "the other direction goes on");
        bench.kit.poll_fds(2 * SOON);
        assert!(bench.leave().is_none() && bench.kit.try_used(TX).is_none());
        receive.exhaust();
        (0..3).for_each(|seed| bench.arrive(&packet(200, seed)));
        bench.kit.poll_fds(2 * SOON);
        bench.kit.notify(RX);
        assert!(bench.kit.try_used(RX).is_none());
        let command = [&[0, 0][..], &[1]];
        assert_eq!(bench.command(CONTROL, &command), 0, "commands are not packets");
        transmit.refill(&rates);
        (0..3).for_each(|_| drop(bench.kit.wait_used(TX)));
        (0..3).for_each(|_| assert_eq!(bench.leave().unwrap(), out));
        receive.refill(&rates);
        (0..3).for_each(|seed| assert_eq!(bench.received(), (packet(200, seed), 1), "in order"));
        // A reset while packets wait in both directions.
        transmit.exhaust();
        receive.exhaust();
        bench.kit.add(TX, &[Part::Out(&out)]);
        bench.kit.notify(TX);
        bench.arrive(&packet(300, 1));
        bench.kit.poll_fds(2 * SOON);
        bench.kit.reset();
        transmit.refill(&rates);
        receive.refill(&rates);
    }
}
