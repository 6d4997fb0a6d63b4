//! Installed kselftests (Documentation/dev-tools/kselftest.rst) as a command of a guest.

use std::path::Path;

use super::config;
use crate::run::{RunSpec, Volume};

/// The runner that `make -C tools/testing/selftests install` leaves.
const RUNNER: &str = "./run_kselftest.sh";
/// Where they are in guests whose root is not the host's.
const MOUNTED: &str = "/kselftest";

/// The run of `tests` of a collection, or all of it, that are installed in `dir`, as `spec` says otherwise.
pub(super) fn run(spec: &RunSpec, dir: &Path, collection: &str, tests: &[String]) -> RunSpec {
    let mut spec = spec.clone();
    let words: Vec<String> = match tests {
        [] => vec!["-c".into(), collection.into()],
        tests => tests.iter().flat_map(|test| ["-t".into(), format!("{collection}:{test}")]).collect(),
    };
    spec.command = [RUNNER.to_string()].into_iter().chain(words).map(Into::into).collect();
    let host = std::path::absolute(dir).unwrap_or_else(|_| dir.into());
    let hosts_root = spec.disk_root.is_none() && spec.root_path() == Path::new("/");
    spec.workdir = Some(if hosts_root && !config::is_of_the_guest(&host) {
        host
    } else {
        spec.volumes.push(Volume { host, guest: MOUNTED.into(), read_only: true });
        MOUNTED.into()
    });
    spec
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_run_where_they_are_installed() {
        let dir = Path::new("/opt/kselftest");
        let whole = run(&RunSpec::default(), dir, "size", &[]);
        assert_eq!(
            (whole.command, whole.workdir),
            (vec!["./run_kselftest.sh".into(), "-c".into(), "size".into()], Some(dir.into()))
        );
        let spec = RunSpec { root: Some("/rootfs".into()), ..RunSpec::default() };
        let part = run(&spec, dir, "net", &["a".into(), "b".into()]);
        assert_eq!(part.command, ["./run_kselftest.sh", "-t", "net:a", "-t", "net:b"]);
        assert_eq!((part.workdir, part.volumes.len()), (Some(MOUNTED.into()), 1));
        assert!(part.volumes[0].read_only);
        let hidden = run(&RunSpec::default(), Path::new("/tmp/kselftest"), "size", &[]);
        assert_eq!(hidden.workdir, Some(MOUNTED.into()), "guests have a /tmp of their own");
    }
}
