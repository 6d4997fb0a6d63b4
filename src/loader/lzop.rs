//! Files that `lzop` writes, as kernels with CONFIG_KERNEL_LZO contain one (linux/lib/decompress_unlzo.c reads them, with
//! scripts/Makefile.lib making them): a header, then blocks of LZO1X, each with its sizes and checksums. All numbers are
//! big-endian. Called by [`super::unpack`].

use std::io::{self, Read, Write};

use lzokay::decompress::decompress;

/// How such files begin.
pub const MAGIC: &[u8; 9] = b"\x89LZO\0\r\n\x1a\n";
/// The oldest version whose header is laid out like this; there are no others in use.
const VERSION: u16 = 0x0940;
/// LZO1X compressed in three ways; they are all read in one.
const METHODS: std::ops::RangeInclusive<u8> = 1..=3;
/// No block unpacks to more.
const BLOCK: u32 = 256 << 10;

/// Flags: which checksums each block has, of the content and of what is packed.
const ADLER32: u32 = 1;
const ADLER32_PACKED: u32 = 1 << 1;
const EXTRA_FIELD: u32 = 1 << 6;
const CRC32: u32 = 1 << 8;
const CRC32_PACKED: u32 = 1 << 9;
const MULTIPART: u32 = 1 << 10;
const FILTER: u32 = 1 << 11;
/// Things that no kernel has: other files follow, or the content is not what it says.
const UNKNOWN: u32 = EXTRA_FIELD | MULTIPART | FILTER;

/// Unpacks `source` into `sink` and returns the size of the content. Stops early once that is `limit` or more, by at most
/// one block.
pub fn unpack(mut source: impl Read, sink: &mut impl Write, limit: u64) -> io::Result<u64> {
    let flags = header(&mut source)?;
    let mut total = 0;
    let (mut packed, mut content) = (Vec::new(), vec![0; BLOCK as usize]);
    while total < limit {
        let size = u32_from(&mut source)?;
        if size == 0 {
            break;
        }
        let packed_size = u32_from(&mut source)?;
        let Some(content) = content.get_mut(..size as usize) else { return Err(damaged("a block is too large")) };
        if packed_size == 0 || packed_size > size {
            return Err(damaged("a block is larger packed than unpacked"));
        }
        let sums = Checksums::read(flags, packed_size < size, &mut source)?;
        if packed_size == size {
            // What does not get smaller is stored.
            source.read_exact(content)?;
        } else {
            packed.resize(packed_size as usize, 0);
            source.read_exact(&mut packed)?;
            let found = decompress(&packed, content).map_err(io::Error::other)?;
            if found != content.len() {
                return Err(damaged("a block is shorter than it says"));
            }
        }
        sums.check(content)?;
        sink.write_all(content)?;
        total += u64::from(size);
    }
    Ok(total)
}

/// Reads the header; its flags.
fn header(source: &mut impl Read) -> io::Result<u32> {
    if &bytes::<9>(source)? != MAGIC {
        return Err(damaged("it is not an lzop file"));
    }
    let version = u16::from_be_bytes(bytes(source)?);
    let [_library, _needed] = [bytes::<2>(source)?, bytes::<2>(source)?];
    let [method, _level] = bytes(source)?;
    let flags = u32_from(source)?;
    if version < VERSION || !METHODS.contains(&method) || flags & UNKNOWN != 0 {
        return Err(damaged("it is an lzop file of another kind than kernels have"));
    }
    // Mode and time of the file, whose name follows, and a checksum of all this. Kernels have neither name nor time.
    let _mode_and_time = bytes::<12>(source)?;
    let [name] = bytes(source)?;
    source.read_exact(vec![0; name.into()].as_mut_slice())?;
    bytes::<4>(source)?;
    Ok(flags)
}

/// Checksums of the content of a block, as far as the file has them.
struct Checksums {
    adler: Option<u32>,
    crc: Option<u32>,
}

impl Checksums {
    /// Reads them, and those of what is packed, which are of no use beside them.
    fn read(flags: u32, is_packed: bool, source: &mut impl Read) -> io::Result<Self> {
        let mut next = |flag| if flags & flag != 0 { u32_from(source).map(Some) } else { Ok(None) };
        let sums = Self { adler: next(ADLER32)?, crc: next(CRC32)? };
        if is_packed {
            next(ADLER32_PACKED)?;
            next(CRC32_PACKED)?;
        }
        Ok(sums)
    }

    fn check(&self, content: &[u8]) -> io::Result<()> {
        let crc = || {
            let mut crc = flate2::Crc::new();
            crc.update(content);
            crc.sum()
        };
        let wrong = self.adler.is_some_and(|sum| sum != adler2::adler32_slice(content))
            || self.crc.is_some_and(|sum| sum != crc());
        if wrong { Err(damaged("a checksum is wrong")) } else { Ok(()) }
    }
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn u32_from(source: &mut impl Read) -> io::Result<u32> {
    bytes(source).map(u32::from_be_bytes)
}

fn bytes<const N: usize>(source: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    source.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// What `lzop` makes of `data`, as kernels' builds call it.
#[cfg(any(test, feature = "testkit"))]
pub(crate) fn pack(data: &[u8]) -> Vec<u8> {
    let mut file = MAGIC.to_vec();
    file.extend([0x10, 0x40, 0x20, 0xa0, 0x09, 0x40, 3, 9]);
    file.extend(ADLER32.to_be_bytes());
    file.extend([0; 12 + 1 + 4]);
    for block in data.chunks(BLOCK as usize) {
        let packed = lzokay::compress::compress(block).unwrap_or_default();
        let packed = if packed.len() < block.len() && !packed.is_empty() { &packed } else { block };
        file.extend((block.len() as u32).to_be_bytes());
        file.extend((packed.len() as u32).to_be_bytes());
        file.extend(adler2::adler32_slice(block).to_be_bytes());
        file.extend(packed);
    }
    file.extend([0; 4]);
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::process::{Command, Stdio};

    fn unpacked(file: &[u8]) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let size = unpack(file, &mut content, 4 << 20)?;
        assert_eq!(size, content.len() as u64);
        Ok(content)
    }

    /// Text, zeros, noise and repetition, over several blocks: short and long matches near and far.
    fn content(len: usize) -> Vec<u8> {
        let mut noise = 0x1234_5678_u32;
        let mut data = Vec::with_capacity(len + 4096);
        while data.len() < len {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (kind, size) = (noise >> 28, (noise >> 8 & 0xfff) as usize);
            match kind {
                0..4 => data.resize(data.len() + size, 0),
                4..8 => data.extend((0..size as u32).map(|i| (i.wrapping_mul(noise) >> 13) as u8)),
                8..12 => data.extend(b"the quick brown fox ".iter().cycle().take(size)),
                _ => {
                    let from = data.len().saturating_sub((noise as usize & 0xffff) + size);
                    let until = (from + size).min(data.len());
                    data.extend_from_within(from..until);
                }
            }
        }
        data.truncate(len);
        data
    }

    /// `printf '%0100d' 7 | lzop -9`, made by lzop 1.04.
    const MADE_BY_LZOP: &[u8] = &[
        0x89, 0x4c, 0x5a, 0x4f, 0x00, 0x0d, 0x0a, 0x1a, 0x0a, 0x10, 0x40, 0x20, 0xa0, 0x09, 0x40, 0x03, 0x09, 0x03,
        0x00, 0x00, 0x0d, 0x00, 0x00, 0x00, 0x00, 0x6b, 0x05, 0xaa, 0xb9, 0x00, 0x00, 0x00, 0x00, 0x00, 0x2c, 0xb1,
        0x03, 0x49, 0x00, 0x00, 0x00, 0x64, 0x00, 0x00, 0x00, 0x0a, 0xb3, 0x78, 0x12, 0xc8, 0x12, 0x30, 0x20, 0x41,
        0x01, 0x00, 0x37, 0x11, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    ];

    #[test]
    fn a_file_that_lzop_made() {
        assert_eq!(unpacked(MADE_BY_LZOP).unwrap(), [&[b'0'; 99][..], b"7"].concat());
        for len in 0..MADE_BY_LZOP.len() {
            assert!(unpacked(&MADE_BY_LZOP[..len]).is_err(), "cut to {len}");
        }
    }

    #[test]
    fn what_is_packed_is_unpacked() {
        for len in [0, 1, 2, 3, 4, 20, 238, 239, 1000, BLOCK as usize - 1, BLOCK as usize, 3_000_000] {
            let content = content(len);
            assert!(unpacked(&pack(&content)).unwrap() == content, "{len}");
        }
    }

    /// Every level of the program itself, and every checksum that it knows.
    #[test]
    fn what_lzop_packs_is_unpacked() {
        let content = content(1_500_000);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("content");
        std::fs::write(&path, &content).unwrap();
        for flags in [&["-1"][..], &["-3"], &["-7"], &["-9"], &["-9", "--crc32"], &["-F"], &["-9", "-CC"]] {
            let lzop = Command::new("lzop").args(flags).arg("-c").arg(&path).stderr(Stdio::null()).output();
            let Ok(lzop) = lzop.map(|output| output.stdout) else {
                println!("\nSKIPPED: no lzop on this host");
                return;
            };
            assert!(unpacked(&lzop).unwrap() == content, "{flags:?}");
        }
    }

    #[test]
    fn output_stops_at_the_limit() {
        let mut out = Vec::new();
        let size = unpack(pack(&content(3_000_000)).as_slice(), &mut out, 600_000).unwrap();
        assert_eq!((size, out.len()), (3 * u64::from(BLOCK), 3 * BLOCK as usize));
    }

    #[test]
    fn other_files_and_wrong_sums_are_refused() {
        let good = pack(&content(1000));
        let change = |at: usize, value: u8| {
            let mut file = good.clone();
            file[at] = value;
            unpacked(&file).unwrap_err().to_string()
        };
        assert!(change(0, 0).contains("not an lzop file"));
        for (at, value) in [(9, 8), (15, 0), (15, 128), (19, 0x08), (19, 0x04), (20, 0x41)] {
            assert!(change(at, value).contains("another kind"), "{at}");
        }
        // The first block: sizes at 38 and 42, the checksum at 46.
        assert!(change(38, 1).contains("too large"));
        assert!(change(43, 1).contains("larger packed"));
        assert!(change(46, 0xff).contains("checksum"));
        assert!(!change(41, 0x77).is_empty(), "another size");
        assert!(unpacked(&good[..good.len() - 1]).is_err(), "no end");
    }

    proptest! {
        /// Blocks of anything: an error or content of the size that is said, nothing else.
        #[test]
        fn hostile_blocks_do_no_harm(
            packed in prop::collection::vec(prop_oneof![any::<u8>(), 0u8..40, Just(0)], 1..300),
            more in 1u32..5000,
        ) {
            let size = (packed.len() as u32).saturating_add(more);
            let mut file = pack(b"");
            file.truncate(38);
            file[20] = 0; // no checksums
            file.extend(size.to_be_bytes());
            file.extend((packed.len() as u32).to_be_bytes());
            file.extend(&packed);
            file.extend([0; 4]);
            if let Ok(content) = unpacked(&file) {
                prop_assert_eq!(content.len(), size as usize);
            }
        }

        /// Files with some bytes changed: the checksums find every change of the content.
        #[test]
        fn damage_is_found(changes in prop::collection::vec((38usize..9000, any::<u8>()), 1..4)) {
            let content = content(20_000);
            let mut file = pack(&content);
            for (at, value) in changes {
                let at = at.min(file.len() - 1);
                file[at] = value;
            }
            if let Ok(found) = unpacked(&file) {
                prop_assert!(found == content || found.is_empty());
            }
        }
    }
}
