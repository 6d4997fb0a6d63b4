//! Made-up kernels for tests.

#[cfg(test)]
use std::fs::File;
use std::io::Write;

use super::unpack::Format;

/// A piece of an ELF file.
#[derive(Clone)]
pub struct Piece {
    pub kind: u32,
    pub start: u64,
    pub data: Vec<u8>,
    pub memory_len: u64,
}

pub fn load(start: u64, data: &[u8], zeros: u64) -> Piece {
    Piece { kind: 1, start, data: data.to_vec(), memory_len: data.len() as u64 + zeros }
}

pub fn notes(notes: &[(&[u8], u32, &[u8])]) -> Piece {
    let mut data = Vec::new();
    for (name, kind, content) in notes {
        for n in [name.len() as u32, content.len() as u32, *kind] {
            data.extend(n.to_le_bytes());
        }
        for part in [name, content] {
            data.extend(*part);
            data.resize(data.len().next_multiple_of(4), 0);
        }
    }
    Piece { kind: 4, start: 0, memory_len: data.len() as u64, data }
}

pub const LINUX_NOTES: &[(&[u8], u32, &[u8])] =
    &[(b"Linux\0", 0x101, b"\0\0\0\0"), (b"Linux\0", 0x100, b"6.12.1-test\0"), (b"Xen\0", 18, &[0x10, 0, 0x10, 0])];

/// An executable with page-aligned pieces, then some trailing bytes that are not loaded.
pub fn elf(entry: u64, pieces: &[Piece]) -> Vec<u8> {
    let mut file = vec![0; 64];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let mut put =
        |at: usize, value: u64, size: usize| file[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    put(16, 2, 2);
    put(18, 62, 2);
    put(20, 1, 4);
    put(24, entry, 8);
    put(32, 64, 8);
    put(52, 64, 2);
    put(54, 56, 2);
    put(56, pieces.len() as u64, 2);
    let mut offset = 4096;
    for p in pieces {
        file.extend(p.kind.to_le_bytes());
        file.extend(5u32.to_le_bytes());
        for n in [offset, p.start, p.start, p.data.len() as u64, p.memory_len, 4096] {
            file.extend(n.to_le_bytes());
        }
        offset += (p.data.len() as u64).next_multiple_of(4096);
    }
    for p in pieces {
        file.resize(file.len().next_multiple_of(4096), 0);
        file.extend(&p.data);
    }
    file.extend([0xee; 100]);
    file
}

/// A kernel at 1 MiB with code, a page of data elsewhere, BSS, and Linux notes.
pub fn vmlinux() -> Vec<u8> {
    let code: Vec<u8> = (0..10_000u32).map(|i| (i % 253) as u8 + 1).collect();
    elf(0x10_0020, &[load(0x10_0000, &code, 0), load(0x10_4000, &[7; 5000], 9000), notes(LINUX_NOTES)])
}

#[cfg(test)]
pub fn file(content: &[u8]) -> File {
    let mut file = File::from(rustix::fs::memfd_create("fixture", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    file.write_all(content).unwrap();
    file
}

pub const FORMATS: &[Format] =
    &[Format::Gzip, Format::Bzip2, Format::Lzma, Format::Xz, Format::Lzo, Format::Lz4, Format::Zstd];

/// Packs as the kernel's build does: all but gzip are followed by the size of the content.
pub fn pack(format: Format, data: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
    let lzma = |stream| {
        let mut encoder = liblzma::write::XzEncoder::new_stream(Vec::new(), stream);
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    };
    let options = LzmaOptions::new_preset(1).unwrap();
    let mut packed = match format {
        Format::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            return encoder.finish().unwrap();
        }
        Format::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Format::Lzma => lzma(Stream::new_lzma_encoder(&options).unwrap()),
        Format::Xz => {
            let mut filters = Filters::new();
            filters.x86().lzma2(&options);
            lzma(Stream::new_stream_encoder(&filters, Check::Crc32).unwrap())
        }
        Format::Lzo => super::lzop::pack(data),
        Format::Lz4 => {
            let mut packed = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
            packed
        }
        Format::Zstd => {
            let mut encoder = zstd::Encoder::new(Vec::new(), 1).unwrap();
            encoder.include_checksum(true).unwrap();
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
    };
    packed.extend((data.len() as u32).to_le_bytes());
    packed
}

/// What a made-up bzImage contains.
pub struct Packed {
    pub payload: Vec<u8>,
    pub pref_address: u64,
    pub init_size: u32,
}

impl Default for Packed {
    fn default() -> Self {
        Self { payload: Vec::new(), pref_address: 0x10_0000, init_size: 0x20_0000 }
    }
}

/// A bzImage with one setup sector and one page of code before the payload.
pub fn bzimage(packed: &Packed) -> Vec<u8> {
    let mut file = vec![0; 1024];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0x1f1, &[1]);
    put(0x1fe, &[0x55, 0xaa]);
    put(0x200, &[0xeb, 0x6a]);
    put(0x202, b"HdrS\x0f\x02");
    put(0x20e, &0x100u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x22c, &0x7fff_ffffu32.to_le_bytes());
    put(0x236, &0x7fu16.to_le_bytes());
    put(0x238, &2047u32.to_le_bytes());
    put(0x248, &4096u32.to_le_bytes());
    put(0x24c, &(packed.payload.len() as u32).to_le_bytes());
    put(0x258, &packed.pref_address.to_le_bytes());
    put(0x260, &packed.init_size.to_le_bytes());
    put(0x268, &0x1234u32.to_le_bytes());
    put(0x300, b"6.1.0-test (somebody@somewhere) #1\0");
    file.resize(file.len() + 4096, 0x90);
    file.extend(&packed.payload);
    file.extend(b"signature");
    file
}
