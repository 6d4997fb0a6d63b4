//! A memory balloon (virtio 1.3, section 5.5): the guest gives memory back to the host, on demand or as it frees it.
//!
//! [`BalloonHandle`] may be used on any thread; `Balloon` answers the transport on vCPU threads; pages are given
//! back on the event loop. Large pages of the host are split where a part of them is given back.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;

use crate::devices::builder::json;
use crate::devices::{AttachError, Builder, Key, Kind as DeviceKind, OptionError, Options, Spec};
use crate::host::alarm::Alarm;
use crate::mem::PAGE;
use crate::virtio::config::ConfigSpace;
use crate::virtio::{ActivateError, Handler, Info, VirtioDevice};

mod handler;
#[cfg(test)]
mod tests;

/// VIRTIO_BALLOON_F_STATS_VQ (section 5.5.3), as a bit number.
const F_STATS_VQ: u32 = 1;
/// VIRTIO_BALLOON_F_DEFLATE_ON_OOM.
const F_DEFLATE_ON_OOM: u32 = 2;
/// VIRTIO_BALLOON_F_PAGE_REPORTING.
const F_REPORTING: u32 = 5;

/// Requests that may wait in each queue. Linux makes one at a time, of up to 256 pages or 32 ranges.
const QUEUE_SIZE: u16 = 64;
/// Inflate, deflate, statistics, hints (never used), reports.
const QUEUES: usize = 5;

/// Bytes of the configuration (section 5.5.4): pages wanted, pages given.
const CONFIG_LEN: usize = 8;
const CONFIG_TARGET: usize = 0;
const CONFIG_ACTUAL: usize = 4;

/// `--balloon`.
#[derive(Debug)]
pub struct Kind;

const KEYS: &[Key] = &[
    Key { name: "size", value: "SIZE", about: "memory that the guest shall give back (0)" },
    Key { name: "deflate-on-oom", value: "on|off", about: "a guest that runs out of memory may take it again (on)" },
    Key { name: "stats", value: "SECONDS", about: "ask the guest for memory statistics this often (never)" },
    Key { name: "free-page-reporting", value: "on|off", about: "take back whatever the guest frees (off)" },
];

impl DeviceKind for Kind {
    fn name(&self) -> &'static str {
        "balloon"
    }

    fn about(&self) -> &'static str {
        "Memory balloon: the guest gives memory back to the host"
    }

    fn keys(&self) -> &'static [Key] {
        KEYS
    }

    fn repeatable(&self) -> bool {
        false
    }

    fn parse(&self, options: &mut Options) -> Result<Box<dyn Spec>, OptionError> {
        let stats = match options.text("stats") {
            None => None,
            Some(_) => Some(Duration::from_secs(options.number("stats", 1, 1..=86_400)?)),
        };
        Ok(Box::new(BalloonSpec {
            size: options.size("size")?.unwrap_or(0),
            wishes: Wishes {
                deflate_on_oom: options.switch("deflate-on-oom", true)?,
                stats,
                reporting: options.switch("free-page-reporting", false)?,
            },
        }))
    }
}

#[derive(Debug, Clone, Copy)]
struct Wishes {
    deflate_on_oom: bool,
    stats: Option<Duration>,
    reporting: bool,
}

#[derive(Debug)]
struct BalloonSpec {
    /// In bytes.
    size: u64,
    wishes: Wishes,
}

impl Spec for BalloonSpec {
    fn timed(&self) -> Option<&'static str> {
        self.wishes.stats.map(|_| "--balloon stats")
    }

    fn attach(&self, builder: &mut Builder<'_>) -> Result<(), AttachError> {
        let ram = builder.ram.size();
        if self.size >= ram {
            let (size, ram) = (self.size >> 20, ram >> 20);
            return Err(AttachError(format!("--balloon: the guest cannot give {size} MiB back, it has {ram} MiB")));
        }
        let balloon = Balloon::new(self.wishes);
        balloon.handle.set_target(self.size);
        let handle = balloon.handle.clone();
        builder.balloon = Some(handle.clone());
        let name = builder.virtio("balloon", Box::new(balloon));
        builder.report(name, move || json(&handle.report()));
        Ok(())
    }
}

/// Statistics of the guest, by the numbers that the specification gives them (section 5.5.6.4).
const STATISTICS: [&str; 16] = [
    "swap-in-bytes",
    "swap-out-bytes",
    "major-faults",
    "minor-faults",
    "free-bytes",
    "total-bytes",
    "available-bytes",
    "cache-bytes",
    "huge-page-allocations",
    "huge-page-failures",
    "oom-kills",
    "allocation-stalls",
    "async-scans",
    "direct-scans",
    "async-reclaims",
    "direct-reclaims",
];

/// What the machine's report has of a balloon.
#[derive(Debug, Serialize)]
struct Report {
    /// Bytes that the guest shall give, and has given.
    target_bytes: u64,
    actual_bytes: u64,
    /// Bytes that went back to the host since the machine started: by the balloon, and because the guest freed them.
    inflated_bytes: u64,
    reported_bytes: u64,
    /// What the guest last said of its memory.
    guest: BTreeMap<String, u64>,
}

/// Bytes given back to the host so far.
#[derive(Debug, Default)]
struct Given {
    inflated: AtomicU64,
    reported: AtomicU64,
}

/// What a guest said of its memory: name and value, those that it knows.
pub type Statistics = Vec<(&'static str, u64)>;

/// Steers a balloon from outside the guest. Clones steer the same one; any thread may.
#[derive(Debug, Clone)]
pub struct BalloonHandle {
    config: ConfigSpace,
    latest: Arc<Mutex<Statistics>>,
    given: Arc<Given>,
}

impl BalloonHandle {
    fn pages(&self, offset: usize) -> u64 {
        let mut bytes = [0; 4];
        self.config.read(offset, &mut bytes);
        u64::from(u32::from_le_bytes(bytes)) * PAGE
    }

    /// The guest shall give back this many bytes in all (rounded down to pages). It does so in its own time.
    pub fn set_target(&self, bytes: u64) {
        let pages = u32::try_from(bytes / PAGE).unwrap_or(u32::MAX);
        self.config.set(CONFIG_TARGET, &pages.to_le_bytes());
        self.config.announce();
    }

    /// What was last asked for, in bytes.
    pub fn target(&self) -> u64 {
        self.pages(CONFIG_TARGET)
    }

    /// What the guest says it has given, in bytes.
    pub fn actual(&self) -> u64 {
        self.pages(CONFIG_ACTUAL)
    }

    /// What the guest last said of its memory; empty if it was not asked or did not answer.
    pub fn statistics(&self) -> Statistics {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn report(&self) -> Report {
        Report {
            target_bytes: self.target(),
            actual_bytes: self.actual(),
            inflated_bytes: self.given.inflated.load(Ordering::Relaxed),
            reported_bytes: self.given.reported.load(Ordering::Relaxed),
            guest: self.statistics().into_iter().map(|(name, value)| (name.replace('-', "_"), value)).collect(),
        }
    }

    fn set_statistics(&self, statistics: Statistics) {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner) = statistics;
    }
}

struct Balloon {
    handle: BalloonHandle,
    wishes: Wishes,
}

impl Balloon {
    fn new(wishes: Wishes) -> Self {
        let handle =
            BalloonHandle { config: ConfigSpace::new(CONFIG_LEN), latest: Arc::default(), given: Arc::default() };
        Self { handle, wishes }
    }
}

impl VirtioDevice for Balloon {
    fn info(&self) -> Info {
        let bits = [
            (F_DEFLATE_ON_OOM, self.wishes.deflate_on_oom),
            (F_STATS_VQ, self.wishes.stats.is_some()),
            (F_REPORTING, self.wishes.reporting),
        ];
        let features = bits.iter().filter(|(_, on)| *on).fold(0, |all, (bit, _)| all | 1 << bit);
        let queue_sizes = vec![QUEUE_SIZE; QUEUES];
        Info { id: VIRTIO_ID_BALLOON as u16, features, queue_sizes, blocking: false }
    }

    fn config(&self) -> &ConfigSpace {
        &self.handle.config
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) {
        // The driver may only say how much it has given.
        if offset == CONFIG_ACTUAL && data.len() == CONFIG_LEN - CONFIG_ACTUAL {
            self.handle.config.set(offset, data);
        }
    }

    fn activate(&mut self, features: u64) -> Result<Box<dyn Handler>, ActivateError> {
        // Not at the reset: what a guest said last before it went down is for the report.
        self.handle.set_statistics(Vec::new());
        let has = |bit: u32| features & 1 << bit != 0;
        let stats = self.wishes.stats.filter(|_| has(F_STATS_VQ));
        let clock = |interval| Alarm::new().map(|alarm| (alarm, interval));
        let stats = stats.map(clock).transpose().map_err(|e| ActivateError(format!("cannot make a timer: {e}")))?;
        Ok(Box::new(handler::BalloonHandler::new(self.handle.clone(), stats, has(F_REPORTING))))
    }

    fn reset(&mut self) {
        self.handle.config.set(CONFIG_ACTUAL, &[0; 4]);
    }
}
