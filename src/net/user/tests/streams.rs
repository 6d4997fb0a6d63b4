//! TCP: whole streams, ends and resets of each direction, refusals, many connections, published ports.

use std::io::ErrorKind;

use super::*;

const MANY: usize = 1000;

fn echo(config: &Config, mtu: u16, offload: Offload, at: IpAddr, to: IpAddr) {
    let mut guest = guest_with_mtu(config, mtu);
    guest.cable.stack.set_offload(offload).unwrap();
    let (port, serving) = server_at(at, |mut client| {
        let mut copy = client.try_clone().unwrap();
        std::io::copy(&mut client, &mut copy).unwrap();
        copy.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let handle = guest.connect_with(SocketAddr::new(to, port), 256 << 10);
    let sent = content(10 << 20);
    let (mut written, mut received) = (0, Vec::with_capacity(sent.len()));
    guest.until("10 MB there and back", |guest| {
        let socket = guest.tcp(handle);
        if socket.can_send() && written < sent.len() {
            written += socket.send_slice(&sent[written..]).unwrap();
            if written == sent.len() {
                socket.close();
            }
        }
        if socket.can_recv() {
            received.extend(socket.recv(|b| (b.len(), b.to_vec())).unwrap());
        }
        received.len() == sent.len()
    });
    assert!(received == sent, "what came back is not what was sent");
    serving.join().unwrap();
    assert_eq!(guest.count(|c| &c.sent_bytes), sent.len() as u64);
    assert_eq!(guest.count(|c| &c.received_bytes), sent.len() as u64);
    assert_eq!(guest.count(|c| &c.tcp_connections), 1);
}

#[test]
fn ten_megabytes_come_back_as_they_went() {
    let all = Offload { checksum: true, segments: true };
    echo(&open(), MTU, Offload::default(), Ipv4Addr::LOCALHOST.into(), GATEWAY.into());
    echo(&open(), 1500, Offload { checksum: true, ..Offload::default() }, Ipv4Addr::LOCALHOST.into(), GATEWAY.into());
    echo(&open(), 1500, all, Ipv4Addr::LOCALHOST.into(), GATEWAY.into());
}

#[test]
fn ipv6_is_the_same() {
    if TcpListener::bind("[::1]:0").is_err() {
        eprintln!("\nSKIPPED: the host has no IPv6");
        return;
    }
    let all = Offload { checksum: true, segments: true };
    let local: IpAddr = std::net::Ipv6Addr::LOCALHOST.into();
    echo(&open(), MTU, Offload::default(), local, GATEWAY6.into());
    echo(&open(), 1500, all, local, GATEWAY6.into());
}

#[test]
fn long_segments_are_left_to_a_guest_that_takes_them() {
    let mut guest = guest_with_mtu(&open(), 1500);
    guest.cable.stack.set_offload(Offload { checksum: true, segments: true }).unwrap();
    let (port, serving) = server(|mut client| client.write_all(&content(1 << 20)).unwrap());
    let handle = guest.connect_with(host(port), 512 << 10);
    assert!(guest.read_to_end(handle) == content(1 << 20));
    serving.join().unwrap();
    let long = guest.cable.headers.iter().filter(|header| header[1] == 1).collect::<Vec<_>>();
    assert!(!long.is_empty() && long.iter().all(|header| header[0] == 1), "segments come with unfinished checksums");
    assert!(long.iter().all(|header| u16::from_le_bytes([header[4], header[5]]) == 1460), "{long:?}");
}

#[test]
fn each_direction_ends_by_itself() {
    let mut guest = guest(&open());
    // The guest ends first, and still receives.
    let (port, serving) = server(|mut client| {
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        client.write_all(&content(300_000)).unwrap();
        all
    });
    let handle = guest.connected(host(port));
    guest.write_all(handle, b"question");
    guest.tcp(handle).close();
    let start = Instant::now();
    assert!(guest.read_to_end(handle) == content(300_000));
    // Window updates count: a probe has one byte and comes after a second.
    assert!(!guest.cable.lens.contains(&1), "{:?} after {:?}", guest.cable.lens, start.elapsed());
    assert_eq!(serving.join().unwrap(), b"question");
    // The world ends first, and still receives.
    let (port, serving) = server(|mut client| {
        client.write_all(b"hello").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        all
    });
    let handle = guest.connected(host(port));
    assert_eq!(guest.read_to_end(handle), b"hello");
    guest.write_all(handle, &content(300_000));
    guest.tcp(handle).close();
    guest.until("the end", |guest| !guest.tcp(handle).is_active() || guest.tcp(handle).state() == tcp::State::TimeWait);
    assert!(serving.join().unwrap() == content(300_000));
    // An end that comes with the last bytes is acknowledged as well.
    let (port, serving) = server(|mut client| {
        client.shutdown(std::net::Shutdown::Write).unwrap();
        client.read(&mut [0; 10]).unwrap()
    });
    let handle = guest.connected(host(port));
    assert!(guest.read_to_end(handle).is_empty());
    guest.tcp(handle).send_slice(b"bye").unwrap();
    guest.tcp(handle).close();
    guest.until("the end", |guest| !guest.tcp(handle).is_open());
    assert_eq!((serving.join().unwrap(), guest.cable.resets), (3, 0));
}

#[test]
fn resets_are_passed_on_both_ways() {
    let mut guest = guest(&open());
    let (port, serving) = server(|mut client| client.read(&mut [0; 10]).map_err(|e| e.kind()));
    let handle = guest.connected(host(port));
    guest.tcp(handle).abort();
    guest.poll();
    assert_eq!(serving.join().unwrap(), Err(ErrorKind::ConnectionReset));
    let (port, serving) = server(|client| {
        rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    });
    let handle = guest.connected(host(port));
    guest.until("the reset", |guest| !guest.tcp(handle).is_open());
    serving.join().unwrap();
    assert_eq!(guest.cable.resets, 1);
    assert!(matches!(guest.tcp(handle).recv(|_| (0, ())), Err(tcp::RecvError::InvalidState)));
}

#[test]
fn refusals_are_the_hosts() {
    let mut guest = guest(&open());
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert!(guest.is_refused(host(free)));
    assert_eq!(guest.count(|c| &c.tcp_failed), 1);
    assert!(guest.is_refused(SocketAddr::new(DNS.into(), 80)), "the relay has no web server");
}

#[test]
fn a_guest_that_may_not_is_refused_at_once() {
    let mut guest = guest(&Config { allow: list("192.0.2.1:443").unwrap(), ..Config::default() });
    let (port, _serving) = server(drop);
    let theirs = ["192.0.2.1:80", "192.0.2.1:80", "[::ffff:127.0.0.1]:80"].map(|text| text.parse().unwrap());
    for to in [&[host(port)], &theirs[..]].concat() {
        assert!(guest.is_refused(to), "{to}");
    }
    assert_eq!((guest.count(|c| &c.denied), guest.count(|c| &c.tcp_connections)), (4, 0));
    let expected = [format!("1 tcp {}", host(port)), "1 tcp [::ffff:127.0.0.1]:80".into(), "2 tcp 192.0.2.1:80".into()];
    assert_eq!(guest.denials(), expected);
    for port in 1000..1200 {
        assert!(guest.is_refused(SocketAddr::new([192, 0, 2, 1].into(), port)));
    }
    assert_eq!((guest.denials().len(), guest.count(|c| &c.denied)), (100, 204), "the first are enough");
    let mut guest =
        super::guest(&Config { allow: list(&format!("host.internal:{port}")).unwrap(), ..Config::default() });
    assert!(!guest.is_refused(host(port)));
}

#[test]
fn a_thousand_connections_at_once() {
    limits::raise_open_files();
    let mut guest = guest(&open());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        let mut clients: Vec<TcpStream> = (0..MANY).map(|_| listener.accept().unwrap().0).collect();
        for client in &mut clients {
            client.set_read_timeout(Some(LIMIT)).unwrap();
            let mut word = [0; 4];
            client.read_exact(&mut word).unwrap();
            client.write_all(&word).unwrap();
        }
        clients
    });
    let handles: Vec<_> = (0..MANY).map(|_| guest.connect_with(host(port), 2048)).collect();
    guest.until("all connections", |guest| {
        handles.iter().all(|handle| guest.sockets.get::<tcp::Socket<'_>>(*handle).may_send())
    });
    for (handle, number) in handles.iter().zip(0u32..) {
        guest.tcp(*handle).send_slice(&number.to_be_bytes()).unwrap();
    }
    for (handle, number) in handles.iter().zip(0u32..) {
        assert_eq!(guest.read_exact(*handle, 4), number.to_be_bytes());
    }
    drop(serving.join().unwrap());
    assert_eq!(guest.count(|c| &c.tcp_connections), MANY as u64);
}

#[test]
fn who_does_not_read_makes_the_other_side_wait() {
    let mut guest = guest(&open());
    let (reads, mut told) = std::os::unix::net::UnixStream::pair().unwrap();
    let (port, serving) = server(move |mut client| {
        (&reads).read_exact(&mut [0]).unwrap();
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        all.len()
    });
    let handle = guest.connected(host(port));
    let chunk = content(64 << 10);
    let (mut written, mut still) = (0, Instant::now());
    guest.until("the stream to be full", |guest| {
        let more = guest.tcp(handle).send_slice(&chunk).unwrap();
        written += more;
        if more > 0 {
            still = Instant::now();
        }
        still.elapsed() > Duration::from_millis(300)
    });
    // What the host's sockets, ours and the guest's hold.
    assert!(written < 32 << 20, "{written} bytes went into a stream that nobody reads");
    told.write_all(&[1]).unwrap();
    guest.until("the rest", |guest| guest.tcp(handle).send_queue() == 0);
    guest.tcp(handle).close();
    guest.until("the reader", |_| serving.is_finished());
    assert_eq!(guest.count(|c| &c.sent_bytes), written as u64);
    assert_eq!(serving.join().unwrap(), written);
}

#[test]
fn clients_of_a_published_port_reach_the_guest() {
    let mut guest = guest(&Config { publish: list("0:80+0:81").unwrap(), ..Config::default() });
    let published = guest.counters.published.lock().unwrap().clone();
    let at: Vec<SocketAddr> = published.iter().map(|port| port.listen.parse().unwrap()).collect();
    assert!(at.iter().all(|at| at.ip().is_loopback() && at.port() != 0) && published[0].guest == 80);
    let room = || tcp::SocketBuffer::new(vec![0; 64 << 10]);
    let handle = guest.sockets.add(tcp::Socket::new(room(), room()));
    guest.tcp(handle).listen(80).unwrap();
    // A client that is there before the guest waits for it.
    let client = std::thread::spawn(move || {
        let mut client = TcpStream::connect(at[0]).unwrap();
        client.write_all(b"question").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        let mut refused = TcpStream::connect(at[1]).unwrap();
        (answer, refused.read(&mut [0]).map_err(|e| e.kind()))
    });
    // The guest shows itself.
    let udp = guest.udp(1000);
    guest.sockets.get_mut::<udp::Socket<'_>>(udp).send_slice(b"x", (GATEWAY, 9)).unwrap();
    guest.until("a client", |guest| guest.tcp(handle).is_active());
    assert_eq!(guest.read_to_end(handle), b"question");
    assert_eq!(guest.tcp(handle).remote_endpoint().unwrap().addr, IpAddr::from(GATEWAY).into());
    guest.write_all(handle, &content(100_000));
    guest.tcp(handle).close();
    guest.until("the clients", |_| client.is_finished());
    let (answer, refused) = client.join().unwrap();
    assert!(answer == content(100_000));
    assert_eq!(refused, Err(ErrorKind::ConnectionReset), "nobody listens there");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = taken.local_addr().unwrap();
    let config = Config { publish: list(&format!("{}:80", at.port())).unwrap(), ..Config::default() };
    let error = Stack::new(&config, Arc::default()).err().unwrap().to_string();
    assert!(error.starts_with(&format!("cannot publish {at}: ")) && error.contains("name another port"), "{error}");
}
