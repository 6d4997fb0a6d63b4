//! A page for people: one file without anything from elsewhere, that works without scripts.

mod stages;
mod test;

use std::fmt::{self, Write};

use super::matrix::Matrix;
use super::text;
use crate::runner::outcome::{Counts, Outcome, Status};

const STYLE: &str = include_str!("style.css");
const SCRIPT: &str = include_str!("script.js");

/// Nothing is fetched, whatever guests smuggle in.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// Shown by the script alone.
const FILTER: &str = "<form id=\"filter\" hidden><input type=\"search\" placeholder=\"filter by name\" \
    aria-label=\"filter by name\"><label><input type=\"checkbox\"> failures only</label></form>\n";

/// The outcome as a page.
pub fn html(outcome: &Outcome) -> String {
    let mut page = String::new();
    // Writing to a string does not fail.
    let _ = write_page(&mut page, outcome);
    page
}

fn write_page(page: &mut String, outcome: &Outcome) -> fmt::Result {
    let counts = outcome.counts();
    write!(
        page,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"{POLICY}\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>belljar: {}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n",
        Text(&text::counts(&counts))
    )?;
    write_head(page, outcome, &counts)?;
    write_matrix(page, outcome)?;
    page.push_str("<section>\n<h2>Tests</h2>\n");
    page.push_str(FILTER);
    // What somebody needs to look at comes first.
    let (good, bad): (Vec<_>, Vec<_>) = outcome.tests.iter().enumerate().partition(|(_, test)| test.status.is_good());
    for (number, test) in bad.into_iter().chain(good) {
        test::write(page, number, test)?;
    }
    write_not_run(page, &outcome.not_run)?;
    write!(page, "</section>\n</main>\n<script>\n{SCRIPT}</script>\n</body>\n</html>\n")
}

fn write_head(page: &mut String, outcome: &Outcome, counts: &Counts) -> fmt::Result {
    let (verdict, class) = verdict(outcome, counts);
    writeln!(page, "<header class=\"{}\">\n<h1>belljar <span>{verdict}</span></h1>", class.name())?;
    page.push_str("<ul class=\"counts\">\n");
    for (status, count) in [
        (Status::Pass, counts.pass),
        (Status::Fail, counts.fail),
        (Status::Crash, counts.crash),
        (Status::Timeout, counts.timeout),
        (Status::Error, counts.error),
        (Status::Xfail, counts.xfail),
        (Status::Skip, counts.skip),
    ] {
        if count > 0 {
            writeln!(page, "<li class=\"{0}\"><b>{count}</b> {0}</li>", status.name())?;
        }
    }
    let cases = outcome.case_counts();
    writeln!(
        page,
        "</ul>\n<p>{}; {}: {}. Begun {}, took {}. belljar {}.</p>\n</header>",
        text::number(counts.total(), "test"),
        text::number(cases.total(), "case"),
        text::counts(&cases),
        text::moment(outcome.began, 0.0).format("%Y-%m-%d %H:%M:%S UTC"),
        text::duration(outcome.seconds),
        Text(outcome.version),
    )
}

/// The whole in a few words, and the status that it amounts to.
fn verdict(outcome: &Outcome, counts: &Counts) -> (String, Status) {
    let failed = counts.fail + counts.timeout + counts.crash;
    match outcome.exit_code() {
        0 => ("all is well".to_string(), Status::Pass),
        3 => (format!("{failed} of {} failed", text::number(counts.total(), "test")), Status::Crash),
        _ if failed > 0 => (format!("{failed} of {} failed", text::number(counts.total(), "test")), Status::Fail),
        _ if counts.error > 0 => ("not all tests could be judged".to_string(), Status::Error),
        _ => ("not all tests were run".to_string(), Status::Error),
    }
}

fn write_matrix(page: &mut String, outcome: &Outcome) -> fmt::Result {
    let matrix = Matrix::of(outcome);
    page.push_str(
        "<section>\n<h2>Matrix</h2>\n<div class=\"scroll\">\n<table class=\"matrix\">\n<thead><tr><th>test</th>",
    );
    for place in &matrix.places {
        write!(page, "<th>{}</th>", Text(place))?;
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for (name, cells) in &matrix.rows {
        write!(page, "<tr><th>{}</th>", Text(name))?;
        for cell in cells {
            page.push_str("<td>");
            for (number, test) in cell {
                let status = test.status.name();
                write!(page, "<a class=\"{status}\" href=\"#t{number}\">{status}</a>")?;
            }
            page.push_str("</td>");
        }
        page.push_str("</tr>\n");
    }
    page.write_str("</tbody>\n</table>\n</div>\n</section>\n")
}

fn write_not_run(page: &mut String, ids: &[String]) -> fmt::Result {
    if ids.is_empty() {
        return Ok(());
    }
    page.push_str("<h2>Not run</h2>\n<ul>\n");
    for id in ids {
        writeln!(page, "<li>{}</li>", Text(id))?;
    }
    page.write_str("</ul>\n")
}

/// One line of text or the value of an attribute, whoever wrote it.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, &text::line(self.0))
    }
}

/// Several lines, as they are.
struct Lines<'a>(&'a str);

impl fmt::Display for Lines<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        escape(f, &text::lines(self.0))
    }
}

fn escape(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for character in text.chars() {
        match character {
            '&' => f.write_str("&amp;")?,
            '<' => f.write_str("&lt;")?,
            '>' => f.write_str("&gt;")?,
            '"' => f.write_str("&quot;")?,
            '\'' => f.write_str("&#39;")?,
            other => f.write_char(other)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runner::report::sample;

    /// What is between `<` and `>` of each tag that is opened; panics if they do not nest.
    fn tags(page: &str) -> Vec<String> {
        let (mut open, mut all) = (Vec::new(), Vec::new());
        let body = page.split_once("<body>").unwrap().1.split_once("<script>").unwrap().0;
        for tag in body.split('<').skip(1).filter_map(|part| part.split_once('>')) {
            let name = tag.0.split([' ', '\n']).next().unwrap();
            if let Some(closed) = name.strip_prefix('/') {
                assert_eq!(open.pop().as_deref(), Some(closed));
            } else {
                all.push(tag.0.to_string());
                if name != "input" {
                    open.push(name.to_string());
                }
            }
        }
        assert_eq!(open, Vec::<String>::new());
        all
    }

    #[test]
    fn every_test_has_a_cell_and_a_chapter() {
        let outcome = sample::outcome();
        let page = html(&outcome);
        for (number, test) in outcome.tests.iter().enumerate() {
            let status = test.status.name();
            assert!(page.contains(&format!("<a class=\"{status}\" href=\"#t{number}\">{status}</a>")));
            assert!(page.contains(&format!(" id=\"t{number}\"")));
        }
        assert!(
            page.contains("<b>1</b> crash</li>") && page.contains("<h1>belljar <span>4 of 21 tests failed</span></h1>")
        );
        assert!(page.contains("Begun 2026-11-23 00:00:00 UTC, took 3 min 04 s"), "{page}");
        assert!(page.contains("<li>mainline/cpus=4/&lt;b&gt;</li>"));
    }

    #[test]
    fn guests_write_text_and_nothing_else() {
        let page = html(&sample::outcome());
        let known = "main header h1 h2 span ul li b p section div table thead tbody tr th td a form input label details \
                     summary dl dt dd pre code i small";
        let attributes = "class href id open hidden type placeholder aria-label style";
        for tag in tags(&page) {
            let (name, rest) = tag.split_once(' ').unwrap_or((&tag, ""));
            assert!(known.split(' ').any(|known| known == name), "{tag}");
            // Every second part is a value.
            for outside in rest.split('"').step_by(2).flat_map(|part| part.split([' ', '='])) {
                assert!(outside.is_empty() || attributes.split(' ').any(|known| known == outside), "{tag}");
            }
        }
        assert_eq!(page.matches("<script").count(), 1);
        assert!(page.contains("&lt;script&gt;alert(1)"));
        assert!(!page.contains(|c: char| c.is_control() && c != '\n'));
        assert!(!page.contains("http://") && !page.contains("https://"), "nothing from elsewhere");
    }

    #[test]
    fn an_empty_outcome_is_a_page_too() {
        let outcome = Outcome { tests: Vec::new(), not_run: Vec::new(), ..sample::outcome() };
        let page = html(&outcome);
        assert!(page.contains("all is well") && !page.contains("Not run"));
        tags(&page);
    }
}
