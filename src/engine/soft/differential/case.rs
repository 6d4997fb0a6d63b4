//! What a case is: one instruction, the state before it, and the state or the exception after it.
//!
//! Everything has a fixed place, the same on the host and in the software CPU's memory, so that addresses compare.
//! All of it lies below 2 GiB, where absolute and RIP-relative operands reach it, and 256 MiB or more away from anything
//! else, which is how far the bit offset of a 32-bit BTS goes.

use crate::mem::PAGE;

/// Trampolines and what they need; only on the host.
pub const CONTROL: u64 = 0x5800_0000;
/// Bytes of it.
pub const CONTROL_SIZE: u64 = 0x2_0000;
/// Two pages of code; nothing before and after them.
pub const CODE: u64 = 0x6800_0000;
/// Pages of code.
pub const CODE_PAGES: u64 = 2;
/// Two pages that can be written, then one that can only be read; nothing before and after them.
pub const DATA: u64 = 0x7000_0000;
/// Bytes that can be written at [`DATA`].
pub const WRITABLE: usize = 2 * PAGE as usize;
/// Bytes that can be read at [`DATA`].
pub const READABLE: usize = 3 * PAGE as usize;
/// Fills the pages of code: INT3, so that every branch ends at its target.
pub const FILLER: u8 = 0xcc;
/// The longest piece of memory that a case sets.
pub const PATCH: usize = 1024;
/// Vector state: legacy area, header and upper halves of YMM0 to YMM15, as XSAVE stores it.
pub const VECTOR: usize = 512 + 64 + 256;

/// Registers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct State {
    /// As XSAVE stores it, standard format.
    pub vector: [u8; VECTOR],
    /// In the order of the encoding: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15.
    pub gpr: [u64; 16],
    pub rip: u64,
    pub rflags: u64,
    /// Base of FS.
    pub fs: u64,
    /// Base of GS.
    pub gs: u64,
}

impl State {
    /// After FNINIT and with the default MXCSR, everything else zero.
    pub const fn new() -> Self {
        let mut vector = [0; VECTOR];
        (vector[0], vector[1]) = (0x7f, 0x03);
        (vector[24], vector[25]) = (0x80, 0x1f);
        vector[512] = 7;
        Self { vector, gpr: [0; 16], rip: CODE, rflags: 0x202, fs: 0, gs: 0 }
    }
}

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Executed: `State::rip` is the next one.
    Done,
    /// Raised an exception.
    Fault {
        /// Exception vector.
        vector: u8,
        /// Error code; zero for vectors without one.
        error: u32,
        /// Of a page fault.
        address: u64,
    },
    /// Something that no instruction should do: ran on, was killed.
    Lost(&'static str),
}

/// One instruction and the state before it.
#[derive(Debug, Clone)]
pub struct Case {
    /// The instruction, and what follows it.
    pub bytes: [u8; 15],
    /// Its length as decoded; all 15 bytes count where it cannot be decoded.
    pub len: u8,
    /// Registers before.
    pub start: State,
    /// Content of memory from `patch_at`, within the writable part.
    pub patch: [u8; PATCH],
    pub patch_len: u16,
    /// Offset from [`DATA`].
    pub patch_at: u16,
    /// Runs with 32-bit code.
    pub compat: bool,
}

impl Case {
    /// `bytes` at the start of the code page, everything else as [`State::new`].
    pub fn new(bytes: &[u8]) -> Self {
        let mut all = [FILLER; 15];
        all.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let len = bytes.len().min(15) as u8;
        Self { bytes: all, len, start: State::new(), patch: [0; PATCH], patch_len: 0, patch_at: 0, compat: false }
    }

    /// The instruction's own bytes.
    pub fn code(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// What the patch holds.
    pub fn patched(&self) -> &[u8] {
        &self.patch[..usize::from(self.patch_len)]
    }

    /// Puts `data` at the linear address `at`, as far as that can be written.
    pub fn set_patch(&mut self, at: u64, data: &[u8]) {
        let skip = DATA.saturating_sub(at).min(data.len() as u64) as usize;
        let data = &data[skip..];
        let offset = (at.max(DATA) - DATA).min(WRITABLE as u64) as usize;
        let len = data.len().min(PATCH).min(WRITABLE - offset);
        self.patch[..len].copy_from_slice(&data[..len]);
        (self.patch_at, self.patch_len) = (offset as u16, len as u16);
    }
}

/// What memory holds before every case: bytes that are all different enough, with runs of zeros for string instructions.
pub fn pattern() -> Box<[u8; READABLE]> {
    let mut bytes = Box::new([0; READABLE]);
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for (index, byte) in bytes.iter_mut().enumerate() {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let zeros = index % 1024 >= 768;
        *byte = if zeros { 0 } else { (state >> 56) as u8 };
    }
    bytes
}

/// What an instruction did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Registers after.
    pub state: State,
    /// The writable pages after.
    pub memory: Box<[u8; WRITABLE]>,
}
