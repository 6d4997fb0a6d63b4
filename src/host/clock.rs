//! Clocks: the monotonic one as a number that other processes can compare with, and CPU time of threads.

// UNSAFETY: asks for the CPU clock of another thread.
#![expect(unsafe_code)]

use std::io;
use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::Duration;

/// Nanoseconds on `CLOCK_MONOTONIC`, the same for all processes.
pub fn monotonic_nanos() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// The CPU clock of one thread of this process, which any other may read.
#[derive(Debug, Clone, Copy)]
pub struct ThreadClock(libc::clockid_t);

impl ThreadClock {
    /// That of a thread that was not joined yet.
    pub fn of<T>(thread: &JoinHandle<T>) -> io::Result<Self> {
        let mut clock = 0;
        // SAFETY: the handle exists, so the thread was not joined and its id is valid; the out-pointer is to a local.
        match unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &mut clock) } {
            0 => Ok(Self(clock)),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// CPU time that the thread has used; zero if it has ended.
    pub fn time(&self) -> Duration {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the out-pointer is to a local; the clock of an ended thread gives an error, not a fault.
        let known = unsafe { libc::clock_gettime(self.0, &mut time) == 0 };
        if known { Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32) } else { Duration::ZERO }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_work_use_time() {
        let worker = std::thread::spawn(|| {
            let start = std::time::Instant::now();
            while start.elapsed() < Duration::from_millis(20) {}
            std::thread::sleep(Duration::from_secs(2));
        });
        let limit = monotonic_nanos() + 1_900_000_000;
        let clock = ThreadClock::of(&worker).unwrap();
        while clock.time() < Duration::from_millis(1) {
            assert!(monotonic_nanos() < limit, "no CPU time seen");
            std::thread::sleep(Duration::from_millis(5));
        }
        worker.join().unwrap();
    }
}
