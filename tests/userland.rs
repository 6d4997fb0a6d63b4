//! A whole distribution: Debian with systemd from its root disk to the login prompt, at work, and down again in order.

mod common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{Guest, Session, asset, host, scratch};
use rustix::process::Signal;

/// A distribution under two layers of emulation takes its time.
const LIMIT: u64 = 240;

/// Boots it to a root shell, and until all is started and nothing has failed. The image stays as it is.
fn login(image: &str, arguments: &[&str]) -> Option<Session> {
    let (guest, rootfs) = (Guest::new("6.12-cloud")?, asset(image)?);
    let disk = format!("{},snapshot,serial=root", rootfs.display());
    let guest = guest.limit(LIMIT).args(["--disk", &disk, "--memory", "1G"]).args(arguments);
    let mut session = guest.append("root=/dev/vda systemd.show_status=no").start();
    session.expect("belljar login:");
    session.send("root");
    session.expect("root@belljar:");
    // A shell that prints nothing but what it is told to.
    session.send("exec env PS1='sh''# ' dash");
    session.expect("sh# ");
    let state = session.shell("systemctl is-system-running --wait; systemctl --failed --no-legend --plain");
    assert!(state.contains("running\nat-end 0"), "{state}");
    Some(session)
}

#[test]
fn debian_works_and_powers_off() {
    let Some(mut debian) = login("rootfs-systemd", &["--rng", "--console", "stdio"]) else { return };
    let disk = debian.shell("readlink -f /dev/disk/by-id/virtio-root; findmnt -no SOURCE /; systemd-detect-virt");
    assert!(disk.contains("/dev/vda\n/dev/vda\nkvm\n"), "{disk}");
    debian.shell("dd if=/dev/urandom of=/var/tmp/data bs=1M count=16 conv=fsync; sync");
    let clock = debian.shell("date +%s=");
    let guest: u64 = clock.split(['\n', '=', ' ']).find_map(|word| word.parse().ok()).unwrap();
    let host = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(host.abs_diff(guest) < 30, "the guest's clock says {guest}, the host's {host}");
    debian.send("systemctl poweroff");
    debian.finish(Duration::from_secs(LIMIT + 10)).code(0);
}

#[test]
fn sigterm_is_the_power_button() {
    let Some(mut debian) = login("rootfs-systemd", &[]) else { return };
    // The system runs before the driver of the button is loaded, on a slow CPU by some seconds.
    debian.shell("until journalctl -u systemd-logind | grep -q 'system buttons'; do sleep 1; done");
    debian.signal(Signal::TERM);
    let outcome = debian.finish(Duration::from_secs(LIMIT + 10));
    outcome.code(0).shows("reboot: Power down");
}

/// What `tests/guests/tools/arithmetic.py` and `arithmetic.pl` print: constants and check values known from elsewhere.
const PYTHON: &str = r#"power 265613988875874769338781322035779626829233452653394495974574961739092490901302182994384699044001
factorial 815915283247897734345611269596115894272000000000
modular 1
pi 314159265358979323846264338327950288419716939937510
root 1.414213562373095048801688724209698078570
floats 0.30000000000000004 1e+23 5e-324 1.4142135623730951 3.141592653589793 -0.0 1.7976931348623157e+308
functions ['0.997494986604', '0.070737201668', '14.101419947172', '4.481689070338', '0.405465108108', '0.982793723247', '0.886226925453']
sum 1.0 4999950000 1/2
bits 3fd55555555555553eaaaaab3555 3421780262 300286872
text jar bell {"\u00e9": [1.5, null]} ['s', 's', 'v']
threads [0, 1, 4, 9, 16, 25, 36, 49]
"#;
const PERL: &str = "floats 0.3 2.718281828459045 1.4142135624e+00 -3
power 340282366920938463463374607431768211456 265252859812191058636308480000000
digest a9993e364706816aba3e25717850c26c9cd0d89d ddaf35a193617abacc417349ae204131
sorted 91,244,397,488,550,641,703,794,856,947
words and=2 bell=1 glass=1 jar=1 the=3 lessev
";

/// A disk with `tests/guests/tools` and a megabyte of data for the guest to work on, and what comes back on it.
struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    fn new() -> Self {
        let work = Self { dir: scratch() };
        let (files, disk) = (work.path("files"), work.path("disk.ext4"));
        std::fs::create_dir(&files).unwrap();
        let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guests/tools");
        for entry in std::fs::read_dir(tools).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), Path::new(&files).join(entry.file_name())).unwrap();
        }
        let mut x = 1u32;
        let data = (0..1_000_000).map(|_| {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (x >> 24) as u8
        });
        std::fs::write(work.path("files/data"), data.collect::<Vec<u8>>()).unwrap();
        host("mke2fs", &["-q", "-t", "ext4", "-d", &files, &disk, "256M"]);
        work
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn disk(&self) -> String {
        format!("{},serial=work", self.path("disk.ext4"))
    }

    /// After the guest's end: the file system is sound, and what the guest left in its directory `out` can be read.
    fn fetch(&self) {
        host("e2fsck", &["-fn", &self.path("disk.ext4")]);
        host("debugfs", &["-R", &format!("rdump /out {}", self.dir.path().display()), &self.path("disk.ext4")]);
    }

    fn text(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(&format!("out/{name}"))).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// A program that the guest's compiler made prints here what it printed there.
    fn same_program(&self, name: &str) {
        let path = self.path(&format!("out/{name}"));
        let here = Command::new(&path).output().unwrap_or_else(|e| panic!("{path}: {e}"));
        assert!(here.status.success(), "{name}: {}", here.status);
        let here = String::from_utf8(here.stdout).unwrap();
        assert_eq!(here.lines().count(), 17, "{here}");
        assert_eq!(here, self.text(&format!("{name}.txt")), "{name}: host (left) and guest (right) differ");
    }

    /// Digests, ciphers and signatures of the guest are right by the host's openssl, Python's digests by the guest's.
    fn same_cryptography(&self) {
        let data = self.path("files/data");
        let digests: Vec<(String, String)> = ["md5", "sha1", "sha256", "sha512", "sha3-256", "blake2b512"]
            .map(|name| (name.to_owned(), host("openssl", &["dgst", "-r", &format!("-{name}"), &data])))
            .into_iter()
            .map(|(name, line)| (name, line.split(' ').next().unwrap_or_default().to_owned()))
            .collect();
        let wanted: String = digests.iter().map(|(_, digest)| format!("{digest} *data\n")).collect();
        assert_eq!(self.text("digests.txt"), wanted);
        let python = |(name, digest): &(String, String)| {
            format!("digest {} {digest}\n", name.replace('-', "_").replace("b512", "b"))
        };
        assert_eq!(self.text("python.txt"), format!("{PYTHON}{}", digests.iter().map(python).collect::<String>()));
        let key: String = (0..32).map(|byte| format!("{byte:02x}")).collect();
        let start: String = (0xf0..=0xff).map(|byte| format!("{byte:02x}")).collect();
        for cipher in ["aes-256-cbc", "aes-256-ctr", "chacha20"] {
            let out = self.path("here");
            let name = format!("-{cipher}");
            host("openssl", &["enc", &name, "-K", &key, "-iv", &start, "-in", &data, "-out", &out]);
            let there = std::fs::read(self.path(&format!("out/{cipher}"))).unwrap();
            assert!(std::fs::read(out).unwrap() == there, "{cipher}");
        }
        for kind in ["ec", "rsa"] {
            let (public, signature) = (self.path(&format!("out/{kind}.pub")), self.path(&format!("out/{kind}.sig")));
            let told = host("openssl", &["dgst", "-sha256", "-verify", &public, "-signature", &signature, &data]);
            assert!(told.contains("Verified OK"), "{kind}: {told}");
        }
        // Thousands of bytes a second: lines such as `sha256  123456.78k`.
        let speed = self.text("speed.txt");
        for what in ["sha256", "aes-128-cbc"] {
            let line = speed.lines().find_map(|line| line.strip_prefix(what)).unwrap_or_else(|| panic!("{speed}"));
            let fast: f64 = line.trim().trim_end_matches('k').parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            assert!((500.0..1e8).contains(&fast), "{what}: {fast} kB/s");
        }
    }
}

/// Ends it in order.
fn power_off(mut debian: Session) {
    let said = debian.shell("dmesg --level emerg,alert,crit,err,warn");
    let bad = ["BUG:", "Oops", "WARNING:", "stall", "lockup", "general protection", "segfault", "traps:", "hung"];
    assert!(!bad.iter().any(|word| said.contains(word)), "{said}");
    debian.send("systemctl poweroff");
    debian.finish(Duration::from_secs(LIMIT + 10)).code(0).shows("reboot: Power down");
}

/// Compilers, interpreters, ciphers and disks do what they do elsewhere, with all instructions that this host has.
#[test]
fn tools_compute_what_the_host_computes() {
    let work = Work::new();
    let Some(mut debian) = login("rootfs-tools", &["--disk", &work.disk()]) else { return };
    let flags = debian.shell("grep -m1 ^flags /proc/cpuinfo");
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    // As far as gcc knows levels by name; the software CPU has all of the third if its host does.
    let level = ["avx2", "bmi2", "fma", "movbe", "f16c", "lzcnt", "abm"].iter().filter(|flag| has(flag)).count();
    let best = if level >= 6 { "-march=x86-64-v3" } else { "-march=x86-64" };
    println!("compiling with {best}");
    let told = debian.shell(&format!("mount /dev/disk/by-id/virtio-work /mnt && sh /mnt/work {best} && umount /mnt"));
    assert!(told.contains("at-end 0"), "{told}");
    power_off(debian);
    work.fetch();
    for name in ["plain", "narrow", "best", "narrow-sse"] {
        work.same_program(name);
    }
    assert_eq!(work.text("perl.txt"), PERL);
    work.same_cryptography();
}

/// The same on the least of CPUs: libraries choose other code there.
#[test]
fn tools_work_on_the_baseline() {
    let work = Work::new();
    let arguments = ["--cpu", "x86-64-v1", "--cpus", "2", "--disk", &work.disk()];
    let Some(mut debian) = login("rootfs-tools", &arguments) else { return };
    let flags = debian.shell("grep -m1 ^flags /proc/cpuinfo");
    let more = ["ssse3", "sse4_1", "avx", "avx2", "bmi1", "aes", "xsave", "popcnt"];
    assert!(!more.iter().any(|flag| flags.split_whitespace().any(|word| word == *flag)), "{flags}");
    let told = debian.shell("mount /dev/disk/by-id/virtio-work /mnt && sh /mnt/work && umount /mnt");
    assert!(told.contains("at-end 0"), "{told}");
    power_off(debian);
    work.fetch();
    work.same_program("plain");
    work.same_program("narrow");
    assert_eq!(work.text("perl.txt"), PERL);
    work.same_cryptography();
}

/// What checks itself finds nothing wrong, on CPUs that share their memory and two more than the host may have.
#[test]
fn tools_survive_stress_on_four_cpus() {
    let Some(mut debian) = login("rootfs-tools", &["--cpus", "4"]) else { return };
    let count = debian.shell("nproc");
    assert!(count.contains("4\nat-end 0"), "{count}");
    for stressors in [
        "--cpu 2 --cpu-method all",
        "--vm 2 --vm-bytes 24M --vm-method all",
        "--fp 2 --matrix 2",
        "--vecmath 1 --vecwide 1 --vecfp 1 --sparsematrix 1",
        "--futex 4 --mutex 2",
        "--fork 2 --vfork 2 --pthread 2",
        "--signal 2 --sigsegv 2 --sigfpe 1",
        "--switch 2 --sem 2 --pipe 2",
        "--tlb-shootdown 2 --mprotect 2 --mremap 2",
        "--icache 2 --opcode 1",
        "--atomic 2 --lockbus 1 --membarrier 2",
        "--hdd 2 --hdd-bytes 8M --qsort 1 --hash 1",
    ] {
        let told = debian.shell(&format!("stress-ng --verify --timeout 2 {stressors} 2>&1"));
        assert!(told.contains("successful run completed") && told.contains("at-end 0"), "{stressors}: {told}");
        assert!(!told.contains("fail:") && !told.contains("error:"), "{stressors}: {told}");
    }
    power_off(debian);
}
