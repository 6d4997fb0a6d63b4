//! Command lines that run one cell again.

use std::path::PathBuf;

use toml::Value;

use super::cell::Cell;
use super::rules::Rules;
use super::what::What;
use crate::devices;
use crate::run::RunSpec;

/// Where tests stand, and what a command line says of them beside it.
#[derive(Debug, Clone)]
pub struct InFile {
    /// The file.
    pub file: PathBuf,
    /// Flags that change how its tests run, as words.
    pub flags: Vec<String>,
}

impl Cell {
    /// A line for a shell that runs this test alone, in the current directory: by its id if it stands in a file, else with
    /// all flags.
    pub fn reproduce(&self, config: Option<&InFile>) -> String {
        let mut words = vec!["belljar".to_string(), "test".into()];
        match config {
            Some(InFile { file, flags }) => {
                words.extend(with_value("--config", &file.to_string_lossy()));
                words.extend(with_value("--filter", &format!("={}", self.plan_id())));
                words.extend(flags.iter().cloned());
            }
            None => words.extend(self.flags()),
        }
        words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ")
    }

    fn flags(&self) -> Vec<String> {
        let mut words = run_flags(&self.run);
        words.extend(rule_flags(&self.rules));
        match &self.what {
            What::Command => {}
            What::Kunit { filter: None } => words.push("--kunit".into()),
            What::Kunit { filter: Some(filter) } => words.push(format!("--kunit={filter}")),
            What::Kselftest { dir, collection, tests } => {
                let whole = tests.is_empty().then(|| collection.clone());
                let each = tests.iter().map(|test| format!("{collection}:{test}"));
                words.extend(whole.into_iter().chain(each).flat_map(|text| with_value("--kselftest", &text)));
                words.extend(with_value("--kselftest-dir", &dir.to_string_lossy()));
            }
        }
        if !self.run.command.is_empty() {
            words.push("--".into());
            words.extend(self.run.command.iter().map(|word| word.to_string_lossy().into_owned()));
        }
        words
    }
}

/// The rules, as far as flags can say them; `retry-infra` makes no difference to what is seen again.
fn rule_flags(rules: &Rules) -> Vec<String> {
    let ignored = rules.ignore_splats.iter().map(|rule| match rule.case() {
        Some(case) => ("--ignore-splat-in", format!("{}={}", without_equals(case), rule.pattern())),
        None => ("--ignore-splat", rule.pattern().to_owned()),
    });
    let kept = rules.artifacts.iter().map(|path| ("--keep", path.to_string_lossy().into_owned()));
    let rules = toml::Table::try_from(rules).unwrap_or_default();
    let kinds = rules.get("splats").and_then(Value::as_table).into_iter().flatten();
    let kinds = kinds.map(|(kind, action)| ("--splat", format!("{kind}={}", plain(action))));
    kinds.chain(ignored).chain(kept).flat_map(|(flag, value)| with_value(flag, &value)).collect()
}

/// The same regular expression without a `=`, which would end it.
fn without_equals(pattern: &str) -> String {
    let (mut text, mut escaped) = (String::new(), false);
    for character in pattern.chars() {
        if character == '=' {
            text.truncate(text.len() - usize::from(escaped));
            text.push_str("\\x3d");
        } else {
            text.push(character);
        }
        escaped = character == '\\' && !escaped;
    }
    text
}

/// A flag and its value as words: one if two would be two flags.
pub fn with_value(flag: &str, value: &str) -> Vec<String> {
    if value.starts_with('-') { vec![format!("{flag}={value}")] } else { vec![flag.into(), value.into()] }
}

/// What differs from the defaults, as flags: they are called like the keys.
fn run_flags(run: &RunSpec) -> Vec<String> {
    let run = RunSpec { command: Vec::new(), ..run.clone() };
    let (Ok(said), Ok(usual)) = (toml::Table::try_from(&run), toml::Table::try_from(RunSpec::default())) else {
        // What a file cannot hold is no text: then the rest cannot be written either.
        return Vec::new();
    };
    let said = said.iter().filter(|(key, value)| usual.get(*key) != Some(*value));
    said.flat_map(|(key, value)| flag(key, value)).collect()
}

fn flag(key: &str, value: &Value) -> Vec<String> {
    let flag = |name: &str| format!("--{name}");
    match (key, value) {
        ("access", Value::String(access)) => vec![flag(access)],
        ("volumes", Value::Array(list)) => list.iter().flat_map(|item| with_value("--volume", &plain(item))).collect(),
        ("trace", Value::Table(table)) => with_value("--trace", &options(table)),
        (_, Value::Boolean(true)) => vec![flag(key)],
        (_, Value::Array(list)) => list.iter().flat_map(|item| self::flag(key, item)).collect(),
        (_, Value::Table(table)) if devices::kind(key).is_some() => match options(table) {
            none if none.is_empty() => vec![flag(key)],
            some => vec![format!("{}={some}", flag(key))],
        },
        _ => with_value(&flag(key), &plain(value)),
    }
}

/// Options of a device as after its flag; a comma inside of a value is written twice.
fn options(table: &toml::Table) -> String {
    let options = table.iter().map(|(key, value)| match value {
        Value::Boolean(on) => format!("{key}={}", if *on { "on" } else { "off" }),
        value => format!("{key}={}", plain(value).replace(',', ",,")),
    });
    options.collect::<Vec<_>>().join(",")
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The word as a shell reads it back.
pub fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    // Some shells look at words that begin with `=`.
    if !word.is_empty() && !word.starts_with('=') && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_cell_of_a_file_is_named() {
        let cell = Cell { id: "6.1/net#2".into(), ..Cell::alone(RunSpec::default(), What::Command) };
        let flags = vec!["--timeout".into(), "5".into(), "--append".into(), "it's".into()];
        let file = |flags| InFile { file: "my tests/belljar.toml".into(), flags };
        let plain = "belljar test --config 'my tests/belljar.toml' --filter '=6.1/net'";
        assert_eq!(cell.reproduce(Some(&file(Vec::new()))), plain);
        assert_eq!(cell.reproduce(Some(&file(flags))), format!("{plain} --timeout 5 --append 'it'\\''s'"));
    }

    #[test]
    fn values_stay_values() {
        let run = RunSpec::from_toml("append = \"-x y\"\nenv = [\"-A=1\"]\ncommand = [\"-c\"]").unwrap();
        let line = Cell::alone(run, What::Command).reproduce(None);
        assert_eq!(line, "belljar test '--append=-x y' --env=-A=1 -- -c");
    }

    #[test]
    fn cases_have_no_equals_sign() {
        assert_eq!(without_equals(r"^a=1$|[=]\=\\=\d"), r"^a\x3d1$|[\x3d]\x3d\\\x3d\d");
        let same = |text: &str| regex::Regex::new(&without_equals(r"^a=\=\\=$")).unwrap().is_match(text);
        assert!(same(r"a==\=") && !same(r"a=\="));
    }

    #[test]
    fn a_cell_of_a_command_line_is_all_its_flags() {
        let run = RunSpec::from_toml(
            "kernel = \"k\"\ncpus = 2\nappend = \"a b\"\naccess = \"ro\"\nvolumes = [\"a:/b:ro\"]\nenv = [\"A=1\", \"B\"]\n\
             no-panic-on-oops = true\ncommand = [\"sh\", \"-c\", \"it's $X\"]\nrng = true\ntrace = { path = \"t\", all = true }\n\
             [[disk]]\npath = \"x,y\"\nreadonly = true\n",
        )
        .unwrap();
        let line = Cell::alone(run, What::Command).reproduce(None);
        for part in [
            "--kernel k",
            "--cpus 2",
            "--append 'a b'",
            "--ro",
            "--volume a:/b:ro",
            "--env A=1 --env B",
            "--no-panic-on-oops",
            "--rng",
            "--trace all=on,path=t",
            "--disk=path=x,,y,readonly=on",
        ] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert!(line.ends_with(" -- sh -c 'it'\\''s $X'"), "{line}");
        assert!(!line.contains("--memory"), "{line}");
    }

    #[test]
    fn other_tests_have_flags_too() {
        let line = |what| Cell::alone(RunSpec::default(), what).reproduce(None);
        assert_eq!(line(What::Kunit { filter: Some("ext4*".into()) }), "belljar test '--kunit=ext4*'");
        let (dir, tests) = ("/k".into(), vec!["a".into(), "b".into()]);
        assert_eq!(
            line(What::Kselftest { dir, collection: "net".into(), tests }),
            "belljar test --kselftest net:a --kselftest net:b --kselftest-dir /k"
        );
    }

    #[test]
    fn what_is_said_of_a_test_is_kept() {
        let mut cell = Cell::alone(RunSpec { command: vec!["a".into()], ..RunSpec::default() }, What::Command);
        cell.rules = toml::from_str(
            "splats = { rcu-stall = \"warn\" }\nignore-splats = [\"in foo\", { match = \"a=b\", case = \"^x/p=1\" }]\n\
             artifacts = [\"/tmp/out\"]\nretry-infra = 2",
        )
        .unwrap();
        let expected = "belljar test --splat rcu-stall=warn --ignore-splat 'in foo' --ignore-splat-in '^x/p\\x3d1=a=b' \
                        --keep /tmp/out -- a";
        assert_eq!(cell.reproduce(None), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn shells_read_words_as_they_were(words in proptest::collection::vec("[ -~\n]{0,12}", 1..4)) {
            let script = format!("printf '%s\\0' {}", words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "));
            let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
            let expected: String = words.iter().map(|word| format!("{word}\0")).collect();
            prop_assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
        }
    }
}
