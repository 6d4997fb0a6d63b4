//! Compressed streams of unknown origin, as modules and packages are: told by their first bytes, decoded with bounded
//! memory.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use rustix::fs::OFlags;
use std::os::unix::fs::OpenOptionsExt;

use crate::loader::unpack::{self, Format};

/// Dictionaries of packages are up to 64 MiB; what asks for more is refused.
const MEMORY_LIMIT: u64 = 256 << 20;
/// The same for Zstandard: log2 of its window.
const ZSTD_WINDOW_LOG: u32 = 27;

/// What `source` unpacks to, or itself if it is not compressed.
pub fn reader<'a>(mut source: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    use liblzma::stream::{CONCATENATED, Stream};
    let head = source.fill_buf()?;
    Ok(match unpack::detect(head.get(..unpack::MAGIC_MAX).unwrap_or(head)) {
        None => Box::new(source),
        Some(Format::Gzip) => Box::new(flate2::bufread::MultiGzDecoder::new(source)),
        Some(Format::Bzip2) => Box::new(bzip2::bufread::MultiBzDecoder::new(source)),
        Some(Format::Zstd) => {
            let mut decoder = zstd::Decoder::with_buffer(source)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        Some(Format::Xz) => {
            let stream = Stream::new_stream_decoder(MEMORY_LIMIT, CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(source, stream))
        }
        Some(Format::Lzma) => {
            let stream = Stream::new_lzma_decoder(MEMORY_LIMIT)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(source, stream))
        }
        Some(format @ (Format::Lzo | Format::Lz4)) => {
            return Err(io::Error::new(io::ErrorKind::Unsupported, format!("{format:?} is not used for this")));
        }
    })
}

/// Opens a regular file; never waits, as opening a pipe would.
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::options().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}

/// The unpacked content of a file, which must not be more than `limit` bytes.
pub fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = BufReader::with_capacity(64 << 10, open(path)?);
    let mut data = Vec::new();
    reader(file)?.take(limit + 1).read_to_end(&mut data)?;
    if data.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("it is larger than {} MiB", limit >> 20)));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loader::fixtures::pack;

    #[test]
    fn every_format_is_read_and_bounded() {
        let content: Vec<u8> = (0..300_000u32).map(|i| (i / 9 % 250) as u8).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for format in [Format::Gzip, Format::Bzip2, Format::Zstd, Format::Xz, Format::Lzma] {
            let mut packed = pack(format, &content);
            // Kernels' payloads are followed by their size; these are not.
            packed.truncate(packed.len() - if format == Format::Gzip { 0 } else { 4 });
            std::fs::write(&path, &packed).unwrap();
            assert!(read(&path, 300_000).unwrap() == content, "{format:?}");
            let error = read(&path, 299_999).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::FileTooLarge, "{format:?}");
            std::fs::write(&path, &packed[..packed.len() / 2]).unwrap();
            assert!(read(&path, 300_000).is_err(), "{format:?} truncated");
        }
        std::fs::write(&path, &content).unwrap();
        assert!(read(&path, 300_000).unwrap() == content);
        assert!(read(dir.path(), 10).is_err() && read(Path::new("/dev/null"), 10).is_err());
    }
}
