//! Near transfers: JMP, Jcc, LOOP, JCXZ, CALL, RET.

use iced_x86::{Instruction, Mnemonic, OpKind};

use super::conditional::{by_condition, condition};
use crate::engine::soft::code::decode::Target;
use crate::engine::soft::code::lower::{Lowered, Operand, bytes, operand};
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::{CodeSize, Cpu};
use crate::engine::soft::fault::{Break, Step};
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;

/// Where a direct transfer goes: in 64-bit mode it is within reach of canonical code; others are checked.
#[inline(always)]
fn go(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.regs.block_ip().wrapping_add(op.imm);
    if cpu.is_64() {
        cpu.rip = target;
        return Err(Break::Jump);
    }
    Err(go_legacy(cpu, op, target))
}

#[cold]
fn go_legacy(cpu: &mut Cpu, op: &Op, target: u64) -> Break {
    cpu.jump(if op.extra == 2 { target & 0xffff } else { target & 0xffff_ffff })
}

fn jmp(cpu: &mut Cpu, op: &Op) -> Step {
    go(cpu, op)
}

fn jcc<const C: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.flags.holds::<C>() { go(cpu, op) } else { Ok(()) }
}

/// LOOP, LOOPE, LOOPNE; the count register's width is the address size.
fn loops<T: Width, const WANTS_ZF: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let count = T::from_u64(cpu.regs.get::<T>(RegAt::RCX).to_u64().wrapping_sub(1));
    let zero = cpu.flags.holds::<4>();
    let condition = match WANTS_ZF {
        0 => !zero,
        1 => zero,
        _ => true,
    };
    let step = if count != T::default() && condition { go(cpu, op) } else { Ok(()) };
    if step != Err(Break::Fault) {
        cpu.regs.set(RegAt::RCX, count);
    }
    step
}

fn jcxz<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.regs.get::<T>(RegAt::RCX) == T::default() { go(cpu, op) } else { Ok(()) }
}

fn jmp_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.regs.get::<T>(op.src).to_u64();
    Err(cpu.jump(target))
}

fn jmp_mem<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Read)?;
    let target = cpu.load::<T>(at)?.to_u64();
    Err(cpu.jump(target))
}

fn call<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.regs.block_ip().wrapping_add(op.imm);
    call_to::<T>(cpu, op, T::from_u64(target).to_u64())
}

fn call_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.regs.get::<T>(op.src).to_u64();
    call_to::<T>(cpu, op, target)
}

fn call_mem<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Read)?;
    let target = cpu.load::<T>(at)?.to_u64();
    call_to::<T>(cpu, op, target)
}

#[inline(always)]
fn call_to<T: Width>(cpu: &mut Cpu, op: &Op, target: u64) -> Step {
    let next = cpu.next_ip(op);
    let step = cpu.jump(target);
    if step == Break::Jump {
        cpu.push(T::from_u64(next))?;
    }
    Err(step)
}

fn ret<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let target = cpu.peek::<T>(0)?.to_u64();
    let step = cpu.jump(target);
    if step == Break::Jump {
        cpu.add_rsp(T::BYTES + op.imm);
    }
    Err(step)
}

/// Handlers for operand sizes of 2, 4 and 8 bytes.
macro_rules! near {
    ($bytes:expr, $handler:ident) => {
        match $bytes {
            2 => $handler::<u16> as Handler,
            4 => $handler::<u32> as Handler,
            _ => $handler::<u64> as Handler,
        }
    };
}

fn direct(insn: &Instruction, op: &mut Op, target: &Target<'_>) -> Option<usize> {
    let size = match insn.op0_kind() {
        OpKind::NearBranch16 => 2,
        OpKind::NearBranch32 => 4,
        OpKind::NearBranch64 => 8,
        _ => return None,
    };
    op.extra = size as u8;
    op.imm = insn.near_branch_target().wrapping_sub(target.ip);
    // Outside 64-bit mode distances wrap with the instruction pointer.
    if target.size != CodeSize::Bits64 {
        op.imm = i64::from(op.imm as i32) as u64;
    }
    Some(size)
}

fn loop_handler<const WANTS_ZF: u8>(insn: &Instruction) -> Handler {
    match count_bytes(insn) {
        2 => loops::<u16, WANTS_ZF>,
        4 => loops::<u32, WANTS_ZF>,
        _ => loops::<u64, WANTS_ZF>,
    }
}

/// Width of the count register of LOOP and JCXZ.
fn count_bytes(insn: &Instruction) -> usize {
    use iced_x86::Register;
    let mut factory = iced_x86::InstructionInfoFactory::new();
    let counts = [Register::CX, Register::ECX, Register::RCX];
    let used = factory.info(insn).used_registers().iter().map(|used| used.register()).find(|r| counts.contains(r));
    used.map_or(8, |register| register.size())
}

pub(super) fn lower(insn: &Instruction, op: &mut Op, target: &Target<'_>) -> Lowered {
    if let Some(size) = direct(insn, op, target) {
        let handler = match insn.mnemonic() {
            Mnemonic::Jmp => jmp as Handler,
            Mnemonic::Call => near!(size, call),
            Mnemonic::Loop => loop_handler::<2>(insn),
            Mnemonic::Loope => loop_handler::<1>(insn),
            Mnemonic::Loopne => loop_handler::<0>(insn),
            Mnemonic::Jcxz => jcxz::<u16>,
            Mnemonic::Jecxz => jcxz::<u32>,
            Mnemonic::Jrcxz => jcxz::<u64>,
            _ => match condition(insn) {
                Some(c) => by_condition!(c, C => jcc::<C> as Handler),
                None => return Lowered::NotMine,
            },
        };
        op.run = handler;
        return Lowered::Branches;
    }
    let far = insn.is_jmp_far_indirect() || insn.is_call_far_indirect();
    let handler = match (insn.mnemonic(), operand(insn, 0)) {
        _ if far => return Lowered::NotMine,
        (Mnemonic::Jmp, Operand::Reg(src)) => {
            op.src = src;
            near!(bytes(insn, 0), jmp_reg)
        }
        (Mnemonic::Jmp, Operand::Mem) => near!(bytes(insn, 0), jmp_mem),
        (Mnemonic::Call, Operand::Reg(src)) => {
            op.src = src;
            near!(bytes(insn, 0), call_reg)
        }
        (Mnemonic::Call, Operand::Mem) => near!(bytes(insn, 0), call_mem),
        (Mnemonic::Ret, _) => {
            op.imm = if insn.op_count() > 0 { insn.immediate(0) & 0xffff } else { 0 };
            near!(stack_bytes(insn, target.size), ret)
        }
        _ => return Lowered::NotMine,
    };
    op.run = handler;
    Lowered::Jumps
}

/// What a near RET pops.
fn stack_bytes(insn: &Instruction, size: CodeSize) -> usize {
    let default = if size == CodeSize::Bits64 { 8 } else { 4 };
    let moved = insn.stack_pointer_increment().unsigned_abs() as usize;
    let popped = moved.saturating_sub(if insn.op_count() > 0 { (insn.immediate(0) & 0xffff) as usize } else { 0 });
    if [2, 4, 8].contains(&popped) { popped } else { default }
}
