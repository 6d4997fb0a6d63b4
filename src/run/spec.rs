//! What shall be run, where: the one shape that flags, TOML files and the library share. It contains the machine's own
//! specification. Nothing here touches the host.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Volume;
use crate::spec::{MachineSpec, Size, SpecError};

/// RAM of a machine that runs a command, unless something else is said.
pub const MEMORY: Size = Size(1 << 30);
/// Longest name of a machine: it is part of the path of a socket.
pub const NAME_LIMIT: usize = 32;

/// A command and the machine to run it in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct RunSpec {
    /// Program and arguments. Empty: the machine is only there for other commands, until it is stopped.
    #[serde(with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<OsString>,
    /// What becomes the guest's root: a directory, or an archive (cpio or tar). None: the host's own root, or `disk-root`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root: Option<PathBuf>,
    /// A disk image with a file system that becomes the guest's root.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_root: Option<PathBuf>,
    /// What may be done to the root; an overlay if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<RootAccess>,
    /// Directories of the host in the guest.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Directory that holds the kernel's modules; if not said, where they belong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modules: Option<PathBuf>,
    /// Working directory; if not said, the one of this process if the guest has it, else `/`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workdir: Option<PathBuf>,
    /// Environment: `NAME=VALUE`, or `NAME` for what this process has.
    #[serde(with = "texts", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<OsString>,
    /// Files with lines as in `env`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env_file: Vec<PathBuf>,
    /// Who runs the command: a name or number, and perhaps `:` and a group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Name of the guest, for itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Name of the machine, for other commands on this host; one is made up if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The root's own init, with arguments, becomes process 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<String>,
    /// Ports of the host that lead to ports of the guest: `[ADDRESS:]HOST:GUEST[/udp]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// All that the guest may reach through the user-mode network: `HOST[:PORT]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Seconds within which the guest must be ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot_timeout: Option<u64>,
    /// Seconds without any output after which the machine is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout: Option<u64>,
    /// The guest kernel goes on after an oops.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub no_panic_on_oops: bool,
    /// Show all that the guest's kernel says, on standard error.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub verbose: bool,
    /// The machine.
    #[serde(flatten)]
    pub machine: MachineSpec,
}

impl Default for RunSpec {
    fn default() -> Self {
        Self {
            command: Vec::new(),
            root: None,
            disk_root: None,
            access: None,
            volumes: Vec::new(),
            modules: None,
            workdir: None,
            env: Vec::new(),
            env_file: Vec::new(),
            user: None,
            hostname: None,
            name: None,
            init: None,
            publish: Vec::new(),
            allow: Vec::new(),
            boot_timeout: None,
            idle_timeout: None,
            no_panic_on_oops: false,
            verbose: false,
            machine: MachineSpec { memory: MEMORY, ..MachineSpec::default() },
        }
    }
}

/// What may be done to the guest's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootAccess {
    /// Nothing.
    Ro,
    /// Everything, and it stays.
    Rw,
    /// Everything, but changes are thrown away at the end.
    Overlay,
}

/// Texts of the host, which are mostly UTF-8. A file can only have those.
mod texts {
    use super::*;
    use serde::ser::Error as _;
    use serde::{Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(list: &[OsString], serializer: S) -> Result<S::Ok, S::Error> {
        let texts = list.iter().map(|text| {
            text.to_str().ok_or_else(|| S::Error::custom(format!("{} is not UTF-8", text.to_string_lossy())))
        });
        serializer.collect_seq(texts.collect::<Result<Vec<_>, _>>()?)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<OsString>, D::Error> {
        Ok(Vec::<String>::deserialize(deserializer)?.into_iter().map(OsString::from).collect())
    }
}

/// A specification that cannot be run. The text says what to change.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum RunSpecError {
    #[error(transparent)]
    Machine(#[from] SpecError),
    #[error("--root and --disk-root: a guest has one root; give one of the two")]
    TwoRoots,
    #[error("--root {}: an archive is unpacked into the guest's memory, so --ro and --rw say nothing", .0.display())]
    AccessOfArchive(PathBuf),
    #[error(
        "--name {0}: take letters, digits, `.`, `_` and `-`, beginning with a letter or digit, at most {NAME_LIMIT}"
    )]
    Name(String),
    #[error("--hostname {0}: take letters, digits, `.` and `-`, at most 64")]
    Hostname(String),
    #[error("--{0} goes with --net user, which this machine does not have; add it")]
    NoUserNetwork(&'static str),
    #[error("--{0} 0: give at least 1 second")]
    NoTime(&'static str),
    #[error("--env {0}: write NAME=VALUE or NAME")]
    Env(String),
    #[error("--workdir {}: give an absolute path of the guest", .0.display())]
    Workdir(PathBuf),
    #[error("--init {0}: give an absolute path of the guest")]
    Init(String),
    #[error("--deterministic: a command's input and output come and go at times of their own; belljar boot can do it")]
    Deterministic,
    #[error("The command is an empty word; give a program, or leave it out")]
    EmptyCommand,
    #[error(
        "--{0} to=stdio does not go with a command, which has standard input and output; use --verbose, or to=file=PATH"
    )]
    Console(&'static str),
}

impl RunSpec {
    /// Parses a specification file.
    pub fn from_toml(text: &str) -> Result<Self, RunSpecError> {
        let toml_error = |e: toml::de::Error| MachineSpec::toml_error(text, &e);
        let mut spec: Self = toml::from_str(text).map_err(toml_error)?;
        // What the file leaves out is as for every run, not as for every machine.
        let table: toml::Table = toml::from_str(text).map_err(toml_error)?;
        if !table.contains_key("memory") {
            spec.machine.memory = MEMORY;
        }
        Ok(spec)
    }

    /// The specification as such a file.
    pub fn to_toml(&self) -> Result<String, RunSpecError> {
        Ok(toml::to_string(self).map_err(|e| SpecError::Toml(e.to_string()))?)
    }

    /// Finds what is wrong, as far as that can be told without touching the host.
    pub fn validate(&self) -> Result<(), RunSpecError> {
        if self.root.is_some() && self.disk_root.is_some() {
            return Err(RunSpecError::TwoRoots);
        }
        if let Some(name) = self.name.as_ref().filter(|name| !is_name(name)) {
            return Err(RunSpecError::Name(name.clone()));
        }
        let is_hostname = |name: &&String| {
            let good = |c: char| c.is_ascii_alphanumeric() || c == '.' || c == '-';
            (1..=64).contains(&name.len()) && name.chars().all(good)
        };
        if let Some(name) = self.hostname.as_ref().filter(|name| !is_hostname(name)) {
            return Err(RunSpecError::Hostname(name.clone()));
        }
        for (name, seconds) in [("boot-timeout", self.boot_timeout), ("idle-timeout", self.idle_timeout)] {
            if seconds == Some(0) {
                return Err(RunSpecError::NoTime(name));
            }
        }
        if self.machine.deterministic {
            return Err(RunSpecError::Deterministic);
        }
        self.validate_command()?;
        for name in ["serial", "console"] {
            if self.machine.device_options(name).any(|table| table.get("to").is_none_or(|to| to == "stdio")) {
                return Err(RunSpecError::Console(name));
            }
        }
        Ok(self.machine.validate_but_kernel()?)
    }

    fn validate_command(&self) -> Result<(), RunSpecError> {
        if self.command.first().is_some_and(|program| program.is_empty()) {
            return Err(RunSpecError::EmptyCommand);
        }
        let nameless = |text: &&OsString| text.is_empty() || text.as_encoded_bytes().starts_with(b"=");
        if let Some(text) = self.env.iter().find(nameless) {
            return Err(RunSpecError::Env(text.to_string_lossy().into_owned()));
        }
        if let Some(path) = self.workdir.as_ref().filter(|path| !path.is_absolute()) {
            return Err(RunSpecError::Workdir(path.clone()));
        }
        match &self.init {
            Some(init) if !init.starts_with('/') => Err(RunSpecError::Init(init.clone())),
            _ => Ok(()),
        }
    }

    /// What may be done to the root, if it is a directory or a disk.
    pub fn root_access(&self) -> RootAccess {
        self.access.unwrap_or(RootAccess::Overlay)
    }

    /// The directory of the host that becomes the root, unless something else does.
    pub fn root_path(&self) -> &Path {
        self.root.as_deref().unwrap_or(Path::new("/"))
    }
}

/// Whether a machine may be called so: the name is that of a directory, and part of texts that shells read.
pub(super) fn is_name(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (1..=NAME_LIMIT).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_have_the_keys_of_the_flags_and_of_the_machine() {
        let text = "command = [\"make\", \"check\"]\nvolumes = [\"/a:/b:ro\"]\nworkdir = \"/b\"\nenv = [\"CI=1\"]\n\
                    access = \"rw\"\ncpus = 2\n\n[[disk]]\npath = \"x.img\"\n";
        let spec = RunSpec::from_toml(text).unwrap();
        assert_eq!(spec.command, ["make", "check"]);
        assert_eq!((spec.machine.cpus, spec.machine.memory), (2, MEMORY));
        assert!(spec.volumes[0].read_only);
        assert_eq!(spec.root_access(), RootAccess::Rw);
        spec.validate().unwrap();
        assert_eq!(RunSpec::from_toml(&spec.to_toml().unwrap()).unwrap(), spec);
        let small = RunSpec::from_toml("memory = \"256M\"").unwrap();
        assert_eq!(small.machine.memory, Size(256 << 20));
        let error = RunSpec::from_toml("comand = []").unwrap_err().to_string();
        assert!(error.contains("unknown key `comand`"), "{error}");
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |change: fn(&mut RunSpec)| {
            let mut spec = RunSpec { command: vec!["true".into()], ..RunSpec::default() };
            change(&mut spec);
            spec.validate().unwrap_err().to_string()
        };
        assert!(wrong(|s| (s.root, s.disk_root) = (Some("a".into()), Some("b".into()))).contains("one root"));
        assert!(wrong(|s| s.name = Some("../x".into())).starts_with("--name ../x"));
        assert!(wrong(|s| s.name = Some("x".repeat(NAME_LIMIT + 1))).starts_with("--name"));
        assert!(wrong(|s| s.hostname = Some("a b".into())).starts_with("--hostname a b"));
        assert!(wrong(|s| s.idle_timeout = Some(0)).starts_with("--idle-timeout 0"));
        assert!(wrong(|s| s.env = vec!["=x".into()]).starts_with("--env =x"));
        assert!(wrong(|s| s.workdir = Some("src".into())).starts_with("--workdir src"));
        assert!(wrong(|s| s.command = vec!["".into()]).contains("empty word"));
        assert!(wrong(|s| s.machine.deterministic = true).starts_with("--deterministic"));
        assert!(wrong(|s| s.machine.cpus = 0).starts_with("--cpus 0"));
    }
}
