//! What shall be kept of the code that a vCPU executes: for engines that can, see [`Vcpu::trace`](super::Vcpu::trace).

use std::fs::File;
use std::ops::Range;

/// A trace to be made.
#[derive(Debug)]
pub struct Trace {
    /// Where it is written, as text.
    pub file: File,
    /// What is kept.
    pub keep: Keep,
    /// Only while the number of executed instructions is in this range.
    pub range: Range<u64>,
}

/// What is kept of executed code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// The last so many blocks, with their instructions and registers; written at the end.
    Last(usize),
    /// All blocks, written as they are executed: some hundred bytes each.
    All,
    /// A sum over the registers of all blocks, written about every so many instructions: to find where two runs part.
    Sums(u64),
}
