//! The state of one software CPU. The run loop is in `run.rs`; instructions are functions in `exec/`, `system/` and
//! `vector/`; this file holds what they all work on and the few facts derived from it.

// UNSAFETY: says that a CPU may move to another thread although it holds a pointer.
#![expect(unsafe_code)]

use std::sync::Arc;

use super::code::block::CodeCache;
use super::code::features::Features;
use super::code::op::{Op, Seg};
use super::cpuid::Cpuid;
use super::debugger::Debugger;
use super::fault::{self, Break, Fault};
use super::flags::{Flags, rflags};
use super::memory::tlb::Tlb;
use super::registers::{RegAt, RegisterFile};
use super::shared::{IoPointer, Shared};
use super::system::breakpoints::Armed;
use super::system::event::Event;
use super::system::msr::Msrs;
use super::trace::Tracer;
use super::vector::Thunks;
use super::vector::state::VectorState;
use crate::arch::x86_64::state::{Activity, DescriptorTable, Segment};
use crate::engine::{Exit, ExitCounters};
use crate::host::entropy::Entropy;
use crate::host::seeded::Seeded;

pub(super) mod cr0 {
    pub(crate) const PE: u64 = 1;
    pub(crate) const MP: u64 = 1 << 1;
    pub(crate) const EM: u64 = 1 << 2;
    pub(crate) const TS: u64 = 1 << 3;
    pub(crate) const ET: u64 = 1 << 4;
    pub(crate) const NE: u64 = 1 << 5;
    pub(crate) const WP: u64 = 1 << 16;
    pub(crate) const AM: u64 = 1 << 18;
    pub(crate) const NW: u64 = 1 << 29;
    pub(crate) const CD: u64 = 1 << 30;
    pub(crate) const PG: u64 = 1 << 31;
}

pub(super) mod cr4 {
    pub(crate) const TSD: u64 = 1 << 2;
    pub(crate) const DE: u64 = 1 << 3;
    pub(crate) const PSE: u64 = 1 << 4;
    pub(crate) const PAE: u64 = 1 << 5;
    pub(crate) const MCE: u64 = 1 << 6;
    pub(crate) const PGE: u64 = 1 << 7;
    pub(crate) const PCE: u64 = 1 << 8;
    pub(crate) const OSFXSR: u64 = 1 << 9;
    pub(crate) const OSXMMEXCPT: u64 = 1 << 10;
    pub(crate) const UMIP: u64 = 1 << 11;
    pub(crate) const FSGSBASE: u64 = 1 << 16;
    pub(crate) const OSXSAVE: u64 = 1 << 18;
    pub(crate) const SMEP: u64 = 1 << 20;
    pub(crate) const SMAP: u64 = 1 << 21;
}

pub(super) mod efer {
    pub(crate) const SCE: u64 = 1;
    pub(crate) const LME: u64 = 1 << 8;
    pub(crate) const LMA: u64 = 1 << 10;
    pub(crate) const NXE: u64 = 1 << 11;
    pub(crate) const AIBRSE: u64 = 1 << 21;
}

/// Size of the code that is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub(super) enum CodeSize {
    /// Real mode and 16-bit segments.
    #[default]
    Bits16,
    /// 32-bit segments, compatibility mode among them.
    Bits32,
    /// 64-bit mode.
    Bits64,
}

/// Registers that only system software changes.
#[derive(Debug, Clone, Default)]
pub(super) struct System {
    /// RFLAGS without the status flags, which are in [`Cpu::flags`].
    pub(super) rflags: u64,
    pub(super) cr0: u64,
    pub(super) cr2: u64,
    pub(super) cr3: u64,
    pub(super) cr4: u64,
    pub(super) efer: u64,
    pub(super) xcr0: u64,
    /// By [`Seg`] number: ES, CS, SS, DS, FS, GS.
    pub(super) segments: [Segment; 6],
    pub(super) ldt: Segment,
    pub(super) tr: Segment,
    pub(super) gdt: DescriptorTable,
    pub(super) idt: DescriptorTable,
    /// DR0 to DR3.
    pub(super) breakpoints: [u64; 4],
    pub(super) dr6: u64,
    pub(super) dr7: u64,
    /// Model-specific registers that have no place elsewhere.
    pub(super) msrs: Msrs,
    /// NMIs wait for an IRET.
    pub(super) nmi_blocked: bool,
    /// PAUSE instructions executed.
    pub(super) pauses: u32,
    /// What the CPU does between two calls of `Vcpu::run`.
    pub(super) activity: Activity,
}

/// One software CPU.
pub(super) struct Cpu {
    /// General registers.
    pub(super) regs: RegisterFile,
    /// Status flags.
    pub(super) flags: Flags,
    /// Bases by [`Seg`] number as addresses are made: zero where no base counts.
    pub(super) seg_base: [u64; 8],
    /// The operation under way. Whoever executes an operation sets it, so that it is known which one stopped.
    pub(super) op: *const Op,
    /// The block under way ends here; a write to its code ends it at once.
    pub(super) end: *const Op,
    /// Address of the next instruction, whenever no block is under way, and after [`Break::Jump`].
    pub(super) rip: u64,
    /// Translations.
    pub(super) tlb: Tlb,
    /// Current privilege level, 0 to 3.
    pub(super) cpl: u8,
    /// Size of the code in CS.
    pub(super) code_size: CodeSize,
    /// Interrupts wait for one more instruction (after STI and MOV SS).
    pub(super) shadow: bool,
    /// An interrupt waits for IF.
    pub(super) interrupt_waits: bool,
    /// An NMI waits for the end of another.
    pub(super) nmi_waits: bool,
    /// An event out of saved state, to be delivered before anything is executed.
    pub(super) restored: Option<Event>,
    /// Why [`Break::Fault`] was returned.
    pub(super) fault: Fault,
    /// Why [`Break::Leave`] was returned; `Exit::Halted` for HLT, which the run loop acts on itself.
    pub(super) leave: Option<Exit>,
    /// Instructions executed so far.
    pub(super) instructions: u64,
    /// System registers.
    pub(super) system: System,
    /// What CPUID answers.
    pub(super) cpuid: Cpuid,
    /// x87, MMX, SSE and AVX state.
    pub(super) vector: VectorState,
    /// Decoded code.
    pub(super) code: CodeCache,
    /// What all vCPUs of the VM share.
    pub(super) shared: Arc<Shared>,
    /// This CPU's number and APIC id.
    pub(super) index: u32,
    /// The machine's registers, while `Vcpu::run` runs.
    pub(super) io: IoPointer,
    /// Accesses by kind.
    pub(super) counters: Arc<ExitCounters>,
    /// Instructions that CPUID offers.
    pub(super) features: Features,
    /// Stubs of vector instructions.
    pub(super) thunks: Arc<Thunks>,
    /// Random numbers of the host's.
    pub(super) entropy: Entropy,
    /// Where random numbers come from in runs that can be repeated.
    pub(super) random: Option<Seeded>,
    /// Breakpoints.
    pub(super) armed: Armed,
    /// What a debugger outside of the guest wants.
    pub(super) debugger: Debugger,
    /// What is kept of executed code.
    pub(super) tracer: Option<Box<Tracer>>,
    /// Blocks are executed by `careful.rs`.
    pub(super) careful: bool,
}

// SAFETY: `op` and `end` point into a block that the CPU itself owns.
unsafe impl Send for Cpu {}

impl Cpu {
    /// A CPU without any state yet; real mode, all registers zero.
    pub(super) fn new(index: u32, shared: Arc<Shared>, thunks: Arc<Thunks>) -> Self {
        let random = shared.deterministic.map(|how| Seeded::new(how.seed, "cpu"));
        let careful = shared.deterministic.is_some();
        Self {
            regs: RegisterFile::default(),
            flags: Flags::default(),
            seg_base: [0; 8],
            op: std::ptr::null(),
            end: std::ptr::null(),
            rip: 0,
            tlb: Tlb::default(),
            cpl: 0,
            code_size: CodeSize::Bits16,
            shadow: false,
            interrupt_waits: false,
            nmi_waits: false,
            restored: None,
            fault: Fault { vector: 0, error: None, address: 0 },
            leave: None,
            instructions: 0,
            system: System::default(),
            cpuid: Cpuid::default(),
            vector: VectorState::default(),
            code: CodeCache::default(),
            shared,
            index,
            io: IoPointer::NONE,
            counters: Arc::default(),
            features: Features::default(),
            thunks,
            entropy: Entropy::default(),
            random,
            armed: Armed::default(),
            debugger: Debugger::default(),
            tracer: None,
            careful,
        }
    }

    /// The machine's registers. Code outside this directory does not find the guest's MXCSR in the host's.
    pub(super) fn machine(&mut self) -> IoPointer {
        self.vector.settle();
        self.io
    }

    /// RFLAGS as software sees it.
    pub(super) fn rflags(&self) -> u64 {
        self.system.rflags | self.flags.to_rflags() | rflags::FIXED
    }

    /// Replaces RFLAGS wholesale; the caller has masked what the instruction may not change.
    pub(super) fn set_rflags(&mut self, value: u64) {
        self.flags = Flags::from_rflags(value);
        let changed = (self.system.rflags ^ value) & !rflags::STATUS;
        self.system.rflags = value & !rflags::STATUS & 0x3f_7fd5 | rflags::FIXED;
        if changed & rflags::AC != 0 {
            self.choose_tlb();
        }
        self.interrupts_may_be_on();
    }

    /// After IF may have been set: an interrupt that waited gets its chance before the next block.
    pub(super) fn interrupts_may_be_on(&mut self) {
        if self.interrupt_waits && self.system.rflags & rflags::IF != 0 {
            self.interrupt_waits = false;
            self.shared.attention(self.index).raise(super::attention::INTERRUPT);
        }
    }

    /// In 64-bit mode, as opposed to compatibility and legacy modes.
    #[inline(always)]
    pub(super) fn is_64(&self) -> bool {
        self.code_size == CodeSize::Bits64
    }

    /// IA-32e mode is active (64-bit or compatibility).
    pub(super) fn long_mode(&self) -> bool {
        self.system.efer & efer::LMA != 0
    }

    /// Protected mode (any but real mode).
    pub(super) fn protected(&self) -> bool {
        self.system.cr0 & cr0::PE != 0
    }

    /// Call after any change of segments, CPL, CR0, CR4, EFER or RFLAGS.AC: derives code size, bases, translations in force.
    pub(super) fn mode_changed(&mut self) {
        let cs = self.segment(Seg::Cs);
        self.code_size = match (self.long_mode() && cs.l, cs.db) {
            (true, _) => CodeSize::Bits64,
            (false, true) => CodeSize::Bits32,
            (false, false) => CodeSize::Bits16,
        };
        let flat = self.is_64();
        for (number, segment) in self.system.segments.iter().enumerate() {
            let counts = !flat || number >= Seg::Fs as usize;
            if let Some(base) = self.seg_base.get_mut(number) {
                *base = if counts { segment.base } else { 0 };
            }
        }
        self.choose_tlb();
    }

    /// Picks the translations for the present privilege.
    pub(super) fn choose_tlb(&mut self) {
        let smap = self.system.cr4 & cr4::SMAP != 0 && self.system.rflags & rflags::AC == 0;
        let aligned = self.system.rflags & rflags::AC != 0 && self.system.cr0 & cr0::AM != 0;
        self.tlb.choose(self.cpl == 3, smap, aligned);
    }

    /// A segment register with its hidden part.
    pub(super) fn segment(&self, seg: Seg) -> Segment {
        self.system.segments.get(seg as usize).copied().unwrap_or_default()
    }

    /// Sets a segment register wholesale; call [`Cpu::mode_changed`] afterwards.
    pub(super) fn set_segment(&mut self, seg: Seg, value: Segment) {
        if let Some(segment) = self.system.segments.get_mut(seg as usize) {
            *segment = value;
        }
    }

    /// Address of the instruction after `op`.
    #[inline(always)]
    pub(super) fn next_ip(&self, op: &Op) -> u64 {
        self.regs.block_ip().wrapping_add(op.next())
    }

    /// Address of `op` itself.
    pub(super) fn this_ip(&self, op: &Op) -> u64 {
        self.regs.block_ip().wrapping_add(u64::from(op.at))
    }

    /// Raises an exception: `return Err(cpu.raise(..))`.
    #[cold]
    pub(super) fn raise(&mut self, vector: u8, error: Option<u32>) -> Break {
        self.fault = Fault { vector, error, address: 0 };
        Break::Fault
    }

    /// General protection with an error code (a selector, or 0).
    #[cold]
    pub(super) fn gp(&mut self, error: u32) -> Break {
        self.raise(fault::GP, Some(error))
    }

    /// Invalid opcode.
    #[cold]
    pub(super) fn ud(&mut self) -> Break {
        self.raise(fault::UD, None)
    }

    /// The vCPU leaves guest code after this instruction.
    #[cold]
    pub(super) fn leave(&mut self, exit: Exit) -> Break {
        self.leave = Some(exit);
        Break::Leave
    }

    /// Stack pointer at the width that SS has.
    pub(super) fn stack_mask(&self) -> u64 {
        if self.is_64() {
            u64::MAX
        } else if self.segment(Seg::Ss).db {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    /// RSP.
    #[inline(always)]
    pub(super) fn rsp(&self) -> u64 {
        self.regs.get64(RegAt::RSP)
    }
}
