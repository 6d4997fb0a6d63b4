//! DHCP, UDP, published UDP ports.

use std::net::UdpSocket;

use super::*;

fn send(guest: &mut Guest, handle: SocketHandle, to: SocketAddr, bytes: &[u8]) {
    guest.sockets.get_mut::<udp::Socket<'_>>(handle).send_slice(bytes, to).unwrap();
    guest.until("sending", |guest| guest.sockets.get::<udp::Socket<'_>>(handle).send_queue() == 0);
}

fn bound() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, host(port))
}

#[test]
fn dhcp_gives_the_address_the_gateway_and_the_resolver() {
    let mut guest = guest(&Config::default());
    guest.interface.update_ip_addrs(|addresses| addresses.clear());
    let handle = guest.sockets.add(dhcpv4::Socket::new());
    let mut given = None;
    guest.until("DHCP", |guest| {
        if let Some(dhcpv4::Event::Configured(config)) = guest.sockets.get_mut::<dhcpv4::Socket<'_>>(handle).poll() {
            given = Some((config.address.to_string(), config.router, config.dns_servers.to_vec()));
        }
        given.is_some()
    });
    assert_eq!(given.unwrap(), ("10.0.2.15/24".to_string(), Some(GATEWAY), vec![DNS]));
}

#[test]
fn datagrams_go_and_come_back() {
    let mut guest = guest(&open());
    let handle = guest.udp(5000);
    let (server, to) = bound();
    for len in [1, 0, 1472, 9000, 65_400] {
        send(&mut guest, handle, to, &content(len));
        let mut room = vec![0; 70_000];
        let (received, from) = server.recv_from(&mut room).unwrap_or_else(|e| panic!("{len}: {e}"));
        assert!(room[..received] == content(len), "{len}");
        server.send_to(&room[..received], from).unwrap();
        let (back, from) = guest.datagram(handle);
        assert!(back == content(len) && from == to, "{len}");
    }
    assert_eq!(guest.count(|c| &c.udp_flows), 1);
    // Somebody else cannot answer.
    let (stranger, _) = bound();
    send(&mut guest, handle, to, b"x");
    let (_, from) = server.recv_from(&mut [0; 10]).unwrap();
    stranger.send_to(b"stranger", from).unwrap();
    server.send_to(b"server", from).unwrap();
    assert_eq!(guest.datagram(handle).0, b"server");
}

#[test]
fn clients_of_a_published_udp_port_reach_the_guest() {
    let mut guest = guest(&Config { publish: list("0:53/udp").unwrap(), ..Config::default() });
    let at: SocketAddr = guest.counters.published.lock().unwrap()[0].listen.parse().unwrap();
    let handle = guest.udp(53);
    send(&mut guest, handle, host(9), b"here I am");
    let clients = [bound().0, bound().0];
    for (client, word) in clients.iter().zip([b"one", b"two"]) {
        client.send_to(word, at).unwrap();
    }
    for _ in &clients {
        let (word, from) = guest.datagram(handle);
        assert_eq!(from.ip(), IpAddr::from(GATEWAY));
        send(&mut guest, handle, from, &word);
    }
    for (client, word) in clients.iter().zip([b"one", b"two"]) {
        let mut room = [0; 10];
        let (len, from) = client.recv_from(&mut room).unwrap();
        assert_eq!((&room[..len], from), (&word[..], at));
    }
}

#[test]
fn flows_are_bounded() {
    let mut guest = guest(&open());
    let (_server, to) = bound();
    for port in 2000..3500 {
        let handle = guest.udp(port);
        send(&mut guest, handle, to, b"x");
        guest.sockets.remove(handle);
    }
    assert_eq!(guest.count(|c| &c.udp_flows), 1500);
    assert_eq!(guest.count(|c| &c.over_limit), 1500 - 1024);
}
