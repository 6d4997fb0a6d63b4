//! `belljar run --net user` as people use it: downloads, many connections, names, a package manager; what is refused is
//! told. Nothing here depends on the engine.

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::run::Runner;
use common::{BOOT, asset, host, scratch};

/// Bytes of the download.
const LEN: usize = 100_000_000;

/// A server on the loopback that gives `/data` and what is in `files`, for as long as the test runs.
fn serve(files: Vec<(String, Vec<u8>)>) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (port, served) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let (count, files) = (served.clone(), Arc::new(files));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (count, files) = (count.clone(), files.clone());
            std::thread::spawn(move || answer(client.unwrap(), &files).map(|()| count.fetch_add(1, Ordering::Relaxed)));
        }
    });
    (port, served)
}

fn answer(mut client: TcpStream, files: &[(String, Vec<u8>)]) -> std::io::Result<()> {
    client.set_read_timeout(Some(BOOT))?;
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    // The rest of the request ends with an empty line.
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let path = request.split(' ').nth(1).unwrap_or_default();
    let found = files.iter().find(|(name, _)| name == path).map(|(_, content)| content.as_slice());
    let (status, content) = found.map_or(("404 Not Found", &b""[..]), |content| ("200 OK", content));
    let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", content.len());
    client.write_all(head.as_bytes())?;
    client.write_all(content)
}

/// Bytes that do not repeat soon.
fn content() -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 32) as u32
    };
    (0..LEN / 4).flat_map(|_| next().to_le_bytes()).collect()
}

/// A resolver that says 192.0.2.7 to whatever it is asked for an IPv4 address, and nothing else.
fn resolver() -> u16 {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = socket.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut room = [0; 1500];
        while let Ok((len, client)) = socket.recv_from(&mut room) {
            // The question alone, without what may follow it (RFC 1035, section 4.1).
            let end = 12 + room[12..len].iter().position(|byte| *byte == 0).unwrap() + 5;
            let wants_ipv4 = room[end - 4..end - 2] == [0, 1];
            let mut answer = room[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, wants_ipv4.into(), 0, 0, 0, 0]);
            if wants_ipv4 {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            }
            socket.send_to(&answer, client).unwrap();
        }
    });
    port
}

#[test]
fn downloads_many_connections_and_names() {
    let (Some(runner), Some(busybox)) = (Runner::new("6.12-cloud"), asset("busybox")) else { return };
    let dir = scratch();
    let report = dir.path().join("report.json");
    fs::copy(busybox, dir.path().join("busybox")).unwrap();
    let content = content();
    fs::write(dir.path().join("data"), &content).unwrap();
    let sum = host("sha256sum", &[dir.path().join("data").to_str().unwrap()]);
    let sum = sum.split(' ').next().unwrap();
    let (port, served) = serve(vec![("/data".into(), content), ("/one".into(), b"1".to_vec())]);
    let closed = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let script = format!(
        "PATH=/mnt:$PATH; b='busybox wget -q -O - http://host.internal:{port}'
        echo \"sum=$($b/data | sha256sum | cut -d' ' -f1)\"
        n=0; while [ $n -lt 40 ]; do n=$((n + 1)); (m=0; while [ $m -lt 25 ]; do m=$((m + 1)); $b/one; done) & done >/tmp/ones
        wait; echo \"ones=$(wc -c </tmp/ones)\"
        busybox nslookup far.example 10.0.2.3 | grep -q 192.0.2.7 && echo name=found
        echo x | busybox nc -u -w 5 10.0.2.2 {closed} 2>/dev/null; echo \"udp=$?\"; true"
    );
    let network = format!("user,host=on,dns=127.0.0.1:{}", resolver());
    let runner =
        runner.arg("--net", network).arg("--report", &report).arg("-v", format!("{}:/mnt:ro", dir.path().display()));
    let mut session = runner.limit(280).start(&["sh", "-c", &script]);
    session.close_input();
    let outcome = session.finish(Duration::from_secs(290));
    outcome.code(0).has("sum", sum).has("ones", "1000").has("name", "found").has("udp", "1");
    assert_eq!(served.load(Ordering::Relaxed), 1001);
    let report: serde_json::Value = serde_json::from_slice(&fs::read(report).unwrap()).unwrap();
    let counted = &report["devices"]["net0"]["user"];
    assert_eq!(counted["tcp_connections"].as_u64(), Some(1001), "{counted}");
    assert!(counted["received_bytes"].as_u64().is_some_and(|bytes| bytes >= LEN as u64), "{counted}");
}

#[test]
fn apt_updates_from_a_server_of_the_host() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    if !Command::new("apt-get").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("\nSKIPPED: no apt-get here");
        return;
    }
    let package = "Package: belljar-probe\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n\
                   Filename: ./belljar-probe.deb\nSize: 1\nDescription: seen from a guest\n";
    let (port, _) =
        serve(vec![("/debian/./Packages".into(), package.into()), ("/debian/Packages".into(), package.into())]);
    let script = format!(
        "echo 'deb [trusted=yes] http://host.internal:{port}/debian ./' >/tmp/list
        apt=\"-o Dir::Etc::sourcelist=/tmp/list -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root\"
        mkdir -p /tmp/lists/partial; apt=\"$apt -o Dir::State::lists=/tmp/lists -o Dir::Cache::archives=/tmp\"
        apt-get $apt update >/tmp/messages 2>&1 || cat /tmp/messages; apt-cache $apt show belljar-probe | grep Description"
    );
    // What another network may not reach is in the messages, not in the result.
    let runner = runner.with(&["--allow", &format!("host.internal:{port}")]);
    let mut session = runner.limit(200).start(&["sh", "-c", &script]);
    session.close_input();
    let outcome = session.finish(Duration::from_secs(210));
    outcome.code(0).shows("seen from a guest");
}
