//! The real agent as a child process, over a socket pair: all but what needs a guest of its own.

mod codec;
mod hostile;
mod tree;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use sha2::Digest;

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
    // As descriptor 0: any other would be inherited by what other tests start at the same time.
    let mut command = Command::new(program());
    let child = command.args(["--serve-fd", "0"]).stdin(OwnedFd::from(theirs)).process_group(0).spawn().unwrap();
    // It keeps its descriptor otherwise.
    drop(command);
    let agent = Agent::connect(ours).unwrap();
    agent.ready(deadline()).unwrap();
    Bench { agent, child }
}

impl Bench {
    /// How many descriptors beyond the first three the agent leaves open for commands.
    fn inherited(&self) -> usize {
        let fds = std::fs::read_dir(format!("/proc/{}/fdinfo", self.child.id())).unwrap();
        let open = fds.filter(|entry| {
            let path = entry.as_ref().unwrap().path();
            let number: u32 = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            let flags = text.lines().find_map(|line| line.strip_prefix("flags:\t0")).unwrap_or("2000000");
            number > 2 && u32::from_str_radix(flags, 8).unwrap() & 0o2_000_000 == 0
        });
        open.count()
    }
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

#[test]
fn what_does_not_start_says_why() {
    let (bench, dir) = (bench(), tempfile::tempdir().unwrap());
    let plain = dir.path().join("plain");
    std::fs::write(&plain, "no program").unwrap();
    let script = dir.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let try_one = |program: &str| run(&bench.agent, &[program]).0;
    assert!(matches!(try_one("no-such-command"), Outcome::NotFound(what) if what.contains("no-such-command")));
    assert!(matches!(try_one("/no/such/file"), Outcome::NotFound(what) if what.contains("/no/such/file")));
    assert!(matches!(try_one(""), Outcome::NotFound(_)));
    assert!(matches!(try_one(plain.to_str().unwrap()), Outcome::NotExecutable(_)));
    assert!(matches!(try_one(dir.path().to_str().unwrap()), Outcome::NotExecutable(why) if why.contains("directory")));
    assert!(matches!(try_one(script.to_str().unwrap()), Outcome::NotExecutable(why) if why.contains("interpreter")));
    std::fs::set_permissions(&plain, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(matches!(try_one(plain.to_str().unwrap()), Outcome::NotExecutable(why) if why.contains("#!")));
    let user = Exec { user: Some("no-such-user".into()), ..Exec::new(["true"]) };
    assert!(
        matches!(run_with(&bench.agent, &user, Input::None).0, Outcome::Failed(why) if why.contains("no-such-user"))
    );
    let cwd = Exec { cwd: Some("/no/such".into()), ..Exec::new(["true"]) };
    assert!(matches!(run_with(&bench.agent, &cwd, Input::None).0, Outcome::Failed(why) if why.contains("/no/such")));
}

#[test]
fn surroundings_are_those_of_a_fresh_process() {
    let bench = bench();
    let script = "pwd; ls /proc/self/fd | wc -l; grep -E 'Sig(Blk|Ign)' /proc/self/status; echo $PATH $HOME; \
                  cut -d' ' -f5,6 /proc/$$/stat | grep -c $$; echo $X";
    let exec =
        Exec { env: vec![("X".into(), "a b".into())], cwd: Some("/usr".into()), ..Exec::new(["sh", "-c", script]) };
    let (outcome, out, _) = run_with(&bench.agent, &exec, Input::None);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(outcome, Outcome::Exited(0));
    // 0, 1, 2 and what ls itself opens; and what the agent was given by those who started this test.
    let expected = (4 + bench.inherited()).to_string();
    assert_eq!(lines[..2], ["/usr", &expected], "{out}");
    // The C library keeps signals 32 and 33 to itself.
    let none = |line: &&str| line.ends_with("0000000000000000") || line.ends_with("0000000180000000");
    assert!(lines[2..4].iter().all(none), "{out}");
    assert!(lines[4].starts_with("/usr/local/sbin:") && lines[4].contains(" /"), "{out}");
    assert_eq!(lines[5..], ["1", "a b"], "a session of its own: {out}");
    let bare = Exec { clear_env: true, env: vec![("ONLY".into(), "1".into())], ..Exec::new(["/usr/bin/env"]) };
    assert_eq!(run_with(&bench.agent, &bare, Input::None).1, "ONLY=1\n");
}

/// A stream of bytes without a pattern that a mistake would hide.
struct Numbers {
    next: u64,
    left: usize,
}

impl std::io::Read for Numbers {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = buffer.len().min(self.left);
        for byte in &mut buffer[..n] {
            let number = (self.next / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            *byte = number.to_le_bytes()[(self.next % 8) as usize];
            self.next += 1;
        }
        self.left -= n;
        Ok(n)
    }
}

/// What came, in short.
#[derive(Clone, Default)]
struct Hash(Arc<Mutex<(sha2::Sha256, usize)>>);

impl Hash {
    fn finish(&self) -> (Vec<u8>, usize) {
        let hash = self.0.lock().unwrap();
        (hash.0.clone().finalize().to_vec(), hash.1)
    }
}

impl Write for Hash {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let mut hash = self.0.lock().unwrap();
        hash.0.update(bytes);
        hash.1 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_hundred_megabytes_go_through_as_they_are() {
    const LEN: usize = 100_000_000;
    let (bench, seen) = (bench(), Hash::default());
    let stdin = Input::Reader(Box::new(Numbers { next: 0, left: LEN }));
    let stdout = Output::Writer(Box::new(seen.clone()));
    let io = Io { stdin, stdout, stderr: Output::Null };
    let exec = Exec::new(["cat"]);
    assert_eq!(bench.agent.exec(&exec, io).unwrap().wait(deadline()).unwrap(), Outcome::Exited(0));
    let mut wanted = Hash::default();
    std::io::copy(&mut Numbers { next: 0, left: LEN }, &mut wanted).unwrap();
    assert_eq!(seen.finish(), wanted.finish());
    assert_eq!(seen.finish().1, LEN);
}

#[test]
fn a_slow_reader_holds_up_only_its_own_command() {
    let bench = bench();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let io = Io { stdout: Output::Fd(writer.into()), ..Io::none() };
    let script = "head -c 2000000 /dev/zero; echo done >&2";
    let slow = bench.agent.exec(&Exec::new(["sh", "-c", script]), io).unwrap();
    for _ in 0..5 {
        assert_eq!(shell(&bench.agent, "echo quick").1, "quick\n");
    }
    assert!(matches!(slow.wait(Some(Instant::now() + Duration::from_millis(50))), Err(Error::TimedOut)));
    assert_eq!(std::io::copy(&mut reader.by_ref().take(2_000_000), &mut std::io::sink()).unwrap(), 2_000_000);
    assert_eq!(slow.wait(deadline()).unwrap(), Outcome::Exited(0));
}

#[test]
fn closed_ends_are_told_to_both_sides() {
    let bench = bench();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let io = Io { stdout: Output::Fd(writer.into()), ..Io::none() };
    let process = bench.agent.exec(&Exec::new(["yes"]), io).unwrap();
    assert_eq!(process.wait(deadline()).unwrap(), Outcome::Signalled(13), "a broken pipe");
    // A command that does not read all of an endless input.
    let endless = Input::Reader(Box::new(std::io::repeat(b'x')));
    let (outcome, out, _) = run_with(&bench.agent, &Exec::new(["head", "-c", "3"]), endless);
    assert_eq!((outcome, out.as_str()), (Outcome::Exited(0), "xxx"));
    // And one whose input is a pipe that nobody writes to and nobody closes.
    let (reader, _writer) = std::io::pipe().unwrap();
    assert_eq!(run_with(&bench.agent, &Exec::new(["true"]), Input::Fd(reader.into())).0, Outcome::Exited(0));
}

#[test]
fn children_left_behind_neither_lose_output_nor_hold_it_up() {
    let bench = bench();
    let begin = Instant::now();
    let (outcome, out, _) = shell(&bench.agent, "(sleep 0.1; echo late) & echo first; exit 4");
    assert_eq!((outcome, out.as_str()), (Outcome::Exited(4), "first\nlate\n"));
    let left = shell(&bench.agent, "sleep 100 & echo $!").1;
    assert!(begin.elapsed() < LONG, "it waited for what was left behind");
    assert_eq!(run(&bench.agent, &["kill", left.trim_end()]).0, Outcome::Exited(0), "it goes on");
    // Orphans are taken: none of the agent's children is a zombie.
    shell(&bench.agent, "for i in 1 2 3 4 5; do (sh -c 'exit 1' &) done");
    let zombies = format!("ps -o stat= --ppid {} | grep -c Z", bench.child.id());
    let end = Instant::now() + LONG;
    while shell(&bench.agent, &zombies).1 != "0\n" {
        assert!(Instant::now() < end, "zombies");
    }
}

#[test]
fn signals_reach_the_whole_group() {
    let bench = bench();
    // Dash keeps an interrupt for later while it starts a command, which then never sees it: none for a shell.
    for (number, command) in
        [(15, &["sh", "-c", "sleep 100; true"][..]), (9, &["sh", "-c", "sleep 100; true"]), (2, &["sleep", "100"])]
    {
        let process = bench.agent.exec(&Exec::new(command.iter().copied()), Io::none()).unwrap();
        process.started(deadline()).unwrap().expect("it runs");
        process.signal(number).unwrap();
        assert_eq!(process.wait(deadline()).unwrap(), Outcome::Signalled(number));
    }
}

#[test]
fn a_terminal_has_a_size_and_keys() {
    let bench = bench();
    let (read, mut keys) = std::io::pipe().unwrap();
    let (out, terminal) = (Kept::default(), Some(Size { columns: 91, rows: 33 }));
    let script = "trap 'stty size; exit 5' WINCH; stty size; echo $TERM; test -t 2 && echo err >&2; \
                  while :; do sleep 0.05; done";
    let exec = Exec { terminal, ..Exec::new(["sh", "-c", script]) };
    let io = Io { stdin: Input::Fd(read.into()), stdout: out.output(), stderr: Output::Null };
    let process = bench.agent.exec(&exec, io).unwrap();
    let wait = |text: &str| {
        let end = Instant::now() + LONG;
        while !out.text().contains(text) {
            assert!(Instant::now() < end, "{text} is not in {}", out.text());
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    wait("33 91\r\nxterm\r\nerr\r\n");
    process.resize(Size { columns: 120, rows: 40 }).unwrap();
    wait("40 120\r\n");
    assert_eq!(process.wait(deadline()).unwrap(), Outcome::Exited(5));
    drop(keys);
    // Control-C, and the end of input.
    let (read, write) = std::io::pipe().unwrap();
    keys = write;
    let io = Io { stdin: Input::Fd(read.into()), ..Io::none() };
    let process = bench.agent.exec(&Exec { terminal, ..Exec::new(["sleep", "100"]) }, io).unwrap();
    process.started(deadline()).unwrap().expect("it runs");
    keys.write_all(&[3]).unwrap();
    assert_eq!(process.wait(deadline()).unwrap(), Outcome::Signalled(2));
    let cat = Exec { terminal, ..Exec::new(["cat"]) };
    let (outcome, out, _) = run_with(&bench.agent, &cat, Input::Reader(Box::new(&b"typed\n"[..])));
    assert_eq!(outcome, Outcome::Exited(0));
    assert!(out.ends_with("typed\r\n"), "{out:?}");
}

#[test]
fn many_commands_at_once() {
    let bench = bench();
    std::thread::scope(|scope| {
        for number in 0..20 {
            let agent = &bench.agent;
            scope.spawn(move || {
                let (outcome, out, _) = shell(agent, &format!("head -c 100000 /dev/zero | wc -c; exit {number}"));
                assert_eq!((outcome, out.as_str()), (Outcome::Exited(number), "100000\n"));
            });
        }
    });
}

#[test]
fn the_end_of_the_agent_ends_every_wait() {
    let mut bench = bench();
    let process = bench.agent.exec(&Exec::new(["sleep", "5"]), Io::none()).unwrap();
    process.started(deadline()).unwrap().expect("it runs");
    let waiter = std::thread::spawn(move || process.wait(None));
    bench.child.kill().unwrap();
    assert!(matches!(waiter.join().unwrap(), Err(Error::Gone(_))));
    assert!(matches!(bench.agent.exec(&Exec::new(["true"]), Io::none()), Err(Error::Gone(_))));
}
