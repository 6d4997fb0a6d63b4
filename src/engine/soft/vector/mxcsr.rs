//! The guest's MXCSR in the host's, so that floating-point instructions need not read and write it one by one.
//!
//! Rust's own rounding and masks are the defaults. Where the guest has the same ones, its MXCSR can be the host's while
//! guest code runs: exception flags mean nothing to Rust, and what guest instructions flag gathers there as it does on a
//! CPU. Before anything looks at the guest's MXCSR, and before the run loop is left, [`VectorState::settle`] takes it back.
//! With other rounding, flushing or masks it never is the host's for longer than a stub runs (`run.rs`).

// UNSAFETY: reads and writes MXCSR of the host.
#![expect(unsafe_code)]

use std::arch::asm;

use super::state::{MXCSR_DEFAULT, MXCSR_MASK, VectorState};
use crate::engine::soft::cpu::Cpu;

/// Bits of MXCSR that decide results and exceptions; the others are exception flags.
pub(super) const CONTROL: u32 = 0xffc0;

/// What can be executed without another look at control registers, since the guest's MXCSR is the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
#[repr(u8)]
pub(super) enum Ready {
    /// Nothing: the guest's MXCSR is in its state.
    #[default]
    Nothing,
    /// Legacy SSE arithmetic.
    Sse,
    /// And VEX-encoded.
    Avx,
}

impl VectorState {
    /// Whether arithmetic in this encoding may run at once.
    #[inline(always)]
    pub(super) fn is_ready<const VEX: bool>(&self) -> bool {
        if VEX { self.ready == Ready::Avx } else { self.ready != Ready::Nothing }
    }

    /// Takes the guest's MXCSR back from the host's, if it is there.
    #[inline(always)]
    pub(in crate::engine::soft) fn settle(&mut self) {
        if self.ready != Ready::Nothing {
            self.take_back();
        }
    }

    fn take_back(&mut self) {
        self.ready = Ready::Nothing;
        self.set_mxcsr(host_mxcsr() & MXCSR_MASK);
    }
}

impl Cpu {
    /// Makes the guest's MXCSR the host's if it has default rounding and masks; false if it has not. The caller has checked
    /// that arithmetic in this encoding is enabled.
    pub(super) fn make_ready<const VEX: bool>(&mut self) -> bool {
        self.vector.settle();
        let guest = self.vector.mxcsr();
        if guest & CONTROL != MXCSR_DEFAULT {
            return false;
        }
        // SAFETY: control bits are the default's.
        unsafe { set_host_mxcsr(guest) };
        self.vector.ready = if VEX { Ready::Avx } else { Ready::Sse };
        true
    }
}

/// MXCSR of the host.
#[inline(always)]
pub(super) fn host_mxcsr() -> u32 {
    let mut value = 0u32;
    // SAFETY: writes the variable only.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut value, options(nostack, preserves_flags)) };
    value
}

/// Sets the host's MXCSR.
///
/// # Safety
/// Control bits other than the default's are replaced again before any floating-point operation of Rust.
#[inline(always)]
pub(super) unsafe fn set_host_mxcsr(value: u32) {
    // SAFETY: reads the variable; the caller sees to the rest.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const value, options(nostack)) };
}
