//! From what a user writes after `--kernel`, or from nothing, to a kernel.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::release::compare;
use super::store::{Keep, Store};
use super::{Error, Kernel, package, root};
use crate::loader;

/// Where kernels are looked for.
#[derive(Debug, Clone)]
pub struct Places {
    /// Below this, kernels are installed.
    pub root: PathBuf,
    /// Release of the host's own kernel.
    pub running: Option<String>,
    /// Kernels that belljar keeps.
    pub store: Option<Store>,
    /// Packages that were unpacked to be used once.
    pub unpacked: Option<Store>,
}

/// Finds the kernel `wanted`: an image, a build tree or other directory, a package, an installed release, a kernel that
/// belljar keeps; none means the host's own if it can be read, else the newest installed, else the newest kept one.
/// Its modules are with it, or in `modules`.
pub fn find(wanted: Option<&str>, modules: Option<&Path>) -> Result<Kernel, Error> {
    Places::host().find(wanted, modules)
}

/// The image of `wanted`, for who needs nothing else of it. A file that is no package is taken as it is; who loads it
/// will look at it.
pub fn image(wanted: &Path) -> Result<PathBuf, Error> {
    match wanted.to_str() {
        Some(text) if !is_plain_file(wanted) => Ok(find(Some(text), None)?.image),
        _ => Ok(wanted.to_owned()),
    }
}

fn is_plain_file(path: &Path) -> bool {
    path.is_file() && matches!(package::kind(path), Ok(None) | Err(_))
}

impl Places {
    /// Those of this host and user.
    pub fn host() -> Self {
        Self {
            root: "/".into(),
            running: Some(rustix::system::uname().release().to_string_lossy().into_owned()),
            store: Store::user(),
            unpacked: Store::unpacked(),
        }
    }

    /// See [`find`].
    pub fn find(&self, wanted: Option<&str>, modules: Option<&Path>) -> Result<Kernel, Error> {
        let mut kernel = match wanted {
            None => self.default()?,
            Some(text) => self.wanted(text)?,
        };
        if let Some(directory) = modules {
            kernel.set_modules(directory)?;
        } else if kernel.found.modules.is_none() {
            // The image may have been copied from where it was installed.
            kernel.found.modules = kernel.release.as_ref().and_then(|release| root::modules_below(&self.root, release));
        }
        Ok(kernel)
    }

    fn wanted(&self, text: &str) -> Result<Kernel, Error> {
        let path = Path::new(text);
        if path.exists() || text.contains('/') || text.is_empty() {
            return self.at(path);
        }
        if let Some(found) = root::installed(&self.root, text) {
            let origin = format!("{}, installed", found.image.display());
            return Kernel::new(found, origin);
        }
        let kept = self.store.as_ref().and_then(|store| store.kernel(text));
        kept.unwrap_or_else(|| Err(Error::Unknown { name: text.to_owned() }))
    }

    /// The kernel in a file or directory.
    pub(super) fn at(&self, path: &Path) -> Result<Kernel, Error> {
        let read = |source| Error::Read { path: path.to_owned(), source };
        let missing = |source| loader::Error::Read { path: path.to_owned(), source };
        let real = path.canonicalize().map_err(missing)?;
        if real.is_dir() {
            let found =
                root::in_directory(&real).map_err(|reason| Error::Directory { path: path.to_owned(), reason })?;
            let what = if found.built_here { "build tree" } else { "directory" };
            let origin = format!("{what} {}", real.display());
            return Kernel::new(found, origin);
        }
        match package::kind(&real).map_err(read)? {
            Some(_) => self.packed(path, &real),
            None => Kernel::new(root::beside(&real), real.display().to_string()),
        }
    }

    /// The kernel in a package, which is unpacked the first time.
    fn packed(&self, path: &Path, real: &Path) -> Result<Kernel, Error> {
        let store = self.unpacked.as_ref().ok_or(Error::NoHome("BELLJAR_CACHE"))?;
        let name = package::identity(real).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let mut kernel = store.once(&name, |into| package::fill(&[path], into))?;
        kernel.origin = format!("package {}", path.display());
        Ok(kernel)
    }

    /// Every kernel that can be had by its name: the name, whether it is a kept one, and the kernel, or why not.
    pub fn all(&self) -> Vec<(String, bool, Result<Kernel, Error>)> {
        let kept = self.store.iter().flat_map(|store| {
            let all = store.names().into_iter();
            all.filter_map(move |name| Some((name.clone(), true, store.kernel(&name)?)))
        });
        let installed = root::releases(&self.root).into_iter().filter_map(|release| {
            let found = root::installed(&self.root, &release)?;
            let origin = format!("{}, installed", found.image.display());
            Some((release, false, Kernel::new(found, origin)))
        });
        installed.chain(kept).collect()
    }

    /// Keeps a kernel: the one in these packages, or the one that [`Places::find`] finds; its name and itself.
    pub fn keep(&self, from: &[&str], modules: Option<&Path>, keep: Keep<'_>) -> Result<(String, Kernel), Error> {
        let store = self.store.as_ref().ok_or(Error::NoHome("XDG_DATA_HOME"))?;
        let paths: Vec<_> = from.iter().map(Path::new).collect();
        let is_package = |path: &&Path| matches!(package::kind(path), Ok(Some(_)));
        if let [_, _, ..] = paths.as_slice() {
            let unreadable = |path: &&Path| Some((path.to_path_buf(), package::kind(path).err()?));
            if let Some((path, source)) = paths.iter().find_map(unreadable) {
                return Err(Error::Read { path, source });
            }
        }
        let name = if modules.is_none() && paths.iter().all(is_package) {
            store.add(keep, |into| package::fill(&paths, into))?
        } else if let [one] = from {
            let kernel = self.find(Some(one), modules)?;
            store.add(keep, |into| package::copy(&kernel, keep.name, into))?
        } else {
            let other = paths.iter().find(|path| !is_package(path)).copied().unwrap_or(Path::new("--modules"));
            return Err(Error::NotTogether(other.to_owned()));
        };
        let kernel = store.kernel(&name).ok_or_else(|| Error::NotKept { name: name.clone() })??;
        Ok((name, kernel))
    }

    /// Removes the kept kernel `name`.
    pub fn forget(&self, name: &str) -> Result<(), Error> {
        match &self.store {
            Some(store) => store.remove(name),
            None => Err(Error::NotKept { name: name.to_owned() }),
        }
    }

    fn default(&self) -> Result<Kernel, Error> {
        let mut passed_over = Vec::new();
        let newest = root::releases(&self.root);
        let others = newest.iter().filter(|release| self.running.as_ref() != Some(release));
        for release in self.running.iter().chain(others) {
            let Some(found) = root::installed(&self.root, release) else { continue };
            let image = found.image.clone();
            let which = if self.running.as_ref() == Some(release) { "the running one" } else { "the newest installed" };
            match Kernel::new(found, format!("{}, {which}", image.display())) {
                Ok(kernel) => return Ok(kernel.instead_of(&passed_over)),
                Err(error) => passed_over.push(why_not(&image, &error)),
            }
        }
        let kept = self.store.iter().flat_map(Store::names).collect::<Vec<_>>();
        let kept = kept.iter().rev().filter_map(|name| self.store.as_ref()?.kernel(name)?.ok());
        let newest = kept.max_by(|a, b| compare(a.release_or_none(), b.release_or_none()));
        let none = || Error::NoKernel { passed_over: passed_over.iter().map(|text| format!("; {text}")).collect() };
        Ok(newest.ok_or_else(none)?.instead_of(&passed_over))
    }
}

impl Kernel {
    fn release_or_none(&self) -> &str {
        self.release.as_deref().unwrap_or_default()
    }

    /// Says which ones would have been better.
    fn instead_of(mut self, passed_over: &[String]) -> Self {
        let image = self.image.display().to_string();
        self.notices.extend(passed_over.first().map(|text| format!("{text}: using {image}")));
        self
    }
}

/// Why the installed kernel `image` is not taken.
fn why_not(image: &Path, error: &Error) -> String {
    match File::open(image) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            format!("{} cannot be read by this user, which sudo chmod a+r would change", image.display())
        }
        _ => error.to_string(),
    }
}
