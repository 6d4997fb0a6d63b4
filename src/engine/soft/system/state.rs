//! The architectural state as plain data, in and out: how a machine starts a CPU, and what snapshots and crash reports hold.

use super::event::Event;
use crate::arch::x86_64::state::{CpuState, DebugRegisters, Events, Registers, SystemRegisters};
use crate::engine::soft::NAME;
use crate::engine::soft::attention;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Fault;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::vector::state::{SIZE, VectorState};
use crate::engine::{Error, Result};

const APIC_BASE: u32 = 0x1b;
/// XSAVE header: which components the area holds (SDM volume 1, 13.4.2).
const XSTATE_BV: std::ops::Range<usize> = 512..520;
/// Components: x87, SSE, upper halves of YMM.
const X87: u64 = 1;
const SSE: u64 = 2;
const AVX: u64 = 4;
/// Where they are (SDM volume 1, 10.5.1 and 13.4); MXCSR is at 24 and belongs to none of them.
const PARTS: &[(u64, std::ops::Range<usize>)] = &[(X87, 0..24), (X87, 32..160), (SSE, 160..416), (AVX, 576..832)];

impl Cpu {
    /// Replaces all architectural state.
    pub(in crate::engine::soft) fn set_state(&mut self, state: &CpuState) -> Result<()> {
        self.set_system(&state.system);
        self.set_registers(&state.regs);
        if state.xcr0 != 0 {
            self.system.xcr0 = state.xcr0;
        }
        if !state.xsave.is_empty() {
            self.vector.area = area_from(&state.xsave);
            self.vector.make_valid();
        }
        self.apic().restore_base(state.system.apic_base).map_err(|_| refused(APIC_BASE, state.system.apic_base))?;
        self.set_task_priority(state.system.cr8);
        if !state.apic.is_empty() {
            self.apic().restore(&state.apic, self.guest_time());
        }
        self.restore_msrs(&state.msrs).map_err(|(index, value)| refused(index, value))?;
        let debug = &state.debug;
        (self.system.breakpoints, self.system.dr6, self.system.dr7) = (debug.breakpoints, debug.dr6, debug.dr7);
        self.breakpoints_changed();
        self.set_events(&state.events);
        self.system.activity = state.activity;
        Ok(())
    }

    /// All architectural state.
    pub(in crate::engine::soft) fn state(&self) -> CpuState {
        let mut system = self.system_registers();
        system.apic_base = self.apic().base();
        CpuState {
            regs: self.registers(),
            system,
            msrs: self.saved_msrs(),
            xsave: area_to(&self.vector.area, self.system.xcr0),
            xcr0: self.system.xcr0,
            debug: DebugRegisters { breakpoints: self.system.breakpoints, dr6: self.system.dr6, dr7: self.system.dr7 },
            events: self.events(),
            apic: self.apic().save(self.guest_time()),
            activity: self.system.activity,
        }
    }

    /// This CPU enters handlers at once, so that nothing but a restored event can wait for it.
    fn events(&self) -> Events {
        let (interrupt, exception) = match self.restored {
            Some(Event::Interrupt(vector)) => (Some(vector), None),
            Some(Event::Exception(fault)) => (None, Some((fault.vector, fault.error))),
            Some(Event::Nmi) | None => (None, None),
        };
        let nmi_pending = self.nmi_waits || self.apic().nmi_pending();
        Events { shadow: self.shadow, nmi_blocked: self.system.nmi_blocked, nmi_pending, interrupt, exception }
    }

    fn set_events(&mut self, events: &Events) {
        self.shadow = events.shadow;
        self.system.nmi_blocked = events.nmi_blocked;
        self.nmi_waits = events.nmi_pending;
        let address = self.system.cr2;
        let exception = events.exception.map(|(vector, error)| Event::Exception(Fault { vector, error, address }));
        self.restored = exception.or(events.interrupt.map(Event::Interrupt));
        // Whatever was restored is looked at before the next instruction.
        self.shared.attention(self.index).raise(attention::INTERRUPT);
    }

    fn set_system(&mut self, s: &SystemRegisters) {
        for (seg, value) in
            [(Seg::Es, s.es), (Seg::Cs, s.cs), (Seg::Ss, s.ss), (Seg::Ds, s.ds), (Seg::Fs, s.fs), (Seg::Gs, s.gs)]
        {
            self.set_segment(seg, value);
        }
        let to = &mut self.system;
        (to.tr, to.ldt, to.gdt, to.idt) = (s.tr, s.ldt, s.gdt, s.idt);
        (to.cr0, to.cr2, to.cr3, to.cr4, to.efer) = (s.cr0, s.cr2, s.cr3, s.cr4, s.efer);
        to.nmi_blocked = false;
        self.cpl = if self.protected() { (s.cs.selector & 3) as u8 } else { 0 };
        self.shadow = false;
        self.tlb.flush();
        self.mode_changed();
    }

    fn set_registers(&mut self, r: &Registers) {
        let values = [
            r.rax, r.rcx, r.rdx, r.rbx, r.rsp, r.rbp, r.rsi, r.rdi, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14,
            r.r15,
        ];
        for (number, value) in (0..).zip(values) {
            self.regs.set64(RegAt::gpr(number), value);
        }
        self.rip = r.rip;
        self.set_rflags(r.rflags);
    }

    /// General registers, RIP and RFLAGS.
    pub(super) fn registers(&self) -> Registers {
        let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] = *self.regs.general();
        let (rip, rflags) = (self.rip, self.rflags());
        Registers { rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8, r9, r10, r11, r12, r13, r14, r15, rip, rflags }
    }

    /// Segment, control and table registers; the base of the local APIC is not among them.
    pub(super) fn system_registers(&self) -> SystemRegisters {
        let from = &self.system;
        SystemRegisters {
            cs: self.segment(Seg::Cs),
            ds: self.segment(Seg::Ds),
            es: self.segment(Seg::Es),
            fs: self.segment(Seg::Fs),
            gs: self.segment(Seg::Gs),
            ss: self.segment(Seg::Ss),
            tr: from.tr,
            ldt: from.ldt,
            gdt: from.gdt,
            idt: from.idt,
            cr0: from.cr0,
            cr2: from.cr2,
            cr3: from.cr3,
            cr4: from.cr4,
            cr8: self.task_priority(),
            efer: from.efer,
            apic_base: 0,
        }
    }
}

fn refused(index: u32, value: u64) -> Error {
    Error::Unsupported { engine: NAME, reason: format!("MSR {index:#x} cannot be set to {value:#x}") }
}

/// The registers out of an XSAVE area in the standard layout. Components that it does not hold are in their initial state;
/// one without a header is what FXSAVE stores.
fn area_from(saved: &[u8]) -> [u8; SIZE] {
    let mut area = VectorState::default().area;
    let held = match saved.get(XSTATE_BV) {
        Some(bytes) => bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)),
        None => X87 | SSE,
    };
    let held_parts = PARTS.iter().filter(|(component, _)| held & component != 0).map(|(_, part)| part.clone());
    for part in held_parts.chain(std::iter::once(24..32)) {
        if let (Some(to), Some(from)) = (area.get_mut(part.clone()), saved.get(part)) {
            to.copy_from_slice(from);
        }
    }
    set_components(&mut area, held & (X87 | SSE | AVX));
    area
}

/// The area as XSAVE would store it, with all components that XCR0 has.
fn area_to(area: &[u8; SIZE], xcr0: u64) -> Vec<u8> {
    let mut saved = area.to_vec();
    set_components(&mut saved, xcr0 & (X87 | SSE | AVX) | X87 | SSE);
    saved
}

fn set_components(area: &mut [u8], held: u64) {
    if let Some(header) = area.get_mut(XSTATE_BV) {
        header.copy_from_slice(&held.to_le_bytes());
    }
}
