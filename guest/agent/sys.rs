//! System calls that the standard library does not have, through the C library that it is linked with anyway. The only
//! unsafe code of the agent; everything here is safe to call from its one thread.

// UNSAFETY: calls of C functions, with what each needs said at the call.
#![expect(unsafe_code)]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_long, c_short, c_uint, c_ulong, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

unsafe extern "C" {
    fn mount(
        source: *const c_char,
        target: *const c_char,
        kind: *const c_char,
        flags: c_ulong,
        data: *const c_void,
    ) -> c_int;
    fn umount2(target: *const c_char, flags: c_int) -> c_int;
    fn syscall(number: c_long, ...) -> c_long;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(fd: c_int, address: *const c_void, len: c_uint) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn fcntl(fd: c_int, command: c_int, ...) -> c_int;
    fn poll(fds: *mut PollFd, count: c_ulong, timeout: c_int) -> c_int;
    fn pipe2(fds: *mut c_int, flags: c_int) -> c_int;
    fn dup2(from: c_int, to: c_int) -> c_int;
    fn fork() -> c_int;
    fn setsid() -> c_int;
    fn execve(path: *const c_char, arguments: *const *const c_char, environment: *const *const c_char) -> c_int;
    fn _exit(status: c_int) -> !;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn kill(pid: c_int, signal: c_int) -> c_int;
    fn signal(signal: c_int, handler: usize) -> usize;
    fn sigprocmask(how: c_int, set: *const [u64; 16], old: *mut [u64; 16]) -> c_int;
    fn signalfd(fd: c_int, set: *const [u64; 16], flags: c_int) -> c_int;
    fn geteuid() -> c_uint;
    fn setgroups(count: usize, groups: *const c_uint) -> c_int;
    fn setgid(group: c_uint) -> c_int;
    fn setuid(user: c_uint) -> c_int;
    fn sethostname(name: *const c_char, len: usize) -> c_int;
    fn setrlimit(resource: c_int, limit: *const [u64; 2]) -> c_int;
    fn prctl(option: c_int, ...) -> c_int;
    fn reboot(command: c_int) -> c_int;
    fn sync();
    fn mknod(path: *const c_char, mode: c_uint, device: u64) -> c_int;
    fn clock_gettime(clock: c_int, time: *mut [i64; 2]) -> c_int;
    fn tcgetattr(fd: c_int, modes: *mut Termios) -> c_int;
    fn cfmakeraw(modes: *mut Termios);
    fn tcsetattr(fd: c_int, actions: c_int, modes: *const Termios) -> c_int;
}

/// `struct pollfd`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct PollFd {
    fd: RawFd,
    events: c_short,
    revents: c_short,
}

/// `struct termios` of the C library.
#[repr(C)]
struct Termios {
    flags: [u32; 4],
    line: u8,
    characters: [u8; 32],
    speeds: [u32; 2],
}

/// `struct sockaddr_vm` (linux/vm_sockets.h).
#[repr(C)]
struct SockaddrVm {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

pub const IN: c_short = 1;
pub const OUT: c_short = 4;
const ERR: c_short = 8;
const HUP: c_short = 16;

pub const MS_RDONLY: c_ulong = 1;
pub const MS_NOSUID: c_ulong = 2;
pub const MS_NODEV: c_ulong = 4;
pub const MS_NOEXEC: c_ulong = 8;
pub const MS_REMOUNT: c_ulong = 32;
pub const MS_BIND: c_ulong = 4096;
pub const MS_MOVE: c_ulong = 8192;
pub const MNT_DETACH: c_int = 2;

pub const ENOEXEC: i32 = 8;
pub const EBUSY: i32 = 16;
pub const EEXIST: i32 = 17;
pub const ENODEV: i32 = 19;
pub const EINVAL: i32 = 22;
pub const EAFNOSUPPORT: i32 = 97;

pub const SIGKILL: i32 = 9;
pub const SIGTERM: i32 = 15;
const SIGPIPE: c_int = 13;
const SIGCHLD: u32 = 17;

pub const AF_INET: u16 = 2;
pub const AF_INET6: u16 = 10;
const AF_VSOCK: c_int = 40;
const SOCK_STREAM: c_int = 1;
const SOCK_DGRAM: c_int = 2;
const SOCK_CLOEXEC: c_int = 0o2000000;
const O_CLOEXEC: c_int = 0o2000000;
const O_NONBLOCK: c_int = 0o4000;
const F_GETFL: c_int = 3;
const F_SETFL: c_int = 4;
const SYS_FINIT_MODULE: c_long = if cfg!(target_arch = "x86_64") { 313 } else { 273 };
/// The C library's own function refuses.
const SYS_SCHED_SETSCHEDULER: c_long = if cfg!(target_arch = "x86_64") { 144 } else { 119 };
/// In the order of time, before all that is not for real time; what is forked is ordinary again.
const SCHED_FIFO_BUT_NOT_CHILDREN: c_int = 1 | 0x4000_0000;
/// Linux 5.9.
const SYS_CLOSE_RANGE: c_long = 436;
const TIOCSWINSZ: c_ulong = 0x5414;
const TIOCSCTTY: c_ulong = 0x540e;
const TIOCSPTLCK: c_ulong = 0x4004_5431;
const TIOCGPTN: c_ulong = 0x8004_5430;
const RLIMIT_NOFILE: c_int = 7;
const PR_SET_CHILD_SUBREAPER: c_int = 36;
const CLOCK_MONOTONIC: c_int = 1;
/// What kind of node `mknod` makes.
pub const S_IFCHR: u32 = 0o20000;

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn new_fd(result: c_int) -> io::Result<OwnedFd> {
    let fd = check(result)?;
    // SAFETY: the call that returned it has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// As a C string; a zero inside is no valid argument of any call.
pub fn c_string(text: impl AsRef<OsStr>) -> io::Result<CString> {
    CString::new(text.as_ref().as_bytes()).map_err(|_| io::Error::from_raw_os_error(EINVAL))
}

/// Mounts. For `MS_MOVE`, `MS_BIND` and `MS_REMOUNT` the kind means nothing.
pub fn mount_at(source: &str, target: &Path, kind: &str, flags: c_ulong, data: &str) -> io::Result<()> {
    let (source, target, kind, data) = (c_string(source)?, c_string(target)?, c_string(kind)?, c_string(data)?);
    // SAFETY: four C strings that outlive the call.
    check(unsafe { mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) }).map(drop)
}

/// Unmounts.
pub fn unmount(target: &Path, flags: c_int) -> io::Result<()> {
    let target = c_string(target)?;
    // SAFETY: a C string that outlives the call.
    check(unsafe { umount2(target.as_ptr(), flags) }).map(drop)
}

/// Loads a kernel module.
pub fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: finit_module(descriptor, parameters, flags) with an empty C string for parameters.
    let result = unsafe { syscall(SYS_FINIT_MODULE, file.as_raw_fd(), c"".as_ptr(), 0) };
    check(result as c_int).map(drop)
}

/// A connection to a port of a vsock address.
pub fn connect_vsock(cid: u32, port: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = new_fd(unsafe { socket(AF_VSOCK, SOCK_STREAM | SOCK_CLOEXEC, 0) })?;
    let address = SockaddrVm { family: AF_VSOCK as u16, reserved: 0, port, cid, zero: [0; 4] };
    // SAFETY: the address is a sockaddr_vm of exactly this length and outlives the call.
    check(unsafe { connect(fd.as_raw_fd(), (&raw const address).cast(), size_of::<SockaddrVm>() as c_uint) })?;
    Ok(fd)
}

/// A socket on which interfaces are configured.
pub fn datagram_socket(family: u16) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    new_fd(unsafe { socket(family.into(), SOCK_DGRAM | SOCK_CLOEXEC, 0) })
}

/// An ioctl that takes a structure, given as its bytes.
pub fn ioctl_with<const N: usize>(fd: impl AsFd, request: c_ulong, structure: &mut [u8; N]) -> io::Result<()> {
    // SAFETY: callers give requests whose structure has at most N bytes; the kernel reads and writes no more.
    check(unsafe { ioctl(fd.as_fd().as_raw_fd(), request, structure.as_mut_ptr()) }).map(drop)
}

/// Reads and writes return at once from now on.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: both commands take and return numbers only.
    unsafe {
        let flags = check(fcntl(fd, F_GETFL))?;
        check(fcntl(fd, F_SETFL, flags | O_NONBLOCK)).map(drop)
    }
}

impl PollFd {
    /// Waits for `events` of `fd`, which must stay open until [`wait`] returns.
    pub fn new(fd: impl AsFd, events: c_short) -> Self {
        Self { fd: fd.as_fd().as_raw_fd(), events, revents: 0 }
    }

    /// Whether the other end is gone.
    pub fn broken(self) -> bool {
        self.revents & (ERR | HUP) != 0
    }

    /// Whether something happened: what was asked for, or an end, or an error.
    pub fn ready(self) -> bool {
        self.revents != 0
    }
}

/// Waits until one of `fds` is ready, at most for `timeout`.
pub fn wait(fds: &mut [PollFd], timeout: Option<Duration>) -> io::Result<()> {
    // Rounded up: a wait that is too short would come again and again.
    let millis = timeout.map_or(-1, |time| c_int::try_from(time.as_millis() + 1).unwrap_or(c_int::MAX));
    // SAFETY: the pointer and the count are those of one slice of `struct pollfd`; a closed descriptor is reported.
    match check(unsafe { poll(fds.as_mut_ptr(), fds.len() as c_ulong, millis) }) {
        Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(()),
        result => result.map(drop),
    }
}

/// A pipe: the end to read from, the end to write to.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds = [0; 2];
    // SAFETY: an array of two numbers.
    check(unsafe { pipe2(fds.as_mut_ptr(), O_CLOEXEC) })?;
    let [read, write] = fds;
    Ok((new_fd(read)?, new_fd(write)?))
}

/// A pseudo-terminal: the agent's side, the command's side.
pub fn pseudo_terminal(columns: u16, rows: u16) -> io::Result<(OwnedFd, OwnedFd)> {
    let open = |path: &str| File::options().read(true).write(true).open(path);
    let main = open("/dev/ptmx").or_else(|_| open("/dev/pts/ptmx"))?;
    let (lock, mut number) = (0 as c_int, 0 as c_uint);
    // SAFETY: both requests take a pointer to one int, which outlives the call.
    unsafe {
        check(ioctl(main.as_raw_fd(), TIOCSPTLCK, &raw const lock))?;
        check(ioctl(main.as_raw_fd(), TIOCGPTN, &raw mut number))?;
    }
    // Nobody gets it as a controlling terminal by opening it: a session leader would; the agent is none, or process 1,
    // whose terminal it must not become.
    let peer = std::os::unix::fs::OpenOptionsExt::custom_flags(File::options().read(true).write(true), 0o400)
        .open(format!("/dev/pts/{number}"))?;
    set_window_size(&main, columns, rows)?;
    Ok((main.into(), peer.into()))
}

/// Sets the size of a terminal's window.
pub fn set_window_size(terminal: impl AsFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = [rows, columns, 0, 0];
    // SAFETY: the request takes a pointer to four 16-bit numbers (struct winsize).
    check(unsafe { ioctl(terminal.as_fd().as_raw_fd(), TIOCSWINSZ, size.as_ptr()) }).map(drop)
}

/// Bytes go through a terminal (a serial port) as they are from now on.
pub fn make_raw(terminal: impl AsFd) -> io::Result<()> {
    let fd = terminal.as_fd().as_raw_fd();
    let mut modes = Termios { flags: [0; 4], line: 0, characters: [0; 32], speeds: [0; 2] };
    // SAFETY: `modes` has the layout of glibc's struct termios on Linux and outlives the calls.
    unsafe {
        check(tcgetattr(fd, &mut modes))?;
        cfmakeraw(&mut modes);
        check(tcsetattr(fd, 0, &modes)).map(drop)
    }
}

/// Makes a process that runs `work` and then ends with its result; returns its number.
pub fn spawn(work: impl FnOnce() -> u8) -> io::Result<i32> {
    // SAFETY: the agent has one thread, so nothing is locked or half done in the copy.
    match check(unsafe { fork() })? {
        0 => {
            let status = work();
            // SAFETY: ends the process without what the original would do at its end.
            unsafe { _exit(status.into()) }
        }
        pid => Ok(pid),
    }
}

/// Divides this process in two. True in the new one, false in the one that keeps its number.
pub fn divide() -> io::Result<bool> {
    // SAFETY: as in `spawn`.
    check(unsafe { fork() }).map(|pid| pid == 0)
}

/// A process of the agent's as every program expects to be started: a session of its own, signals as they are by
/// default, these three descriptors; with `terminal` the first is its controlling terminal.
pub fn begin_program(stdio: [RawFd; 3], terminal: bool) -> io::Result<()> {
    // SAFETY: numbers only; the mask is a sigset_t of the C library's size.
    unsafe {
        check(setsid())?;
        default_signals();
        if terminal {
            check(ioctl(stdio[0], TIOCSCTTY, 0))?;
        }
        for (from, to) in stdio.into_iter().zip(0..) {
            check(dup2(from, to))?;
        }
    }
    Ok(())
}

/// Number of the user that the agent is.
pub fn user() -> u32 {
    // SAFETY: no arguments.
    unsafe { geteuid() }
}

/// Becomes another user.
pub fn become_user(user: u32, group: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and count are those of one slice.
    unsafe {
        check(setgroups(groups.len(), groups.as_ptr()))?;
        check(setgid(group))?;
        check(setuid(user)).map(drop)
    }
}

/// Writing to a pipe that nobody reads is an error from now on, and not the end.
pub fn ignore_broken_pipes() {
    // SAFETY: numbers only; 1 is SIG_IGN.
    unsafe { signal(SIGPIPE, 1) };
}

/// All signals do what they do by default, and none is blocked.
pub fn default_signals() {
    // SAFETY: numbers, and a mask of the size of the C library's sigset_t.
    unsafe {
        for number in 1..=64 {
            // Fails for those that cannot be changed.
            signal(number, 0);
        }
        sigprocmask(2, &[0; 16], std::ptr::null_mut());
    }
}

/// From now on this process runs when it can, before ordinary ones; its children do not.
pub fn run_before_others() {
    let lowest: c_int = 1;
    // SAFETY: the pointer is to a local, a `struct sched_param`. Fails in a kernel without real-time scheduling, or where
    // a group has no share of it: then nothing changes.
    unsafe { syscall(SYS_SCHED_SETSCHEDULER, 0 as c_int, SCHED_FIFO_BUT_NOT_CHILDREN, &lowest) };
}

/// Closes everything but the first three descriptors. For a process that is about to end without its destructors.
pub fn close_others() {
    // SAFETY: close_range(first, last, flags): numbers only. Nothing that owns a descriptor is used after this.
    unsafe { syscall(SYS_CLOSE_RANGE, 3 as c_uint, c_uint::MAX, 0 as c_uint) };
}

/// Becomes another program; returns only why it did not.
pub fn become_program(path: &CStr, arguments: &[CString], environment: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const c_char> {
        list.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (arguments, environment) = (pointers(arguments), pointers(environment));
    // SAFETY: C strings, in lists that end with a null pointer; all outlive the call.
    unsafe { execve(path.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself.
    Status(u8),
    /// By a signal.
    Signal(u8),
}

/// Takes one process that has ended. None: all that are left still run, or there are none (then the flag is true).
pub fn reap() -> Result<(i32, Exit), bool> {
    let mut status = 0;
    // SAFETY: the pointer is to a local.
    match unsafe { waitpid(-1, &mut status, 1) } {
        0 => Err(false),
        pid if pid > 0 => match status & 0x7f {
            0 => Ok((pid, Exit::Status((status >> 8) as u8))),
            number => Ok((pid, Exit::Signal(number as u8))),
        },
        _ => Err(true),
    }
}

/// Sends a signal; a negative number is a group, -1 is everybody but the agent.
pub fn send_signal(pid: i32, number: i32) -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { kill(pid, number) }).map(drop)
}

/// Readable when a child has ended.
pub fn children() -> io::Result<File> {
    let mut set = [0; 16];
    set[0] = 1 << (SIGCHLD - 1);
    // SAFETY: the set has the size and layout of glibc's sigset_t: a bit for each signal.
    unsafe {
        check(sigprocmask(0, &set, std::ptr::null_mut()))?;
        new_fd(signalfd(-1, &set, O_CLOEXEC | O_NONBLOCK)).map(File::from)
    }
}

/// Orphans among the agent's descendants become its children, as if it were process 1.
pub fn adopt_orphans() -> io::Result<()> {
    // SAFETY: numbers only.
    check(unsafe { prctl(PR_SET_CHILD_SUBREAPER, 1 as c_ulong, 0 as c_ulong, 0 as c_ulong, 0 as c_ulong) }).map(drop)
}

/// Names the machine.
pub fn set_hostname(name: &str) -> io::Result<()> {
    // SAFETY: pointer and length are those of one string.
    check(unsafe { sethostname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Limits the number of open files: as it is at first, and as programs may raise it.
pub fn limit_files(soft: u64, hard: u64) -> io::Result<()> {
    // SAFETY: struct rlimit is two 64-bit numbers.
    check(unsafe { setrlimit(RLIMIT_NOFILE, &[soft, hard]) }).map(drop)
}

/// Makes a device node.
pub fn make_node(path: &Path, mode: u32, major: u64, minor: u64) -> io::Result<()> {
    let path = c_string(path)?;
    // SAFETY: a C string that outlives the call; the numbers are below 256, where the old encoding holds.
    check(unsafe { mknod(path.as_ptr(), mode, major << 8 | minor) }).map(drop)
}

/// Writes everything to the disks.
pub fn write_back() {
    // SAFETY: no arguments.
    unsafe { sync() };
}

/// Powers off, or failing that, restarts, which ends a machine too.
pub fn power_off() -> io::Error {
    // SAFETY: numbers only; these two never return if they work.
    unsafe {
        reboot(0x4321_fedc);
        reboot(0x0123_4567);
    }
    io::Error::last_os_error()
}

/// Nanoseconds since the kernel started.
pub fn uptime() -> u64 {
    let mut time = [0; 2];
    // SAFETY: struct timespec is two 64-bit numbers.
    unsafe { clock_gettime(CLOCK_MONOTONIC, &mut time) };
    let [seconds, nanos] = time;
    (seconds as u64).wrapping_mul(1_000_000_000).wrapping_add(nanos as u64)
}

/// A descriptor that was inherited under this number. It must be open and used for nothing else.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_SETFD takes a number; it fails if the descriptor is not open.
    unsafe {
        check(fcntl(fd, 2, 1))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}
