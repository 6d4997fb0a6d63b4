//! Kernels that are no packages, copied into the store's layout.

use std::fs;
use std::io;
use std::path::Path;

use super::super::modules::is_build_tree;
use super::super::store::Note;
use super::super::{Error, Kernel};
use crate::loader;

/// Lists that are copied with the modules, if they are there.
const LISTS: [&str; 4] = ["modules.dep", "modules.builtin", "modules.order", "modules.builtin.modinfo"];

/// Copies `kernel`, its configuration and all of its modules, as they are, below the empty directory `into`. `name` is
/// for a kernel that does not tell its release.
pub fn copy(kernel: &Kernel, name: Option<&str>, into: &Path) -> Result<Note, Error> {
    let origin = kernel.origin.clone();
    let release = kernel.release.as_deref().or(name).ok_or_else(|| Error::Nameless(kernel.image.clone()))?;
    let boot = into.join("boot");
    let is_elf = fs::File::open(&kernel.image).is_ok_and(|file| loader::is_elf(&file));
    let image = if is_elf { "vmlinux" } else { "vmlinuz" };
    make(&boot)?;
    put(&kernel.image, &boot.join(format!("{image}-{release}")))?;
    if let Some(config) = kernel.config_file() {
        put(config, &boot.join(format!("config-{release}")))?;
    }
    if let (Some(from), Some(tree)) = (kernel.modules_directory(), kernel.tree()) {
        let to = into.join("lib/modules").join(release);
        // A build tree lists its modules for itself; here they are where they would be installed.
        let (lists, below) = if is_build_tree(from) { (&LISTS[1..2], "kernel") } else { (&LISTS[..], "") };
        for name in lists.iter().filter(|name| from.join(name).is_file()) {
            make(&to)?;
            put(&from.join(name), &to.join(name))?;
        }
        for (file, path) in tree.paths() {
            let to = to.join(below).join(file);
            make(to.parent().unwrap_or(into))?;
            put(&path, &to)?;
        }
    }
    Ok(Note { origin, release: Some(release.to_owned()) })
}

fn make(directory: &Path) -> Result<(), Error> {
    fs::create_dir_all(directory).map_err(|source| Error::Write { path: directory.to_owned(), source })
}

/// Copies a file's content, not who may read it.
fn put(from: &Path, to: &Path) -> Result<(), Error> {
    let mut source = super::compressed::open(from).map_err(|source| Error::Read { path: from.to_owned(), source })?;
    let copied = fs::File::create(to).and_then(|mut file| io::copy(&mut source, &mut file));
    copied.map(drop).map_err(|source| Error::Write { path: to.to_owned(), source })
}
