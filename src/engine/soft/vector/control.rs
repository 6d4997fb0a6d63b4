//! Instructions on control registers of the vector units, and those that clear registers: LDMXCSR, STMXCSR, XGETBV, XSETBV,
//! VZEROUPPER, VZEROALL; and MOVNTI, which has no vector registers at all.

use iced_x86::{Instruction, Mnemonic};

use super::access::ZERO;
use super::area::{AVX, SSE, X87};
use super::state::MXCSR_MASK;
use super::thunks::Thunks;
use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::{Cpu, cr4};
use crate::engine::soft::fault::Step;
use crate::engine::soft::memory::walk::Access;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::width::Width;

/// Picks the handler, if this is an instruction of this file.
pub(super) fn lower(insn: &Instruction, op: &mut Op, thunks: &Thunks) -> Option<()> {
    op.run = match insn.mnemonic() {
        Mnemonic::Ldmxcsr => ldmxcsr::<false>,
        Mnemonic::Vldmxcsr => ldmxcsr::<true>,
        Mnemonic::Stmxcsr => stmxcsr::<false>,
        Mnemonic::Vstmxcsr => stmxcsr::<true>,
        Mnemonic::Xgetbv => xgetbv,
        Mnemonic::Xsetbv => {
            op.imm = if thunks.offer().avx { X87 | SSE | AVX } else { X87 | SSE };
            xsetbv
        }
        Mnemonic::Movnti => {
            let register = insn.op_register(1);
            op.dst = RegAt::gpr(register.number() as u8);
            if register.size() == 8 { movnti::<u64> } else { movnti::<u32> }
        }
        Mnemonic::Vzeroupper => vzero::<false>,
        Mnemonic::Vzeroall => vzero::<true>,
        _ => return None,
    };
    Some(())
}

fn ldmxcsr<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_vector::<VEX>()?;
    let at = cpu.address(op, 4, Access::Read)?;
    let value = cpu.load::<u32>(at)?;
    if value & !MXCSR_MASK != 0 {
        return Err(cpu.gp(0));
    }
    cpu.vector.set_mxcsr(value);
    Ok(())
}

fn stmxcsr<const VEX: bool>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.check_vector::<VEX>()?;
    let at = cpu.address(op, 4, Access::Write)?;
    cpu.vector.settle();
    cpu.store(at, cpu.vector.mxcsr())
}

/// XGETBV of XCR0; other registers (XINUSE at 1 belongs to XSAVEC) do not exist.
fn xgetbv(cpu: &mut Cpu, _: &Op) -> Step {
    if cpu.system.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    if cpu.regs.get::<u32>(RegAt::RCX) != 0 {
        return Err(cpu.gp(0));
    }
    let value = cpu.system.xcr0;
    cpu.regs.set::<u32>(RegAt::RAX, value as u32);
    cpu.regs.set::<u32>(RegAt::RDX, (value >> 32) as u32);
    Ok(())
}

/// XSETBV; `op.imm` has the bits that XCR0 may have.
fn xsetbv(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.system.cr4 & cr4::OSXSAVE == 0 {
        return Err(cpu.ud());
    }
    let value = u64::from(cpu.regs.get::<u32>(RegAt::RDX)) << 32 | u64::from(cpu.regs.get::<u32>(RegAt::RAX));
    let valid = value & !op.imm == 0 && value & X87 != 0 && (value & AVX == 0 || value & SSE != 0);
    if cpu.cpl != 0 || cpu.regs.get::<u32>(RegAt::RCX) != 0 || !valid {
        return Err(cpu.gp(0));
    }
    cpu.vector.settle();
    cpu.system.xcr0 = value;
    Ok(())
}

/// A general register to memory: a plain store here.
fn movnti<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let at = cpu.address(op, T::BYTES, Access::Write)?;
    let value = cpu.regs.get::<T>(op.dst);
    cpu.store(at, value)
}

fn vzero<const ALL: bool>(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.check_avx()?;
    let registers = if cpu.is_64() { 16 } else { 8 };
    for number in 0..registers {
        cpu.vector.set_high(number, ZERO);
        if ALL {
            cpu.vector.set_xmm(number, ZERO);
        }
    }
    Ok(())
}
