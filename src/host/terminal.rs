//! The user's terminal in raw mode, so that every key reaches the guest; given back whatever happens.
//!
//! Made by the console's stream (`host::stream`) when standard input is a terminal. Raw mode ends when the guard is
//! dropped, on `exit`, on a panic, and on signals that end the program; it pauses while the program is stopped
//! (SIGTSTP) and returns when it continues in the foreground (SIGCONT). [`restore`] may be called from anywhere.
//!
//! Signal handlers for SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGABRT are installed only where nobody else did;
//! whoever installs one later calls [`restore`] in it, or drops the guard on its way out.

// UNSAFETY: installs signal handlers, and what they do must be safe at any point of any thread.
#![expect(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicPtr, AtomicU8, Ordering};
use std::sync::{Once, OnceLock};

use rustix::event::{EventfdFlags, eventfd};
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetpgrp, tcgetwinsize, tcsetattr};

/// Signals that end a program that does not handle them.
const FATAL: [libc::c_int; 5] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGABRT];

/// No guard exists.
const FREE: u8 = 0;
/// A guard exists and the terminal is raw.
const RAW: u8 = 1;
/// A guard exists and the terminal is as it was: the program is stopped or in the background.
const PAUSED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(FREE);
/// The terminal in use; never freed, because a handler may be looking at it (one small block per guard).
static MODES: AtomicPtr<Modes> = AtomicPtr::new(std::ptr::null_mut());
/// Signalled when the window may have another size; made once, never closed.
static RESIZED: OnceLock<OwnedFd> = OnceLock::new();

struct Modes {
    fd: OwnedFd,
    before: Termios,
    raw: Termios,
}

/// Keeps the terminal raw while it lives. One at a time.
#[derive(Debug)]
pub struct Terminal(());

/// Size of a terminal's window in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowSize {
    /// Characters a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl Terminal {
    /// Makes the terminal behind `fd` raw. None if it is not a terminal. If the program runs in the background, raw
    /// mode waits until it is continued in the foreground.
    pub fn enter(fd: impl AsFd) -> io::Result<Option<Self>> {
        if !isatty(&fd) {
            return Ok(None);
        }
        let before = tcgetattr(&fd)?;
        let mut raw = before.clone();
        raw.make_raw();
        let fd = rustix::io::fcntl_dupfd_cloexec(&fd, 0)?;
        if STATE.compare_exchange(FREE, PAUSED, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return Err(io::Error::other("the terminal is already in use"));
        }
        let guard = Self(());
        MODES.store(Box::into_raw(Box::new(Modes { fd, before, raw })), Ordering::Release);
        resizes()?;
        install();
        resume();
        Ok(Some(guard))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        restore();
        STATE.store(FREE, Ordering::Release);
    }
}

/// Whether the terminal is raw now: lines on it then need a carriage return.
pub fn is_raw() -> bool {
    STATE.load(Ordering::Acquire) == RAW
}

/// Gives the terminal back as it was before the guard. Does nothing the second time; safe in signal handlers.
pub fn restore() {
    if STATE.compare_exchange(RAW, PAUSED, Ordering::AcqRel, Ordering::Acquire).is_ok()
        && let Some(modes) = modes()
    {
        set(modes, &modes.before);
    }
}

/// Signalled when the window of the terminal may have changed its size.
pub fn resizes() -> io::Result<&'static OwnedFd> {
    if RESIZED.get().is_none() {
        // Another thread may be first; then this one is closed again.
        let _ = RESIZED.set(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
    }
    RESIZED.get().ok_or_else(|| io::Error::other("no event descriptor"))
}

/// Window size of the terminal behind `fd`; none if it is not a terminal or does not know.
pub fn window_size(fd: impl AsFd) -> Option<WindowSize> {
    let size = tcgetwinsize(fd).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some(WindowSize { columns: size.ws_col, rows: size.ws_row })
}

fn modes() -> Option<&'static Modes> {
    // SAFETY: the pointer is null or comes from Box::into_raw in `enter` and is never freed or written through.
    unsafe { MODES.load(Ordering::Acquire).as_ref() }
}

/// Makes the terminal raw again, if a guard exists and the program is in the foreground.
fn resume() {
    let Some(modes) = modes() else { return };
    // A terminal that is not the controlling one has no foreground group.
    let foreground = tcgetpgrp(&modes.fd).map_or(true, |group| group == rustix::process::getpgrp());
    if foreground && STATE.compare_exchange(PAUSED, RAW, Ordering::AcqRel, Ordering::Acquire).is_ok() {
        set(modes, &modes.raw);
    }
}

/// Sets modes at once (waiting for output to drain could take for ever). SIGTTOU is held back meanwhile: it would
/// stop a program that the shell has just put in the background, before it has given the terminal back.
fn set(modes: &Modes, to: &Termios) {
    // SAFETY: both sets are plain data owned here; sigemptyset makes one valid before it is used, and
    // pthread_sigmask fills the other.
    let before = unsafe {
        let mut block: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut block);
        libc::sigaddset(&mut block, libc::SIGTTOU);
        libc::pthread_sigmask(libc::SIG_BLOCK, &block, &mut before);
        before
    };
    // A terminal that hung up cannot be restored, and there is nobody to tell.
    let _ = tcsetattr(&modes.fd, OptionalActions::Now, to);
    // SAFETY: `before` is the mask that the call above returned.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
}

/// Handlers for everything that could leave the terminal raw. Once per process; they do nothing without a guard.
fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        // SAFETY: at_exit only calls `restore`, which needs nothing that exit destroys.
        unsafe { libc::atexit(at_exit) };
        for signal in FATAL {
            handle(signal, on_fatal);
        }
        handle(libc::SIGTSTP, on_stop);
        handle(libc::SIGCONT, on_continue);
        handle(libc::SIGWINCH, on_resize);
    });
}

/// Makes `handler` handle `signal` unless somebody else handles or ignores it.
fn handle(signal: libc::c_int, handler: extern "C" fn(libc::c_int)) {
    // SAFETY: an all-zero sigaction is valid, both pointers are to live values, and every handler passed here calls
    // only async-signal-safe functions.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_DFL {
            action = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// Runs `work` in a signal handler without changing the errno that the interrupted code may be about to read.
fn keeping_errno(work: impl FnOnce()) {
    // SAFETY: __errno_location returns the address of this thread's errno, valid as long as the thread.
    let saved = unsafe { *libc::__errno_location() };
    work();
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = saved };
}

fn notice_resize() {
    if let Some(resized) = RESIZED.get() {
        // A full counter means that a notice is already waiting.
        let _ = rustix::io::write(resized, &1u64.to_ne_bytes());
    }
}

extern "C" fn at_exit() {
    restore();
}

extern "C" fn on_fatal(signal: libc::c_int) {
    restore();
    // SAFETY: signal and raise are async-signal-safe; the default action ends the program once this handler returns.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn on_stop(_: libc::c_int) {
    keeping_errno(|| {
        restore();
        // SAFETY: kill is async-signal-safe; it stops this process until somebody continues it.
        unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
    });
}

extern "C" fn on_continue(_: libc::c_int) {
    keeping_errno(|| {
        // After SIGSTOP, which no handler sees, the shell has set modes of its own: they count as restored.
        let _ = STATE.compare_exchange(RAW, PAUSED, Ordering::AcqRel, Ordering::Acquire);
        resume();
        notice_resize();
    });
}

extern "C" fn on_resize(_: libc::c_int) {
    keeping_errno(notice_resize);
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
    use rustix::termios::{LocalModes, Winsize, tcsetwinsize};

    fn pty() -> (OwnedFd, OwnedFd) {
        let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&main).unwrap();
        unlockpt(&main).unwrap();
        let peer = ioctl_tiocgptpeer(&main, OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        (main, peer)
    }

    fn cooked(fd: &OwnedFd) -> bool {
        tcgetattr(fd).unwrap().local_modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// One test, because there is one state per process.
    #[test]
    fn raw_mode_comes_goes_and_pauses() {
        let (_main, peer) = pty();
        assert!(cooked(&peer));
        let guard = Terminal::enter(&peer).unwrap().expect("a pty is a terminal");
        assert!(is_raw() && !cooked(&peer));
        assert!(Terminal::enter(&peer).is_err(), "one at a time");
        assert!(is_raw(), "the refused one changes nothing");
        restore();
        restore();
        assert!(!is_raw() && cooked(&peer));
        on_continue(libc::SIGCONT);
        assert!(is_raw() && !cooked(&peer), "raw again after a pause");
        let noticed = rustix::io::read(resizes().unwrap(), &mut [0; 8]);
        assert_eq!(noticed, Ok(8), "a continued program looks at the window again");
        drop(guard);
        assert!(!is_raw() && cooked(&peer));
        on_continue(libc::SIGCONT);
        assert!(cooked(&peer), "without a guard nothing happens");

        let guard = Terminal::enter(&peer).unwrap().unwrap();
        std::thread::spawn(|| panic!("a panic that this test wants")).join().unwrap_err();
        assert!(cooked(&peer), "a panic gives the terminal back");
        drop(guard);
    }

    #[test]
    fn what_is_no_terminal_is_left_alone() {
        assert!(Terminal::enter(tempfile::tempfile().unwrap()).unwrap().is_none());
        assert_eq!(window_size(tempfile::tempfile().unwrap()), None);
    }

    #[test]
    fn window_sizes_are_read() {
        let (main, peer) = pty();
        assert_eq!(window_size(&peer), None, "a new pty does not know");
        tcsetwinsize(&main, Winsize { ws_col: 120, ws_row: 40, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
        assert_eq!(window_size(&peer), Some(WindowSize { columns: 120, rows: 40 }));
    }
}
