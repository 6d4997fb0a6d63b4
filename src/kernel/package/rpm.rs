//! RPM packages (rpm.org, "RPM V4 Package format"): a lead of 96 bytes, a header with signatures, the header that
//! says what the package is, and its files as a compressed cpio archive.

use std::fs::File;
use std::io::{self, BufReader};
use std::os::unix::fs::FileExt;

use super::About;
use super::cpio;
use super::take::{Error, Taker};
use crate::kernel::compressed;
use crate::loader::unpack::Part;

/// The first bytes of the lead.
pub const MAGIC: &[u8] = b"\xed\xab\xee\xdb";
const LEAD: u64 = 96;
/// Of each of the two headers, with a version behind it.
const HEADER_MAGIC: &[u8] = b"\x8e\xad\xe8\x01";
/// Magic number, reserved bytes, number of entries, size of what they point to.
const HEADER: usize = 16;
/// Tag, type, offset, count; big-endian.
const ENTRY: usize = 16;
/// Headers of kernels have some MiB: a name for each of 5,000 files.
const MAX_ENTRIES: u32 = 4096;
const MAX_STORE: u32 = 32 << 20;
const TAG_NAME: u32 = 1000;
const TAG_REQUIRES: u32 = 1049;
const TYPE_STRING: u32 = 6;
const TYPE_STRING_ARRAY: u32 = 8;

/// Takes the files of a package.
pub fn unpack(file: &File, taker: &mut Taker<'_>) -> Result<About, Error> {
    let signatures = Header::at(file, LEAD)?;
    // Only what comes after the signatures is aligned.
    let header = Header::at(file, signatures.end.next_multiple_of(8))?;
    let about = header.about(file)?;
    let payload = Part { file, at: header.end, end: u64::MAX };
    cpio::unpack(compressed::reader(BufReader::with_capacity(64 << 10, payload))?, taker)?;
    Ok(about)
}

struct Header {
    start: u64,
    entries: u32,
    store: u32,
    end: u64,
}

impl Header {
    fn at(file: &File, start: u64) -> Result<Self, Error> {
        let mut head = [0; HEADER];
        file.read_exact_at(&mut head, start)?;
        let (entries, store) = (be32(&head, 8), be32(&head, 12));
        if !head.starts_with(HEADER_MAGIC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a header of it is none").into());
        }
        if entries > MAX_ENTRIES || store > MAX_STORE {
            return Err(Error::Refused("its header is larger than any package's".into()));
        }
        let end = start + HEADER as u64 + u64::from(entries) * ENTRY as u64 + u64::from(store);
        Ok(Self { start, entries, store, end })
    }

    fn about(&self, file: &File) -> Result<About, Error> {
        let mut index = vec![0; self.entries as usize * ENTRY];
        let mut store = vec![0; self.store as usize];
        file.read_exact_at(&mut index, self.start + HEADER as u64)?;
        file.read_exact_at(&mut store, self.end - u64::from(self.store))?;
        let texts = |wanted: u32, kinds: &[u32]| -> Vec<String> {
            let entry =
                index.chunks_exact(ENTRY).find(|entry| be32(entry, 0) == wanted && kinds.contains(&be32(entry, 4)));
            let Some(entry) = entry else { return Vec::new() };
            let texts = store.get(be32(entry, 8) as usize..).unwrap_or_default().split(|&byte| byte == 0);
            texts.take(be32(entry, 12) as usize).map(|text| String::from_utf8_lossy(text).into_owned()).collect()
        };
        let name = texts(TAG_NAME, &[TYPE_STRING]).into_iter().next().unwrap_or_default();
        Ok(About { name, needs: texts(TAG_REQUIRES, &[TYPE_STRING_ARRAY]).join(", ") })
    }
}

/// A big-endian number; zero if there is none.
fn be32(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map(u32::from_be_bytes).unwrap_or_default()
}
