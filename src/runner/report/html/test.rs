//! One test in the page: what came of it, where its time went, its cases, complaints of the kernel, its last output.

use std::fmt::{self, Write};

use super::{Lines, Text, stages};
use crate::runner::outcome::{Action, Case, Counts, Splat, TestResult};
use crate::runner::report::text;

/// Writes it, folded if all is well.
pub(super) fn write(page: &mut String, number: usize, test: &TestResult) -> fmt::Result {
    let status = test.status.name();
    let open = if test.status.is_good() { "" } else { " open" };
    write!(
        page,
        "<details class=\"test {status}\"{open}>\n<summary><b class=\"{status}\">{status}</b> <span>{}</span> ",
        Text(&test.id)
    )?;
    let cases: Counts = test.cases.iter().map(|case| case.status).collect();
    if cases.total() > 0 {
        write!(page, "<small>{}: {}</small> ", text::number(cases.total(), "case"), text::counts(&cases))?;
    }
    writeln!(page, "<small>{}</small></summary>", text::duration(test.seconds))?;
    // The target is inside: browsers unfold what a link leads into.
    writeln!(page, "<div class=\"body\" id=\"t{number}\">")?;
    if let Some(reason) = &test.reason {
        writeln!(page, "<p class=\"reason\">{}</p>", Text(reason))?;
    }
    if let Some(stages) = &test.stages {
        stages::write(page, stages)?;
    }
    write_facts(page, test)?;
    for splat in &test.splats {
        write_splat(page, splat)?;
    }
    write_cases(page, &test.cases)?;
    if !test.tail.trim().is_empty() {
        let open = if test.status.is_good() { "" } else { " open" };
        writeln!(page, "<details{open}><summary>last output</summary>\n<pre>{}</pre></details>", Lines(&test.tail))?;
    }
    page.write_str("</div>\n</details>\n")
}

fn write_facts(page: &mut String, test: &TestResult) -> fmt::Result {
    let ended = test.verdict.as_ref().map_or_else(|| "never started".to_string(), ToString::to_string);
    let again = |attempt| format!("{attempt}, as earlier ones failed for reasons that are not the test's");
    let attempt = (test.attempt > 1).then(|| again(test.attempt));
    let artifacts = test.artifacts.as_ref().map(|path| path.display().to_string());
    let facts = [
        ("ended", Some(ended.as_str()), false),
        ("engine", test.engine.as_deref(), false),
        ("kernel", test.release.as_deref(), false),
        ("attempt", attempt.as_deref(), false),
        ("kept in", artifacts.as_deref(), true),
        ("repeat", Some(test.reproduce.as_str()), true),
    ];
    page.push_str("<dl>\n");
    for (name, value, code) in facts {
        match value {
            Some(value) if code => writeln!(page, "<dt>{name}</dt><dd><code>{}</code></dd>", Text(value))?,
            Some(value) => writeln!(page, "<dt>{name}</dt><dd>{}</dd>", Text(value))?,
            None => {}
        }
    }
    page.write_str("</dl>\n")
}

fn write_splat(page: &mut String, splat: &Splat) -> fmt::Result {
    let (class, word) = match splat.action {
        Action::Fail => ("fail", "fails the test"),
        Action::Warn => ("timeout", "warning"),
        Action::Ignore => ("skip", "ignored"),
    };
    let open = if splat.action == Action::Fail { " open" } else { "" };
    write!(
        page,
        "<details class=\"splat\"{open}><summary><b class=\"{class}\">{}</b> <span>{}</span> <small>{word}; console, \
         lines {} to {}",
        splat.kind.name(),
        Text(&splat.title),
        splat.lines.0,
        splat.lines.1
    )?;
    if let Some(case) = &splat.case {
        write!(page, "; in case {}", Text(case))?;
    }
    writeln!(page, "</small></summary>\n<pre>{}</pre></details>", Lines(&splat.text))
}

/// Cases that somebody needs to look at first; the others folded.
fn write_cases(page: &mut String, cases: &[Case]) -> fmt::Result {
    let (good, bad): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.status.is_good());
    if !bad.is_empty() {
        write_table(page, &bad)?;
    }
    if good.is_empty() {
        return Ok(());
    }
    let counts: Counts = good.iter().map(|case| case.status).collect();
    let number = text::number(counts.total(), "case");
    writeln!(page, "<details><summary>{number}: {}</summary>", text::counts(&counts))?;
    write_table(page, &good)?;
    page.write_str("</details>\n")
}

fn write_table(page: &mut String, cases: &[&Case]) -> fmt::Result {
    page.push_str("<div class=\"scroll\"><table class=\"cases\">\n<tbody>\n");
    for case in cases {
        let status = case.status.name();
        let took = case.seconds.map(text::duration).unwrap_or_default();
        write!(page, "<tr><td><b class=\"{status}\">{status}</b></td><td>{}", Text(text::or(&case.name(), "unnamed")))?;
        if let Some(message) = &case.message {
            write!(page, "<p>{}</p>", Text(message))?;
        }
        if !case.log.trim().is_empty() {
            let open = if case.status.is_good() { "" } else { " open" };
            write!(page, "<details{open}><summary>log</summary>\n<pre>{}</pre></details>", Lines(&case.log))?;
        }
        writeln!(page, "</td><td>{took}</td></tr>")?;
    }
    page.write_str("</tbody>\n</table></div>\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::outcome::Status;
    use crate::runner::report::sample;

    #[test]
    fn failures_are_unfolded_and_complete() {
        let outcome = sample::outcome();
        let mut page = String::new();
        write(&mut page, 7, outcome.tests.iter().find(|test| test.test == "planted").unwrap()).unwrap();
        assert!(
            page.starts_with("<details class=\"test crash\" open>\n<summary><b class=\"crash\">crash</b>"),
            "{page}"
        );
        assert!(page.contains("<b class=\"fail\">KASAN</b> <span>KASAN: slab-use-after-free in uaf_write</span>"));
        assert!(page.contains("fails the test; console, lines 812 to 861; in case planted/uaf</small>"));
        assert!(page.contains("(drivers/misc/planted.c:41)"));
        assert!(page.contains("<dt>ended</dt><dd>the guest kernel panicked: Fatal exception</dd>"));
        let (bad, good) = (page.find("planted/uaf<p>the kernel died").unwrap(), page.find("planted/first").unwrap());
        assert!(bad < good, "failed cases come first");
    }

    #[test]
    fn what_is_well_is_folded() {
        let mut page = String::new();
        write(&mut page, 0, &sample::test("k", "m", "t", Status::Pass)).unwrap();
        assert!(!page.contains(" open"), "{page}");
        assert!(page.contains("<summary>last output</summary>") && page.contains("ok 1 all is well"), "{page}");
    }
}
