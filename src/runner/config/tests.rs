//! Whole files.

use std::path::{Path, PathBuf};

use super::*;
use crate::spec::Size;

const FILE: &str = "/work/belljar.toml";

/// The cells of a file on a host with these files; what is wrong if there are none.
fn cells_on(text: &str, files: &[&str]) -> Result<Vec<Cell>, String> {
    let files: Vec<_> = files.iter().map(PathBuf::from).collect();
    let glob = |pattern: &str| {
        let pattern = glob::Pattern::new(pattern).map_err(|e| e.to_string())?;
        Ok(files.iter().filter(|file| pattern.matches_path(file)).cloned().collect())
    };
    let suite = Suite::from_toml(text, Path::new(FILE)).map_err(|e| e.to_string())?;
    suite.cells_with(&glob).map_err(|e| e.to_string())
}

fn cells(text: &str) -> Result<Vec<Cell>, String> {
    cells_on(text, &[])
}

fn ids(text: &str) -> Vec<String> {
    cells(text).unwrap().into_iter().map(|cell| cell.id).collect()
}

fn wrong(text: &str) -> String {
    cells(text).unwrap_err()
}

const TEST: &str = "[[test]]\nname = \"t\"\ncommand = [\"true\"]\n";

#[test]
fn the_page_has_an_example_that_works() {
    let page = include_str!("../../../docs/test-config.md");
    let text = page.split("```toml\n").nth(1).unwrap().split("```").next().unwrap();
    let files = ["/work/out/next/arch/x86/boot/bzImage", "/work/out/kasan/arch/x86/boot/bzImage"];
    let cells = cells_on(text, &files).unwrap();
    let ids: Vec<_> = cells.iter().map(|cell| cell.id.as_str()).collect();
    // Three kernels; five tests and one collection more on the big machine, one less on the small; two excluded on `stable`.
    assert_eq!(ids.len(), 3 * (6 + 5) - 2 * 2);
    let listed = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(id, _)| id);
    let listed: Vec<_> = listed.filter(|id| id.matches('/').count() == 3).collect();
    assert_eq!(listed.len(), 2);
    listed.iter().for_each(|id| assert!(ids.contains(id), "{id}: {ids:?}"));
    let cell = cells.iter().find(|cell| cell.id == "next/big/debian/self.timers").unwrap();
    assert_eq!(cell.run.machine.append.as_deref(), Some("panic_on_warn=0 slub_debug=FZ"));
    assert_eq!(
        (cell.run.machine.cpus, cell.run.machine.memory, cell.run.machine.timeout),
        (4, Size(2 << 30), Some(900))
    );
    assert_eq!(cell.run.machine.kernel, Some(files[0].into()));
    assert_eq!(cell.run.root, Some("/work/rootfs".into()));
    assert_eq!(cell.rules.artifacts, [PathBuf::from("/tmp/out")]);
    assert!(matches!(&cell.what, What::Kselftest { dir, .. } if dir == Path::new("/work/kselftest")));
}

#[test]
fn ids_have_a_part_for_every_kind_of_table() {
    assert_eq!(ids(TEST), ["t"]);
    assert_eq!(ids(&format!("{TEST}[[machine]]\ncpus = 2\n")), ["2cpus/t"]);
    let two = format!("{TEST}[[machine]]\ncpus = 2\n[[machine]]\nmemory = \"1G\"\n[[root]]\nroot = \"/\"\n");
    assert_eq!(ids(&two), ["2cpus/host/t", "1G/host/t"]);
    let cell = cells(TEST).unwrap().remove(0);
    assert_eq!((cell.kernel.as_str(), cell.machine.as_str(), cell.root.as_str()), ("default", "default", "default"));
    assert_eq!(cell.run.machine.memory, crate::run::RunSpec::default().machine.memory);
}

#[test]
fn a_table_may_stand_alone() {
    assert_eq!(ids("[test]\nname = \"a\"\nkunit = true\n[kernel]\nkernel = \"/boot/vmlinuz-6.1\""), ["6.1/a"]);
}

#[test]
fn mistakes_have_their_place() {
    for (text, expected) in [
        ("[[test]]\nname = \"t\"\ncomand = []\n", "3:1: unknown key `comand` in [[test]]; did you mean `command`?"),
        ("[defaults]\n  cpus = \"two\"\n", "2:10: `cpus`: invalid type: string \"two\", expected u32"),
        ("[[machine]]\ncpus = 0\n", "2:8: cpus 0: give a number from 1 to 254"),
        ("[defaults]\ntimeout = 0\n", "2:11: timeout 0: give at least 1 second"),
        ("[defaults]\nidle-timeout = 0\n", "2:16: idle-timeout 0: give at least 1 second"),
        ("[defaults]\nmemory = \"lots\"\n", "2:10: `memory`: `lots` is not a size"),
        ("[defaults]\nmemory = 10x\n", "2:1"),
        ("[tests]\n", "1:2: unknown table `tests`; did you mean `test`?"),
        ("cpus = 2\n", "1:1: `cpus` belongs in a table: put it below [defaults]"),
        (
            "[[machine]]\nname = \"m\"\n[[machine.disk]]\npath = \"x\"\nreadonyl = true\n",
            "5:1: unknown key `readonyl` of `disk`",
        ),
        ("[[machine]]\ncpus = 1\ndisk = [\"x\", \"y,queues=99\"]\n", "3:14: disk: queues=99"),
        (
            "[defaults]\nignore-splats = [\"(\"]\n",
            "2:17: `ignore-splats`: `(` is no regular expression: unclosed group",
        ),
        ("[defaults]\nsplats = { bug = \"maybe\" }\n", "2:10: `splats`: unknown variant `maybe`"),
        ("[defaults]\nvolumes = [\"a\"]\n", "2:11: `volumes`: `a`: no `:`"),
        ("[defaults]\nartifacts = [\"out\"]\n", "2:13: `artifacts`: out: give an absolute path"),
        ("[[test]]\nname = \"t\"\nkunit = true\nexpect = \"good\"\n", "4:10: `expect`: write"),
        ("[[test]]\nname = \"a/b\"\nkunit = true\n", "2:8: `name`: write letters"),
        ("[[test]]\nkunit = true\n", "1:1: [[test]] needs a `name`"),
        ("[[test]]\nname = \"t\"\nkunit = true\nkernels = []\n", "4:11: `kernels`: write a list"),
        ("[matrix]\nexcept = []\n", "2:1: unknown key `except` in [matrix]"),
        ("[matrix]\nexclude = []\n", "2:1: `exclude`: write"),
        ("[matrix]\nexclude = [{ tset = \"a\" }]\n", "2:14: unknown key `tset` in [matrix]; did you mean `test`?"),
    ] {
        // Only where the text has no test itself would that be missed too.
        let whole = if text.contains("[[test]]") { text.to_string() } else { format!("{text}{TEST}") };
        let error = wrong(&whole);
        assert!(error.starts_with(&format!("{FILE}:{expected}")), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn mistakes_between_tables_have_a_place_too() {
    for (text, expected) in [
        ("kunit = true\n[[test]]\nname = \"t\"\nkunit = true\n", "5:8: two tests are called `t`"),
        (
            "kunit = true\nkernels = [\"stabel\"]\n[[kernel]]\nname = \"stable\"\n",
            "4:11: `stabel` is no kernel; did you mean",
        ),
        ("kunit = true\nmachines = [\"x\"]\n", "4:12: `x` is no machine; there are default"),
        ("kunit = true\n[matrix]\ninclude = [{ test = [\"t\", \"u?\"] }]\n", "5:21: `u?` is no test; there are t"),
        ("kunit = true\n[matrix]\nexclude = [{ test = \"t\" }]\n", "4:1: no test is left"),
        ("kunit = true\n[[machine]]\ncpus = 1\n[[machine]]\ncpus = 1\n", "6:1: two machines are called `1cpu`"),
        ("kunit = true\n[[machine]]\nappend = \"x\"\n", "4:1: [[machine]] needs a `name`"),
        ("kunit = true\n[[kernel]]\nappend = \"x\"\n", "4:1: [[kernel]] needs a `kernel`"),
        ("kunit = true\n[[kernel]]\nkernel = \"k-*\"\n", "5:10: `kernel`: `k-*` matches no file or directory in /work"),
        ("kunit = true\n[[kernel]]\nkernel = \"k-[\"\n", "5:10: `kernel`: `k-[` is no pattern"),
        ("kselftest = \"net\"\n", "1:1: kselftest needs `kselftest-dir`"),
        ("kunit = true\ncmdline = \"x\"\n[defaults]\nappend = \"y\"\n", "6:10: append extends the default"),
    ] {
        let error = wrong(&format!("[[test]]\nname = \"t\"\n{text}"));
        assert!(error.starts_with(&format!("{FILE}:{expected}")), "{error}");
    }
}

#[test]
fn all_mistakes_of_a_file_are_shown() {
    let error = wrong("[defaults]\ncpus = 0\nmemroy = \"1G\"\n[[test]]\nname = \"t\"\n");
    let places: Vec<_> = error.lines().filter_map(|line| line.strip_prefix(FILE)?.split_once(": ")).collect();
    let texts = ["cpus 0", "unknown key `memroy`", "[[test]] needs one of"];
    assert_eq!(places.iter().map(|(place, _)| *place).collect::<Vec<_>>(), [":2:8", ":3:1", ":4:1"]);
    places.iter().zip(texts).for_each(|((_, text), start)| assert!(text.starts_with(start), "{text}"));
    assert!(wrong("").contains("no [[test]]"));
}

#[test]
fn the_matrix_says_what_there_is() {
    let base = "[[kernel]]\nname = \"old\"\n[[kernel]]\nname = \"new\"\n[[machine]]\nname = \"one\"\n[[machine]]\nname = \"two\"\n\
                [[test]]\nname = \"a\"\nkunit = true\n[[test]]\nname = \"b\"\nkunit = true\nkernels = [\"n*\"]\n";
    assert_eq!(ids(base), ["old/one/a", "old/two/a", "new/one/a", "new/one/b", "new/two/a", "new/two/b"]);
    let matrix = |rules: &str| ids(&format!("{base}[matrix]\n{rules}\n"));
    assert_eq!(
        matrix("exclude = [{ machine = \"two\", test = \"a\" }]"),
        ["old/one/a", "new/one/a", "new/one/b", "new/two/b"]
    );
    assert_eq!(
        matrix("include = [{ kernel = \"old\" }, { test = [\"b\"] }]\nexclude = [{ machine = \"t?o\" }]"),
        ["old/one/a", "new/one/b"]
    );
}

#[test]
fn globs_are_kernels() {
    let text = format!("{TEST}[[kernel]]\nname = \"k\"\nkernel = \"out-*/bzImage\"\n");
    let ids = |files: &[&str]| cells_on(&text, files).unwrap().into_iter().map(|cell| cell.id).collect::<Vec<_>>();
    assert_eq!(ids(&["/work/out-a/bzImage"]), ["k-out-a/t"]);
    assert_eq!(ids(&["/work/out-a/bzImage", "/work/out-b/bzImage", "/else/out-c/bzImage"]), ["k-out-a/t", "k-out-b/t"]);
    let dir = tempfile::tempdir().unwrap();
    for name in ["vmlinuz-6.1", "vmlinuz-6.2", "config-6.1"] {
        std::fs::write(dir.path().join(name), "").unwrap();
    }
    let text = format!("{TEST}[[kernel]]\nkernel = \"vmlinuz-*\"\n");
    let cells = Suite::from_toml(&text, &dir.path().join("belljar.toml")).unwrap().cells().unwrap();
    assert_eq!(cells.iter().map(|cell| cell.id.as_str()).collect::<Vec<_>>(), ["6.1/t", "6.2/t"]);
    assert_eq!(cells[0].run.machine.kernel, Some(dir.path().join("vmlinuz-6.1")));
}

#[test]
fn a_suite_has_a_limit() {
    let many = |kind: &str| (0..400).map(|n| format!("[[{kind}]]\nname = \"n{n}\"\n")).collect::<String>();
    let error = wrong(&format!("{TEST}{}{}", many("kernel"), many("machine")));
    assert!(error.ends_with("160000 combinations: a suite has at most 100000"), "{error}");
}

#[test]
fn a_command_line_is_a_suite_of_one() {
    let mut run = RunSpec { command: vec!["./repro.sh".into()], ..RunSpec::default() };
    run.machine.kernel = Some("arch/x86/boot/bzImage".into());
    let cells = Suite::one_liner(run.clone(), What::Command).cells().unwrap();
    assert_eq!(cells.len(), 1);
    assert_eq!((cells[0].id.as_str(), cells[0].kernel.as_str()), ("repro.sh", "bzImage"));
    assert_eq!(cells[0].run, run);
}

/// What `reproduce` says of a cell selects exactly that cell.
#[test]
fn a_cell_is_found_by_what_reproduces_it() {
    let all = cells(&format!("{TEST}[[test]]\nname = \"t.x\"\nkunit = true\n[[machine]]\ncpus = 1\n")).unwrap();
    let line = all[0].reproduce(Some(&InFile { file: FILE.into(), flags: Vec::new() }));
    let filter = line.split("--filter ").nth(1).unwrap().trim_matches('\'').to_string();
    let selected = select(all.clone(), &Selection { filters: vec![filter], ..Selection::default() }).unwrap();
    assert_eq!(selected.iter().map(|cell| &cell.id).collect::<Vec<_>>(), [&all[0].id]);
}
