//! The wire between smoltcp and the guest: at most one packet each way at a time.

use std::num::NonZeroUsize;
use std::time::Instant;

use rustix::rand::{GetRandomFlags, getrandom};
use smoltcp::iface::{Config, Interface};
use smoltcp::phy::{self, Checksum, ChecksumCapabilities, Device, DeviceCapabilities, Medium, PacketMeta};
use smoltcp::wire::{EthernetAddress, HardwareAddress};

use crate::net::user::addresses::{GUEST, GUEST6, MTU};
use crate::net::user::frame::{self, BEFORE, MAX_IP};

/// What the guest does itself with packets that it receives (virtio 1.3, section 5.1.3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::net::user) struct Offload {
    pub checksum: bool,
    /// Long segments, of IPv4: smoltcp 0.14 does not make those of IPv6.
    pub segments: bool,
}

/// Bytes of the longest frame.
pub(super) const ROOM: usize = BEFORE + MAX_IP;

/// An interface that is at every address.
pub(super) fn interface(offload: Offload) -> std::io::Result<Interface> {
    let mut seed = [0; 8];
    getrandom(&mut seed, GetRandomFlags::empty())?;
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = u64::from_ne_bytes(seed);
    let mut wire = Wire::new(None, &mut [], offload);
    let mut interface = Interface::new(config, &mut wire, smoltcp::time::Instant::ZERO);
    interface.set_any_ip(true);
    // There is room for both, and they say no more than that every guest can be reached.
    let _ = interface.routes_mut().add_default_ipv4_route(GUEST);
    let _ = interface.routes_mut().add_default_ipv6_route(GUEST6);
    Ok(interface)
}

/// The time as smoltcp counts it.
pub(super) fn instant(began: Instant, now: Instant) -> smoltcp::time::Instant {
    let micros = now.saturating_duration_since(began).as_micros();
    smoltcp::time::Instant::from_micros(i64::try_from(micros).unwrap_or(i64::MAX))
}

/// Gives a packet, if there is one, and takes one.
pub(super) struct Wire<'a> {
    input: Option<&'a [u8]>,
    room: &'a mut [u8],
    offload: Offload,
    made: Option<Made>,
}

#[derive(Debug, Clone, Copy)]
struct Made {
    /// Bytes of the IP packet.
    len: usize,
    /// The guest shall see it as segments of so many bytes.
    segment: Option<u16>,
}

impl<'a> Wire<'a> {
    /// `room` is where a packet is made.
    pub(super) fn new(input: Option<&'a [u8]>, room: &'a mut [u8], offload: Offload) -> Self {
        Self { input, room, offload, made: None }
    }

    /// Completes the packet that was made: a frame of so many bytes, at the beginning of the room.
    pub(super) fn finish(self, to: EthernetAddress) -> Option<usize> {
        let made = self.made?;
        let frame = self.room.get_mut(..BEFORE + made.len)?;
        frame::finish_tcp(frame, to, self.offload.checksum, made.segment);
        Some(frame.len())
    }

    /// The same, as a frame of its own.
    pub(super) fn frame(self, to: EthernetAddress) -> Option<Vec<u8>> {
        let made = self.made?;
        let frame = self.room.get_mut(..BEFORE + made.len)?;
        frame::finish_tcp(frame, to, self.offload.checksum, made.segment);
        Some(frame.to_vec())
    }
}

impl Device for Wire<'_> {
    type RxToken<'t>
        = Input<'t>
    where
        Self: 't;
    type TxToken<'t>
        = Output<'t>
    where
        Self: 't;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Input<'_>, Output<'_>)> {
        let input = Input(self.input.take()?);
        Some((input, Output { room: self.room, made: &mut self.made, segment: None }))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Output<'_>> {
        match self.made {
            Some(_) => None,
            None => Some(Output { room: self.room, made: &mut self.made, segment: None }),
        }
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut all = DeviceCapabilities::default();
        all.medium = Medium::Ip;
        all.max_transmission_unit = MTU.into();
        // What comes in was checked before.
        all.checksum = ChecksumCapabilities::ignored();
        all.checksum.ipv4 = Checksum::Tx;
        all.checksum.tcp = if self.offload.checksum { Checksum::None } else { Checksum::Tx };
        let segments = self.offload.segments && self.offload.checksum;
        all.segmentation.tcpv4 = NonZeroUsize::new(MAX_IP).filter(|_| segments);
        all
    }
}

/// The guest's packet.
pub(super) struct Input<'a>(&'a [u8]);

impl phy::RxToken for Input<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

/// Room for a packet to the guest.
pub(super) struct Output<'a> {
    room: &'a mut [u8],
    made: &'a mut Option<Made>,
    segment: Option<u16>,
}

impl phy::TxToken for Output<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        match self.room.get_mut(BEFORE..).and_then(|room| room.get_mut(..len)) {
            Some(room) => {
                *self.made = Some(Made { len, segment: self.segment });
                write(room)
            }
            // Longer than any packet: it is made and lost.
            None => write(&mut vec![0; len]),
        }
    }

    fn set_meta(&mut self, meta: PacketMeta) {
        self.segment = meta.segmentation_offload_size.map(Into::into);
    }
}
