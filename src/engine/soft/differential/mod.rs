//! The differential test: instructions with random operands, on the host CPU and on the software CPU, from the same state.
//!
//! `encoding.rs` finds all instructions, `scope.rs` says which of them are compared, `generate.rs` makes cases of them,
//! `host.rs` and `soft.rs` execute them, `compare.rs` tells what differs. More cases, or others, or those of some
//! instructions only (`blocks.rs` does the same with several in a row):
//!
//! ```text
//! BELLJAR_CASES=10000000 BELLJAR_SEED=7 BELLJAR_ONLY=fsave,vpgather cargo test --lib differential -- --nocapture
//! ```

mod blocks;
mod case;
mod compare;
mod encoding;
mod generate;
mod host;
mod random;
mod scope;
mod soft;
mod tolerance;
mod tolerated;
mod trampoline;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use iced_x86::Code;

use self::case::{Case, End, Outcome};
use self::compare::{describe, differences};
use self::generate::Generator;
use self::host::{BATCH, Host};
use self::scope::Scope;
use self::soft::Soft;

/// Without `BELLJAR_CASES`: at most this many cases, or as many as fit into the time.
const CASES: u64 = 1_000_000;
const TIME: Duration = Duration::from_secs(if cfg!(debug_assertions) { 15 } else { 60 });
/// Examples of one kind of difference that are told.
const EXAMPLES: usize = 3;
/// Instructions in which it occurs that are named.
const NAMES: usize = 24;

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// Differences of one kind.
#[derive(Default)]
struct Finding {
    count: u64,
    codes: BTreeSet<String>,
    examples: Vec<String>,
}

/// Differences, by what differs.
#[derive(Default)]
struct Findings(BTreeMap<String, Finding>);

impl Findings {
    fn add(&mut self, code: Code, case: &Case, lines: &[String]) {
        let finding = self.0.entry(kind(lines)).or_default();
        finding.count += 1;
        finding.codes.insert(format!("{code:?}"));
        if finding.examples.len() < EXAMPLES {
            finding.examples.push(format!("{}\n      {}", describe(case), lines.join("\n      ")));
        }
    }

    fn fail_if_any(&self, seed: u64, cases: u64) {
        for (kind, Finding { count, codes, examples }) in &self.0 {
            let names: Vec<_> = codes.iter().take(NAMES).map(String::as_str).collect();
            let more = if codes.len() > NAMES { ", ..." } else { "" };
            println!("{kind}: {count} cases of {} instructions ({}{more})", codes.len(), names.join(", "));
            examples.iter().for_each(|example| println!("    {example}"));
        }
        let total: u64 = self.0.values().map(|finding| finding.count).sum();
        assert!(total == 0, "seed {seed}: {total} of {cases} cases differ");
    }
}

/// What differs, without the values.
fn kind(lines: &[String]) -> String {
    let of = |line: &String| match line.strip_prefix("ends: ") {
        Some(end) => end.split(' ').filter(|word| !word.contains("0x") && *word != "at").collect::<Vec<_>>().join(" "),
        None => line.split(':').next().unwrap_or_default().trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(),
    };
    let parts: BTreeSet<_> = lines.iter().map(of).collect();
    parts
        .into_iter()
        .map(|part| if part.starts_with("memory") { "memory".to_owned() } else { part })
        .collect::<Vec<_>>()
        .join(", ")
}

/// A generator for what the environment asks for.
fn generator(host: &Host, seed: u64, wanted: Scope) -> Generator {
    let mut generator = Generator::new(seed, wanted, host.abilities.avx, host.abilities.fsgsbase);
    if let Ok(only) = std::env::var("BELLJAR_ONLY") {
        let names: Vec<_> = only.to_lowercase().split(',').map(str::to_owned).collect();
        generator.retain(|template| {
            let name = format!("{:?}", template.code).to_lowercase();
            names.iter().any(|wanted| name.contains(wanted.as_str()))
        });
    }
    generator
}

#[test]
fn host_and_software_cpu_agree() {
    let seed = setting("BELLJAR_SEED").unwrap_or(1);
    let wanted = setting("BELLJAR_CASES");
    let mut host = Host::new().unwrap();
    let mut soft = Soft::new();
    let mut generator = generator(&host, seed, Scope::Compared);
    let (begin, mut count, mut findings) = (Instant::now(), 0, Findings::default());
    while count < wanted.unwrap_or(CASES) && (wanted.is_some() || begin.elapsed() < TIME) {
        let cases: Vec<_> = (0..BATCH).map_while(|_| generator.case()).collect();
        assert!(!cases.is_empty(), "no instruction is called so");
        let expected = host.run(&cases).unwrap();
        for (case, expected) in cases.iter().zip(&expected) {
            compare(&mut findings, case, expected, &soft.run(case));
        }
        count += cases.len() as u64;
    }
    println!("seed {seed}: {count} cases in {:.1} s", begin.elapsed().as_secs_f64());
    findings.fail_if_any(seed, count);
}

fn compare(findings: &mut Findings, case: &Case, expected: &Outcome, got: &Outcome) {
    assert!(!matches!(expected.end, End::Lost(_)), "the host: {:?}: {}", expected.end, describe(case));
    let lines = differences(case, expected, got);
    if !lines.is_empty() {
        let code = encoding::decode(if case.compat { 32 } else { 64 }, &case.bytes, case.start.rip).code();
        findings.add(code, case, &lines);
    }
}

/// Instructions of extensions that CPUID does not show do not exist.
#[test]
fn what_cpuid_hides_is_undefined() {
    let seed = setting("BELLJAR_SEED").unwrap_or(1);
    let host = Host::new().unwrap();
    let mut soft = Soft::new();
    let mut generator = generator(&host, seed, Scope::Hidden);
    let mut findings = Findings::default();
    for template in generator.templates().to_vec() {
        for case in (0..4).filter_map(|_| generator.case_of(&template)) {
            let got = soft.run(&case);
            if got.end != (End::Fault { vector: 6, error: 0, address: 0 }) {
                findings.add(template.code, &case, &[format!("ends: {:?}", got.end)]);
            }
        }
    }
    findings.fail_if_any(seed, 4 * generator.templates().len() as u64);
}
