//! Puts a directory, or an archive of one, into an initial RAM file system: for guests whose kernel has no virtio-fs, and
//! for roots that come as a file.

use std::borrow::Cow;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

use crate::kernel::compressed;
use crate::loader::initramfs::{self, Archive, Device};

/// Directories that are mounted over, or that are another file system's business.
const LEFT_OUT: [&str; 4] = ["dev", "proc", "sys", "run"];

/// Bytes of all files below `path`; none if there are more than `limit`, or something cannot be read.
pub(super) fn size(path: &Path, limit: u64) -> Option<u64> {
    let mut sum = 0u64;
    let mut waiting = vec![path.to_owned()];
    let device = fs::metadata(path).ok()?.dev();
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).ok()? {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok()?;
            if metadata.is_dir() && metadata.dev() == device {
                waiting.push(entry.path());
            }
            // A header, a name, and the content.
            sum = sum.saturating_add(256).saturating_add(if metadata.is_file() { metadata.len() } else { 0 });
            if sum > limit {
                return None;
            }
        }
    }
    Some(sum)
}

/// Adds everything below `root`, on its file system.
pub(super) fn directory(root: &Path, archive: &mut Archive<File>) -> Result<(), crate::run::Error> {
    let device = fs::metadata(root).map_err(failed(root))?.dev();
    let mut waiting = vec![PathBuf::new()];
    while let Some(directory) = waiting.pop() {
        let here = root.join(&directory);
        let mut entries: Vec<_> = fs::read_dir(&here).and_then(Iterator::collect).map_err(failed(&here))?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = directory.join(entry.file_name());
            let metadata = entry.metadata().map_err(failed(&entry.path()))?;
            add(&entry.path(), &name, &metadata, archive)?;
            let left_out = LEFT_OUT.iter().any(|top| name == Path::new(top));
            if metadata.is_dir() && metadata.dev() == device && !left_out {
                waiting.push(name);
            }
        }
    }
    Ok(())
}

fn failed(path: &Path) -> impl Fn(io::Error) -> crate::run::Error {
    let path = path.to_owned();
    move |source| crate::run::Error::Root { path: path.clone(), source }
}

fn add(
    path: &Path,
    name: &Path,
    metadata: &fs::Metadata,
    archive: &mut Archive<File>,
) -> Result<(), crate::run::Error> {
    let mode = metadata.mode() & 0o7777;
    let kind = metadata.file_type();
    if kind.is_dir() {
        archive.directory(name, mode)?;
    } else if kind.is_symlink() {
        let target = fs::read_link(path).map_err(failed(path))?;
        archive.symlink(name, target)?;
    } else if kind.is_file() {
        let file = File::open(path).map_err(failed(path))?;
        archive.file_from(name, mode, metadata.len(), file)?;
    } else if kind.is_char_device() || kind.is_block_device() {
        let (major, minor) = (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()));
        let device = if kind.is_char_device() { Device::Character(major, minor) } else { Device::Block(major, minor) };
        archive.node(name, mode, device)?;
    }
    // Sockets and pipes belong to programs that run here.
    Ok(())
}

/// Whether the file begins as cpio archives do, packed or not, which the kernel unpacks itself; else it may be a tar.
pub(super) fn is_cpio(path: &Path) -> io::Result<bool> {
    let mut head = [0; 6];
    let mut file = compressed::reader(io::BufReader::new(compressed::open(path)?))?;
    let mut len = 0;
    while let Some(rest) = head.get_mut(len..).filter(|rest| !rest.is_empty()) {
        match file.read(rest)? {
            0 => break,
            n => len += n,
        }
    }
    Ok(head == *b"070701" || head == *b"070702")
}

/// Adds the content of the tar archive `path`, which may be packed. Names that share a file go on to do so.
pub(super) fn tar(path: &Path, archive: &mut Archive<File>) -> Result<(), crate::run::Error> {
    let file = File::open(path).map_err(failed(path))?;
    let reader = compressed::reader(io::BufReader::new(file)).map_err(failed(path))?;
    let mut tar = tar::Archive::new(reader);
    for entry in tar.entries().map_err(failed(path))? {
        let mut entry = entry.map_err(failed(path))?;
        let name = entry.path().map_err(failed(path))?.into_owned();
        // The root itself.
        if name.components().all(|part| matches!(part, Component::CurDir | Component::RootDir)) {
            continue;
        }
        let header = entry.header().clone();
        let mode = header.mode().map_err(failed(path))? & 0o7777;
        let link = entry.link_name().map_err(failed(path))?.map(Cow::into_owned).unwrap_or_default();
        let number = |field: io::Result<Option<u32>>| field.ok().flatten().unwrap_or_default();
        let (major, minor) = (number(header.device_major()), number(header.device_minor()));
        match header.entry_type() {
            tar::EntryType::Directory => archive.directory(&name, mode)?,
            tar::EntryType::Symlink => archive.symlink(&name, &link)?,
            // The agent takes that name, and would overwrite what shares a file with it.
            tar::EntryType::Link if is_init(&name) => {}
            tar::EntryType::Link if !is_init(&link) && archive.link(&name, &link)? => {}
            // The agent, or a name of something else than a file.
            tar::EntryType::Link => {
                archive.symlink(&name, Path::new("/").join(link.strip_prefix(".").unwrap_or(&link)))?;
            }
            tar::EntryType::Char => archive.node(&name, mode, Device::Character(major, minor))?,
            tar::EntryType::Block => archive.node(&name, mode, Device::Block(major, minor))?,
            tar::EntryType::Regular | tar::EntryType::Continuous => {
                let size = entry.size();
                archive.file_from(&name, mode, size, &mut entry).map_err(|e| match e {
                    initramfs::Error::Io(source) => failed(path)(source),
                    other => other.into(),
                })?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_init(path: &Path) -> bool {
    let mut parts = path.components().filter(|part| !matches!(part, Component::CurDir | Component::RootDir));
    parts.next() == Some(Component::Normal("init".as_ref())) && parts.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Seek;

    /// What an archive is, as text to look for names and content in.
    fn text(archive: Archive<File>) -> String {
        let mut file = archive.finish().unwrap();
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::create_dir_all(dir.path().join("proc/1")).unwrap();
        fs::write(dir.path().join("etc/name"), "content of a file").unwrap();
        std::os::unix::fs::symlink("etc/name", dir.path().join("link")).unwrap();
        dir
    }

    #[test]
    fn directories_are_packed_but_not_what_is_mounted_over() {
        let dir = tree();
        let mut archive = Archive::in_memory().unwrap();
        directory(dir.path(), &mut archive).unwrap();
        let text = text(archive);
        for part in ["etc/name\0", "content of a file", "link\0", "proc\0"] {
            assert!(text.contains(part), "{part}");
        }
        assert!(!text.contains("proc/1"));
    }

    #[test]
    fn sizes_are_bounded() {
        let dir = tree();
        assert!(size(dir.path(), 10_000).is_some_and(|size| size > 17));
        assert_eq!(size(dir.path(), 100), None);
        assert_eq!(size(Path::new("/no/such"), 100), None);
    }

    #[test]
    fn tars_keep_their_links_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        let mut builder = tar::Builder::new(File::create(&path).unwrap());
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(17);
        builder.append_data(&mut header, "./etc/name", &b"content of a file"[..]).unwrap();
        header.set_size(0);
        header.set_entry_type(tar::EntryType::Link);
        builder.append_link(&mut header, "./hard", "./etc/name").unwrap();
        builder.append_link(&mut header, "./early", "./etc/later").unwrap();
        builder.into_inner().unwrap();
        let mut archive = Archive::in_memory().unwrap();
        tar(&path, &mut archive).unwrap();
        let text = text(archive);
        for part in ["etc/name\0", "content of a file", "hard\0", "early\0", "/etc/later"] {
            assert!(text.contains(part), "{part}");
        }
        assert_eq!(text.matches("/etc/name").count(), 0, "no symbolic link");
        assert!(!is_cpio(&path).unwrap());
        fs::write(&path, "no tar at all".repeat(100)).unwrap();
        let error = tar(&path, &mut Archive::in_memory().unwrap()).unwrap_err();
        assert!(error.to_string().contains("x.tar"), "{error}");
    }
}
