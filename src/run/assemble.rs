//! The initial RAM file system of one run, made in memory: the agent, its plan, the modules, and the root if that is in
//! there too. The kernel unpacks it and starts the agent as its init.

use std::fs::File;

use super::channel::Channel;
use super::prepare::{Prepared, Root};
use super::{Error, pack};
use crate::agent;
use crate::kernel::Feature;
use crate::loader::initramfs::{Archive, Device};

/// Where modules are.
const MODULES: &str = "/belljar/modules";

/// Archives in the order in which the kernel unpacks them.
pub(super) fn initramfs(prepared: &Prepared, channel: &Channel, name: &str) -> Result<File, Error> {
    let mut archive = Archive::in_memory()?;
    match &prepared.root {
        Root::Packed(path) => pack::directory(path, &mut archive)?,
        Root::Archive(path) if !pack::is_cpio(path).unwrap_or(false) => pack::tar(path, &mut archive)?,
        _ => {}
    }
    for directory in ["/dev", "/proc", "/sys", "/run", "/belljar"] {
        archive.directory(directory, 0o755)?;
    }
    archive.node("/dev/console", 0o600, Device::Character(5, 1))?;
    let mut modules = Vec::new();
    for (number, module) in prepared.kernel.modules(&distinct(&prepared.features))?.into_iter().enumerate() {
        let path = format!("{MODULES}/{number:02}-{}.ko", module.name);
        archive.file(&path, 0o600, &module.data)?;
        modules.push(path);
    }
    archive.file(agent::PLAN_PATH, 0o600, &prepared.plan(modules, channel, name).to_bytes())?;
    archive.file("/init", 0o755, agent::PROGRAM)?;
    Ok(archive.finish()?)
}

fn distinct(features: &[Feature]) -> Vec<Feature> {
    let mut distinct = Vec::with_capacity(features.len());
    features.iter().for_each(|feature| {
        if !distinct.contains(feature) {
            distinct.push(*feature);
        }
    });
    distinct
}
