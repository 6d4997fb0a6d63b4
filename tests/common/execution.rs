//! Where two runs that can be repeated part: what `execution_diff.rs` is made of.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Blocks shown before the difference.
const CONTEXT: usize = 4;

/// The first moment in which two runs are not the same.
#[derive(Debug, PartialEq, Eq)]
pub struct Difference {
    /// Instructions executed by the first run, and by the second; none for one that has ended.
    pub at: [Option<u64>; 2],
    /// What both did just before.
    pub before: String,
    /// What they did then.
    pub then: [String; 2],
}

/// Runs two `belljar boot` commands, given as text for a shell, and finds where they part; none if they do not. First by
/// sums over all registers, each `step` instructions, then block by block between two of them. `dir` holds the traces.
pub fn first_difference(commands: [&str; 2], step: u64, dir: &Path) -> Option<Difference> {
    let sums = [0, 1].map(|run| traced(commands[run], &dir.join(format!("sums-{run}")), &format!("sums={step}")));
    let sums = sums.each_ref().map(|text| text.lines().collect::<Vec<_>>());
    let same = sums[0].iter().zip(&sums[1]).take_while(|(a, b)| a == b).count();
    if same == sums[0].len() && same == sums[1].len() {
        return None;
    }
    let from = same.checked_sub(1).map_or(0, |last| count(sums[0][last]));
    let to = sums.iter().filter_map(|lines| lines.get(same)).map(|line| count(line)).max().unwrap_or(from);
    let window = format!("all,from={from},to={}", to + step);
    let traces = [0, 1].map(|run| traced(commands[run], &dir.join(format!("blocks-{run}")), &window));
    let blocks = traces.each_ref().map(|text| blocks(text));
    let same = blocks[0].iter().zip(&blocks[1]).take_while(|(a, b)| a == b).count();
    let then = [0, 1].map(|run| blocks[run].get(same).copied());
    Some(Difference {
        at: then.map(|block| block.map(count)),
        before: blocks[0][same.saturating_sub(CONTEXT)..same].concat(),
        then: then.map(|block| block.unwrap_or("the run has ended\n").to_string()),
    })
}

/// The trace that `command` writes with these options.
fn traced(command: &str, path: &Path, options: &str) -> String {
    let shell = format!("{command} --deterministic --trace {},{options}", path.display());
    let output = Command::new("sh").args(["-c", &shell]).stdin(Stdio::null()).output().unwrap();
    let trace = fs::read_to_string(path).unwrap_or_default();
    assert!(!trace.is_empty(), "{shell}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    trace
}

/// A text in pieces that begin with `@`.
fn blocks(text: &str) -> Vec<&str> {
    let starts: Vec<_> = text.match_indices('@').filter(|(at, _)| *at == 0 || text[..*at].ends_with('\n')).collect();
    let ends = starts.iter().skip(1).map(|(at, _)| *at).chain([text.len()]);
    starts.iter().zip(ends).map(|((at, _), end)| &text[*at..end]).collect()
}

/// The number after the `@`.
fn count(block: &str) -> u64 {
    block[1..].split(' ').next().unwrap().parse().unwrap_or_else(|e| panic!("{block}: {e}"))
}

impl std::fmt::Display for Difference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "both:\n{}first:\n{}second:\n{}", self.before, self.then[0], self.then[1])
    }
}
