//! Blocks, and the cache that holds them.

use crate::engine::soft::cpu::Cpu;

/// All decoded code of one CPU.
#[derive(Debug, Default)]
pub(in crate::engine::soft) struct CodeCache {}

impl Cpu {
    /// Bytes of a page were written (a bit for each 64): blocks made of them are forgotten.
    pub(in crate::engine::soft) fn forget_code(&mut self, _page: u32, _pieces: u64) {}
}
