//! What all tests with real guests need: where kernels are, how to start belljar, how to talk to a guest.
//!
//! The tests run on the engine that `BELLJAR_TEST_ENGINE` names: on the software CPU (`soft`) anywhere; on KVM (`kvm`, and
//! if nothing is said) where it is real: on such a host directly, elsewhere through `scripts/nested`. `scripts/test`
//! sets the environment up; without it they say loudly that they were skipped.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod execution;
pub mod gdb;
pub mod planted;
pub mod pty;
pub mod run;
pub mod verb;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

pub mod tiny;

/// Guests boot in seconds natively and on the software CPU; nested under emulation in ten, on a loaded machine in more.
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
        println!("\nSKIPPED: no asset {name}: run scripts/test");
    }
    found
}

/// The engine that `BELLJAR_TEST_ENGINE` asks for, `kvm` or `soft`.
pub fn wanted_engine() -> Option<&'static str> {
    match std::env::var("BELLJAR_TEST_ENGINE").as_deref() {
        Ok("soft") => Some("soft"),
        Ok("kvm") => Some("kvm"),
        Err(std::env::VarError::NotPresent) => None,
        other => panic!("BELLJAR_TEST_ENGINE: neither kvm nor soft: {other:?}"),
    }
}

/// What runs kernels in this test run; if nothing does, says so.
pub fn engine() -> Option<&'static str> {
    if wanted_engine() == Some("soft") {
        return Some("soft");
    }
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let real = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm") && Path::new("/dev/kvm").exists();
    if !real {
        println!("\nSKIPPED: no KVM with VT-x or SVM here: run scripts/test");
    }
    real.then_some("kvm")
}

/// What runs guests of a few plain instructions: as [`engine`], but any KVM will do, and where there is none and none
/// was asked for, the software CPU.
pub fn tiny_engine() -> Option<&'static str> {
    let wanted = wanted_engine();
    if wanted == Some("soft") || std::fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        return wanted.or(Some("kvm"));
    }
    if wanted.is_some() {
        println!("\nSKIPPED: no usable /dev/kvm here");
        return None;
    }
    Some("soft")
}

pub use belljar::engine::UNIMPLEMENTED;

/// A directory for files of a test; on a file system with holes and direct I/O, which not every /tmp has.
pub fn scratch() -> tempfile::TempDir {
    std::fs::create_dir_all("/var/tmp").unwrap();
    tempfile::Builder::new().prefix("belljar-test-").tempdir_in("/var/tmp").unwrap()
}

/// Runs a program of the host, which must succeed, and returns what it prints.
#[track_caller]
pub fn host(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {}\n{text}", output.status);
    text
}

/// A guest to boot.
pub struct Guest {
    /// What runs it.
    pub engine: &'static str,
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
        let (Some(engine), Some(dir), Some(initramfs)) =
            (engine(), asset(&format!("kernel-{name}")), asset(&format!("initramfs-{name}")))
        else {
            return None;
        };
        let mut command = Command::new(belljar());
        command.args(["boot", "--engine", engine, "--kernel"]).arg(dir.join(image)).arg("--initrd").arg(initramfs);
        Some(Self { engine, command, append: vec!["quiet".into()], limit: 110 })
    }

    /// With `tests/guests/guest_tool.rs` as `guest-tool`, in a second initramfs.
    pub fn with_tool(self) -> Self {
        let initramfs = asset("guest-tool").expect("scripts/test makes it");
        self.arg("--initrd", initramfs)
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

    /// An environment variable of belljar.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
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
        let mut session = Session::start(self.command);
        session.talk.patience = Duration::from_secs(self.limit + 10);
        session
    }

    /// Runs it to its end.
    pub fn run(self) -> Outcome {
        self.start().finish(BOOT)
    }
}

/// Somebody who prints, and perhaps listens: a console, at whichever end of whatever line.
pub struct Talk {
    input: Option<Box<dyn Write + Send>>,
    output: Receiver<Vec<u8>>,
    /// Everything printed so far.
    pub seen: String,
    at: usize,
    /// How long to wait for a text.
    pub patience: Duration,
}

/// A running belljar, as a user sees it. Its `Talk` is standard input and output.
pub struct Session {
    pub child: Child,
    talk: Talk,
    errors: Talk,
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

impl Talk {
    pub fn new(input: Option<Box<dyn Write + Send>>, output: impl Read + Send + 'static) -> Self {
        Self { input, output: follow(output), seen: String::new(), at: 0, patience: BOOT }
    }

    /// Over a socket or terminal.
    pub fn over(line: impl Into<std::os::fd::OwnedFd>) -> Self {
        let line = std::fs::File::from(line.into());
        Self::new(Some(Box::new(line.try_clone().unwrap())), line)
    }

    /// A client of the UNIX socket at `path`, which may have to appear first.
    pub fn connect(path: &Path) -> Self {
        let limit = Instant::now() + BOOT;
        loop {
            match std::os::unix::net::UnixStream::connect(path) {
                Ok(line) => return Self::over(line),
                Err(e) => assert!(Instant::now() < limit, "{}: {e}", path.display()),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for(&mut self, text: &str) -> Result<(), RecvTimeoutError> {
        let limit = Instant::now() + self.patience;
        while !self.seen[self.at..].contains(text) {
            let bytes = self.output.recv_timeout(limit.saturating_duration_since(Instant::now()))?;
            self.seen.push_str(&String::from_utf8_lossy(&bytes));
        }
        self.at += self.seen[self.at..].find(text).unwrap_or(0) + text.len();
        Ok(())
    }

    /// Waits until `text` is printed after what was expected last.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        if let Err(e) = self.wait_for(text) {
            panic!("`{text}` is not printed ({e}):\n{}", self.seen);
        }
    }

    /// What is printed until `text`, after what was expected last.
    #[track_caller]
    pub fn until(&mut self, text: &str) -> String {
        let start = self.at;
        self.expect(text);
        self.seen[start..self.at - text.len()].replace('\r', "")
    }

    /// Types `line` and Enter.
    pub fn send(&mut self, line: &str) {
        let input = self.input.as_mut().expect("input was closed");
        input.write_all(format!("{line}\n").as_bytes()).unwrap();
        input.flush().unwrap();
    }

    /// Types a command into a shell and returns what it prints.
    #[track_caller]
    pub fn shell(&mut self, command: &str) -> String {
        // The echo of the typed line must not look like its end.
        self.send(&format!("{command}; echo at-e''nd $?"));
        let start = self.at;
        self.expect("at-end ");
        self.expect("\n");
        self.seen[start..self.at].replace('\r', "")
    }

    pub fn close_input(&mut self) {
        self.input = None;
    }

    fn drain(&mut self, limit: Duration) {
        self.seen.push_str(&collect(&self.output, limit));
    }
}

impl std::ops::Deref for Session {
    type Target = Talk;
    fn deref(&self) -> &Talk {
        &self.talk
    }
}

impl std::ops::DerefMut for Session {
    fn deref_mut(&mut self) -> &mut Talk {
        &mut self.talk
    }
}

impl Session {
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        let input = child.stdin.take().map(|input| Box::new(input) as Box<dyn Write + Send>);
        let talk = Talk::new(input, child.stdout.take().unwrap());
        let errors = Talk::new(None, child.stderr.take().unwrap());
        Self { child, talk, errors }
    }

    /// As for [`Talk`]; tells also what belljar said.
    #[track_caller]
    pub fn expect(&mut self, text: &str) {
        if let Err(e) = self.talk.wait_for(text) {
            self.give_up(&format!("`{text}` is not printed ({e})"));
        }
    }

    /// Waits until belljar itself says `text`, on standard error.
    #[track_caller]
    pub fn hear(&mut self, text: &str) {
        if let Err(e) = self.errors.wait_for(text) {
            self.give_up(&format!("`{text}` is not said ({e})"));
        }
    }

    /// What belljar says until `text`, after what was heard last.
    #[track_caller]
    pub fn hear_until(&mut self, text: &str) -> String {
        self.errors.until(text)
    }

    #[track_caller]
    fn give_up(&mut self, why: &str) -> ! {
        let _ = self.child.kill();
        self.talk.drain(Duration::from_secs(1));
        self.errors.drain(Duration::from_secs(1));
        panic!("{why}:\n{}\n--- stderr\n{}", self.talk.seen, self.errors.seen);
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
                self.give_up(&format!("belljar does not end within {limit:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        self.talk.drain(Duration::from_secs(5));
        self.errors.drain(Duration::from_secs(5));
        let outcome = Outcome { status, console: self.talk.seen.replace('\r', ""), errors: self.errors.seen };
        assert!(!outcome.errors.contains(UNIMPLEMENTED), "{outcome}");
        outcome
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

    /// What the guest printed as `KEY=VALUE` on a line of its own.
    #[track_caller]
    pub fn value(&self, key: &str) -> &str {
        let found = self.console.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_else(|| panic!("no `{key}=` on the console:\n{self}"))
    }

    /// The guest printed `KEY=EXPECTED`.
    #[track_caller]
    pub fn has(&self, key: &str, expected: &str) -> &Self {
        assert_eq!(self.value(key), expected, "{key}\n{self}");
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
pub fn base64(bytes: &[u8]) -> String {
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
