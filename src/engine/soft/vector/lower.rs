//! Picks what executes an instruction of this directory.

use iced_x86::{EncodingKind, Instruction, Mnemonic};

use super::thunks::Thunks;
use super::{area, bitwise, control, float, gather, legacy, masked, moves, run};
use crate::engine::soft::code::lower::Lowered;
use crate::engine::soft::code::op::Op;

/// Fills in what executes `insn`, if it is an x87, MMX, SSE or AVX instruction: `op.run` and what that wants (`imm`, `dst`;
/// `index` for gathers). The caller, the decoder, has filled in the memory operand, length and place, and has seen to it that
/// CPUID offers the instruction. [`Lowered::NotMine`], with `op` possibly changed: another family's, or none that the host
/// can execute.
///
/// Not here, though CPUID counts them to SSE: PREFETCHh, fences, PAUSE, CRC32, POPCNT, CLFLUSH.
pub(in crate::engine::soft) fn lower(insn: &Instruction, op: &mut Op, thunks: &Thunks) -> Lowered {
    let offered = thunks.offer().covers(insn) || insn.mnemonic() == Mnemonic::Wait;
    if insn.has_lock_prefix() || !offered {
        return Lowered::NotMine;
    }
    let found =
        area::lower(insn, op).or_else(|| control::lower(insn, op, thunks)).or_else(|| by_registers(insn, op, thunks));
    found.map_or(Lowered::NotMine, |()| Lowered::Inside)
}

fn by_registers(insn: &Instruction, op: &mut Op, thunks: &Thunks) -> Option<()> {
    if legacy::is_x87(insn) {
        return legacy::lower(insn, op, thunks);
    }
    if let Some(()) = masked::lower(insn, op) {
        return Some(());
    }
    if legacy::is_mmx(insn) {
        return legacy::lower(insn, op, thunks);
    }
    if !uses_vectors(insn) {
        return None;
    }
    if is_gather(insn.mnemonic()) {
        return gather::lower(insn, op);
    }
    moves::lower(insn, op)
        .or_else(|| bitwise::lower(insn, op))
        .or_else(|| float::lower(insn, op, thunks))
        .or_else(|| run::lower(insn, op, thunks))
}

/// Whether an instruction works on XMM or YMM registers or as they do, in an encoding that stubs may have.
fn uses_vectors(insn: &Instruction) -> bool {
    use Mnemonic as M;
    let encoded = matches!(insn.encoding(), EncodingKind::Legacy | EncodingKind::VEX);
    // From memory to a general register, rounded by MXCSR.
    let converts = matches!(
        insn.mnemonic(),
        M::Cvtss2si
            | M::Cvtsd2si
            | M::Cvttss2si
            | M::Cvttsd2si
            | M::Vcvtss2si
            | M::Vcvtsd2si
            | M::Vcvttss2si
            | M::Vcvttsd2si
    );
    let registers = || (0..insn.op_count()).map(|operand| insn.op_register(operand));
    encoded && (converts || registers().any(|register| register.is_xmm() || register.is_ymm()))
}

/// Whether this is for `gather.rs`, or invalid if its registers are not distinct.
fn is_gather(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Vgatherdps
            | M::Vpgatherdd
            | M::Vgatherqps
            | M::Vpgatherqd
            | M::Vgatherdpd
            | M::Vpgatherdq
            | M::Vgatherqpd
            | M::Vpgatherqq
    )
}
