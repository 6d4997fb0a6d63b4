//! What a shared directory was asked for: numbers for the machine's report.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::fs::protocol::{Header, Opcode};

/// Above every number of an [`Opcode`].
const OPCODES: usize = 64;

/// Counted on the device's loop, read by whoever reports.
#[derive(Debug)]
pub(super) struct Asked {
    requests: [AtomicU64; OPCODES],
    read: AtomicU64,
    written: AtomicU64,
}

/// What the machine's report has of a share.
#[derive(Debug, serde::Serialize)]
pub(super) struct Report {
    /// Requests by the names of FUSE's opcodes, those that came.
    requests: BTreeMap<String, u64>,
    /// Bytes of files that the guest was given.
    read_bytes: u64,
    /// Bytes that it gave.
    written_bytes: u64,
}

impl Default for Asked {
    fn default() -> Self {
        let requests = [const { AtomicU64::new(0) }; OPCODES];
        Self { requests, read: AtomicU64::default(), written: AtomicU64::default() }
    }
}

impl Asked {
    /// A request came.
    pub(super) fn request(&self, header: &Header) {
        if let Some(count) = self.requests.get(header.opcode as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request was served by which `read` bytes went to the guest and `written` bytes came.
    pub(super) fn moved(&self, read: usize, written: usize) {
        self.read.fetch_add(read as u64, Ordering::Relaxed);
        self.written.fetch_add(written as u64, Ordering::Relaxed);
    }

    /// The numbers until now, over all mounts.
    pub(super) fn report(&self) -> Report {
        let came = |(number, count): (u32, &AtomicU64)| {
            let count = Some(count.load(Ordering::Relaxed)).filter(|&count| count != 0)?;
            Some((format!("{:?}", Opcode::new(number)?).to_lowercase(), count))
        };
        Report {
            requests: (0..).zip(&self.requests).filter_map(came).collect(),
            read_bytes: self.read.load(Ordering::Relaxed),
            written_bytes: self.written.load(Ordering::Relaxed),
        }
    }
}
