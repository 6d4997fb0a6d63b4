//! `belljar run --net user` as people use it: a package manager behind rules. Nothing here depends on the engine.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use common::BOOT;
use common::run::Runner;

/// A server on the loopback that gives `files`, for as long as the test runs: its port.
fn serve(files: Vec<(String, Vec<u8>)>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (port, files) = (listener.local_addr().unwrap().port(), Arc::new(files));
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let files = files.clone();
            std::thread::spawn(move || answer(client.unwrap(), &files));
        }
    });
    port
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

#[test]
fn apt_updates_from_a_server_of_the_host() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    if !Command::new("apt-get").arg("--version").output().is_ok_and(|output| output.status.success()) {
        println!("\nSKIPPED: no apt-get here");
        return;
    }
    let package = "Package: belljar-probe\nVersion: 1.0\nArchitecture: all\nMaintainer: nobody <nobody@example.org>\n\
                   Filename: ./belljar-probe.deb\nSize: 1\nDescription: seen from a guest\n";
    let port = serve(vec![("/debian/./Packages".into(), package.into()), ("/debian/Packages".into(), package.into())]);
    let script = format!(
        "echo 'deb [trusted=yes] http://host.internal:{port}/debian ./' >/tmp/list
        apt=\"-o Dir::Etc::sourcelist=/tmp/list -o Dir::Etc::sourceparts=- -o APT::Sandbox::User=root\"
        mkdir -p /tmp/lists/partial; apt=\"$apt -o Dir::State::lists=/tmp/lists -o Dir::Cache::archives=/tmp\"
        apt-get $apt update >/tmp/messages 2>&1 || cat /tmp/messages; apt-cache $apt show belljar-probe | grep Description"
    );
    let runner = runner.with(&["--allow", &format!("host.internal:{port}")]);
    let mut session = runner.limit(200).start(&["sh", "-c", &script]);
    session.close_input();
    let outcome = session.finish(Duration::from_secs(210));
    outcome.code(0).shows("seen from a guest");
}
