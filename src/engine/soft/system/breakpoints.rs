//! Breakpoints that debug registers arm (SDM volume 3, 18.2.4 and 18.3.1): on instructions, data and ports.
//!
//! While none is armed they cost nothing but a look at a flag on ways that are slow anyway. Pages with a data breakpoint
//! are never among the cached translations, so that every access to them takes the slow way, which asks here. Breakpoints on
//! instructions make the run loop the careful one (`careful.rs`), which looks at each block before it executes it.
//!
//! The watchpoints of a debugger outside of the guest (`debugger.rs`) are found in the same way, and told elsewhere.

use super::debug::DR6_BREAKPOINTS;
use crate::engine::soft::code::block::Block;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::{Cpu, cr4};
use crate::engine::soft::fault::{self, Fault, Step};
use crate::engine::soft::flags::rflags;

/// What a breakpoint is on: the R/W field of DR7.
const EXECUTION: u64 = 0;
const WRITES: u64 = 1;
const PORTS: u64 = 2;

/// Which kinds of breakpoints are armed, and what was met.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::engine::soft) struct Armed {
    /// On instructions.
    pub(in crate::engine::soft) code: bool,
    /// On data.
    pub(in crate::engine::soft) data: bool,
    /// On ports.
    ports: bool,
    /// Data and port breakpoints that the instruction under way met: a bit each as in DR6, and those of the debugger's
    /// watchpoints from [`DEBUGGER`] on.
    pub(in crate::engine::soft) met: u64,
}

/// Bit number of the debugger's first watchpoint.
pub(in crate::engine::soft) const DEBUGGER: u32 = 16;

/// An armed breakpoint.
#[derive(Debug, Clone, Copy)]
struct Breakpoint {
    /// Its bit in [`Armed::met`].
    bit: u64,
    kind: u64,
    start: u64,
    len: u64,
}

impl Breakpoint {
    fn overlaps(&self, at: u64, len: u64) -> bool {
        at.wrapping_sub(self.start) < self.len || self.start.wrapping_sub(at) < len
    }
}

impl Cpu {
    /// The guest's, and those of the debugger.
    fn all_breakpoints(&self) -> impl Iterator<Item = Breakpoint> {
        let watchpoints = (DEBUGGER..).zip(&self.debugger.wanted.watchpoints);
        let watchpoints = watchpoints.map(|(bit, watchpoint)| Breakpoint {
            bit: 1 << bit,
            kind: watchpoint.dr7_fields() & 3,
            start: watchpoint.at,
            len: watchpoint.len.into(),
        });
        self.breakpoints().chain(watchpoints)
    }

    fn breakpoints(&self) -> impl Iterator<Item = Breakpoint> {
        let (dr7, ports) = (self.system.dr7, self.system.cr4 & cr4::DE != 0);
        (0..).zip(self.system.breakpoints).filter_map(move |(number, at)| {
            let field = dr7 >> (16 + 4 * number);
            let (kind, len) = (field & 3, [1, 2, 8, 4].get((field >> 2 & 3) as usize).copied().unwrap_or(1));
            let armed = dr7 >> (2 * number) & 3 != 0 && (kind != PORTS || ports);
            armed.then_some(Breakpoint { bit: 1 << number, kind, start: at & !(len - 1), len })
        })
    }

    /// After a change of debug registers, CR4.DE or what the debugger wants: what is armed now.
    pub(in crate::engine::soft) fn breakpoints_changed(&mut self) {
        let before = std::mem::take(&mut self.armed);
        let mut armed = Armed { met: before.met, ..Armed::default() };
        for breakpoint in self.breakpoints() {
            match breakpoint.kind {
                EXECUTION => armed.code = true,
                PORTS => armed.ports = true,
                _ => armed.data = true,
            }
        }
        armed.data |= self.debugger.watches_data();
        self.armed = armed;
        if before.data || armed.data {
            self.tlb.flush();
        }
    }

    /// Whether the page of linear `at` has a data breakpoint, so that its translation must not be cached.
    #[cold]
    pub(in crate::engine::soft) fn watches_page(&self, at: u64) -> bool {
        self.all_breakpoints().any(|breakpoint| breakpoint.kind & WRITES != 0 && breakpoint.start >> 12 == at >> 12)
    }

    /// An instruction accesses data. If there is a breakpoint, #DB comes after it.
    #[cold]
    pub(in crate::engine::soft) fn meets_data(&mut self, at: u64, len: u64, write: bool) {
        let counts = |breakpoint: &Breakpoint| breakpoint.kind & WRITES != 0 && (write || breakpoint.kind != WRITES);
        self.meets(at, len, counts);
    }

    /// An instruction accesses a port.
    pub(super) fn meets_port(&mut self, port: u16, len: u64) {
        if self.armed.ports {
            self.meets(port.into(), len, |breakpoint| breakpoint.kind == PORTS);
        }
    }

    fn meets(&mut self, at: u64, len: u64, counts: impl Fn(&Breakpoint) -> bool) {
        let met = self.all_breakpoints().filter(|breakpoint| counts(breakpoint) && breakpoint.overlaps(at, len));
        let met = met.fold(0, |met, breakpoint| met | breakpoint.bit);
        if met != 0 {
            self.armed.met |= met;
            // The block ends after this instruction.
            self.end = std::ptr::null();
        }
    }

    /// The #DB for what the instruction before met, if its time has come.
    pub(in crate::engine::soft) fn take_met(&mut self) -> Option<Fault> {
        if self.armed.met & DR6_BREAKPOINTS == 0 || self.shadow {
            return None;
        }
        Some(self.debug_exception())
    }

    /// A #DB that says what was met.
    pub(in crate::engine::soft) fn debug_exception(&mut self) -> Fault {
        let met = self.armed.met & DR6_BREAKPOINTS;
        self.armed.met &= !DR6_BREAKPOINTS;
        if met != 0 {
            self.system.dr6 = self.system.dr6 & !DR6_BREAKPOINTS | met;
        }
        Fault { vector: fault::DB, error: None, address: 0 }
    }

    /// Before the instruction at `self.rip`: #DB if it has a breakpoint that RFLAGS.RF does not lift. RF is spent with it.
    pub(in crate::engine::soft) fn meet_code(&mut self) -> Step {
        if !self.armed.code {
            return Ok(());
        }
        let resumes = self.system.rflags & rflags::RF != 0;
        self.system.rflags &= !rflags::RF;
        let at = self.linear_ip();
        let here = |breakpoint: &Breakpoint| breakpoint.kind == EXECUTION && breakpoint.start == at;
        let met = self.breakpoints().filter(here).fold(0, |met, breakpoint| met | breakpoint.bit);
        if resumes || met == 0 {
            return Ok(());
        }
        self.armed.met |= met;
        let fault = self.debug_exception();
        Err(self.raise(fault.vector, None))
    }

    /// Whether an instruction of `block`, which is about to be executed, may have a breakpoint.
    pub(in crate::engine::soft) fn may_meet_code(&self, block: &Block) -> bool {
        let len = block.ops.last().map_or(1, |op| op.next());
        let at = self.linear_ip();
        self.armed.code
            && self
                .breakpoints()
                .any(|breakpoint| breakpoint.kind == EXECUTION && breakpoint.start.wrapping_sub(at) < len)
    }

    /// Linear address of the next instruction; within a segment without regard to its limit.
    pub(in crate::engine::soft) fn linear_ip(&self) -> u64 {
        let base = self.seg_base.get(Seg::Cs as usize).copied().unwrap_or(0);
        if self.is_64() { self.rip } else { base.wrapping_add(self.rip) & 0xffff_ffff }
    }
}
