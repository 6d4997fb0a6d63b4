//! What the consoles of a guest printed before it died: kept beyond the machine's directory, and its end shown.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::registry::Home;
use crate::machine::verdict::Verdict;

/// How much of the console is shown when a kernel has died.
const TAIL: u64 = 4 << 10;

/// The console's log of a guest that died outlives the machine's directory; and its end is for the user's eyes.
pub(super) fn keep_log(verdict: &Verdict, log: &Path, home: &Home, named: bool) -> (Option<PathBuf>, Option<String>) {
    let died = matches!(
        verdict,
        Verdict::Panicked { .. } | Verdict::CpuDied { .. } | Verdict::BootTimedOut { .. } | Verdict::NoVerdict { .. }
    );
    let tail = if died { tail(log) } else { None };
    if named || !died {
        return (named.then(|| log.into()), tail);
    }
    let kept = (0..1000).find_map(|number| {
        let path = std::env::temp_dir().join(format!("belljar-{}-{number}.log", home.name()));
        copy_new(log, &path).then_some(path)
    });
    (kept, tail)
}

/// Copies to a file that did not exist, for the owner only.
fn copy_new(from: &Path, to: &Path) -> bool {
    let Ok(mut source) = File::open(from) else { return false };
    let Ok(mut target) = File::options().write(true).create_new(true).mode(0o600).open(to) else { return false };
    std::io::copy(&mut source, &mut target).is_ok()
}

/// The last lines, with nothing in them that does something to a terminal.
fn tail(log: &Path) -> Option<String> {
    let mut file = File::open(log).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    // The first line is only a part of one.
    let text = if len > TAIL { text.split_once('\n').map_or("", |(_, rest)| rest) } else { &text };
    let keep = |c: &char| !c.is_control() || *c == '\n' || *c == '\t';
    Some(text.chars().filter(keep).collect()).filter(|text: &String| !text.trim().is_empty())
}
