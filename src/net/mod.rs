//! Networks that a network device can be connected to.
//!
//! Packets are Ethernet frames behind a `struct virtio_net_hdr_v1` (virtio 1.3, section 5.1.6), so that checksums and
//! segments that guest and host leave to each other need no work here.

use std::fmt::Debug;
use std::io;
use std::os::fd::RawFd;

use crate::host::vectored::IoBuf;

pub mod capture;
pub mod mac;
pub mod passt;
pub mod switch;
pub mod tap;
pub mod user;

/// Bytes of the header before each packet.
pub const HEADER_LEN: usize = 12;

/// The network's end of one pair of queues. Called on the event loop, except as said; never blocks.
pub trait Backend: Send + Sync + Debug {
    /// Readable while a packet waits; writable when [`Backend::send`] will not return `WouldBlock`.
    fn fd(&self) -> RawFd;
    /// Takes one packet, whole. `WouldBlock`: later, all other errors: never.
    fn send(&self, packet: &[IoBuf]) -> io::Result<()>;
    /// The next packet: fills `room` from the start, returns the number of bytes. What does not fit is lost.
    fn receive(&self, room: &[IoBuf]) -> io::Result<usize>;
    /// Whether packets may be left unfinished to who receives them: checksums, segments to be cut up. If not, no such
    /// feature is offered to the guest.
    fn takes_offloads(&self) -> bool {
        true
    }
    /// What packets given by [`Backend::receive`] may leave to the guest: bits `VIRTIO_NET_F_GUEST_*`. Also called on
    /// a vCPU thread, while there is no driver.
    fn set_offload(&self, features: u64) -> io::Result<()>;
    /// Whether packets shall be given out here at all, rather than by other queues of the network. Also called on a
    /// vCPU thread, while there is no driver.
    fn set_enabled(&self, enabled: bool) -> io::Result<()>;
    /// Drops packets that wait. Called on a vCPU thread when a driver begins: they are from before its time.
    fn drain(&self);
}

/// The first `N` bytes of a packet; zeros where it is shorter.
fn first_bytes<const N: usize>(packet: &[IoBuf]) -> [u8; N] {
    let mut bytes = [0; N];
    copy(packet, &mut bytes);
    bytes
}

/// A copy of the first `len` bytes of a packet, or of all that there are.
fn contents(packet: &[IoBuf], len: usize) -> Vec<u8> {
    let total = packet.iter().map(IoBuf::len).sum::<usize>().min(len);
    let mut bytes = vec![0; total];
    copy(packet, &mut bytes);
    bytes
}

/// Fills `bytes` from the start of a packet, as far as it goes.
fn copy(packet: &[IoBuf], bytes: &mut [u8]) {
    let mut at = 0;
    for buf in packet {
        match bytes.get_mut(at..) {
            Some(rest) if !rest.is_empty() => at += buf.copy_to(rest),
            _ => break,
        }
    }
}
