//! What KCIDB takes, the database of test results of the Linux kernel: its schema 5.0, and whatever reads a later one.

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::json::pretty;
use super::text;
use crate::runner::outcome::{Case, Outcome, Status, TestResult};

/// Bytes of a log that the schema allows.
const EXCERPT: usize = 16_384;

/// Who submits.
#[derive(Debug, Clone)]
pub struct KcidbOrigin(String);

impl KcidbOrigin {
    /// The name of a CI system: small letters, digits and `_`. None if it is anything else.
    pub fn new(name: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
        (!name.is_empty() && name.bytes().all(fits)).then(|| Self(name.to_string()))
    }
}

impl Default for KcidbOrigin {
    fn default() -> Self {
        Self("belljar".to_string())
    }
}

/// The outcome for KCIDB: a checkout and a build for each kernel, a test for each test and each case within one.
pub fn kcidb(outcome: &Outcome, origin: &KcidbOrigin) -> String {
    let submission = Submission::new(outcome, origin);
    let mut kernels: Vec<&TestResult> = Vec::new();
    for test in &outcome.tests {
        if !kernels.iter().any(|seen| seen.kernel == test.kernel) {
            kernels.push(test);
        }
    }
    let checkouts: Vec<Value> = kernels.iter().map(|test| submission.checkout(&test.kernel)).collect();
    let builds: Vec<Value> = kernels.iter().map(|test| submission.build(&test.kernel)).collect();
    let tests: Vec<Value> = outcome.tests.iter().flat_map(|test| submission.test(test)).collect();
    pretty(&json!({
        "version": { "major": 5, "minor": 0 },
        "checkouts": checkouts,
        "builds": builds,
        "tests": tests,
    }))
}

struct Submission<'a> {
    outcome: &'a Outcome,
    origin: &'a str,
    /// Part of all ids: no two runs of tests have the same.
    run: String,
}

impl<'a> Submission<'a> {
    fn new(outcome: &'a Outcome, origin: &'a KcidbOrigin) -> Self {
        let digest = Sha256::digest(super::json(outcome));
        let run = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        Self { outcome, origin: &origin.0, run }
    }

    fn id(&self, of: &str) -> String {
        format!("{}:{}:{}", self.origin, self.run, text::line(of))
    }

    fn start(&self, seconds: f64) -> String {
        text::moment(self.outcome.began, seconds).to_rfc3339()
    }

    fn checkout(&self, kernel: &str) -> Value {
        json!({
            "id": self.id(kernel),
            "origin": self.origin,
            "comment": text::line(kernel),
            "start_time": self.start(0.0),
            "valid": true,
            "misc": self.about_kernel(kernel),
        })
    }

    fn build(&self, kernel: &str) -> Value {
        json!({
            "id": self.id(kernel),
            "checkout_id": self.id(kernel),
            "origin": self.origin,
            "comment": text::line(kernel),
            "architecture": "x86_64",
            "status": "PASS",
            "misc": self.about_kernel(kernel),
        })
    }

    fn about_kernel(&self, kernel: &str) -> Value {
        let release =
            self.outcome.tests.iter().filter(|test| test.kernel == kernel).find_map(|test| test.release.as_deref());
        json!({ "kernel": kernel, "release": release, "belljar": self.outcome.version })
    }

    /// The test and its cases.
    fn test(&self, test: &TestResult) -> Vec<Value> {
        let mut whole = self.common(test, &test.id, &path([test.test.as_str()]), test.status);
        whole.insert("start_time".into(), self.start(test.start).into());
        whole.insert("duration".into(), test.seconds.into());
        comment(&mut whole, test.reason.as_deref());
        excerpt(&mut whole, &test.tail);
        let splats: Vec<Value> =
            test.splats.iter().map(|splat| json!({ "kind": splat.kind, "title": splat.title })).collect();
        whole.insert(
            "misc".into(),
            json!({
                "status": test.status,
                "verdict": test.verdict,
                "attempt": test.attempt,
                "splats": splats,
                "reproduce": test.reproduce,
            }),
        );
        let cases = test.cases.iter().enumerate().map(|(number, case)| self.case(test, number, case));
        [Value::Object(whole)].into_iter().chain(cases).collect()
    }

    fn case(&self, test: &TestResult, number: usize, case: &Case) -> Value {
        let names = [test.test.as_str()].into_iter().chain(case.path.iter().map(String::as_str));
        // Names of cases may come twice.
        let id = format!("{}:{}:{}", test.id, number + 1, case.name());
        let mut written = self.common(test, &id, &path(names), case.status);
        if let Some(seconds) = case.seconds {
            written.insert("duration".into(), seconds.into());
        }
        comment(&mut written, case.message.as_deref());
        excerpt(&mut written, &case.log);
        written.insert("misc".into(), json!({ "status": case.status, "name": case.name() }));
        Value::Object(written)
    }

    fn common(&self, test: &TestResult, id: &str, path: &str, status: Status) -> Map<String, Value> {
        let misc = json!({ "machine": test.machine, "engine": test.engine });
        let fields = [
            ("id", self.id(id).into()),
            ("build_id", self.id(&test.kernel).into()),
            ("origin", self.origin.into()),
            ("path", path.into()),
            ("status", word(status).into()),
            ("environment", json!({ "comment": text::line(&test.machine), "misc": misc })),
        ];
        fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }
}

fn comment(written: &mut Map<String, Value>, text: Option<&str>) {
    if let Some(text) = text {
        written.insert("comment".into(), text::line(text).into());
    }
}

fn excerpt(written: &mut Map<String, Value>, log: &str) {
    let log = text::lines(log);
    if !log.is_empty() {
        written.insert("log_excerpt".into(), text::last_bytes(&log, EXCERPT).into());
    }
}

/// A path through KCIDB's tree of tests: words of letters, digits, `_` and `-` with dots between them.
fn path<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let word = |name: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        name.chars().map(|c| if fits(c) { c } else { '_' }).collect::<String>()
    };
    let words = names.into_iter().flat_map(|name| name.split(['.', '/'])).filter(|name| !name.is_empty()).map(word);
    words.collect::<Vec<_>>().join(".")
}

/// KCIDB tells apart whose fault it is: FAIL is the kernel's, ERROR the test's, MISS that of what runs the tests.
fn word(status: Status) -> &'static str {
    match status {
        Status::Pass => "PASS",
        Status::Skip => "SKIP",
        // It ended, and says nothing new.
        Status::Xfail => "DONE",
        Status::Fail | Status::Crash => "FAIL",
        // Whether kernel or test hangs is not known.
        Status::Timeout => "ERROR",
        Status::Error => "MISS",
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::runner::report::sample;

    #[test]
    fn everything_has_its_place_and_its_own_id() {
        let outcome = sample::outcome();
        let origin = KcidbOrigin::new("my_ci").unwrap();
        let document: Value = serde_json::from_str(&kcidb(&outcome, &origin)).unwrap();
        let list = |name: &str| document[name].as_array().unwrap().clone();
        assert_eq!((list("checkouts").len(), list("builds").len()), (2, 2));
        let tests = list("tests");
        let cases: usize = outcome.tests.iter().map(|test| test.cases.len()).sum();
        assert_eq!(tests.len(), outcome.tests.len() + cases);
        let mut ids: Vec<&str> = tests.iter().filter_map(|test| test["id"].as_str()).collect();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), tests.len());
        assert!(ids.iter().all(|id| id.starts_with("my_ci:")));
        let status = |path: &str| tests.iter().find(|test| test["path"] == path).unwrap()["status"].clone();
        let seen =
            ["boot", "kunit", "planted", "mqueue", "hotplug", "rseq", "wrong-root", "kunit.example.add"].map(status);
        assert_eq!(seen, ["PASS", "FAIL", "FAIL", "ERROR", "SKIP", "DONE", "MISS", "FAIL"]);
    }

    #[test]
    fn paths_and_origins_have_their_form() {
        assert_eq!(path(["timers/posix", "", "a.b", "x y:ä"]), "timers.posix.a.b.x_y__");
        assert!(KcidbOrigin::new("kernelci_2").is_some());
        assert!(["", "My", "a-b", "a:b"].iter().all(|name| KcidbOrigin::new(name).is_none()));
    }

    /// By KCIDB's own library, if scripts/test has installed it.
    #[test]
    fn kcidb_takes_it() {
        let Some(python) = std::env::var_os("BELLJAR_KCIDB_PYTHON") else {
            println!("SKIPPED kcidb_takes_it: BELLJAR_KCIDB_PYTHON is not set; scripts/test sets it");
            return;
        };
        let check = "import json, sys, kcidb_io.schema as s; d = json.load(sys.stdin)\n\
                     for v in (s.V5_0, s.LATEST): v.validate(v.upgrade(d))";
        let mut child = Command::new(python).args(["-c", check]).stdin(Stdio::piped()).spawn().unwrap();
        let submission = kcidb(&sample::outcome(), &KcidbOrigin::default());
        child.stdin.take().unwrap().write_all(submission.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}
