//! What the header of a qcow2 image says that decides whether it can be used (QEMU, `docs/interop/qcow2`). The rest
//! of the header is read by the `imago` crate, whose refusals name bits, not remedies.

use super::Error;
use super::host_file::HostFile;
use super::scratch::Scratch;
use crate::host::vectored;
use crate::mem::PAGE;

/// Length of a version 3 header without extensions; version 2 has 72 bytes.
const HEADER_LEN: usize = 104;

/// Byte offsets of big-endian fields.
const VERSION: usize = 4;
const CLUSTER_BITS: usize = 20;
const ENCRYPTION: usize = 32;
const L1_SIZE: usize = 36;
const L1_OFFSET: usize = 40;
const REFCOUNTS_OFFSET: usize = 48;
const REFCOUNTS_CLUSTERS: usize = 56;
const INCOMPATIBLE: usize = 72;
const REFCOUNT_ORDER: usize = 96;

/// Bits of the field of incompatible features, and what an image has that sets them.
const FEATURES: [(u32, &str); 5] = [
    (0, "was not closed properly: repair it with: qemu-img check -r all IMAGE"),
    (1, "is marked as corrupt: repair it with: qemu-img check -r all IMAGE"),
    (2, "keeps its data in another file: make it one with: qemu-img convert -O qcow2 IMAGE NEW.qcow2"),
    (3, "is compressed in a newer way (zstd): rewrite it with: qemu-img convert -O qcow2 IMAGE NEW.qcow2"),
    (4, "has subclusters (extended_l2): rewrite it with: qemu-img convert -O qcow2 IMAGE NEW.qcow2"),
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
        return Err(refused("is encrypted: decrypt it with: qemu-img convert -O qcow2 IMAGE NEW.qcow2".into()));
    }
    // The field has 64 bits; those that are assigned are in its lower half.
    let features = if version == 3 { field(&head, INCOMPATIBLE + 4) } else { 0 };
    if let Some((_, what)) = FEATURES.iter().find(|(bit, _)| features & (1 << bit) != 0) {
        return Err(refused((*what).into()));
    }
    let cluster = match field(&head, CLUSTER_BITS) {
        bits @ 9..=21 => 1 << bits,
        bits => return Err(corrupt(&format!("its clusters are said to have 2^{bits} bytes"))),
    };
    check_tables(host, &head, cluster).map_err(Error::host("read", &host.path))?.map_err(corrupt)?;
    Ok(cluster)
}

/// Whether the tables are in the file and the first cluster, which has the header, is counted as used. Where that is
/// not so, the crate would see empty tables, overwrite the header, or look for a free cluster without end.
fn check_tables(host: &HostFile, head: &[u8; HEADER_LEN], cluster: u32) -> std::io::Result<Result<(), &'static str>> {
    let (len, cluster) = (host.len()?.next_multiple_of(cluster.into()), u64::from(cluster));
    let inside = |at: u64, bytes: u64| {
        at.is_multiple_of(cluster) && at >= cluster && at.checked_add(bytes).is_some_and(|e| e <= len)
    };
    let l1_bytes = u64::from(field(head, L1_SIZE)) * 8;
    if l1_bytes > 0 && !inside(wide_field(head, L1_OFFSET), l1_bytes) {
        return Ok(Err("its table of clusters is not in the file"));
    }
    let table = wide_field(head, REFCOUNTS_OFFSET);
    let table_bytes = u64::from(field(head, REFCOUNTS_CLUSTERS)) * cluster;
    if table_bytes == 0 || !inside(table, table_bytes) {
        return Ok(Err("its table of reference counts is not in the file"));
    }
    let first = u64::from_be_bytes(read_at(host, table)?);
    if !inside(first, cluster) {
        return Ok(Err("its reference counts are not in the file"));
    }
    // Counts have 2^order bits; several in one byte begin with the low bits.
    let order = if field(head, VERSION) == 3 { field(head, REFCOUNT_ORDER) } else { 4 };
    let counts: [u8; 8] = read_at(host, first)?;
    let used = match order {
        0..=2 => u32::from(counts[0]) & ((1 << (1 << order)) - 1) != 0,
        3..=6 => counts.iter().take(1 << (order - 3)).any(|&byte| byte != 0),
        _ => return Ok(Err("its reference counts have an impossible size")),
    };
    Ok(if used { Ok(()) } else { Err("its header is counted as free space") })
}

fn read_head(host: &HostFile) -> std::io::Result<[u8; HEADER_LEN]> {
    read_at(host, 0)
}

/// The first bytes of the cluster at `at`.
fn read_at<const N: usize>(host: &HostFile, at: u64) -> std::io::Result<[u8; N]> {
    // Whole pages, since direct I/O reads nothing less.
    let page = Scratch::new(PAGE)?;
    let skip = at % PAGE;
    vectored::read_at(&host.file, at - skip, page.list())?;
    page.bytes(skip)
}

fn wide_field(head: &[u8; HEADER_LEN], at: usize) -> u64 {
    u64::from(field(head, at)) << 32 | u64::from(field(head, at + 4))
}

fn field(head: &[u8; HEADER_LEN], at: usize) -> u32 {
    let bytes = head.get(at..).and_then(|h| h.first_chunk());
    bytes.map_or(0, |b| u32::from_be_bytes(*b))
}
