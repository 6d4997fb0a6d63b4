//! IRET (SDM volume 2; volume 3, 6.12.1 and 6.14.3). Returns to other tasks (NT) and to virtual-8086 mode raise #GP.

use super::descriptor::RPL;
use super::ret::Return;
use super::stack::Stack;
use crate::engine::soft::attention;
use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{Break, Step};
use crate::engine::soft::flags::rflags;

/// Flags that every IRET and POPF restores.
pub(super) const USER_FLAGS: u64 = rflags::STATUS | rflags::TF | rflags::DF | rflags::NT;

/// IRET, IRETD, IRETQ; `extra` is the operand size.
pub(super) fn iret(cpu: &mut Cpu, op: &Op) -> Step {
    let size = u64::from(op.extra);
    let stack = cpu.stack();
    let ip = cpu.stack_value(&stack, 0, size)?;
    let selector = cpu.stack_value(&stack, size as i64, size)? as u16;
    let flags = cpu.stack_value(&stack, 2 * size as i64, size)?;
    if cpu.protected() {
        cpu.iret_protected(&stack, size, (ip, selector, flags))?;
    } else {
        cpu.return_real(selector, ip)?;
        cpu.set_stack_pointer(&stack, stack.moved(3 * size as i64));
        cpu.restore_flags(flags, size, 0);
    }
    cpu.unblock_nmi();
    Err(Break::Jump)
}

impl Cpu {
    fn iret_protected(&mut self, stack: &Stack, size: u64, (ip, selector, flags): (u64, u16, u64)) -> Step {
        let vm = flags & rflags::VM != 0 && size != 2 && self.cpl == 0 && !self.long_mode();
        if self.system.rflags & rflags::NT != 0 || vm {
            return Err(self.gp(0));
        }
        let code = self.return_code(selector)?;
        let cpl = (selector & RPL) as u8;
        let level = self.cpl;
        let new_stack = if self.is_64() || cpl > level {
            let pointer = self.stack_value(stack, 3 * size as i64, size)?;
            let ss = self.stack_value(stack, 4 * size as i64, size)? as u16;
            Some((self.return_stack(ss, cpl, code)?, pointer))
        } else {
            None
        };
        let ip = self.checked_target(code, ip)?;
        self.mark_accessed(code)?;
        if new_stack.is_none() {
            self.set_stack_pointer(stack, stack.moved(3 * size as i64));
        }
        self.return_to(Return { code, selector, ip, stack: new_stack });
        self.restore_flags(flags, size, level);
        Ok(())
    }

    /// Takes RFLAGS from an image of `size` bytes, as far as privilege level `cpl` may change them.
    fn restore_flags(&mut self, image: u64, size: u64, cpl: u8) {
        let mut may = USER_FLAGS;
        if size > 2 {
            may |= rflags::RF | rflags::AC | rflags::ID;
        }
        if cpl <= self.iopl() {
            may |= rflags::IF;
        }
        if cpl == 0 {
            may |= rflags::IOPL;
            if size > 2 {
                may |= rflags::VIF | rflags::VIP;
            }
        }
        self.set_rflags(self.rflags() & !may | image & may);
    }

    /// The I/O privilege level.
    pub(super) fn iopl(&self) -> u8 {
        (self.system.rflags >> 12 & 3) as u8
    }

    /// NMIs come through again, and one may be waiting.
    fn unblock_nmi(&mut self) {
        if std::mem::take(&mut self.system.nmi_blocked) {
            self.shared.attention(self.index).raise(attention::INTERRUPT);
        }
    }
}
