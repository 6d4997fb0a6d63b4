//! ELF kernels: `vmlinux`, decompressed bzImage payloads, and other kernels with a PVH entry (System V ABI, chapter 5;
//! notes: linux/include/xen/interface/elfnote.h). Nothing in the file is trusted. Segments are mapped into guest
//! RAM, not copied. Called by [`super::load`], before any vCPU runs.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::bytes::{ZERO_PAGE, u16_at, u32_at, u64_at};
use crate::board::layout;
use crate::mem::{self, Ram};

/// The first bytes of every ELF file.
pub const MAGIC: &[u8] = b"\x7fELF";

const HEADER_SIZE: usize = 64;
const PROGRAM_HEADER_SIZE: usize = 56;
const CLASS_64: u8 = 2;
const LITTLE_ENDIAN: u8 = 1;
const TYPE_EXEC: u16 = 2;
const TYPE_DYN: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// XEN_ELFNOTE_GUEST_OS and XEN_ELFNOTE_PHYS32_ENTRY.
const XEN_GUEST_OS: u32 = 6;
const XEN_PHYS32_ENTRY: u32 = 18;
/// LINUX_ELFNOTE_BUILD_SALT: distributions put the release there.
const LINUX_BUILD_SALT: u32 = 0x100;
/// Kernels have around five program headers and 500 bytes of notes; more than this is not a kernel.
const MAX_PROGRAM_HEADERS: u16 = 64;
const MAX_NOTES: u64 = 64 << 10;

/// Why an ELF file cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("reading {len} bytes at offset {offset:#x} of the file failed")]
    Read {
        /// Where.
        offset: u64,
        /// How much.
        len: u64,
        /// The host's reason.
        source: io::Error,
    },
    /// The file ends before something its headers speak of.
    #[error("the file is truncated: {what} needs {needed} bytes, the file has {len}")]
    Truncated {
        /// What does not fit.
        what: &'static str,
        /// The size that the file would need.
        needed: u64,
        /// The size it has.
        len: u64,
    },
    /// An ELF file, but not a kernel for this machine.
    #[error("not a kernel for this machine: {0}")]
    Unsuitable(&'static str),
    /// A header contradicts itself or another one.
    #[error("the file is damaged: {0}")]
    Damaged(&'static str),
    /// The kernel wants memory where there is none.
    #[error("the kernel wants to be at {start:#x} to {end:#x}, which is not all free RAM; {remedy}")]
    NoRam {
        /// First address.
        start: u64,
        /// End.
        end: u64,
        /// What helps.
        remedy: String,
    },
    /// Mapping or writing guest RAM failed.
    #[error("putting a segment into guest memory failed")]
    Memory(#[source] mem::Error),
}

/// A loadable piece of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Where its program header is in the file.
    pub header: u64,
    /// Where it is in the file.
    pub offset: u64,
    /// Bytes in the file.
    pub file_len: u64,
    /// Guest-physical address.
    pub start: u64,
    /// Bytes in memory; what is not in the file is zero.
    pub memory_len: u64,
}

impl Segment {
    /// End of the segment in guest-physical memory.
    pub fn end(&self) -> u64 {
        self.start + self.memory_len
    }
}

/// What the headers of a valid file say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Image {
    /// Entry of the header: guest-physical for a Linux kernel.
    pub entry: u64,
    /// Loadable pieces by ascending address, none empty, without overlaps, all above [`layout::HIGH_RAM`].
    pub segments: Vec<Segment>,
    /// Notes in the file, as offset and end.
    pub notes: Vec<std::ops::Range<u64>>,
    /// PVH entry, if there is one.
    pub pvh: Option<u32>,
    /// Whether the notes say that this is Linux.
    pub linux: bool,
    /// Release, if the notes have it.
    pub version: Option<String>,
}

/// Reads and checks the headers of `file`.
pub fn parse(file: &File) -> Result<Image, Error> {
    let len = file.metadata().map_err(|source| Error::Read { offset: 0, len: 0, source })?.len();
    let header = read(file, len, 0, HEADER_SIZE as u64, "the ELF header")?;
    let (offset, count) = program_headers(&header)?;
    let size = u64::from(count) * PROGRAM_HEADER_SIZE as u64;
    let table = read(file, len, offset, size, "the program headers")?;
    let entry = u64_at(&header, 24).unwrap_or_default();
    let mut image = Image { entry, ..Image::default() };
    for (index, header) in table.chunks_exact(PROGRAM_HEADER_SIZE).enumerate() {
        let at = offset + (index * PROGRAM_HEADER_SIZE) as u64;
        match u32_at(header, 0) {
            Some(PT_LOAD) => image.segments.extend(segment(header, at, len)?),
            Some(PT_NOTE) => {
                let segment = extent(header, at)?;
                // Other notes than those that are looked for may be of any size.
                let size = segment.file_len.min(MAX_NOTES);
                notes(&read(file, len, segment.offset, size, "the notes")?, &mut image);
                image.notes.push(segment.offset..segment.offset + size);
            }
            _ => {}
        }
    }
    image.segments.sort_by_key(|s| s.start);
    if image.segments.is_empty() {
        return Err(Error::Damaged("it has nothing to load"));
    }
    if image.segments.windows(2).any(|w| w[0].end() > w[1].start) {
        return Err(Error::Damaged("segments overlap in memory"));
    }
    Ok(image)
}

/// Checks the ELF header; offset and number of the program headers.
fn program_headers(header: &[u8]) -> Result<(u64, u16), Error> {
    if !header.starts_with(MAGIC) {
        return Err(Error::Damaged("it does not start with the ELF magic number"));
    }
    if header.get(4) != Some(&CLASS_64) {
        return Err(Error::Unsuitable("it is a 32-bit ELF file; only 64-bit kernels can be loaded"));
    }
    if header.get(5) != Some(&LITTLE_ENDIAN) {
        return Err(Error::Unsuitable("it is a big-endian ELF file"));
    }
    if u16_at(header, 18) != Some(MACHINE_X86_64) {
        return Err(Error::Unsuitable("it is for another processor than x86-64"));
    }
    if !matches!(u16_at(header, 16), Some(TYPE_EXEC | TYPE_DYN)) {
        return Err(Error::Unsuitable("it is an object or core file; give the linked kernel"));
    }
    let (Some(offset), Some(size), Some(count)) = (u64_at(header, 32), u16_at(header, 54), u16_at(header, 56)) else {
        return Err(Error::Damaged("the ELF header is too short"));
    };
    if usize::from(size) != PROGRAM_HEADER_SIZE || count == 0 || count > MAX_PROGRAM_HEADERS {
        return Err(Error::Damaged("its program headers have an impossible size or number"));
    }
    Ok((offset, count))
}

fn extent(header: &[u8], at: u64) -> Result<Segment, Error> {
    let field = |at| u64_at(header, at).ok_or(Error::Damaged("a program header is too short"));
    Ok(Segment { header: at, offset: field(8)?, file_len: field(32)?, start: field(24)?, memory_len: field(40)? })
}

fn segment(header: &[u8], at: u64, len: u64) -> Result<Option<Segment>, Error> {
    let segment = extent(header, at)?;
    if segment.memory_len == 0 && segment.file_len == 0 {
        return Ok(None);
    }
    if segment.file_len > segment.memory_len {
        return Err(Error::Damaged("a segment is larger in the file than in memory"));
    }
    check_extent(segment.offset, segment.file_len, len, "a segment")?;
    let Some(end) = segment.start.checked_add(segment.memory_len) else {
        return Err(Error::Damaged("a segment wraps around the end of the address space"));
    };
    if segment.start < layout::HIGH_RAM {
        let remedy = "link it at 1 MiB or above: boot tables are below".to_owned();
        return Err(Error::NoRam { start: segment.start, end, remedy });
    }
    Ok(Some(segment))
}

/// Picks what matters from a note section; damaged notes end the search.
fn notes(mut data: &[u8], image: &mut Image) {
    while let (Some(name_len), Some(len), Some(kind)) = (u32_at(data, 0), u32_at(data, 4), u32_at(data, 8)) {
        let aligned = |n: u32| (n as usize).next_multiple_of(4);
        let Some(name) = data.get(12..).and_then(|d| d.get(..name_len as usize)) else { return };
        let Some(rest) = data.get(12..).and_then(|d| d.get(aligned(name_len)..)) else { return };
        let Some(content) = rest.get(..len as usize) else { return };
        match (name, kind) {
            (b"Xen\0", XEN_PHYS32_ENTRY) => image.pvh = u32_at(content, 0),
            (b"Xen\0", XEN_GUEST_OS) => image.linux |= content == b"linux\0",
            (b"Linux\0", kind) => {
                image.linux = true;
                let text = content.strip_suffix(b"\0").unwrap_or(content);
                if kind == LINUX_BUILD_SALT && !text.is_empty() && text.iter().all(u8::is_ascii_graphic) {
                    image.version = Some(String::from_utf8_lossy(text).into_owned());
                }
            }
            _ => {}
        }
        let Some(next) = rest.get(aligned(len)..) else { return };
        data = next;
    }
}

/// Maps the segments of `file` into `ram` and returns the end of the kernel. `fresh` says that RAM that was not
/// written yet reads as zeros; otherwise zeros are written where the kernel expects them.
pub fn place(image: &Image, file: &File, ram: &Ram, fresh: bool) -> Result<u64, Error> {
    let mut end = 0;
    for segment in &image.segments {
        if ram.host_address(segment.start, segment.memory_len).is_err() {
            return Err(no_ram(segment, image, ram));
        }
        ram.map_file(segment.start, file, segment.offset, segment.file_len).map_err(Error::Memory)?;
        if !fresh {
            zero(ram, segment.start + segment.file_len, segment.end()).map_err(Error::Memory)?;
        }
        end = segment.end();
    }
    Ok(end)
}

fn no_ram(segment: &Segment, image: &Image, ram: &Ram) -> Error {
    let needed = image.segments.iter().map(Segment::end).max().unwrap_or(0);
    let remedy = if needed <= layout::RAM_BELOW_4G_END && needed > ram.size() {
        format!("give the machine at least {} MiB of memory", (needed >> 20) + 64)
    } else {
        "link it at an address that is RAM".to_owned()
    };
    Error::NoRam { start: segment.start, end: segment.end(), remedy }
}

fn zero(ram: &Ram, mut at: u64, end: u64) -> Result<(), mem::Error> {
    while at < end {
        let n = (end - at).min(ZERO_PAGE.len() as u64);
        ram.write(at, ZERO_PAGE.get(..n as usize).unwrap_or(&ZERO_PAGE))?;
        at += n;
    }
    Ok(())
}

fn check_extent(offset: u64, size: u64, len: u64, what: &'static str) -> Result<(), Error> {
    match offset.checked_add(size) {
        Some(needed) if needed <= len => Ok(()),
        needed => Err(Error::Truncated { what, needed: needed.unwrap_or(u64::MAX), len }),
    }
}

fn read(file: &File, file_len: u64, offset: u64, len: u64, what: &'static str) -> Result<Vec<u8>, Error> {
    check_extent(offset, len, file_len, what)?;
    let mut data = vec![0; len as usize];
    file.read_exact_at(&mut data, offset).map_err(|source| Error::Read { offset, len, source })?;
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{self, LINUX_NOTES, file, load, notes};
    use super::*;
    use crate::mem::Backing;

    fn patched(at: usize, bytes: &[u8]) -> Result<Image, Error> {
        let mut elf = fixtures::vmlinux();
        elf[at..at + bytes.len()].copy_from_slice(bytes);
        parse(&file(&elf))
    }

    /// Offset of a field in the program header of the first segment.
    const fn field(at: usize) -> usize {
        64 + at
    }

    #[test]
    fn headers_and_notes_are_read() {
        let image = parse(&file(&fixtures::vmlinux())).unwrap();
        assert_eq!(image.entry, 0x10_0020);
        assert_eq!(image.pvh, Some(0x10_0010));
        assert!(image.linux);
        assert_eq!(image.version.as_deref(), Some("6.12.1-test"));
        let expected =
            Segment { header: 64 + 56, offset: 0x4000, file_len: 5000, start: 0x10_4000, memory_len: 14_000 };
        assert_eq!(image.segments[1], expected);
    }

    #[test]
    fn segments_arrive_and_the_rest_is_zero() {
        let elf = file(&fixtures::vmlinux());
        let image = parse(&elf).unwrap();
        for fresh in [true, false] {
            let ram = Ram::new(&[(0, 0x20_0000)], Backing::Anonymous).unwrap();
            if !fresh {
                ram.write(0x10_0000, &vec![0xaa; 0x10_0000]).unwrap();
            }
            assert_eq!(place(&image, &elf, &ram, fresh).unwrap(), 0x10_4000 + 14_000);
            let mut seen = vec![0xff; 14_000];
            ram.read(0x10_4000, &mut seen).unwrap();
            assert_eq!(seen[..5000], [7; 5000]);
            assert_eq!(seen[5000..], [0; 9000]);
            ram.read(0x10_0000, &mut seen[..10_000]).unwrap();
            assert_eq!(seen[9_999], (9_999 % 253) as u8 + 1);
        }
    }

    #[test]
    fn other_files_are_refused_by_name() {
        let refused = |at, bytes: &[u8]| patched(at, bytes).unwrap_err().to_string();
        assert!(refused(0, b"\x7fELG").contains("magic"));
        assert!(refused(4, &[1]).contains("32-bit"));
        assert!(refused(5, &[2]).contains("big-endian"));
        assert!(refused(18, &[183, 0]).contains("another processor"));
        assert!(refused(16, &[1, 0]).contains("object"));
        assert!(refused(54, &[32, 0]).contains("program headers"));
        assert!(refused(56, &[0, 0]).contains("program headers"));
        assert!(refused(56, &[0xff, 0xff]).contains("program headers"));
        assert!(refused(32, &[0xff; 8]).contains("truncated"));
        let elf = fixtures::elf(0x10_0000, &[notes(LINUX_NOTES)]);
        assert!(parse(&file(&elf)).unwrap_err().to_string().contains("nothing to load"));
    }

    #[test]
    fn hostile_sizes_and_addresses_are_refused() {
        let refused = |at, value: u64| patched(field(at), &value.to_le_bytes()).unwrap_err();
        assert!(matches!(refused(8, u64::MAX - 10), Error::Truncated { .. }), "offset");
        assert!(matches!(refused(8, 1 << 40), Error::Truncated { .. }), "offset");
        assert!(matches!(refused(32, u64::MAX), Error::Damaged(_)), "file size");
        assert!(matches!(refused(40, 100), Error::Damaged(_)), "memory size");
        assert!(matches!(refused(40, u64::MAX), Error::Damaged(_)), "memory size");
        assert!(matches!(refused(40, 0x4001), Error::Damaged("segments overlap in memory")));
        assert!(matches!(refused(24, 0x9000), Error::NoRam { .. }), "low memory");
        assert!(matches!(refused(24, u64::MAX - 100), Error::Damaged(_)), "address");
        let short = &fixtures::vmlinux()[..0x3000];
        assert!(matches!(parse(&file(short)), Err(Error::Truncated { .. })));
    }

    #[test]
    fn a_kernel_that_does_not_fit_says_how_much_it_needs() {
        let elf = file(&fixtures::elf(0x400_0000, &[load(0x400_0000, b"code", 0)]));
        let image = parse(&elf).unwrap();
        let ram = Ram::new(&[(0, 0x20_0000)], Backing::Anonymous).unwrap();
        let error = place(&image, &elf, &ram, true).unwrap_err().to_string();
        assert!(error.contains("at least 128 MiB"), "{error}");
    }

    #[test]
    fn damaged_notes_are_passed_over() {
        for note in
            [vec![0xff; 40], vec![4, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 18, 0, 0, 0, b'X', b'e', b'n', 0], vec![1]]
        {
            let mut piece = notes(&[]);
            piece.data = note;
            let elf = fixtures::elf(0x10_0000, &[load(0x10_0000, b"code", 0), piece]);
            let image = parse(&file(&elf)).unwrap();
            assert_eq!((image.pvh, image.linux, image.version), (None, false, None));
        }
    }
}
