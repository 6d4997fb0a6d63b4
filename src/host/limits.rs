//! Limits that the host puts on this process: on open files, raised by the command line before anything is opened, and
//! on memory, which the machine's builder asks for.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::sysinfo;

/// Raises the number of files that this process may have open as far as it may by itself. The usual soft limit of 1024
/// exists for programs that use select(2), which none here does; disks, queues and each socket of a guest take one.
pub fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum
        && let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })
    {
        tracing::debug!("the limit of open files stays at {current:?}: {e}");
    }
}

/// How many files this process may have open.
pub fn open_files() -> usize {
    getrlimit(Resource::Nofile).current.map_or(usize::MAX, |limit| limit as usize)
}

/// Bytes of RAM and swap that this host has, used or not: no process can ever hold more.
pub fn memory() -> u64 {
    let host = sysinfo();
    let units = host.totalram.saturating_add(host.totalswap);
    units.saturating_mul(u64::from(host.mem_unit))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        raise_open_files();
        let limit = getrlimit(Resource::Nofile);
        assert_eq!(limit.current, limit.maximum);
    }

    #[test]
    fn the_hosts_memory_is_what_proc_says() {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap();
        let kib = |key: &str| -> u64 {
            let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap();
            line.trim_end_matches("kB").trim().parse().unwrap()
        };
        assert_eq!(memory(), (kib("MemTotal:") + kib("SwapTotal:")) << 10);
    }
}
