//! Where a test's time went, as a bar.

use std::fmt::{self, Write};

use crate::run::Stages;
use crate::runner::report::text;

/// A part of the time: its name and its seconds.
type Part = (&'static str, f64);

/// Writes the bar and what its colours mean.
pub(super) fn write(page: &mut String, stages: &Stages) -> fmt::Result {
    let parts = parts(stages);
    let total: f64 = parts.iter().map(|(_, seconds)| seconds).sum();
    if total <= 0.0 {
        return Ok(());
    }
    page.push_str("<div class=\"stages\"><div class=\"bar\">");
    for (name, seconds) in &parts {
        write!(page, "<i class=\"{name}\" style=\"flex-grow:{:.4}\"></i>", seconds / total)?;
    }
    page.push_str("</div><ul>");
    for (name, seconds) in &parts {
        write!(page, "<li><i class=\"{name}\"></i>{name} {}</li>", text::duration(*seconds))?;
    }
    page.write_str("</ul></div>\n")
}

/// From one moment to the next that was reached.
fn parts(stages: &Stages) -> Vec<Part> {
    let moments = [
        ("prepare", stages.first_instruction),
        ("kernel", stages.init),
        ("setup", stages.command),
        ("command", stages.command_end),
    ];
    let mut parts = Vec::new();
    let mut reached = 0.0;
    // What was under way when it ended: the stage after the last that was reached.
    let mut last = "prepare";
    for (number, (name, at)) in moments.iter().enumerate() {
        if let Some(at) = at.filter(|at| *at >= reached) {
            parts.push((*name, at - reached));
            reached = at;
            last = moments.get(number + 1).map_or("end", |(name, _)| name);
        }
    }
    parts.push((last, (stages.end - reached).max(0.0)));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rounded(stages: &Stages) -> Vec<(&'static str, u64)> {
        parts(stages).into_iter().map(|(name, seconds)| (name, (seconds * 1e3).round() as u64)).collect()
    }

    #[test]
    fn time_goes_to_what_was_under_way() {
        let mut stages = Stages {
            first_instruction: Some(0.1),
            init: Some(1.1),
            command: Some(1.2),
            command_end: Some(3.2),
            end: 3.5,
            ..Stages::default()
        };
        let all = [("prepare", 100), ("kernel", 1_000), ("setup", 100), ("command", 2_000), ("end", 300)];
        assert_eq!(rounded(&stages), all);
        stages.command_end = None;
        assert_eq!(rounded(&stages), [("prepare", 100), ("kernel", 1_000), ("setup", 100), ("command", 2_300)]);
        (stages.init, stages.command) = (None, None);
        assert_eq!(rounded(&stages), [("prepare", 100), ("kernel", 3_400)]);
        let mut page = String::new();
        write(&mut page, &stages).unwrap();
        assert!(page.contains("kernel 3.4 s") && page.contains("flex-grow:0.97"), "{page}");
        assert_eq!(rounded(&Stages::default()), [("prepare", 0)]);
    }
}
