//! The real agent as a child process, over a socket pair: all but what needs a guest of its own.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::*;

const LONG: Duration = Duration::from_secs(60);

/// An agent that serves, and the host's side of it.
struct Bench {
    agent: Agent,
    child: Child,
}

fn program() -> &'static std::path::Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    static PATH: OnceLock<std::path::PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let path = DIR.get_or_init(|| tempfile::tempdir().unwrap()).path().join("agent");
        std::fs::write(&path, PROGRAM).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path
    })
}

fn bench() -> Bench {
    let (ours, theirs) = UnixStream::pair().unwrap();
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).unwrap();
    let number = theirs.as_raw_fd().to_string();
    let child = Command::new(program()).args(["--serve-fd", &number]).process_group(0).spawn().unwrap();
    drop(theirs);
    let agent = Agent::connect(ours).unwrap();
    agent.ready(deadline()).unwrap();
    Bench { agent, child }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn deadline() -> Option<Instant> {
    Some(Instant::now() + LONG)
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    fn output(&self) -> Output {
        Output::Writer(Box::new(self.clone()))
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Runs a command to its end: outcome, stdout, stderr.
fn run_with(agent: &Agent, exec: &Exec, stdin: Input) -> (Outcome, String, String) {
    let (out, err) = (Kept::default(), Kept::default());
    let io = Io { stdin, stdout: out.output(), stderr: err.output() };
    let outcome = agent.exec(exec, io).unwrap().wait(deadline()).unwrap();
    (outcome, out.text(), err.text())
}

fn run(agent: &Agent, command: &[&str]) -> (Outcome, String, String) {
    run_with(agent, &Exec::new(command), Input::None)
}

fn shell(agent: &Agent, script: &str) -> (Outcome, String, String) {
    run(agent, &["sh", "-c", script])
}

#[test]
fn the_program_is_small_and_static() {
    assert!(PROGRAM.len() < 1200 << 10, "{} bytes", PROGRAM.len());
    // ELF-64: where the program headers are, and how many; none may be PT_INTERP.
    let start = u64::from_le_bytes(PROGRAM[32..40].try_into().unwrap()) as usize;
    let count = u16::from_le_bytes(PROGRAM[56..58].try_into().unwrap()).into();
    let kinds: Vec<u8> = PROGRAM[start..].chunks(56).take(count).map(|header| header[0]).collect();
    assert!(kinds.contains(&1) && !kinds.contains(&3), "it wants a dynamic loader: {kinds:?}");
}

#[test]
fn output_and_status_come_back() {
    let bench = bench();
    let (outcome, out, err) = shell(&bench.agent, "echo out; echo err >&2; exit 7");
    assert_eq!((outcome, out.as_str(), err.as_str()), (Outcome::Exited(7), "out\n", "err\n"));
    assert_eq!(shell(&bench.agent, "kill -9 $$").0, Outcome::Signalled(9));
    assert_eq!(run(&bench.agent, &["true"]).0, Outcome::Exited(0));
}
