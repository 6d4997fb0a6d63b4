//! A token bucket: how much of something may pass in a second.
//!
//! What passes takes as many tokens as it costs; they come back at a constant rate, up to what the bucket holds. It may
//! pass as soon as there is one token, and takes the rest in debt: so nothing is too large ever to pass, and the cost
//! need not be known before. Over time no more passes than the rate says, plus one full bucket at the start.
//!
//! All of this is one number, the time when the bucket is full again. Nothing here reads a clock.

use std::time::{Duration, Instant};

/// A bucket of tokens.
#[derive(Debug, Clone)]
pub struct TokenBucket {
    /// Tokens per second; not 0.
    rate: u64,
    /// How long an empty bucket takes to become full.
    depth: Duration,
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket that gets `rate` tokens per second (at least 1), and holds as many as it gets in `depth`.
    pub fn new(rate: u64, depth: Duration, now: Instant) -> Self {
        let rate = rate.max(1);
        // It can hold at least one, or nothing would ever pass.
        Self { rate, depth: depth.max(time_for(1, rate)), full_at: now }
    }

    /// How long until something may pass; `None`: it may now.
    pub fn wait(&self, now: Instant) -> Option<Duration> {
        let missing = self.full_at.saturating_duration_since(now) + time_for(1, self.rate);
        missing.checked_sub(self.depth).filter(|wait| !wait.is_zero())
    }

    /// Something passed that cost this many tokens.
    pub fn spend(&mut self, tokens: u64, now: Instant) {
        let full_at = self.full_at.max(now);
        // An end of time that no machine lives to see.
        self.full_at = full_at.checked_add(time_for(tokens, self.rate)).unwrap_or(full_at);
    }
}

/// How long `tokens` take to come back.
fn time_for(tokens: u64, rate: u64) -> Duration {
    let nanos = u128::from(tokens) * 1_000_000_000 / u128::from(rate);
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ms(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    #[test]
    fn a_full_bucket_passes_at_once_and_then_at_its_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(100, SECOND, start);
        for passed in 0..100 {
            assert_eq!(bucket.wait(start), None, "{passed}");
            bucket.spend(1, start);
        }
        assert_eq!(bucket.wait(start), Some(ms(10)));
        assert_eq!(bucket.wait(start + ms(9)), Some(ms(1)));
        assert_eq!(bucket.wait(start + ms(10)), None);
        bucket.spend(1, start + ms(10));
        assert_eq!(bucket.wait(start + ms(10)), Some(ms(10)));
        // However long nothing passes, the bucket holds no more than a second's worth.
        let later = start + ms(3_600_000);
        (0..100).for_each(|_| bucket.spend(1, later));
        assert_eq!(bucket.wait(later), Some(ms(10)));
    }

    #[test]
    fn what_costs_more_than_the_bucket_holds_passes_in_debt() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(1000, SECOND, start);
        assert_eq!(bucket.wait(start), None);
        bucket.spend(5000, start);
        assert_eq!(bucket.wait(start), Some(ms(4001)));
        assert_eq!(bucket.wait(start + ms(4001)), None);
    }

    #[test]
    fn over_time_no_more_passes_than_the_rate_says() {
        let start = Instant::now();
        let (mut now, mut passed) = (start, 0);
        let mut bucket = TokenBucket::new(1 << 20, SECOND, start);
        for size in [512, 65536, 3 << 20, 1].into_iter().cycle().take(1000) {
            if let Some(wait) = bucket.wait(now) {
                now += wait;
                assert_eq!(bucket.wait(now), None, "once is enough");
            }
            bucket.spend(size, now);
            passed += size;
        }
        let most = (now - start).as_secs_f64() * f64::from(1 << 20) + f64::from(4 << 20);
        assert!((most - f64::from(8 << 20)..=most).contains(&(passed as f64)), "{passed} of {most}");
    }

    #[test]
    fn extremes_neither_overflow_nor_block_for_ever() {
        let start = Instant::now();
        let mut slow = TokenBucket::new(0, Duration::ZERO, start);
        assert_eq!(slow.wait(start), None, "one token fits at least");
        for _ in 0..3 {
            slow.spend(u64::MAX, start);
        }
        assert!(slow.wait(start).is_some());
        let mut fast = TokenBucket::new(u64::MAX, SECOND, start);
        fast.spend(u64::MAX - 1, start);
        assert_eq!(fast.wait(start), None);
    }
}
