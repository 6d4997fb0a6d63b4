//! The head of the ELF file: what is where (System V ABI, chapters 4 and 5).

use crate::mem::PAGE;

/// Program headers are counted with 16 bits, of which the last value means something else; one is for the notes.
pub(super) const MAX_LOADS: usize = 0xfffd;

const HEADER: u64 = 64;
const PROGRAM_HEADER: u64 = 56;
const ET_CORE: u16 = 4;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
/// Readable, writable, executable.
const RWX: u32 = 7;

/// A run of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    /// Linear address.
    pub(super) linear: u64,
    /// Guest-physical address.
    pub(super) physical: u64,
    /// Bytes.
    pub(super) len: u64,
}

/// What comes before the data.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    /// Where the notes are in the file, and how long.
    pub(super) notes: u64,
    notes_len: u64,
    /// Where the data begins.
    pub(super) data: u64,
}

impl Head {
    /// Of a file with so many bytes of notes and so many runs.
    pub(super) fn new(notes_len: u64, loads: u64) -> Self {
        let notes = HEADER + (1 + loads) * PROGRAM_HEADER;
        Self { notes, notes_len, data: (notes + notes_len).next_multiple_of(PAGE) }
    }

    /// The bytes up to the notes; `place` says where in the file the byte of a guest-physical address is.
    pub(super) fn bytes(&self, loads: &[Load], place: impl Fn(u64) -> u64) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        bytes.extend([ET_CORE, EM_X86_64].map(u16::to_le_bytes).concat());
        bytes.extend(1u32.to_le_bytes());
        // No entry; program headers; no section headers; no flags.
        bytes.extend([0, HEADER, 0].map(u64::to_le_bytes).concat());
        bytes.extend(0u32.to_le_bytes());
        let count = (1 + loads.len()) as u16;
        bytes.extend([HEADER as u16, PROGRAM_HEADER as u16, count, 0, 0, 0].map(u16::to_le_bytes).concat());
        bytes.extend(program_header(PT_NOTE, 0, [self.notes, 0, 0, self.notes_len, self.notes_len, 4]));
        for load in loads {
            let words = [place(load.physical), load.linear, load.physical, load.len, load.len, PAGE];
            bytes.extend(program_header(PT_LOAD, RWX, words));
        }
        bytes
    }
}

/// `words`: offset, linear and physical address, bytes in the file and in memory, alignment.
fn program_header(kind: u32, flags: u32, words: [u64; 6]) -> Vec<u8> {
    [[kind, flags].map(u32::to_le_bytes).concat(), words.map(u64::to_le_bytes).concat()].concat()
}
