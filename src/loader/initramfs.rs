//! Archives for the initial RAM file system, made here: the "newc" format of cpio, which is all that kernels read
//! (Documentation/driver-api/early-userspace/buffer-format.rst). The same content gives the same bytes. Called by
//! whoever makes up a guest's first file tree, before [`super::load`].

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::MemfdFlags;

const MAGIC: &str = "070701";
const TRAILER: &[u8] = b"TRAILER!!!";
/// Where a header has the number of a file's names: after the magic, number, mode and owners.
const LINKS_AT: u64 = 6 + 4 * 8;
/// Header, names and contents begin at multiples of this.
const ALIGNMENT: u64 = 4;
/// PATH_MAX of kernels, which refuse longer names.
const NAME_MAX: usize = 4096;
const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Why something does not go into an archive.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is none that a file can have.
    #[error("`{0}` cannot be the name of a file in an initial RAM file system")]
    Name(String),
    /// The format counts bytes in 32 bits.
    #[error("{name} is too large for an initial RAM file system: {size} bytes, at most 4 GiB fit")]
    TooLarge {
        /// Name in the archive.
        name: String,
        /// Its size.
        size: u64,
    },
    /// Writing the archive, or reading what goes in, failed.
    #[error("making the initial RAM file system failed")]
    Io(#[from] io::Error),
}

/// A device that a node stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Device {
    /// A character device: major and minor number.
    Character(u32, u32),
    /// A block device.
    Block(u32, u32),
}

/// An archive that is being written. Everything in it belongs to root and is as old as 1970. Directories that a name
/// leads through are made by themselves; a kernel would leave out what has none.
#[derive(Debug)]
pub struct Archive<W> {
    to: W,
    at: u64,
    inodes: u32,
    directories: BTreeSet<Vec<u8>>,
    /// Where the header of each file is, and its number.
    files: HashMap<Vec<u8>, (u64, u32)>,
}

/// What one header says, beside the name.
#[derive(Default)]
struct Entry {
    mode: u32,
    size: u32,
    device: (u32, u32),
    /// The number of the file that this is another name of.
    same: Option<u32>,
}

impl Archive<File> {
    /// An archive in memory, for [`super::Initrd::File`].
    pub fn in_memory() -> Result<Self, Error> {
        let file = rustix::fs::memfd_create("initramfs", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
        Ok(Self::new(File::from(file)))
    }

    /// Adds another name of the file `target`. False if there is no such file so far.
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<bool, Error> {
        let Some(&(header, number)) = self.files.get(&clean(target.as_ref())?) else { return Ok(false) };
        let name = self.prepare(path.as_ref())?;
        // Kernels take files for one if their numbers are the same, but remember only those that say they have more names.
        self.to.write_all_at(b"00000002", header + LINKS_AT)?;
        self.files.insert(name.clone(), (header, number));
        self.header(&name, &Entry { mode: REGULAR, same: Some(number), ..Entry::default() })?;
        Ok(true)
    }
}

impl<W: Write> Archive<W> {
    /// An empty archive that is written to `to`.
    pub fn new(to: W) -> Self {
        Self { to, at: 0, inodes: 0, directories: BTreeSet::new(), files: HashMap::new() }
    }

    /// Adds a directory; permissions in `mode`. One that is there already stays as it is.
    pub fn directory(&mut self, path: impl AsRef<Path>, mode: u32) -> Result<(), Error> {
        let name = self.prepare(path.as_ref())?;
        if self.directories.insert(name.clone()) {
            self.header(&name, &Entry { mode: DIRECTORY | mode & 0o7777, ..Entry::default() })?;
        }
        Ok(())
    }

    /// Adds a file with this content.
    pub fn file(&mut self, path: impl AsRef<Path>, mode: u32, content: &[u8]) -> Result<(), Error> {
        self.file_from(path, mode, content.len() as u64, content)
    }

    /// Adds a file whose content is the next `size` bytes of `content`.
    pub fn file_from(&mut self, path: impl AsRef<Path>, mode: u32, size: u64, content: impl Read) -> Result<(), Error> {
        let name = self.prepare(path.as_ref())?;
        let too_large = |_| Error::TooLarge { name: String::from_utf8_lossy(&name).into_owned(), size };
        let size32 = size.try_into().map_err(too_large)?;
        let at = self.at;
        self.header(&name, &Entry { mode: REGULAR | mode & 0o7777, size: size32, ..Entry::default() })?;
        self.files.insert(name, (at, self.inodes));
        let copied = io::copy(&mut content.take(size), &mut self.to)?;
        if copied < size {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        self.at += size;
        self.pad(ALIGNMENT)
    }

    /// Adds a symbolic link.
    pub fn symlink(&mut self, path: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<(), Error> {
        let (name, target) = (self.prepare(path.as_ref())?, target.as_ref());
        let bytes = target.as_os_str().as_bytes();
        if bytes.is_empty() || bytes.len() >= NAME_MAX || bytes.contains(&0) {
            return Err(no_name(target));
        }
        self.header(&name, &Entry { mode: LINK | 0o777, size: bytes.len() as u32, ..Entry::default() })?;
        self.write(bytes)?;
        self.pad(ALIGNMENT)
    }

    /// Adds a device node.
    pub fn node(&mut self, path: impl AsRef<Path>, mode: u32, device: Device) -> Result<(), Error> {
        let name = self.prepare(path.as_ref())?;
        let (kind, device) = match device {
            Device::Character(major, minor) => (0o020_000, (major, minor)),
            Device::Block(major, minor) => (0o060_000, (major, minor)),
        };
        self.header(&name, &Entry { mode: kind | mode & 0o7777, device, ..Entry::default() })
    }

    /// Writes the end of the archive; another may follow it.
    pub fn finish(mut self) -> Result<W, Error> {
        self.inodes = 0;
        self.header(TRAILER, &Entry::default())?;
        self.pad(512)?;
        self.to.flush()?;
        Ok(self.to)
    }

    /// Checks a path, makes the directories that it leads through, and returns it as archives write it.
    fn prepare(&mut self, path: &Path) -> Result<Vec<u8>, Error> {
        let name = clean(path)?;
        let slashes = name.iter().enumerate().filter(|(_, byte)| **byte == b'/');
        for (end, _) in slashes {
            let parent = name.get(..end).unwrap_or_default();
            if self.directories.insert(parent.to_owned()) {
                self.header(parent, &Entry { mode: DIRECTORY | 0o755, ..Entry::default() })?;
            }
        }
        Ok(name)
    }

    /// Header and name of one entry: thirteen numbers of eight hexadecimal digits.
    fn header(&mut self, name: &[u8], entry: &Entry) -> Result<(), Error> {
        self.inodes += u32::from(entry.same.is_none());
        let number = entry.same.unwrap_or(self.inodes);
        let links = if entry.mode & DIRECTORY == DIRECTORY || entry.same.is_some() { 2 } else { 1 };
        let (major, minor) = entry.device;
        let length = name.len() as u32 + 1;
        let fields = [number, entry.mode, 0, 0, links, 0, entry.size, 0, 0, major, minor, length, 0];
        let mut text = MAGIC.to_owned();
        text.extend(fields.map(|field| format!("{field:08X}")));
        self.write(text.as_bytes())?;
        self.write(name)?;
        self.write(b"\0")?;
        self.pad(ALIGNMENT)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.to.write_all(bytes)?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn pad(&mut self, multiple: u64) -> Result<(), Error> {
        let zeros = vec![0; (self.at.next_multiple_of(multiple) - self.at) as usize];
        self.write(&zeros)
    }
}

/// A path as archives write it.
fn clean(path: &Path) -> Result<Vec<u8>, Error> {
    let bytes = path.as_os_str().as_bytes();
    let parts: Vec<_> = bytes.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".").collect();
    let name = parts.join(&b'/');
    let wrong = |part: &&[u8]| *part == b".." || part.contains(&0);
    if name.is_empty() || name == TRAILER || name.len() >= NAME_MAX || parts.iter().any(wrong) {
        return Err(no_name(path));
    }
    Ok(name)
}

fn no_name(path: &Path) -> Error {
    Error::Name(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    fn sample() -> Vec<u8> {
        let mut archive = Archive::new(Vec::new());
        archive.file("/init", 0o755, b"program").unwrap();
        archive.file("belljar/modules/00-virtio.ko", 0o644, &[1; 4097]).unwrap();
        archive.directory("/belljar", 0o700).unwrap();
        archive.directory("/proc/", 0o555).unwrap();
        archive.symlink("/bin/sh", "../init").unwrap();
        archive.file("/empty", 0o600, b"").unwrap();
        archive.finish().unwrap()
    }

    #[test]
    fn headers_names_and_contents_are_where_the_format_says() {
        let bytes = sample();
        assert!(bytes.len().is_multiple_of(512));
        let expected = "070701000000010000\
                        81ED00000000000000000000000100000000000000070000000000000000000000000000000000000005\
                        00000000init\0";
        let name_end = 6 + 13 * 8 + 5;
        assert_eq!(String::from_utf8_lossy(&bytes[..name_end]), expected.replace(' ', ""));
        let content = name_end.next_multiple_of(4);
        assert_eq!(bytes[content..content + 8], *b"program\0");
        assert_eq!(bytes[content + 8..content + 14], *b"070701");
        assert_eq!(bytes, sample(), "the same content, the same bytes");
        assert_eq!(bytes.windows(8).filter(|w| *w == b"belljar\0").count(), 1, "each directory once");
    }

    /// The program that everybody knows reads it; where there is none, the kernels of the guest tests do.
    #[test]
    fn cpio_unpacks_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("a.cpio"), sample()).unwrap();
        let unpack = "command -v cpio >/dev/null || exit 9; cpio -id --quiet <a.cpio";
        let status = std::process::Command::new("sh").args(["-c", unpack]).current_dir(&dir).status().unwrap();
        if status.code() == Some(9) {
            println!("SKIPPED: no cpio here");
            return;
        }
        assert!(status.success());
        let at = |name: &str| dir.path().join(name);
        assert_eq!(std::fs::read(at("init")).unwrap(), b"program");
        assert_eq!(std::fs::metadata(at("init")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(std::fs::read(at("belljar/modules/00-virtio.ko")).unwrap(), [1; 4097]);
        assert_eq!(std::fs::read_link(at("bin/sh")).unwrap().to_str(), Some("../init"));
        assert_eq!(std::fs::metadata(at("empty")).unwrap().size(), 0);
        assert!(at("proc").is_dir());
    }

    #[test]
    fn names_of_one_file_and_names_that_are_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let odd = OsStr::from_bytes(b"odd\xff");
        let mut archive = Archive::in_memory().unwrap();
        archive.file(odd, 0o640, b"content").unwrap();
        assert!(archive.link("sub/second", odd).unwrap() && archive.link("third", "./sub/second").unwrap());
        assert!(!archive.link("fourth", "missing").unwrap());
        let file = archive.finish().unwrap();
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        std::fs::write(dir.path().join("a.cpio"), bytes).unwrap();
        let unpack = "command -v cpio >/dev/null || exit 9; cpio -id --quiet <a.cpio";
        let status = std::process::Command::new("sh").args(["-c", unpack]).current_dir(&dir).status().unwrap();
        if status.code() == Some(9) {
            println!("SKIPPED: no cpio here");
            return;
        }
        let first = std::fs::metadata(dir.path().join(odd)).unwrap();
        for name in ["sub/second", "third"] {
            let other = std::fs::metadata(dir.path().join(name)).unwrap();
            assert_eq!((other.ino(), other.size(), other.mode()), (first.ino(), 7, 0o100_640), "{name}");
        }
    }

    #[test]
    fn names_that_are_none_are_refused() {
        let mut archive = Archive::new(Vec::new());
        let long = "x/".repeat(3000);
        for name in ["", "/", ".", "../x", "a/../../x", "TRAILER!!!", "a\0b", &long] {
            assert!(matches!(archive.file(name, 0o644, b""), Err(Error::Name(_))), "{name:?}");
        }
        assert!(archive.symlink("link", "").is_err());
        assert!(matches!(archive.file_from("f", 0, 1 << 32, io::empty()), Err(Error::TooLarge { .. })));
        assert!(matches!(archive.file_from("f", 0, 5, &b"four"[..]), Err(Error::Io(_))));
    }

    #[test]
    fn nodes_and_files_in_memory() {
        let mut archive = Archive::in_memory().unwrap();
        archive.node("/dev/console", 0o600, Device::Character(5, 1)).unwrap();
        archive.node("/dev/vda", 0o600, Device::Block(254, 0)).unwrap();
        let file = archive.finish().unwrap();
        let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("00002180") && text.contains("0000000500000001"), "{text}");
        assert!(text.contains("00006180") && text.contains("000000FE00000000"), "{text}");
    }
}
