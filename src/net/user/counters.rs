//! What the network tells of itself in the report of a run. Only grows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

/// What a guest that tries everything may write into the report.
const MOST_DENIALS: usize = 100;

/// Numbers since the network was made.
#[derive(Debug, Default, Serialize)]
pub struct Counters {
    /// TCP connections that were made, either way.
    pub tcp_connections: AtomicU64,
    /// Connections that the other side refused or that could not be reached.
    pub tcp_failed: AtomicU64,
    /// Flows of UDP, either way.
    pub udp_flows: AtomicU64,
    /// Names that the guest asked for.
    pub dns_queries: AtomicU64,
    /// Echo requests to hosts outside.
    pub pings: AtomicU64,
    /// Bytes of TCP and UDP from the guest to the world.
    pub sent_bytes: AtomicU64,
    /// The same the other way.
    pub received_bytes: AtomicU64,
    /// Connections and packets that the rules forbid.
    pub denied: AtomicU64,
    /// How often what was forbidden, such as `tcp 192.0.2.1:443`, `udp [2001:db8::1]:123`, `ping 192.0.2.1` or
    /// `name example.org`: the first hundred different ones.
    pub denials: Mutex<BTreeMap<String, u64>>,
    /// Connections and flows that there was no room for.
    pub over_limit: AtomicU64,
    /// Frames of the guest that were not valid, not for anybody here, or from an address that is not the guest's.
    pub dropped: AtomicU64,
    /// Published ports: where the host listens, and the guest's port.
    pub published: Mutex<Vec<Published>>,
}

/// A published port.
#[derive(Debug, Clone, Serialize)]
pub struct Published {
    /// Address and port of the host.
    pub listen: String,
    /// Port of the guest.
    pub guest: u16,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
}

impl Counters {
    /// The rules forbid `what`.
    pub(super) fn deny(&self, what: String) {
        count(&self.denied);
        let mut denials = self.denials.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(times) = denials.get_mut(&what) {
            *times += 1;
        } else if denials.len() < MOST_DENIALS {
            denials.insert(what, 1);
        }
    }
}

pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub(super) fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}
