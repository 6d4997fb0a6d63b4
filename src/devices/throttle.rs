//! How much a device may do in a second: `bw=` and `ops=` of disks and network cards.
//!
//! A [`Throttle`] is asked before a request is taken from a queue and told after what it cost. A queue that is held back
//! stays as it is, the alarm of the throttle rings when it may go on. It belongs to the device rather than to the
//! handler: a guest that resets its device gets no new burst. Used on event loop threads.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{Key, OptionError, Options};
use crate::host::alarm::Alarm;
use crate::host::token_bucket::TokenBucket;

/// Key of the bytes per second.
pub const BANDWIDTH: Key = Key { name: "bw", value: "SIZE", about: "most bytes per second, e.g. 10M (no limit)" };
/// Key of the requests per second.
pub const OPERATIONS: Key = Key { name: "ops", value: "N", about: "most requests per second (no limit)" };

/// What a device that did nothing for a while may do at once: so much as in this time.
const BURST: Duration = Duration::from_secs(1);
/// Least time for which a queue is held back. Shorter sleeps would cost the host more than they slow the guest.
const SHORTEST: Duration = Duration::from_millis(2);
/// Longest time until a queue that is held back looks again.
const LONGEST: Duration = Duration::from_millis(if cfg!(test) { 20 } else { 1000 });

/// Limits as given: per second.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Bytes.
    pub bytes: Option<u64>,
    /// Requests.
    pub operations: Option<u64>,
}

impl Rates {
    /// What `bw=` and `ops=` say.
    pub fn parse(options: &Options) -> Result<Self, OptionError> {
        let bytes = options.size(BANDWIDTH.name)?;
        if bytes == Some(0) {
            return Err(options.error("bw=0: give at least one byte per second, or leave it out for no limit"));
        }
        let operations = match options.text(OPERATIONS.name) {
            None => None,
            Some(_) => Some(options.number(OPERATIONS.name, 1, 1..=u64::from(u32::MAX))?),
        };
        Ok(Self { bytes, operations })
    }

    /// Whether there is no limit at all.
    pub fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    /// What keeps to these limits; `None` if there are none.
    pub fn throttle(&self) -> io::Result<Option<Arc<Throttle>>> {
        if self.is_unlimited() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Throttle { buckets: Mutex::new(Buckets::full(self)), alarm: Alarm::new()? })))
    }
}

#[derive(Debug)]
struct Buckets {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
}

impl Buckets {
    fn full(rates: &Rates) -> Self {
        let now = Instant::now();
        let bucket = |rate: u64| TokenBucket::new(rate, BURST, now);
        Self { bytes: rates.bytes.map(bucket), operations: rates.operations.map(bucket) }
    }
}

/// Keeps the requests of a device to a rate.
#[derive(Debug)]
pub struct Throttle {
    buckets: Mutex<Buckets>,
    alarm: Alarm,
}

impl Throttle {
    fn buckets(&self) -> MutexGuard<'_, Buckets> {
        self.buckets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the next request must wait. If so, the alarm rings when to ask again.
    pub fn holds_back(&self) -> bool {
        let now = Instant::now();
        let buckets = self.buckets();
        let wait = [&buckets.bytes, &buckets.operations].into_iter().flatten().filter_map(|b| b.wait(now)).max();
        wait.is_some_and(|wait| {
            self.alarm.set(wait.clamp(SHORTEST, LONGEST));
            true
        })
    }

    /// One request passed, with this many bytes of data.
    pub fn passed(&self, bytes: usize) {
        let now = Instant::now();
        let mut buckets = self.buckets();
        if let Some(bucket) = &mut buckets.bytes {
            bucket.spend(bytes as u64, now);
        }
        if let Some(bucket) = &mut buckets.operations {
            bucket.spend(1, now);
        }
    }

    /// The alarm rang. Called before the queues are looked at.
    pub fn rang(&self) {
        self.alarm.stop();
    }

    /// Readable when queues that were held back are to be looked at again.
    pub fn fd(&self) -> RawFd {
        self.alarm.as_raw_fd()
    }

    /// Takes so many tokens that nothing passes until [`Throttle::refill`], however long a test takes.
    #[cfg(test)]
    pub(crate) fn exhaust(&self) {
        let mut buckets = self.buckets();
        let Buckets { bytes, operations } = &mut *buckets;
        bytes.iter_mut().chain(operations).for_each(|bucket| bucket.spend(1 << 40, Instant::now()));
    }

    /// All buckets are full again.
    #[cfg(test)]
    pub(crate) fn refill(&self, rates: &Rates) {
        *self.buckets() = Buckets::full(rates);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: &[Key] = &[BANDWIDTH, OPERATIONS];

    fn rates(text: &str) -> Result<Rates, String> {
        let options = Options::from_flag("disk", KEYS, text).map_err(|e| e.to_string())?;
        Rates::parse(&options).map_err(|e| e.to_string())
    }

    #[test]
    fn limits_are_read() {
        assert_eq!(rates("bw=10M,ops=100"), Ok(Rates { bytes: Some(10 << 20), operations: Some(100) }));
        assert!(rates("").unwrap().is_unlimited() && rates("").unwrap().throttle().unwrap().is_none());
        assert!(rates("bw=0").unwrap_err().contains("leave it out for no limit"));
        assert!(rates("bw=fast").unwrap_err().contains("bw=fast: give a size such as"));
        assert!(rates("ops=0").unwrap_err().contains("ops=0: give a number from 1"));
    }

    #[test]
    fn either_limit_holds_back_and_lets_go() {
        for text in ["bw=1M", "ops=1000000", "bw=1K,ops=1K"] {
            let rates = rates(text).unwrap_or(Rates { bytes: Some(1024), operations: Some(1024) });
            let throttle = rates.throttle().unwrap().unwrap();
            assert!(!throttle.holds_back(), "{text}");
            throttle.passed(1);
            throttle.exhaust();
            assert!(throttle.holds_back(), "{text}");
            throttle.rang();
            throttle.refill(&rates);
            assert!(!throttle.holds_back(), "{text}");
        }
    }
}
