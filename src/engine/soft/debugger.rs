//! A debugger outside of the guest (`engine::debug`): where the CPU stops for it.
//!
//! Breakpoints are addresses, which the careful run loop compares with each block before it executes it; nothing is
//! written to the guest's memory. Watchpoints on data are found like the guest's own, by `system/breakpoints.rs`.

use super::code::block::Block;
use super::cpu::Cpu;
use super::fault::{Break, Step};
use super::system::breakpoints::DEBUGGER;
use crate::arch::x86_64::state::Activity;
use crate::engine::debug::{Debugging, On, Stop, Wanted, Watchpoint};
use crate::engine::{Exit, Result};

/// What a debugger wants of one CPU.
#[derive(Debug, Clone, Default)]
pub(super) struct Debugger {
    pub(super) wanted: Wanted,
    /// It wants a look at each block, or instruction, before it is executed.
    pub(super) looks: bool,
}

impl Debugger {
    /// A data access can be met.
    pub(super) fn watches_data(&self) -> bool {
        self.wanted.watchpoints.iter().any(|watchpoint| watchpoint.on != On::Execution)
    }

    /// What makes the CPU stop before it executes one of the `len` bytes from linear `at`.
    fn stop_within(&self, at: u64, len: u64) -> Option<Stop> {
        let inside = |address: u64| address.wrapping_sub(at) < len;
        if self.wanted.breakpoints.range(at..).next().copied().is_some_and(inside) {
            return Some(Stop::Breakpoint);
        }
        let met = |watchpoint: &&Watchpoint| watchpoint.on == On::Execution && inside(watchpoint.at);
        self.wanted.watchpoints.iter().find(met).map(|watchpoint| Stop::Watchpoint(*watchpoint))
    }
}

impl Debugging for Cpu {
    fn needs_int3(&self) -> bool {
        false
    }

    fn set(&mut self, wanted: &Wanted) -> Result<()> {
        let code = |watchpoint: &Watchpoint| watchpoint.on == On::Execution;
        let looks = wanted.step || !wanted.breakpoints.is_empty() || wanted.watchpoints.iter().any(code);
        self.debugger = Debugger { wanted: wanted.clone(), looks };
        self.breakpoints_changed();
        // The debugger may have written to code, which is noticed when its page is looked up again.
        self.tlb.flush();
        Ok(())
    }
}

impl Cpu {
    /// One instruction is wanted, and the CPU can execute it: then interrupts wait.
    pub(super) fn steps_for_debugger(&self) -> bool {
        self.debugger.wanted.step && self.system.activity == Activity::Running
    }

    /// Before the instruction at `self.rip`: leaves guest code if the debugger wants to stop here.
    pub(super) fn meet_debugger(&mut self) -> Step {
        match self.debugger.stop_within(self.linear_ip(), 1).filter(|_| self.debugger.looks) {
            None => Ok(()),
            Some(stop) => {
                self.leave = Some(Exit::Debug(stop));
                Err(Break::Leave)
            }
        }
    }

    /// Whether the debugger may want to stop within `block`, which is about to be executed.
    pub(super) fn may_meet_debugger(&self, block: &Block) -> bool {
        let len = block.ops.last().map_or(1, |op| op.next());
        self.debugger.looks && self.debugger.stop_within(self.linear_ip(), len).is_some()
    }

    /// The debugger's watchpoint that the instruction before has met.
    pub(super) fn take_watched(&mut self) -> Option<Exit> {
        let met = self.armed.met >> DEBUGGER;
        self.armed.met &= (1 << DEBUGGER) - 1;
        let watchpoint = self.debugger.wanted.watchpoints.get(met.trailing_zeros() as usize)?;
        Some(Exit::Debug(Stop::Watchpoint(*watchpoint)))
    }
}
