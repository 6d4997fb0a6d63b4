//! Keeps the guest's CPUs to a share of the host's (`--cpu-quota`).
//!
//! Best by the kernel, with a control group for the vCPU threads. Where the process may not make one, a thread of its own
//! watches how much CPU time they use and holds them all while they are ahead of their share: so the quota is kept on
//! every host and by every engine.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::cpus::{Cpus, NoAnswer};
use crate::host::cgroup::{CpuGroup, Unavailable};
use crate::host::clock::ThreadClock;
use crate::host::token_bucket::TokenBucket;
use crate::spec::CpuQuota;

/// Within this time the CPUs use their share and are then held; as the kernel's scheduler does it.
const PERIOD: Duration = Duration::from_millis(100);
/// Least time for which they run before it is looked how much they used.
const SHORTEST: Duration = Duration::from_millis(5);

/// Who keeps the quota.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeptBy {
    /// The kernel.
    Cgroup,
    /// This process, which holds the CPUs now and then.
    Pauses,
}

/// What the machine's report has of a quota.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Report {
    /// Percent of one host CPU.
    percent: f64,
    /// Who keeps it.
    kept_by: KeptBy,
}

/// A quota that is kept until this is dropped.
#[derive(Debug)]
pub(super) struct Quota {
    quota: CpuQuota,
    keeper: Keeper,
}

#[derive(Debug)]
enum Keeper {
    Cgroup { _group: CpuGroup },
    Pauses { _pacer: Pacer },
}

/// A quota cannot be kept at all.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    NoAnswer(#[from] NoAnswer),
    #[error("cannot start the thread that watches the CPU time of the vCPUs")]
    Thread(#[source] std::io::Error),
}

impl Quota {
    /// Keeps the threads of `cpus` to `quota` from now on.
    pub(super) fn keep(quota: CpuQuota, cpus: &Cpus) -> Result<Self, Error> {
        let keeper = match cgroup(quota, cpus)? {
            Ok(group) => Keeper::Cgroup { _group: group },
            Err(reason) => {
                tracing::warn!(
                    "--cpu-quota is kept by pausing the CPUs, not by the kernel ({reason}); for the kernel: \
                     systemd-run --user --scope -p Delegate=yes belljar .."
                );
                Keeper::Pauses { _pacer: Pacer::start(quota, cpus)? }
            }
        };
        Ok(Self { quota, keeper })
    }

    pub(super) fn report(&self) -> Report {
        let kept_by = match self.keeper {
            Keeper::Cgroup { .. } => KeptBy::Cgroup,
            Keeper::Pauses { .. } => KeptBy::Pauses,
        };
        Report { percent: f64::from(self.quota.thousandths()) / 10.0, kept_by }
    }
}

/// Puts all vCPU threads into a group of their own, if the host lets us.
fn cgroup(quota: CpuQuota, cpus: &Cpus) -> Result<Result<CpuGroup, Unavailable>, NoAnswer> {
    let group = match CpuGroup::new(quota.thousandths()) {
        Ok(group) => group,
        unavailable => return Ok(unavailable),
    };
    for index in 0..cpus.count() {
        if let Err(e) = group.add(cpus.with(index, |_| rustix::thread::gettid())?) {
            return Ok(Err(e));
        }
    }
    Ok(Ok(group))
}

/// The thread that watches and holds.
#[derive(Debug)]
struct Pacer {
    /// Dropping it ends the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Pacer {
    fn start(quota: CpuQuota, cpus: &Cpus) -> Result<Self, Error> {
        let (clocks, holder) = (cpus.clocks(), cpus.holder());
        let (stop, stopped) = channel();
        let slice = slice(quota, clocks.len() as u32);
        let mut pace = Pace::new(quota, Instant::now());
        let work = move || {
            let used = || clocks.iter().map(ThreadClock::time).sum::<Duration>();
            let goes_on = |time| stopped.recv_timeout(time) == Err(RecvTimeoutError::Timeout);
            while goes_on(slice) {
                if let Some(pause) = pace.used(used(), Instant::now()) {
                    let _held = holder.hold();
                    if !goes_on(pause) {
                        return;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("quota".into()).stack_size(64 << 10).spawn(work);
        Ok(Self { stop: Some(stop), thread: Some(thread.map_err(Error::Thread)?) })
    }
}

impl Drop for Pacer {
    fn drop(&mut self) {
        self.stop = None;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that keeps the CPU quota panicked");
        }
    }
}

/// How long CPUs run at a time: the part of a period in which all of them together can use their share.
fn slice(quota: CpuQuota, cpus: u32) -> Duration {
    let thousandths = quota.thousandths().min(1000 * cpus.max(1));
    (PERIOD * thousandths / (1000 * cpus.max(1))).clamp(SHORTEST, PERIOD / 2)
}

/// Decides when CPUs are to be held: CPU time is what passes a token bucket, in nanoseconds.
struct Pace {
    bucket: TokenBucket,
    used: Duration,
}

impl Pace {
    fn new(quota: CpuQuota, now: Instant) -> Self {
        let nanos = u64::from(quota.thousandths()) * 1_000_000;
        Self { bucket: TokenBucket::new(nanos, PERIOD, now), used: Duration::ZERO }
    }

    /// The CPUs have used this much time since they were made. How long they must be held, if at all.
    fn used(&mut self, total: Duration, now: Instant) -> Option<Duration> {
        let more = total.saturating_sub(self.used);
        self.used = total;
        self.bucket.spend(u64::try_from(more.as_nanos()).unwrap_or(u64::MAX), now);
        self.bucket.wait(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPU time that `cpus` busy CPUs get in `seconds`, as the pacer would have it.
    fn simulate(quota: &str, cpus: u32, seconds: u64) -> f64 {
        let quota: CpuQuota = quota.parse().unwrap();
        let start = Instant::now();
        let (mut now, mut used) = (start, Duration::ZERO);
        let mut pace = Pace::new(quota, start);
        while now < start + Duration::from_secs(seconds) {
            let slice = slice(quota, cpus);
            (now, used) = (now + slice, used + slice * cpus);
            now += pace.used(used, now).unwrap_or_default();
        }
        used.as_secs_f64() / (now - start).as_secs_f64()
    }

    #[test]
    fn busy_cpus_get_their_share_and_no_more() {
        for (quota, cpus, share) in [("50%", 1, 0.5), ("1%", 1, 0.01), ("150%", 4, 1.5), ("5%", 16, 0.05)] {
            let seen = simulate(quota, cpus, 100);
            assert!((seen - share).abs() < share * 0.05, "{quota} of {cpus}: {seen}");
        }
        assert!((simulate("400%", 2, 10) - 2.0).abs() < 0.01, "more than there is holds nobody");
    }

    #[test]
    fn an_idle_guest_may_use_a_little_more_for_a_moment() {
        let start = Instant::now();
        let mut pace = Pace::new("50%".parse().unwrap(), start);
        let later = start + Duration::from_secs(60);
        assert_eq!(pace.used(Duration::from_millis(20), later), None);
        assert!(pace.used(Duration::from_millis(60), later).is_some());
    }
}
