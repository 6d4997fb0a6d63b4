//! The DNS relay, with a resolver of the test's own.

use std::net::UdpSocket;

use super::*;
use crate::net::user::dns::message::tests::ask;

const A: u16 = 1;

/// A resolver that says that every name is at `address`, for so many questions; returns the names it was asked for.
fn resolver(address: Ipv4Addr, questions: usize) -> (SocketAddr, JoinHandle<Vec<Vec<u8>>>) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listener = TcpListener::bind(socket.local_addr().unwrap()).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let at = socket.local_addr().unwrap();
    let answer = move |question: &[u8]| {
        let mut answer = question.to_vec();
        (answer[2], answer[3], answer[7]) = (0x81, 0x80, 1);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend(address.octets());
        answer
    };
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut len) = (client.unwrap(), [0; 2]);
            while client.read_exact(&mut len).is_ok() {
                let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
                client.read_exact(&mut question).unwrap();
                let answer = answer(&question);
                client.write_all(&(answer.len() as u16).to_be_bytes()).unwrap();
                client.write_all(&answer).unwrap();
            }
        }
    });
    let thread = std::thread::spawn(move || {
        let mut names = Vec::new();
        for _ in 0..questions {
            let mut room = [0; 512];
            let (len, from) = socket.recv_from(&mut room).unwrap();
            names.push(room[12..len - 4].to_vec());
            // First an answer to something that was not asked.
            let mut wrong = answer(&room[..len]);
            wrong[0] ^= 0xff;
            socket.send_to(&wrong, from).unwrap();
            socket.send_to(&answer(&room[..len]), from).unwrap();
        }
        names
    });
    (at, thread)
}

/// Asks the relay; returns the answer.
fn query(guest: &mut Guest, handle: SocketHandle, message: &[u8]) -> Vec<u8> {
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(message, (DNS, 53)).unwrap();
    let (answer, from) = guest.datagram(handle);
    assert_eq!(from, SocketAddr::new(DNS.into(), 53));
    assert_eq!(answer[..2], message[..2], "the identifier is the guest's");
    answer
}

#[test]
fn the_relay_asks_the_resolver() {
    let (at, thread) = resolver(Ipv4Addr::new(192, 0, 2, 9), 2);
    let mut guest = guest(&Config { dns: Some(at), ..Config::default() });
    let handle = guest.udp(1053);
    for (id, name) in [(5, "one.example"), (6, "two.example")] {
        let answer = query(&mut guest, handle, &ask(id, name, A));
        assert_eq!((answer[3] & 15, &answer[answer.len() - 4..]), (0, &[192, 0, 2, 9][..]));
    }
    assert_eq!(thread.join().unwrap().len(), 2);
    assert_eq!(guest.count(|c| &c.dns_queries), 2);
}

#[test]
fn the_host_has_names_of_its_own() {
    let mut guest = guest(&Config { dns: Some("127.0.0.1:1".parse().unwrap()), ..Config::default() });
    let handle = guest.udp(1053);
    for name in ["host.internal", "Gateway.Internal"] {
        let answer = query(&mut guest, handle, &ask(1, name, A));
        assert_eq!((answer[3] & 15, &answer[answer.len() - 4..]), (0, &[10, 0, 2, 2][..]));
    }
    let none = query(&mut guest, handle, &ask(1, "host.internal", 28));
    assert_eq!((none[3] & 15, none[7]), (0, 0), "there is no address of version 6, and no error");
}

#[test]
fn without_a_resolver_the_answer_is_quick() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut guest = guest(&Config { dns: Some(closed), ..Config::default() });
    let handle = guest.udp(1053);
    assert_eq!(query(&mut guest, handle, &ask(1, "a.example", A))[3] & 15, 2, "SERVFAIL");
    // One that never answers is given up before the guest loses patience.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut guest = super::guest(&Config { dns: Some(silent.local_addr().unwrap()), ..Config::default() });
    let handle = guest.udp(1053);
    assert_eq!(query(&mut guest, handle, &ask(1, "a.example", A))[3] & 15, 2);
}

#[test]
fn names_are_answered_over_tcp_too() {
    let (at, _thread) = resolver(Ipv4Addr::new(192, 0, 2, 9), 0);
    let mut guest = guest(&Config { dns: Some(at), ..Config::default() });
    let handle = guest.connected(SocketAddr::new(DNS.into(), 53));
    let names = ["host.internal", "a.example", "b.example", "host.internal"];
    for name in names {
        let message = ask(3, name, A);
        guest.write_all(handle, &(message.len() as u16).to_be_bytes());
        guest.write_all(handle, &message);
    }
    for name in names {
        let len = guest.read_exact(handle, 2);
        let answer = guest.read_exact(handle, usize::from(u16::from_be_bytes([len[0], len[1]])));
        let expected = if name == "host.internal" { [10, 0, 2, 2] } else { [192, 0, 2, 9] };
        assert_eq!(answer[answer.len() - 4..], expected, "{name}");
    }
    guest.tcp(handle).close();
    assert!(guest.read_to_end(handle).is_empty());
}

#[test]
fn rules_by_name_permit_what_the_relay_answered() {
    let (port, serving) = server(drop);
    // TEST-NET: nobody is there, but what matters is that it is tried.
    let (at, thread) = resolver(Ipv4Addr::new(192, 0, 2, 9), 1);
    let allow = list(&format!("good.example+host.internal:{port}")).unwrap();
    let mut guest = guest(&Config { dns: Some(at), allow, ..Config::default() });
    let handle = guest.udp(1053);
    let there = "192.0.2.9:80".parse().unwrap();
    assert!(guest.is_refused(there));
    assert_eq!(guest.count(|c| &c.denied), 1);
    assert_eq!(query(&mut guest, handle, &ask(1, "bad.example", A))[3] & 15, 5, "REFUSED");
    assert_eq!(guest.count(|c| &c.denied), 2);
    assert_eq!(query(&mut guest, handle, &ask(1, "good.example", A))[3] & 15, 0);
    assert_eq!(thread.join().unwrap().len(), 1, "the resolver never saw the other name");
    guest.connect(there);
    guest.poll();
    assert_eq!(guest.count(|c| &c.denied), 2, "now it may");
    assert_eq!(guest.denials(), ["1 name bad.example", "1 tcp 192.0.2.9:80"]);
    assert!(!guest.is_refused(host(port)));
    serving.join().unwrap();
}
