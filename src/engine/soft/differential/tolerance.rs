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
    /// Status flags after an exception may be those from before.
    Restored,
    /// The upper halves of RSI and RDI may be gone after an exception.
    Narrowed,
    /// After an exception in a gather, only the signs of its mask's elements count, and what is above the last one may be gone.
    Mask,
    /// Everything.
    All,
}

/// Vectors of the exceptions on the host and on the software CPU.
type Faults = (Option<u8>, Option<u8>);

/// What may differ after this instruction.
pub fn tolerance(instruction: &Instruction, host: &Outcome, soft: &Outcome) -> Tolerance {
    let faults = (fault(host.end), fault(soft.end));
    let tables = [anywhere(instruction, soft, faults), strings(instruction, faults), masked(instruction, faults)];
    let rest = [x87(instruction, host, faults), floats(instruction, faults)];
    tables.into_iter().chain(rest).find(|found| *found != Tolerance::None).unwrap_or(Tolerance::None)
}

/// Addresses, branches, states.
fn anywhere(instruction: &Instruction, soft: &Outcome, faults: Faults) -> Tolerance {
    use Mnemonic::*;
    match (instruction.mnemonic(), faults) {
        // A deviation: the software CPU raises #GP(0) for stack addresses that are not canonical, where #SS(0) is due (SDM
        // volume 3, 6.15). Systems treat both alike.
        (_, (Some(12), Some(13))) => Tolerance::Order,
        // AMD's CPUs want the offset to be canonical too where FS or GS has a base; SDM volume 1, 3.3.7.1: the sum.
        (_, (Some(13), Some(14))) if based(instruction) && beyond(soft.end) => Tolerance::Order,
        // SDM volume 2, CALL: a target that is not canonical is seen before the push; AMD's CPUs push first.
        (Call, (Some(_), Some(13))) => Tolerance::Order,
        // In which order the parts of one large operand are accessed is written nowhere.
        (Xsave | Xsave64 | Xrstor | Xrstor64, (Some(14), Some(14))) => Tolerance::Where,
        (
            Fnsave | Fnstenv | Frstor | Fldenv | Fxsave | Fxsave64 | Fxrstor | Fxrstor64 | Fbstp | Fbld | Fld | Fstp,
            (Some(12..=14), Some(12..=14)),
        ) => Tolerance::Order,
        _ => Tolerance::None,
    }
}

/// String instructions.
fn strings(instruction: &Instruction, faults: Faults) -> Tolerance {
    use Mnemonic::*;
    match (instruction.mnemonic(), faults) {
        // In which order two operands are accessed is written nowhere.
        (Cmpsb | Cmpsw | Cmpsd | Cmpsq, (Some(_), Some(_))) => Tolerance::Order,
        // SDM volume 2, INS: with a count of zero nothing is checked; AMD's CPUs look at the permission first.
        (Insb | Insw | Insd | Outsb | Outsw | Outsd, (Some(13), None)) => Tolerance::Order,
        // SDM volume 2, REP: a fault takes the flags back to those before the instruction; AMD's CPUs leave those of the last
        // comparison that was done. Started again, both come to the same.
        (Scasb | Scasw | Scasd | Scasq, (Some(_), Some(_))) if repeats(instruction) => Tolerance::Restored,
        // Whether indices of 32 bits are written, and so extended by zeros (SDM volume 1, 3.4.1.1), when not even one element
        // is handled is written nowhere: Intel's CPUs do it.
        (Movsb | Movsw | Movsd | Movsq | Stosb | Stosw | Stosd | Stosq, _)
            if repeats(instruction) && indices_of_32_bits(instruction) =>
        {
            Tolerance::Narrowed
        }
        _ => Tolerance::None,
    }
}

/// Instructions that access the elements that a mask selects.
fn masked(instruction: &Instruction, faults: Faults) -> Tolerance {
    use Mnemonic::*;
    match (instruction.mnemonic(), faults) {
        // SDM volume 2, MASKMOVDQU: which bytes can fault, and whether with a mask of zeros, depends on the implementation.
        (Maskmovq | Maskmovdqu | Vmaskmovdqu, (Some(12..=14), None | Some(13..=14))) => Tolerance::Order,
        // APM volume 4, VMASKMOVPS: so does whether elements that are not selected fault. And exceptions of one class come in
        // an order of the implementation's choice (SDM volume 3, 6.9), if one element is nowhere and another's address not
        // canonical.
        (
            Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq,
            (Some(12..=14), None | Some(13)) | (None, Some(13)) | (Some(12..=13), Some(14)),
        ) => Tolerance::Order,
        // Which byte of the operand CR2 tells is written nowhere: with Intel's CPUs the last one.
        (Vmaskmovps | Vmaskmovpd | Vpmaskmovd | Vpmaskmovq, (Some(14), Some(14)))
            if instruction.op0_kind() == OpKind::Memory =>
        {
            Tolerance::Where
        }
        // SDM volume 2, VGATHERDPS: every element of the mask becomes its sign, then the gathering begins; AMD's CPUs clear
        // what is done and leave the rest as it was.
        (
            Vgatherdps | Vgatherqps | Vgatherdpd | Vgatherqpd | Vpgatherdd | Vpgatherqd | Vpgatherdq | Vpgatherqq,
            (Some(_), Some(_)),
        ) => Tolerance::Mask,
        _ => Tolerance::None,
    }
}

/// x87 and MMX.
fn x87(instruction: &Instruction, host: &Outcome, faults: Faults) -> Tolerance {
    use Mnemonic::*;
    match (instruction.mnemonic(), faults) {
        // SDM volume 2, CVTPI2PS: an x87 exception that is pending comes first; AMD's CPUs do not look for one if the operand
        // is in memory.
        (Cvtpi2ps | Cvtpi2pd, (_, Some(16))) if memory(instruction) => Tolerance::All,
        // AMD's CPUs have entered MMX mode by the time they find the exception.
        (Cvtpi2ps | Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi, (Some(_), Some(_))) => Tolerance::Entered,
        // Intel's have by the time a store faults, and all have with MASKMOVQ. No manual says what comes first.
        (Movd | Movq | Movntq, (Some(_), Some(_))) if memory(instruction) && instruction.op1_register().is_mm() => {
            Tolerance::Entered
        }
        (Maskmovq, (Some(_), Some(_))) => Tolerance::Entered,
        // With an exception that is not masked nothing is stored (SDM volume 1, 8.5.1), and Intel's CPUs do not look at the
        // memory. Exceptions of one class come in an order of the implementation's choice (SDM volume 3, 6.9).
        (Fbstp | Fist | Fistp | Fisttp | Fst | Fstp, (None, Some(12..=14))) if pending(host) => Tolerance::Order,
        _ => Tolerance::None,
    }
}

/// SSE's and AVX's floating-point exceptions.
fn floats(instruction: &Instruction, faults: Faults) -> Tolerance {
    use Mnemonic::*;
    match (instruction.mnemonic(), faults) {
        // Exceptions of one class, as above; whether the flags of a conversion that cannot be stored stay is written nowhere:
        // with Intel's CPUs they do.
        (Vcvtps2ph, (Some(19), Some(12..=14))) => Tolerance::Order,
        (Vcvtps2ph, (Some(12..=14), Some(12..=14))) => Tolerance::Flags(0x3f),
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

/// The instruction has a prefix that makes it repeat.
fn repeats(instruction: &Instruction) -> bool {
    instruction.has_rep_prefix() || instruction.has_repne_prefix()
}

/// A string instruction's indices are ESI and EDI.
fn indices_of_32_bits(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| matches!(kind, OpKind::MemorySegESI | OpKind::MemoryESEDI))
}

/// An x87 exception is pending (SDM volume 1, 8.1.3.3).
fn pending(outcome: &Outcome) -> bool {
    outcome.state.vector[2] & 0x80 != 0
}

fn memory(instruction: &Instruction) -> bool {
    instruction.op_kinds().any(|kind| kind == OpKind::Memory)
}

/// Whether two page faults, of the same kind of access, are near enough to be of one operand.
pub fn near(host: End, soft: End) -> bool {
    match (host, soft) {
        (End::Fault { error, address, .. }, End::Fault { error: other, address: at, .. }) => {
            // An operand may go around the end of addresses.
            let apart = address.wrapping_sub(at).min(at.wrapping_sub(address));
            // One part may not be there, another not be writable.
            (error ^ other) & !1 == 0 && apart < PAGE && address.max(at) >= DATA - PAGE
        }
        _ => false,
    }
}
