//! What the network tells of itself in the report of a run. Only grows.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

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

pub(super) fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub(super) fn add(counter: &AtomicU64, number: usize) {
    counter.fetch_add(number as u64, Ordering::Relaxed);
}
