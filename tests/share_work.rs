//! Shared directories of real guests at work: what programs make of a tree of many files is what the host makes of it.
//! The guest's root is the host's own, with the host's programs.

mod common;

use std::fs;
use std::path::Path;
use std::time::Duration;

use common::run::Runner;
use common::{asset, host, scratch};

/// Seconds that a guest gets: these work for a while, on a busy host for several times as long.
const LIMIT: u64 = 280;

/// `count` files of a few hundred bytes to a few pages in directories of fifty, with times of long ago.
fn tree(at: &Path, count: usize) {
    for number in 0..count {
        let dir = at.join(format!("d{}/e{}", number / 500, number / 50));
        fs::create_dir_all(&dir).unwrap();
        let line = format!("file {number} of many\n");
        fs::write(dir.join(format!("file-{number}.txt")), line.repeat(1 + number * 7919 % 400)).unwrap();
    }
    host("sh", &["-c", "find \"$1\" -exec touch -h -d 2020-02-02T02:02:02 {} +", "-", at.to_str().unwrap()]);
}

/// Runs `script` in the directory `dir` on the host.
fn here(dir: &Path, script: &str) -> String {
    host("sh", &["-c", &format!("cd '{}' && {script}", dir.display())])
}

/// Runs `script` in a guest that has `dir` as its working directory; `mode` is `:ro` or nothing.
fn there(runner: &Runner, dir: &Path, mode: &str, script: &str) -> String {
    let share = format!("{}:/mnt{mode}", dir.display());
    let runner = runner.clone().limit(LIMIT).arg("-v", share).with(&["-w", "/mnt"]);
    let mut session = runner.start(&["sh", "-c", script]);
    session.close_input();
    let outcome = session.finish(Duration::from_secs(LIMIT + 10));
    outcome.code(0);
    outcome.console
}

#[test]
fn git_sees_what_the_host_sees() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let dir = scratch();
    tree(&dir.path().join("tree"), 1000);
    // Whoever the files belong to on either side.
    let git = "export HOME=$(mktemp -d); git config --global safe.directory '*'; git config --global user.name n; \
               git config --global user.email e;";
    here(dir.path(), &format!("{git} git init -q && git add . && git commit -qm all"));
    let clean = format!("{git} git status; git diff");
    assert_eq!(there(&runner, dir.path(), ":ro", &clean), here(dir.path(), &clean));
    let change = "echo more >> tree/d1/e12/file-600.txt; rm tree/d0/e1/file-77.txt; mv tree/d1/e15 tree/moved; \
                  chmod +x tree/d0/e3/file-150.txt; echo new > tree/d1/new; ln -s new tree/d1/link;";
    let look = format!("{git} git status --porcelain -uall; git diff; git stash list");
    let seen = there(&runner, dir.path(), "", &format!("{change} {look}"));
    assert!(seen.contains("+more") && seen.contains("?? tree/d1/link") && seen.contains("new mode 100755"), "{seen}");
    assert_eq!(seen, here(dir.path(), &look));
}

#[test]
fn tar_packs_ten_thousand_files() {
    let Some(runner) = Runner::new("6.12-cloud") else { return };
    let dir = scratch();
    tree(dir.path(), 10_000);
    let pack = "tar --sort=name --owner=0 --group=0 --numeric-owner --format=gnu -cf - . | cksum";
    assert_eq!(there(&runner, dir.path(), ":ro", pack), here(dir.path(), pack));
}

/// fsx checks each of its operations on a file against what the file must hold.
#[test]
fn files_hold_what_was_written_whatever_comes_in_between() {
    let (Some(runner), Some(fsx)) = (Runner::new("6.12-cloud"), asset("fsx")) else { return };
    let dir = scratch();
    fs::copy(fsx, dir.path().join("fsx")).unwrap();
    // Seeds make each run the same; each has a mix of its own.
    let script = "for seed in 1 2 3 4; do ./fsx -N 1500 -S $seed file-$seed >log-$seed 2>&1 || \
                  { tail -n 40 log-$seed; exit 1; }; done; echo all equal";
    assert_eq!(there(&runner, dir.path(), "", script), "all equal\n");
}
