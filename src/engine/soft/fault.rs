//! Exceptions, and what makes a run of operations stop (SDM volume 3, chapter 6).

/// An exception that the instruction under way raises; its effects did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fault {
    /// Vector, 0 to 31.
    pub(super) vector: u8,
    /// Error code, for the vectors that have one.
    pub(super) error: Option<u32>,
    /// Goes to CR2 when the exception is delivered (page faults); of #GP, the address that is not canonical, or 0.
    pub(super) address: u64,
}

pub(super) const DE: u8 = 0;
pub(super) const DB: u8 = 1;
pub(super) const NMI: u8 = 2;
pub(super) const BP: u8 = 3;
pub(super) const OF: u8 = 4;
pub(super) const BR: u8 = 5;
pub(super) const UD: u8 = 6;
pub(super) const NM: u8 = 7;
pub(super) const DF: u8 = 8;
pub(super) const TS: u8 = 10;
pub(super) const NP: u8 = 11;
pub(super) const SS: u8 = 12;
pub(super) const GP: u8 = 13;
pub(super) const PF: u8 = 14;
pub(super) const MF: u8 = 16;
pub(super) const AC: u8 = 17;
pub(super) const XM: u8 = 19;

/// Why the operations of a block are not simply executed one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Break {
    /// The instruction was executed and set `Cpu::rip`.
    Jump,
    /// The instruction was not executed: `Cpu::fault` says what it raises.
    Fault,
    /// The instruction was executed (`Cpu::rip` is set by the run loop to the next one), and the vCPU leaves guest code:
    /// `Cpu::leave` says why.
    Leave,
    /// The instruction was executed in part (a long REP): it starts again with the registers as they are now.
    Again,
}

/// What an operation returns.
pub(super) type Step = Result<(), Break>;
