//! The specification of a machine: the one shape that flags, TOML files, the library and tests share.
//!
//! Nothing here touches the host; [`MachineSpec::validate`] finds what is wrong without opening a file.

pub mod cpu_quota;
mod debug;
pub mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use cpu_quota::CpuQuota;
pub use debug::DebugAddress;
pub use trace::TraceSpec;

use crate::arch::x86_64::level::CpuLevel;
use crate::devices::{self, Kind, OptionError, Options, Spec, options::parse_size};
use crate::engine::Deterministic;
use crate::loader::Protocol;

/// Most CPUs of a machine: APIC ids are 8 bits wide, and 255 is the broadcast.
pub const MAX_CPUS: u32 = 254;
/// Least RAM: below this no kernel of today unpacks itself.
pub const MIN_MEMORY: u64 = 32 << 20;

/// When the guest's time begins in runs that can be repeated: 1 January 2026, 0:00 UTC, in seconds since 1970.
pub const DATE: u64 = 1_767_225_600;

/// A machine to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MachineSpec {
    /// Kernel: an image (bzImage or ELF), or whatever else [`crate::kernel::find`] finds one by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disks, concatenated in this order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub initrd: Vec<PathBuf>,
    /// Words after the default kernel command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// The whole kernel command line instead of the default one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Let the kernel decompress itself (and choose its own address, KASLR) instead of doing it beforehand.
    #[serde(skip_serializing_if = "std::ops::Not::not", rename = "self-extract")]
    pub self_extract: bool,
    /// Where the kernel is entered.
    pub entry: Protocol,
    /// Number of CPUs, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// How much of the host's CPUs they may use together.
    #[serde(skip_serializing_if = "Option::is_none", rename = "cpu-quota")]
    pub cpu_quota: Option<CpuQuota>,
    /// RAM in bytes, a multiple of 1 MiB.
    pub memory: Size,
    /// What runs the CPUs.
    pub engine: EngineName,
    /// What the CPUs can do at most; all that engine and host have, if not said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuLevel>,
    /// How virtio devices are attached.
    pub transport: Transport,
    /// Seconds after which the machine is ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// File that keeps the output of all consoles.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
    /// The same inputs give the same run, instruction by instruction; on the software CPU only.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub deterministic: bool,
    /// With `deterministic`: what random numbers are made from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What is kept of the executed code; on the software CPU only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace: Option<TraceSpec>,
    /// Where gdb is awaited, before the first instruction.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gdb: Option<DebugAddress>,
    /// Where gdb is awaited when the guest kernel has panicked or a CPU has died.
    #[serde(skip_serializing_if = "Option::is_none", rename = "gdb-on-crash")]
    pub gdb_on_crash: Option<DebugAddress>,
    /// File that RAM and registers are written to then, as an ELF core.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dump: Option<PathBuf>,
    /// Devices by kind.
    #[serde(flatten)]
    pub devices: DeviceTables,
}

impl Default for MachineSpec {
    fn default() -> Self {
        Self {
            kernel: None,
            initrd: Vec::new(),
            append: None,
            cmdline: None,
            self_extract: false,
            entry: Protocol::default(),
            cpus: 1,
            cpu_quota: None,
            memory: Size(512 << 20),
            engine: EngineName::default(),
            cpu: None,
            transport: Transport::default(),
            timeout: None,
            log: None,
            deterministic: false,
            seed: None,
            trace: None,
            gdb: None,
            gdb_on_crash: None,
            dump: None,
            devices: DeviceTables::default(),
        }
    }
}

/// Which engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EngineName {
    /// KVM if it runs unmodified kernels on this host, otherwise the software CPU.
    #[default]
    Auto,
    /// The host's KVM.
    Kvm,
    /// The software CPU.
    Soft,
}

/// How the guest reaches virtio devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// PCI with MSI-X: what every distribution kernel has.
    #[default]
    Pci,
    /// Memory-mapped registers: fewer parts, but many kernels lack the driver.
    Mmio,
}

/// A number of bytes, written as `512M`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (suffix, shift) in [("G", 30), ("M", 20), ("K", 10)] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{suffix}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A number of bytes for people, in MiB.
pub fn approximate(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

impl std::str::FromStr for Size {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        parse_size(text).map(Self).ok_or_else(|| format!("`{text}` is not a size; write for example 512M or 2G"))
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        scalar(&toml::Value::deserialize(deserializer)?).unwrap_or_default().parse().map_err(D::Error::custom)
    }
}

/// Options of the devices, by kind: what TOML tables and device flags both become.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceTables(BTreeMap<String, Vec<Table>>);

type Table = BTreeMap<String, String>;

impl Serialize for DeviceTables {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(&self.0)
    }
}

impl<'de> Deserialize<'de> for DeviceTables {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = BTreeMap::<String, toml::Value>::deserialize(deserializer)?;
        let mut tables = BTreeMap::new();
        for (name, value) in values {
            let Some(kind) = devices::kind(&name) else {
                return Err(D::Error::custom(format!(
                    "unknown key `{name}`; keys are named like the flags of belljar boot --help"
                )));
            };
            let many = match value {
                toml::Value::Array(many) => many,
                one => vec![one],
            };
            let list: Result<Vec<_>, String> = many.iter().map(|value| table(kind, value)).collect();
            tables.insert(name, list.map_err(D::Error::custom)?);
        }
        Ok(Self(tables))
    }
}

/// One device of a TOML file: a table, the text of a flag, or `true` for one with defaults.
fn table(kind: &'static dyn Kind, value: &toml::Value) -> Result<Table, String> {
    let name = kind.name();
    match value {
        toml::Value::Boolean(true) => Ok(Table::new()),
        toml::Value::String(text) => {
            Options::from_flag(name, kind.keys(), text).map(|o| o.values().clone()).map_err(|e| e.to_string())
        }
        toml::Value::Table(table) => table
            .iter()
            .map(|(key, value)| {
                let text =
                    scalar(value).ok_or_else(|| format!("{name}: {key} must be a text, number or true/false"))?;
                Ok((key.clone(), text))
            })
            .collect(),
        _ => Err(format!("{name}: write a table, a text such as on the command line, or true")),
    }
}

fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(on) => Some(if *on { "on" } else { "off" }.into()),
        _ => None,
    }
}

/// A specification that cannot become a machine. The text says what to change.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SpecError {
    #[error("{0}")]
    Option(#[from] OptionError),
    #[error("--cpus {0}: give a number from 1 to {MAX_CPUS}")]
    Cpus(u32),
    #[error("--memory {0}: give at least {min} and whole MiB, for example 512M", min = Size(MIN_MEMORY))]
    Memory(Size),
    #[error(
        "No kernel: give --kernel FILE (a bzImage, vmlinux, build tree or package), or a name of belljar kernel list"
    )]
    NoKernel,
    #[error("--{0}: a machine has only one")]
    NotRepeatable(String),
    #[error("{0} is given twice: each device needs one of its own")]
    Twice(String),
    #[error("--entry pvh does not go with --self-extract: a bzImage that unpacks itself has only the Linux entry")]
    EntryOfSelfExtracting,
    #[error("--append extends the default kernel command line and --cmdline replaces it: give one of the two")]
    AppendAndCmdline,
    #[error("--timeout 0: give at least 1 second")]
    Timeout,
    #[error("--{0}: KVM cannot do it; use --engine soft, or leave --engine out")]
    NotOnKvm(&'static str),
    #[error("--deterministic goes with one CPU, not with --cpus {0}: the order in which several run is the host's")]
    DeterministicCpus(u32),
    #[error("{0} does not go with --deterministic: what comes from outside comes at a time of its own")]
    Timed(&'static str),
    #[error("--seed is for --deterministic: give both")]
    Seed,
    #[error("--trace: {0}")]
    Trace(String),
    #[error("{0}")]
    Toml(String),
}

impl MachineSpec {
    /// Parses a specification file.
    pub fn from_toml(text: &str) -> Result<Self, SpecError> {
        toml::from_str(text).map_err(|e| Self::toml_error(text, &e))
    }

    /// What is wrong with the specification file `text`, and where.
    pub(crate) fn toml_error(text: &str, error: &toml::de::Error) -> SpecError {
        // The place of an unknown key is not known: then it is said to be the beginning.
        let place = error.span().filter(|span| span.start > 0);
        let line = place.map(|span| text.bytes().take(span.start).filter(|&byte| byte == b'\n').count());
        let line = line.and_then(|line| Some((line + 1, text.lines().nth(line)?)));
        let line = line.map_or_else(String::new, |(number, line)| format!("line {number}, `{}`: ", line.trim()));
        SpecError::Toml(format!("{line}{}", error.message().trim_end().replace('\n', ", ")))
    }

    /// The specification as such a file.
    pub fn to_toml(&self) -> Result<String, SpecError> {
        toml::to_string(self).map_err(|e| SpecError::Toml(e.to_string()))
    }

    /// Adds a device from the text of a flag, e.g. `root.img,readonly`.
    pub fn add_device(&mut self, kind: &'static dyn Kind, text: &str) -> Result<(), SpecError> {
        let options = Options::from_flag(kind.name(), kind.keys(), text)?;
        self.devices.0.entry(kind.name().into()).or_default().push(options.values().clone());
        Ok(())
    }

    /// The same, before all other devices of that kind.
    pub fn add_first(&mut self, kind: &'static dyn Kind, text: &str) -> Result<(), SpecError> {
        self.add_device(kind, text)?;
        if let Some(tables) = self.devices.0.get_mut(kind.name()) {
            tables.rotate_right(1);
        }
        Ok(())
    }

    /// What is said of each device of the kind `name`, by the names of its keys.
    pub fn device_options(&self, name: &str) -> impl Iterator<Item = &BTreeMap<String, String>> {
        self.devices.0.get(name).into_iter().flatten()
    }

    /// The same, to be changed. What is wrong then is found by [`MachineSpec::validate`].
    pub fn device_options_mut(&mut self, name: &str) -> impl Iterator<Item = &mut BTreeMap<String, String>> {
        self.devices.0.get_mut(name).into_iter().flatten()
    }

    fn console_is_stdio(&self) -> bool {
        let Some(consoles) = self.devices.0.get("console") else { return true };
        consoles.iter().all(|table| table.get("to").is_none_or(|to| to == "stdio" || to == "off"))
    }

    /// The devices, in the order of [`devices::KINDS`]. A machine whose console is this terminal has a serial port
    /// there too, unless the specification says otherwise: it shows what comes before any other console works.
    pub fn devices(&self) -> Result<Vec<Box<dyn Spec>>, SpecError> {
        let mut specs = Vec::new();
        let implied = [Table::new()];
        for kind in devices::KINDS {
            let tables = match self.devices.0.get(kind.name()) {
                Some(tables) => tables.as_slice(),
                None if kind.name() == "serial" && self.console_is_stdio() => &implied[..],
                None => &[],
            };
            if tables.len() > 1 && !kind.repeatable() {
                return Err(SpecError::NotRepeatable(kind.name().into()));
            }
            for table in tables {
                let mut options = Options::from_values(kind.name(), kind.keys(), table.clone())?;
                specs.push(kind.parse(&mut options)?);
            }
        }
        Ok(specs)
    }

    fn validate_deterministic(&self) -> Result<(), SpecError> {
        if let Some(mistake) = self.trace.as_ref().and_then(TraceSpec::mistake) {
            return Err(SpecError::Trace(mistake));
        }
        if self.engine == EngineName::Kvm && (self.deterministic || self.trace.is_some()) {
            return Err(SpecError::NotOnKvm(if self.deterministic { "deterministic" } else { "trace" }));
        }
        if !self.deterministic {
            return if self.seed.is_some() { Err(SpecError::Seed) } else { Ok(()) };
        }
        if self.cpus != 1 {
            return Err(SpecError::DeterministicCpus(self.cpus));
        }
        match self.devices()?.iter().find_map(|device| device.timed()) {
            Some(device) => Err(SpecError::Timed(device)),
            None => Ok(()),
        }
    }

    /// The engine that the machine shall have: some things only the software CPU can do.
    pub fn engine_wanted(&self) -> EngineName {
        if self.deterministic || self.trace.is_some() { EngineName::Soft } else { self.engine }
    }

    /// How the run is made one that can be repeated, if it shall be.
    pub fn deterministic(&self) -> Option<Deterministic> {
        self.deterministic.then(|| Deterministic { seed: self.seed.unwrap_or(0), date: DATE })
    }

    /// Finds what is wrong, as far as that can be told without touching the host.
    pub fn validate(&self) -> Result<(), SpecError> {
        self.validate_but_kernel()?;
        if self.kernel.is_none() { Err(SpecError::NoKernel) } else { Ok(()) }
    }

    /// The same for a machine whose kernel is yet to be found.
    pub fn validate_but_kernel(&self) -> Result<(), SpecError> {
        if !(1..=MAX_CPUS).contains(&self.cpus) {
            return Err(SpecError::Cpus(self.cpus));
        }
        if self.memory.0 < MIN_MEMORY || !self.memory.0.is_multiple_of(1 << 20) {
            return Err(SpecError::Memory(self.memory));
        }
        if self.append.is_some() && self.cmdline.is_some() {
            return Err(SpecError::AppendAndCmdline);
        }
        if self.timeout == Some(0) {
            return Err(SpecError::Timeout);
        }
        if self.self_extract && self.entry == Protocol::Pvh {
            return Err(SpecError::EntryOfSelfExtracting);
        }
        self.validate_deterministic()?;
        let mut taken = BTreeSet::new();
        for what in self.devices()?.iter().filter_map(|device| device.exclusive()) {
            if !taken.insert(what.clone()) {
                return Err(SpecError::Twice(what));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<MachineSpec, String> {
        MachineSpec::from_toml(text).map_err(|e| e.to_string())
    }

    #[test]
    fn files_round_trip() {
        let text = "kernel = \"/boot/vmlinuz\"\ninitrd = [\"a\", \"b\"]\ncpus = 2\nmemory = \"1G\"\n\n[serial]\nto = \"null\"\n";
        let first = spec(text).unwrap();
        assert_eq!((first.cpus, first.memory, first.initrd.len()), (2, Size(1 << 30), 2));
        assert_eq!(spec(&first.to_toml().unwrap()).unwrap(), first);
        assert_eq!(first.devices().unwrap().len(), 1);
    }

    #[test]
    fn flags_and_files_mean_the_same() {
        let serial = devices::kind("serial").unwrap();
        let mut flags = MachineSpec::default();
        flags.add_device(serial, "file=/tmp/x").unwrap();
        for text in ["[serial]\nto = \"file=/tmp/x\"", "[[serial]]\nto = \"file=/tmp/x\"", "serial = \"file=/tmp/x\""] {
            assert_eq!(spec(text).unwrap(), flags, "{text}");
        }
    }

    #[test]
    fn mistakes_are_explained() {
        fn twice(kind: &'static str, text: &'static str) -> impl Fn(&mut MachineSpec) {
            move |spec| (0..2).for_each(|_| spec.add_device(devices::kind(kind).unwrap(), text).unwrap())
        }
        fn say(change: impl Fn(&mut MachineSpec)) -> String {
            let mut spec = MachineSpec { kernel: Some("k".into()), ..MachineSpec::default() };
            change(&mut spec);
            spec.validate().unwrap_err().to_string()
        }
        assert!(say(|s| s.cpus = 0).starts_with("--cpus 0: give a number from 1 to"));
        assert!(say(|s| s.memory = Size(1)).starts_with("--memory 1: give at least 32M"));
        assert!(say(|s| s.kernel = None).starts_with("No kernel: give --kernel"));
        assert!(say(|s| (s.append, s.cmdline) = (Some("a".into()), Some("b".into()))).contains("one of the two"));
        assert!(say(|s| (s.self_extract, s.entry) = (true, Protocol::Pvh)).contains("only the Linux entry"));
        assert!(say(twice("port", "name=a,to=pty")).starts_with("--port name=a is given twice"));
        assert!(say(twice("net", "vm0")).starts_with("--net tap=vm0 is given twice"));
        assert!(
            spec("entry = \"efi\"").unwrap_err().contains("unknown variant `efi`, expected one of `auto`, `linux`")
        );
        assert!(spec("colour = 1").unwrap_err().contains("unknown key `colour`"));
        assert!(spec("cpus = \"many\"").unwrap_err().contains("line 1"));
        assert!(spec("memory = \"lots\"").unwrap_err().contains("`lots` is not a size"));
    }

    #[test]
    fn a_terminal_shows_early_messages_unless_told_otherwise() {
        assert_eq!(MachineSpec::default().devices().unwrap().len(), 1);
        assert_eq!(spec("[serial]\nto = \"off\"").unwrap().devices().unwrap().len(), 1);
    }
}
