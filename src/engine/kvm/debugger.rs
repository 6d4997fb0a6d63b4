//! A debugger outside of the guest (`engine::debug`), by KVM_SET_GUEST_DEBUG (api.rst, section 4.87).
//!
//! While watchpoints are set the guest's own debug registers have no effect: the processor has only four.

use kvm_bindings::{
    KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_INJECT_BP, KVM_GUESTDBG_INJECT_DB,
    KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, KVM_GUESTDBG_USE_SW_BP, kvm_debug_exit_arch, kvm_guest_debug,
};

use super::vcpu::KvmVcpu;
use super::{NAME, host};
use crate::engine::debug::{Debugging, MAX_WATCHPOINTS, Stop, Wanted};
use crate::engine::{Error, Result};

/// Vectors of #DB and #BP.
const DB: u32 = 1;
const BP: u32 = 3;
/// DR6: which breakpoints were met; a single step was made (SDM volume 3, 18.2.3).
const DR6_BREAKPOINTS: u64 = 0xf;
const DR6_STEP: u64 = 1 << 14;
/// DR7: bit 10 reads as one.
const DR7_ONES: u64 = 1 << 10;

impl Debugging for KvmVcpu {
    fn needs_int3(&self) -> bool {
        true
    }

    fn set(&mut self, wanted: &Wanted) -> Result<()> {
        if wanted.watchpoints.len() > MAX_WATCHPOINTS {
            let reason = format!("a processor has {MAX_WATCHPOINTS} watchpoints");
            return Err(Error::Unsupported { engine: NAME, reason });
        }
        self.wanted = wanted.clone();
        self.apply(0)
    }
}

impl KvmVcpu {
    /// Tells KVM what the debugger wants. `once` are flags for the next entry.
    fn apply(&self, once: u32) -> Result<()> {
        let mut request = kvm_guest_debug { control: once, ..Default::default() };
        let Wanted { step, breakpoints, watchpoints } = &self.wanted;
        if !breakpoints.is_empty() {
            request.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
        }
        if !watchpoints.is_empty() {
            request.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            let [at @ .., _, _, _, dr7] = &mut request.arch.debugreg;
            *dr7 = DR7_ONES;
            for ((number, watchpoint), at) in (0..).zip(watchpoints).zip(at) {
                *at = watchpoint.at;
                *dr7 |= 2 << (2 * number) | watchpoint.dr7_fields() << (16 + 4 * number);
            }
        }
        if *step {
            request.control |= KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP;
            let quiet = kvm_guest_debug { control: request.control | KVM_GUESTDBG_BLOCKIRQ, ..request };
            // Kernels before 5.16 cannot hold interrupts back.
            if self.fd.set_guest_debug(&quiet).is_ok() {
                return Ok(());
            }
        }
        self.fd.set_guest_debug(&request).map_err(host("set what a debugger wants"))
    }

    /// Why KVM stopped for the debugger. None: it was the guest's own doing, which is now delivered to it.
    pub(super) fn stop(&self, exit: &kvm_debug_exit_arch) -> Result<Option<Stop>> {
        if exit.exception == BP {
            if self.wanted.breakpoints.contains(&exit.pc) {
                return Ok(Some(Stop::Breakpoint));
            }
            return self.apply(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_BP).map(|()| None);
        }
        let met = (exit.dr6 & DR6_BREAKPOINTS).trailing_zeros() as usize;
        match self.wanted.watchpoints.get(met) {
            Some(watchpoint) => Ok(Some(Stop::Watchpoint(*watchpoint))),
            None if exit.exception != DB || (self.wanted.step && exit.dr6 & DR6_STEP != 0) => Ok(Some(Stop::Step)),
            None => self.apply(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB).map(|()| None),
        }
    }
}
