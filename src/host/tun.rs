//! System calls of the tun driver (Linux, `Documentation/networking/tuntap.rst`) for `net::tap`.

// UNSAFETY: ioctls that read and write structures.
#![expect(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// The driver's device.
pub const DEVICE: &str = "/dev/net/tun";
/// Most bytes in the name of a network interface.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// A new descriptor of the driver, non-blocking, not yet attached to an interface.
pub fn open() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC).open(DEVICE)
}

/// Makes `file` a queue of the tap interface `name`, whose packets have a virtio header. Makes the interface (until
/// `file` is closed) if there is none.
pub fn attach(file: &File, name: &str, multi_queue: bool) -> io::Result<()> {
    let mut request = request(name)?;
    let queues = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queues;
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    interface_ioctl(file, libc::TUNSETIFF, &mut request)
}

/// Attaches a queue to its interface again, or detaches it: then no packets are put in it.
pub fn set_attached(file: &File, attached: bool) -> io::Result<()> {
    let mut request = request("")?;
    let flags = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    interface_ioctl(file, libc::TUNSETQUEUE, &mut request)
}

/// Bytes of the virtio header before each packet.
pub fn set_header_len(file: &File, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads one int, which lives for the call.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &len) })
}

/// What whoever reads can do with packets: `TUN_F_*`.
pub fn set_offload(file: &File, flags: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its argument by value.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) })
}

/// Whether the interface is up, and its MTU.
pub fn state(name: &str) -> io::Result<(bool, u32)> {
    let flags = SocketFlags::CLOEXEC;
    let any = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
    let mut request = request(name)?;
    interface_ioctl(&any, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS has filled this member.
    let up = i32::from(unsafe { request.ifr_ifru.ifru_flags }) & libc::IFF_UP != 0;
    interface_ioctl(&any, libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: SIOCGIFMTU has filled this member.
    Ok((up, unsafe { request.ifr_ifru.ifru_mtu }.cast_unsigned()))
}

fn request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: a structure of integers and character arrays (in a union): all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() > NAME_MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from.cast_signed());
    Ok(request)
}

fn interface_ioctl(fd: impl AsFd, number: libc::Ioctl, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: the numbers used here read and write one ifreq, which is borrowed for the call.
    check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), number, std::ptr::from_mut(request)) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Gives the calling thread a network of its own. False if it may not have one.
#[cfg(test)]
pub(crate) fn own_network() -> bool {
    // SAFETY: only changes which interfaces this thread sees.
    unsafe { libc::unshare(libc::CLONE_NEWNET) == 0 }
}
