//! Network cards of real guests: both ways, whole and in parts, with and without offloads, after a driver's reset; on tap
//! interfaces, which need root, and in a network inside the program, which does not.

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use common::{BOOT, Guest, Session, host};

const KERNEL: &str = "6.12-cloud/vmlinux";
/// Bytes sent each way.
const LEN: usize = 20 << 20;

/// A tap interface with an address of the host, for the time of a test.
struct Tap {
    name: String,
    net: u8,
}

impl Tap {
    fn new(net: u8, options: &[&str]) -> Option<Self> {
        let name = format!("bjt{}x{net}", std::process::id() % 100_000);
        let made = Command::new("ip").args(["tuntap", "add", &name, "mode", "tap"]).args(options).status();
        if !made.is_ok_and(|status| status.success()) {
            println!("\nSKIPPED: only root can make tap interfaces");
            return None;
        }
        let tap = Self { name, net };
        host("ip", &["addr", "add", &format!("{}/24", tap.host()), "dev", &tap.name]);
        host("ip", &["link", "set", &tap.name, "up"]);
        Some(tap)
    }

    fn host(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.net, 1)
    }

    fn guest(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.net, 2)
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.name]).status();
    }
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

/// Sends `content` to who connects first, and returns what the second one sends.
fn serve(at: Ipv4Addr) -> (u16, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind((at, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let serving = std::thread::spawn(move || {
        listener.accept().unwrap().0.write_all(&content()).unwrap();
        let mut received = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut received).unwrap();
        received
    });
    (port, serving)
}

/// A guest on `tap`, with a shell that waits for commands.
fn start(guest: Guest, tap: &Tap, options: &str) -> Session {
    let mut guest = guest.arg("--net", format!("{},{options}", tap.name)).args(["--memory", "256M"]).start();
    guest.expect("belljar-guest: init");
    guest.expect("#");
    guest.shell(&format!(
        "up() {{ until [ -e /sys/class/net/eth0 ]; do usleep 10000; done
        ip link set eth0 up; ip addr add {}/24 dev eth0; ip neigh flush dev eth0; }}; up",
        tap.guest()
    ));
    guest
}

/// Pings both ways.
fn ping(guest: &mut Session, tap: &Tap) {
    let pinged = guest.shell(&format!("ping -c 3 -W 10 {}", tap.host()));
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    host("ping", &["-c", "3", "-W", "10", &tap.guest().to_string()]);
}

/// Sends 20 MB both ways between the guest and `at`, which the guest calls `host`.
fn transfer(guest: &mut Session, at: Ipv4Addr, host: &str) {
    let (port, serving) = serve(at);
    let to = format!("nc {host} {port}");
    let sent = guest.shell(&format!("{to} </dev/null >/tmp/data; {to} </tmp/data; wc -c </tmp/data"));
    assert!(sent.contains(&format!("\n{LEN}\n")), "{sent}");
    // The guest sends back what it received.
    assert!(serving.join().unwrap() == content(), "what came back is not what was sent");
}

fn value(guest: &mut Session, path: &str) -> String {
    let text = guest.shell(&format!("echo v'='$(cat {path})"));
    text.lines().find_map(|line| line.strip_prefix("v=")).unwrap_or_default().to_string()
}

/// Feature bits that were agreed on, as the guest's kernel prints them: bit 0 first.
fn has_checksum_offload(guest: &mut Session) -> bool {
    value(guest, "/sys/class/net/eth0/device/features").starts_with('1')
}

#[test]
fn a_card_on_pci() {
    let guest = guest!(KERNEL);
    let Some(tap) = Tap::new(71, &[]) else { return };
    host("ip", &["link", "set", &tap.name, "mtu", "1400"]);
    let mut guest = start(guest, &tap, "mac=52:54:00:aa:bb:cc");
    assert_eq!(value(&mut guest, "/sys/class/net/eth0/address"), "52:54:00:aa:bb:cc");
    assert_eq!(value(&mut guest, "/sys/class/net/eth0/mtu"), "1400");
    assert!(has_checksum_offload(&mut guest));
    let second = guest!(KERNEL).arg("--net", &tap.name).run();
    second.code(125).says("is busy: another machine uses it");
    assert_eq!(second.errors.lines().count(), 1, "{second}");
    ping(&mut guest, &tap);
    transfer(&mut guest, tap.host(), &tap.host().to_string());
    // The driver goes and comes back: a reset and a second activation.
    guest.shell("rmmod virtio_net && insmod /modules/*-virtio_net.ko && up");
    ping(&mut guest, &tap);
    guest.send("exit");
    guest.finish(BOOT).code(0);
}

#[test]
fn a_card_with_two_queues_on_mmio() {
    let guest = guest!(KERNEL);
    let Some(tap) = Tap::new(72, &["multi_queue"]) else { return };
    let guest = guest.args(["--cpus", "2", "--transport", "mmio"]);
    let mut guest = start(guest, &tap, "queues=2,offload=off,mtu=1280");
    assert_eq!(value(&mut guest, "/sys/class/net/eth0/mtu"), "1280");
    assert!(!has_checksum_offload(&mut guest));
    let queues = guest.shell("ls /sys/class/net/eth0/queues | wc -l");
    assert!(queues.contains("\n4\n"), "{queues}");
    ping(&mut guest, &tap);
    transfer(&mut guest, tap.host(), &tap.host().to_string());
    for cpu in ["1", "2"] {
        let pinged = guest.shell(&format!("taskset {cpu} ping -c 2 -W 10 {}", tap.host()));
        assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    }
    guest.send("exit");
    guest.finish(BOOT).code(0);
}

/// A guest with card number `card` of a switch of its own test, with an address.
fn member(guest: Guest, runtime: &Path, card: u8, options: &str) -> Session {
    let network = format!("switch=lan,mac=52:54:00:00:07:{card:02},{options}");
    let guest = guest.env("XDG_RUNTIME_DIR", &runtime.display().to_string()).arg("--net", network);
    let mut guest = guest.args(["--memory", "256M"]).start();
    guest.expect("belljar-guest: init");
    guest.expect("#");
    guest.shell(&format!(
        "until [ -e /sys/class/net/eth0 ]; do usleep 10000; done; ip link set eth0 up; ip addr add 10.7.0.{card}/24 dev eth0"
    ));
    guest
}

/// Frames of a capture: their lengths, by the rules of the format.
fn captured(path: &Path) -> Vec<usize> {
    let bytes = std::fs::read(path).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((word(0), word(20)), (0xa1b2_3c4d, 1), "nanoseconds, Ethernet");
    let (mut at, mut frames) = (24, Vec::new());
    while at < bytes.len() {
        let len = word(at + 8) as usize;
        assert!(len >= 14 && word(at + 12) as usize == len && at + 16 + len <= bytes.len());
        frames.push(len);
        at += 16 + len;
    }
    frames
}

#[test]
fn machines_on_a_switch_reach_each_other_whoever_leaves() {
    let (first, second) = (guest!(KERNEL), guest!(KERNEL));
    let dir = common::scratch();
    let pcap = dir.path().join("second.pcap");
    let mut first = member(first, dir.path(), 1, "");
    let mut second = member(second, dir.path(), 2, &format!("pcap={}", pcap.display()));
    let make = "dd if=/dev/urandom of=/tmp/data bs=1M count=8 2>/dev/null; echo sum=$(sha256sum </tmp/data)";
    let made = first.shell(make);
    let sum = made.lines().find(|line| line.starts_with("sum=")).unwrap().to_string();
    let pinged = second.shell("ping -c 3 -W 20 10.7.0.1");
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    first.shell("httpd -p 80 -h /tmp");
    let received = second.shell("wget -q -O /tmp/data http://10.7.0.1/data; echo sum=$(sha256sum </tmp/data)");
    assert!(received.contains(&sum), "{sum}: {received}");
    // Who came first ends, another comes: the switch is the same.
    first.send("exit");
    first.finish(BOOT).code(0);
    let mut third = member(guest!(KERNEL), dir.path(), 3, "bw=64M");
    let pinged = third.shell("ping -c 3 -W 20 10.7.0.2");
    assert!(pinged.contains(" 0% packet loss"), "{pinged}");
    for mut guest in [second, third] {
        guest.send("exit");
        guest.finish(BOOT).code(0);
    }
    let frames = captured(&pcap);
    assert!(frames.iter().sum::<usize>() > 8 << 20 && frames.iter().all(|&len| len <= 1514), "{}", frames.len());
    let left = std::fs::read_dir(dir.path().join("belljar-switch/lan")).unwrap().count();
    assert_eq!(left, 0, "sockets stay behind");
}

/// What udhcpc does with what it hears.
const DHCP: &str = r#"mkdir -p /etc; cat >/tmp/lease <<'E'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev eth0; ip route add default via $router; echo "nameserver $dns" >/etc/resolv.conf
E
chmod +x /tmp/lease; until [ -e /sys/class/net/eth0 ]; do usleep 10000; done
ip link set lo up; ip link set eth0 up; udhcpc -i eth0 -n -q -s /tmp/lease"#;

#[test]
fn a_network_inside_the_program() {
    let guest = guest!(KERNEL);
    let (closed, published) = {
        let free = [(); 2].map(|()| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let [closed, published] = free.map(|listener| listener.local_addr().unwrap().port());
        (closed, published)
    };
    let network = format!("user,host=on,publish={published}:80");
    let mut guest = guest.args(["--net", &network, "--memory", "256M"]).start();
    guest.expect("belljar-guest: init");
    guest.expect("#");
    let leased = guest.shell(DHCP);
    assert!(leased.contains("lease of 10.0.2.15 obtained from 10.0.2.2"), "{leased}");
    assert_eq!(value(&mut guest, "/sys/class/net/eth0/mtu"), "65520");
    assert!(has_checksum_offload(&mut guest));
    // The guest asks for routers a moment after the card is up.
    guest.shell("until ping -c 1 -W 10 fd62:656c:6c6a::2; do sleep 1; done");
    let pinged = guest.shell("ping -c 2 -W 10 10.0.2.2; ping -c 2 -W 10 fd62:656c:6c6a::2");
    assert_eq!(pinged.matches(" 0% packet loss").count(), 2, "{pinged}");
    // By its name.
    transfer(&mut guest, Ipv4Addr::LOCALHOST, "host.internal");
    let refused = guest.shell(&format!("nc 10.0.2.2 {closed} </dev/null; echo v=$?"));
    assert!(refused.contains("\nv=1\n"), "{refused}");
    guest.send("echo lis''tening; echo from the guest | nc -l -p 80; echo ser''ved");
    guest.expect("listening");
    let mut answer = String::new();
    // Until the guest's server listens it refuses.
    while answer.is_empty() {
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, published)).unwrap();
        client.set_read_timeout(Some(BOOT)).unwrap();
        if client.read_to_string(&mut answer).is_err() {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
    assert_eq!(answer, "from the guest\n");
    guest.expect("served");
    // The driver goes and comes back.
    guest.shell("rmmod virtio_net && insmod /modules/*-virtio_net.ko");
    let leased = guest.shell(DHCP);
    assert!(leased.contains("lease of 10.0.2.15"), "{leased}");
    guest.send("exit");
    guest.finish(BOOT).code(0);
}
