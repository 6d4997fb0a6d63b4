//! Who is who in the network of `--net user`. The IPv4 addresses are those that users of QEMU know.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smoltcp::wire::EthernetAddress;

/// The guest's IPv4 address: what DHCP gives it, and where published ports lead.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
/// The gateway, which is the host as well.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
/// The DNS relay.
pub const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
/// Bits of the IPv4 network's part of an address.
pub const PREFIX: u8 = 24;

/// The first half of all IPv6 addresses: a unique local prefix (RFC 4193).
pub const NETWORK6: Ipv6Addr = Ipv6Addr::new(0xfd62, 0x656c, 0x6c6a, 0, 0, 0, 0, 0);
/// The guest's IPv6 address, where it is set by hand; those that it makes itself serve as well.
pub const GUEST6: Ipv6Addr = Ipv6Addr::new(0xfd62, 0x656c, 0x6c6a, 0, 0, 0, 0, 0x15);
/// The gateway.
pub const GATEWAY6: Ipv6Addr = Ipv6Addr::new(0xfd62, 0x656c, 0x6c6a, 0, 0, 0, 0, 2);
/// The DNS relay.
pub const DNS6: Ipv6Addr = Ipv6Addr::new(0xfd62, 0x656c, 0x6c6a, 0, 0, 0, 0, 3);
/// Bits of the IPv6 network's part of an address.
pub const PREFIX6: u8 = 64;

/// The gateway's link-local address, from which routers speak (RFC 4861, section 6.1.2).
pub(super) const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);
/// All of ours have the same Ethernet address.
pub(super) const MAC: EthernetAddress = EthernetAddress([0x52, 0x55, 10, 0, 2, 2]);

/// Largest IP packet: few, large ones cost both sides the least.
pub const MTU: u16 = 65520;

/// What an address is in this network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    Gateway,
    Dns,
    /// The network's and the broadcast address.
    Reserved,
    /// An address that guests may have.
    Guest,
    /// Somewhere else.
    Outside,
}

/// The role of `address`.
pub(super) fn role(address: IpAddr) -> Role {
    match address {
        IpAddr::V4(GATEWAY) | IpAddr::V6(GATEWAY6 | ROUTER6) => Role::Gateway,
        IpAddr::V4(DNS) | IpAddr::V6(DNS6) => Role::Dns,
        IpAddr::V4(v4) if v4.octets()[..3] == GATEWAY.octets()[..3] => match v4.octets()[3] {
            0 | 255 => Role::Reserved,
            _ => Role::Guest,
        },
        IpAddr::V6(v6) if v6 == NETWORK6 => Role::Reserved,
        IpAddr::V6(v6) if v6.segments()[..4] == NETWORK6.segments()[..4] => Role::Guest,
        _ => Role::Outside,
    }
}

/// The gateway's address, of the same version as `other`.
pub(super) fn gateway_like(other: IpAddr) -> IpAddr {
    if other.is_ipv4() { GATEWAY.into() } else { GATEWAY6.into() }
}
