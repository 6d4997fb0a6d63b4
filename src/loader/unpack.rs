//! Decompression of kernel payloads, in every format that Linux' build can choose (linux/scripts/Makefile.lib;
//! lib/decompress*.c). The output goes to a file as a stream and is bounded. Called by [`super::load`] when a kernel is
//! not in the cache.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;

use super::bytes::ZERO_PAGE;
use super::lzop;

/// Kernels' dictionaries are 32 to 128 MiB; a file that asks for more is refused.
const MEMORY_LIMIT: u64 = 256 << 20;
/// Blocks of LZ4's legacy format unpack to at most this size.
const LZ4_BLOCK: usize = 8 << 20;
/// The most that a block can take when it does not compress.
const LZ4_BLOCK_PACKED: u32 = (LZ4_BLOCK + LZ4_BLOCK / 255 + 16) as u32;
const LZ4_MAGIC: u32 = 0x184c_2102;
/// Holes are left where this many zeros would be.
const BLOCK: usize = ZERO_PAGE.len();

/// How a payload is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// gzip.
    Gzip,
    /// bzip2.
    Bzip2,
    /// LZMA, the format before xz.
    Lzma,
    /// xz, with or without the x86 filter.
    Xz,
    /// LZO, as the program lzop writes it.
    Lzo,
    /// LZ4, legacy frame.
    Lz4,
    /// Zstandard.
    Zstd,
}

/// Why a payload cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Reading the payload or writing its content failed.
    #[error("unpacking the kernel failed")]
    Io(#[from] io::Error),
    /// The content is damaged.
    #[error("the compressed kernel ({format:?}) is damaged or truncated")]
    Damaged {
        /// How it is compressed.
        format: Format,
        /// What the decoder says.
        source: io::Error,
    },
    /// There is more content than the header allows.
    #[error("the kernel unpacks to more than the {0} bytes that its header speaks of: the file is damaged")]
    TooLarge(u64),
    /// There is less or more content than the file itself says.
    #[error("the kernel unpacks to {found} bytes, its file says {expected}: it is damaged or truncated")]
    Size {
        /// What was unpacked.
        found: u64,
        /// What the file says.
        expected: u32,
    },
}

/// So many bytes of a payload tell its format.
pub const MAGIC_MAX: usize = lzop::MAGIC.len();

/// The format of a payload that starts with `head`.
pub fn detect(head: &[u8]) -> Option<Format> {
    let formats: [(&[u8], Format); 7] = [
        (b"\x1f\x8b", Format::Gzip),
        (b"BZh", Format::Bzip2),
        (b"\x5d\0\0", Format::Lzma),
        (b"\xfd7zXZ\0", Format::Xz),
        (lzop::MAGIC, Format::Lzo),
        (b"\x02\x21\x4c\x18", Format::Lz4),
        (b"\x28\xb5\x2f\xfd", Format::Zstd),
    ];
    formats.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, format)| *format)
}

/// Unpacks `len` bytes of `file` from `offset` into `to`, an empty file, and returns the size of the content, which
/// is at most `limit` bytes.
pub fn unpack(format: Format, file: &File, (offset, len): (u64, u64), to: &File, limit: u64) -> Result<u64, Error> {
    // All but gzip, which has it by itself, are followed by the size of the content.
    let trailer = if format == Format::Gzip { 0 } else { 4 };
    let Some(data) = len.checked_sub(trailer).filter(|n| *n > 0) else {
        return Err(Error::Damaged { format, source: io::ErrorKind::UnexpectedEof.into() });
    };
    let mut source = Part { file, at: offset, end: offset + data };
    let mut sink = Sparse::new(to);
    let unpacked = decode(format, &mut source, &mut sink, limit.saturating_add(1));
    if let Some(error) = sink.error.take() {
        return Err(Error::Io(error));
    }
    let size = unpacked.map_err(|source| Error::Damaged { format, source })?;
    if size > limit {
        return Err(Error::TooLarge(limit));
    }
    sink.finish()?;
    let mut expected = [0; 4];
    if trailer > 0 {
        file.read_exact_at(&mut expected, offset + data)?;
        let expected = u32::from_le_bytes(expected);
        if u64::from(expected) != size {
            return Err(Error::Size { found: size, expected });
        }
    }
    Ok(size)
}

fn decode(format: Format, source: &mut Part<'_>, sink: &mut Sparse<'_>, limit: u64) -> io::Result<u64> {
    let source = BufReader::with_capacity(64 << 10, source);
    match format {
        Format::Gzip => copy(flate2::bufread::GzDecoder::new(source), sink, limit),
        Format::Bzip2 => copy(bzip2::bufread::BzDecoder::new(source), sink, limit),
        Format::Lzma => copy(lzma(source, liblzma::stream::Stream::new_lzma_decoder(MEMORY_LIMIT)?), sink, limit),
        Format::Xz => copy(lzma(source, liblzma::stream::Stream::new_stream_decoder(MEMORY_LIMIT, 0)?), sink, limit),
        Format::Zstd => copy(zstd::Decoder::with_buffer(source)?.single_frame(), sink, limit),
        Format::Lzo => lzop::unpack(source, sink, limit),
        Format::Lz4 => lz4(source, sink, limit),
    }
}

fn lzma<R: BufRead>(source: R, stream: liblzma::stream::Stream) -> impl Read {
    liblzma::bufread::XzDecoder::new_stream(source, stream)
}

fn copy(source: impl Read, sink: &mut Sparse<'_>, limit: u64) -> io::Result<u64> {
    io::copy(&mut source.take(limit), sink)
}

/// The legacy frame: magic number, then blocks, each with its packed size before it (lz4/doc/lz4_Frame_format.md).
fn lz4(mut source: impl Read, sink: &mut Sparse<'_>, limit: u64) -> io::Result<u64> {
    let mut block = vec![0; LZ4_BLOCK];
    let mut packed = Vec::new();
    let mut total = 0;
    while let Some(size) = next_u32(&mut source)? {
        if size == LZ4_MAGIC {
            continue;
        }
        if size > LZ4_BLOCK_PACKED {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a block is larger than blocks can be"));
        }
        packed.clear();
        if (&mut source).take(size.into()).read_to_end(&mut packed)? < size as usize {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let n = lz4_flex::block::decompress_into(&packed, &mut block).map_err(io::Error::other)?;
        sink.write_all(block.get(..n).unwrap_or_default())?;
        total += n as u64;
        if total >= limit {
            break;
        }
    }
    Ok(total)
}

/// The next number, or none at the end.
fn next_u32(source: &mut impl Read) -> io::Result<Option<u32>> {
    let mut bytes = Vec::with_capacity(4);
    match source.take(4).read_to_end(&mut bytes)? {
        0 => Ok(None),
        _ => {
            let bytes = bytes.try_into().map_err(|_| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            Ok(Some(u32::from_le_bytes(bytes)))
        }
    }
}

/// A part of a file as a stream.
#[derive(Debug)]
pub struct Part<'a> {
    /// The file.
    pub file: &'a File,
    /// Where the next byte is.
    pub at: u64,
    /// Where the part ends, if the file does not end before.
    pub end: u64,
}

impl Read for Part<'_> {
    fn read(&mut self, data: &mut [u8]) -> io::Result<usize> {
        let len = (data.len() as u64).min(self.end.saturating_sub(self.at));
        let n = self.file.read_at(data.get_mut(..len as usize).unwrap_or_default(), self.at)?;
        self.at += n as u64;
        Ok(n)
    }
}

/// Writes a stream to an empty file, leaving holes for zeros. Failures are kept, to tell them from the decoder's.
struct Sparse<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Where the buffer goes.
    at: u64,
    error: Option<io::Error>,
}

impl<'a> Sparse<'a> {
    fn new(file: &'a File) -> Self {
        Self { file, buffer: Vec::with_capacity(64 * BLOCK), at: 0, error: None }
    }

    fn write_out(&mut self) -> io::Result<()> {
        let zero = |block: &[u8]| Some(block) == ZERO_PAGE.get(..block.len());
        let blocks: Vec<&[u8]> = self.buffer.chunks(BLOCK).collect();
        let mut at = self.at;
        for run in blocks.chunk_by(|a, b| zero(a) == zero(b)) {
            let len: usize = run.iter().map(|b| b.len()).sum();
            if run.first().is_some_and(|block| !zero(block)) {
                let start = (at - self.at) as usize;
                self.file.write_all_at(self.buffer.get(start..start + len).unwrap_or_default(), at)?;
            }
            at += len as u64;
        }
        self.at = at;
        self.buffer.clear();
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        self.write_out()?;
        self.file.set_len(self.at)
    }
}

impl Write for Sparse<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let n = data.len().min(self.buffer.capacity() - self.buffer.len());
        self.buffer.extend_from_slice(data.get(..n).unwrap_or_default());
        if self.buffer.len() == self.buffer.capacity()
            && let Err(error) = self.write_out()
        {
            self.error = Some(error);
            return Err(io::ErrorKind::Other.into());
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{self, FORMATS};
    use super::*;

    fn content() -> Vec<u8> {
        let mut data: Vec<u8> = (0..200_000u32).map(|i| (i / 7 % 251) as u8).collect();
        data.resize(500_000, 0);
        data.extend(b"end");
        data
    }

    fn unpacked(format: Format, packed: &[u8], limit: u64) -> Result<Vec<u8>, Error> {
        let to = tempfile::tempfile().unwrap();
        let mut whole = vec![0xcc; 10];
        whole.extend(packed);
        whole.extend([0xdd; 10]);
        let size = unpack(format, &fixtures::file(&whole), (10, packed.len() as u64), &to, limit)?;
        let mut data = vec![0; size as usize];
        to.read_exact_at(&mut data, 0).unwrap();
        assert_eq!(to.metadata().unwrap().len(), size);
        Ok(data)
    }

    #[test]
    fn every_format_is_recognised_and_unpacked() {
        assert_eq!(FORMATS.len(), 7, "all that a kernel's configuration can choose");
        for &format in FORMATS {
            let packed = fixtures::pack(format, &content());
            assert_eq!(detect(&packed), Some(format));
            assert!(unpacked(format, &packed, 600_000).unwrap() == content(), "{format:?}");
        }
        assert_eq!(detect(b"\x89LZO"), None, "not even a whole magic number");
        assert_eq!(detect(b""), None);
    }

    #[test]
    fn output_is_bounded() {
        for &format in FORMATS {
            let packed = fixtures::pack(format, &content());
            let error = unpacked(format, &packed, 499_999).unwrap_err();
            assert!(matches!(error, Error::TooLarge(499_999)), "{format:?} {error:?}");
        }
    }

    #[test]
    fn truncated_and_damaged_payloads_are_refused() {
        for &format in FORMATS {
            let packed = fixtures::pack(format, &content());
            for len in [packed.len() - 5, packed.len() / 2, 7, 3] {
                assert!(unpacked(format, &packed[..len], 600_000).is_err(), "{format:?} cut to {len}");
            }
            let mut damaged = packed.clone();
            let at = packed.len() / 2;
            damaged[at..at + 4].fill(0xff);
            assert!(unpacked(format, &damaged, 600_000).is_err(), "{format:?} damaged");
        }
        let mut wrong = fixtures::pack(Format::Zstd, &content());
        let at = wrong.len() - 4;
        wrong[at] ^= 1;
        assert!(matches!(unpacked(Format::Zstd, &wrong, 600_000), Err(Error::Size { .. })));
        assert!(unpacked(Format::Lz4, b"\x02\x21\x4c\x18\xff\xff\xff\x7f....", 600_000).is_err());
    }

    #[test]
    fn zeros_become_holes() {
        use std::os::unix::fs::MetadataExt;
        let to = tempfile::tempfile().unwrap();
        let mut data = vec![0; 8 << 20];
        data[5 << 20] = 1;
        let packed = fixtures::pack(Format::Zstd, &data);
        unpack(Format::Zstd, &fixtures::file(&packed), (0, packed.len() as u64), &to, 16 << 20).unwrap();
        let mut seen = vec![9; data.len()];
        to.read_exact_at(&mut seen, 0).unwrap();
        assert!(seen == data);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
    }
}
