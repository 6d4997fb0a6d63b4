//! A tap interface of the host: one end of an Ethernet cable, the other end of which is the guest's.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use rustix::io::Errno;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use crate::host::tun;
use crate::host::vectored::{self, IoBuf};
use crate::net::{Backend, HEADER_LEN};

/// Packets dropped at once by [`Backend::drain`]: at least the usual length of the interface's queue (1000), and an
/// end for a sender that is as fast as we.
const MOST_DRAINED: usize = 2048;

/// A tap interface cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No access to the driver.
    #[error("cannot open {DEVICE}: {0}{1}", DEVICE = tun::DEVICE)]
    Driver(io::Error, &'static str),
    /// No such interface.
    #[error("tap `{0}` does not exist; create it: ip tuntap add {0} mode tap{1} user $USER; ip link set {0} up")]
    Missing(String, &'static str),
    /// Exists, but not for us.
    #[error(
        "tap `{0}` belongs to another user; make it yours: ip tuntap del {0} mode tap; \
         ip tuntap add {0} mode tap{1} user $USER; ip link set {0} up"
    )]
    Denied(String, &'static str),
    /// In use.
    #[error("tap `{0}` is busy: another machine uses it; create one tap for each machine")]
    Busy(String),
    /// Another kind of interface.
    #[error("`{0}` is a network interface, but not a tap; name another, or bridge a tap with it")]
    NotTap(String),
    /// Made for one queue.
    #[error(
        "tap `{0}` was made for one queue; make it anew: ip tuntap del {0} mode tap; \
         ip tuntap add {0} mode tap multi_queue user $USER; ip link set {0} up"
    )]
    OneQueue(String),
    /// Anything else.
    #[error("cannot {1} tap `{0}`: {2}")]
    Other(String, &'static str, io::Error),
}

/// An open tap interface.
#[derive(Debug)]
pub struct Tap {
    /// One or more.
    pub queues: Vec<Arc<dyn Backend>>,
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// Whether the interface is up: otherwise no packet passes.
    pub up: bool,
}

/// Why `name` cannot be the name of an interface, if so.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.len() > tun::NAME_MAX {
        return Err(format!("`{name}` is too long for the name of an interface (at most {} bytes)", tun::NAME_MAX));
    }
    let bad = |c: char| c == '/' || c == ':' || c == '%' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name == "." || name == ".." || name.contains(bad) {
        return Err(format!("`{name}` cannot be the name of an interface"));
    }
    Ok(())
}

impl Tap {
    /// Opens the interface `name` with this many queues (at least one).
    pub fn open(name: &str, queues: usize) -> Result<Self, Error> {
        let mut list: Vec<Arc<dyn Backend>> = Vec::new();
        for _ in 0..queues.max(1) {
            list.push(Arc::new(TapQueue::open(name, queues > 1)?));
        }
        let (up, mtu) = tun::state(name).map_err(|e| Error::Other(name.into(), "ask the state of", e))?;
        Ok(Self { queues: list, mtu, up })
    }
}

#[derive(Debug)]
struct TapQueue {
    file: File,
    /// Made for several queues: only then can a queue be switched off.
    multi_queue: bool,
}

impl TapQueue {
    fn open(name: &str, several: bool) -> Result<Self, Error> {
        let file = tun::open().map_err(|e| {
            let remedy = match e.kind() {
                io::ErrorKind::NotFound => "; load the driver: modprobe tun",
                io::ErrorKind::PermissionDenied => "; let everybody open it, as is usual: chmod 666 /dev/net/tun",
                _ => "",
            };
            Error::Driver(e, remedy)
        })?;
        // For root the driver would make one: unconfigured, so that nothing could ever pass, and named by a typing error.
        if tun::state(name).is_err_and(|e| Errno::from_io_error(&e) == Some(Errno::NODEV)) {
            return Err(Error::Missing(name.into(), if several { " multi_queue" } else { "" }));
        }
        let mut attached = tun::attach(&file, name, several);
        let mut multi_queue = several;
        if !several && matches!(&attached, Err(e) if Errno::from_io_error(e) == Some(Errno::INVAL)) {
            // One made for several queues can be used with one as well, but says so differently.
            (attached, multi_queue) = (tun::attach(&file, name, true), true);
        }
        attached.map_err(|e| explain(name, several, e))?;
        tun::set_header_len(&file, HEADER_LEN as i32).map_err(|e| Error::Other(name.into(), "set up", e))?;
        Ok(Self { file, multi_queue })
    }
}

fn explain(name: &str, several: bool, error: io::Error) -> Error {
    let multi_queue = if several { " multi_queue" } else { "" };
    match Errno::from_io_error(&error) {
        Some(Errno::PERM) if exists(name) => Error::Denied(name.into(), multi_queue),
        Some(Errno::PERM) => Error::Missing(name.into(), multi_queue),
        Some(Errno::BUSY) => Error::Busy(name.into()),
        Some(Errno::INVAL) if exists(name) && !is_tap(name) => Error::NotTap(name.into()),
        Some(Errno::INVAL) if several => Error::OneQueue(name.into()),
        _ => Error::Other(name.into(), "use", error),
    }
}

fn exists(name: &str) -> bool {
    tun::state(name).is_ok()
}

/// Whether the host lists the interface as a tap. If it does not say, it may be one.
fn is_tap(name: &str) -> bool {
    let directory = std::path::Path::new("/sys/class/net").join(name);
    match std::fs::read_to_string(directory.join("tun_flags")) {
        Ok(flags) => {
            let flags = i32::from_str_radix(flags.trim().trim_start_matches("0x"), 16);
            flags.is_ok_and(|flags| flags & libc::IFF_TAP != 0)
        }
        Err(_) => !directory.exists(),
    }
}

/// The tun driver's names for the features of a guest.
fn offload_flags(features: u64) -> u32 {
    let has = |bit: u32| features & 1 << bit != 0;
    // All others depend on it (section 5.1.3.1), and the driver refuses them without.
    if !has(VIRTIO_NET_F_GUEST_CSUM) {
        return 0;
    }
    let (tso4, tso6) = (has(VIRTIO_NET_F_GUEST_TSO4), has(VIRTIO_NET_F_GUEST_TSO6));
    let pairs = [
        (tso4, libc::TUN_F_TSO4),
        (tso6, libc::TUN_F_TSO6),
        (has(VIRTIO_NET_F_GUEST_ECN) && (tso4 || tso6), libc::TUN_F_TSO_ECN),
    ];
    pairs.iter().filter(|(on, _)| *on).fold(libc::TUN_F_CSUM, |flags, (_, flag)| flags | flag)
}

impl Backend for TapQueue {
    fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    fn send(&self, packet: &[IoBuf]) -> io::Result<()> {
        vectored::write(&self.file, packet).map(drop)
    }

    fn receive(&self, room: &[IoBuf]) -> io::Result<usize> {
        vectored::read(&self.file, room)
    }

    fn set_offload(&self, features: u64) -> io::Result<()> {
        tun::set_offload(&self.file, offload_flags(features))
    }

    fn set_enabled(&self, enabled: bool) -> io::Result<()> {
        if !self.multi_queue {
            return Ok(());
        }
        match tun::set_attached(&self.file, enabled) {
            // It is as it shall be already.
            Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => Ok(()),
            other => other,
        }
    }

    fn drain(&self) {
        for _ in 0..MOST_DRAINED {
            if rustix::io::read(&self.file, &mut [0; HEADER_LEN]).is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
