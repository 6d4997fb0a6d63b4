//! The device through the driver-side kit, with real UNIX sockets on the host's side.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use super::packet::{HEADER_LEN, HOST_CID, Header, NO_MORE, NO_RECEIVE, NO_SEND, STREAM, op};
use super::*;
use crate::virtio::kit::{Kit, LIMIT, Part};

mod hostile;

const RX: usize = 0;
const TX: usize = 1;
const CID: u64 = 42;
const SOON: Duration = Duration::from_millis(30);
/// Room that the guest of most tests claims to have.
const ROOM: u32 = 1 << 20;

struct Bench {
    kit: Kit,
    dir: tempfile::TempDir,
    /// Ports of the connection under test.
    host_port: u32,
    guest_port: u32,
    buf_alloc: u32,
    fwd_cnt: u32,
    /// As the device last said.
    device: Header,
}

fn bench() -> Bench {
    limited_bench(handler::Limits { patience: 10 * LIMIT, ..handler::Limits::default() })
}

fn limited_bench(limits: handler::Limits) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let mut vsock = Vsock::new(&dir.path().join("v"), CID).unwrap();
    vsock.limits = limits;
    let kit = Kit::new(Box::new(vsock));
    let device = Header::default();
    let mut bench = Bench { kit, dir, host_port: 0, guest_port: 0, buf_alloc: ROOM, fwd_cnt: 0, device };
    bench.start();
    bench
}

impl Bench {
    fn start(&mut self) {
        self.kit.activate_on_loop(F_STREAM);
        self.offer(100);
    }

    fn offer(&mut self, count: usize) {
        for _ in 0..count {
            self.kit.add(RX, &[Part::In(4096 + HEADER_LEN)]);
        }
        self.kit.notify(RX);
    }

    fn host(&self) -> UnixStream {
        let stream = UnixStream::connect(self.dir.path().join("v")).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        stream.set_write_timeout(Some(LIMIT)).unwrap();
        stream
    }

    fn service(&self, port: u32) -> UnixListener {
        UnixListener::bind(self.dir.path().join(format!("v_{port}"))).unwrap()
    }

    fn header(&self, op: u16, len: usize) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            len: len as u32,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    fn send(&mut self, op: u16) {
        self.send_raw(&self.header(op, 0), &[]);
    }

    fn send_data(&mut self, data: &[u8]) {
        self.send_raw(&self.header(op::RW, data.len()), data);
    }

    fn shut_down(&mut self, flags: u32) {
        self.send_raw(&Header { flags, ..self.header(op::SHUTDOWN, 0) }, &[]);
    }

    fn send_raw(&mut self, header: &Header, data: &[u8]) {
        let header = header.bytes();
        let parts: &[&[u8]] = if data.is_empty() { &[&header] } else { &[&header, data] };
        self.kit.request(TX, parts, &[]);
    }

    /// The next packet; a new buffer takes the place of its.
    fn next(&mut self) -> (Header, Vec<u8>) {
        let used = self.kit.wait_used(RX);
        self.offer(1);
        let header = Header::parse(used.data.first_chunk().unwrap());
        assert_eq!(header.len as usize, used.data.len() - HEADER_LEN);
        assert_eq!((header.dst_cid, header.src_cid, header.kind), (CID, HOST_CID, STREAM));
        self.device = header;
        (header, used.data[HEADER_LEN..].to_vec())
    }

    fn expect(&mut self, op: u16) -> Header {
        let (header, data) = self.next();
        assert_eq!((header.op, data.len()), (op, 0), "{header:?}");
        header
    }

    fn expect_data(&mut self, wanted: &[u8]) {
        let mut seen = Vec::new();
        while seen.len() < wanted.len() {
            let (header, data) = self.next();
            assert_eq!(header.op, op::RW, "{header:?}");
            self.fwd_cnt = self.fwd_cnt.wrapping_add(header.len);
            seen.extend(data);
        }
        assert!(seen == wanted);
    }

    fn quiet(&mut self) {
        assert_eq!(self.kit.used_within(RX, SOON), None);
    }

    /// A connection that the host made to port 1024.
    fn connected(&mut self) -> UnixStream {
        let mut host = self.host();
        host.write_all(b"CONNECT 1024\n").unwrap();
        let request = self.expect(op::REQUEST);
        assert_eq!((request.dst_port, request.flags), (1024, 0));
        (self.host_port, self.guest_port, self.fwd_cnt) = (request.src_port, 1024, 0);
        self.send(op::RESPONSE);
        let expected = format!("OK {}\n", self.host_port);
        assert_eq!(read(&mut host, expected.len()), expected.as_bytes());
        host
    }

    /// A connection that the guest made to port 52.
    fn accepted(&mut self, service: &UnixListener) -> UnixStream {
        (self.host_port, self.guest_port, self.fwd_cnt) = (52, 5000 + self.guest_port % 7, 0);
        self.send(op::REQUEST);
        self.expect(op::RESPONSE);
        let host = service.accept().unwrap().0;
        host.set_read_timeout(Some(LIMIT)).unwrap();
        host.set_write_timeout(Some(LIMIT)).unwrap();
        host
    }
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}

fn at_end(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0]) {
        Ok(count) => count == 0,
        Err(e) => e.kind() == ErrorKind::ConnectionReset,
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

#[test]
fn the_host_connects_talks_and_leaves_again_after_a_reset() {
    let mut bench = bench();
    for _ in 0..2 {
        let mut host = bench.connected();
        bench.send_data(b"hello host");
        assert_eq!(read(&mut host, 10), b"hello host");
        host.write_all(b"hello guest").unwrap();
        bench.expect_data(b"hello guest");
        assert_eq!(bench.device.fwd_cnt, 10);
        drop(host);
        while bench.expect(op::SHUTDOWN).flags != NO_MORE {}
        bench.send(op::RST);
        let mut host = bench.connected();
        bench.kit.reset();
        assert!(at_end(&mut host), "connections end with the driver");
        bench.start();
    }
}

#[test]
fn a_program_may_come_before_the_driver() {
    let mut bench = bench();
    bench.kit.reset();
    let mut early = bench.host();
    early.write_all(b"CONNECT 7\nand data").unwrap();
    bench.start();
    let request = bench.expect(op::REQUEST);
    (bench.host_port, bench.guest_port) = (request.src_port, 7);
    bench.send(op::RESPONSE);
    bench.expect_data(b"and data");
}

#[test]
fn the_guest_connects_talks_and_leaves() {
    let mut bench = bench();
    let service = bench.service(52);
    for _ in 0..3 {
        let mut host = bench.accepted(&service);
        bench.send_data(b"question");
        assert_eq!(read(&mut host, 8), b"question");
        host.write_all(&pattern(10_000)).unwrap();
        bench.expect_data(&pattern(10_000));
        bench.shut_down(NO_MORE);
        bench.expect(op::RST);
        assert!(at_end(&mut host));
    }
    bench.host_port = 53;
    bench.send(op::REQUEST);
    assert_eq!(bench.expect(op::RST).src_port, 53, "nobody listens there");
}

#[test]
fn either_side_may_end_one_direction_first() {
    let mut bench = bench();
    let mut host = bench.connected();
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    bench.expect_data(b"last words");
    assert_eq!(bench.expect(op::SHUTDOWN).flags, NO_SEND);
    bench.quiet();
    bench.send_data(b"answer");
    bench.shut_down(NO_MORE);
    assert_eq!(read(&mut host, 6), b"answer");
    assert!(at_end(&mut host));
    bench.expect(op::RST);

    let mut host = bench.connected();
    bench.send_data(b"all I have");
    bench.shut_down(NO_SEND);
    assert_eq!(read(&mut host, 10), b"all I have");
    assert!(at_end(&mut host));
    host.write_all(b"answer").unwrap();
    bench.expect_data(b"answer");
    drop(host);
    assert_eq!(bench.expect(op::SHUTDOWN).flags, NO_MORE);
    bench.shut_down(NO_MORE);
    bench.expect(op::RST);

    let mut host = bench.connected();
    bench.shut_down(NO_RECEIVE);
    let broken = host.write_all(b"does not want it").unwrap_err();
    assert_eq!(broken.kind(), ErrorKind::BrokenPipe);
    bench.send_data(b"but talks");
    assert_eq!(read(&mut host, 9), b"but talks");
    drop(host);
    assert_eq!(bench.expect(op::SHUTDOWN).flags, NO_MORE);
    bench.send(op::RST);
    bench.quiet();
}

#[test]
fn what_the_host_sent_before_it_left_arrives() {
    let mut bench = bench();
    let mut host = bench.connected();
    bench.buf_alloc = 100;
    bench.send(op::CREDIT_UPDATE);
    host.write_all(&pattern(30_000)).unwrap();
    drop(host);
    bench.expect_data(&pattern(100));
    bench.expect(op::CREDIT_REQUEST);
    bench.quiet();
    // The guest writes as well, which tells that nobody reads it any more.
    bench.send_data(b"anybody there?");
    bench.buf_alloc = ROOM;
    bench.send(op::CREDIT_UPDATE);
    let mut seen = Vec::new();
    loop {
        let (header, data) = bench.next();
        if (header.op, header.flags) == (op::SHUTDOWN, NO_MORE) {
            break;
        }
        assert!(matches!(header.op, op::RW | op::SHUTDOWN | op::CREDIT_REQUEST), "{header:?}");
        seen.extend(data);
    }
    assert!(seen == pattern(30_000)[100..]);
    bench.send(op::RST);
    bench.quiet();
}

#[test]
fn the_guest_is_never_sent_more_than_it_has_room_for() {
    let mut bench = bench();
    bench.buf_alloc = 1000;
    let mut host = bench.connected();
    let content = pattern(200_000);
    let sent = content.clone();
    let mut writer = host.try_clone().unwrap();
    let thread = std::thread::spawn(move || writer.write_all(&sent).unwrap());
    let (mut seen, mut asked) = (Vec::new(), 0);
    while seen.len() < content.len() {
        let (header, data) = bench.next();
        match header.op {
            op::RW => seen.extend(data),
            op::CREDIT_REQUEST => {
                asked += 1;
                bench.fwd_cnt = seen.len() as u32;
                bench.send(op::CREDIT_UPDATE);
            }
            _ => panic!("{header:?}"),
        }
        assert!(seen.len() - bench.fwd_cnt as usize <= 1000);
    }
    assert!(seen == content);
    assert!(asked >= 199, "{asked}");
    thread.join().unwrap();
    // A guest that claims to have consumed what it never got gets nothing, and harms nobody.
    (bench.fwd_cnt, bench.buf_alloc) = (seen.len() as u32 + 5000, 1000);
    bench.send(op::CREDIT_UPDATE);
    host.write_all(b"more").unwrap();
    bench.expect(op::CREDIT_REQUEST);
    bench.quiet();
}

#[test]
fn the_guest_learns_of_room_in_time_and_a_slow_reader_loses_nothing() {
    let mut bench = bench();
    let mut host = bench.connected();
    let content = pattern(3 << 20);
    let expected = content.clone();
    let reader = std::thread::spawn(move || {
        let mut seen = vec![0; expected.len()];
        for piece in seen.chunks_mut(100_000) {
            std::thread::sleep(Duration::from_millis(2));
            host.read_exact(piece).unwrap();
        }
        assert!(seen == expected);
        host
    });
    let (mut rest, mut sent) = (content.as_slice(), 0u32);
    while !rest.is_empty() {
        let room = bench.device.buf_alloc - sent.wrapping_sub(bench.device.fwd_cnt);
        if room == 0 {
            bench.expect(op::CREDIT_UPDATE);
            continue;
        }
        let count = rest.len().min(room as usize).min(60_000);
        let (piece, later) = rest.split_at(count);
        bench.send_data(piece);
        (rest, sent) = (later, sent + count as u32);
    }
    let mut host = reader.join().unwrap();
    bench.send(op::CREDIT_REQUEST);
    let start = Instant::now();
    while bench.device.fwd_cnt != sent {
        assert!(start.elapsed() < LIMIT);
        bench.expect(op::CREDIT_UPDATE);
    }
    bench.send_data(b"end");
    assert_eq!(read(&mut host, 3), b"end");
}

#[test]
fn many_connections_share_few_buffers_fairly() {
    let mut bench = bench();
    bench.kit.reset();
    bench.kit.activate_on_loop(F_STREAM);
    let service = bench.service(52);
    let mut hosts = Vec::new();
    for port in 0..20 {
        (bench.host_port, bench.guest_port) = (52, port);
        bench.send(op::REQUEST);
        let mut host = service.accept().unwrap().0;
        host.write_all(&pattern(20_000)).unwrap();
        hosts.push(host);
    }
    std::thread::sleep(SOON);
    bench.offer(1);
    let mut seen = [0; 20];
    let mut first_done = None;
    while seen.iter().any(|&count| count < 20_000) {
        let (header, data) = bench.next();
        let port = header.dst_port as usize;
        assert_eq!(data, pattern(20_000)[seen[port]..seen[port] + data.len()]);
        seen[port] += data.len();
        if seen[port] == 20_000 && first_done.is_none() {
            first_done = Some(seen.iter().copied().min().unwrap());
        }
    }
    assert!(first_done.unwrap() >= 12_000, "one was far behind: {first_done:?}");
}

#[test]
fn options_are_checked_and_the_socket_is_private() {
    let parse = |text: &str| Kind.parse(&mut Options::from_flag("vsock", KEYS, text).unwrap());
    let spec = format!("{:?}", parse("/tmp/x,cid=77").unwrap());
    assert!(spec.contains("/tmp/x") && spec.contains("cid: 77"), "{spec}");
    let long = format!("/tmp/{}", "x".repeat(100));
    for (bad, says) in [
        ("", "socket= is missing"),
        ("/tmp/x,cid=2", "from 3 to 4294967294"),
        ("/tmp/x,cid=4294967295", "from 3 to"),
        (&long, "too long (at most 96 bytes)"),
    ] {
        let error = parse(bad).unwrap_err().to_string();
        assert!(error.starts_with("--vsock: ") && error.contains(says), "{error}");
    }
    let bench = bench();
    let path = bench.dir.path().join("v");
    assert!(Vsock::new(&path, CID).map(drop).unwrap_err().to_string().contains("already listens"));
    let mut cid = [0; 8];
    bench.kit.device.config().read(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), CID);
    let Bench { kit, dir: _dir, .. } = bench;
    drop(kit);
    assert!(!path.exists());
}
