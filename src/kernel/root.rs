//! Kernels in directories: as distributions install them below a root (`boot/vmlinuz-RELEASE`,
//! `lib/modules/RELEASE/`), in build trees, or simply beside their configuration. Nothing is opened here but to see
//! whether this user may.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

use super::modules::is_build_tree;
use super::release::{compare, is_numbered, is_release};

/// Where modules are below a root.
const MODULES: [&str; 2] = ["lib/modules", "usr/lib/modules"];
/// How images in `boot` are called, before their release.
const IMAGES: [&str; 4] = ["vmlinuz-", "vmlinux-", "bzImage-", "kernel-"];
/// How an image is called that has a directory to itself.
const ALONE: [&str; 3] = ["bzImage", "vmlinuz", "vmlinux"];
/// Files and directories that show that a directory is `lib/modules/RELEASE`.
const LISTS: [&str; 2] = ["modules.dep", "modules.order"];
const DIRECTORIES: [&str; 3] = ["kernel", "updates", "extra"];

/// A kernel and what is with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// The image.
    pub image: PathBuf,
    /// The release, as far as names tell.
    pub release: Option<String>,
    /// A configuration file.
    pub config: Option<PathBuf>,
    /// The directory of its modules.
    pub modules: Option<PathBuf>,
    /// It was built here: the configuration file may be newer than the kernel.
    pub built_here: bool,
}

/// The kernel `release` that is installed below `root`.
pub fn installed(root: &Path, release: &str) -> Option<Found> {
    if !is_release(release) {
        return None;
    }
    let boot = IMAGES.iter().map(|prefix| root.join("boot").join(format!("{prefix}{release}")));
    let beside = MODULES.iter().map(|place| root.join(place).join(release).join("vmlinuz"));
    let image = boot.chain(beside).find(|path| path.is_file())?;
    let modules = modules_below(root, release);
    let config = [
        Some(root.join("boot").join(format!("config-{release}"))),
        modules.as_ref().map(|path| path.join("config")),
        image.parent().map(|path| path.join("config")),
    ];
    let config = config.into_iter().flatten().find(|path| path.is_file());
    Some(Found { image, release: Some(release.to_owned()), config, modules, built_here: false })
}

/// The modules of the kernel `release` below `root`.
pub fn modules_below(root: &Path, release: &str) -> Option<PathBuf> {
    MODULES.iter().map(|place| root.join(place).join(release)).find(|path| holds_modules(path))
}

fn holds_modules(path: &Path) -> bool {
    LISTS.iter().any(|name| path.join(name).is_file()) || DIRECTORIES.iter().any(|name| path.join(name).is_dir())
}

/// Releases of the kernels that are installed below `root`, the newest first.
pub fn releases(root: &Path) -> Vec<String> {
    let boot = names(&root.join("boot")).into_iter().filter_map(|name| {
        let release = IMAGES.iter().find_map(|prefix| name.strip_prefix(prefix))?;
        Some(release.to_owned())
    });
    let beside = MODULES.iter().flat_map(|place| names(&root.join(place)));
    let all = boot.chain(beside);
    // `make install` leaves the one before as .old.
    let proper = |name: &String| is_numbered(name) && !name.ends_with(".old");
    let mut releases: Vec<_> = all.filter(|name| proper(name) && installed(root, name).is_some()).collect();
    releases.sort_by(|a, b| compare(b, a).then_with(|| a.cmp(b)));
    releases.dedup();
    releases
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

/// The kernel in the directory `path`, whatever kind of directory that is. An error says what is wrong with it.
pub fn in_directory(path: &Path) -> Result<Found, &'static str> {
    if is_build_tree(path) {
        return built(path).ok_or("it is a kernel tree in which none has been built: run make in it first");
    }
    if let Some(release) = releases(path).first() {
        return installed(path, release).ok_or("its kernel has just vanished");
    }
    let image = ALONE.iter().map(|name| path.join(name)).find(|path| path.is_file());
    image
        .map(|image| beside(&image))
        .ok_or("it is no kernel tree, and has neither bzImage, vmlinuz or vmlinux nor boot/vmlinuz-RELEASE in it")
}

/// What was built in a kernel tree. A bzImage that is older than vmlinux was made from one before.
fn built(tree: &Path) -> Option<Found> {
    let time = |path: &PathBuf| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let (packed, elf) = (tree.join("arch/x86/boot/bzImage"), tree.join("vmlinux"));
    let image = match (time(&packed), time(&elf)) {
        (Some(packed_at), Some(elf_at)) if packed_at < elf_at => elf,
        (Some(_), _) => packed,
        (None, Some(_)) => elf,
        (None, None) => return None,
    };
    Some(of_build_tree(tree, image))
}

fn of_build_tree(tree: &Path, image: PathBuf) -> Found {
    let release = fs::read_to_string(tree.join("include/config/kernel.release")).ok();
    let release = release.map(|text| text.trim().to_owned()).filter(|text| is_release(text));
    let config = Some(tree.join(".config")).filter(|path| path.is_file());
    Found { image, release, config, modules: Some(tree.to_owned()), built_here: true }
}

/// What is known of the kernel in the file `image` by where it is.
pub fn beside(image: &Path) -> Found {
    let directory = image.parent().unwrap_or(Path::new("/"));
    let trees = [Some(directory), directory.ancestors().nth(3)].into_iter().flatten();
    if let Some(tree) = trees.into_iter().find(|path| is_build_tree(path)) {
        return of_build_tree(tree, image.to_owned());
    }
    let name = image.file_name().and_then(OsStr::to_str).unwrap_or_default();
    let release = IMAGES.iter().find_map(|prefix| name.strip_prefix(prefix));
    // An image in lib/modules/RELEASE.
    let release = release.or_else(|| directory.file_name()?.to_str().filter(|_| holds_modules(directory)));
    let release = release.filter(|text| is_numbered(text));
    let names = release.map(|release| format!("config-{release}"));
    let config = names.iter().map(String::as_str).chain(["config"]).map(|name| directory.join(name));
    let config = config.into_iter().find(|path| path.is_file());
    Found { image: image.to_owned(), release: release.map(str::to_owned), config, modules: None, built_here: false }
}

/// The modules of the kernel `release`, whose image is `image`, by where that is.
pub fn modules_beside(image: &Path, release: &str) -> Option<PathBuf> {
    let directory = image.parent()?;
    if holds_modules(directory) {
        return Some(directory.to_owned());
    }
    let above = directory.parent().filter(|_| directory.file_name() == Some(OsStr::new("boot")));
    let roots = [Some(directory.to_owned()), above.map(Path::to_owned), Some(directory.join("modules"))];
    roots.into_iter().flatten().find_map(|root| modules_below(&root, release))
}

/// The modules in `directory`, which somebody named: a root, `lib/modules`, `lib/modules/RELEASE` or a build tree.
pub fn modules_in(directory: &Path, release: Option<&str>) -> Option<PathBuf> {
    let below = release.and_then(|release| modules_below(directory, release));
    let within = release.map(|release| directory.join(release)).filter(|path| holds_modules(path));
    let itself = || (holds_modules(directory) || is_build_tree(directory)).then(|| directory.to_owned());
    below.or(within).or_else(itself)
}
