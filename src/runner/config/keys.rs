//! The keys of belljar.toml, and where each may stand.

use super::pattern::did_you_mean;
use crate::devices::{self, KINDS};

/// Keys of [`crate::run::RunSpec`] that every table may have.
const RUN: &[&str] = &[
    "root",
    "disk-root",
    "access",
    "volumes",
    "modules",
    "workdir",
    "env",
    "env-file",
    "user",
    "hostname",
    "init",
    "publish",
    "allow",
    "boot-timeout",
    "idle-timeout",
    "no-panic-on-oops",
    "verbose",
    "initrd",
    "append",
    "cmdline",
    "self-extract",
    "entry",
    "cpus",
    "cpu-quota",
    "memory",
    "engine",
    "cpu",
    "transport",
    "timeout",
    "trace",
];

/// Keys about tests that every table may have too; see [`super::rules::Rules`].
pub(super) const RULES: &[&str] =
    &["splats", "ignore-splats", "retry-infra", "artifacts", "expected-failures", "kselftest-dir"];

/// Keys that say what a test is, and where.
const TEST: &[&str] = &["command", "kunit", "kselftest", "expect", "kernels", "machines", "roots"];

/// Keys of a run that no suite has, and why.
const REFUSED: &[(&str, &str)] = &[
    ("log", "all that a test prints is kept in the directory of its artifacts"),
    ("deterministic", "tests that talk to a command cannot be repeated instruction by instruction; belljar boot can"),
    ("gdb", "a debugger is for one test: give --gdb with a --filter"),
    ("gdb-on-crash", "a debugger is for one test: give --gdb-on-crash with a --filter"),
    ("dump", "it is for one test: give --dump with a --filter"),
    ("seed", "it goes with `deterministic`, which tests do not have"),
];

/// A kind of table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Defaults,
    Kernel,
    Machine,
    Root,
    Test,
}

impl Section {
    pub(super) const ALL: [Self; 5] = [Self::Defaults, Self::Kernel, Self::Machine, Self::Root, Self::Test];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Defaults => "defaults",
            Self::Kernel => "kernel",
            Self::Machine => "machine",
            Self::Root => "root",
            Self::Test => "test",
        }
    }

    /// As it stands in a file.
    pub(super) fn title(self) -> String {
        if self == Self::Defaults { "[defaults]".into() } else { format!("[[{}]]", self.name()) }
    }

    /// Whether the key belongs to the table itself and not to what is merged.
    pub(super) fn owns(self, key: &str) -> bool {
        match self {
            Self::Defaults => false,
            Self::Test => key == "name" || TEST.contains(&key),
            _ => key == "name",
        }
    }

    /// All its keys.
    fn keys(self) -> Vec<&'static str> {
        let devices = KINDS.iter().map(|kind| kind.name());
        let own: &[&str] = match self {
            Self::Defaults => &["kernel"],
            Self::Kernel => &["name", "kernel"],
            Self::Machine | Self::Root => &["name"],
            Self::Test => &["name"],
        };
        let test = if self == Self::Test { TEST } else { &[] };
        own.iter().chain(test).chain(RUN).chain(RULES).copied().chain(devices).collect()
    }

    /// What is wrong with the key here, if anything.
    pub(super) fn mistake(self, key: &str) -> Option<String> {
        let keys = self.keys();
        if keys.contains(&key) {
            return None;
        }
        if let Some((_, why)) = REFUSED.iter().find(|(name, _)| *name == key) {
            return Some(format!("no `{key}` in {}: {why}", self.title()));
        }
        let other = Self::ALL.iter().find(|other| other.keys().contains(&key));
        if let Some(other) = other.filter(|_| key != "name") {
            let place = if key == "kernel" { Self::Kernel } else { *other };
            return Some(format!("`{key}` belongs in {}, not in {}", place.title(), self.title()));
        }
        Some(format!("unknown key `{key}` in {}{}", self.title(), near_or_all(key, &keys)))
    }
}

/// What is wrong with the key of a device's table, if anything.
pub(super) fn device_mistake(device: &str, key: &str) -> Option<String> {
    let keys = devices::kind(device)?.keys();
    if keys.iter().any(|known| known.name == key) {
        return None;
    }
    let known: Vec<_> = keys.iter().map(|key| key.name).collect();
    Some(format!("unknown key `{key}` of `{device}`{}", near_or_all(key, &known)))
}

/// What may have been meant by `key`.
fn near_or_all(key: &str, known: &[&str]) -> String {
    match (did_you_mean(key, known.iter().copied()), known.is_empty()) {
        (_, true) => "; it takes none".into(),
        (near, _) if near.is_empty() => format!("; known are {}", known.join(", ")),
        (near, _) => near,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::level::CpuLevel;
    use crate::run::{RootAccess, RunSpec};
    use crate::spec::{DeviceTables, MachineSpec, Size, TraceSpec};

    /// A specification in which everything is said: a new field does not compile before it is here.
    fn everything() -> RunSpec {
        let text = || Some("x".to_string());
        let machine = MachineSpec {
            kernel: Some("k".into()),
            initrd: vec!["i".into()],
            append: text(),
            cmdline: text(),
            self_extract: true,
            entry: Default::default(),
            cpus: 1,
            cpu_quota: Some("50%".parse().unwrap()),
            memory: Size(1 << 30),
            engine: Default::default(),
            cpu: Some(CpuLevel::V2),
            transport: Default::default(),
            timeout: Some(1),
            log: Some("l".into()),
            deterministic: true,
            seed: Some(1),
            trace: Some(TraceSpec::default()),
            gdb: Some("1234".parse().unwrap()),
            gdb_on_crash: Some("1234".parse().unwrap()),
            dump: Some("d".into()),
            devices: DeviceTables::default(),
        };
        RunSpec {
            command: vec!["c".into()],
            root: Some("r".into()),
            disk_root: Some("d".into()),
            access: Some(RootAccess::Ro),
            volumes: vec!["/a:/b".parse().unwrap()],
            modules: Some("m".into()),
            workdir: Some("/w".into()),
            env: vec!["E".into()],
            env_file: vec!["f".into()],
            user: text(),
            hostname: text(),
            name: text(),
            init: text(),
            publish: vec!["1:2".into()],
            allow: vec!["h".into()],
            boot_timeout: Some(1),
            idle_timeout: Some(1),
            no_panic_on_oops: true,
            verbose: true,
            machine,
        }
    }

    #[test]
    fn every_key_of_a_run_is_known_or_refused() {
        let table = toml::Table::try_from(everything()).unwrap();
        for key in table.keys() {
            let refused = REFUSED.iter().any(|(name, _)| name == key);
            assert_eq!(Section::Test.mistake(key).is_some(), refused || key == "kernel", "{key}");
            assert_eq!(Section::Kernel.mistake(key).is_some(), refused || key == "command", "{key}");
        }
        RUN.iter().for_each(|key| assert!(table.contains_key(*key), "{key}"));
    }

    #[test]
    fn mistakes_name_the_right_place_or_key() {
        let say = |section: Section, key: &str| section.mistake(key).unwrap();
        assert_eq!(say(Section::Test, "comand"), "unknown key `comand` in [[test]]; did you mean `command`?");
        assert_eq!(say(Section::Test, "kernel"), "`kernel` belongs in [[kernel]], not in [[test]]");
        assert_eq!(say(Section::Machine, "kunit"), "`kunit` belongs in [[test]], not in [[machine]]");
        assert!(say(Section::Defaults, "name").starts_with("unknown key `name` in [defaults]"));
        assert!(say(Section::Kernel, "path").starts_with("unknown key `path` in [[kernel]]; known are name, kernel, "));
        assert!(say(Section::Defaults, "log").contains("artifacts"));
        assert_eq!(
            device_mistake("disk", "readonyl").unwrap(),
            "unknown key `readonyl` of `disk`; did you mean `readonly`?"
        );
        assert_eq!(device_mistake("disk", "path"), None);
    }
}
