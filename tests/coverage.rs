//! docs/coverage.md: lines of the kernel that ran in a guest, as the host's gcov tells them, and one program's coverage.

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::run::{Runner, runs};
use common::{asset, belljar, engine, host, scratch};

/// Where the kernel has been built is no more: the notes come from where its tree is now.
#[test]
fn gcov_tells_which_lines_ran_in_a_guest() {
    let (Some(engine), Some(tree)) = (engine(), asset("tree-test")) else { return };
    let dir = scratch();
    let mut command = Command::new(belljar());
    command.args(["test", "--engine", engine, "--timeout", "110", "-k", path(&tree), "--gcov", path(dir.path())]);
    command.args(["--append", "kunit.enable=1 kunit.filter_glob=list-kunit-test", "--", "true"]);
    runs(command).code(0);

    let found = host("find", &[path(dir.path()), "-name", "list-test.gcda"]);
    let told = Command::new("gcov").args(["--stdout", found.trim()]).current_dir(&tree).output().unwrap();
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    // COUNT:LINE:TEXT; the test of this name has run once.
    let line = |text: &str| told.lines().find(|line| line.ends_with(text)).unwrap_or_else(|| panic!("{text}\n{told}"));
    assert!(line("static void list_test_list_init(struct kunit *test)").trim_start().starts_with("1:"), "{told}");
    // What expectations print when they fail has not.
    assert!(told.lines().any(|line| line.trim_start().starts_with("#####:")), "{told}");
}

/// The program of the page, compiled here and run there.
#[test]
fn kcov_tells_what_a_system_call_did() {
    let (Some(runner), Some(tree)) = (Runner::with_kernel("tree-test"), asset("tree-test")) else { return };
    let dir = scratch();
    let page = include_str!("../docs/coverage.md");
    let program = page.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    fs::write(dir.path().join("cover.c"), program).unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    host("gcc", &["-static", "-Wall", "-Werror", "-o", &at("cover"), &at("cover.c")]);
    let shown = runner.run(&[&at("cover")]);
    let addresses: Vec<_> = shown.code(0).console.lines().collect();
    let lines = host("addr2line", &[&["-f", "-e", path(&tree.join("vmlinux"))], addresses.as_slice()].concat());
    assert!(lines.contains("do_pipe") && lines.contains("fs/pipe.c:"), "{lines}");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
