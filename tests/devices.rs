//! Devices of real guests: every kind on both transports, in use, given up by their drivers and taken again; consoles.

mod common;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{BOOT, Guest, Outcome, Session, Talk, scratch};
use tempfile::TempDir;

const KERNEL: &str = "6.12-cloud/vmlinux";

/// What a guest does with each device. Prints what it saw as KEY=VALUE.
const USE: &str = "
    use() {
        for n in 1 2; do head -c 4096 /dev/hwrng >/tmp/random.$n; done
        cmp -s /tmp/random.1 /tmp/random.2 || echo rng$1=$(gzip -c /tmp/random.1 | wc -c)
        dd if=/tmp/random.1 of=/dev/vda bs=4k oflag=direct 2>/dev/null
        dd if=/dev/vda bs=4k count=1 iflag=direct 2>/dev/null | cmp - /tmp/random.1 && echo disk$1=same
        at=$(grep -lx org.test.port /sys/class/virtio-ports/*/name); at=${at%/name}
        exec 3<>/dev/${at##*/}
        echo hello $1 >&3; read -r line <&3; exec 3>&-
        echo port$1=$line
        echo text $1 >/dev/hvc0 && echo console$1=open
        head -c 300000 /dev/urandom >/tmp/message
        guest-tool connect 2 52 </tmp/message | cmp - /tmp/message && echo vsock$1=same
        guest-tool echo 1024
    }
    list() {
        for at in /sys/bus/virtio/devices/*; do
            echo device=$(cat $at/device) $(basename $(readlink $at/driver)) \
                $(grep -c ${at##*/} /proc/interrupts) $(basename $(dirname $(readlink -f $at))) .
        done
    }
    again() {
        for at in /sys/bus/virtio/drivers/*/virtio*; do
            [ -e $at/device ] || continue
            echo ${at##*/} >${at%/*}/unbind
            echo ${at##*/} >${at%/*}/bind
        done
    }
";

/// A machine with every device. The virtio console goes to a file, the test talks by the serial port.
fn every_device(transport: &str) -> Option<(Guest, TempDir)> {
    let (guest, dir) = (Guest::new(KERNEL)?, scratch());
    let path = |name: &str| dir.path().join(name).display().to_string();
    File::create(dir.path().join("disk")).unwrap().set_len(1 << 20).unwrap();
    let guest = guest.with_tool().args(["--transport", transport, "--serial", "stdio", "--rng"]);
    let guest = guest.arg("--console", format!("file={}", path("console"))).arg("--disk", path("disk"));
    let guest = guest.arg("--port", format!("org.test.port,to=socket={}", path("port")));
    let guest = guest.arg("--vsock", path("vsock")).args(["--balloon", "size=16M,stats=1,free-page-reporting"]);
    Some((guest.append("console=ttyS0"), dir))
}

/// Sends back what comes.
fn echo(mut client: UnixStream) {
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    client.write_all(&received).unwrap();
}

/// Has the guest's port 1024 send back what it gets.
fn through_vsock(socket: &Path) {
    let mut client = UnixStream::connect(socket).unwrap();
    client.set_read_timeout(Some(BOOT)).unwrap();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let mut answer = BufReader::new(client.try_clone().unwrap());
    let mut line = String::new();
    answer.read_line(&mut line).unwrap();
    assert!(line.starts_with("OK "), "{line:?}");
    let message: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let copy = message.clone();
    let sending = std::thread::spawn(move || {
        client.write_all(&copy).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    answer.read_to_end(&mut received).unwrap();
    sending.join().unwrap();
    assert!(received == message, "{} bytes came back, not what was sent", received.len());
}

fn try_every_device(transport: &str, parent: &str) -> Option<Outcome> {
    let (guest, dir) = every_device(transport)?;
    let script = "list; use 1; again; use 2; list | sed s/device/later/; guest-tool exit 42; sleep 100";
    let listener = UnixListener::bind(dir.path().join("vsock_52")).unwrap();
    std::thread::spawn(move || listener.incoming().for_each(|client| echo(client.unwrap())));
    let mut guest = guest.script(&[USE, script].concat()).start();
    let mut port = Talk::connect(&dir.path().join("port"));
    for round in ["1", "2"] {
        port.expect(&format!("hello {round}\n"));
        port.send(&format!("answer {round}"));
        guest.expect(&format!("console{round}=open"));
        guest.expect("guest-tool: listening");
        through_vsock(&dir.path().join("vsock"));
    }
    let outcome = guest.finish(BOOT);
    outcome.code(42);
    for round in ["1", "2"] {
        outcome.has(&format!("disk{round}"), "same").has(&format!("port{round}"), &format!("answer {round}"));
        outcome.has(&format!("vsock{round}"), "same");
        let random: u32 = outcome.value(&format!("rng{round}")).parse().unwrap();
        assert!(random > 4096, "random bytes do not compress\n{outcome}");
    }
    for when in ["device", "later"] {
        for (id, driver, count) in [
            (2, "virtio_blk", 1),
            (3, "virtio_console", 2),
            (4, "virtio_rng", 1),
            (5, "virtio_balloon", 1),
            (19, "vmw_vsock_virtio_transport", 1),
        ] {
            let start = format!("{when}={id:#06x} {driver} ");
            let found: Vec<_> = outcome.console.lines().filter_map(|line| line.strip_prefix(&start)).collect();
            assert_eq!(found.len(), count, "{start}\n{outcome}");
            for rest in found {
                assert!(!rest.starts_with('0') && rest.contains(parent), "interrupts and parent: {rest}\n{outcome}");
            }
        }
    }
    let console = fs::read_to_string(dir.path().join("console")).unwrap();
    assert!(console.contains("text 1\r\n") && console.contains("text 2\r\n"), "{console}");
    Some(outcome)
}

#[test]
fn every_device_on_pci() {
    let Some(outcome) = try_every_device("pci", "0000:00:") else { return };
    outcome.says("42");
}

#[test]
fn every_device_on_mmio() {
    try_every_device("mmio", "LNRO0005:");
}

/// A terminal that belljar made, from the user's side.
fn terminal(path: &Path) -> Talk {
    let file = File::options().read(true).write(true).open(path).unwrap();
    Talk::over(file)
}

#[test]
fn consoles_on_a_socket_and_a_terminal_and_in_the_log() {
    let (guest, dir) = (guest!(KERNEL), scratch());
    let (socket, log) = (dir.path().join("console"), dir.path().join("log"));
    let guest = guest.arg("--console", format!("socket={}", socket.display())).args(["--serial", "pty"]);
    let mut guest = guest.arg("--log", &log).start();
    let mut console = Talk::connect(&socket);
    guest.hear("serial0 is at ");
    let mut serial = terminal(&PathBuf::from(guest.hear_until("\n")));
    console.expect("#");
    assert!(console.shell("echo $((6 * 7))").contains("\n42\n"));
    assert!(console.shell("tty").contains("hvc0") || console.seen.contains("/dev/console"));
    console.shell("(setsid sh -i </dev/ttyS0 >/dev/ttyS0 2>&1 &)");
    serial.expect("#");
    assert!(serial.shell("echo $((6 * 8))").contains("\n48\n"));
    // The client leaves and comes back; what it missed is lost, the guest is not.
    drop(console);
    assert!(serial.shell("echo while away >/dev/hvc0; echo $((6 * 9))").contains("\n54\n"));
    let mut console = Talk::connect(&socket);
    assert!(console.shell("echo $((7 * 7))").contains("\n49\n"));
    console.send("exit");
    let outcome = guest.finish(BOOT);
    outcome.code(0);
    let log = fs::read_to_string(log).unwrap();
    for text in ["\n42\r\n", "\n48\r\n", "while away\r\n", "\n54\r\n", "\n49\r\n"] {
        assert!(log.contains(text), "no {text:?} in the log:\n{log}");
    }
}

/// MiB of memory that belljar has at present.
fn resident(guest: &Session) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", guest.child.id())).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next());
    kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap() / 1024
}

/// Waits until it has less than `mib`.
fn shrinks_below(guest: &Session, mib: u64) {
    let limit = Instant::now() + Duration::from_secs(60);
    while resident(guest) >= mib {
        assert!(Instant::now() < limit, "{} MiB are resident, not less than {mib}:\n{}", resident(guest), guest.seen);
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Fills and frees most of the guest's memory.
const FILL: &str = "fill() { dd if=/dev/zero of=/dev/shm/data bs=1M count=130 2>/dev/null; }\n";

#[test]
fn memory_that_the_guest_frees_comes_back() {
    let script = "fill; echo; echo used; read; rm /dev/shm/data; echo; echo freed; read";
    let dir = scratch();
    let report = dir.path().join("report");
    let guest = guest!(KERNEL).args(["--memory", "320M", "--balloon", "stats=1,free-page-reporting"]);
    let guest = guest.arg("--report", &report);
    let guest = guest.env("BELLJAR_LOG", "warn,belljar::devices::balloon=debug");
    let mut guest = guest.script(&[FILL, script].concat()).start();
    guest.expect("\nused");
    guest.hear("free-bytes");
    let used = resident(&guest);
    assert!((130..320).contains(&used), "{used} MiB are resident");
    guest.send("");
    guest.expect("\nfreed");
    shrinks_below(&guest, used - 100);
    guest.send("");
    guest.finish(BOOT).code(0);
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&report).unwrap()).unwrap();
    let balloon = &report["devices"]["balloon0"];
    assert!(balloon["reported_bytes"].as_u64().unwrap() >= 100 << 20, "{balloon}");
    assert!(balloon["guest"]["total_bytes"].as_u64().unwrap() > 250 << 20, "{balloon}");
}

#[test]
fn a_balloon_makes_the_guest_smaller() {
    let script = "
        rmmod virtio_balloon; fill; rm /dev/shm/data; echo; echo full; read
        insmod /modules/*-virtio_balloon.ko; echo; echo asked; read
        rmmod virtio_balloon; fill && echo; echo taken again";
    let guest = guest!(KERNEL).args(["--memory", "320M", "--balloon", "200M"]);
    let mut guest = guest.script(&[FILL, script].concat()).start();
    guest.expect("\nfull");
    let full = resident(&guest);
    assert!((130..320).contains(&full), "{full} MiB are resident");
    guest.send("");
    guest.expect("\nasked");
    shrinks_below(&guest, full - 50);
    guest.send("");
    guest.finish(BOOT).code(0).shows("taken again");
}
