//! How other threads reach a vCPU: bits that it looks at between blocks, and a place where it sleeps.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustc_hash::FxHashMap;

/// Somebody wants `Vcpu::run` to return.
pub(super) const KICK: u32 = 1;
/// The local APIC may have an interrupt, NMI, INIT or SIPI.
pub(super) const INTERRUPT: u32 = 1 << 1;
/// There is news about code: see [`Attention::take_news`]. Does not wake a sleeping vCPU, which executes none.
pub(super) const CODE: u32 = 1 << 2;
/// There is much of it: until this vCPU hears it, others write to pages slowly that it may long have forgotten.
pub(super) const MUCH_CODE: u32 = 1 << 3;

/// News about code that a sleeping vCPU is woken for.
const MUCH: u32 = 32;

/// What other vCPUs tell about a page with code.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct CodeNews {
    /// Somebody decodes it: from now on writes to it must be noticed, and the others be told that some may have happened.
    pub(super) decoded: bool,
    /// It may have been written by somebody who did not know yet that it holds code.
    pub(super) doubtful: bool,
    /// Pieces of 64 bytes that were written, a bit each.
    pub(super) written: u64,
}

impl CodeNews {
    fn join(&mut self, more: Self) {
        self.decoded |= more.decoded;
        self.doubtful |= more.doubtful;
        self.written |= more.written;
    }
}

/// News by page (its index in RAM), so that what waits to be heard is bounded by what there is.
#[derive(Debug, Default)]
struct News {
    pages: FxHashMap<u32, CodeNews>,
    /// How often something was told since it was heard last.
    told: u32,
}

/// One vCPU's side of it. All methods can be called from any thread and do not block for long.
#[derive(Debug, Default)]
pub(super) struct Attention {
    bits: AtomicU32,
    news: Mutex<News>,
    asleep: Mutex<bool>,
    wake: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attention {
    /// Sets `bits` and wakes the vCPU.
    pub(super) fn raise(&self, bits: u32) {
        if self.bits.fetch_or(bits, Ordering::SeqCst) & bits != bits && bits != CODE {
            let asleep = lock(&self.asleep);
            if *asleep {
                self.wake.notify_one();
            }
        }
    }

    /// Whether anything wants attention: cheap, for the run loop.
    #[inline(always)]
    pub(super) fn any(&self) -> bool {
        self.bits.load(Ordering::Relaxed) != 0
    }

    /// Takes the bits that are set out of `mask`.
    pub(super) fn take(&self, mask: u32) -> u32 {
        self.bits.fetch_and(!mask, Ordering::SeqCst) & mask
    }

    /// Tells about code of page `page`.
    pub(super) fn tell(&self, page: u32, news: CodeNews) {
        let mut waiting = lock(&self.news);
        waiting.pages.entry(page).or_default().join(news);
        waiting.told += 1;
        let much = waiting.told.is_multiple_of(MUCH);
        drop(waiting);
        self.raise(if much { CODE | MUCH_CODE } else { CODE });
    }

    /// All news about code. Call after taking [`CODE`].
    pub(super) fn take_news(&self) -> FxHashMap<u32, CodeNews> {
        let mut waiting = lock(&self.news);
        waiting.told = 0;
        std::mem::take(&mut waiting.pages)
    }

    /// Sleeps until a bit other than [`CODE`] is set or `limit` has passed. Only the vCPU's own thread sleeps.
    pub(super) fn sleep(&self, limit: Option<Duration>) {
        let mut asleep = lock(&self.asleep);
        *asleep = true;
        let quiet = |_: &mut bool| self.bits.load(Ordering::SeqCst) & !CODE == 0;
        if quiet(&mut asleep) {
            asleep = match limit {
                Some(limit) => {
                    self.wake.wait_timeout_while(asleep, limit, quiet).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wake.wait_while(asleep, quiet).unwrap_or_else(PoisonError::into_inner),
            };
        }
        *asleep = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Instant;

    #[test]
    fn a_sleeper_is_woken_and_time_limits_hold() {
        let attention = Arc::new(Attention::default());
        attention.sleep(Some(Duration::from_millis(1)));
        assert!(!attention.any());
        let other = attention.clone();
        let start = Instant::now();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            for piece in 0..MUCH {
                other.tell(3, CodeNews { written: 1 << piece, ..CodeNews::default() });
            }
        });
        attention.sleep(Some(Duration::from_secs(60)));
        assert!(start.elapsed() < Duration::from_secs(30));
        assert_eq!(attention.take(CODE | MUCH_CODE | KICK), CODE | MUCH_CODE);
        let news: Vec<_> = attention.take_news().into_iter().collect();
        assert_eq!(news, [(3, CodeNews { written: u32::MAX.into(), ..CodeNews::default() })]);
        attention.tell(3, CodeNews { decoded: true, ..CodeNews::default() });
        let start = Instant::now();
        attention.sleep(Some(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20), "a little news wakes nobody");
        attention.raise(KICK);
        attention.sleep(None);
        assert_eq!(attention.take(CODE | KICK), CODE | KICK);
        thread.join().unwrap();
    }
}
