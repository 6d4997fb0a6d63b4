//! What the header of a qcow2 image says that decides whether it can be used (QEMU, `docs/interop/qcow2`). The rest
//! of the header is read by the `imago` crate, whose refusals name bits, not remedies.

use super::Error;
use super::host_file::HostFile;
use super::scratch::Scratch;
use crate::host::vectored;

/// Length of a version 3 header without extensions; version 2 has 72 bytes.
const HEADER_LEN: usize = 104;

/// Byte offsets of big-endian fields.
const VERSION: usize = 4;
const CLUSTER_BITS: usize = 20;
const ENCRYPTION: usize = 32;
const INCOMPATIBLE: usize = 72;

/// Bits of the field of incompatible features, and what an image has that sets them.
const FEATURES: [(u32, &str); 5] = [
    (0, "was not closed properly: repair it with: qemu-img check -r all"),
    (1, "is marked as corrupt: repair it with: qemu-img check -r all"),
    (2, "keeps its data in another file: make it one with: qemu-img convert -O qcow2"),
    (3, "is compressed in a newer way (zstd): rewrite it with: qemu-img convert -O qcow2"),
    (4, "has subclusters (extended_l2): rewrite it with: qemu-img convert -O qcow2"),
];

/// Checks the header of the image in `host` and returns its cluster size in bytes.
pub(super) fn check(host: &HostFile) -> Result<u32, Error> {
    let corrupt = |reason: &str| Error::Corrupt { path: host.path.clone(), reason: reason.into() };
    let refused = |what: String| Error::Refused { path: host.path.clone(), what };
    let head = read_head(host).map_err(Error::host("read", &host.path))?;
    if !head.starts_with(&super::probe::QCOW2_MAGIC) {
        return Err(corrupt("it does not start with the qcow2 signature"));
    }
    let version = field(&head, VERSION);
    if !(2..=3).contains(&version) {
        return Err(corrupt(&format!("its version is {version}, known are 2 and 3")));
    }
    if field(&head, ENCRYPTION) != 0 {
        return Err(refused("is encrypted: decrypt it with: qemu-img convert -O qcow2".into()));
    }
    // The field has 64 bits; those that are assigned are in its lower half.
    let features = if version == 3 { field(&head, INCOMPATIBLE + 4) } else { 0 };
    if let Some((_, what)) = FEATURES.iter().find(|(bit, _)| features & (1 << bit) != 0) {
        return Err(refused(format!("{what} {}", host.path.display())));
    }
    match field(&head, CLUSTER_BITS) {
        bits @ 9..=21 => Ok(1 << bits),
        bits => Err(corrupt(&format!("its clusters are said to have 2^{bits} bytes"))),
    }
}

fn read_head(host: &HostFile) -> std::io::Result<[u8; HEADER_LEN]> {
    // Page sized, since direct I/O reads nothing less.
    let page = Scratch::new(crate::mem::PAGE)?;
    vectored::read_at(&host.file, 0, page.list())?;
    page.head()
}

fn field(head: &[u8; HEADER_LEN], at: usize) -> u32 {
    let bytes = head.get(at..).and_then(|h| h.first_chunk());
    bytes.map_or(0, |b| u32::from_be_bytes(*b))
}
