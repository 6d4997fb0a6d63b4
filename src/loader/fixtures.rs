//! Made-up kernels for tests.

use std::fs::File;
use std::io::Write;

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

pub fn file(content: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(content).unwrap();
    file
}
