//! The documents: every `belljar` command in them is one that this binary understands, every option is in the README's
//! table, and links lead somewhere.

use std::path::{Path, PathBuf};
use std::process::Command;

fn documents() -> Vec<(PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = vec![root.join("README.md")];
    let docs = std::fs::read_dir(root.join("docs")).unwrap();
    paths.extend(docs.map(|entry| entry.unwrap().path()).filter(|path| path.extension().is_some_and(|e| e == "md")));
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).unwrap())).collect()
}

/// The `belljar boot` part of a line of a code block, without comment, pipe and background sign.
fn boot_command(line: &str) -> Option<String> {
    let code = line.strip_prefix("    ").unwrap_or(line);
    let at = code.find("belljar boot ")?;
    let before = &code[..at];
    let is_code = line.starts_with("    ") || before.is_empty() || before.ends_with("| ");
    let is_prose = before.contains('`') || code.starts_with("belljar boot --help");
    let command = code[at..].split(" #").next()?.trim().trim_end_matches('&').trim();
    let command = command.split(" <").next()?.split(" 2>").next()?.split(" | ").next()?;
    (is_code && !is_prose).then(|| command.trim().to_string())
}

/// Any other `belljar` command that a line of a code block is, without what the shell does with it.
fn other_command(line: &str) -> Option<&str> {
    let command = line.split(" #").next()?.split(" >").next()?.split(" | ").next()?.trim();
    (command.starts_with("belljar ") && boot_command(line).is_none()).then_some(command)
}

#[test]
fn every_command_is_understood() {
    let mut seen = 0;
    let dir = tempfile::TempDir::new().unwrap();
    std::fs::write(dir.path().join("machine.toml"), "kernel = \"k\"\n").unwrap();
    for (path, text) in documents() {
        for command in text.lines().filter_map(boot_command) {
            let program = env!("CARGO_BIN_EXE_belljar");
            let script = format!("{} --dry-run", command.replacen("belljar", program, 1).replace(" --dry-run", ""));
            // Kernel and initrd are only names here; what a command substitution would build is one too.
            let script =
                script.replace("$(scripts/assets rootfs-systemd)", "disk.img").replace(" ... ", " --kernel k ");
            let output = Command::new("sh")
                .args(["-c", &script])
                .env("K", "k")
                .env("I", "i")
                .current_dir(&dir)
                .output()
                .unwrap();
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{}: {command}\n{errors}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} commands found");
}

/// What else there is has no dry run: its flags and `--help` must go together.
#[test]
fn every_other_command_is_understood() {
    let mut seen = 0;
    for (path, text) in documents() {
        let code = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
        for command in code.flat_map(str::lines).filter_map(other_command) {
            let words = command.split(' ').skip(1).filter(|word| !word.is_empty());
            let matches = belljar::cli::command().try_get_matches_from(["belljar"].into_iter().chain(words));
            assert!(matches.is_ok(), "{}: {command}: {}", path.display(), matches.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen >= 3, "only {seen} commands found");
}

/// `tour.rs` runs what is in `sh` blocks, and only that.
#[test]
fn every_command_is_run_by_the_tour() {
    let tour = include_str!("tour.rs");
    let mut all = String::new();
    for (path, text) in documents() {
        let mut kind = None;
        for line in text.lines() {
            kind = match (line.strip_prefix("```"), kind) {
                (Some(opened), None) => Some(opened),
                (Some(_), Some(_)) => None,
                (None, kind) => kind,
            };
            let command = boot_command(line).is_some() || (kind.is_some() && other_command(line).is_some());
            let hidden = kind != Some("sh") && command;
            assert!(!hidden, "{}: put this into a block that begins with ```sh: {line}", path.display());
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(!text.contains("```sh\n") || tour.contains(&format!("{name}\"));")), "tests/tour.rs leaves {name} out");
        all.push_str(&text);
    }
    let not_run = tour.split("const NOT_RUN").nth(1).unwrap().split("];").next().unwrap();
    for words in not_run.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next()) {
        assert!(all.contains(words), "no document has `{words}` any more: remove it from NOT_RUN in tests/tour.rs");
    }
}

#[test]
fn the_readme_has_every_option() {
    let (_, readme) = documents().remove(0);
    let boot = belljar::cli::command().find_subcommand("boot").unwrap().clone();
    for long in boot.get_arguments().filter_map(|arg| arg.get_long()).filter(|long| *long != "help") {
        assert!(readme.contains(&format!("--{long}")), "README.md does not mention --{long}");
    }
}

/// The options of a verb that `other` does not have are all on its page.
fn has_options_of_its_own(verb: &str, other: &str, page: &str) {
    let all = belljar::cli::command();
    let longs = |verb: &str| {
        let arguments = all.find_subcommand(verb).unwrap().get_arguments();
        arguments.filter_map(|arg| arg.get_long().map(str::to_string)).collect::<Vec<_>>()
    };
    let known = longs(other);
    for long in longs(verb).iter().filter(|long| !known.contains(long)) {
        assert!(page.contains(&format!("--{long}")), "the page of {verb} does not mention --{long}");
    }
}

#[test]
fn the_page_of_run_has_every_option_of_its_own() {
    has_options_of_its_own("run", "boot", include_str!("../docs/run.md"));
}

#[test]
fn the_page_of_test_has_every_option_of_its_own() {
    has_options_of_its_own("test", "run", include_str!("../docs/test.md"));
}

/// The page's promises name tests that there are: in `tests/FILE.rs`, or in a module.
#[test]
fn every_promise_has_its_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/run.md")).unwrap();
    let table = page.split("## Promises").nth(1).unwrap();
    let mut seen = 0;
    for name in table.split('`').filter(|word| word.contains("::") && !word.contains(' ')) {
        let (file, test) = name.split_once("::").unwrap();
        let (here, module) = (root.join(format!("tests/{file}.rs")), root.join(format!("src/{file}/{test}.rs")));
        let text = std::fs::read_to_string(here).unwrap_or_default();
        let is_there = text.contains(&format!("#[test]\nfn {test}() {{"));
        let has_tests = || std::fs::read_to_string(module).is_ok_and(|text| text.contains("#[test]"));
        assert!(is_there || has_tests(), "docs/run.md: no test {name}");
        seen += 1;
    }
    assert!(seen > 20, "only {seen} promises");
}

#[test]
fn links_lead_somewhere() {
    for (path, text) in documents() {
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = path.parent().unwrap().join(target.split('#').next().unwrap());
            assert!(target.starts_with("http") || file.exists(), "{}: {target}", path.display());
        }
    }
}
