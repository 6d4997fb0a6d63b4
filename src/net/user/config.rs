//! What can be said about a network of `--net user`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

pub use super::rules::Rule;

/// A network as the command line describes it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Ports of the host that lead to ports of the guest.
    pub publish: Vec<Publish>,
    /// What the guest may reach; everything but the host itself if there is nothing.
    pub allow: Vec<Rule>,
    /// The guest may reach services of the host's loopback interface.
    pub host: bool,
    /// Resolver to be asked instead of those of the host.
    pub dns: Option<SocketAddr>,
}

/// A published port: `[ADDRESS:]HOST:GUEST[/udp]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Publish {
    /// Where the host listens. Port 0: any that is free.
    pub listen: SocketAddr,
    /// Port of the guest.
    pub guest: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

impl FromStr for Publish {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad =
            || format!("`{text}` is no [ADDRESS:]HOSTPORT:GUESTPORT[/udp], such as 8080:80 or 0.0.0.0:5353:53/udp");
        let (ports, udp) = match text.rsplit_once('/') {
            None => (text, false),
            Some((ports, "udp")) => (ports, true),
            Some((ports, "tcp")) => (ports, false),
            Some(_) => return Err(bad()),
        };
        let (listen, guest) = ports.rsplit_once(':').ok_or_else(bad)?;
        let guest: u16 = guest.parse().ok().filter(|&port| port != 0).ok_or_else(bad)?;
        let listen = match listen.rsplit_once(':') {
            // Others than programs of this host are let in only by who says so.
            None => SocketAddr::new(Ipv4Addr::LOCALHOST.into(), listen.parse().map_err(|_| bad())?),
            Some((address, port)) => {
                let address = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
                let address: IpAddr = address.parse().map_err(|_| bad())?;
                SocketAddr::new(address, port.parse().map_err(|_| bad())?)
            }
        };
        Ok(Self { listen, guest, udp })
    }
}

/// Reads a list whose parts have a `+` in between.
pub fn list<T: FromStr<Err = String>>(text: &str) -> Result<Vec<T>, String> {
    text.split('+').filter(|part| !part.is_empty()).map(str::parse).collect()
}

/// Reads the address of a resolver, with a port or without.
pub fn resolver(text: &str) -> Result<SocketAddr, String> {
    let plain = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, super::rules::DNS_PORT));
    plain.or_else(|_| text.parse()).map_err(|_| format!("`{text}` is no ADDRESS or ADDRESS:PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_published_on_loopback_unless_said_otherwise() {
        let ports: Vec<Publish> = list("8080:80+0.0.0.0:0:22+[::1]:5353:53/udp+127.0.0.2:1:2/tcp").unwrap();
        let shown: Vec<String> = ports.iter().map(|p| format!("{} {} {}", p.listen, p.guest, p.udp)).collect();
        let expected = ["127.0.0.1:8080 80 false", "0.0.0.0:0 22 false", "[::1]:5353 53 true", "127.0.0.2:1 2 false"];
        assert_eq!(shown, expected);
        for bad in ["80", "80:0", ":80", "a:80", "80:80/sctp", "1.2.3:80:80", "70000:1", "80:"] {
            assert!(list::<Publish>(bad).unwrap_err().contains(&format!("`{bad}` is no [ADDRESS:]")), "{bad}");
        }
    }

    #[test]
    fn resolvers_may_have_a_port() {
        assert_eq!(resolver("192.0.2.1").unwrap(), "192.0.2.1:53".parse().unwrap());
        assert_eq!(resolver("::1").unwrap(), "[::1]:53".parse().unwrap());
        assert_eq!(resolver("[::1]:5300").unwrap(), "[::1]:5300".parse().unwrap());
        assert!(resolver("dns.example").unwrap_err().contains("is no ADDRESS"));
    }
}
