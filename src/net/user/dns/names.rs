//! What the host knows about names: its resolvers (`/etc/resolv.conf`) and its table of hosts (`/etc/hosts`). Both files
//! are read again when they have changed, so that a host can move from one network to another.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::SystemTime;

use crate::net::user::addresses::GATEWAY;
use crate::net::user::rules::{DNS_PORT, HOST_NAMES};

/// Longest file that is read: a list of a million hosts.
const MOST_BYTES: u64 = 64 << 20;
/// Resolvers that are asked, one after the other (resolv.conf(5)).
const MOST_RESOLVERS: usize = 3;

/// A file and what was made of it.
#[derive(Debug)]
struct Cached<T> {
    path: PathBuf,
    /// Time of change and length.
    state: Option<(SystemTime, u64)>,
    content: T,
}

impl<T: Default> Cached<T> {
    fn new(path: &str) -> Self {
        Self { path: path.into(), state: None, content: T::default() }
    }

    fn get(&mut self, parse: impl FnOnce(&str) -> T) -> &T {
        let state = std::fs::metadata(&self.path).ok().and_then(|m| Some((m.modified().ok()?, m.len())));
        if state != self.state {
            self.state = state;
            let small = state.is_some_and(|(_, len)| len <= MOST_BYTES);
            let text = if small { std::fs::read(&self.path).unwrap_or_default() } else { Vec::new() };
            self.content = parse(&String::from_utf8_lossy(&text));
        }
        &self.content
    }
}

/// The host's files.
#[derive(Debug)]
pub(super) struct Names {
    resolvers: Cached<Vec<SocketAddr>>,
    hosts: Cached<HashMap<String, Vec<IpAddr>>>,
}

impl Names {
    pub(super) fn of_host() -> Self {
        Self { resolvers: Cached::new("/etc/resolv.conf"), hosts: Cached::new("/etc/hosts") }
    }

    /// The host's resolvers.
    pub(super) fn resolvers(&mut self) -> Vec<SocketAddr> {
        self.resolvers.get(resolvers).clone()
    }

    /// The addresses of a name that need no resolver. The host's own are those by which the guest reaches it.
    pub(super) fn find(&mut self, name: &str) -> Option<Vec<IpAddr>> {
        if HOST_NAMES.contains(&name) {
            return Some(vec![GATEWAY.into()]);
        }
        let addresses = self.hosts.get(hosts).get(name)?;
        let local = name == "localhost" || name.ends_with(".localhost");
        let seen = |address: &IpAddr| if address.is_loopback() && !local { GATEWAY.into() } else { *address };
        let mut seen: Vec<IpAddr> = addresses.iter().map(seen).collect();
        seen.dedup();
        Some(seen)
    }
}

fn resolvers(text: &str) -> Vec<SocketAddr> {
    let address = |line: &str| -> Option<SocketAddr> {
        let mut words = line.split_whitespace();
        // An address with the interface that it is good for cannot be used without it.
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?.parse().ok()?;
        Some(SocketAddr::new(address, DNS_PORT))
    };
    text.lines().filter_map(address).take(MOST_RESOLVERS).collect()
}

fn hosts(text: &str) -> HashMap<String, Vec<IpAddr>> {
    let mut hosts: HashMap<String, Vec<IpAddr>> = HashMap::new();
    for line in text.lines() {
        let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
        let Some(address) = words.next().and_then(|word| word.parse().ok()) else { continue };
        for name in words {
            hosts.entry(name.to_ascii_lowercase()).or_default().push(address);
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_files_are_read_when_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
        let mut names = Names { resolvers: Cached::new(&path("r")), hosts: Cached::new(&path("h")) };
        assert!(names.resolvers().is_empty() && names.find("server").is_none());
        std::fs::write(path("r"), "search x\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\nnameserver ::1\n#x\n")
            .unwrap();
        std::fs::write(path("h"), "127.0.0.1 localhost\n127.0.1.1 Me\n::1 me # c\n192.0.2.7 server s\n").unwrap();
        assert_eq!(names.resolvers(), ["192.0.2.1:53".parse().unwrap(), "[::1]:53".parse().unwrap()]);
        let find =
            |names: &mut Names, name: &str| names.find(name).unwrap().iter().map(IpAddr::to_string).collect::<Vec<_>>();
        assert_eq!(find(&mut names, "s"), ["192.0.2.7"]);
        assert_eq!(find(&mut names, "me"), ["10.0.2.2"], "the host's own name leads to the host");
        assert_eq!(find(&mut names, "localhost"), ["127.0.0.1"]);
        assert_eq!(find(&mut names, "host.internal"), ["10.0.2.2"]);
        std::fs::remove_file(path("h")).unwrap();
        assert!(names.find("server").is_none());
    }
}
