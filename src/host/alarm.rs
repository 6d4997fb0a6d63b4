//! An alarm that any thread may set and an event loop hears. Setting it costs no system call if it rings early enough.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Readable from the time it was set to until [`Alarm::stop`].
#[derive(Debug)]
pub struct Alarm {
    fd: OwnedFd,
    due: Mutex<Option<Instant>>,
}

impl Alarm {
    /// An alarm that is not set.
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        Ok(Self { fd, due: Mutex::new(None) })
    }

    /// Rings after `delay`, or earlier if it is already set to an earlier time.
    pub fn set(&self, delay: Duration) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let at = Instant::now() + delay;
        if due.is_some_and(|due| due <= at) {
            return;
        }
        // Zero would switch the timer off.
        let delay = delay.max(Duration::from_nanos(1));
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: delay.as_secs().cast_signed(), tv_nsec: delay.subsec_nanos().into() },
        };
        match timerfd_settime(&self.fd, TimerfdTimerFlags::empty(), &once) {
            Ok(_) => *due = Some(at),
            Err(e) => tracing::error!("cannot set a timer: {e}"),
        }
    }

    /// Forgets that it rang. The event loop calls this before it looks at what there is to do.
    pub fn stop(&self) {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        // Nothing to read means that it was set again meanwhile: then it rings again.
        if rustix::io::read(&self.fd, &mut [0; 8]).is_ok() {
            *due = None;
        }
    }
}

impl AsFd for Alarm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Alarm {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, poll};

    fn rings_within(alarm: &Alarm, seconds: i64) -> bool {
        let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
        poll(&mut [PollFd::new(&alarm.fd, PollFlags::IN)], Some(&time)).unwrap() == 1
    }

    #[test]
    fn the_earliest_time_counts() {
        let alarm = Alarm::new().unwrap();
        assert!(!rings_within(&alarm, 0));
        alarm.set(Duration::from_secs(1000));
        alarm.set(Duration::ZERO);
        alarm.set(Duration::from_secs(500));
        assert!(rings_within(&alarm, 10));
        alarm.stop();
        assert!(!rings_within(&alarm, 0));
        alarm.set(Duration::from_millis(1));
        assert!(rings_within(&alarm, 10), "it can be set again");
    }
}
