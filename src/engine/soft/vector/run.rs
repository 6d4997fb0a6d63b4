//! Runs stubs for instructions on XMM and YMM registers.

// UNSAFETY: calls stubs, reads and writes MXCSR of the host.
#![expect(unsafe_code)]

use std::ptr::null_mut;

use iced_x86::Instruction;

use super::mxcsr::{host_mxcsr, set_host_mxcsr};
use super::state::{MXCSR_DEFAULT, VectorState};
use super::stub::{Memory, Shape, Side};
use super::thunks::{Kind, Thunk, Thunks, registers};
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::{Cpu, cr4};
use crate::engine::soft::fault::{self, Break, Step};
use crate::engine::soft::flags::Flags;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;

/// Exception flags.
const FLAGS: u32 = 0x3f;
/// Masks of exceptions; shifted right by seven they line up with the flags.
const MASKS: u32 = 0x1f80;
/// Flags of the exceptions that are found before an operation: IE, DE, ZE.
const BEFORE: u32 = 7;
const UNDERFLOW: u32 = 1 << 4;
const FLUSH_TO_ZERO: u32 = 1 << 15;

/// Picks the handler for `insn`, which has a stub.
pub(super) fn lower(insn: &Instruction, op: &mut Op, thunks: &Thunks) -> Option<()> {
    let shape = thunks.prepare(Kind::Vector, insn, op)?;
    op.run = handler(&shape);
    Some(())
}

/// The handler for an instruction whose stub has this shape.
pub(super) fn handler(shape: &Shape) -> Handler {
    let handlers = match (shape.float, shape.vex) {
        (false, false) => Handlers::of::<false, false>(),
        (false, true) => Handlers::of::<false, true>(),
        (true, false) => Handlers::of::<true, false>(),
        (true, true) => Handlers::of::<true, true>(),
    };
    match shape.memory {
        _ if shape.side.any() => handlers.any,
        Memory::None => handlers.none,
        Memory::Load(4) => handlers.load4,
        Memory::Load(8) => handlers.load8,
        Memory::Load(16) => handlers.load16,
        Memory::Load(_) | Memory::Store(_) => handlers.any,
    }
}

/// Handlers by operands, the frequent ones apart.
struct Handlers {
    none: Handler,
    load4: Handler,
    load8: Handler,
    load16: Handler,
    any: Handler,
}

impl Handlers {
    const fn of<const FLOAT: bool, const VEX: bool>() -> Self {
        Self {
            none: none::<FLOAT, VEX>,
            load4: load4::<FLOAT, VEX>,
            load8: load8::<FLOAT, VEX>,
            load16: load16::<FLOAT, VEX>,
            any: any::<FLOAT, VEX>,
        }
    }
}

fn none<const FLOAT: bool, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_vector::<VEX>()?;
    invoke::<FLOAT>(cpu, op, null_mut(), null_mut())
}

fn load4<const FLOAT: bool, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_vector::<VEX>()?;
    let at = cpu.address(op, 4, Access::Read)?;
    let mut operand = cpu.load::<u32>(at)?;
    invoke::<FLOAT>(cpu, op, (&raw mut operand).cast(), null_mut())
}

fn load8<const FLOAT: bool, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_vector::<VEX>()?;
    let at = cpu.address(op, 8, Access::Read)?;
    let mut operand = cpu.load::<u64>(at)?;
    invoke::<FLOAT>(cpu, op, (&raw mut operand).cast(), null_mut())
}

fn load16<const FLOAT: bool, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_vector::<VEX>()?;
    let at = cpu.address(op, 16, Access::Read)?;
    if Thunk::of(op).shape.aligned {
        cpu.check_aligned(at, 16)?;
    }
    let mut operand = cpu.load_16(at)?;
    invoke::<FLOAT>(cpu, op, (&raw mut operand).cast(), null_mut())
}

/// A copy of a memory operand.
#[repr(align(64))]
struct Scratch([u8; 64]);

fn any<const FLOAT: bool, const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_vector::<VEX>()?;
    let shape = Thunk::of(op).shape;
    let mut scratch = Scratch([0; 64]);
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
            if FLOAT {
                // MXCSR must not change if the store faults.
                cpu.prepare_write(at, size.into())?;
            }
            store = Some((at, size));
        }
    }
    let mut side = side_in(cpu, op);
    invoke::<FLOAT>(cpu, op, scratch.0.as_mut_ptr(), &raw mut side)?;
    if let Some((at, size)) = store
        && let Some(bytes) = scratch.0.get(..size.into())
    {
        cpu.write_bytes(at, bytes)?;
    }
    side_out(cpu, op, &side);
    Ok(())
}

/// Linear address of a memory operand.
pub(super) fn operand_address(cpu: &mut Cpu, op: &Op, size: u8, aligned: bool, access: Access) -> Result<u64, Break> {
    let at = cpu.address(op, size.into(), access)?;
    if aligned {
        cpu.check_aligned(at, size.into())?;
    }
    Ok(at)
}

/// What a stub reads besides vector registers.
pub(super) fn side_in(cpu: &Cpu, op: &Op) -> Side {
    let side = Thunk::of(op).shape.side;
    Side {
        gpr: if side.gpr_read || side.gpr_write { cpu.regs.get64(op.dst) } else { 0 },
        rax: cpu.regs.get64(RegAt::RAX),
        rdx: cpu.regs.get64(RegAt::RDX),
        rcx: 0,
        flags: cpu.flags.0.into(),
        mxcsr: MXCSR_DEFAULT,
    }
}

/// Takes over what a stub wrote besides vector registers.
pub(super) fn side_out(cpu: &mut Cpu, op: &Op, values: &Side) {
    let side = Thunk::of(op).shape.side;
    if side.gpr_write {
        cpu.regs.set64(op.dst, values.gpr);
    }
    if side.index {
        cpu.regs.set::<u32>(RegAt::RCX, values.rcx as u32);
    }
    if side.flags_write {
        cpu.flags = Flags(values.flags as u16 | Flags::default().0);
    }
}

/// Calls the stub of `op`. Registers are as before if this raises an exception.
#[inline(always)]
fn invoke<const FLOAT: bool>(cpu: &mut Cpu, op: &Op, memory: *mut u8, side: *mut Side) -> Step {
    let thunk = Thunk::of(op);
    if !FLOAT {
        // SAFETY: memory and side are what the shape of the stub says, from which the handler was picked.
        unsafe { call(thunk, &mut cpu.vector, registers(op), memory, side) };
        return Ok(());
    }
    if !cpu.vector.is_ready::<false>() && !cpu.make_ready::<false>() {
        return invoke_unusual(cpu, op, memory, side);
    }
    // SAFETY: as above.
    unsafe { call(thunk, &mut cpu.vector, registers(op), memory, side) };
    Ok(())
}

/// # Safety
/// `memory` has as many bytes as the stub's memory operand, `side` is valid if the stub uses it.
#[inline(always)]
unsafe fn call(thunk: &Thunk, vector: &mut VectorState, registers: u64, memory: *mut u8, side: *mut Side) {
    let [a, b, c, d] = [0, 4, 8, 12].map(|shift| vector.register(registers >> shift));
    // SAFETY: the stub accesses the registers that the pointers name, and their upper halves, which are all within the area
    // (see `VectorState::register`), and what the caller vouches for.
    unsafe { (thunk.entry)(a, b, c, d, memory, side) };
}

/// With rounding, flushing or masks other than the default.
#[cold]
#[inline(never)]
fn invoke_unusual(cpu: &mut Cpu, op: &Op, memory: *mut u8, side: *mut Side) -> Step {
    let thunk = Thunk::of(op);
    let guest = cpu.vector.mxcsr();
    let unmasked = !(guest >> 7) & FLAGS;
    // Masked, and without flags, so that what is new can be told; flushing to zero counts only while underflow is masked.
    let mut control = (guest | MASKS) & !FLAGS;
    if unmasked & UNDERFLOW != 0 {
        control &= !FLUSH_TO_ZERO;
    }
    let target = registers(op);
    let before = cpu.vector.ymm_bytes(target);
    // SAFETY: the default comes back before anything else; the call is as in `invoke`.
    let new = unsafe {
        set_host_mxcsr(control);
        call(thunk, &mut cpu.vector, target, memory, side);
        let new = host_mxcsr() & FLAGS;
        set_host_mxcsr(MXCSR_DEFAULT);
        new
    };
    let new = match exceptions(new, unmasked, || makes_tiny(cpu, target, &thunk.shape)) {
        Ok(new) => new,
        Err(new) => {
            cpu.vector.set_ymm_bytes(target, &before);
            cpu.vector.set_mxcsr(guest | new);
            return Err(simd_exception(cpu));
        }
    };
    cpu.vector.set_mxcsr(guest | new);
    Ok(())
}

/// The exception flags to set after an operation that ran masked and flagged `new`: an error if one of them is unmasked
/// (SDM volume 1, 11.5). Where overflow or underflow is unmasked and raised, PE may be among them although the result with
/// the exponent that the handler would compute is exact; only the CPU knows.
pub(super) fn exceptions(new: u32, unmasked: u32, makes_tiny: impl FnOnce() -> bool) -> Result<u32, u32> {
    if new & unmasked & BEFORE != 0 {
        return Err(new & BEFORE);
    }
    // Unmasked, underflow is raised for every tiny result; masked, it is flagged only for inexact ones.
    let tiny = unmasked & UNDERFLOW != 0 && new & UNDERFLOW == 0 && makes_tiny();
    let new = if tiny { new | UNDERFLOW } else { new };
    if new & unmasked != 0 { Err(new) } else { Ok(new) }
}

/// Whether a result of an operation that can underflow is denormal.
fn makes_tiny(cpu: &Cpu, target: u64, shape: &Shape) -> bool {
    let name = format!("{:?}", shape.mnemonic);
    let name = name.strip_prefix('V').unwrap_or(&name).to_lowercase();
    let arithmetic = ["add", "sub", "mul", "div", "fm", "fnm", "dpp", "hadd", "hsub", "cvtsd2ss", "cvtpd2ps"];
    if !arithmetic.iter().any(|stem| name.starts_with(stem)) {
        return false;
    }
    let scalar = name.ends_with("ss") || name.ends_with("sd");
    let size = if name.ends_with('d') { 8 } else { 4 };
    // What a legacy instruction leaves in the upper half is no result.
    let results = match (scalar, shape.vex) {
        (true, _) => size,
        (false, false) => 16,
        (false, true) => 32,
    };
    let bytes = cpu.vector.ymm_bytes(target);
    bytes.chunks_exact(size).take(results / size).any(|bytes| match *bytes {
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]).is_subnormal(),
        _ => f64::from_le_bytes(bytes.first_chunk().copied().unwrap_or_default()).is_subnormal(),
    })
}

/// #XM, or #UD where the system does not know of it.
pub(super) fn simd_exception(cpu: &mut Cpu) -> Break {
    if cpu.system.cr4 & cr4::OSXMMEXCPT == 0 { cpu.ud() } else { cpu.raise(fault::XM, None) }
}
