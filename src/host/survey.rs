//! What this host offers beside an engine, and what to do where it does not: for `belljar doctor`, on its only thread.
//! Nothing here changes the host.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use io_uring::IoUring;
use serde::Serialize;

use super::tun;

pub mod executable;
pub mod namespaces;

/// How good something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// As good as belljar can use it.
    Ok,
    /// There, but not for everything or not as fast.
    Limited,
    /// Not there.
    Missing,
}

/// What was found about one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How good it is.
    pub mark: Mark,
    /// What was found.
    pub found: String,
    /// What the user can do about it, if anything.
    pub remedy: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(found: impl Into<String>) -> Self {
        Self { mark: Mark::Ok, found: found.into(), remedy: None }
    }

    /// It works in part; `remedy` makes it better.
    pub fn limited(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { mark: Mark::Limited, found: found.into(), remedy: Some(remedy.into()) }
    }

    /// It does not work; `remedy` makes it work.
    pub fn missing(found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { mark: Mark::Missing, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// The levels of the x86-64 psABI, section 3.1.1, by the names of CPU features in /proc/cpuinfo.
const LEVELS: &[(&str, &[&str])] = &[
    ("x86-64-v2", &["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"]),
    ("x86-64-v3", &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"]),
    ("x86-64-v4", &["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"]),
];

/// The level of the host's CPU, which is the most that a guest can have.
pub fn cpu_level() -> Finding {
    cpu_level_of(&text("/proc/cpuinfo"))
}

fn cpu_level_of(cpuinfo: &str) -> Finding {
    let value = |key: &str| {
        cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(k, _)| k.trim() == key).map(|(_, v)| v.trim())
    };
    let flags: Vec<_> = value("flags").unwrap_or_default().split_whitespace().collect();
    let reached = LEVELS.iter().take_while(|(_, needed)| needed.iter().all(|flag| flags.contains(flag)));
    let level = reached.last().map_or("x86-64-v1", |(name, _)| name);
    let found = format!("{level} ({})", value("model name").unwrap_or("of unknown make"));
    match level {
        "x86-64-v1" => Finding::limited(found, "guests that need more (such as RHEL 9) do not run; use a newer host"),
        _ => Finding::ok(found),
    }
}

/// Tap interfaces, for `--net`.
pub fn tap() -> Finding {
    let admin = capable(&text("/proc/self/status"), CAP_NET_ADMIN);
    tap_of(tun::open().map(drop), admin)
}

/// The right to configure networks (linux/capability.h).
const CAP_NET_ADMIN: u32 = 12;

fn capable(status: &str, capability: u32) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    bits.is_some_and(|bits| bits & 1 << capability != 0)
}

fn tap_of(opened: io::Result<()>, admin: bool) -> Finding {
    let device = tun::DEVICE;
    match opened {
        Ok(()) if admin => Finding::ok(format!("{device} works, and you may make tap interfaces")),
        Ok(()) => Finding::limited(
            format!("{device} works for tap interfaces that somebody made for you"),
            "sudo ip tuntap add tap0 mode tap user $USER",
        ),
        Err(e) if e.kind() == ErrorKind::NotFound => Finding::missing(
            format!("{device} does not exist: no --net"),
            "sudo modprobe tun, or give the container the device (--device /dev/net/tun)",
        ),
        Err(e) if e.kind() == ErrorKind::PermissionDenied => {
            Finding::missing(format!("{device}: permission denied: no --net"), format!("sudo chmod 666 {device}"))
        }
        Err(e) => Finding::missing(format!("{device}: {e}: no --net"), "sudo modprobe tun"),
    }
}

/// Transparent huge pages, which guest RAM asks for.
pub fn huge_pages() -> Finding {
    huge_pages_of(fs::read_to_string(THP))
}

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

fn huge_pages_of(setting: io::Result<String>) -> Finding {
    let Ok(setting) = setting else {
        return Finding::missing(
            "the host kernel has no transparent huge pages: guests are slower",
            "use a kernel with CONFIG_TRANSPARENT_HUGEPAGE",
        );
    };
    // The one in brackets counts: `always [madvise] never`.
    match setting.split(['[', ']']).nth(1) {
        Some(chosen @ ("always" | "madvise")) => Finding::ok(format!("transparent, {chosen}")),
        chosen => Finding::limited(
            format!("transparent, {}: guests are slower", chosen.unwrap_or("unknown")),
            format!("echo madvise | sudo tee {THP}"),
        ),
    }
}

/// io_uring, which disks use.
pub fn io_uring() -> Finding {
    io_uring_of(IoUring::new(2).map(drop), text("/proc/sys/kernel/io_uring_disabled").trim())
}

fn io_uring_of(made: io::Result<()>, disabled: &str) -> Finding {
    let instead = "disks use system calls instead";
    match made {
        Ok(()) => Finding::ok("works"),
        Err(e) if matches!(disabled, "1" | "2") => Finding::limited(
            format!("forbidden on this host ({e}): {instead}"),
            "sudo sysctl kernel.io_uring_disabled=0",
        ),
        Err(e) if e.raw_os_error() == Some(libc::ENOMEM) => Finding::limited(
            format!("may not lock memory ({e}): {instead}"),
            "raise the limit of locked memory (ulimit -l)",
        ),
        Err(e) => Finding::limited(
            format!("refused ({e}): {instead}"),
            "allow it in the container's seccomp profile, or use a host kernel that has it",
        ),
    }
}

/// A machine has this much unless told otherwise, and belljar needs a little.
const ENOUGH: u64 = 600 << 20;

/// Memory that guests can have.
pub fn memory() -> Finding {
    let limit = cgroup_limit(&text("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    memory_of(&text("/proc/meminfo"), limit)
}

fn memory_of(meminfo: &str, limit: Option<u64>) -> Finding {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    let Some(available) = kib.map(|kib| kib << 10) else {
        return Finding::limited("how much memory is available is not known", "mount /proc");
    };
    let mib = |bytes: u64| bytes >> 20;
    let limit = limit.filter(|limit| *limit < available);
    let usable = limit.unwrap_or(available);
    let found = match limit {
        Some(limit) => format!("{} MiB available, {} MiB allowed by the control group", mib(available), mib(limit)),
        None => format!("{} MiB available", mib(available)),
    };
    if usable >= ENOUGH {
        return Finding::ok(found);
    }
    let remedy = if limit.is_some() { "raise memory.max of the control group" } else { "end other programs" };
    Finding::limited(found, format!("{remedy}, or give guests less (--memory 128M)"))
}

/// The least memory limit of the control groups that this process is in, by its /proc/self/cgroup.
fn cgroup_limit(groups: &str, root: &Path) -> Option<u64> {
    let limits = groups.lines().filter_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        let (base, file) = match controllers {
            "" => (root.to_owned(), "memory.max"),
            names if names.split(',').any(|name| name == "memory") => (root.join("memory"), "memory.limit_in_bytes"),
            _ => return None,
        };
        let group = base.join(path.trim_start_matches('/'));
        let up = group.ancestors().take_while(|dir| dir.starts_with(&base));
        up.filter_map(|dir| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok()).min()
    });
    limits.min()
}

/// The content of a file of the kernel's, empty if there is none.
fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests;
