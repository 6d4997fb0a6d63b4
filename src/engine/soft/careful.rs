//! Runs that can be repeated and looked at: the other run loop, which goes by executed instructions alone.
//!
//! What a guest sees then depends on nothing but its inputs:
//!
//! - Time is the number of executed instructions (`clock.rs`). The timer is looked at after each block, and interrupts
//!   are taken between blocks, so that it does not matter when another thread last stopped this one.
//! - Blocks are always found by their address and never by links from one to the next: whether a page is looked up again,
//!   which the guest can see by the accessed bit, must not depend on that either.
//! - Devices interrupt only while this vCPU waits for them (`machine/in_step.rs`).
//!
//! Breakpoints on instructions, the guest's and a debugger's, are found here too, since each block is looked at before it is executed.
//!
//! Its price is nothing where it is not used: the usual loop does not know of it.

// UNSAFETY: follows the pointer to the block that was found.
#![expect(unsafe_code)]

use super::attention::Attention;
use super::cpu::Cpu;
use super::fault::Step;
use super::flags::rflags;
use super::run::{BLOCKS_PER_LOOK, Left};

impl Cpu {
    /// Executes blocks until one is left in a way that needs a look at everything; or one instruction, if `stepping`.
    pub(super) fn run_carefully(&mut self, attention: &Attention, stepping: bool) -> Step {
        let mut budget = BLOCKS_PER_LOOK;
        loop {
            self.bury();
            self.meet_debugger()?;
            self.meet_code()?;
            let block = self.find_block()?;
            // SAFETY: `find_block` returned it just now, and `bury` is not called before it was executed.
            let block = unsafe { &*block };
            if self.tracer.is_some() {
                self.trace_block(block, stepping);
            }
            if stepping || self.may_meet_code(block) || self.may_meet_debugger(block) {
                return self.step_armed();
            }
            let left = self.execute(block);
            self.vector.settle();
            if let Left::Stop(step) = left {
                return step;
            }
            // Where instructions are the time, the count goes on beyond the budget.
            budget = budget.saturating_sub(1);
            let look = if self.shared.clock.is_counted() { self.timer_is_due() } else { budget == 0 };
            if look || attention.any() {
                return Ok(());
            }
        }
    }

    fn timer_is_due(&self) -> bool {
        self.apic().deadline().is_some_and(|deadline| self.guest_time() >= deadline)
    }

    /// Halted, in a run that can be repeated: if the timer can wake this CPU, its time has come. False if it cannot.
    pub(super) fn skip_to_deadline(&self) -> bool {
        let wakes = self.shared.clock.is_counted() && self.system.rflags & rflags::IF != 0;
        let Some(deadline) = self.apic().deadline().filter(|_| wakes) else { return false };
        self.shared.clock.advance_to(deadline, self.instructions);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::state::Activity;
    use crate::engine::soft::attention;
    use crate::engine::soft::fault::Break;
    use crate::engine::soft::registers::RegAt;
    use crate::engine::soft::testing;
    use crate::engine::{Deterministic, Exit};

    const LIMIT: u64 = 1_000_000;

    fn cpu(code: &[u8]) -> Cpu {
        testing::deterministic(&testing::ram(code), Deterministic { seed: 3, date: 0 })
    }

    /// l: rdtsc; mov rbx, rax; add rsi, rax; rdrand rdi; add rsi, rdi; inc rcx; cmp rcx, 5000; jb l; ud2
    const CODE: &[u8] = &[
        0x0f, 0x31, 0x48, 0x89, 0xc3, 0x48, 0x01, 0xc6, 0x48, 0x0f, 0xc7, 0xf7, 0x48, 0x01, 0xfe, 0x48, 0xff, 0xc1,
        0x48, 0x81, 0xf9, 0x88, 0x13, 0, 0, 0x72, 0xe5, 0x0f, 0x0b,
    ];

    /// Runs to the first fault. Every `disturb` calls somebody kicks.
    fn result(code: &[u8], disturb: u64) -> (u64, Vec<u64>, u64) {
        let mut cpu = cpu(code);
        let attention = cpu.shared.attention(0).clone();
        let mut calls = 0;
        loop {
            calls += 1;
            if disturb != 0 && calls % disturb == 0 {
                attention.raise(attention::KICK);
                assert_eq!(cpu.attend(&attention), Some(Exit::Kicked));
            }
            match cpu.run_carefully(&attention, false) {
                Ok(()) => assert!(cpu.instructions < LIMIT),
                Err(Break::Fault) => return (cpu.instructions, cpu.regs.general().to_vec(), cpu.rip),
                Err(other) => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn time_and_chance_come_from_the_instructions() {
        let first = result(CODE, 0);
        assert_eq!(first.0, 8 * 5000);
        assert_eq!(first, result(CODE, 1));
        assert_eq!(first, result(CODE, 7));
        let tsc = first.1[3];
        assert!((first.0 - 50..first.0).contains(&tsc), "{tsc} after {}", first.0);
        let mut other = testing::deterministic(&testing::ram(CODE), Deterministic { seed: 4, date: 0 });
        let attention = other.shared.attention(0).clone();
        while other.run_carefully(&attention, false).is_ok() {}
        assert_eq!(other.instructions, first.0);
        assert_ne!(other.regs.get64(RegAt::gpr(6)), first.1[6], "another seed, other numbers");
    }

    /// An interrupt of the timer comes after the same number of instructions, whatever else happens on the host.
    #[test]
    fn the_timer_goes_by_the_count() {
        let due = |disturb: u64| {
            let mut cpu = cpu(&[0x48, 0xff, 0xc1, 0xeb, 0xfb]); // l: inc rcx; jmp l
            let attention = cpu.shared.attention(0).clone();
            cpu.system.rflags &= !rflags::IF;
            cpu.write_apic_msr_for_test();
            let mut calls = 0;
            loop {
                calls += 1;
                if disturb != 0 && calls % disturb == 0 {
                    attention.raise(attention::KICK);
                }
                let _ = cpu.attend(&attention);
                if cpu.apic().deadline().is_none() {
                    return cpu.instructions;
                }
                // Somebody kicks while it runs.
                if disturb != 0 {
                    attention.raise(attention::KICK);
                }
                assert!(cpu.run_carefully(&attention, false).is_ok() && cpu.instructions < LIMIT);
            }
        };
        let first = due(0);
        assert!((5000..5200).contains(&first), "{first}");
        assert_eq!([due(1), due(3)], [first; 2]);
    }

    #[test]
    fn a_halted_cpu_goes_on_at_its_deadline_at_once() {
        let mut cpu = cpu(&[]);
        cpu.write_apic_msr_for_test();
        cpu.system.activity = Activity::Halted;
        cpu.system.rflags &= !rflags::IF;
        assert!(!cpu.skip_to_deadline(), "nothing can wake it");
        cpu.system.rflags |= rflags::IF;
        let deadline = cpu.apic().deadline().unwrap();
        assert!(cpu.guest_time() < deadline);
        assert!(cpu.skip_to_deadline());
        assert_eq!(cpu.guest_time(), deadline);
    }

    impl Cpu {
        /// The timer, in one-shot mode, interrupts after about 5,000 instructions.
        fn write_apic_msr_for_test(&mut self) {
            let base = self.apic().base();
            self.write_msr(0x1b, base | 1 << 10).unwrap();
            self.write_msr(0x80f, 0x1ff).unwrap();
            self.write_msr(0x83e, 0xb).unwrap();
            self.write_msr(0x832, 0x40).unwrap();
            self.write_msr(0x838, 5000).unwrap();
        }
    }
}
