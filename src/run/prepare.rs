//! From a specification to what will be started: which kernel, what of it is used, which devices the machine gets and
//! what its agent shall do. Looks at the host, changes nothing. What a kernel lacks is said here, before anything starts.

use std::path::{Path, PathBuf};

use super::channel::{Channel, Kind};
use super::disk_root::DiskRoot;
use super::environment::environment;
use super::network;
use super::pack;
use super::spec::{RootAccess, RunSpec, RunSpecError};
use super::{Error, Volume};
use crate::agent::{self, Access, Exec, Mount, Plan};
use crate::devices;
use crate::kernel::{self, Feature, Kernel, Support};
use crate::spec::{MachineSpec, Transport};

/// Tag of the directory that is the root.
const ROOT_TAG: &str = "belljar-root";
/// Tags of other directories begin so.
const VOLUME_TAG: &str = "belljar-volume";
/// Words for the kernel: only what matters is printed.
const QUIET: &str = "quiet";

/// What will be started.
#[derive(Debug)]
pub struct Prepared {
    /// The machine, without the channel to its agent.
    pub(super) machine: MachineSpec,
    pub(super) kernel: Kernel,
    pub(super) channel: Kind,
    pub(super) features: Vec<Feature>,
    pub(super) root: Root,
    pub(super) mounts: Vec<Mount>,
    pub(super) hostname: Option<String>,
    pub(super) init: Option<Vec<String>>,
    pub(super) network: Vec<agent::Network>,
    /// The command; none if the machine is only there for others.
    pub(super) exec: Option<Exec>,
    pub(super) notices: Vec<String>,
}

/// What becomes the guest's root.
#[derive(Debug)]
pub(super) enum Root {
    /// A directory, over virtio-fs.
    Directory(Access),
    /// A directory, packed into the initramfs.
    Packed(PathBuf),
    /// An archive in the initramfs.
    Archive(PathBuf),
    /// A disk.
    Disk(DiskRoot, Access),
}

impl RootAccess {
    fn for_agent(self) -> Access {
        match self {
            Self::Ro => Access::ReadOnly,
            Self::Rw => Access::ReadWrite,
            Self::Overlay => Access::Overlay,
        }
    }
}

impl Prepared {
    /// Finds the kernel, and decides.
    pub fn new(spec: &RunSpec) -> Result<Self, Error> {
        spec.validate()?;
        let mut machine = spec.machine.clone();
        network::add(&mut machine, spec)?;
        let wanted = spec.machine.kernel.as_deref().map(|path| path.to_str().ok_or_else(|| Error::Name(path.into())));
        let kernel = kernel::find(wanted.transpose()?, spec.modules.as_deref())?;
        let mut notices = kernel.notices.clone();
        let basis = basis(spec.machine.transport);
        require(&kernel, &basis)?;
        let channel = Kind::choose(&kernel, &spec.machine).ok_or_else(|| Error::NoChannel(kernel.origin.clone()))?;
        let root = root(spec, &kernel, &mut notices)?;
        machine.kernel = Some(kernel.image.clone());
        consoles(&mut machine, &kernel, spec.verbose)?;
        balloon(&mut machine, &kernel)?;
        kernel_words(&mut machine, spec);
        root_devices(&mut machine, &root, spec)?;
        let mounts = mounts(&mut machine, &kernel, &spec.volumes)?;
        require(&kernel, &device_features(&machine))?;
        let mut features = vec![channel.feature()];
        features.extend(basis);
        features.extend(root.features(&kernel));
        features.extend(device_features(&machine));
        let init = spec.init.as_ref().map(|init| init.split_whitespace().map(str::to_string).collect());
        Ok(Self {
            network: network::for_agent(&machine),
            machine,
            kernel,
            channel,
            features,
            root,
            mounts,
            hostname: spec.hostname.clone(),
            init,
            exec: exec(spec)?,
            notices,
        })
    }

    /// What the agent shall do, when it finds `modules` beside itself.
    pub(super) fn plan(&self, modules: Vec<String>, channel: &Channel, name: &str) -> Plan {
        let root = match &self.root {
            Root::Directory(access) => agent::Root::Fs { tag: ROOT_TAG.into(), access: *access },
            Root::Packed(_) | Root::Archive(_) => agent::Root::Initramfs,
            Root::Disk(disk, access) => {
                agent::Root::Disk { device: "/dev/vda".into(), fstype: disk.fstype.clone(), access: *access }
            }
        };
        Plan {
            modules,
            channel: channel.for_agent(),
            root,
            mounts: self.mounts.clone(),
            hostname: self.hostname.clone().unwrap_or_else(|| name.into()),
            network: self.network.clone(),
            init: self.init.clone(),
        }
    }

    /// What was decided, as lines for people.
    pub fn describe(&self) -> Vec<String> {
        let root = match &self.root {
            Root::Directory(access) => format!("virtio-fs, {}", access_name(*access)),
            Root::Packed(path) => format!("{} packed into the initial RAM file system", path.display()),
            Root::Archive(path) => format!("{} in the initial RAM file system", path.display()),
            Root::Disk(_, access) => format!("disk, {}", access_name(*access)),
        };
        let mut lines = vec![format!("kernel: {}", self.kernel.origin), format!("root: {root}")];
        lines.push(format!("channel to the agent: {}", self.channel.feature().described()));
        lines.extend(self.notices.iter().map(|notice| format!("note: {notice}")));
        lines
    }

    /// The machine's specification as it is now.
    pub fn machine(&self) -> &MachineSpec {
        &self.machine
    }
}

fn access_name(access: Access) -> &'static str {
    match access {
        Access::ReadOnly => "read-only",
        Access::ReadWrite => "read-write",
        Access::Overlay => "with changes thrown away",
    }
}

/// An error that names all of `features` that the kernel lacks.
fn require(kernel: &Kernel, features: &[Feature]) -> Result<(), Error> {
    let lacks: Vec<_> = kernel.lacks(features).into_iter().map(|lack| lack.text).collect();
    if lacks.is_empty() { Ok(()) } else { Err(Error::Lacks { kernel: kernel.origin.clone(), what: lacks.join(", ") }) }
}

fn root(spec: &RunSpec, kernel: &Kernel, notices: &mut Vec<String>) -> Result<Root, Error> {
    let access = overlay_or_less(spec, kernel, notices)?;
    if let Some(path) = &spec.disk_root {
        return Ok(Root::Disk(DiskRoot::look_at(path)?, access));
    }
    let path = spec.root_path();
    let found = std::fs::metadata(path).map_err(|source| Error::Root { path: path.into(), source })?;
    if !found.is_dir() {
        if spec.access.is_some() {
            return Err(RunSpecError::AccessOfArchive(path.into()).into());
        }
        return Ok(Root::Archive(path.into()));
    }
    let Some(lack) = kernel.lacks(&[Feature::VirtioFs]).into_iter().next() else { return Ok(Root::Directory(access)) };
    let limit = spec.machine.memory.0 / 4;
    match pack::size(path, limit) {
        Some(_) if access != Access::ReadWrite => {
            notices.push(format!("{}: {} is packed into the guest's memory instead", lack.text, path.display()));
            Ok(Root::Packed(path.into()))
        }
        _ => Err(Error::NoFilesystem { lack: lack.text, path: path.into(), limit: crate::spec::Size(limit) }),
    }
}

/// An overlay needs a kernel that has it. Nobody who did not ask for one misses more than the writing.
fn overlay_or_less(spec: &RunSpec, kernel: &Kernel, notices: &mut Vec<String>) -> Result<Access, Error> {
    let access = spec.root_access().for_agent();
    if access != Access::Overlay {
        return Ok(access);
    }
    match (kernel.lacks(&[Feature::Overlay]).into_iter().next(), spec.access) {
        (None, _) => Ok(access),
        (Some(lack), None) => {
            notices.push(format!("{}: the root is read-only", lack.text));
            Ok(Access::ReadOnly)
        }
        (Some(lack), Some(_)) => Err(Error::Lacks { kernel: kernel.origin.clone(), what: lack.text }),
    }
}

impl Root {
    fn features(&self, kernel: &Kernel) -> Vec<Feature> {
        let overlay = |access: &Access| (*access == Access::Overlay).then_some(Feature::Overlay);
        match self {
            Self::Directory(access) => [Some(Feature::VirtioFs), overlay(access)].into_iter().flatten().collect(),
            Self::Packed(_) | Self::Archive(_) => Vec::new(),
            Self::Disk(disk, access) => {
                disk.features(kernel).into_iter().chain(overlay(access)).chain([Feature::VirtioBlk]).collect()
            }
        }
    }
}

/// Consoles go to the log only, or to standard error, unless the specification has its own.
pub(super) fn consoles(machine: &mut MachineSpec, kernel: &Kernel, verbose: bool) -> Result<(), Error> {
    if ["serial", "console"].iter().any(|name| machine.device_options(name).next().is_some()) {
        return Ok(());
    }
    let to = if verbose { "to=stderr" } else { "to=null" };
    let serial = !matches!(kernel.support(Feature::Serial), Support::Missing { .. });
    let virtio = !serial && kernel.lacks(&[Feature::VirtioConsole]).is_empty();
    add(machine, "serial", if virtio { "to=off" } else { to })?;
    if virtio {
        add(machine, "console", to)?;
    }
    Ok(())
}

/// What every run needs, with the devices where they are.
fn basis(transport: Transport) -> Vec<Feature> {
    let bus = |feature: &Feature| match (feature, transport) {
        (Feature::VirtioPci, Transport::Mmio) => Feature::VirtioMmio,
        (other, _) => *other,
    };
    kernel::FOR_ANY_RUN.iter().map(bus).collect()
}

/// A guest that goes on gives back what it does not use, unless the specification has a balloon of its own.
fn balloon(machine: &mut MachineSpec, kernel: &Kernel) -> Result<(), Error> {
    let supported = matches!(kernel.support(Feature::VirtioBalloon), Support::BuiltIn | Support::Modules(_));
    if supported && machine.device_options("balloon").next().is_none() {
        add(machine, "balloon", "free-page-reporting=on")?;
    }
    Ok(())
}

/// Words before those of the user, which count more. Who replaces the whole line has it as he wants it.
fn kernel_words(machine: &mut MachineSpec, spec: &RunSpec) {
    if machine.cmdline.is_some() {
        return;
    }
    let quiet = if spec.verbose { "" } else { QUIET };
    let oops = if spec.no_panic_on_oops { "" } else { "oops=panic" };
    let user = machine.append.take().unwrap_or_default();
    let words = [quiet, oops, &user];
    let words: Vec<_> = words.into_iter().filter(|word| !word.is_empty()).collect();
    machine.append = Some(words.join(" ")).filter(|text| !text.is_empty());
}

fn root_devices(machine: &mut MachineSpec, root: &Root, spec: &RunSpec) -> Result<(), Error> {
    match root {
        Root::Directory(access) => share(machine, ROOT_TAG, spec.root_path(), *access != Access::ReadWrite),
        Root::Archive(path) if pack::is_cpio(path).unwrap_or(false) => {
            // The kernel unpacks it, and what is ours after it.
            machine.initrd.push(path.clone());
            Ok(())
        }
        Root::Packed(_) | Root::Archive(_) => Ok(()),
        Root::Disk(disk, access) => {
            // Before the user's disks, so that its name in the guest is known.
            let read_only = *access != Access::ReadWrite;
            let text = format!("path={}{}", escaped(&disk.path), if read_only { ",readonly" } else { "" });
            Ok(machine.add_first(device_kind("disk")?, &text)?)
        }
    }
}

fn mounts(machine: &mut MachineSpec, kernel: &Kernel, volumes: &[Volume]) -> Result<Vec<Mount>, Error> {
    if !volumes.is_empty() {
        require(kernel, &[Feature::VirtioFs])?;
    }
    let mut mounts = Vec::new();
    for (number, volume) in volumes.iter().enumerate() {
        let found = std::fs::metadata(&volume.host);
        let found = found.map_err(|source| Error::Volume { path: volume.host.clone(), source })?;
        if !found.is_dir() {
            return Err(Error::VolumeIsNoDirectory(volume.host.clone()));
        }
        let tag = format!("{VOLUME_TAG}{number}");
        share(machine, &tag, &volume.host, volume.read_only)?;
        mounts.push(Mount { tag, path: volume.guest.clone(), read_only: volume.read_only });
    }
    Ok(mounts)
}

fn share(machine: &mut MachineSpec, tag: &str, path: &Path, read_only: bool) -> Result<(), Error> {
    let mode = if read_only { "ro" } else { "rw" };
    add(machine, "fs", &format!("tag={tag},path={},mode={mode}", escaped(path)))
}

/// A path in the text of a device flag.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

pub(super) fn add(machine: &mut MachineSpec, kind: &str, text: &str) -> Result<(), Error> {
    Ok(machine.add_device(device_kind(kind)?, text)?)
}

fn device_kind(name: &str) -> Result<&'static dyn devices::Kind, Error> {
    devices::kind(name).ok_or_else(|| Error::NoDevice(name.into()))
}

/// What drivers the devices of the specification need.
fn device_features(machine: &MachineSpec) -> Vec<Feature> {
    let table = [
        ("console", Feature::VirtioConsole),
        ("port", Feature::VirtioConsole),
        ("disk", Feature::VirtioBlk),
        ("net", Feature::VirtioNet),
        ("rng", Feature::VirtioRng),
        ("vsock", Feature::Vsock),
        ("balloon", Feature::VirtioBalloon),
        ("fs", Feature::VirtioFs),
    ];
    let has = |name: &str| machine.device_options(name).next().is_some();
    table.into_iter().filter(|(name, _)| has(name)).map(|(_, feature)| feature).collect()
}

fn exec(spec: &RunSpec) -> Result<Option<Exec>, Error> {
    if spec.command.is_empty() {
        return Ok(None);
    }
    let host_root = spec.root_path() == Path::new("/") && spec.disk_root.is_none();
    // As the guest's root is the host's, so is its working directory.
    let here = || if host_root { std::env::current_dir().ok() } else { None };
    Ok(Some(Exec {
        env: environment(&spec.env, &spec.env_file)?,
        cwd: spec.workdir.clone().or_else(here),
        cwd_or_root: spec.workdir.is_none(),
        user: spec.user.clone(),
        ..Exec::new(&spec.command)
    }))
}
