//! A whole distribution: Debian with systemd from its root disk to the login prompt, at work, and down again in order.

mod common;

use std::time::Duration;

use common::{Guest, Session, asset};
use rustix::process::Signal;

/// A distribution under two layers of emulation takes its time.
const LIMIT: u64 = 240;

/// Boots it to a root shell, and until all is started and nothing has failed. The image stays as it is.
fn login(arguments: &[&str]) -> Option<Session> {
    let (guest, rootfs) = (Guest::new("6.12-cloud")?, asset("rootfs-systemd")?);
    let disk = format!("{},snapshot,serial=root", rootfs.display());
    let guest = guest.limit(LIMIT).args(["--disk", &disk, "--memory", "1G"]).args(arguments);
    let mut session = guest.append("root=/dev/vda systemd.show_status=no").start();
    session.expect("belljar login:");
    session.send("root");
    session.expect("root@belljar:");
    // A shell that prints nothing but what it is told to.
    session.send("exec env PS1='sh''# ' dash");
    session.expect("sh# ");
    let state = session.shell("systemctl is-system-running --wait; systemctl --failed --no-legend --plain");
    assert!(state.contains("running\nat-end 0"), "{state}");
    Some(session)
}

#[test]
fn debian_works_and_powers_off() {
    let Some(mut debian) = login(&["--rng", "--console", "stdio"]) else { return };
    let disk = debian.shell("readlink -f /dev/disk/by-id/virtio-root; findmnt -no SOURCE /; systemd-detect-virt");
    assert!(disk.contains("/dev/vda\n/dev/vda\nkvm\n"), "{disk}");
    debian.shell("dd if=/dev/urandom of=/var/tmp/data bs=1M count=16 conv=fsync; sync");
    let clock = debian.shell("date +%s=");
    let guest: u64 = clock.split(['\n', '=', ' ']).find_map(|word| word.parse().ok()).unwrap();
    let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(host.abs_diff(guest) < 30, "the guest's clock says {guest}, the host's {host}");
    debian.send("systemctl poweroff");
    debian.finish(Duration::from_secs(LIMIT + 10)).code(0);
}

#[test]
fn sigterm_is_the_power_button() {
    let Some(debian) = login(&[]) else { return };
    debian.signal(Signal::TERM);
    let outcome = debian.finish(Duration::from_secs(LIMIT + 10));
    outcome.code(0).shows("reboot: Power down");
}
