//! What the guest may reach: without rules the world but not the host itself, with rules only what they name.
//!
//! | where to | when |
//! | --- | --- |
//! | loopback of the host, as the gateway's address | `host=on`, or a rule for `host.internal` |
//! | addresses by which clouds give secrets to machines, and link-local ones | a rule for that address |
//! | loopback and other addresses that are no places, by their own names | never |
//! | all others | without rules, or by a rule |
//!
//! A rule with a name permits the addresses that the DNS relay gave the guest for it.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use super::addresses::{Role, role};

/// The name of the host in the guest, in rules and in the DNS relay.
pub(super) const HOST_NAMES: [&str; 2] = ["host.internal", "gateway.internal"];
/// Most addresses remembered for one name.
const MOST_ADDRESSES: usize = 1024;

/// One thing that the guest may reach: `HOST[:PORT]`, where HOST is an address, a network `10.1.0.0/16`, a name, names
/// `*.example.org`, or `*`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    place: Place,
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Any,
    Network { address: IpAddr, bits: u8 },
    Name(String),
    Names { suffix: String },
    Host,
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("`{text}` is no HOST[:PORT], ADDRESS/BITS[:PORT] or NAME[:PORT]");
        let (host, port) = split_port(text).ok_or_else(bad)?;
        let place = match host {
            "*" => Place::Any,
            name if HOST_NAMES.iter().any(|own| own.eq_ignore_ascii_case(name)) => Place::Host,
            other => network(other).or_else(|| name(other)).ok_or_else(bad)?,
        };
        Ok(Self { place, port })
    }
}

/// The host, without brackets, and the port. An IPv6 address with a port needs brackets.
fn split_port(text: &str) -> Option<(&str, Option<u16>)> {
    let number = |port: &str| port.parse().ok().filter(|&port: &u16| port != 0);
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']')?;
        return match rest.strip_prefix(':') {
            None if rest.is_empty() => Some((host, None)),
            port => Some((host, Some(number(port?)?))),
        };
    }
    match text.split_once(':') {
        None => Some((text, None)),
        Some((_, rest)) if rest.contains(':') => Some((text, None)),
        Some((host, port)) => Some((host, Some(number(port)?))),
    }
}

fn network(text: &str) -> Option<Place> {
    let (address, bits) = match text.split_once('/') {
        None => (text, None),
        Some((address, bits)) => (address, Some(bits.parse().ok()?)),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let bits = bits.unwrap_or(most);
    (bits <= most).then_some(Place::Network { address, bits })
}

fn name(text: &str) -> Option<Place> {
    let text = text.to_ascii_lowercase();
    let (rest, several) = text.strip_prefix("*.").map_or((text.as_str(), false), |rest| (rest, true));
    let label = |label: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        !label.is_empty() && label.len() < 64 && label.bytes().all(good)
    };
    // Digits and dots alone are an address that is wrong.
    let numeric = rest.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    if numeric || rest.len() > 253 || !rest.split('.').all(label) {
        return None;
    }
    Some(if several { Place::Names { suffix: format!(".{rest}") } } else { Place::Name(rest.into()) })
}

impl Place {
    fn has_name(&self, name: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Name(own) => own == name,
            Self::Names { suffix } => name.ends_with(suffix),
            Self::Network { .. } | Self::Host => false,
        }
    }

    fn has_address(&self, other: IpAddr) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (Self::Network { address: IpAddr::V4(own), bits }, IpAddr::V4(other)) => {
                let differ = own.to_bits() ^ other.to_bits();
                differ.checked_shr(32 - u32::from(*bits)).unwrap_or(0) == 0
            }
            (Self::Network { address: IpAddr::V6(own), bits }, IpAddr::V6(other)) => {
                let differ = own.to_bits() ^ other.to_bits();
                differ.checked_shr(128 - u32::from(*bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// Where something of the guest goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// To this address of the host's network.
    To(SocketAddr),
    /// To the DNS relay.
    Relay,
    /// There is nobody at this address of our own network, or nothing at this port.
    Nobody,
    /// The rules forbid it.
    Denied,
}

/// All rules of a network, and the addresses that names have.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<(Rule, HashSet<IpAddr>)>,
    /// Services of the host's loopback can be reached.
    host: bool,
}

/// The port of DNS.
pub(super) const DNS_PORT: u16 = 53;

impl Rules {
    pub(super) fn new(rules: &[Rule], host: bool) -> Self {
        Self { rules: rules.iter().map(|rule| (rule.clone(), HashSet::new())).collect(), host }
    }

    /// Where what the guest sends to `target` goes.
    pub(super) fn way(&self, target: SocketAddr) -> Way {
        match role(target.ip()) {
            Role::Gateway if self.host_is_open(target.port()) => {
                let loopback: IpAddr =
                    if target.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
                Way::To((loopback, target.port()).into())
            }
            Role::Gateway => Way::Denied,
            Role::Dns if target.port() == DNS_PORT => Way::Relay,
            Role::Dns | Role::Guest | Role::Reserved => Way::Nobody,
            Role::Outside if self.permits(target.ip(), Some(target.port())) => Way::To(target),
            Role::Outside => Way::Denied,
        }
    }

    /// Whether the guest may ping `address`, which is somewhere outside: any rule for it counts.
    pub(super) fn permits_ping(&self, address: IpAddr) -> bool {
        role(address) == Role::Outside && self.permits(address, None)
    }

    /// Whether the relay may answer for `name`, which is in lower case: a query can carry data out as well.
    pub(super) fn permits_name(&self, name: &str) -> bool {
        self.rules.is_empty() || self.rules.iter().any(|(rule, _)| rule.place.has_name(name))
    }

    /// The relay has told the guest that `name` is at `address`.
    pub(super) fn learn(&mut self, name: &str, address: IpAddr) {
        for (rule, addresses) in &mut self.rules {
            let by_name = matches!(rule.place, Place::Name(_) | Place::Names { .. });
            if by_name && addresses.len() < MOST_ADDRESSES && rule.place.has_name(name) {
                addresses.insert(address);
            }
        }
    }

    fn host_is_open(&self, port: u16) -> bool {
        let ports = |rule: &Rule| rule.place == Place::Host && rule.port.is_none_or(|own| own == port);
        self.host || self.rules.iter().any(|(rule, _)| ports(rule))
    }

    fn permits(&self, address: IpAddr, port: Option<u16>) -> bool {
        if is_no_place(address) {
            return false;
        }
        let guarded = is_guarded(address);
        if self.rules.is_empty() {
            return !guarded;
        }
        self.rules.iter().any(|(rule, addresses)| {
            let port_fits = rule.port.is_none() || port.is_none() || rule.port == port;
            let by_address = rule.place.has_address(address) && !(guarded && rule.place == Place::Any);
            port_fits && (by_address || (!guarded && addresses.contains(&address)))
        })
    }
}

/// Addresses that are no place in any network, or would be the host itself.
fn is_no_place(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_loopback() || v4.is_multicast() || matches!(v4.octets()[0], 0 | 240..),
        // The unspecified address, loopback, and IPv4 addresses in disguise.
        IpAddr::V6(v6) => v6.is_multicast() || v6.segments()[..5] == [0; 5],
    }
}

/// Addresses at which clouds tell a machine who it is and what it may do. They are not for its guests.
fn is_guarded(address: IpAddr) -> bool {
    const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
    const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
    const ORACLE: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 192);
    const AMAZON: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
    const GOOGLE: Ipv6Addr = Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254);
    match address {
        IpAddr::V4(ALIBABA | AZURE | ORACLE) | IpAddr::V6(AMAZON | GOOGLE) => true,
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(list: &[&str]) -> Rules {
        let list: Vec<Rule> = list.iter().map(|text| text.parse().unwrap()).collect();
        Rules::new(&list, false)
    }

    fn way(rules: &Rules, target: &str) -> Way {
        rules.way(target.parse().unwrap())
    }

    fn open(rules: &Rules, target: &str) -> bool {
        matches!(way(rules, target), Way::To(_))
    }

    #[test]
    fn without_rules_the_world_is_open_and_the_host_is_not() {
        let rules = rules(&[]);
        for target in ["93.184.216.34:80", "192.168.1.1:22", "[2001:db8::1]:443"] {
            assert_eq!(way(&rules, target), Way::To(target.parse().unwrap()));
        }
        for target in [
            "10.0.2.2:22",
            "[fd62:656c:6c6a::2]:22",
            "127.0.0.1:22",
            "127.9.9.9:22",
            "0.0.0.0:22",
            "0.1.2.3:22",
            "[::1]:22",
            "[::]:22",
            "[::ffff:127.0.0.1]:22",
            "[::127.0.0.1]:22",
            "224.0.0.1:22",
            "255.255.255.255:22",
            "169.254.169.254:80",
            "[fe80::1]:80",
            "[fd00:ec2::254]:80",
            "100.100.100.200:80",
        ] {
            assert_eq!(way(&rules, target), Way::Denied, "{target}");
        }
        assert_eq!(way(&rules, "10.0.2.3:53"), Way::Relay);
        for target in ["10.0.2.3:80", "10.0.2.77:80", "10.0.2.255:80", "[fd62:656c:6c6a::99]:80"] {
            assert_eq!(way(&rules, target), Way::Nobody, "{target}");
        }
    }

    #[test]
    fn with_rules_only_what_they_name_is_open() {
        let rules = rules(&["192.0.2.0/24:443", "2001:db8::/32", "203.0.113.7", "169.254.169.254:80"]);
        let open = |target: &str| open(&rules, target);
        assert!(open("192.0.2.200:443") && open("203.0.113.7:1") && open("169.254.169.254:80"));
        assert!(open("[2001:db8:7::1]:80") && !open("[2001:db9::1]:80"));
        assert!(!open("192.0.2.200:80") && !open("192.0.3.1:443") && !open("203.0.113.8:1") && !open("1.1.1.1:80"));
        assert!(!open("10.0.2.2:80") && !rules.permits_name("example.org"));
        assert!(rules.permits_ping("192.0.2.1".parse().unwrap()) && !rules.permits_ping("192.0.3.1".parse().unwrap()));
    }

    #[test]
    fn names_permit_the_addresses_that_the_relay_gave() {
        let mut rules = rules(&["example.org:443", "*.debian.org"]);
        assert!(rules.permits_name("example.org") && rules.permits_name("deb.debian.org"));
        assert!(!rules.permits_name("debian.org") && !rules.permits_name("evil-example.org"));
        assert!(!open(&rules, "192.0.2.1:443"));
        rules.learn("example.org", "192.0.2.1".parse().unwrap());
        rules.learn("other.org", "192.0.2.2".parse().unwrap());
        rules.learn("example.org", "169.254.169.254".parse().unwrap());
        rules.learn("example.org", "127.0.0.1".parse().unwrap());
        assert!(open(&rules, "192.0.2.1:443") && !open(&rules, "192.0.2.1:80"));
        assert!(
            !open(&rules, "192.0.2.2:443") && !open(&rules, "169.254.169.254:443") && !open(&rules, "127.0.0.1:443")
        );
    }

    #[test]
    fn the_host_is_open_when_asked_for() {
        let mine = rules(&["host.internal:5432"]);
        assert_eq!(way(&mine, "10.0.2.2:5432"), Way::To("127.0.0.1:5432".parse().unwrap()));
        assert_eq!(way(&mine, "[fd62:656c:6c6a::2]:5432"), Way::To("[::1]:5432".parse().unwrap()));
        assert_eq!(way(&mine, "10.0.2.2:22"), Way::Denied);
        assert!(open(&Rules::new(&[], true), "10.0.2.2:22") && !open(&rules(&["*"]), "10.0.2.2:22"));
    }

    #[test]
    fn a_star_is_everything_but_what_is_guarded() {
        let rules = rules(&["*:443"]);
        assert!(open(&rules, "1.1.1.1:443") && !open(&rules, "1.1.1.1:80") && rules.permits_name("a.b"));
        assert!(!open(&rules, "169.254.169.254:443") && !open(&rules, "127.0.0.1:443"));
    }

    #[test]
    fn mistakes_are_named() {
        for bad in
            ["", ":80", "a:0", "a:99999", "1.2.3", "1.2.3.4/33", "[::1", "[::1]80", "a b", "-*", "a..b", "1.2.3.4/"]
        {
            let error = bad.parse::<Rule>().unwrap_err();
            assert!(error.contains(&format!("`{bad}` is no HOST")), "{error}");
        }
    }
}
