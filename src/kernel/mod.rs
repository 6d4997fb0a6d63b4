//! Kernels without preparation: finding one, its modules and its configuration, wherever they are, and saying before a
//! start what it lacks. Called by the verbs that start machines and by `belljar kernel`, on the main thread, before
//! any guest code runs.
//!
//! | file | what it does |
//! | --- | --- |
//! | `find` | from what a user writes, or nothing, to a kernel |
//! | `root` | kernels in directories: installed, built, or alone |
//! | `package` | Debian and RPM packages, archives |
//! | `store` | kernels that belljar keeps |
//! | `config`, `symbols`, `feature` | what a kernel has and lacks |
//! | `modules`, `modinfo` | which modules are needed for that, in which order |

pub(crate) mod compressed;
mod config;
mod error;
mod feature;
mod find;
#[cfg(any(test, feature = "testkit"))]
pub(crate) mod fixtures;
mod modinfo;
mod modules;
pub mod package;
mod release;
mod root;
mod search;
pub mod store;
mod symbols;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::loader::{self, cache};

use config::Config;
use modules::Tree;
use root::Found;
use symbols::Symbols;

pub use error::Error;
pub use feature::{FOR_A_DIRECTORY, FOR_ANY_RUN, Feature, Lack, Support};
pub use find::{Places, find, image};
pub use modules::Module;

/// A kernel, with what is known of it.
#[derive(Debug)]
pub struct Kernel {
    /// A bzImage or an ELF file.
    pub image: PathBuf,
    /// Its release, `uname -r`, if it can be told.
    pub release: Option<String>,
    /// Where it comes from, for messages: `/boot/vmlinuz-6.1.0-18-amd64, the newest installed`.
    pub origin: String,
    /// What the user should hear about how it was found, a sentence each without full stop.
    pub notices: Vec<String>,
    found: Found,
    config: OnceLock<Option<Config>>,
    tree: OnceLock<Option<Tree>>,
    symbols: OnceLock<Option<Symbols>>,
}

impl Kernel {
    /// The kernel that was found somewhere. An error if the image is none.
    fn new(found: Found, origin: String) -> Result<Self, Error> {
        let release = release_of(&found)?;
        let mut kernel = Self {
            image: found.image.clone(),
            release,
            origin,
            notices: Vec::new(),
            found,
            config: OnceLock::new(),
            tree: OnceLock::new(),
            symbols: OnceLock::new(),
        };
        if let (None, Some(release)) = (&kernel.found.modules, &kernel.release) {
            kernel.found.modules = root::modules_beside(&kernel.image, release);
        }
        Ok(kernel)
    }

    /// The directory of its modules: `lib/modules/RELEASE` or the tree in which it was built.
    pub fn modules_directory(&self) -> Option<&Path> {
        self.found.modules.as_deref()
    }

    /// A file with its configuration.
    fn config_file(&self) -> Option<&Path> {
        self.found.config.as_deref()
    }

    /// Looks for the modules in `directory` and nowhere else.
    fn set_modules(&mut self, directory: &Path) -> Result<(), Error> {
        let modules = root::modules_in(directory, self.release.as_deref());
        let release = || self.release.iter().map(|release| format!(" ({release})")).collect();
        let none = || Error::NoModules { directory: directory.to_owned(), release: release() };
        self.found.modules = Some(modules.ok_or_else(none)?);
        self.tree = OnceLock::new();
        Ok(())
    }

    /// The modules that `features` need, each after those that it depends on itself. Features that are built in, or that
    /// [`Kernel::lacks`] names, add none.
    pub fn modules(&self, features: &[Feature]) -> Result<Vec<Module>, Error> {
        let support = features.iter().map(|&feature| self.support(feature));
        let names: Vec<_> =
            support.filter_map(|s| if let Support::Modules(names) = s { Some(names) } else { None }).collect();
        let Some(tree) = self.tree() else { return Ok(Vec::new()) };
        tree.load(names.iter().flatten().map(String::as_str), self.release.as_deref())
    }

    /// The same by names of modules, for those that are no [`Feature`]. What is built in is passed over.
    pub fn modules_by_name(&self, names: &[&str]) -> Result<Vec<Module>, Error> {
        let Some(tree) = self.tree() else { return Ok(Vec::new()) };
        tree.load(names.iter().copied(), self.release.as_deref())
    }

    /// So many modules are with it.
    pub fn number_of_modules(&self) -> usize {
        self.tree().map_or(0, |tree| tree.paths().count())
    }

    /// Bytes of image, configuration and modules.
    pub fn size(&self) -> u64 {
        let modules = self.tree().into_iter().flat_map(Tree::paths).map(|(_, path)| path);
        let files = modules.chain([self.image.clone()]).chain(self.config_file().map(Path::to_owned));
        files.filter_map(|path| Some(path.metadata().ok()?.len())).sum()
    }

    fn tree(&self) -> Option<&Tree> {
        let open = || {
            let path = self.modules_directory()?;
            Tree::open(path).inspect_err(|error| tracing::warn!("{}: {error}", path.display())).ok()
        };
        self.tree.get_or_init(open).as_ref()
    }

    fn config(&self) -> Option<&Config> {
        self.config.get_or_init(|| self.read_config()).as_ref()
    }

    /// The file that came with an installed kernel speaks for it. Where kernels are built, `.config` may have changed.
    fn read_config(&self) -> Option<Config> {
        let from_file = || {
            let path = self.found.config.as_ref()?;
            Config::read(path).inspect_err(|error| tracing::warn!("{}: {error}", path.display())).ok()
        };
        if self.found.built_here { self.embedded().or_else(from_file) } else { from_file().or_else(|| self.embedded()) }
    }

    fn embedded(&self) -> Option<Config> {
        Config::embedded(&self.vmlinux()?).ok()?
    }

    fn symbols(&self) -> Option<&Symbols> {
        self.symbols.get_or_init(|| Symbols::read(&self.vmlinux()?)).as_ref()
    }

    fn vmlinux(&self) -> Option<File> {
        let vmlinux = loader::vmlinux(&self.image, &cache::Policy::User);
        vmlinux.inspect_err(|error| tracing::debug!(%error, "the image cannot be looked into")).ok()?
    }
}

/// For the fuzz target of this name.
#[cfg(any(test, feature = "testkit"))]
pub(crate) fn look_at_module(data: &[u8]) {
    drop(modinfo::parse(data));
}

/// The release: what a bzImage says, then what the place says, then what an ELF file says.
fn release_of(found: &Found) -> Result<Option<String>, Error> {
    // It becomes part of paths: what a file says must be no path.
    let said = loader::release(&found.image)?.filter(|text| release::is_release(text));
    let elf = compressed::open(&found.image).map_err(|source| Error::Read { path: found.image.clone(), source })?;
    let placed = found.release.clone().filter(|text| release::is_numbered(text));
    if !loader::is_elf(&elf) {
        return Ok(said.or(placed));
    }
    if placed.is_some() {
        return Ok(placed);
    }
    let banner = search::release_in(&elf).map_err(|source| Error::Read { path: found.image.clone(), source })?;
    Ok(banner.or(said))
}
