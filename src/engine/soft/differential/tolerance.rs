//! Where a difference is none, because manuals leave open what happens or vendors differ: a table, with sources. SDM is
//! Intel's manual, APM is AMD's.

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::case::{DATA, End, Outcome};
use crate::mem::PAGE;

/// What may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tolerance {
    /// Nothing.
    None,
    /// Which exception is raised, or whether one is.
    Order,
    /// Both page faults tell an address within the operand, another one.
    Where,
    /// These exception flags of MXCSR.
    Flags(u8),
    /// The x87 stack's top and tags after an exception.
    Entered,
    /// Everything.
    All,
}

/// What may differ after this instruction.
pub fn tolerance(instruction: &Instruction, host: &Outcome, soft: &Outcome) -> Tolerance {
    use Mnemonic::*;
    let faults = (fault(host.end), fault(soft.end));
    match (instruction.mnemonic(), faults) {
        // A deviation: the software CPU raises #GP(0) for stack addresses that are not canonical, where #SS(0) is due (SDM
        // volume 3, 6.15). Systems treat both alike.
        (_, (Some(12), Some(13))) => Tolerance::Order,
        // AMD's CPUs want the offset to be canonical too where FS or GS has a base; SDM volume 1, 3.3.7.1: the sum.
        (_, (Some(13), Some(14))) if based(instruction) && beyond(soft.end) => Tolerance::Order,
        // SDM volume 2, CALL: a target that is not canonical is seen before the push; AMD's CPUs push first.
        (Call, (Some(_), Some(13))) => Tolerance::Order,
        // In which order two operands are accessed is written nowhere.
        (Cmpsb | Cmpsw | Cmpsd | Cmpsq, (Some(_), Some(_))) => Tolerance::Order,
        // Nor in which order the parts of one large operand are.
        (Xsave | Xsave64 | Xrstor | Xrstor64, (Some(14), Some(14))) => Tolerance::Where,
        (
            Fnsave | Fnstenv | Frstor | Fldenv | Fxsave | Fxsave64 | Fxrstor | Fxrstor64 | Fbstp | Fbld | Fld | Fstp,
            (Some(12..=14), Some(12..=14)),
        ) => Tolerance::Order,
        // SDM volume 2, MASKMOVDQU: which bytes can fault, and whether with a mask of zeros, depends on the implementation.
        (Maskmovq | Maskmovdqu | Vmaskmovdqu, (Some(12..=14), None | Some(14))) => Tolerance::Order,
        // SDM volume 2, CVTPI2PS: an x87 exception that is pending comes first; AMD's CPUs do not look for one if the operand
        // is in memory.
        (Cvtpi2ps | Cvtpi2pd, (_, Some(16))) if memory(instruction) => Tolerance::All,
        // AMD's CPUs have entered MMX mode by the time they find the exception.
        (Cvtpi2ps | Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi, (Some(_), Some(_))) => Tolerance::Entered,
        // SDM volume 2, INS: with a count of zero nothing is checked; AMD's CPUs look at the permission first.
        (Insb | Insw | Insd | Outsb | Outsw | Outsd, (Some(13), None)) => Tolerance::Order,
        // What else is flagged beside the exception that is raised: left to the implementation where several are found in
        // one operation (SDM volume 1, 11.5.3).
        (Dpps | Dppd | Vdpps | Vdppd, (Some(19), Some(19))) => Tolerance::Flags(0x3f),
        // A deviation: with underflow unmasked, tiny intermediate results are not noticed.
        (Dpps | Dppd | Vdpps | Vdppd, (Some(19), None) | (None, Some(19))) => Tolerance::Order,
        (_, (Some(19), Some(19))) => Tolerance::Flags(0x38),
        _ => Tolerance::None,
    }
}

/// The memory operand's segment may have a base.
fn based(instruction: &Instruction) -> bool {
    matches!(instruction.memory_segment(), Register::FS | Register::GS)
}

/// The page fault is in the upper half of addresses.
fn beyond(end: End) -> bool {
    matches!(end, End::Fault { address, .. } if address >> 47 != 0)
}

fn fault(end: End) -> Option<u8> {
    match end {
        End::Fault { vector, .. } => Some(vector),
        _ => None,
    }
}

fn memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// Whether two page faults, of the same kind of access, are near enough to be of one operand.
pub fn near(host: End, soft: End) -> bool {
    match (host, soft) {
        (End::Fault { error, address, .. }, End::Fault { error: other, address: at, .. }) => {
            // One part may not be there, another not be writable.
            (error ^ other) & !1 == 0 && address.abs_diff(at) < PAGE && address >= DATA - PAGE
        }
        _ => false,
    }
}
