//! Interfaces, routes and name servers (netdevice(7), `struct ifreq`, `rtentry`, `in6_ifreq`, `in6_rtmsg`).

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use super::Notes;
use crate::protocol::{Address, Network};
use crate::serve::reason;
use crate::sys::{self, AF_INET, AF_INET6, MS_BIND};

const SIOCADDRT: u64 = 0x890b;
const SIOCSIFFLAGS: u64 = 0x8914;
const SIOCSIFADDR: u64 = 0x8916;
const SIOCSIFNETMASK: u64 = 0x891c;
const IFF_UP: u16 = 1;
const RTF_UP: u16 = 1;
const RTF_GATEWAY: u16 = 2;
/// Bytes of an interface's name.
const IFNAMSIZ: usize = 16;
const IFREQ: usize = 40;

/// Brings up the loopback interface and those of the plan.
pub fn configure(networks: &[Network], notes: &mut Notes) -> Result<(), String> {
    if let Err(e) = up("lo") {
        // A kernel without a network.
        if networks.is_empty() {
            return Ok(());
        }
        notes.push(format!("cannot bring up the interface lo: {}", reason(&e)));
    }
    for network in networks {
        let name = find(network.mac)?;
        let fail = |e: io::Error| format!("cannot configure the interface {name}: {}", reason(&e));
        interface(&name, network).map_err(fail)?;
    }
    let servers: Vec<&String> = networks.iter().flat_map(|network| &network.dns).collect();
    if !servers.is_empty() {
        let text: String = servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        if let Err(e) = resolver(&text) {
            notes.push(format!("cannot set the name servers: {}", reason(&e)));
        }
    }
    Ok(())
}

/// The interface with this hardware address.
fn find(mac: [u8; 6]) -> Result<String, String> {
    let wanted = mac.map(|byte| format!("{byte:02x}")).join(":");
    let entries = fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let has = |path: PathBuf| fs::read_to_string(path.join("address")).is_ok_and(|text| text.trim_end() == wanted);
    let found = entries.into_iter().find(|entry| has(entry.path()));
    found
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .ok_or_else(|| format!("the guest has no network card {wanted} (CONFIG_VIRTIO_NET)"))
}

fn interface(name: &str, network: &Network) -> io::Result<()> {
    if network.ipv6.is_some() {
        // Nobody else can have the address, and waiting for that to be sure takes a second.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{name}/accept_dad"), "0");
    }
    up(name)?;
    if let Some(Address { address, prefix, gateway }) = network.ipv4 {
        let socket = sys::datagram_socket(AF_INET)?;
        let mask = Ipv4Addr::from(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0));
        let mut request = ifreq(name, &inet(address));
        sys::ioctl_with(&socket, SIOCSIFADDR, &mut request)?;
        sys::ioctl_with(&socket, SIOCSIFNETMASK, &mut ifreq(name, &inet(mask)))?;
        if let Some(gateway) = gateway {
            sys::ioctl_with(&socket, SIOCADDRT, &mut route(gateway))?;
        }
    }
    if let Some(Address { address, prefix, gateway }) = network.ipv6 {
        let socket = sys::datagram_socket(AF_INET6)?;
        let index: i32 = fs::read_to_string(format!("/sys/class/net/{name}/ifindex"))?.trim().parse().unwrap_or(0);
        sys::ioctl_with(&socket, SIOCSIFADDR, &mut ifreq6(address, prefix, index))?;
        if let Some(gateway) = gateway {
            sys::ioctl_with(&socket, SIOCADDRT, &mut route6(gateway, index))?;
        }
    }
    Ok(())
}

fn up(name: &str) -> io::Result<()> {
    let socket = sys::datagram_socket(AF_INET).or_else(|_| sys::datagram_socket(AF_INET6))?;
    sys::ioctl_with(&socket, SIOCSIFFLAGS, &mut ifreq(name, &IFF_UP.to_ne_bytes()))
}

/// `struct ifreq`: a name, and what the request is about.
fn ifreq(name: &str, rest: &[u8]) -> [u8; IFREQ] {
    let mut bytes = [0; IFREQ];
    bytes.iter_mut().zip(name.bytes().take(IFNAMSIZ - 1)).for_each(|(to, from)| *to = from);
    bytes.iter_mut().skip(IFNAMSIZ).zip(rest).for_each(|(to, from)| *to = *from);
    bytes
}

/// `struct sockaddr_in`.
fn inet(address: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    fill(&mut bytes, 0, &AF_INET.to_ne_bytes());
    fill(&mut bytes, 4, &address.octets());
    bytes
}

/// `struct rtentry` of 64 bits: everything through `gateway`.
fn route(gateway: Ipv4Addr) -> [u8; 120] {
    let mut bytes = [0; 120];
    fill(&mut bytes, 8, &inet(Ipv4Addr::UNSPECIFIED));
    fill(&mut bytes, 24, &inet(gateway));
    fill(&mut bytes, 40, &inet(Ipv4Addr::UNSPECIFIED));
    fill(&mut bytes, 56, &(RTF_UP | RTF_GATEWAY).to_ne_bytes());
    bytes
}

/// `struct in6_ifreq`.
fn ifreq6(address: Ipv6Addr, prefix: u8, index: i32) -> [u8; 24] {
    let mut bytes = [0; 24];
    fill(&mut bytes, 0, &address.octets());
    fill(&mut bytes, 16, &u32::from(prefix).to_ne_bytes());
    fill(&mut bytes, 20, &index.to_ne_bytes());
    bytes
}

/// `struct in6_rtmsg`: everything through `gateway`.
fn route6(gateway: Ipv6Addr, index: i32) -> [u8; 80] {
    let mut bytes = [0; 80];
    fill(&mut bytes, 32, &gateway.octets());
    fill(&mut bytes, 56, &1u32.to_ne_bytes());
    fill(&mut bytes, 72, &u32::from(RTF_UP | RTF_GATEWAY).to_ne_bytes());
    fill(&mut bytes, 76, &index.to_ne_bytes());
    bytes
}

fn fill(bytes: &mut [u8], at: usize, with: &[u8]) {
    bytes.iter_mut().skip(at).zip(with).for_each(|(to, from)| *to = *from);
}

/// Makes `text` what /etc/resolv.conf says, without changing a root that is somebody's: a file on /run is mounted over it.
/// Where it leads to a file on /run that nobody has made (systemd-resolved's), that is made.
fn resolver(text: &str) -> io::Result<()> {
    const CONF: &str = "/etc/resolv.conf";
    const OURS: &str = "/run/belljar/resolv.conf";
    let conf = Path::new(CONF);
    match fs::metadata(conf) {
        Ok(_) => {}
        Err(_) => {
            let target = fs::read_link(conf).map_or(conf.into(), |link| Path::new("/etc").join(link));
            if let Some(parent) = target.parent() {
                fs::create_dir_all(parent)?;
            }
            return fs::write(&target, text);
        }
    }
    fs::create_dir_all("/run/belljar")?;
    fs::write(OURS, text)?;
    sys::mount_at(OURS, conf, "", MS_BIND, "")
}
