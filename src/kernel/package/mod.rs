//! Kernels in packages: of Debian (`linux-image-*`, also what `make bindeb-pkg` makes), RPM packages, and archives
//! (Arch Linux, `make tar-pkg`). Nothing in a package is trusted: only files with names of kernels' files are taken,
//! nothing outside of the directory they go to can be reached, and sizes and numbers are bounded.

mod cpio;
mod deb;
mod rpm;
mod take;
#[cfg(test)]
mod tests;
mod tree;

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use sha2::{Digest, Sha256};

use super::store::Note;
use super::{Error, Kernel, compressed, root};

use take::Taker;

pub use tree::copy;

/// What kind of package a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Debian's: an `ar` archive.
    Debian,
    /// RPM.
    Rpm,
    /// A tar archive, compressed or not.
    Tar,
}

/// Where tar archives have this.
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");

/// What an unpacked package says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct About {
    /// Its name, if it has one.
    name: String,
    /// Other packages that it needs, as it writes them.
    needs: String,
}

/// The kind of package that the file is, if it is one.
pub fn kind(path: &Path) -> io::Result<Option<Kind>> {
    let file = compressed::open(path)?;
    let mut head = [0; 8];
    let n = file.read_at(&mut head, 0)?;
    let head = head.get(..n).unwrap_or_default();
    if head.starts_with(deb::MAGIC) {
        return Ok(Some(Kind::Debian));
    }
    if head.starts_with(rpm::MAGIC) {
        return Ok(Some(Kind::Rpm));
    }
    let mut block = Vec::new();
    // What does not unpack is no archive.
    let unpacked = compressed::reader(BufReader::new(file)).and_then(|data| data.take(512).read_to_end(&mut block));
    let (at, magic) = TAR_MAGIC;
    let is_tar = unpacked.is_ok() && block.get(at..).is_some_and(|rest| rest.starts_with(magic));
    Ok(is_tar.then_some(Kind::Tar))
}

/// A name for what is unpacked from the file `path` as it is now.
pub(super) fn identity(path: &Path) -> io::Result<String> {
    let m = fs::metadata(path)?;
    let text = format!(
        "{}-{}-{}-{}.{}-{}.{}",
        m.dev(),
        m.ino(),
        m.size(),
        m.mtime(),
        m.mtime_nsec(),
        m.ctime(),
        m.ctime_nsec()
    );
    Ok(Sha256::digest(text).iter().take(12).map(|byte| format!("{byte:02x}")).collect())
}

/// Unpacks what belongs to a kernel from packages, which are one kernel together, into the directory `into`.
pub fn fill(packages: &[&Path], into: &Path) -> Result<Note, Error> {
    let mut taker = Taker::new(into);
    let mut about = About::default();
    for path in packages {
        about = unpack(path, &mut taker)?;
    }
    let first = packages.first().copied().unwrap_or(Path::new("/"));
    let found = root::in_directory(into)
        .map_err(|_| Error::NotInPackage { path: first.to_owned(), reason: why_none(&about, &taker) })?;
    // What its files are called is what they are found by later.
    let release = found.release.clone();
    Kernel::new(found, String::new())?;
    let names = packages.iter().map(|path| path.file_name().unwrap_or_default().to_string_lossy());
    Ok(Note { origin: names.collect::<Vec<_>>().join(" "), release })
}

fn unpack(path: &Path, taker: &mut Taker<'_>) -> Result<About, Error> {
    let open = || compressed::open(path).map_err(|source| Error::Read { path: path.to_owned(), source });
    let unpacked = match kind(path).map_err(|source| Error::Read { path: path.to_owned(), source })? {
        Some(Kind::Debian) => deb::unpack(&open()?, taker),
        Some(Kind::Rpm) => rpm::unpack(&open()?, taker),
        Some(Kind::Tar) => tar_archive(open()?, taker),
        None => Err(take::Error::Refused("it is no Debian or RPM package and no tar archive".into())),
    };
    unpacked.map_err(|error| match error {
        take::Error::Damaged(source) => Error::Damaged { path: path.to_owned(), source },
        take::Error::Refused(reason) => Error::Package { path: path.to_owned(), reason },
        take::Error::Write { path, source } => Error::Write { path, source },
    })
}

fn tar_archive(file: File, taker: &mut Taker<'_>) -> Result<About, take::Error> {
    take::tar(compressed::reader(BufReader::new(file))?, taker)?;
    Ok(About::default())
}

/// What to tell the user whose package has no kernel.
fn why_none(about: &About, taker: &Taker<'_>) -> String {
    let images = about.needs.split([',', '|']).filter_map(|need| need.split_whitespace().next());
    let image = images.clone().find(|name| name.starts_with("linux-image-") || name.starts_with("kernel-core"));
    match (image, taker.modules()) {
        (Some(image), 0) => format!(
            "{} only stands for {image}: get that one (apt-get download {image})",
            if about.name.is_empty() { "it" } else { &about.name }
        ),
        (_, 0) => "it holds neither /boot/vmlinuz-RELEASE nor /lib/modules/RELEASE/vmlinuz: give a linux-image-* or \
                   kernel-core package"
            .into(),
        (_, n) => format!(
            "it holds {n} modules only: give the package with the kernel too (belljar kernel add IMAGE-PACKAGE \
             MODULES-PACKAGE)"
        ),
    }
}
