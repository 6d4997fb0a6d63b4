//! Interrupting a thread that is in a system call: what a vCPU kick needs.

// UNSAFETY: installs a signal handler and sends signals to threads by number.
#![expect(unsafe_code)]

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
