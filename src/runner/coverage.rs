//! Coverage out of a guest: what a kernel with `CONFIG_GCOV_KERNEL` has counted (Documentation/dev-tools/gcov.rst), so that
//! gcov and lcov work with it on the host. Called when a test's command has ended, by whoever attends to the guest.
//!
//! In the guest each object that counts has two entries, at the path where it was built: `x.gcda`, the counts, and
//! `x.gcno`, a link to the notes that the compiler left in the build tree. Both tools want the two side by side. That is
//! what they get, as copies, with notes that belong to the same compilation.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use crate::agent::{self, Agent};

/// Where the kernel has it. The agent mounts debugfs.
const COUNTS: &str = "/sys/kernel/debug/gcov";
/// Written to, it sets all counts to zero. Among the counts, but none.
const RESET: &str = "reset";
/// What notes begin with: `gcno` as a little-endian number (gcc's gcov-io.h, and LLVM's the same).
const NOTES_MAGIC: &[u8] = b"oncg";
/// After the magic numbers: version of the format, and a stamp of the compilation.
const HEADER: usize = 12;
/// Directories within each other that are looked into: more than a guest may send.
const DEPTH: usize = 256;

/// There is no coverage.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guest has none, or it did not arrive.
    #[error("no coverage comes from the guest; its kernel needs CONFIG_GCOV_KERNEL and CONFIG_DEBUG_FS: {0}")]
    Guest(#[from] agent::Error),
    /// The kernel could count, but does so nowhere.
    #[error(
        "the guest's kernel counts in none of its files; CONFIG_GCOV_PROFILE_ALL, or GCOV_PROFILE := y in the Makefile of a \
         directory, makes it do so"
    )]
    Nothing,
    /// The host cannot keep it.
    #[error("cannot {what} {}: {source}", path.display())]
    #[allow(missing_docs, reason = "the message says it")]
    Host { what: &'static str, path: PathBuf, source: io::Error },
}

/// What was collected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage {
    /// How many files with counts.
    pub files: usize,
    /// Those for which there are no notes of the same compilation on this host: gcov cannot read them.
    pub without_notes: Vec<PathBuf>,
}

/// Copies the counts of a guest to the directory `into`, below the path of the kernel's build tree, with notes beside them.
/// They are taken from `tree`, where the build tree is now, or else from where it was. What an earlier test left in `into`
/// goes.
pub fn collect(agent: &Agent, tree: Option<&Path>, into: &Path) -> Result<Coverage, Error> {
    if let Some(parent) = into.parent() {
        fs::create_dir_all(parent).map_err(host("make the directory", parent))?;
    }
    match fs::remove_dir_all(into) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(host("replace", into)(e)),
        _ => {}
    }
    agent.copy_out(Path::new(COUNTS), into)?;
    complete(tree, into)
}

/// Puts notes in the place of links.
fn complete(tree: Option<&Path>, into: &Path) -> Result<Coverage, Error> {
    // Not in every copy.
    let _ = fs::remove_file(into.join(RESET));
    let mut found = Found::default();
    found.look(into, DEPTH)?;
    // Whatever they are called and lead to: the guest made them, nobody shall follow them.
    for link in &found.links {
        fs::remove_file(link).map_err(host("remove", link))?;
    }
    let mut coverage = Coverage { files: found.counts.len(), without_notes: Vec::new() };
    for counts in &found.counts {
        let built = counts.strip_prefix(into).unwrap_or(counts).with_extension("gcno");
        match notes_for(counts, &built, tree) {
            Some(notes) => {
                fs::copy(&notes, counts.with_extension("gcno")).map_err(host("copy", &notes))?;
            }
            None => coverage.without_notes.push(counts.clone()),
        }
    }
    if coverage.files == 0 { Err(Error::Nothing) } else { Ok(coverage) }
}

/// What is in a copy of the guest's tree.
#[derive(Debug, Default)]
struct Found {
    counts: Vec<PathBuf>,
    links: Vec<PathBuf>,
}

impl Found {
    fn look(&mut self, directory: &Path, depth: usize) -> Result<(), Error> {
        let list = |source| Error::Host { what: "list", path: directory.into(), source };
        for entry in fs::read_dir(directory).map_err(list)? {
            let entry = entry.map_err(list)?;
            // Of the entry itself, never of what a link leads to.
            let kind = entry.file_type().map_err(list)?;
            let path = entry.path();
            if kind.is_symlink() {
                self.links.push(path);
            } else if kind.is_dir() && depth > 0 {
                self.look(&path, depth - 1)?;
            } else if kind.is_file() && path.extension() == Some(OsStr::new("gcda")) {
                self.counts.push(path);
            }
        }
        Ok(())
    }
}

/// The notes that `counts` belong to: `built` is where they were, relative to the root of the file system. In a tree that
/// has moved they are at the end of that path, however much of it that is.
fn notes_for(counts: &Path, built: &Path, tree: Option<&Path>) -> Option<PathBuf> {
    let stamp = header(counts)?;
    let ends = std::iter::successors(Some(built.components()), |rest| {
        let mut rest = rest.clone();
        rest.next().map(|_| rest)
    });
    let ends = ends.map(|rest| rest.as_path().to_owned()).filter(|end| !end.as_os_str().is_empty());
    let in_tree = tree.into_iter().flat_map(|tree| ends.clone().map(|end| tree.join(end)));
    let harmless = built.components().all(|part| matches!(part, Component::Normal(_)));
    let mut candidates = in_tree.chain([Path::new("/").join(built)]).filter(|_| harmless);
    candidates.find(|path| belongs(path, stamp))
}

fn belongs(notes: &Path, stamp: [u8; HEADER]) -> bool {
    header(notes).is_some_and(|head| head.starts_with(NOTES_MAGIC) && head.get(4..) == stamp.get(4..))
}

/// The first bytes of a file, if it is one.
fn header(path: &Path) -> Option<[u8; HEADER]> {
    if !fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let mut head = [0; HEADER];
    File::open(path).ok()?.read_exact(&mut head).ok()?;
    Some(head)
}

fn host<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Host { what, path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Counts or notes of the compilation `stamp`.
    fn put(path: &Path, magic: &[u8; 4], stamp: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, [magic.as_slice(), b"B22*", &[stamp; 4], b"rest"].concat()).unwrap();
    }

    struct Scene {
        dir: tempfile::TempDir,
    }

    impl Scene {
        /// A guest's tree with counts of `lib/a.o`, built in `/nowhere/linux`.
        fn new() -> Self {
            let scene = Self { dir: tempfile::tempdir().unwrap() };
            put(&scene.at("out/nowhere/linux/lib/a.gcda"), b"adcg", 7);
            symlink("/nowhere/linux/lib/a.gcno", scene.at("out/nowhere/linux/lib/a.gcno")).unwrap();
            scene
        }

        fn at(&self, path: &str) -> PathBuf {
            self.dir.path().join(path)
        }

        fn complete(&self) -> Result<Coverage, Error> {
            complete(Some(&self.at("tree")), &self.at("out"))
        }
    }

    #[test]
    fn notes_are_found_in_a_tree_that_has_moved() {
        let scene = Scene::new();
        put(&scene.at("tree/lib/a.gcno"), b"oncg", 7);
        // Longer ends come first, but these are of another compilation.
        put(&scene.at("tree/linux/lib/a.gcno"), b"oncg", 8);
        assert_eq!(scene.complete().unwrap(), Coverage { files: 1, without_notes: vec![] });
        let notes = scene.at("out/nowhere/linux/lib/a.gcno");
        assert!(!notes.is_symlink());
        assert_eq!(fs::read(notes).unwrap(), fs::read(scene.at("tree/lib/a.gcno")).unwrap());
    }

    #[test]
    fn notes_are_found_where_the_kernel_was_built() {
        let scene = Scene::new();
        let built = scene.at("built/b.gcno");
        put(&built, b"oncg", 1);
        let counts = scene.at("out").join(built.strip_prefix("/").unwrap()).with_extension("gcda");
        put(&counts, b"adcg", 1);
        let lost = scene.at("out/nowhere/linux/lib/a.gcda");
        assert_eq!(scene.complete().unwrap(), Coverage { files: 2, without_notes: vec![lost] });
        assert!(counts.with_extension("gcno").is_file());
    }

    #[test]
    fn links_of_the_guest_are_never_followed() {
        let scene = Scene::new();
        fs::write(scene.at("secret"), "oncg of the host").unwrap();
        fs::create_dir(scene.at("elsewhere")).unwrap();
        put(&scene.at("elsewhere/c.gcda"), b"adcg", 1);
        for (target, link) in [("secret", "out/x.gcda"), ("secret", "out/x.gcno"), ("elsewhere", "out/dir")] {
            symlink(scene.at(target), scene.at(link)).unwrap();
        }
        // Of another compilation, so not copied; and something that is no notes at all.
        put(&scene.at("tree/lib/a.gcno"), b"oncg", 8);
        put(&scene.at("tree/a.gcno"), b"adcg", 7);
        assert_eq!(scene.complete().unwrap().without_notes.len(), 1);
        for gone in ["out/x.gcda", "out/x.gcno", "out/dir", "out/nowhere/linux/lib/a.gcno"] {
            assert!(scene.at(gone).symlink_metadata().is_err(), "{gone}");
        }
        assert!(scene.at("elsewhere/c.gcda").is_file());
    }

    #[test]
    fn a_kernel_that_counts_nothing_is_told() {
        let scene = Scene { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(scene.at("out")).unwrap();
        assert!(matches!(scene.complete(), Err(Error::Nothing)));
    }
}
