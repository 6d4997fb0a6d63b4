//! What all tests with real guests need: where kernels are, how to start belljar, how to talk to a guest.
//!
//! The tests run where KVM is real: on such a host directly, elsewhere through `scripts/nested`. `scripts/test` sets
//! the environment up; without it they say loudly that they were skipped.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Guests boot in seconds natively; nested under emulation in ten, on a loaded machine in more.
pub const BOOT: Duration = Duration::from_secs(120);

/// The belljar binary under test.
pub fn belljar() -> PathBuf {
    std::env::var_os("BELLJAR_UNDER_TEST").map_or_else(|| env!("CARGO_BIN_EXE_belljar").into(), PathBuf::from)
}

/// A guest asset, such as `kernel-6.12-cloud`: `scripts/test` hands over its path as `BELLJAR_ASSET_KERNEL_6_12_CLOUD`.
pub fn asset(name: &str) -> Option<PathBuf> {
    let variable = format!("BELLJAR_ASSET_{}", name.to_uppercase().replace(['-', '.'], "_"));
    let found = std::env::var_os(variable).map(PathBuf::from);
    if found.is_none() {
        println!("SKIPPED: no asset {name}: run scripts/test");
    }
    found
}

/// Whether KVM runs unmodified guests here; if not, says so.
pub fn real_kvm() -> bool {
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let real = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") && Path::new("/dev/kvm").exists();
    if !real {
        println!("SKIPPED: no KVM with VT-x or SVM here: run scripts/test");
    }
    real
}

/// A guest to boot.
pub struct Guest {
    command: Command,
    append: Vec<String>,
    limit: u64,
}

/// Returns from the test if there is nothing to run it on.
#[macro_export]
macro_rules! guest {
    ($kernel:expr) => {
        match $crate::common::Guest::new($kernel) {
            Some(guest) => guest,
            None => return,
        }
    };
}

impl Guest {
    /// `belljar boot` of a kernel asset with its test initramfs: `6.12-cloud` (bzImage) or `6.12-cloud/vmlinux`.
    pub fn new(kernel: &str) -> Option<Self> {
        let (name, image) = kernel.split_once('/').unwrap_or((kernel, "bzImage"));
        let (true, Some(dir), Some(initramfs)) =
            (real_kvm(), asset(&format!("kernel-{name}")), asset(&format!("initramfs-{name}")))
        else {
            return None;
        };
        let mut command = Command::new(belljar());
        command.args(["boot", "--kernel"]).arg(dir.join(image)).arg("--initrd").arg(initramfs);
        Some(Self { command, append: vec!["quiet".into()], limit: 110 })
    }

    /// More flags.
    pub fn args<I: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = I>) -> Self {
        self.command.args(args);
        self
    }

    /// A flag and its value.
    pub fn arg(self, flag: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.args([flag.as_ref(), value.as_ref()])
    }

    /// Seconds after which belljar shall end the guest.
    pub fn limit(mut self, seconds: u64) -> Self {
        self.limit = seconds;
        self
    }

    /// Words for the kernel command line.
    pub fn append(mut self, words: &str) -> Self {
        self.append.push(words.into());
        self
    }

    /// A shell script that the guest runs before it ends.
    pub fn script(self, script: &str) -> Self {
        let encoded = base64(script.as_bytes());
        self.append(&format!("bj.cmd={encoded}"))
    }

    /// Starts it, with a pipe to its console.
    pub fn start(mut self) -> Session {
        let append = self.append.join(" ");
        self.command.args(["--append", &append, "--timeout", &self.limit.to_string()]);
        Session::start(self.command)
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        self.start().finish(BOOT)
    }
}

/// A running belljar, as a user sees it.
pub struct Session {
    pub child: Child,
    stdin: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    errors: Receiver<Vec<u8>>,
    /// Everything printed so far.
    pub seen: String,
    at: usize,
}

/// A belljar that has ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    /// Standard output: the guest's console.
    pub console: String,
    /// Standard error: what belljar itself says.
    pub errors: String,
}

impl Session {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let stdin = child.stdin.take();
        let output = follow(child.stdout.take().unwrap());
        let errors = follow(child.stderr.take().unwrap());
        Self { child, stdin, output, errors, seen: String::new(), at: 0 }
    }

    /// Waits until `text` is printed after what was expected last.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        let limit = Instant::now() + BOOT;
        while !self.seen[self.at..].contains(text) {
            match self.output.recv_timeout(limit.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(e) => {
                    let _ = self.child.kill();
                    let errors = collect(&self.errors, Duration::from_secs(1));
                    panic!("`{text}` is not printed ({e}):\n{}\n--- stderr\n{errors}", self.seen);
                }
            }
        }
        let found = self.seen[self.at..].find(text).unwrap();
        self.at += found + text.len();
    }

    /// Types `line` and Enter.
    pub fn send(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("input was closed");
        stdin.write_all(format!("{line}\n").as_bytes()).unwrap();
        stdin.flush().unwrap();
    }

    /// Types a command into a shell and returns what it prints.
    #[track_caller]
    pub fn shell(&mut self, command: &str) -> String {
        // The echo of the typed line must not look like its end.
        self.send(&format!("{command}; echo e''nd $?"));
        let start = self.at;
        self.expect("end ");
        self.expect("\n");
        self.seen[start..self.at].replace('\r', "")
    }

    pub fn close_input(&mut self) {
        self.stdin = None;
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Outcome {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if Instant::now() > deadline {
                let _ = self.child.kill();
                self.seen.push_str(&collect(&self.output, Duration::from_secs(1)));
                let errors = collect(&self.errors, Duration::from_secs(1));
                panic!("belljar does not end within {limit:?}:\n{}\n--- stderr\n{errors}", self.seen);
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.seen.push_str(&collect(&self.output, Duration::from_secs(5)));
        let errors = collect(&self.errors, Duration::from_secs(5));
        Outcome { status, console: self.seen.replace('\r', ""), errors }
    }
}

impl Outcome {
    /// Exit code, which must be `code`.
    #[track_caller]
    pub fn code(&self, code: i32) -> &Self {
        assert_eq!(self.status.code(), Some(code), "{self}");
        self
    }

    /// The console must show `text`.
    #[track_caller]
    pub fn shows(&self, text: &str) -> &Self {
        assert!(self.console.contains(text), "no `{text}` on the console:\n{self}");
        self
    }

    /// Standard error must have `text`.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.errors.contains(text), "no `{text}` on stderr:\n{self}");
        self
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}\n--- console\n{}\n--- stderr\n{}", self.status, self.console, self.errors)
    }
}

fn follow(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n) = from.read(&mut buffer) {
            if n == 0 || sender.send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

fn collect(from: &Receiver<Vec<u8>>, limit: Duration) -> String {
    let deadline = Instant::now() + limit;
    let mut bytes = Vec::new();
    loop {
        match from.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(more) => bytes.extend(more),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                return String::from_utf8_lossy(&bytes).into_owned();
            }
        }
    }
}

/// Standard base64 (RFC 4648 section 4), which the guest's busybox decodes.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let group = chunk.iter().chain(&[0; 2]).take(3).fold(0u32, |sum, &byte| sum << 8 | u32::from(byte));
        for digit in 0..4 {
            let index = group >> (18 - 6 * digit) & 63;
            text.push(if digit <= chunk.len() as u32 { DIGITS[index as usize] as char } else { '=' });
        }
    }
    text
}
