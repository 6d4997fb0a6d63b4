//! String instructions: MOVS, STOS, LODS, CMPS, SCAS, with REP prefixes.
//!
//! A long repetition works page by page with one host instruction each, and lets interrupts in between: registers always
//! say what is left, as the architecture demands (SDM volume 2, REP).

// UNSAFETY: copies and fills guest RAM a page at a time.
#![expect(unsafe_code)]

use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::arithmetic::{Binary, Sub};
use crate::engine::soft::code::lower::{Lowered, effective_seg};
use crate::engine::soft::code::op::{Handler, Op, Seg};
use crate::engine::soft::cpu::{CodeSize, Cpu};
use crate::engine::soft::fault::{Break, Step};
use crate::engine::soft::flags::rflags;
use crate::engine::soft::memory::host;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;
use crate::mem::PAGE;

/// Elements that are handled before interrupts are looked at.
const BATCH: u64 = 4096;

/// `op.extra`: no prefix, REP or REPE, REPNE.
const ONCE: u8 = 0;
const REPE: u8 = 1;
const REPNE: u8 = 2;

/// How far an index moves with each element.
fn step<T: Width>(cpu: &Cpu) -> u64 {
    if cpu.system.rflags & rflags::DF == 0 { T::BYTES } else { T::BYTES.wrapping_neg() }
}

fn advance<A: Width>(cpu: &mut Cpu, register: RegAt, by: u64) {
    let moved = cpu.regs.get::<A>(register).to_u64().wrapping_add(by);
    cpu.regs.set(register, A::from_u64(moved));
}

fn at_source<T: Width, A: Width>(cpu: &mut Cpu, op: &Op) -> Result<u64, Break> {
    let offset = cpu.regs.get::<A>(RegAt::RSI).to_u64();
    cpu.segmented(op.seg, offset, T::BYTES, Access::Read)
}

fn at_destination<T: Width, A: Width>(cpu: &mut Cpu, access: Access) -> Result<u64, Break> {
    let offset = cpu.regs.get::<A>(RegAt::RDI).to_u64();
    cpu.segmented(Seg::Es, offset, T::BYTES, access)
}

/// Repeats `element` while the count lasts and it says so; `bulk` first does what it can at once and says how many
/// elements that were.
fn repeat<A: Width>(
    cpu: &mut Cpu,
    op: &Op,
    mut bulk: impl FnMut(&mut Cpu, u64) -> Result<u64, Break>,
    mut element: impl FnMut(&mut Cpu) -> Result<bool, Break>,
) -> Step {
    if op.extra == ONCE {
        element(cpu)?;
        return Ok(());
    }
    // A single step is one element (SDM volume 3, 18.3.1.4).
    let stepping = cpu.system.rflags & rflags::TF != 0;
    for _ in 0..if stepping { 1 } else { BATCH } {
        let count = cpu.regs.get::<A>(RegAt::RCX).to_u64();
        if count == 0 {
            return Ok(());
        }
        let done = if stepping { 0 } else { bulk(cpu, count)? };
        let go_on = if done == 0 { element(cpu)? } else { true };
        cpu.regs.set(RegAt::RCX, A::from_u64(count - done.max(1)));
        if !go_on {
            return Ok(());
        }
        if cpu.armed.met != 0 || (done != 0 && cpu.shared.attention(cpu.index).any()) {
            break;
        }
    }
    if cpu.regs.get::<A>(RegAt::RCX) == A::default() { Ok(()) } else { Err(Break::Again) }
}

fn movs<T: Width, A: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let step = step::<T>(cpu);
    let forward = step == T::BYTES;
    repeat::<A>(
        cpu,
        op,
        |cpu, count| if forward { copy_run::<T, A>(cpu, op, count) } else { Ok(0) },
        |cpu| {
            let from = at_source::<T, A>(cpu, op)?;
            let value = cpu.load::<T>(from)?;
            let to = at_destination::<T, A>(cpu, Access::Write)?;
            cpu.store(to, value)?;
            advance::<A>(cpu, RegAt::RSI, step);
            advance::<A>(cpu, RegAt::RDI, step);
            Ok(true)
        },
    )
}

/// Copies as many elements as lie within one page of source and destination; zero if that way is not open.
fn copy_run<T: Width, A: Width>(cpu: &mut Cpu, op: &Op, count: u64) -> Result<u64, Break> {
    if !cpu.is_64() || A::BYTES != 8 {
        return Ok(0);
    }
    let from = at_source::<T, A>(cpu, op)?;
    let to = at_destination::<T, A>(cpu, Access::Write)?;
    if crosses::<T>(from) || crosses::<T>(to) {
        return Ok(0);
    }
    let Some((source, source_room)) = cpu.host_run(from, Access::Read)? else { return Ok(0) };
    let Some((destination, destination_room)) = cpu.host_run(to, Access::Write)? else { return Ok(0) };
    let elements = count.min(source_room / T::BYTES).min(destination_room / T::BYTES);
    // Closer than an element, copying bytes would differ from copying elements.
    if elements == 0 || destination.wrapping_sub(source).wrapping_sub(1) < T::BYTES - 1 {
        return Ok(0);
    }
    let len = elements * T::BYTES;
    // SAFETY: both runs lie within a page of RAM, as `host_run` says.
    unsafe { host::copy_in(source as *const u8, destination, len as usize) };
    advance::<A>(cpu, RegAt::RSI, len);
    advance::<A>(cpu, RegAt::RDI, len);
    Ok(elements)
}

/// The next element lies in two pages: both must be looked at before one of them is used.
fn crosses<T: Width>(at: u64) -> bool {
    at % PAGE > PAGE - T::BYTES
}

fn stos<T: Width, A: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let (step, value) = (step::<T>(cpu), cpu.regs.get::<T>(RegAt::RAX));
    let forward = step == T::BYTES;
    repeat::<A>(
        cpu,
        op,
        |cpu, count| if forward { fill_run::<T, A>(cpu, value, count) } else { Ok(0) },
        |cpu| {
            let to = at_destination::<T, A>(cpu, Access::Write)?;
            cpu.store(to, value)?;
            advance::<A>(cpu, RegAt::RDI, step);
            Ok(true)
        },
    )
}

fn fill_run<T: Width, A: Width>(cpu: &mut Cpu, value: T, count: u64) -> Result<u64, Break> {
    if !cpu.is_64() || A::BYTES != 8 {
        return Ok(0);
    }
    let to = at_destination::<T, A>(cpu, Access::Write)?;
    if crosses::<T>(to) {
        return Ok(0);
    }
    let Some((destination, room)) = cpu.host_run(to, Access::Write)? else { return Ok(0) };
    let elements = count.min(room / T::BYTES);
    if elements > 0 {
        // SAFETY: the run lies within a page of RAM, as `host_run` says.
        unsafe { host::fill(destination, value, elements) };
        advance::<A>(cpu, RegAt::RDI, elements * T::BYTES);
    }
    Ok(elements)
}

fn lods<T: Width, A: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let step = step::<T>(cpu);
    repeat::<A>(
        cpu,
        op,
        |_, _| Ok(0),
        |cpu| {
            let from = at_source::<T, A>(cpu, op)?;
            let value = cpu.load::<T>(from)?;
            cpu.regs.set(RegAt::RAX, value);
            advance::<A>(cpu, RegAt::RSI, step);
            Ok(true)
        },
    )
}

/// Whether a comparison goes on: REPE while equal, REPNE while not.
fn goes_on(cpu: &Cpu, op: &Op) -> bool {
    cpu.flags.holds::<4>() == (op.extra == REPE)
}

fn cmps<T: Width, A: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let step = step::<T>(cpu);
    repeat::<A>(
        cpu,
        op,
        |_, _| Ok(0),
        |cpu| {
            let from = at_source::<T, A>(cpu, op)?;
            let a = cpu.load::<T>(from)?;
            let with = at_destination::<T, A>(cpu, Access::Read)?;
            let b = cpu.load::<T>(with)?;
            cpu.flags = Sub::apply(a, b, cpu.flags).1;
            advance::<A>(cpu, RegAt::RSI, step);
            advance::<A>(cpu, RegAt::RDI, step);
            Ok(goes_on(cpu, op))
        },
    )
}

fn scas<T: Width, A: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let step = step::<T>(cpu);
    repeat::<A>(
        cpu,
        op,
        |_, _| Ok(0),
        |cpu| {
            let with = at_destination::<T, A>(cpu, Access::Read)?;
            let b = cpu.load::<T>(with)?;
            cpu.flags = Sub::apply(cpu.regs.get::<T>(RegAt::RAX), b, cpu.flags).1;
            advance::<A>(cpu, RegAt::RDI, step);
            Ok(goes_on(cpu, op))
        },
    )
}

/// The width of addresses, from the implied memory operands.
fn address_bytes(insn: &Instruction) -> usize {
    let of = |kind| match kind {
        OpKind::MemorySegSI | OpKind::MemorySegDI | OpKind::MemoryESDI => Some(2),
        OpKind::MemorySegESI | OpKind::MemorySegEDI | OpKind::MemoryESEDI => Some(4),
        OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI => Some(8),
        _ => None,
    };
    (0..insn.op_count()).find_map(|index| of(insn.op_kind(index))).unwrap_or(8)
}

macro_rules! handlers {
    ($handler:ident, $size:expr, $address:expr) => {
        match ($size, $address) {
            (1, 2) => $handler::<u8, u16> as Handler,
            (2, 2) => $handler::<u16, u16>,
            (4, 2) => $handler::<u32, u16>,
            (1, 4) => $handler::<u8, u32>,
            (2, 4) => $handler::<u16, u32>,
            (4, 4) => $handler::<u32, u32>,
            (8, 4) => $handler::<u64, u32>,
            (1, _) => $handler::<u8, u64>,
            (2, _) => $handler::<u16, u64>,
            (4, _) => $handler::<u32, u64>,
            _ => $handler::<u64, u64>,
        }
    };
}

pub(super) fn lower(insn: &Instruction, op: &mut Op, size: CodeSize) -> Lowered {
    let is_string = |kind| (OpKind::MemorySegSI as u32..=OpKind::MemoryESRDI as u32).contains(&(kind as u32));
    if !(0..insn.op_count()).any(|index| is_string(insn.op_kind(index))) {
        return Lowered::NotMine;
    }
    let (bytes, address) = (insn.memory_size().size(), address_bytes(insn));
    let handler = match insn.mnemonic() {
        Mnemonic::Movsb | Mnemonic::Movsw | Mnemonic::Movsd | Mnemonic::Movsq => handlers!(movs, bytes, address),
        Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => handlers!(stos, bytes, address),
        Mnemonic::Lodsb | Mnemonic::Lodsw | Mnemonic::Lodsd | Mnemonic::Lodsq => handlers!(lods, bytes, address),
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq => handlers!(cmps, bytes, address),
        Mnemonic::Scasb | Mnemonic::Scasw | Mnemonic::Scasd | Mnemonic::Scasq => handlers!(scas, bytes, address),
        _ => return Lowered::NotMine,
    };
    op.run = handler;
    let source = if insn.memory_segment() == Register::None { Register::DS } else { insn.memory_segment() };
    op.seg = effective_seg(source, size);
    op.extra = match (insn.has_repe_prefix() || insn.has_rep_prefix(), insn.has_repne_prefix()) {
        (true, _) => REPE,
        (_, true) => REPNE,
        _ => ONCE,
    };
    Lowered::Inside
}
