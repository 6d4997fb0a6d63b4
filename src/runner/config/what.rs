//! What a test is, as its table says.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use toml::Value;

use super::source::{Place, Problems};

/// What a test does in its machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum What {
    /// Runs the command of the specification.
    Command,
    /// Boots; the kernel's own KUnit suites print their results. There is no user space.
    Kunit {
        /// Which: `SUITE` or `SUITE.TEST`, with `*` and `?`. None: all of them.
        filter: Option<String>,
    },
    /// Runs installed kselftests.
    Kselftest {
        /// Directory of the host that holds `run_kselftest.sh`.
        dir: PathBuf,
        /// The collection.
        collection: String,
        /// Those of its tests that run; all, if empty.
        tests: Vec<String>,
    },
}

/// Keys of a table that are not merged with those of others, with the places of their values.
pub(super) type Own = BTreeMap<String, (Value, Place)>;

/// Something that a test does, and what is added to the test's name for it.
pub(super) type Task = (Option<String>, What);

/// Keys that say what a test is.
const KINDS: [&str; 3] = ["command", "kunit", "kselftest"];

/// Whether a test says what it is.
pub(super) fn is_said(own: &Own) -> bool {
    KINDS.iter().any(|kind| own.contains_key(*kind))
}

/// The tasks of the test whose table begins at `place`, and the words of its command.
pub(super) fn tasks(own: &Own, place: Place, problems: &mut Problems) -> (Vec<Task>, Vec<String>) {
    let mut given = KINDS.iter().filter_map(|kind| own.get_key_value(*kind));
    let Some((kind, (value, at))) = given.next() else {
        problems.add(place, "[[test]] needs one of `command`, `kunit` and `kselftest`");
        return Default::default();
    };
    if let Some((second, (_, at))) = given.next() {
        problems.add(*at, format!("`{kind}` and `{second}` in one [[test]]: give one of the two"));
    }
    let result = match kind.as_str() {
        "command" => command(value).map(|words| (vec![(None, What::Command)], words)),
        "kunit" => kunit(value).map(|filter| (vec![(None, What::Kunit { filter })], Vec::new())),
        _ => kselftest(value).map(|tasks| (tasks, Vec::new())),
    };
    result.unwrap_or_else(|text| {
        problems.add(*at, format!("`{kind}`: {text}"));
        Default::default()
    })
}

/// Texts, at least one, none of them empty.
pub(super) fn texts(value: &Value) -> Option<Vec<String>> {
    let list = value.as_array()?.iter().map(|text| text.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>()?;
    (!list.is_empty() && list.iter().all(|text| !text.is_empty())).then_some(list)
}

fn command(value: &Value) -> Result<Vec<String>, String> {
    if let Some(text) = value.as_str().filter(|text| !text.trim().is_empty()) {
        return Ok(vec!["sh".into(), "-c".into(), text.into()]);
    }
    let words = value
        .as_array()
        .and_then(|words| words.iter().map(|word| word.as_str().map(str::to_owned)).collect::<Option<Vec<_>>>());
    let words = words.filter(|words| words.first().is_some_and(|program| !program.is_empty()));
    words.ok_or_else(|| "write [\"PROGRAM\", \"ARGUMENT\", ..], or a text for the shell".into())
}

fn kunit(value: &Value) -> Result<Option<String>, String> {
    match value {
        Value::Boolean(true) => Ok(None),
        Value::String(filter) if !filter.is_empty() && !filter.contains(char::is_whitespace) => {
            Ok(Some(filter.clone()))
        }
        _ => Err("write true, or \"SUITE.TEST\" (with * and ?)".into()),
    }
}

/// `COLLECTION`, `COLLECTION:TEST`, or a list of those, of which each collection becomes a task of its own.
fn kselftest(value: &Value) -> Result<Vec<Task>, String> {
    let wrong = || "write \"COLLECTION\", \"COLLECTION:TEST\" or a list of those".to_string();
    let list = match value {
        Value::String(one) => vec![one.clone()],
        more => texts(more).ok_or_else(wrong)?,
    };
    let mut collections: Vec<(String, Option<Vec<String>>)> = Vec::new();
    for text in &list {
        let (collection, test) = text.split_once(':').map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
        if collection.is_empty() || test == Some("") || text.contains(char::is_whitespace) {
            return Err(wrong());
        }
        let known = collections.iter().position(|(name, _)| name == collection);
        let index = known.unwrap_or(collections.len());
        if known.is_none() {
            collections.push((collection.into(), Some(Vec::new())));
        }
        // All of a collection is more than some tests of it.
        if let Some((_, tests)) = collections.get_mut(index) {
            match (test, tests.as_mut()) {
                (Some(test), Some(tests)) => tests.push(test.into()),
                (Some(_), None) => {}
                (None, _) => *tests = None,
            }
        }
    }
    let several = value.is_array();
    let task = |(collection, tests): (String, Option<Vec<String>>)| {
        let suffix = several.then(|| collection.replace('/', "-"));
        (suffix, What::Kselftest { dir: PathBuf::new(), collection, tests: tests.unwrap_or_default() })
    };
    Ok(collections.into_iter().map(task).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(text: &str) -> Result<(Vec<Task>, Vec<String>), String> {
        let place = Place { line: 3, column: 1 };
        let own = text.parse::<toml::Table>().unwrap().into_iter().map(|(key, value)| (key, (value, place))).collect();
        let mut problems = Problems::default();
        let tasks = tasks(&own, Place::START, &mut problems);
        problems.result(Path::new("x")).map(|()| tasks).map_err(|e| e.to_string())
    }

    #[test]
    fn commands_are_words_or_for_the_shell() {
        assert_eq!(read("command = [\"a\", \"\"]").unwrap().1, ["a", ""]);
        assert_eq!(read("command = \"a | b\"").unwrap().1, ["sh", "-c", "a | b"]);
        for bad in ["command = []", "command = \" \"", "command = [\"\"]", "command = [1]", "command = 1"] {
            assert!(read(bad).unwrap_err().starts_with("x:3:1: `command`: write"), "{bad}");
        }
    }

    #[test]
    fn kselftests_are_grouped_by_collection() {
        let collection = |name: &str, tests: &[&str]| What::Kselftest {
            dir: PathBuf::new(),
            collection: name.into(),
            tests: tests.iter().map(|test| test.to_string()).collect(),
        };
        assert_eq!(read("kselftest = \"net:tls\"").unwrap().0, [(None, collection("net", &["tls"]))]);
        let list = read("kselftest = [\"net:a\", \"net/x\", \"net:b\", \"mm:c\", \"mm\"]").unwrap().0;
        let expected = [("net", "net", &["a", "b"][..]), ("net-x", "net/x", &[]), ("mm", "mm", &[])];
        assert_eq!(list, expected.map(|(suffix, name, tests)| (Some(suffix.into()), collection(name, tests))));
        for bad in ["\"\"", "\":a\"", "\"a:\"", "[]", "true", "[\"a b\"]"] {
            assert!(read(&format!("kselftest = {bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_test_is_one_thing() {
        assert_eq!(read("kunit = true").unwrap().0, [(None, What::Kunit { filter: None })]);
        assert_eq!(read("kunit = \"ext4*\"").unwrap().0, [(None, What::Kunit { filter: Some("ext4*".into()) })]);
        assert!(read("kunit = false").unwrap_err().contains("write true"));
        assert!(read("").unwrap_err().starts_with("x:1:1: [[test]] needs one of"));
        assert!(read("command = \"a\"\nkunit = true").unwrap_err().contains("`command` and `kunit` in one [[test]]"));
    }
}
