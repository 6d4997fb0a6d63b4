//! Gives pages back to the host and keeps the guest's statistics. Runs on the event loop.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{BalloonHandle, STATISTICS, Statistics};
use crate::host::alarm::Alarm;
use crate::host::log_limit::LogLimit;
use crate::mem::{PAGE, Ram};
use crate::virtio::queue::Queues;
use crate::virtio::{Broken, Chain, Handler};

/// Queues (section 5.5.2).
const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATS: usize = 2;

/// Token of the alarm.
const ALARM: u32 = 0;

/// Page numbers handled at once; a page number has four bytes.
const BATCH: usize = 1024;
/// Batches taken from one request: 256 MiB. Others wait meanwhile, and no driver gives so much at once.
const MOST_BATCHES: usize = 64;

/// Bytes of one statistic: number and value (section 5.5.6.4).
const STATISTIC_LEN: usize = 10;
/// Statistics looked at in one request: all that there are, and some to come.
const MOST_STATISTICS: usize = 32;

pub(super) struct BalloonHandler {
    handle: BalloonHandle,
    /// When to ask for statistics, and how often.
    stats: Option<(Alarm, Duration)>,
    reporting: bool,
    /// The buffer that asks for new statistics when it is given back.
    question: Option<Chain>,
}

impl BalloonHandler {
    pub(super) fn new(handle: BalloonHandle, stats: Option<(Alarm, Duration)>, reporting: bool) -> Self {
        Self { handle, stats, reporting, question: None }
    }

    /// A request with statistics has come. It is kept until the next are due.
    fn statistics(&mut self, mut chain: Chain, queues: &mut Queues) -> Result<(), Broken> {
        static RECEIVED: LogLimit = LogLimit::new();
        let statistics = read_statistics(&mut chain);
        if RECEIVED.allow() {
            tracing::debug!("memory of the guest: {statistics:?}");
        }
        self.handle.set_statistics(statistics);
        if let Some((alarm, interval)) = &self.stats {
            alarm.set(*interval);
        }
        // There should be only one.
        self.question.replace(chain).map_or(Ok(()), |older| queues.queue(STATS).push(older, 0))
    }
}

impl Handler for BalloonHandler {
    fn fds(&self) -> Vec<(RawFd, u32)> {
        self.stats.iter().map(|(alarm, _)| (alarm.as_raw_fd(), ALARM)).collect()
    }

    fn on_queue(&mut self, index: usize, queues: &mut Queues) -> Result<(), Broken> {
        while let Some(mut chain) = queues.queue(index).pop()? {
            match index {
                INFLATE => {
                    let bytes = inflate(queues.ram(), &mut chain);
                    self.handle.given.inflated.fetch_add(bytes, Ordering::Relaxed);
                }
                // The guest takes pages again by using them.
                DEFLATE => {}
                STATS if self.stats.is_some() => {
                    self.statistics(chain, queues)?;
                    continue;
                }
                // Drivers number the queues that they use one after the other, the specification numbers all.
                _ if self.reporting => {
                    let bytes = report(queues.ram(), &chain);
                    self.handle.given.reported.fetch_add(bytes, Ordering::Relaxed);
                }
                _ => {}
            }
            queues.queue(index).push(chain, 0)?;
        }
        Ok(())
    }

    fn on_fd(&mut self, _: u32, queues: &mut Queues) -> Result<(), Broken> {
        if let Some((alarm, _)) = &self.stats {
            alarm.stop();
        }
        self.question.take().map_or(Ok(()), |chain| queues.queue(STATS).push(chain, 0))
    }
}

/// Gives the pages back whose numbers are in `chain`; returns how many bytes. Numbers that are no RAM mean nothing.
fn inflate(ram: &Ram, chain: &mut Chain) -> u64 {
    let mut given = 0;
    let mut bytes = [0; 4 * BATCH];
    let mut pages = [0; BATCH];
    for _ in 0..MOST_BATCHES {
        let count = chain.read(&mut bytes);
        let numbers = bytes.get(..count).unwrap_or_default().as_chunks::<4>().0;
        if numbers.is_empty() {
            break;
        }
        pages.iter_mut().zip(numbers).for_each(|(page, number)| *page = u32::from_le_bytes(*number));
        let pages = pages.get_mut(..numbers.len()).unwrap_or_default();
        pages.sort_unstable();
        for run in pages.chunk_by(|a, b| b - a <= 1) {
            let (Some(&first), Some(&last)) = (run.first(), run.last()) else { continue };
            given += discard(ram, u64::from(first) * PAGE, (u64::from(last) + 1) * PAGE);
        }
    }
    given
}

/// Gives the memory of a request's buffers back, which the guest does not use; returns how many bytes.
fn report(ram: &Ram, chain: &Chain) -> u64 {
    let mut given = 0;
    for buf in chain.writable() {
        if let Some(at) = ram.guest_address(buf) {
            let end = (at + buf.len() as u64) / PAGE * PAGE;
            given += discard(ram, at.next_multiple_of(PAGE), end);
        }
    }
    given
}

/// Gives back what is RAM from `start` to `end`, which are page-aligned; returns how many bytes.
fn discard(ram: &Ram, start: u64, end: u64) -> u64 {
    static FAILED: LogLimit = LogLimit::new();
    let mut given = 0;
    for region in ram.regions() {
        let (from, to) = (start.max(region.start), end.min(region.start.saturating_add(region.len)));
        let Some(len) = to.checked_sub(from).filter(|&len| len > 0) else { continue };
        match ram.discard(from, len) {
            Ok(()) => given += len,
            Err(e) if FAILED.allow() => tracing::warn!("balloon: memory was not given back: {e}"),
            Err(_) => {}
        }
    }
    given
}

fn read_statistics(chain: &mut Chain) -> Statistics {
    let mut statistics = Vec::new();
    for _ in 0..MOST_STATISTICS {
        let mut entry = [0; STATISTIC_LEN];
        if chain.read(&mut entry) < STATISTIC_LEN {
            break;
        }
        let [n0, n1, value @ ..] = entry;
        if let Some(name) = STATISTICS.get(usize::from(u16::from_le_bytes([n0, n1]))) {
            statistics.push((*name, u64::from_le_bytes(value)));
        }
    }
    statistics
}
