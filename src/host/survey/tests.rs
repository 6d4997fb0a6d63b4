use super::*;

fn error(number: i32) -> io::Result<()> {
    Err(io::Error::from_raw_os_error(number))
}

#[test]
fn cpu_levels_by_flags() {
    let all: Vec<_> = LEVELS.iter().flat_map(|(_, flags)| *flags).copied().collect();
    let level = |flags: &[&str]| {
        let found = cpu_level_of(&format!("model name\t: A CPU\nflags\t\t: fpu {}\nbugs\t:\n", flags.join(" ")));
        (found.found.split(' ').next().unwrap().to_owned(), found.mark)
    };
    assert_eq!(level(&all), ("x86-64-v4".into(), Mark::Ok));
    assert_eq!(level(&all[..16]), ("x86-64-v3".into(), Mark::Ok));
    assert_eq!(level(&all[..15]), ("x86-64-v2".into(), Mark::Ok));
    assert_eq!(level(&[]), ("x86-64-v1".into(), Mark::Limited));
    let without_cx16: Vec<_> = all[1..].to_vec();
    assert_eq!(level(&without_cx16), ("x86-64-v1".into(), Mark::Limited), "a level needs all below it");
    assert_eq!(cpu_level_of("").found, "x86-64-v1 (of unknown make)");
    // This host, by another way.
    let detected = std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("movbe");
    assert_eq!(cpu_level().found.starts_with("x86-64-v3") || cpu_level().found.starts_with("x86-64-v4"), detected);
}

#[test]
fn tap_interfaces() {
    assert_eq!(tap_of(Ok(()), true).mark, Mark::Ok);
    let user = tap_of(Ok(()), false);
    assert!(user.mark == Mark::Limited && user.remedy.unwrap().starts_with("sudo ip tuntap add"));
    for (number, word) in [(libc::ENOENT, "modprobe"), (libc::EACCES, "chmod"), (libc::ENODEV, "modprobe")] {
        let found = tap_of(error(number), true);
        assert!(found.mark == Mark::Missing && found.remedy.as_ref().unwrap().contains(word), "{found:?}");
    }
    let status = "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000000000001000\n";
    assert!(capable(status, CAP_NET_ADMIN) && !capable(status, 13) && !capable("", CAP_NET_ADMIN));
}

#[test]
fn huge_page_settings() {
    for good in ["[always] madvise never\n", "always [madvise] never\n"] {
        assert_eq!(huge_pages_of(Ok(good.into())).mark, Mark::Ok);
    }
    for bad in ["always madvise [never]\n", "", "nonsense"] {
        assert_eq!(huge_pages_of(Ok(bad.into())).mark, Mark::Limited);
    }
    assert_eq!(huge_pages_of(Err(ErrorKind::NotFound.into())).mark, Mark::Missing);
}

#[test]
fn io_uring_may_be_forbidden_in_many_ways() {
    assert_eq!(io_uring_of(Ok(()), "0"), Finding::ok("works"));
    let remedy = |number, disabled| {
        let found = io_uring_of(error(number), disabled);
        assert_eq!(found.mark, Mark::Limited);
        found.remedy.unwrap()
    };
    assert!(remedy(libc::EPERM, "2").contains("io_uring_disabled=0"));
    assert!(remedy(libc::EPERM, "0").contains("seccomp"));
    assert!(remedy(libc::ENOSYS, "").contains("host kernel"));
    assert!(remedy(libc::ENOMEM, "0").contains("ulimit -l"));
}

#[test]
fn memory_and_its_limits() {
    let meminfo = |kib: u64| format!("MemTotal:  99 kB\nMemAvailable:   {kib} kB\n");
    assert_eq!(memory_of(&meminfo(4 << 20), None), Finding::ok("4096 MiB available"));
    assert_eq!(memory_of(&meminfo(4 << 20), Some(8 << 30)).mark, Mark::Ok, "a limit above what there is");
    let limited = memory_of(&meminfo(4 << 20), Some(256 << 20));
    assert!(limited.found.contains("256 MiB allowed") && limited.remedy.unwrap().contains("memory.max"));
    assert!(memory_of(&meminfo(100 << 10), None).remedy.unwrap().contains("end other programs"));
    assert_eq!(memory_of("", None).mark, Mark::Limited);
}

#[test]
fn control_groups_limit_all_below_them() {
    let root = tempfile::tempdir().unwrap();
    let set = |path: &str, value: &str| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, value).unwrap();
    };
    let limit = |groups: &str| cgroup_limit(groups, root.path());
    set("a/b/memory.max", "max\n");
    assert_eq!(limit("0::/a/b\n"), None);
    set("a/memory.max", "1000\n");
    assert_eq!(limit("0::/a/b\n"), Some(1000));
    set("memory/c/memory.limit_in_bytes", "500\n");
    assert_eq!(limit("4:cpu:/c\n3:memory:/c\n0::/a/b\n"), Some(500));
    assert_eq!(limit("0::/../../etc\nnonsense\n"), None);
}

#[test]
fn this_host_can_be_surveyed() {
    for finding in [cpu_level(), tap(), huge_pages(), io_uring(), memory(), namespaces::user_namespaces()] {
        assert!(!finding.found.is_empty());
        assert_eq!(finding.remedy.is_none(), finding.mark == Mark::Ok, "{finding:?}");
    }
}
