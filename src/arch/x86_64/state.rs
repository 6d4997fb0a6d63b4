//! The architectural state of one x86-64 CPU as plain data: what an engine is given to start, what crash reports
//! print, and what snapshots store. Names and layouts follow the Intel SDM (volume 3, chapters 2 and 3).

use serde::{Deserialize, Serialize};

/// General registers, instruction pointer and flags.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "register names")]
pub struct Registers {
    pub rax: u64,
    pub rbx: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub rsp: u64,
    pub rbp: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
    pub rip: u64,
    pub rflags: u64,
}

/// A segment register with its hidden part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes (granularity already applied).
    pub limit: u32,
    /// Visible selector.
    pub selector: u16,
    /// Type field, 4 bits.
    pub kind: u8,
    /// P: present.
    pub present: bool,
    /// DPL, 0 to 3.
    pub dpl: u8,
    /// D/B: default operand size 32.
    pub db: bool,
    /// S: code or data (not system).
    pub s: bool,
    /// L: 64-bit code.
    pub l: bool,
    /// G: limit in pages.
    pub g: bool,
    /// AVL.
    pub avl: bool,
    /// Not usable (null selector).
    pub unusable: bool,
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u16,
}

/// Segment, control and table registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "register names")]
pub struct SystemRegisters {
    pub cs: Segment,
    pub ds: Segment,
    pub es: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ss: Segment,
    pub tr: Segment,
    pub ldt: Segment,
    pub gdt: DescriptorTable,
    pub idt: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    pub apic_base: u64,
}

/// Whether the CPU executes, waits for an interrupt, or waits to be started.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Activity {
    /// Executes.
    #[default]
    Running,
    /// In HLT.
    Halted,
    /// Reset, waiting for INIT (application processors).
    WaitForInit,
    /// Had INIT, waiting for SIPI.
    WaitForSipi,
}

/// Debug registers (SDM volume 3, 18.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "register names")]
pub struct DebugRegisters {
    /// DR0 to DR3.
    pub breakpoints: [u64; 4],
    pub dr6: u64,
    pub dr7: u64,
}

impl Default for DebugRegisters {
    /// What they are after RESET.
    fn default() -> Self {
        Self { breakpoints: [0; 4], dr6: 0xffff_0ff0, dr7: 0x400 }
    }
}

/// What is under way between two instructions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Interrupts wait for one more instruction (after STI and MOV SS).
    pub shadow: bool,
    /// NMIs wait for an IRET.
    pub nmi_blocked: bool,
    /// An NMI waits.
    pub nmi_pending: bool,
    /// An interrupt that the local APIC has handed out and whose handler was not entered yet.
    pub interrupt: Option<u8>,
    /// An exception whose handler was not entered yet: vector and error code.
    pub exception: Option<(u8, Option<u32>)>,
}

/// All state of a CPU.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuState {
    /// General registers.
    pub regs: Registers,
    /// System registers.
    pub system: SystemRegisters,
    /// Model-specific registers, (index, value), in the order in which they must be written.
    pub msrs: Vec<(u32, u64)>,
    /// XSAVE area in the standard (non-compacted) layout; empty means the reset state.
    pub xsave: Vec<u8>,
    /// XCR0; 0 means leave as it is.
    pub xcr0: u64,
    /// Debug registers.
    pub debug: DebugRegisters,
    /// What is under way.
    pub events: Events,
    /// Registers of the local APIC as they are in its page, 16 bytes each (SDM volume 3, table 12-1); empty means leave them
    /// as they are. What x2APIC mode has beside is in the form of the engine.
    pub apic: Vec<u8>,
    /// Activity.
    pub activity: Activity,
}
