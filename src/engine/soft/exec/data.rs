//! Moving data: MOV, MOVZX, MOVSX, MOVBE, LEA, XCHG, XADD, CMPXCHG, CMOVcc, SETcc, BSWAP, XLAT, sign extensions.

use iced_x86::{Code, Instruction, Mnemonic, Register};

use super::arithmetic::{Add, Binary, Sub};
use crate::engine::soft::code::lower::{Lowered, Operand, by_width, bytes, effective_seg, gpr, operand};
use crate::engine::soft::code::op::{Addressing, Handler, Op};
use crate::engine::soft::cpu::{CodeSize, Cpu};
use crate::engine::soft::fault::Step;
use crate::engine::soft::flags::Flags;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;

fn mov_reg_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.regs.get::<T>(op.src);
    cpu.regs.set(op.dst, value);
    cpu.next(op)
}

fn mov_reg_imm<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.regs.set(op.dst, T::from_u64(op.imm));
    cpu.next(op)
}

fn mov_reg_mem<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.loading(op, |cpu, op, value: T| cpu.regs.set(op.dst, value))
}

fn mov_mem_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.storing(op, |cpu, op| cpu.regs.get::<T>(op.src))
}

fn mov_mem_imm<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.storing(op, |_, op| T::from_u64(op.imm))
}

/// MOV between the accumulator and an offset of 64 bits, which is in `op.imm`.
fn load_moffs<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.seg_base[op.seg as usize & 7].wrapping_add(op.imm);
    let value = cpu.load::<T>(at)?;
    cpu.regs.set(RegAt::RAX, value);
    cpu.next(op)
}

fn store_moffs<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.seg_base[op.seg as usize & 7].wrapping_add(op.imm);
    let value = cpu.regs.get::<T>(RegAt::RAX);
    cpu.store(at, value)?;
    cpu.next(op)
}

fn extend_reg<F: Width, T: Width, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.regs.get::<F>(op.src);
    cpu.regs.set(op.dst, T::from_u64(if SIGNED { value.to_i64() as u64 } else { value.to_u64() }));
    cpu.next(op)
}

fn extend_mem<F: Width, T: Width, const SIGNED: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.loading(op, |cpu, op, value: F| {
        cpu.regs.set(op.dst, T::from_u64(if SIGNED { value.to_i64() as u64 } else { value.to_u64() }));
    })
}

fn lea<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let offset = cpu.offset(op);
    cpu.regs.set(op.dst, T::from_u64(offset));
    cpu.next(op)
}

fn xchg_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let (a, b) = (cpu.regs.get::<T>(op.dst), cpu.regs.get::<T>(op.src));
    cpu.regs.set(op.dst, b);
    cpu.regs.set(op.src, a);
    cpu.next(op)
}

/// Always locked (SDM volume 2, XCHG).
fn xchg_mem<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    let new = cpu.regs.get::<T>(op.src);
    let old = cpu.modify_locked(at, |old: T| (new, old))?;
    cpu.regs.set(op.src, old);
    cpu.next(op)
}

fn xadd_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let (a, b) = (cpu.regs.get::<T>(op.dst), cpu.regs.get::<T>(op.src));
    let (sum, flags) = Add::apply(a, b, cpu.flags);
    cpu.regs.set(op.src, a);
    cpu.regs.set(op.dst, sum);
    cpu.flags = flags;
    cpu.next(op)
}

fn xadd_mem<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    let (b, flags) = (cpu.regs.get::<T>(op.src), cpu.flags);
    let add = |a: T| {
        let (sum, flags) = Add::apply(a, b, flags);
        (sum, (a, flags))
    };
    let (old, flags) = if op.extra != 0 { cpu.modify_locked(at, add)? } else { cpu.modify(at, add)? };
    cpu.flags = flags;
    cpu.regs.set(op.src, old);
    cpu.next(op)
}

fn cmpxchg_reg<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let (accumulator, old) = (cpu.regs.get::<T>(RegAt::RAX), cpu.regs.get::<T>(op.dst));
    cpu.flags = Sub::apply(accumulator, old, cpu.flags).1;
    if accumulator == old {
        let new = cpu.regs.get::<T>(op.src);
        cpu.regs.set(op.dst, new);
    } else {
        cpu.regs.set(RegAt::RAX, old);
    }
    cpu.next(op)
}

fn cmpxchg_mem<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    let (accumulator, new) = (cpu.regs.get::<T>(RegAt::RAX), cpu.regs.get::<T>(op.src));
    let exchange = |old: T| (if old == accumulator { new } else { old }, old);
    let old = if op.extra != 0 { cpu.modify_locked(at, exchange)? } else { cpu.modify(at, exchange)? };
    cpu.flags = Sub::apply(accumulator, old, cpu.flags).1;
    if old != accumulator {
        cpu.regs.set(RegAt::RAX, old);
    }
    cpu.next(op)
}

fn cmpxchg8b(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, 8, Access::Write)?;
    let pair = |cpu: &Cpu, high, low| u64::from(cpu.regs.get::<u32>(high)) << 32 | u64::from(cpu.regs.get::<u32>(low));
    let (expected, new) = (pair(cpu, RegAt::RDX, RegAt::RAX), pair(cpu, RegAt::RCX, RegAt::RBX));
    let exchange = |old: u64| (if old == expected { new } else { old }, old);
    let old = if op.extra != 0 { cpu.modify_locked(at, exchange)? } else { cpu.modify(at, exchange)? };
    cpu.flags.set(Flags::ZF, old == expected);
    if old != expected {
        cpu.regs.set(RegAt::RAX, old as u32);
        cpu.regs.set(RegAt::RDX, (old >> 32) as u32);
    }
    cpu.next(op)
}

fn cmpxchg16b(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, 16, Access::Write)?;
    if at % 16 != 0 {
        return Err(cpu.gp(0));
    }
    let expected = (cpu.regs.get64(RegAt::RAX), cpu.regs.get64(RegAt::RDX));
    let new = (cpu.regs.get64(RegAt::RBX), cpu.regs.get64(RegAt::RCX));
    let old = cpu.compare_exchange_16(at, expected, new)?;
    cpu.flags.set(Flags::ZF, old == expected);
    if old != expected {
        cpu.regs.set64(RegAt::RAX, old.0);
        cpu.regs.set64(RegAt::RDX, old.1);
    }
    cpu.next(op)
}

fn bswap<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.regs.get::<T>(op.dst).to_u64();
    // At 16 bits undefined; processors clear the register (the host is asked, see the differential test).
    let swapped = if T::BYTES == 2 { 0 } else { value.swap_bytes() >> (64 - T::BITS) };
    cpu.regs.set(op.dst, T::from_u64(swapped));
    cpu.next(op)
}

fn swapped<T: Width>(value: T) -> T {
    T::from_u64(value.to_u64().swap_bytes() >> (64 - T::BITS))
}

fn movbe_load<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Read)?;
    let value = cpu.load::<T>(at)?;
    cpu.regs.set(op.dst, swapped(value));
    cpu.next(op)
}

fn movbe_store<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    let value = swapped(cpu.regs.get::<T>(op.src));
    cpu.store(at, value)?;
    cpu.next(op)
}

fn xlat(cpu: &mut Cpu, op: &Op) -> Step {
    let offset = cpu.regs.get64(RegAt::RBX).wrapping_add(cpu.regs.get::<u8>(RegAt::RAX).into());
    let at = cpu.segmented(op.seg, offset & address_mask(op), 1, Access::Read)?;
    let value = cpu.load::<u8>(at)?;
    cpu.regs.set(RegAt::RAX, value);
    cpu.next(op)
}

fn address_mask(op: &Op) -> u64 {
    match op.addressing {
        Addressing::Flat => u64::MAX,
        Addressing::Flat32 | Addressing::Segmented32 => 0xffff_ffff,
        Addressing::Segmented16 => 0xffff,
    }
}

/// CBW, CWDE, CDQE: the accumulator from its lower half.
fn extend_accumulator<F: Width, T: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let value = cpu.regs.get::<F>(RegAt::RAX).to_i64();
    cpu.regs.set(RegAt::RAX, T::from_u64(value as u64));
    Ok(())
}

/// CWD, CDQ, CQO: the sign of the accumulator.
fn sign_of_accumulator<T: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let sign = cpu.regs.get::<T>(RegAt::RAX).to_i64() >> 63;
    cpu.regs.set(RegAt::RDX, T::from_u64(sign as u64));
    Ok(())
}

fn mov(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let size = bytes(insn, 0);
    Some(match (operand(insn, 0), operand(insn, 1)) {
        (Operand::Reg(dst), Operand::Reg(src)) => {
            (op.dst, op.src) = (dst, src);
            by_width!(size, T => mov_reg_reg::<T>)
        }
        (Operand::Reg(dst), Operand::Imm(imm)) => {
            (op.dst, op.imm) = (dst, imm);
            by_width!(size, T => mov_reg_imm::<T>)
        }
        (Operand::Reg(_), Operand::Mem) if is_moffs(insn) => by_width!(size, T => load_moffs::<T>),
        (Operand::Mem, Operand::Reg(_)) if is_moffs(insn) => by_width!(size, T => store_moffs::<T>),
        (Operand::Reg(dst), Operand::Mem) => {
            op.dst = dst;
            by_width!(size, T => mov_reg_mem::<T>)
        }
        (Operand::Mem, Operand::Reg(src)) => {
            op.src = src;
            by_width!(size, T => mov_mem_reg::<T>)
        }
        (Operand::Mem, Operand::Imm(imm)) => {
            op.imm = imm;
            by_width!(size, T => mov_mem_imm::<T>)
        }
        _ => return None,
    })
}

/// MOV between the accumulator and an offset that is not encoded as ModRM; in 64-bit mode it can have 64 bits.
fn is_moffs(insn: &Instruction) -> bool {
    use Code::{
        Mov_AL_moffs8, Mov_AX_moffs16, Mov_EAX_moffs32, Mov_RAX_moffs64, Mov_moffs8_AL, Mov_moffs16_AX,
        Mov_moffs32_EAX, Mov_moffs64_RAX,
    };
    let moffs = matches!(
        insn.code(),
        Mov_AL_moffs8
            | Mov_AX_moffs16
            | Mov_EAX_moffs32
            | Mov_RAX_moffs64
            | Mov_moffs8_AL
            | Mov_moffs16_AX
            | Mov_moffs32_EAX
            | Mov_moffs64_RAX
    );
    moffs && insn.memory_displ_size() == 8
}

fn extend<const SIGNED: bool>(insn: &Instruction, op: &mut Op) -> Option<Handler> {
    let Operand::Reg(dst) = operand(insn, 0) else { return None };
    op.dst = dst;
    let (from, to) = (bytes(insn, 1), bytes(insn, 0));
    macro_rules! pick {
        ($handler:ident) => {
            match from {
                1 => by_width!(to, T => $handler::<u8, T, SIGNED>),
                2 => by_width!(to, T => $handler::<u16, T, SIGNED>),
                _ => by_width!(to, T => $handler::<u32, T, SIGNED>),
            }
        };
    }
    match operand(insn, 1) {
        Operand::Reg(src) => {
            op.src = src;
            Some(pick!(extend_reg))
        }
        Operand::Mem => Some(pick!(extend_mem)),
        _ => None,
    }
}

/// Instructions with two operands of one size, of which the first may be memory and the second is a register.
fn reg_or_mem(insn: &Instruction, op: &mut Op, reg: Handler, mem: Handler) -> Option<Handler> {
    op.extra = insn.has_lock_prefix().into();
    match (operand(insn, 0), operand(insn, 1)) {
        (Operand::Reg(dst), Operand::Reg(src)) => {
            (op.dst, op.src) = (dst, src);
            Some(reg)
        }
        (Operand::Mem, Operand::Reg(src)) | (Operand::Reg(src), Operand::Mem) => {
            op.src = src;
            Some(mem)
        }
        _ => None,
    }
}

pub(super) fn lower(insn: &Instruction, op: &mut Op, size: CodeSize) -> Lowered {
    let width = if insn.op_count() > 0 { bytes(insn, 0) } else { 0 };
    let handler = match insn.mnemonic() {
        Mnemonic::Mov => mov(insn, op),
        Mnemonic::Movzx => extend::<false>(insn, op),
        Mnemonic::Movsx | Mnemonic::Movsxd => extend::<true>(insn, op),
        Mnemonic::Lea => gpr(insn.op0_register()).map(|dst| {
            op.dst = dst;
            by_width!(width, T => lea::<T>)
        }),
        Mnemonic::Xchg => {
            let (reg, mem) = (by_width!(width, T => xchg_reg::<T>), by_width!(width, T => xchg_mem::<T>));
            reg_or_mem(insn, op, reg, mem)
        }
        Mnemonic::Xadd => {
            let (reg, mem) = (by_width!(width, T => xadd_reg::<T>), by_width!(width, T => xadd_mem::<T>));
            reg_or_mem(insn, op, reg, mem)
        }
        Mnemonic::Cmpxchg => {
            let (reg, mem) = (by_width!(width, T => cmpxchg_reg::<T>), by_width!(width, T => cmpxchg_mem::<T>));
            reg_or_mem(insn, op, reg, mem)
        }
        Mnemonic::Cmpxchg8b => {
            op.extra = insn.has_lock_prefix().into();
            Some(cmpxchg8b as Handler)
        }
        Mnemonic::Cmpxchg16b => Some(cmpxchg16b as Handler),
        Mnemonic::Bswap => gpr(insn.op0_register()).map(|dst| {
            op.dst = dst;
            by_width!(width, T => bswap::<T>)
        }),
        Mnemonic::Movbe => match (operand(insn, 0), operand(insn, 1)) {
            (Operand::Reg(dst), _) => {
                op.dst = dst;
                Some(by_width!(width, T => movbe_load::<T>))
            }
            (_, Operand::Reg(src)) => {
                op.src = src;
                Some(by_width!(width, T => movbe_store::<T>))
            }
            _ => None,
        },
        Mnemonic::Xlatb => {
            op.seg = effective_seg(insn.memory_segment(), size);
            op.addressing = match insn.memory_base() {
                Register::RBX => Addressing::Flat,
                Register::EBX => Addressing::Flat32,
                _ => Addressing::Segmented16,
            };
            Some(xlat as Handler)
        }
        Mnemonic::Cbw => Some(extend_accumulator::<u8, u16> as Handler),
        Mnemonic::Cwde => Some(extend_accumulator::<u16, u32> as Handler),
        Mnemonic::Cdqe => Some(extend_accumulator::<u32, u64> as Handler),
        Mnemonic::Cwd => Some(sign_of_accumulator::<u16> as Handler),
        Mnemonic::Cdq => Some(sign_of_accumulator::<u32> as Handler),
        Mnemonic::Cqo => Some(sign_of_accumulator::<u64> as Handler),
        _ => None,
    };
    let Some(handler) = handler else { return Lowered::NotMine };
    op.run = handler;
    Lowered::Inside
}
