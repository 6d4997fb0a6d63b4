//! Initial RAM file systems: where they go, and getting them there. Linux takes several archives one after another,
//! each starting at a multiple of four bytes (Documentation/driver-api/early-userspace/buffer-format.rst).
//! Called by [`super::load`].

use std::fs::File;
use std::io;
use std::path::PathBuf;

use crate::mem::{self, PAGE, Ram};

/// An archive for the initial RAM file system.
#[derive(Debug)]
pub enum Initrd {
    /// A file by name.
    Path(PathBuf),
    /// An open file, such as one that was made in memory; its whole content counts.
    File(File),
}

/// Why an archive cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It cannot be opened.
    #[error("cannot open {name}")]
    Open {
        /// File name.
        name: String,
        /// The host's reason.
        source: io::Error,
    },
    /// It is a directory, a pipe or the like.
    #[error("{0} is not a regular file; an initial RAM file system is a cpio archive")]
    NotAFile(String),
    /// There is no room.
    #[error(
        "{size} MiB of initial RAM file system do not fit into guest memory beside the kernel; give the machine more memory"
    )]
    NoRoom {
        /// Size of all archives in MiB, rounded up.
        size: u64,
    },
    /// Mapping or writing guest RAM failed.
    #[error("cannot put {name} into guest memory")]
    Memory {
        /// File name.
        name: String,
        /// The reason.
        source: mem::Error,
    },
}

/// Where initrds may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// End of the kernel, which may grow up to here.
    pub kernel_end: u64,
    /// Highest address of the last byte.
    pub last: u64,
}

/// Guest-physical range of all archives together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// Maps the archives into `ram`, one after another, as high as allowed. None if there is nothing to load.
pub fn place(ram: &Ram, initrds: &[Initrd], limits: Limits) -> Result<Option<Range>, Error> {
    let files = initrds.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let mut len = 0u64;
    for file in &files {
        // Saturated sizes do not fit anywhere, which the search for room finds.
        len = len.checked_next_multiple_of(4).unwrap_or(u64::MAX).saturating_add(file.len);
    }
    if len == 0 {
        return Ok(None);
    }
    let start = room(ram, len, limits).ok_or(Error::NoRoom { size: len.div_ceil(1 << 20) })?;
    let mut at = start;
    for file in files {
        at = at.next_multiple_of(4);
        let memory = |source| Error::Memory { name: file.name.clone(), source };
        ram.map_file(at, file.as_file(), 0, file.len).map_err(memory)?;
        at += file.len;
    }
    Ok(Some(Range { start, len }))
}

/// The highest page-aligned place for `len` bytes, preferably below 4 GiB.
fn room(ram: &Ram, len: u64, limits: Limits) -> Option<u64> {
    ram.regions().find_map(|region| {
        let end = (region.start + region.len).min(limits.last.saturating_add(1));
        let start = end.checked_sub(len)? / PAGE * PAGE;
        (start >= region.start.max(limits.kernel_end)).then_some(start)
    })
}

enum Source<'a> {
    Opened(File),
    Given(&'a File),
}

struct Archive<'a> {
    name: String,
    source: Source<'a>,
    len: u64,
}

impl Archive<'_> {
    fn as_file(&self) -> &File {
        match &self.source {
            Source::Opened(file) => file,
            Source::Given(file) => file,
        }
    }
}

fn open(initrd: &Initrd) -> Result<Archive<'_>, Error> {
    let (name, source) = match initrd {
        Initrd::Path(path) => {
            let name = path.display().to_string();
            let file = File::open(path).map_err(|source| Error::Open { name: name.clone(), source })?;
            (name, Source::Opened(file))
        }
        Initrd::File(file) => ("the initial RAM file system".to_owned(), Source::Given(file)),
    };
    let mut archive = Archive { name, source, len: 0 };
    let metadata = archive.as_file().metadata();
    let metadata = metadata.map_err(|source| Error::Open { name: archive.name.clone(), source })?;
    if !metadata.is_file() {
        return Err(Error::NotAFile(archive.name));
    }
    archive.len = metadata.len();
    Ok(archive)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Backing;
    use std::io::Write;

    fn file(content: &[u8]) -> Initrd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        Initrd::File(file)
    }

    const LIMITS: Limits = Limits { kernel_end: 0x10_0000, last: u64::MAX };

    #[test]
    fn archives_follow_each_other_at_multiples_of_four_as_high_as_possible() {
        let ram = Ram::new(&[(0, 0x20_0000)], Backing::Anonymous).unwrap();
        let first: Vec<u8> = (0..9001u32).map(|i| i as u8).collect();
        let range = place(&ram, &[file(&first), file(b""), file(b"second")], LIMITS).unwrap().unwrap();
        assert_eq!(range, Range { start: 0x20_0000 - 0x3000, len: 9004 + 6 });
        let mut seen = vec![0xff; range.len as usize];
        ram.read(range.start, &mut seen).unwrap();
        assert_eq!(seen[..9001], first);
        assert_eq!(seen[9001..], *b"\0\0\0second");
        assert_eq!(place(&ram, &[], LIMITS).unwrap(), None);
        assert_eq!(place(&ram, &[file(b"")], LIMITS).unwrap(), None);
    }

    #[test]
    fn limits_are_kept() {
        let ram = Ram::new(&[(0, 0x20_0000), (1 << 32, 0x40_0000)], Backing::Anonymous).unwrap();
        let two = vec![1; 0x2000];
        let low = Limits { kernel_end: 0x1f_e000, last: 0x1f_ffff };
        assert_eq!(place(&ram, &[file(&two)], low).unwrap().unwrap().start, 0x1f_e000);
        let tight = Limits { kernel_end: 0x1f_e001, ..low };
        assert!(matches!(place(&ram, &[file(&two)], tight), Err(Error::NoRoom { size: 1 })));
        let high = Limits { last: u64::MAX, ..tight };
        assert_eq!(place(&ram, &[file(&two)], high).unwrap().unwrap().start, (1 << 32) + 0x3f_e000);
    }

    #[test]
    fn what_is_not_a_file_is_named() {
        let ram = Ram::new(&[(0, 0x20_0000)], Backing::Anonymous).unwrap();
        let error = place(&ram, &[Initrd::Path("/".into())], LIMITS).unwrap_err();
        assert!(error.to_string().starts_with("/ is not a regular file"), "{error}");
        let error = place(&ram, &[Initrd::Path("/no/such".into())], LIMITS).unwrap_err();
        assert_eq!(error.to_string(), "cannot open /no/such");
    }
}
