//! The modules of one kernel: where they are, which are needed for something, in which order. No `depmod` has to have
//! been here: paths come from `modules.dep` or `modules.order` if there is one, else from the directories themselves,
//! and dependencies from the modules. Only the modules that are needed are opened.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{Error, compressed, modinfo};

/// Distributions have 5,000 modules in 500 directories, a build tree 50,000 files more.
const MAX_FILES: usize = 1 << 20;
const MAX_DEPTH: usize = 40;
/// `modules.dep` has some 400 KiB.
const MAX_LIST: u64 = 64 << 20;
/// The largest modules have 20 MiB, with debugging information ten times that.
const MAX_MODULE: u64 = 512 << 20;
/// All that go into one machine.
const MAX_TOTAL: u64 = 1 << 30;
/// Modules that need modules that need modules.
const MAX_CHAIN: usize = 64;

/// A module, ready to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Module {
    /// Name, with `_` for `-`.
    pub name: String,
    /// The ELF file, unpacked.
    pub data: Vec<u8>,
}

/// The modules of a kernel.
#[derive(Debug)]
pub struct Tree {
    root: PathBuf,
    /// By name: where they may be, relative to the root.
    files: HashMap<String, PathBuf>,
    /// Names of what could be a module and is none, if that is known.
    builtin: Option<HashSet<String>>,
}

impl Tree {
    /// What is in `root`, a directory `/lib/modules/RELEASE`, or the top of a kernel's build tree.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let read = |source| Error::Read { path: root.to_owned(), source };
        let mut files = listed(root).map_err(read)?;
        if files.is_empty() {
            files = found(root).map_err(read)?;
        }
        let builtin = optional(&root.join("modules.builtin")).map_err(read)?;
        let builtin = builtin.map(|text| text.lines().filter_map(|line| name_of(Path::new(line))).collect());
        Ok(Self { root: root.to_owned(), files, builtin })
    }

    /// Whether there is a module of this name.
    pub fn has(&self, name: &str) -> bool {
        self.path(name).is_some()
    }

    /// Whether what could be the module `name` is in the kernel itself.
    pub fn is_builtin(&self, name: &str) -> bool {
        self.builtin.as_ref().is_some_and(|names| names.contains(&normal(name)))
    }

    /// Whether it is known what is built in.
    pub fn knows_builtin(&self) -> bool {
        self.builtin.is_some()
    }

    /// All modules that are there: where each would be installed, below `kernel` in a build tree, and where it is.
    pub fn paths(&self) -> impl Iterator<Item = (&Path, PathBuf)> {
        self.files.values().filter_map(|file| Some((file.as_path(), self.at(file)?)))
    }

    fn path(&self, name: &str) -> Option<PathBuf> {
        self.at(self.files.get(&normal(name))?)
    }

    fn at(&self, file: &Path) -> Option<PathBuf> {
        let path = self.root.join(file);
        if path.is_file() {
            return Some(path);
        }
        // Build trees of before Linux 6.2 list what `make modules_install` would install.
        file.strip_prefix("kernel").ok().map(|file| self.root.join(file)).filter(|path| path.is_file())
    }

    /// The modules `names` and all that they need, each after what it needs. `release` is the kernel's, if known.
    pub fn load<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
        release: Option<&str>,
    ) -> Result<Vec<Module>, Error> {
        let mut loading = Loading { tree: self, release, seen: HashSet::new(), total: 0, modules: Vec::new() };
        for name in names {
            loading.add(name, None, MAX_CHAIN)?;
        }
        Ok(loading.modules)
    }

    /// The module that another one asks for by `alias`, where it would be glad to have it. Aliases are in the modules,
    /// which would all have to be opened; implementations of the crypto layer, which these are, have their names.
    fn by_alias(&self, alias: &str) -> Option<String> {
        let alias = alias.strip_prefix("crypto-").unwrap_or(alias);
        [alias.to_owned(), format!("{alias}_generic")].into_iter().find(|name| self.has(name))
    }
}

/// Loading in progress.
struct Loading<'a> {
    tree: &'a Tree,
    release: Option<&'a str>,
    seen: HashSet<String>,
    total: u64,
    modules: Vec<Module>,
}

impl Loading<'_> {
    fn add(&mut self, name: &str, needed_by: Option<&str>, chain: usize) -> Result<(), Error> {
        let name = normal(name);
        if self.seen.contains(&name) || self.tree.is_builtin(&name) {
            return Ok(());
        }
        let missing = || Error::NoModule {
            name: name.clone(),
            by: needed_by.map(|by| format!(", which {by} needs,")).unwrap_or_default(),
            root: self.tree.root.clone(),
        };
        let path = self.tree.path(&name).ok_or_else(missing)?;
        let bad = |reason: &'static str| Error::BadModule { path: path.clone(), reason };
        let chain = chain.checked_sub(1).ok_or_else(|| bad("modules need each other in too long a chain"))?;
        self.seen.insert(name.clone());
        let data = compressed::read(&path, MAX_MODULE).map_err(|source| Error::Read { path: path.clone(), source })?;
        self.total += data.len() as u64;
        if self.total > MAX_TOTAL {
            return Err(bad("the modules for this machine are more than 1 GiB"));
        }
        let info = modinfo::parse(&data).ok_or_else(|| bad("it is no kernel module for x86-64"))?;
        if let (Some(kernel), Some(module)) = (self.release, &info.release)
            && kernel != module
        {
            return Err(Error::OtherRelease { path, module: module.clone(), kernel: kernel.to_owned() });
        }
        let before = info.before.iter().filter_map(|alias| self.tree.by_alias(alias));
        let before: Vec<_> = before.filter(|other| normal(other) != name).collect();
        for other in before.iter().chain(&info.depends) {
            self.add(other, Some(&name), chain)?;
        }
        self.modules.push(Module { name, data });
        Ok(())
    }
}

/// A module's name as the kernel has it.
pub fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// The name of the module in the file `path`, none if it is no module's.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|suffix| file.strip_suffix(suffix))?;
    Some(normal(stem))
}

fn optional(path: &Path) -> io::Result<Option<String>> {
    match compressed::read(path, MAX_LIST) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// What `modules.dep` (kmod's modules.dep(5)) or, in a build tree, `modules.order` lists.
fn listed(root: &Path) -> io::Result<HashMap<String, PathBuf>> {
    if let Some(text) = optional(&root.join("modules.dep"))? {
        let paths = text.lines().filter_map(|line| line.split_once(':')).map(|(path, _)| PathBuf::from(path));
        return Ok(paths.filter_map(|path| Some((name_of(&path)?, path))).collect());
    }
    // Beside installed modules it lists what was built, not what is there.
    if root.join("kernel").is_dir() && !is_build_tree(root) {
        return Ok(HashMap::new());
    }
    let Some(text) = optional(&root.join("modules.order"))? else { return Ok(HashMap::new()) };
    let paths = text.lines().map(|line| match line.strip_suffix(".o") {
        Some(stem) => PathBuf::from(format!("{stem}.ko")),
        None => PathBuf::from(line),
    });
    Ok(paths.filter_map(|path| Some((name_of(&path)?, path))).collect())
}

/// Whether `path` is the top of a tree in which a kernel was configured or built.
pub fn is_build_tree(path: &Path) -> bool {
    path.join("include/config").is_dir() || path.join("arch/x86/boot").is_dir()
}

/// All files with names of modules below `root`. Links to directories are not followed: there may be loops, and
/// `build` leads away.
fn found(root: &Path) -> io::Result<HashMap<String, PathBuf>> {
    let mut files = HashMap::new();
    let mut left = vec![(PathBuf::new(), 0)];
    let mut seen = 0;
    while let Some((directory, depth)) = left.pop() {
        for entry in fs::read_dir(root.join(&directory))? {
            let entry = entry?;
            seen += 1;
            if seen > MAX_FILES || depth > MAX_DEPTH {
                return Err(io::Error::other("there are too many files to be the modules of a kernel"));
            }
            let path = directory.join(entry.file_name());
            if entry.file_type()?.is_dir() {
                if !skipped(&entry.file_name()) {
                    left.push((path, depth + 1));
                }
            } else if let Some(name) = name_of(&path) {
                insert(&mut files, name, path);
            }
        }
    }
    Ok(files)
}

/// Has no modules and many files.
fn skipped(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b".") || name == "vdso" || name == "Documentation"
}

/// Of two modules with the same name, `depmod` prefers the one under `updates`.
fn insert(files: &mut HashMap<String, PathBuf>, name: String, path: PathBuf) {
    match files.entry(name) {
        std::collections::hash_map::Entry::Vacant(entry) => {
            entry.insert(path);
        }
        std::collections::hash_map::Entry::Occupied(mut entry) => {
            let rank = |path: &Path| (!path.starts_with("updates"), path.to_owned());
            if rank(&path) < rank(entry.get()) {
                entry.insert(path);
            }
        }
    }
}
