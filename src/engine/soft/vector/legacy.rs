//! x87 and MMX instructions (SDM volume 1, chapters 8 and 9), by stubs that load and store the whole state. Exceptions that
//! the guest does not mask are left pending by the host's CPU as they would be by the guest's, stored so, and raised by the
//! next instruction that waits.
//!
//! FIP, FDP and FOP are not kept: they read as zero.

// UNSAFETY: calls stubs.
#![expect(unsafe_code)]

use std::ptr::null_mut;

use iced_x86::{Instruction, Mnemonic, Register};

use super::run::{exceptions, operand_address, side_in, side_out, simd_exception};
use super::state::{TOP, at};
use super::stub::{LARGEST, Memory};
use super::thunks::{Kind, Thunk, Thunks};
use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::memory::walk::Access;

/// Exception flags of MXCSR.
const FLAGS: u32 = 0x3f;
const MASKS: u32 = 0x1f80;
/// Exceptions of the x87 FPU after which a result is not stored to memory: all but precision.
const NOT_STORED: u16 = 0x1f;

/// Picks the handler for an x87 or MMX instruction.
pub(super) fn lower(insn: &Instruction, op: &mut Op, thunks: &Thunks) -> Option<()> {
    if insn.mnemonic() == Mnemonic::Wait {
        op.run = wait;
        return Some(());
    }
    let shape = thunks.prepare(Kind::Legacy, insn, op)?;
    op.run = if !is_mmx(insn) && !shape.float {
        if does_not_wait(insn.mnemonic()) { x87::<false> } else { x87::<true> }
    } else if shape.float || uses_xmm(insn) {
        mixed
    } else {
        mmx
    };
    Some(())
}

/// Whether an instruction has MMX registers, or makes the FPU's registers theirs.
pub(super) fn is_mmx(insn: &Instruction) -> bool {
    insn.mnemonic() == Mnemonic::Emms
        || matches!(insn.mnemonic(), Mnemonic::Cvtpi2ps | Mnemonic::Cvtpi2pd)
        || (0..insn.op_count()).any(|operand| insn.op_register(operand).is_mm())
}

fn uses_xmm(insn: &Instruction) -> bool {
    (0..insn.op_count()).any(|operand| insn.op_register(operand).is_xmm())
}

/// Whether an instruction works on x87 registers.
pub(super) fn is_x87(insn: &Instruction) -> bool {
    use iced_x86::CpuidFeature as F;
    let features = insn.cpuid_features();
    let x87 = features.iter().any(|feature| matches!(feature, F::FPU | F::FPU287 | F::FPU387));
    x87 || insn.mnemonic() == Mnemonic::Wait
        || insn.mnemonic() == Mnemonic::Fisttp
        || (0..insn.op_count()).any(|operand| (Register::ST0..=Register::ST7).contains(&insn.op_register(operand)))
}

fn does_not_wait(mnemonic: Mnemonic) -> bool {
    use Mnemonic as M;
    matches!(
        mnemonic,
        M::Fnclex | M::Fninit | M::Fnsave | M::Fnstcw | M::Fnstenv | M::Fnstsw | M::Fneni | M::Fndisi | M::Fnsetpm
    )
}

/// FWAIT.
fn wait(cpu: &mut Cpu, _: &Op) -> Step {
    use crate::engine::soft::cpu::cr0;
    if cpu.system.cr0 & (cr0::MP | cr0::TS) == cr0::MP | cr0::TS {
        return Err(cpu.raise(crate::engine::soft::fault::NM, None));
    }
    cpu.check_pending()
}

fn x87<const WAITS: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_x87()?;
    if WAITS {
        cpu.check_pending()?;
    }
    run(cpu, op)
}

fn mmx(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_mmx()?;
    run(cpu, op)
}

/// MMX instructions with XMM registers: conversions, MOVQ2DQ, MOVDQ2Q.
fn mixed(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_sse()?;
    cpu.check_mmx()?;
    if !Thunk::of(op).shape.float {
        return run(cpu, op);
    }
    cpu.vector.settle();
    let before = cpu.vector.clone();
    let guest = before.mxcsr();
    let unmasked = !(guest >> 7) & FLAGS;
    cpu.vector.set_mxcsr((guest | MASKS) & !FLAGS);
    let done = run(cpu, op);
    if done.is_err() {
        cpu.vector = before;
        return done;
    }
    let new = match exceptions(cpu.vector.mxcsr() & FLAGS, unmasked, || false) {
        Ok(new) => new,
        Err(new) => {
            let entered = cpu.vector.word(at::FSW) & TOP == 0 && cpu.vector.area.get(at::TAGS) == Some(&0xff);
            cpu.vector = before;
            // The registers became MMX's all the same.
            if entered {
                cpu.vector.enter_mmx();
            }
            cpu.vector.set_mxcsr(guest | new);
            return Err(simd_exception(cpu));
        }
    };
    cpu.vector.set_mxcsr(guest | new);
    Ok(())
}

/// A copy of a memory operand: the largest is FSAVE's.
#[repr(align(64))]
struct Scratch([u8; LARGEST as usize]);

fn run(cpu: &mut Cpu, op: &Op) -> Step {
    let thunk = Thunk::of(op);
    let shape = thunk.shape;
    let mut scratch = Scratch([0; LARGEST as usize]);
    let mut store = None;
    match shape.memory {
        Memory::None => {}
        Memory::Load(size) => {
            let at = operand_address(cpu, op, size, shape.aligned, Access::Read)?;
            if let Some(bytes) = scratch.0.get_mut(..size.into()) {
                cpu.read_bytes(at, bytes)?;
            }
        }
        Memory::Store(size) => {
            let at = operand_address(cpu, op, size, shape.aligned, Access::Write)?;
            // The stub changes registers: nothing may fault after it.
            cpu.prepare_write(at, size.into())?;
            store = Some((at, size));
        }
    }
    let mut side = side_in(cpu, op);
    // The stub loads and stores MXCSR as a part of the area.
    cpu.vector.settle();
    let area = cpu.vector.area.as_mut_ptr();
    // SAFETY: the area is aligned to 64 and has the 512 bytes that the stub loads and stores, with an MXCSR that has no
    // reserved bits; the scratch operand is larger than any that `Plan::legacy` allows.
    unsafe { (thunk.entry)(area, null_mut(), null_mut(), null_mut(), scratch.0.as_mut_ptr(), &raw mut side) };
    cpu.vector.forget_pointers();
    side_out(cpu, op, &side);
    let Some((at, size)) = store else { return Ok(()) };
    let environment = matches!(size, 14 | 28 | 94 | 108);
    let unmasked = cpu.vector.word(at::FSW) & !cpu.vector.word(at::FCW);
    if !environment && !stores_always(shape.mnemonic) && unmasked & NOT_STORED != 0 {
        return Ok(());
    }
    if environment {
        hide_pointers(&mut scratch.0, size);
    }
    scratch.0.get(..size.into()).map_or(Ok(()), |bytes| cpu.write_bytes(at, bytes))
}

/// Whether what an instruction stores is no result, so that pending exceptions do not matter.
fn stores_always(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Fnstcw | Mnemonic::Fnstsw)
}

/// Clears FIP, FOP and FDP in a stored environment (SDM volume 1, figures 8-9 to 8-12).
fn hide_pointers(environment: &mut [u8], size: u8) {
    let fields = if matches!(size, 14 | 94) { 6..14 } else { 12..26 };
    if let Some(fields) = environment.get_mut(fields) {
        fields.fill(0);
    }
}
