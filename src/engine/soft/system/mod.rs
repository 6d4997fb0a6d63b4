//! What kernels use: segments, interrupts and exceptions, far transfers, control registers, ports (SDM volume 3, chapters 2
//! to 7), and the architectural state as a whole.
//!
//! `lower.rs` chooses the handlers of this directory for decoded instructions; the run loop calls [`Cpu::deliver`] with
//! exceptions and interrupts. Hardware task switches and virtual-8086 mode are left out: what would start them raises #GP.
//!
//! [`Cpu::deliver`]: super::cpu::Cpu::deliver

pub(super) mod breakpoints;
mod control;
mod crash;
mod debug;
mod descriptor;
pub(super) mod event;
mod flags;
mod interrupt;
mod io;
mod iret;
pub(super) mod lower;
mod misc;
pub(super) mod msr;
mod mtrr;
mod reset;
mod ret;
mod segment;
mod stack;
mod state;
mod syscall;
mod tables;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transfer;
