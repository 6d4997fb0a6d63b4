//! A control group (cgroup v2) for some threads of this process, with a limit of CPU time.
//!
//! It is a threaded child of the group that the process is in, which needs the right to make one there: as root, or where
//! the group was delegated, as `systemd-run --user --scope -p Delegate=yes` does. See the kernel's
//! Documentation/admin-guide/cgroup-v2.rst, "Threads" and "CPU".

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::thread::Pid;

/// The kernel's own period, within which a group may use its share: microseconds.
const PERIOD: u64 = 100_000;
/// How often a group is tried to be removed: its last thread leaves it a moment after it was joined.
const REMOVALS: u32 = 50;

/// Why there can be no group: what was tried, and what the host said.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(String);

/// Where the kernel describes the groups of this process.
#[derive(Debug)]
struct Proc<'a> {
    /// `/proc/self/cgroup`.
    groups: &'a Path,
    /// `/proc/self/mountinfo`.
    mounts: &'a Path,
}

/// A group of threads. Dropping it removes it, for which its threads must have ended.
#[derive(Debug)]
pub struct CpuGroup {
    path: PathBuf,
}

impl CpuGroup {
    /// A group whose threads may use this many thousandths of one CPU together.
    pub fn new(thousandths: u32) -> Result<Self, Unavailable> {
        let proc = Proc { groups: Path::new("/proc/self/cgroup"), mounts: Path::new("/proc/self/mountinfo") };
        Self::below(&own_group(&proc)?, thousandths)
    }

    fn below(parent: &Path, thousandths: u32) -> Result<Self, Unavailable> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let controllers = fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
        if !controllers.split_whitespace().any(|name| name == "cpu") {
            return Err(Unavailable(format!("{} has no cpu controller", parent.display())));
        }
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("belljar-{}-{number}", std::process::id()));
        fs::create_dir(&path).map_err(|e| Unavailable(format!("cannot make {}: {e}", path.display())))?;
        let group = Self { path };
        // Threaded first: only then may the parent, which has processes, hand a controller down.
        write(&group.path.join("cgroup.type"), "threaded")?;
        write(&parent.join("cgroup.subtree_control"), "+cpu")?;
        let quota = u64::from(thousandths) * PERIOD / 1000;
        write(&group.path.join("cpu.max"), &format!("{quota} {PERIOD}"))?;
        Ok(group)
    }

    /// Puts a thread of this process into the group.
    pub fn add(&self, thread: Pid) -> Result<(), Unavailable> {
        write(&self.path.join("cgroup.threads"), &thread.as_raw_nonzero().to_string())
    }
}

impl Drop for CpuGroup {
    fn drop(&mut self) {
        for _ in 0..REMOVALS {
            match fs::remove_dir(&self.path) {
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy => std::thread::sleep(Duration::from_millis(1)),
                Err(e) => return tracing::debug!("{} stays behind: {e}", self.path.display()),
                Ok(()) => return,
            }
        }
    }
}

fn write(path: &Path, text: &str) -> Result<(), Unavailable> {
    fs::write(path, text).map_err(|e| Unavailable(format!("cannot write `{text}` to {}: {e}", path.display())))
}

/// The directory of the group that this process is in.
fn own_group(proc: &Proc<'_>) -> Result<PathBuf, Unavailable> {
    let read =
        |path: &Path| fs::read_to_string(path).map_err(|e| Unavailable(format!("cannot read {}: {e}", path.display())));
    let (groups, mounts) = (read(proc.groups)?, read(proc.mounts)?);
    let none = || Unavailable("this host has no cgroup v2".into());
    let group = groups.lines().find_map(|line| line.strip_prefix("0::")).ok_or_else(none)?;
    let (root, mount) = mounts.lines().find_map(mount_of_groups).ok_or_else(none)?;
    // A container may see only a part of the tree: then the mount's root is not that of the groups.
    let below = Path::new(group).strip_prefix(root).unwrap_or(Path::new(group));
    // Without a slash at the end, which joining nothing would leave.
    Ok(Path::new(mount).join(below.strip_prefix("/").unwrap_or(below)).components().collect())
}

/// Root and place of a line of mountinfo (proc_pid_mountinfo(5)), if it mounts cgroup v2.
fn mount_of_groups(line: &str) -> Option<(&str, &str)> {
    let (mount, kind) = line.split_once(" - ")?;
    let mut words = mount.split(' ').skip(3);
    (kind.split(' ').next() == Some("cgroup2")).then_some((words.next()?, words.next()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::clock::ThreadClock;
    use std::sync::Arc;
    use std::time::Instant;

    /// A directory that looks like `/proc/self` and a mounted tree of groups.
    fn fake(group: &str, root: &str, controllers: &str) -> (tempfile::TempDir, Result<PathBuf, Unavailable>) {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        let (groups, mounts) = (dir.path().join("cgroup"), dir.path().join("mountinfo"));
        fs::create_dir_all(tree.join("app/run")).unwrap();
        fs::write(tree.join("app/run/cgroup.controllers"), controllers).unwrap();
        fs::write(&groups, format!("1:cpu:/elsewhere\n0::{group}\n")).unwrap();
        let mount =
            format!("31 23 0:28 / /sys rw - tmpfs t rw\n32 31 0:30 {root} {} rw,nosuid shared:4", tree.display());
        fs::write(&mounts, format!("{mount} - cgroup2 cgroup2 rw\n")).unwrap();
        let found = own_group(&Proc { groups: &groups, mounts: &mounts });
        (dir, found)
    }

    #[test]
    fn the_group_of_the_process_is_found_in_what_is_mounted() {
        let (dir, found) = fake("/app/run", "/", "cpu");
        assert_eq!(found.unwrap(), dir.path().join("tree/app/run"));
        let (dir, found) = fake("/docker/5/app/run", "/docker/5", "cpu");
        assert_eq!(found.unwrap(), dir.path().join("tree/app/run"));
        let empty = tempfile::NamedTempFile::new().unwrap();
        let missing = own_group(&Proc { groups: empty.path(), mounts: empty.path() }).unwrap_err();
        assert_eq!(missing.to_string(), "this host has no cgroup v2");
    }

    #[test]
    fn a_threaded_child_gets_the_limit_and_the_threads() {
        let (_dir, parent) = fake("/app/run", "/", "memory cpu pids\n");
        let parent = parent.unwrap();
        let group = CpuGroup::below(&parent, 1500).unwrap();
        group.add(rustix::thread::gettid()).unwrap();
        let read = |path: PathBuf| fs::read_to_string(path).unwrap();
        assert_eq!(read(parent.join("cgroup.subtree_control")), "+cpu");
        assert_eq!(read(group.path.join("cgroup.type")), "threaded");
        assert_eq!(read(group.path.join("cpu.max")), "150000 100000");
        let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
        assert_eq!(read(group.path.join("cgroup.threads")), thread);
        let other = CpuGroup::below(&parent, 10).unwrap();
        assert_ne!(other.path, group.path, "each machine has its own");
    }

    #[test]
    fn without_delegation_it_is_said_what_is_missing() {
        let (_dir, parent) = fake("/app/run", "/", "memory pids");
        let error = CpuGroup::below(&parent.unwrap(), 500).unwrap_err().to_string();
        assert!(error.ends_with("tree/app/run has no cpu controller"), "{error}");
        let error = CpuGroup::below(Path::new("/proc"), 500).unwrap_err().to_string();
        assert!(error.contains("/proc has no cpu controller"), "{error}");
        let (_dir, parent) = fake("/app/run", "/", "cpu");
        let parent = parent.unwrap();
        fs::create_dir(parent.join("cgroup.subtree_control")).unwrap();
        let error = CpuGroup::below(&parent, 500).unwrap_err().to_string();
        assert!(error.starts_with("cannot write `+cpu` to "), "{error}");
    }

    /// On a host that lets this test: a thread in a group with a tenth of a CPU gets no more than that.
    #[test]
    fn the_kernel_keeps_to_the_limit_where_it_may_be_set() {
        let group = match CpuGroup::new(100) {
            Ok(group) => Arc::new(group),
            Err(e) => return eprintln!("\nSKIPPED: no cgroup v2 to use here: {e}"),
        };
        let (path, member) = (group.path.clone(), group.clone());
        let worker = std::thread::spawn(move || {
            member.add(rustix::thread::gettid()).unwrap();
            let start = Instant::now();
            while start.elapsed() < Duration::from_millis(2200) {}
        });
        let clock = ThreadClock::of(&worker).unwrap();
        std::thread::sleep(Duration::from_secs(2));
        let used = clock.time();
        worker.join().unwrap();
        drop(group);
        assert!(used < Duration::from_millis(600), "{used:?} of 2 s");
        assert!(!path.exists(), "it is removed");
    }
}
