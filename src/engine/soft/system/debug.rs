//! Debug registers (SDM volume 3, 18.2): what software reads and writes. What they arm is in `breakpoints.rs`.

use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::{Cpu, cr4};
use crate::engine::soft::fault::{self, Step};
use crate::engine::soft::width::Width;

/// DR6: bits that read as one; those that can be written.
const DR6_ONES: u64 = 0xffff_0ff0;
const DR6_WRITABLE: u64 = 0xe00f;
/// DR6: which breakpoints were met.
pub(super) const DR6_BREAKPOINTS: u64 = 0xf;
/// DR6: a debug register was accessed while [`GENERAL_DETECT`] was set.
const DR6_ACCESS: u64 = 1 << 13;
/// DR7: bit 10 reads as one; bits that can be written.
const DR7_ONES: u64 = 1 << 10;
const DR7_WRITABLE: u64 = 0xffff_23ff;
/// DR7.GD: an access to debug registers raises #DB.
pub(super) const GENERAL_DETECT: u64 = 1 << 13;

/// State after RESET.
pub(super) const RESET: (u64, u64) = (DR6_ONES, DR7_ONES);

/// The register that an instruction means: DR4 and DR5 are DR6 and DR7, unless CR4.DE is set.
fn number(cpu: &mut Cpu, op: &Op) -> Result<u8, crate::engine::soft::fault::Break> {
    let number = match op.extra {
        4 | 5 if cpu.system.cr4 & cr4::DE != 0 => return Err(cpu.ud()),
        4 | 5 => op.extra + 2,
        0..8 => op.extra,
        _ => return Err(cpu.ud()),
    };
    cpu.privileged()?;
    if cpu.system.dr7 & GENERAL_DETECT != 0 {
        cpu.system.dr6 |= DR6_ACCESS;
        return Err(cpu.raise(fault::DB, None));
    }
    Ok(number)
}

/// MOV r, DR.
pub(super) fn from_debug<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let value = match number(cpu, op)? {
        6 => cpu.system.dr6,
        7 => cpu.system.dr7,
        n => cpu.system.breakpoints.get(usize::from(n)).copied().unwrap_or(0),
    };
    cpu.regs.set(op.dst, T::from_u64(value));
    Ok(())
}

/// MOV DR, r.
pub(super) fn to_debug<T: Width>(cpu: &mut Cpu, op: &Op) -> Step {
    let number = number(cpu, op)?;
    let value = cpu.regs.get::<T>(op.src).to_u64();
    if number >= 6 && value >> 32 != 0 {
        return Err(cpu.gp(0));
    }
    match number {
        6 => cpu.system.dr6 = value & DR6_WRITABLE | DR6_ONES,
        7 => cpu.system.dr7 = value & DR7_WRITABLE | DR7_ONES,
        n => {
            if let Some(breakpoint) = cpu.system.breakpoints.get_mut(usize::from(n)) {
                *breakpoint = value;
            }
        }
    }
    if number != 6 {
        cpu.breakpoints_changed();
    }
    Ok(())
}
