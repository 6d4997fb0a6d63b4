//! Kernels in bzImage files: unpacked here, by way of the cache, or left to unpack themselves. Called by
//! [`super::load`].

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::MemfdFlags;

use super::bzimage::{self, BzImage};
use super::cache::{Cache, Policy};
use super::compact::compact;
use super::unpack::{self, Format};
use super::{Boot, Error, Kernel, Kind, Protocol, Report, elf, load_elf};
use crate::mem::Ram;

/// No kernel is larger; `init_size` in the header is a tighter bound.
const MAX_UNPACKED: u64 = 1 << 30;

/// Why there is no ELF file after unpacking.
enum Failure {
    Unpack(unpack::Error),
    NotElf(elf::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Unpack(error.into())
    }
}

/// Loads the bzImage `file`, which starts with `head`.
pub fn load(ram: &Ram, request: &Boot, mut file: File, head: &[u8]) -> Result<Kernel, Error> {
    let path = &request.kernel;
    let read = |source| Error::Read { path: path.clone(), source };
    let bzimage = |source| Error::BzImage { path: path.clone(), source };
    let len = file.metadata().map_err(read)?.len();
    let image = bzimage::parse(head, len).map_err(bzimage)?;
    if request.decompress {
        match payload(&image, &file).map_err(read)? {
            Some(payload) => {
                if let Some(kernel) = load_unpacked(ram, request, &file, &image, payload)? {
                    return Ok(kernel);
                }
            }
            None => tracing::info!(kernel = %path.display(), "packed in a way unknown here: it unpacks itself"),
        }
    }
    if request.protocol == Protocol::Pvh {
        let reason = "it has to unpack itself, which it does by its Linux entry; boot it with --entry linux or auto";
        return Err(Error::Entry { path: path.clone(), reason });
    }
    let (entry, end) = bzimage::place(&image, &mut file, ram).map_err(bzimage)?;
    let version = image.version;
    let kind = Kind::BzImageSelfExtracting;
    let report = Report { kind, entry, version, packed: None, cached: false, initrd: None };
    Ok(Kernel { report, header: image.header, end })
}

/// What is to be unpacked, if its format is known.
struct Payload {
    format: Format,
    extent: (u64, u64),
    limit: u64,
}

fn payload(image: &BzImage, file: &File) -> io::Result<Option<Payload>> {
    let Some(extent) = image.payload else { return Ok(None) };
    let mut magic = [0; unpack::MAGIC_MAX];
    let len = extent.1.min(magic.len() as u64) as usize;
    file.read_exact_at(magic.get_mut(..len).unwrap_or_default(), extent.0)?;
    // The kernel is unpacked into this memory, so that its file cannot be larger.
    let limit = match image.header.init_size {
        0 => MAX_UNPACKED,
        n => MAX_UNPACKED.min(n.into()),
    };
    Ok(unpack::detect(&magic).map(|format| Payload { format, extent, limit }))
}

/// Loads what `payload` contains; none if that is not an ELF kernel.
fn load_unpacked(
    ram: &Ram,
    request: &Boot,
    file: &File,
    image: &BzImage,
    payload: Payload,
) -> Result<Option<Kernel>, Error> {
    let (unpacked, cached) = match unpacked(&request.cache, file, &payload) {
        Ok(found) => found,
        Err(Failure::Unpack(source)) => return Err(Error::Unpack { path: request.kernel.clone(), source }),
        Err(Failure::NotElf(error)) => {
            let kernel = request.kernel.display();
            tracing::info!(%kernel, %error, "what is packed is not an ELF kernel: it unpacks itself");
            return Ok(None);
        }
    };
    let mut kernel = load_elf(ram, request, &unpacked)?;
    if kernel.report.kind == Kind::Vmlinux {
        kernel.report.kind = Kind::BzImage;
        kernel.header = image.header;
    }
    kernel.report.version = image.version.clone().or(kernel.report.version);
    kernel.report.packed = Some(payload.format);
    kernel.report.cached = cached;
    Ok(Some(kernel))
}

/// The ELF file inside of the bzImage `file`, which starts with `head`; none if there is none that can be had.
pub fn vmlinux(path: &Path, file: &File, head: &[u8], cache: &Policy) -> Result<Option<File>, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let len = file.metadata().map_err(read)?.len();
    let image = bzimage::parse(head, len).map_err(|source| Error::BzImage { path: path.to_owned(), source })?;
    let Some(payload) = payload(&image, file).map_err(read)? else { return Ok(None) };
    match unpacked(cache, file, &payload) {
        Ok((file, _)) => Ok(Some(file)),
        Err(Failure::Unpack(source)) => Err(Error::Unpack { path: path.to_owned(), source }),
        Err(Failure::NotElf(_)) => Ok(None),
    }
}

/// The ELF file, and whether it comes from the cache.
fn unpacked(cache: &Policy, file: &File, payload: &Payload) -> Result<(File, bool), Failure> {
    let make = |to: &File| make(file, payload, to);
    let Some(cache) = Cache::open(cache) else {
        let memory = rustix::fs::memfd_create("kernel", MemfdFlags::CLOEXEC).map_err(io::Error::from)?;
        let memory = File::from(memory);
        make(&memory)?;
        return Ok((memory, false));
    };
    let key = cache.key(file)?;
    if let Some(entry) = cache.find(&key) {
        return Ok((entry, true));
    }
    Ok((cache.insert(&key, file, make)?, false))
}

fn make(file: &File, payload: &Payload, to: &File) -> Result<(), Failure> {
    unpack::unpack(payload.format, file, payload.extent, to, payload.limit).map_err(Failure::Unpack)?;
    let image = elf::parse(to).map_err(Failure::NotElf)?;
    Ok(compact(to, &image)?)
}
