//! All there is about tests, for programs. docs/test.md describes the fields.

use serde::Serialize;

use crate::runner::outcome::{Counts, Outcome};

/// Version of the schema. Fields may come without another version; none goes or changes its meaning.
pub const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    exit_code: u8,
    counts: Counts,
    case_counts: Counts,
    #[serde(flatten)]
    outcome: &'a Outcome,
}

/// The outcome as JSON, with an end of line at its end.
pub fn json(outcome: &Outcome) -> String {
    let document = Document {
        schema: SCHEMA,
        exit_code: outcome.exit_code(),
        counts: outcome.counts(),
        case_counts: outcome.case_counts(),
        outcome,
    };
    pretty(&document)
}

/// Data of ours as JSON that people can read too.
pub(super) fn pretty(document: &impl Serialize) -> String {
    match serde_json::to_string_pretty(document) {
        Ok(text) => text + "\n",
        // Paths that are no text are the one thing that JSON cannot carry.
        Err(error) => format!("{}\n", serde_json::json!({ "schema": SCHEMA, "error": error.to_string() })),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::runner::report::sample;

    #[test]
    fn everything_is_there_under_stable_names() {
        let outcome = sample::outcome();
        let document: Value = serde_json::from_str(&json(&outcome)).unwrap();
        let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
        assert_eq!(names(&document), "began case_counts counts exit_code not_run schema seconds tests version");
        let crashed = document["tests"].as_array().unwrap().iter().find(|test| test["test"] == "planted").unwrap();
        assert_eq!(
            names(crashed),
            "artifacts attempt cases engine id kernel machine reason release reproduce seconds splats stages start \
             status tail test verdict"
        );
        assert_eq!(names(&crashed["splats"][0]), "action case kind lines text title");
        assert_eq!(names(&crashed["cases"][1]), "message path seconds status");
        assert_eq!(crashed["verdict"]["verdict"], "panicked");
        assert_eq!((&document["exit_code"], &document["counts"]["crash"]), (&3.into(), &1.into()));
        assert_eq!(document["case_counts"]["fail"], 2);
        assert_eq!(document["tests"].as_array().unwrap().len(), outcome.tests.len());
    }
}
