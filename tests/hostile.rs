//! A hostile guest against every device, on both transports. The guest (`tests/guests/hostile.rs`) is plain integer code,
//! so this runs wherever `/dev/kvm` opens, also where it cannot run a kernel; and on the software CPU. Whatever the guest does, belljar must not
//! panic, hang or grow, and must end with a documented exit code.
//!
//! `scripts/fuzz` runs it for longer: `BELLJAR_HOSTILE=SECONDS` for each test, with seeds from the clock.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Outcome, Session};

/// The guest works with this much.
const MEMORY_MIB: u64 = 64;
/// Private memory of belljar beside that: far more than it needs, far less than a leak in a loop makes.
const OWN_MIB: u64 = 4;
/// A run of [`ROUNDS`] takes seconds; more only if something hangs, or if the machine is very busy.
const LIMIT: Duration = Duration::from_secs(120);
const ROUNDS: u64 = 1500;
/// What a guest without restraint may do to its own CPU.
const CPU_DIED: i32 = 121;

/// Flags for every kind of device, with `DIR` for a directory of their own. A new kind must be added here.
const DEVICES: &[(&str, &[&str])] = &[
    ("serial", &["--serial", "stdio"]),
    ("console", &["--console", "socket=DIR/console"]),
    (
        "disk",
        &[
            "--disk",
            "path=DIR/raw,format=raw,aio=sync",
            "--disk",
            "path=DIR/ring,format=raw,queues=2",
            "--disk",
            "path=DIR/base,format=raw,snapshot",
            "--disk",
            "path=DIR/base,format=raw,readonly",
        ],
    ),
    ("fs", &["--fs", "DIR/shared,tag=test,mode=rw", "--fs", "DIR/shared,tag=more,queues=2,cache=always"]),
    ("rng", &["--rng"]),
    ("vsock", &["--vsock", "DIR/vsock"]),
    ("balloon", &["--balloon", "size=8M,stats=1,free-page-reporting"]),
    ("port", &["--port", "name=test,to=socket=DIR/port"]),
    ("uart", &["--uart", "to=socket=DIR/uart"]),
    // Its own network namespace has the interface.
    ("net", &["--net", "tap=hostile0"]),
];

/// The guest as an ELF file.
fn guest() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/hostile.rs");
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("hostile-{}", std::process::id()));
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        // Without SSE, which the PVM kind of /dev/kvm does not run. The compiler warns that floating point would not
        // work; there is none.
        let compiled = Command::new(rustc)
            .args(["--edition", "2024", "--crate-type", "bin", "--target", "x86_64-unknown-linux-gnu", "-o"])
            .arg(&built)
            .args(["-C", "opt-level=s", "-C", "panic=abort", "-C", "relocation-model=static"])
            .args(["-C", "target-feature=-sse,-sse2", "-C", "overflow-checks=off", "-C"])
            .arg("link-args=-nostartfiles -static -nostdlib -no-pie -Wl,--build-id=none")
            .arg(source)
            .output()
            .expect("rustc must be there: it compiled this test");
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        built
    })
}

/// Whether this host lets us make a network namespace with a tap interface for the guest's card.
fn has_tap() -> bool {
    let made = Command::new("unshare").args(["-rn", "ip", "tuntap", "add", "hostile0", "mode", "tap"]).output();
    let made = made.is_ok_and(|output| output.status.success());
    if !made {
        println!("without a network card: no namespaces or no /dev/net/tun here");
    }
    made
}

/// Whether KVM runs kernels here, or only guests like this one. Then `--engine kvm` warns of it.
fn runs_kernels() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = Command::new(common::belljar()).args(["doctor", "--json"]).output().unwrap().stdout;
        String::from_utf8_lossy(&found).starts_with("{\"engine\":\"kvm\"")
    })
}

struct Run {
    engine: &'static str,
    transport: &'static str,
    seed: u64,
    rounds: u64,
    wild: bool,
}

impl Run {
    fn command(&self, dir: &Path) -> Command {
        let kinds: Vec<_> = belljar::devices::KINDS.iter().map(|kind| kind.name()).collect();
        for kind in kinds {
            assert!(DEVICES.iter().any(|(known, _)| *known == kind), "let the hostile guest at {kind} as well");
        }
        for (name, mib) in [("raw", 1), ("ring", 8), ("base", 2)] {
            std::fs::File::create(dir.join(name)).unwrap().set_len(mib << 20).unwrap();
        }
        std::fs::create_dir(dir.join("shared")).unwrap();
        std::fs::write(dir.join("shared/file"), "content").unwrap();
        let mut command = if has_tap() {
            let mut command = Command::new("unshare");
            let script = "ip tuntap add hostile0 mode tap && ip link set hostile0 up && exec \"$@\"";
            command.args(["-rn", "sh", "-c", script, "sh"]).arg(common::belljar());
            command
        } else {
            Command::new(common::belljar())
        };
        let wild = if self.wild { ",wild" } else { "" };
        command.args(["boot", "--engine", self.engine, "--timeout", "110", "--transport", self.transport]);
        command.arg("--memory").arg(format!("{MEMORY_MIB}M")).arg("--kernel").arg(guest());
        command.arg("--append").arg(format!("hostile={},{}{wild}", self.seed, self.rounds));
        let tap = command.get_program() == "unshare";
        for (_, flags) in DEVICES.iter().filter(|(kind, _)| tap || *kind != "net") {
            command.args(flags.iter().map(|flag| flag.replace("DIR", dir.to_str().unwrap())));
        }
        command
    }

    fn run(&self) {
        let dir = tempfile::tempdir().unwrap();
        let what =
            format!("{} {} seed {} rounds {} wild {}", self.engine, self.transport, self.seed, self.rounds, self.wild);
        println!("hostile guest: {what}");
        let mut session = Session::start(self.command(dir.path()));
        let over = AtomicBool::new(false);
        let outcome = std::thread::scope(|scope| {
            scope.spawn(|| chatter(&dir.path().join("console"), b"", &over));
            scope.spawn(|| chatter(&dir.path().join("port"), b"", &over));
            scope.spawn(|| chatter(&dir.path().join("uart"), b"", &over));
            scope.spawn(|| chatter(&dir.path().join("vsock"), b"CONNECT 1\n", &over));
            scope.spawn(|| serve(&dir.path().join("vsock_1"), &over));
            let most = watch(&mut session);
            let outcome = session.finish(LIMIT);
            over.store(true, Ordering::Release);
            assert!(most >> 10 <= MEMORY_MIB + OWN_MIB, "{what}: {most} KiB of private memory\n{outcome}");
            outcome
        });
        self.judge(&what, &outcome);
    }

    fn judge(&self, what: &str, outcome: &Outcome) {
        let warnings = outcome.errors.lines().filter(|line| line.starts_with("belljar: KVM: "));
        let warnings: Vec<_> = warnings.map(|line| line.ends_with("; using it all the same")).collect();
        let warned = self.engine == "kvm" && !runs_kernels();
        assert_eq!(warnings, if warned { &[true][..] } else { &[] }, "{what}:\n{outcome}");
        assert!(!outcome.errors.contains("panicked at"), "{what}:\n{outcome}");
        assert!(outcome.errors.lines().count() < 200, "{what}: a flood of messages\n{outcome}");
        assert!(outcome.console.contains("hostile: found devices"), "{what}:\n{outcome}");
        match outcome.status.code() {
            Some(0) => {
                let answers = outcome.console.split("hostile: done, answers: ").nth(1).unwrap_or_default();
                let answers: u64 = answers.trim().parse().unwrap_or(0);
                assert!(
                    answers * 20 > self.rounds,
                    "{what}: {answers} answers: the guest does not get at devices\n{outcome}"
                );
            }
            Some(CPU_DIED) if self.wild => {}
            _ => panic!("{what}:\n{outcome}"),
        }
    }
}

/// The most private memory that was seen while belljar ran, in KiB.
fn watch(session: &mut Session) -> u64 {
    let rollup = format!("/proc/{}/smaps_rollup", session.child.id());
    let begin = Instant::now();
    let mut most = 0;
    while session.child.try_wait().unwrap().is_none() && begin.elapsed() < LIMIT {
        let text = std::fs::read_to_string(&rollup).unwrap_or_default();
        let anonymous = text.lines().find_map(|line| line.strip_prefix("Anonymous:"));
        let size = anonymous.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok());
        most = most.max(size.unwrap_or(0));
        std::thread::sleep(Duration::from_millis(100));
    }
    most
}

/// Reads and writes at the socket as long as belljar runs, beginning with `greeting`.
fn chatter(path: &Path, greeting: &[u8], over: &AtomicBool) {
    while !over.load(Ordering::Acquire) {
        std::thread::sleep(Duration::from_millis(20));
        let Ok(mut client) = UnixStream::connect(path) else { continue };
        if client.write_all(greeting).is_ok() {
            talk(client, over);
        }
    }
}

/// The same with whoever connects to a socket here.
fn serve(path: &Path, over: &AtomicBool) {
    let listener = UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    while !over.load(Ordering::Acquire) {
        match listener.accept() {
            Ok((client, _)) => talk(client, over),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn talk(mut client: UnixStream, over: &AtomicBool) {
    client.set_nonblocking(true).unwrap();
    let mut buffer = [0x41; 4096];
    for turn in 0..100 {
        let read = client.read(&mut buffer);
        let written = if turn % 4 == 0 { client.write(&buffer[..700]) } else { Ok(1) };
        if over.load(Ordering::Acquire) || matches!(read, Ok(0)) || matches!(written, Ok(0)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A few seeds, or as many as there is time for.
fn seeds(transport: &'static str, wild: bool, few: &[u64]) {
    let Some(engine) = common::tiny_engine() else { return };
    match std::env::var("BELLJAR_HOSTILE").ok().and_then(|seconds| seconds.parse().ok()) {
        None => few.iter().for_each(|&seed| Run { engine, transport, seed, rounds: ROUNDS, wild }.run()),
        Some(seconds) => {
            let (begin, limit) = (Instant::now(), Duration::from_secs(seconds));
            let mut seed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
            while begin.elapsed() < limit {
                Run { engine, transport, seed, rounds: 4 * ROUNDS, wild }.run();
                seed += 1;
            }
        }
    }
}

#[test]
fn registers_and_queues_on_mmio() {
    seeds("mmio", false, &[1, 2]);
}

#[test]
fn registers_and_queues_on_pci() {
    seeds("pci", false, &[3, 4]);
}

#[test]
fn anything_at_all_on_mmio() {
    seeds("mmio", true, &[5, 6]);
}

#[test]
fn anything_at_all_on_pci() {
    seeds("pci", true, &[7, 8]);
}
