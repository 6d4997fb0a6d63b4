//! How other threads reach a vCPU: bits that it looks at between blocks, and a place where it sleeps.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Somebody wants `Vcpu::run` to return.
pub(super) const KICK: u32 = 1;
/// The local APIC may have an interrupt, NMI, INIT or SIPI.
pub(super) const INTERRUPT: u32 = 1 << 1;
/// Code that this vCPU may have decoded was written: see [`Attention::take_written`].
pub(super) const CODE: u32 = 1 << 2;

/// News that wake a CPU.
const MANY: usize = 512;

/// What other vCPUs tell about pages with code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CodeNews {
    /// A page (its index in RAM) now holds decoded code: writes to it must be noticed. The vCPU to be told when that is so.
    Decoded {
        /// Index of the page.
        page: u32,
        /// Who decoded.
        by: u32,
    },
    /// The answer: writes to this page are noticed from now on. There may have been some since it was decoded.
    Watched {
        /// Index of the page.
        page: u32,
    },
    /// Bytes of a page were written: 64-byte pieces, a bit each.
    Written {
        /// Index of the page.
        page: u32,
        /// Pieces.
        pieces: u64,
    },
}

/// One vCPU's side of it. All methods can be called from any thread and do not block for long.
#[derive(Debug, Default)]
pub(super) struct Attention {
    bits: AtomicU32,
    news: Mutex<Vec<CodeNews>>,
    asleep: Mutex<bool>,
    wake: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Attention {
    /// Sets `bits` and wakes the vCPU.
    pub(super) fn raise(&self, bits: u32) {
        if self.bits.fetch_or(bits, Ordering::SeqCst) & bits != bits {
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

    /// Tells about code. That wakes nobody: a CPU that sleeps neither writes nor executes, and looks before it goes on. But
    /// the news must not pile up.
    pub(super) fn tell(&self, news: CodeNews) {
        let mut all = lock(&self.news);
        all.push(news);
        let many = all.len() >= MANY;
        drop(all);
        self.bits.fetch_or(CODE, Ordering::SeqCst);
        if many {
            let _asleep = lock(&self.asleep);
            self.wake.notify_one();
        }
    }

    /// All news about code, oldest first. Call after taking [`CODE`].
    pub(super) fn take_news(&self) -> Vec<CodeNews> {
        std::mem::take(&mut lock(&self.news))
    }

    /// Sleeps until a bit is set or `limit` has passed. Only the vCPU's own thread sleeps.
    pub(super) fn sleep(&self, limit: Option<Duration>) {
        let mut asleep = lock(&self.asleep);
        *asleep = true;
        if self.bits.load(Ordering::SeqCst) == 0 {
            let quiet = |_: &mut bool| self.bits.load(Ordering::SeqCst) == 0;
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
            other.tell(CodeNews::Written { page: 3, pieces: 1 });
            other.raise(INTERRUPT);
        });
        attention.sleep(Some(Duration::from_secs(60)));
        assert!(start.elapsed() < Duration::from_secs(30));
        assert_eq!(attention.take(CODE | KICK | INTERRUPT), CODE | INTERRUPT);
        assert_eq!(attention.take_news(), [CodeNews::Written { page: 3, pieces: 1 }]);
        attention.raise(KICK);
        attention.sleep(None);
        assert_eq!(attention.take(CODE | KICK), KICK);
        thread.join().unwrap();
    }
}
