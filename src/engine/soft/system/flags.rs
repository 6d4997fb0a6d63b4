//! RFLAGS: CLI, STI, PUSHF, POPF, STAC, CLAC; and HLT (SDM volume 2; volume 3, 6.8.1).

use super::iret::USER_FLAGS;
use crate::engine::Exit;
use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::flags::rflags;
use crate::engine::soft::width::Width;

impl Cpu {
    /// #GP(0) where the program may not change IF or use ports.
    fn sensitive_to_iopl(&mut self) -> Step {
        if self.protected() && self.cpl > self.iopl() { Err(self.gp(0)) } else { Ok(()) }
    }
}

/// CLI. Interrupts are looked for between blocks, so what is left of this one runs without them.
pub(super) fn cli(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.sensitive_to_iopl()?;
    cpu.system.rflags &= !rflags::IF;
    Ok(())
}

/// STI: interrupts come through after the next instruction.
pub(super) fn sti(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.sensitive_to_iopl()?;
    if cpu.system.rflags & rflags::IF == 0 {
        cpu.system.rflags |= rflags::IF;
        cpu.shadow = true;
        cpu.interrupts_may_be_on();
    }
    Ok(())
}

/// PUSHF, PUSHFD, PUSHFQ.
pub(super) fn pushf<T: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let image = cpu.rflags() & !(rflags::RF | rflags::VM);
    cpu.push(T::from_u64(image))
}

/// POPF, POPFD, POPFQ.
pub(super) fn popf<T: Width>(cpu: &mut Cpu, _: &Op) -> Step {
    let image = cpu.peek::<T>(0)?.to_u64();
    let wide = T::BYTES > 2;
    let mut may = USER_FLAGS;
    if wide {
        may |= rflags::AC | rflags::ID;
    }
    if cpu.cpl <= cpu.iopl() {
        may |= rflags::IF;
    }
    let mut cleared = if wide { rflags::RF } else { 0 };
    if cpu.cpl == 0 {
        may |= rflags::IOPL;
        cleared |= if wide { rflags::VIF | rflags::VIP } else { 0 };
    }
    cpu.add_rsp(T::BYTES);
    cpu.set_rflags(cpu.rflags() & !(may | cleared) | image & may);
    Ok(())
}

/// STAC and CLAC; `imm` is the new value of AC, as in RFLAGS.
pub(super) fn set_access_check(cpu: &mut Cpu, op: &Op) -> Step {
    if cpu.cpl != 0 {
        return Err(cpu.ud());
    }
    cpu.system.rflags = cpu.system.rflags & !rflags::AC | op.imm & rflags::AC;
    cpu.choose_tlb();
    Ok(())
}

/// HLT.
pub(super) fn hlt(cpu: &mut Cpu, _: &Op) -> Step {
    cpu.privileged()?;
    Err(cpu.leave(Exit::Halted))
}
