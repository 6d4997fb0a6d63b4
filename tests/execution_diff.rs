//! Runs that can be repeated, their traces, and the tool that finds where two runs part, with guests of some twenty
//! instructions. The tool itself, for real guests:
//!
//! `scripts/execution-diff 'belljar boot ..' 'other/belljar boot ..'`

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use common::belljar;
use common::execution::first_difference;

/// Iterations of [`COUNTING`] and in which of them, counted from the end, it asks for a random number.
const ITERATIONS: u64 = 20_000;
const RANDOM_AT: u64 = 5_000;
/// Instructions of an iteration, with the jump over RDRAND.
const EACH: u64 = 6;

/// 32-bit code:
/// `mov ecx, 20000; l: imul eax, eax, 31; add eax, ecx; cmp ecx, 5000; jne s; rdrand ebx; s: dec ecx; jnz l;`
/// `mov [0x200000], ebx; mov al, 7; out 0xf4, al; h: hlt; jmp h`
const COUNTING: &[u8] = &[
    0xb9, 0x20, 0x4e, 0, 0, 0x6b, 0xc0, 31, 0x01, 0xc8, 0x81, 0xf9, 0x88, 0x13, 0, 0, 0x75, 3, 0x0f, 0xc7, 0xf3, 0x49,
    0x75, 0xed, 0x89, 0x1d, 0, 0, 0x20, 0, 0xb0, 7, 0xe6, 0xf4, 0xf4, 0xeb, 0xfd,
];

/// `mov eax, 0x12345678; ud2`: and there is no handler for that.
const LOST: &[u8] = &[0xb8, 0x78, 0x56, 0x34, 0x12, 0x0f, 0x0b];

/// A kernel of this code.
fn kernel(dir: &Path, code: &[u8]) -> PathBuf {
    let path = dir.join("kernel");
    fs::write(&path, common::tiny::kernel(code)).unwrap();
    path
}

/// Exit code, report and what belljar said.
fn run(dir: &Path, code: &[u8], flags: &[&str]) -> (i32, serde_json::Value, String) {
    let report = dir.join("report");
    let output = Command::new(belljar())
        .args(["boot", "--engine", "soft", "--serial", "off", "--memory", "32M", "--timeout", "20", "--kernel"])
        .arg(kernel(dir, code))
        .arg("--report")
        .arg(&report)
        .args(flags)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let report = serde_json::from_slice(&fs::read(report).unwrap_or_default()).unwrap_or_default();
    (output.status.code().unwrap_or(-1), report, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_run_repeats_and_another_seed_is_another_run() {
    let dir = common::scratch();
    let run = |flags: &[&str]| {
        let (code, report, errors) = run(dir.path(), COUNTING, flags);
        assert_eq!(code, 7, "{errors}");
        let text = |key: &str| report[key].to_string();
        (text("instructions"), text("ram_sha256"), errors)
    };
    let (count, hash, errors) = run(&["--deterministic", "--stats"]);
    // One before the loop, the one that asked, three after the loop; the rest of the last block is not executed.
    let expected = 1 + EACH * ITERATIONS + 1 + 3;
    assert!((expected..=expected + 1).contains(&count.parse().unwrap()), "{count}, not {expected}");
    assert!(errors.contains(&format!("belljar: instructions: {count} in ")), "{errors}");
    assert!(hash.len() == 66 && errors.contains(hash.trim_matches('"')), "{hash}: {errors}");
    let (again, same, _) = run(&["--deterministic"]);
    assert_eq!((&again, &same), (&count, &hash));
    let (third, other, _) = run(&["--deterministic", "--seed", "1"]);
    assert_eq!(third, count);
    assert_ne!(other, hash, "the random number is in memory");
    let (_, none, errors) = run(&["--stats"]);
    assert_eq!(none, "null");
    assert!(errors.contains("MIPS"), "{errors}");
}

#[test]
fn the_place_where_two_runs_part_is_found() {
    let dir = common::scratch();
    let command = |seed: u64| {
        let (belljar, kernel) = (belljar(), kernel(dir.path(), COUNTING));
        let flags = "--serial off --memory 32M --timeout 20";
        format!("{} boot {flags} --kernel {} --seed {seed}", belljar.display(), kernel.display())
    };
    let find = |seeds: [u64; 2]| {
        let commands = seeds.map(command);
        first_difference(commands.each_ref().map(String::as_str), 1000, dir.path())
    };
    assert_eq!(find([5, 5]), None);
    let found = find([5, 6]).unwrap();
    // The block with RDRAND is the last that is the same: all that it saw was.
    let executed = 1 + EACH * (ITERATIONS - RANDOM_AT) + 4;
    let [first, second] = found.at.map(Option::unwrap);
    assert_eq!(first, second);
    assert!((executed..executed + 6).contains(&first), "{first}, not {executed}: {found}");
    assert!(found.before.ends_with(" jne short 00100005h\n"), "{found}");
    assert!(found.before.contains("rdrand ebx"), "{found}");
    assert!(found.then.iter().all(|block| block.contains(" rbx ")), "{found}");
    assert_ne!(found.then[0], found.then[1]);
}

#[test]
fn a_trace_ends_with_the_last_block() {
    let dir = common::scratch();
    let trace = dir.path().join("trace");
    let (code, ..) = run(dir.path(), COUNTING, &["--trace", &format!("{},last=3", trace.display())]);
    assert_eq!(code, 7);
    let text = fs::read_to_string(&trace).unwrap();
    let heads: Vec<_> = text.lines().filter(|line| line.starts_with('@')).collect();
    assert_eq!(heads.len(), 3, "{text}");
    assert!(heads.iter().all(|head| head.ends_with(" 32-bit ring 0")), "{text}");
    assert!(text.lines().any(|line| line.ends_with("out 0F4h,al")), "{text}");
    let (code, ..) = run(dir.path(), COUNTING, &["--trace", "/no/such/place"]);
    assert_eq!(code, 125);
}

#[test]
fn a_crash_report_has_the_last_blocks() {
    let dir = common::scratch();
    let trace = dir.path().join("trace");
    let (code, _, errors) = run(dir.path(), LOST, &["--trace", trace.to_str().unwrap()]);
    assert_eq!(code, 121, "{errors}");
    let words = errors.split("the last blocks:\n").nth(1).unwrap_or_else(|| panic!("{errors}"));
    assert!(words.contains("mov eax,12345678h") && words.contains("exception 6"), "{errors}");
    let (_, _, errors) = run(dir.path(), LOST, &[]);
    assert!(errors.contains("triple fault") && !errors.contains("last blocks"), "{errors}");
}

/// The tool: the commands come from the environment, see `scripts/execution-diff`.
#[test]
#[ignore = "a tool, for two runs of the user's"]
fn compare() {
    let command = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("run scripts/execution-diff"));
    let commands = ["BELLJAR_DIFF_FIRST", "BELLJAR_DIFF_SECOND"].map(command);
    let step = std::env::var("BELLJAR_DIFF_STEP").map_or(1_000_000, |step| step.parse().unwrap());
    let dir = common::scratch();
    match first_difference(commands.each_ref().map(String::as_str), step, dir.path()) {
        None => println!("\nno difference"),
        Some(found) => println!("\n{found}"),
    }
}
