//! Which files of a package are a kernel's, and putting those into a directory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tar::{Archive, EntryType, PaxExtensions};

use super::super::release::is_release;

/// The full kernels of distributions have 5,000 files.
const MAX_FILES: usize = 100_000;
/// And 500 MB.
const MAX_BYTES: u64 = 4 << 30;
/// What a package may unpack to altogether.
const MAX_STREAM: u64 = 8 << 30;
/// Paths in packages, and extended headers of tar archives.
const MAX_NAME: u64 = 4096;
const MAX_EXTENDED: u64 = 64 << 10;
/// Images in `boot` and what is beside them.
const IN_BOOT: [&str; 5] = ["vmlinuz-", "vmlinux-", "bzImage-", "kernel-", "config-"];

/// Why a package is not unpacked.
#[derive(Debug)]
pub enum Error {
    /// It ends early, or does not unpack.
    Damaged(io::Error),
    /// It says something that no package should.
    Refused(String),
    /// The host refuses.
    Write {
        /// What was to be written.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Damaged(error)
    }
}

/// Takes files into a directory that only this process knows.
#[derive(Debug)]
pub struct Taker<'a> {
    root: &'a Path,
    files: usize,
    modules: usize,
    bytes: u64,
}

impl<'a> Taker<'a> {
    /// Into `root`, which is empty.
    pub fn new(root: &'a Path) -> Self {
        Self { root, files: 0, modules: 0, bytes: 0 }
    }

    /// So many modules were taken.
    pub fn modules(&self) -> usize {
        self.modules
    }

    /// Takes the regular file `name` of a package, if it belongs to a kernel.
    pub fn take(&mut self, name: &[u8], size: u64, data: &mut dyn Read) -> Result<(), Error> {
        let Some(place) = place(name)? else { return Ok(()) };
        self.files += 1;
        self.bytes = self.bytes.saturating_add(size);
        if self.files > MAX_FILES || self.bytes > MAX_BYTES {
            return Err(Error::Refused("it holds more than a kernel can have (100,000 files, 4 GiB)".into()));
        }
        self.modules += usize::from(place.to_string_lossy().contains(".ko"));
        let path = self.root.join(place);
        let write = |source| Error::Write { path: path.clone(), source };
        fs::create_dir_all(path.parent().unwrap_or(self.root)).map_err(write)?;
        let mut file = File::create(&path).map_err(write)?;
        copy(&mut data.take(size), &mut file, size).map_err(|(reading, error)| match reading {
            true => Error::Damaged(error),
            false => write(error),
        })
    }
}

/// Copies exactly `size` bytes; a failure, and whether it is one of reading.
fn copy(from: &mut dyn Read, to: &mut dyn io::Write, size: u64) -> Result<(), (bool, io::Error)> {
    let mut buffer = vec![0; 64 << 10];
    let mut left = size;
    while left > 0 {
        let n = from.read(&mut buffer).map_err(|error| (true, error))?;
        if n == 0 {
            return Err((true, io::ErrorKind::UnexpectedEof.into()));
        }
        to.write_all(buffer.get(..n).unwrap_or_default()).map_err(|error| (false, error))?;
        left = left.saturating_sub(n as u64);
    }
    Ok(())
}

/// Where a file called `name` goes, none if it is not a kernel's.
fn place(name: &[u8]) -> Result<Option<PathBuf>, Error> {
    let Ok(name) = std::str::from_utf8(name) else { return Ok(None) };
    let parts: Vec<_> = name.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.iter().any(|part| *part == ".." || part.contains('\0')) {
        return Err(Error::Refused(format!("it wants to write to {name:?}, outside of itself")));
    }
    Ok(match parts.as_slice() {
        ["boot", file] if IN_BOOT.iter().any(|prefix| file.strip_prefix(prefix).is_some_and(is_release)) => {
            Some(Path::new("boot").join(file))
        }
        ["lib", "modules", release, rest @ ..] | ["usr", "lib", "modules", release, rest @ ..]
            if is_release(release) && is_for_modules(rest) =>
        {
            let directory = Path::new("lib/modules").join(release);
            Some(rest.iter().fold(directory, |path, part| path.join(part)))
        }
        _ => None,
    })
}

/// Modules, their lists, and what Fedora puts beside them.
fn is_for_modules(rest: &[&str]) -> bool {
    match rest {
        ["vmlinuz" | "config"] => true,
        [file] if file.starts_with("modules.") => true,
        [.., file] => [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().any(|suffix| file.ends_with(suffix)),
        [] => false,
    }
}

/// Takes what is in a tar archive.
pub fn tar(data: impl Read, taker: &mut Taker<'_>) -> Result<(), Error> {
    each_in_tar(data, |name, size, data| taker.take(name, size, data))
}

/// Calls `with` for each regular file. Long names are read here, because the crate would read any length of them.
pub fn each_in_tar(
    data: impl Read,
    mut with: impl FnMut(&[u8], u64, &mut dyn Read) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut archive = Archive::new(data.take(MAX_STREAM));
    let mut long = None;
    for entry in archive.entries()?.raw(true) {
        let mut entry = entry?;
        let size = entry.header().entry_size()?;
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut name = bounded(&mut entry, size, MAX_NAME)?;
                name.truncate(name.iter().position(|&byte| byte == 0).unwrap_or(name.len()));
                long = Some(name);
            }
            EntryType::XHeader => {
                let extended = bounded(&mut entry, size, MAX_EXTENDED)?;
                long = path_of(&extended).or(long);
            }
            EntryType::Regular | EntryType::Continuous => {
                let name = long.take().unwrap_or_else(|| entry.header().path_bytes().into_owned());
                with(&name, size, &mut entry)?;
            }
            _ => long = None,
        }
    }
    Ok(())
}

fn bounded(entry: &mut impl Read, size: u64, limit: u64) -> Result<Vec<u8>, Error> {
    if size > limit {
        return Err(Error::Refused(format!("a name in it has {size} bytes")));
    }
    let mut data = Vec::new();
    entry.take(size).read_to_end(&mut data)?;
    Ok(data)
}

fn path_of(extended: &[u8]) -> Option<Vec<u8>> {
    let fields = PaxExtensions::new(extended).filter_map(Result::ok);
    fields.filter(|field| field.key_bytes() == b"path").last().map(|field| field.value_bytes().to_owned())
}
