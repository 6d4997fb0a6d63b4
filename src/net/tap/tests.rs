//! Real tap interfaces, each test in a network of its own: they need root, `/dev/net/tun` and `ip`.

use std::process::Command;
use std::time::Duration;

use super::*;
use crate::devices::{self, Options};

/// Runs `test` in a network of its own, if that can be had here.
pub(crate) fn in_own_network(test: impl FnOnce() + Send + 'static) {
    let (sender, done) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let able = tun::open().is_ok() && Command::new("ip").arg("-V").output().is_ok() && tun::own_network();
        if able {
            test();
        }
        sender.send(able).unwrap();
    });
    match done.recv_timeout(Duration::from_secs(60)) {
        Ok(true) => {}
        Ok(false) => eprintln!("\nSKIPPED: a tap test needs root, {} and the `ip` command", tun::DEVICE),
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("the test takes too long"),
        Err(_) => thread.join().unwrap(),
    }
}

pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

fn refusal(name: &str, queues: usize) -> String {
    Tap::open(name, queues).unwrap_err().to_string()
}

#[test]
fn names_are_checked_before_anything_is_opened() {
    assert_eq!(check_name("vm-tap0"), Ok(()));
    for bad in ["", "a/b", "a b", "..", "sixteen-letters!"] {
        assert!(check_name(bad).is_err(), "{bad}");
    }
    let long = Tap::open("sixteen-letters!", 1).map(drop);
    assert!(matches!(long, Err(Error::Other(..) | Error::Driver(..))), "{long:?}");
}

#[test]
fn state_and_queues_are_those_of_the_interface() {
    in_own_network(|| {
        ip("tuntap add t0 mode tap");
        ip("link set t0 mtu 1400");
        let tap = Tap::open("t0", 1).unwrap();
        assert_eq!((tap.queues.len(), tap.mtu, tap.up), (1, 1400, false));
        drop(tap);
        ip("link set t0 up");
        let tap = Tap::open("t0", 1).unwrap();
        assert!(tap.up);
        assert_eq!(refusal("t0", 1), "tap `t0` is busy: another machine uses it; create one tap for each machine");
        drop(tap);
        let one = refusal("t0", 2);
        assert!(one.contains("was made for one queue") && one.contains("multi_queue user $USER"), "{one}");
        ip("tuntap add t1 mode tap multi_queue");
        assert_eq!(Tap::open("t1", 1).unwrap().queues.len(), 1, "one queue of many");
        let tap = Tap::open("t1", 3).unwrap();
        for on in [false, false, true, true] {
            tap.queues[2].set_enabled(on).unwrap();
        }
        let other = refusal("lo", 1);
        assert!(other.contains("not a tap"), "{other}");
        let missing = refusal("fresh", 1);
        assert!(missing.contains("does not exist; create it: ip tuntap add fresh mode tap user $USER;"), "{missing}");
        assert!(refusal("fresh", 2).contains("mode tap multi_queue user"), "with several queues");
    });
}

#[test]
fn offloads_are_as_the_guest_wishes() {
    in_own_network(|| {
        ip("tuntap add t0 mode tap");
        let tap = Tap::open("t0", 1).unwrap();
        for features in [0, u64::MAX, 1 << VIRTIO_NET_F_GUEST_TSO4, 1 << VIRTIO_NET_F_GUEST_CSUM] {
            tap.queues[0].set_offload(features).unwrap();
        }
        tap.queues[0].drain();
    });
    assert_eq!(offload_flags(1 << VIRTIO_NET_F_GUEST_TSO4), 0, "nothing without checksums");
    let segments = 1 << VIRTIO_NET_F_GUEST_CSUM | 1 << VIRTIO_NET_F_GUEST_TSO6 | 1 << VIRTIO_NET_F_GUEST_ECN;
    assert_eq!(offload_flags(segments), libc::TUN_F_CSUM | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN);
}

#[test]
fn errors_tell_the_remedy() {
    let perm = || io::Error::from_raw_os_error(libc::EPERM);
    let missing = explain("no-such-tap", true, perm()).to_string();
    assert!(missing.contains("ip tuntap add no-such-tap mode tap multi_queue user $USER; ip link set"), "{missing}");
    assert!(explain("lo", false, perm()).to_string().contains("belongs to another user"));
    let spec = devices::kind("net").unwrap();
    let parsed = spec.parse(&mut Options::from_flag("net", spec.keys(), "sixteen-letters!").unwrap());
    assert!(parsed.unwrap_err().to_string().starts_with("--net: tap=`sixteen-letters!` is too long"));
}
