//! What tests need inside a guest and busybox does not have. `scripts/assets guest-tool` compiles this by itself, as
//! a static program, and packs it as an initramfs of its own.
//!
//!     guest-tool exit STATUS                  writes STATUS to belljar's exit port
//!     guest-tool zero|punch DEVICE FROM LEN   bytes of a block device: makes them zeros, or gives them back
//!     guest-tool connect CID PORT             stdin to a vsock connection, then what comes back to stdout
//!     guest-tool echo PORT                    takes one vsock connection and sends back what comes
//!     guest-tool watchpoint                   watches a variable of a child by a debug register, as debuggers do
//!     guest-tool posix DIR                    what programs rely on in a file system, see posix.rs

mod posix;

use std::ffi::{c_int, c_long, c_ulong};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU32, Ordering};

unsafe extern "C" {
    fn ioperm(from: c_ulong, num: c_ulong, on: c_int) -> c_int;
    fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    fn fallocate(fd: c_int, mode: c_int, offset: c_long, len: c_long) -> c_int;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn bind(fd: c_int, address: *const SockaddrVm, len: u32) -> c_int;
    fn connect(fd: c_int, address: *const SockaddrVm, len: u32) -> c_int;
    fn listen(fd: c_int, backlog: c_int) -> c_int;
    fn accept(fd: c_int, address: *const SockaddrVm, len: *const u32) -> c_int;
    fn shutdown(fd: c_int, how: c_int) -> c_int;
    fn fork() -> c_int;
    fn raise(signal: c_int) -> c_int;
    fn waitpid(pid: c_int, status: *mut c_int, options: c_int) -> c_int;
    fn ptrace(request: c_long, pid: c_int, address: usize, data: usize) -> c_long;
    fn _exit(status: c_int) -> !;
}

const EXIT_PORT: u16 = 0xf4;
const BLKZEROOUT: c_ulong = 0x127f;
const PUNCH_HOLE_KEEP_SIZE: c_int = 3;
const AF_VSOCK: c_int = 40;
const SOCK_STREAM: c_int = 1;
const SHUT_WR: c_int = 1;
const ANY_CID: u32 = u32::MAX;

/// `struct sockaddr_vm` of Linux.
#[repr(C)]
struct SockaddrVm {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    zero: [u8; 4],
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words[..] {
        ["exit", status] => exit(number(status) as u8),
        [how @ ("zero" | "punch"), device, from, len] => zero(how, device, number(from), number(len)),
        ["connect", cid, port] => send_and_receive(number(cid) as u32, number(port) as u32),
        ["echo", port] => echo(number(port) as u32),
        ["watchpoint"] => watchpoint(),
        ["posix", dir] => posix::posix(dir),
        _ => Err(io::Error::other("unknown command")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("guest-tool {}: {e}", words.join(" "));
            ExitCode::FAILURE
        }
    }
}

fn number(text: &str) -> u64 {
    text.parse().unwrap_or_else(|_| panic!("{text} is not a number"))
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn exit(status: u8) -> io::Result<()> {
    // SAFETY: gives this process the port; the instruction touches no memory.
    unsafe {
        check(ioperm(EXIT_PORT.into(), 1, 1))?;
        std::arch::asm!("out dx, al", in("dx") EXIT_PORT, in("al") status, options(nomem, nostack));
    }
    Ok(())
}

fn zero(how: &str, device: &str, from: u64, len: u64) -> io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(device)?;
    let range = [from, len];
    // SAFETY: BLKZEROOUT reads two 64-bit numbers; fallocate takes numbers only.
    check(unsafe {
        match how {
            "zero" => ioctl(file.as_raw_fd(), BLKZEROOUT, range.as_ptr()),
            _ => fallocate(file.as_raw_fd(), PUNCH_HOLE_KEEP_SIZE, from as c_long, len as c_long),
        }
    })?;
    Ok(())
}

fn vsock(cid: u32, port: u32) -> io::Result<(File, SockaddrVm)> {
    // SAFETY: a new descriptor, which nobody else owns.
    let socket = unsafe { File::from_raw_fd(check(socket(AF_VSOCK, SOCK_STREAM, 0))?) };
    Ok((socket, SockaddrVm { family: AF_VSOCK as u16, reserved: 0, port, cid, zero: [0; 4] }))
}

fn send_and_receive(cid: u32, port: u32) -> io::Result<()> {
    let (mut socket, address) = vsock(cid, port)?;
    // SAFETY: the address lives for the call and has this size.
    check(unsafe { connect(socket.as_raw_fd(), &address, size_of::<SockaddrVm>() as u32) })?;
    let mut sending = socket.try_clone()?;
    // At the same time: whoever echoes stops reading when nobody takes what it sends.
    let sender = std::thread::spawn(move || {
        io::copy(&mut io::stdin().lock(), &mut sending)?;
        // SAFETY: takes numbers only.
        check(unsafe { shutdown(sending.as_raw_fd(), SHUT_WR) })
    });
    io::copy(&mut socket, &mut io::stdout().lock())?;
    sender.join().map_err(|_| io::Error::other("cannot send"))??;
    io::stdout().flush()
}

fn echo(port: u32) -> io::Result<()> {
    let (socket, address) = vsock(ANY_CID, port)?;
    // SAFETY: the address lives for the calls and has this size; accept's new descriptor is nobody else's.
    let mut client = unsafe {
        check(bind(socket.as_raw_fd(), &address, size_of::<SockaddrVm>() as u32))?;
        check(listen(socket.as_raw_fd(), 1))?;
        println!("guest-tool: listening");
        File::from_raw_fd(check(accept(socket.as_raw_fd(), std::ptr::null(), std::ptr::null()))?)
    };
    let mut buffer = vec![0; 64 << 10];
    loop {
        match client.read(&mut buffer)? {
            0 => return Ok(()),
            n => client.write_all(&buffer[..n])?,
        }
    }
}

const PTRACE_TRACEME: c_long = 0;
const PTRACE_PEEKUSER: c_long = 3;
const PTRACE_POKEUSER: c_long = 6;
const PTRACE_CONT: c_long = 7;
const SIGTRAP: c_int = 5;
const SIGSTOP: c_int = 19;
/// `offsetof(struct user, u_debugreg)`.
const DEBUG_REGISTERS: usize = 848;

static WATCHED: AtomicU32 = AtomicU32::new(0);

/// The child counts to 1000 and then writes to [`WATCHED`]; prints what DR6 says when it is stopped, and what was written.
fn watchpoint() -> io::Result<()> {
    // SAFETY: there is one thread, so the child is in order after fork; the calls take numbers, and addresses that live.
    unsafe {
        let child = check(fork())?;
        if child == 0 {
            ptrace(PTRACE_TRACEME, 0, 0, 0);
            raise(SIGSTOP);
            (0..1000).for_each(|n| _ = std::hint::black_box(n));
            WATCHED.store(7, Ordering::SeqCst);
            _exit(0);
        }
        let stopped = || {
            let mut status = 0;
            check(waitpid(child, &mut status, 0)).map(|_| if status & 0xff == 0x7f { status >> 8 & 0xff } else { -1 })
        };
        let told = |done: c_long| if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) };
        println!("stopped={}", stopped()? == SIGSTOP);
        told(ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTERS, &raw const WATCHED as usize))?;
        // Enabled for this task, four bytes, writes.
        told(ptrace(PTRACE_POKEUSER, child, DEBUG_REGISTERS + 7 * 8, 1 | 1 << 16 | 3 << 18))?;
        told(ptrace(PTRACE_CONT, child, 0, 0))?;
        println!("trapped={}", stopped()? == SIGTRAP);
        println!("watchpoint={}", ptrace(PTRACE_PEEKUSER, child, DEBUG_REGISTERS + 6 * 8, 0) & 0xf);
        told(ptrace(PTRACE_CONT, child, 0, 0))?;
        println!("ended={}", stopped()? == -1);
    }
    Ok(())
}
