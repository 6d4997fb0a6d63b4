//! `belljar boot` on a terminal: keys, raw mode, and that the terminal is given back however it ends. The guest is a few
//! instructions that echo what the serial port receives, so any KVM will do, and the software CPU.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use common::tiny;
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

const LIMIT: Duration = Duration::from_secs(60);

/// Prints `ready`, then sends back whatever comes.
fn echo_kernel() -> Vec<u8> {
    const MESSAGE: &[u8] = b"ready\n";
    let mut code = vec![0xbe]; // mov esi, message
    code.extend((tiny::AT + 0x800).to_le_bytes());
    code.push(0xb9); // mov ecx, length
    code.extend((MESSAGE.len() as u32).to_le_bytes());
    code.extend([0x66, 0xba, 0xf8, 0x03]); // mov dx, 0x3f8
    code.extend([0x8a, 0x06, 0x46, 0xee, 0x49, 0x75, 0xf9]); // next: mov al, [esi]; inc esi; out dx, al; loop
    code.extend([0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7]); // wait: mov dx, 0x3fd; in; test al, 1; jz
    code.extend([0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xee]); // mov dx, 0x3f8; in al, dx; out dx, al; jmp wait
    code.resize(0x800, 0x90);
    code.extend(MESSAGE);
    tiny::kernel(&code)
}

struct Session {
    child: Child,
    user: File,
    terminal: OwnedFd,
    seen: String,
    _dir: tempfile::TempDir,
}

impl Session {
    /// Starts belljar on a new terminal; none where there is nothing to run it on.
    fn start() -> Option<Self> {
        Some(Self::start_with(&["--engine", common::tiny_engine()?]))
    }

    /// With these flags.
    fn start_with(more: &[&str]) -> Self {
        let user = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&user).unwrap();
        unlockpt(&user).unwrap();
        rustix::io::ioctl_fionbio(&user, true).unwrap();
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = ioctl_tiocgptpeer(&user, flags).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("echo.elf");
        std::fs::write(&kernel, echo_kernel()).unwrap();
        let side = || Stdio::from(terminal.try_clone().unwrap());
        let child = Command::new(common::belljar())
            .args(["boot", "--serial", "stdio", "--timeout", "60", "--kernel"])
            .arg(kernel)
            .args(more)
            .stdin(side())
            .stdout(side())
            .stderr(side())
            .spawn()
            .unwrap();
        let mut session = Self { child, user: user.into(), terminal, seen: String::new(), _dir: dir };
        if more.contains(&"--deterministic") {
            session.expect("belljar: --deterministic: what is typed here");
        }
        session.expect("ready");
        assert!(session.raw());
        session
    }

    fn raw(&self) -> bool {
        !tcgetattr(&self.terminal).unwrap().local_modes.intersects(LocalModes::ICANON | LocalModes::ISIG)
    }

    fn wait(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < LIMIT, "{what} never came; seen: {:?}", self.seen);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until `text` appears after what was seen before.
    fn expect(&mut self, text: &str) {
        let start = Instant::now();
        loop {
            if let Some(at) = self.seen.find(text) {
                self.seen.drain(..at + text.len());
                return;
            }
            assert!(start.elapsed() < LIMIT, "`{text}` never came; seen: {:?}", self.seen);
            let mut bytes = [0; 1024];
            match self.user.read(&mut bytes) {
                Ok(n) => self.seen.push_str(&String::from_utf8_lossy(&bytes[..n])),
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
            }
        }
    }

    fn type_in(&mut self, keys: &str) {
        self.user.write_all(keys.as_bytes()).unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    fn end(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                assert!(!self.raw(), "the terminal is given back");
                return status;
            }
            assert!(start.elapsed() < LIMIT, "belljar does not end");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // It has ended unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn keys_reach_the_guest_except_those_that_quit() {
    let Some(mut session) = Session::start() else { return };
    session.type_in("hello\x03\x1a\x04");
    session.expect("hello\x03\x1a\x04");
    session.type_in("\x01a-\x01\x01");
    session.expect("\x01-\x01");
    session.type_in("\x01h");
    session.expect("Ctrl-A x  quit\r\n");
    session.type_in("still here");
    session.expect("still here");
    session.type_in("\x01x");
    session.end();
}

#[test]
fn signals_that_end_it_give_the_terminal_back() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP, Signal::QUIT, Signal::ABORT] {
        let Some(mut session) = Session::start() else { return };
        session.signal(signal);
        if signal == Signal::ABORT {
            assert_eq!(session.end().signal(), Some(6));
            continue;
        }
        // The first one only presses the power button, which this guest does not have.
        session.type_in("goes on");
        session.expect("goes on");
        session.signal(signal);
        let status = session.end();
        assert!(!status.success(), "{signal:?}: {status}");
    }
}

#[test]
fn a_stopped_program_leaves_the_terminal_and_takes_it_again() {
    let Some(mut session) = Session::start() else { return };
    for round in 0..2 {
        session.signal(Signal::TSTP);
        session.wait("the terminal", |session| !session.raw());
        let stat = format!("/proc/{}/stat", session.child.id());
        session.wait("a stop", |_| std::fs::read_to_string(&stat).unwrap().contains(") T "));
        session.signal(Signal::CONT);
        session.wait("raw mode", Session::raw);
        session.type_in(&format!("round {round}"));
        session.expect(&format!("round {round}"));
    }
    session.signal(Signal::KILL);
    assert_eq!(session.child.wait().unwrap().signal(), Some(9));
}

#[test]
fn a_run_that_cannot_be_repeated_says_so() {
    let mut session = Session::start_with(&["--deterministic"]);
    session.type_in("\x01x");
    assert!(session.end().success());
    session.expect("belljar: --deterministic: a signal, a key or a time limit ended this run");
}
