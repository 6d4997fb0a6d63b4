//! CMOVcc and SETcc, and the condition codes that Jcc has too.

use iced_x86::{Code, Instruction, OpKind};

use crate::engine::soft::code::lower::{Lowered, Operand, by_width, bytes, operand};
use crate::engine::soft::code::op::{Handler, Op};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::width::Width;

macro_rules! by_condition {
    ($code:expr, $c:ident => $handler:expr) => {
        match $code & 15 {
            0 => {
                const $c: u8 = 0;
                $handler
            }
            1 => {
                const $c: u8 = 1;
                $handler
            }
            2 => {
                const $c: u8 = 2;
                $handler
            }
            3 => {
                const $c: u8 = 3;
                $handler
            }
            4 => {
                const $c: u8 = 4;
                $handler
            }
            5 => {
                const $c: u8 = 5;
                $handler
            }
            6 => {
                const $c: u8 = 6;
                $handler
            }
            7 => {
                const $c: u8 = 7;
                $handler
            }
            8 => {
                const $c: u8 = 8;
                $handler
            }
            9 => {
                const $c: u8 = 9;
                $handler
            }
            10 => {
                const $c: u8 = 10;
                $handler
            }
            11 => {
                const $c: u8 = 11;
                $handler
            }
            12 => {
                const $c: u8 = 12;
                $handler
            }
            13 => {
                const $c: u8 = 13;
                $handler
            }
            14 => {
                const $c: u8 = 14;
                $handler
            }
            _ => {
                const $c: u8 = 15;
                $handler
            }
        }
    };
}
pub(super) use by_condition;

/// The low four bits of the opcode of Jcc, SETcc, CMOVcc.
pub(super) fn condition(insn: &Instruction) -> Option<u8> {
    use iced_x86::ConditionCode as C;
    Some(match insn.condition_code() {
        C::None => return None,
        C::o => 0,
        C::no => 1,
        C::b => 2,
        C::ae => 3,
        C::e => 4,
        C::ne => 5,
        C::be => 6,
        C::a => 7,
        C::s => 8,
        C::ns => 9,
        C::p => 10,
        C::np => 11,
        C::l => 12,
        C::ge => 13,
        C::le => 14,
        C::g => 15,
    })
}

/// The destination is written even if the condition does not hold: 32 bits clear the upper half.
fn cmov_reg<T: Width, const C: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = cpu.regs.get::<T>(if cpu.flags.holds::<C>() { op.src } else { op.dst });
    cpu.regs.set(op.dst, value);
    cpu.next(op)
}

/// The source is read even if the condition does not hold.
fn cmov_mem<T: Width, const C: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.loading(op, |cpu, op, source: T| {
        let value = if cpu.flags.holds::<C>() { source } else { cpu.regs.get(op.dst) };
        cpu.regs.set(op.dst, value);
    })
}

fn setcc_reg<const C: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = u8::from(cpu.flags.holds::<C>());
    cpu.regs.set(op.dst, value);
    cpu.next(op)
}

fn setcc_mem<const C: u8>(cpu: &mut Cpu, op: &Op) -> Step {
    cpu.storing(op, |cpu, _| u8::from(cpu.flags.holds::<C>()))
}

fn conditional(insn: &Instruction, op: &mut Op, c: u8) -> Option<Handler> {
    let size = bytes(insn, 0);
    match (operand(insn, 0), operand(insn, 1)) {
        (Operand::Reg(dst), Operand::Reg(src)) => {
            (op.dst, op.src) = (dst, src);
            Some(by_condition!(c, C => by_width!(size, T => cmov_reg::<T, C>)))
        }
        (Operand::Reg(dst), Operand::Mem) => {
            op.dst = dst;
            Some(by_condition!(c, C => by_width!(size, T => cmov_mem::<T, C>)))
        }
        (Operand::Reg(dst), Operand::Other) => {
            op.dst = dst;
            Some(by_condition!(c, C => setcc_reg::<C> as Handler))
        }
        (Operand::Mem, Operand::Other) => Some(by_condition!(c, C => setcc_mem::<C> as Handler)),
        _ => None,
    }
}

pub(super) fn lower(insn: &Instruction, op: &mut Op) -> Lowered {
    let handler = condition(insn).filter(|_| insn.is_setcc_or_cmov()).and_then(|c| conditional(insn, op, c));
    let Some(handler) = handler else { return Lowered::NotMine };
    op.run = handler;
    Lowered::Inside
}

/// Whether an instruction with a condition code is SETcc or CMOVcc.
trait Conditional {
    fn is_setcc_or_cmov(&self) -> bool;
}

impl Conditional for Instruction {
    fn is_setcc_or_cmov(&self) -> bool {
        let cmov = self.op_count() == 2 && self.op1_kind() != OpKind::Immediate8 && self.code() != Code::INVALID;
        let setcc = self.op_count() == 1
            && bytes(self, 0) == 1
            && !self.is_jcc_short_or_near()
            && !self.is_loop()
            && !self.is_loopcc();
        (cmov || setcc) && !self.is_jcc_short_or_near()
    }
}
