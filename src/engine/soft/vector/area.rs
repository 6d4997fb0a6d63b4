//! Instructions that store and load whole states: FXSAVE, FXRSTOR, XSAVE, XSAVEOPT, XRSTOR in the standard format (SDM
//! volume 1, 10.5 and 13.7 to 13.9). FIP, FDP and FOP are zero, so the 64-bit forms do not differ from the others.

use iced_x86::{Instruction, Mnemonic};

use super::state::{MXCSR_DEFAULT, MXCSR_MASK, SIZE, VectorState, at};
use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::{Cpu, cr0, cr4};
use crate::engine::soft::fault::{self, Break, Step};
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;

/// State components (SDM volume 1, 13.1), as bits of XCR0.
pub(super) const X87: u64 = 1;
pub(super) const SSE: u64 = 2;
pub(super) const AVX: u64 = 4;

/// The header of an XSAVE area: XSTATE_BV, XCOMP_BV, 48 bytes that must be zero.
const HEADER: usize = 512;
/// Bytes of the header that XRSTOR looks at in the standard format.
const HEADER_CHECKED: usize = 24;

/// Picks the handler, if this is an instruction of this file.
pub(super) fn lower(insn: &Instruction, op: &mut Op) -> Option<()> {
    op.run = match insn.mnemonic() {
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => fxsave,
        Mnemonic::Fxrstor | Mnemonic::Fxrstor64 => fxrstor,
        Mnemonic::Xsave | Mnemonic::Xsave64 => xsave::<false>,
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => xsave::<true>,
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => xrstor,
        _ => return None,
    };
    Some(())
}

/// XMM registers that code of this size stores and loads.
fn xmm_bytes(cpu: &Cpu) -> std::ops::Range<usize> {
    if cpu.is_64() { at::XMM..at::XMM_END } else { at::XMM..at::XMM + 8 * 16 }
}

/// Upper halves of YMM registers.
fn ymm_bytes(cpu: &Cpu) -> std::ops::Range<usize> {
    if cpu.is_64() { at::YMM..SIZE } else { at::YMM..at::YMM + 8 * 16 }
}

fn fxsave(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_x87()?;
    cpu.vector.settle();
    let to = cpu.address(op, 512, Access::Write)?;
    cpu.check_aligned(to, 16)?;
    let end = xmm_bytes(cpu).end;
    // The end of the image is not written, but belongs to the operand.
    cpu.prepare_write(to, 512)?;
    store(cpu, to, 0..at::MXCSR_MASK)?;
    cpu.write_bytes(to + at::MXCSR_MASK as u64, &MXCSR_MASK.to_le_bytes())?;
    store(cpu, to, at::ST..end)
}

fn fxrstor(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_x87()?;
    let from = cpu.address(op, 512, Access::Read)?;
    cpu.check_aligned(from, 16)?;
    let mut image = [0; 512];
    cpu.read_bytes(from, &mut image)?;
    let mxcsr = mxcsr_of(&image);
    if mxcsr & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    let xmm = xmm_bytes(cpu);
    cpu.vector.settle();
    load_x87(&mut cpu.vector, &image);
    cpu.vector.set_mxcsr(mxcsr);
    copy(&mut cpu.vector, &image, xmm);
    Ok(())
}

/// What all instructions of the XSAVE family check first; returns the address and the components asked for.
fn begin(cpu: &mut Cpu, op: &Op, access: Access) -> Result<(u64, u64), Break> {
    if cpu.system.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    if cpu.system.cr0 & cr0::TS != 0 {
        return Err(cpu.raise(fault::NM, None));
    }
    cpu.vector.settle();
    let area = cpu.address(op, HEADER as u64 + 64, access)?;
    cpu.check_aligned(area, 64)?;
    let asked = u64::from(cpu.regs.get::<u32>(RegAt::RDX)) << 32 | u64::from(cpu.regs.get::<u32>(RegAt::RAX));
    Ok((area, asked & cpu.system.xcr0))
}

/// XSAVE, and XSAVEOPT, which leaves components in their initial state out.
fn xsave<const OPTIMISED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let (to, asked) = begin(cpu, op, Access::Write)?;
    let used = in_use(&cpu.vector);
    let (xmm, ymm) = (xmm_bytes(cpu), ymm_bytes(cpu));
    let end = if asked & AVX != 0 { ymm.end } else { HEADER + 8 };
    cpu.prepare_write(to, end as u64)?;
    let header = to + HEADER as u64;
    let before = cpu.load::<u64>(header)?;
    let stored = if OPTIMISED { asked & used } else { asked };
    if stored & X87 != 0 {
        store(cpu, to, 0..at::MXCSR)?;
        store(cpu, to, at::ST..at::XMM)?;
    }
    if asked & (SSE | AVX) != 0 {
        store(cpu, to, at::MXCSR..at::MXCSR_MASK)?;
        cpu.write_bytes(to + at::MXCSR_MASK as u64, &MXCSR_MASK.to_le_bytes())?;
    }
    if stored & SSE != 0 {
        store(cpu, to, xmm)?;
    }
    if stored & AVX != 0 {
        store(cpu, to, ymm)?;
    }
    cpu.store::<u64>(header, before & !asked | asked & used)
}

fn xrstor(cpu: &mut Cpu, op: &Op) -> Step {
    let (from, asked) = begin(cpu, op, Access::Read)?;
    let mut image = [0; SIZE];
    let (legacy, rest) = image.split_at_mut(HEADER);
    cpu.read_bytes(from, legacy)?;
    let header = rest.get_mut(..HEADER_CHECKED).unwrap_or_default();
    cpu.read_bytes(from + HEADER as u64, header)?;
    let present = header.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    // XCOMP_BV other than zero is the compacted format, which is not offered.
    let compacted = header.iter().skip(8).any(|byte| *byte != 0);
    if compacted || present & !cpu.system.xcr0 != 0 {
        return Err(cpu.gp(0));
    }
    let ymm = ymm_bytes(cpu);
    if asked & present & AVX != 0
        && let Some(bytes) = image.get_mut(ymm.clone())
    {
        cpu.read_bytes(from + at::YMM as u64, bytes)?;
    }
    let mxcsr = mxcsr_of(&image);
    if asked & (SSE | AVX) != 0 {
        if mxcsr & !MXCSR_MASK != 0 {
            return Err(cpu.gp(0));
        }
        cpu.vector.set_mxcsr(mxcsr);
    }
    // What is not present takes its initial state: for XMM and YMM that is zero.
    let initial = VectorState::default().area;
    let (xmm, choose) = (xmm_bytes(cpu), |part| if present & part != 0 { &image } else { &initial });
    if asked & X87 != 0 {
        load_x87(&mut cpu.vector, choose(X87));
    }
    if asked & SSE != 0 {
        copy(&mut cpu.vector, choose(SSE), xmm);
    }
    if asked & AVX != 0 {
        copy(&mut cpu.vector, choose(AVX), ymm);
    }
    Ok(())
}

/// The components that are not in their initial state (XINUSE).
pub(super) fn in_use(vector: &VectorState) -> u64 {
    let initial = VectorState::default();
    let differs = |range: std::ops::Range<usize>| vector.area.get(range.clone()) != initial.area.get(range);
    let x87 = if differs(0..at::MXCSR) || differs(at::ST..at::XMM) { X87 } else { 0 };
    let sse = if vector.mxcsr() != MXCSR_DEFAULT || differs(at::XMM..at::XMM_END) { SSE } else { 0 };
    let avx = if differs(at::YMM..SIZE) { AVX } else { 0 };
    x87 | sse | avx
}

/// Stores part of the state where it belongs in an area at `to`.
fn store(cpu: &mut Cpu, to: u64, part: std::ops::Range<usize>) -> Step {
    let at = to.wrapping_add(part.start as u64);
    let state = cpu.vector.area;
    state.get(part).map_or(Ok(()), |bytes| cpu.write_bytes(at, bytes))
}

fn copy(vector: &mut VectorState, image: &[u8], part: std::ops::Range<usize>) {
    if let (Some(to), Some(from)) = (vector.area.get_mut(part.clone()), image.get(part)) {
        to.copy_from_slice(from);
    }
}

fn load_x87(vector: &mut VectorState, image: &[u8]) {
    copy(vector, image, 0..at::MXCSR);
    copy(vector, image, at::ST..at::XMM);
    vector.forget_pointers();
    vector.settle_x87();
}

fn mxcsr_of(image: &[u8]) -> u32 {
    image.get(at::MXCSR..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}
