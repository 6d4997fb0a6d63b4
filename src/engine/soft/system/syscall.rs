//! Fast system calls: SYSCALL, SYSRET, SYSENTER, SYSEXIT, and SWAPGS (SDM volume 2; volume 3, 5.8.7 and 5.8.8).
//!
//! SYSCALL from compatibility mode works as on AMD's CPUs (through CSTAR); Intel's raise #UD there.

use crate::arch::x86_64::state::Segment;
use crate::engine::soft::code::op::{Op, Seg};
use crate::engine::soft::cpu::{Cpu, efer};
use crate::engine::soft::fault::{Break, Step};
use crate::engine::soft::flags::rflags;
use crate::engine::soft::registers::RegAt;

/// A flat code segment.
fn code(selector: u16, dpl: u8, long: bool) -> Segment {
    Segment { kind: 0xb, l: long, db: !long, ..data(selector, dpl) }
}

/// A flat data segment.
fn data(selector: u16, dpl: u8) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector: selector & !3 | u16::from(dpl),
        kind: 3,
        present: true,
        dpl,
        db: true,
        s: true,
        l: false,
        g: true,
        avl: false,
        unusable: false,
    }
}

impl Cpu {
    /// Goes on at `ip` in flat segments, whose selectors are `selector` and the next one.
    fn enter_flat(&mut self, selector: u16, dpl: u8, long: bool, ip: u64) {
        self.enter_segments(code(selector, dpl, long), data(selector.wrapping_add(8), dpl), ip);
    }

    fn enter_segments(&mut self, cs: Segment, ss: Segment, ip: u64) {
        self.cpl = cs.dpl;
        self.set_segment(Seg::Cs, cs);
        self.set_segment(Seg::Ss, ss);
        self.rip = ip;
        self.mode_changed();
    }
}

/// SYSCALL.
pub(super) fn syscall(cpu: &mut Cpu, op: &Op) -> Step {
    if !cpu.long_mode() || cpu.system.efer & efer::SCE == 0 {
        return Err(cpu.ud());
    }
    let msrs = &cpu.system.msrs;
    let target = if cpu.is_64() { msrs.lstar } else { msrs.cstar };
    let (star, mask) = (msrs.star, msrs.sfmask);
    let flags = cpu.rflags();
    cpu.regs.set64(RegAt::RCX, cpu.next_ip(op));
    cpu.regs.set64(RegAt::R11, flags);
    cpu.set_rflags(flags & !(mask | rflags::RF));
    cpu.enter_flat((star >> 32) as u16, 0, true, target);
    Err(Break::Jump)
}

/// SYSRET; `extra` is 8 for a return to 64-bit mode, 4 for one to compatibility mode.
pub(super) fn sysret(cpu: &mut Cpu, op: &Op) -> Step {
    if !cpu.is_64() || cpu.system.efer & efer::SCE == 0 {
        return Err(cpu.ud());
    }
    cpu.privileged()?;
    let long = op.extra == 8;
    let rcx = cpu.regs.get64(RegAt::RCX);
    if long && !Cpu::canonical(rcx) {
        return Err(cpu.gp(0));
    }
    let selector = (cpu.system.msrs.star >> 48) as u16;
    let ip = if long { rcx } else { rcx & 0xffff_ffff };
    let flags = cpu.regs.get64(RegAt::R11);
    cpu.set_rflags(flags & 0x003c_7fd7);
    let code_selector = if long { selector.wrapping_add(16) } else { selector };
    cpu.enter_segments(code(code_selector, 3, long), data(selector.wrapping_add(8), 3), ip);
    Err(Break::Jump)
}

/// SYSENTER.
pub(super) fn sysenter(cpu: &mut Cpu, _: &Op) -> Step {
    let selector = cpu.system.msrs.sysenter_cs as u16 & !3;
    if !cpu.protected() || selector == 0 {
        return Err(cpu.gp(0));
    }
    let (stack, ip) = (cpu.system.msrs.sysenter_esp, cpu.system.msrs.sysenter_eip);
    let long = cpu.long_mode();
    let cut = if long { u64::MAX } else { 0xffff_ffff };
    cpu.system.rflags &= !(rflags::VM | rflags::IF | rflags::RF);
    cpu.regs.set64(RegAt::RSP, stack & cut);
    cpu.enter_flat(selector, 0, long, ip & cut);
    Err(Break::Jump)
}

/// SYSEXIT; `extra` is the operand size.
pub(super) fn sysexit(cpu: &mut Cpu, op: &Op) -> Step {
    let selector = cpu.system.msrs.sysenter_cs as u16 & !3;
    if !cpu.protected() || selector == 0 || cpu.cpl != 0 {
        return Err(cpu.gp(0));
    }
    let long = op.extra == 8;
    let (mut ip, mut stack) = (cpu.regs.get64(RegAt::RDX), cpu.regs.get64(RegAt::RCX));
    if long && !(Cpu::canonical(ip) && Cpu::canonical(stack)) {
        return Err(cpu.gp(0));
    }
    if !long {
        (ip, stack) = (ip & 0xffff_ffff, stack & 0xffff_ffff);
    }
    cpu.regs.set64(RegAt::RSP, stack);
    cpu.enter_flat(selector.wrapping_add(if long { 32 } else { 16 }), 3, long, ip);
    Err(Break::Jump)
}

/// SWAPGS.
pub(super) fn swapgs(cpu: &mut Cpu, _: &Op) -> Step {
    if !cpu.is_64() {
        return Err(cpu.ud());
    }
    cpu.privileged()?;
    let gs = cpu.segment(Seg::Gs);
    let kernel = std::mem::replace(&mut cpu.system.msrs.kernel_gs_base, gs.base);
    cpu.set_segment(Seg::Gs, Segment { base: kernel, ..gs });
    if let Some(base) = cpu.seg_base.get_mut(Seg::Gs as usize) {
        *base = kernel;
    }
    Ok(())
}
