//! Signals: interrupting a thread that is in a system call (a vCPU kick), and receiving the process's signals as
//! readable events instead of handlers.

// UNSAFETY: installs a signal handler, sends signals to threads by number, reads a signalfd.
#![expect(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Once;

/// Kernel id of a thread of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThreadId(libc::pid_t);

extern "C" fn nothing(_: libc::c_int) {}

fn number() -> libc::c_int {
    libc::SIGRTMIN()
}

/// The calling thread; from now on [`interrupt`] makes its system calls return EINTR.
pub fn this_thread() -> ThreadId {
    static HANDLER: Once = Once::new();
    HANDLER.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one (default handler, empty mask, no flags).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = nothing as *const () as usize;
        // SAFETY: the handler does nothing, so it is safe at any point of any thread; both pointers are valid or null.
        // Without SA_RESTART, interrupted calls return EINTR. The call can only fail for a number out of range.
        unsafe { libc::sigaction(number(), &action, std::ptr::null_mut()) };
    });
    // SAFETY: has no preconditions.
    ThreadId(unsafe { libc::gettid() })
}

/// Interrupts what `thread` is doing. A thread that has ended is not noticed.
pub fn interrupt(thread: ThreadId) {
    // SAFETY: the signal goes to a thread of this process only (tgkill checks the pair) and its handler does nothing.
    unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread.0, number()) };
}

/// Writing beyond the limit of file sizes (`ulimit -f`) is from now on an error in the calling thread, not the end of the
/// process: it is guests that decide how far they write.
pub fn survive_file_size_limit() {
    // SAFETY: as in `Signals::receive`. The call can only fail for an unknown way.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGXFSZ);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
    }
}

/// Some signals as a readable descriptor. While it exists they do nothing else, in the thread that made it and in all
/// threads started from it later; make it before any thread.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    before: libc::sigset_t,
}

impl Signals {
    /// Receives `signals` from now on.
    pub fn receive(signals: &[libc::c_int]) -> io::Result<Self> {
        // SAFETY: sigset_t is plain data for which all zeros is a valid value; sigemptyset then initialises it.
        let (mut set, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
        // SAFETY: `set` and `before` are locals that outlive the calls; bad signal numbers are refused, not undefined.
        let fd = unsafe {
            libc::sigemptyset(&mut set);
            for &signal in signals {
                libc::sigaddset(&mut set, signal);
            }
            let status = libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before);
            if status != 0 {
                return Err(io::Error::from_raw_os_error(status));
            }
            libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just created and nobody else owns it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) }, before })
    }

    /// The next signal that has arrived, if any. Never blocks.
    pub fn next(&self) -> Option<libc::c_int> {
        let mut info = [0; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut info) {
            // The signal's number is the first field, a u32.
            Ok(n) if n == info.len() => info.first_chunk().map(|number| i32::from_ne_bytes(*number)),
            _ => None,
        }
    }
}

impl AsRawFd for Signals {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl std::os::fd::AsFd for Signals {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // SAFETY: `before` was filled by pthread_sigmask when this was made.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_arrive_as_events() {
        let signals = Signals::receive(&[libc::SIGUSR2]).unwrap();
        assert_eq!(signals.next(), None);
        // Directed at this thread: another thread of the test process does not block it and would die of it.
        let me = this_thread();
        // SAFETY: the signal is blocked in this thread, so it only becomes pending.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), me.0, libc::SIGUSR2) };
        assert_eq!(signals.next(), Some(libc::SIGUSR2));
    }

    #[test]
    fn interrupting_wakes_a_sleeping_thread() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let sleeper = std::thread::spawn(move || {
            sender.send(this_thread()).unwrap();
            let long = libc::timespec { tv_sec: 60, tv_nsec: 0 };
            // SAFETY: `long` is a valid time and the remaining time is not asked for.
            unsafe { libc::nanosleep(&long, std::ptr::null_mut()) }
        });
        let id = receiver.recv().unwrap();
        while !sleeper.is_finished() {
            interrupt(id);
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        assert_eq!(sleeper.join().unwrap(), -1, "interrupted");
    }
}
