//! What a debugger asks of a vCPU, beside what the guest does with its own debug registers: an ability that an engine may
//! have ([`Vcpu::debugging`](super::Vcpu::debugging)). The guest notices nothing of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Result;

/// Watchpoints that a vCPU has: as many as x86 has debug registers (SDM volume 3, 18.2.1).
pub const MAX_WATCHPOINTS: usize = 4;

/// When a vCPU shall stop for its debugger. The default is never.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// After the next instruction. No interrupt is taken meanwhile, unless the vCPU waits for one.
    pub step: bool,
    /// Before the instructions at these linear addresses, any number of them. See [`Debugging::needs_int3`].
    pub breakpoints: Arc<BTreeSet<u64>>,
    /// At these, at most [`MAX_WATCHPOINTS`].
    pub watchpoints: Vec<Watchpoint>,
}

/// An address that the processor itself watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watchpoint {
    /// Linear address, a multiple of `len`.
    pub at: u64,
    /// Bytes: 1, 2, 4 or 8; 1 for [`On::Execution`].
    pub len: u8,
    /// What counts.
    pub on: On,
}

/// What a watchpoint is on: the R/W field of DR7.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// The vCPU stops before it executes the instruction there.
    Execution,
    /// It stops after an instruction that writes there.
    Writes,
    /// It stops after an instruction that reads or writes there.
    Accesses,
}

impl Watchpoint {
    /// The R/W and LEN fields of DR7, from bit 0 on (SDM volume 3, 18.2.4).
    pub fn dr7_fields(&self) -> u64 {
        let kind = match self.on {
            On::Execution => 0,
            On::Writes => 1,
            On::Accesses => 3,
        };
        let len = match self.len {
            2 => 1,
            4 => 3,
            8 => 2,
            _ => 0,
        };
        kind | len << 2
    }
}

/// Why a vCPU stopped for its debugger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It executed one instruction.
    Step,
    /// It is about to execute the instruction at a breakpoint.
    Breakpoint,
    /// It met this watchpoint.
    Watchpoint(Watchpoint),
}

/// The ability of a vCPU to be debugged.
pub trait Debugging {
    /// Breakpoints are met only where an INT3 instruction (CCh) is in the guest's memory, which the debugger writes there
    /// and takes away. Otherwise nothing is to be written.
    fn needs_int3(&self) -> bool;
    /// Replaces what is wanted. From then on [`Vcpu::run`](super::Vcpu::run) returns
    /// [`Exit::Debug`](super::Exit::Debug) at each of it. An address that the vCPU starts from counts as well.
    fn set(&mut self, wanted: &Wanted) -> Result<()>;
}
