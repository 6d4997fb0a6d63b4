//! Exceptions and interrupts reach their handlers (SDM volume 3, chapter 6): the real-mode vector table, 16- and 32-bit
//! gates, 64-bit gates; other stacks; exceptions during delivery, up to the triple fault. Called by the run loop, and by
//! INT n (`interrupt.rs`).
//!
//! Delivery happens as a whole or not at all. Task gates, which only 32-bit kernels use, raise #GP.

use super::descriptor::{Descriptor, RPL, error_of, is_null, null_segment, system};
use super::stack::Stack;
use crate::arch::x86_64::state::Segment;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::{CodeSize, Cpu};
use crate::engine::soft::fault::{self, Break, Fault, Step};
use crate::engine::soft::flags::rflags;

/// What is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) enum Event {
    /// An interrupt with this vector, which the local APIC has handed out; RFLAGS.IF is set.
    Interrupt(u8),
    /// A non-maskable interrupt.
    Nmi,
    /// An exception; `Cpu::rip` is the address that it is reported for.
    Exception(Fault),
}

/// An exception while a double fault is delivered: the CPU stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) struct Shutdown;

/// One attempt to reach a handler.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delivery {
    pub(super) vector: u8,
    pub(super) error: Option<u32>,
    /// INT n, INT3, INTO: the gate's privilege counts.
    pub(super) software: bool,
    /// RFLAGS bits that the saved image has on top.
    pub(super) also: u64,
}

/// Bit 0 of an error code: an event that is not the program's own doing led to this exception.
const EXT: u32 = 1;
/// Bit 1: the error code names an entry of the IDT.
const IDT: u32 = 2;

/// A gate of the IDT.
#[derive(Debug, Clone, Copy)]
struct Gate {
    kind: u8,
    selector: u16,
    offset: u64,
    /// Interrupt stack table entry, 0 for none.
    ist: u8,
}

impl Gate {
    /// Bytes of each value that is pushed.
    fn size(self, long: bool) -> u64 {
        match (long, self.kind & 8 != 0) {
            (true, _) => 8,
            (false, true) => 4,
            (false, false) => 2,
        }
    }

    fn masks_interrupts(self) -> bool {
        matches!(self.kind, system::INTERRUPT_GATE | system::INTERRUPT_GATE16)
    }
}

impl Cpu {
    /// Enters the handler of `event`: `Cpu::rip` is then its address. Exceptions on the way are delivered instead.
    pub(in crate::engine::soft) fn deliver(&mut self, event: Event) -> Result<(), Shutdown> {
        let mut event = event;
        loop {
            if let Event::Exception(Fault { vector: fault::PF, address, .. }) = event {
                self.system.cr2 = address;
            }
            let delivery = match event {
                Event::Interrupt(vector) => Delivery { vector, error: None, software: false, also: 0 },
                Event::Nmi => Delivery { vector: fault::NMI, error: None, software: false, also: 0 },
                Event::Exception(Fault { vector, error, .. }) => {
                    // Of the exceptions that are raised here, #DB alone is a trap; the others find RF set.
                    let also = if vector == fault::DB { 0 } else { rflags::RF };
                    Delivery { vector, error, software: false, also }
                }
            };
            if self.interrupt(&delivery).is_ok() {
                self.shadow = false;
                // What the delivery itself met is not told.
                self.armed.met = 0;
                match event {
                    Event::Nmi => self.system.nmi_blocked = true,
                    Event::Exception(Fault { vector: fault::DB, .. }) => {
                        self.system.dr7 &= !super::debug::GENERAL_DETECT
                    }
                    _ => {}
                }
                return Ok(());
            }
            event = Event::Exception(after(event, self.fault)?);
            if self.fault.vector == fault::PF {
                self.system.cr2 = self.fault.address;
            }
        }
    }

    /// Enters the handler of one event; [`Break::Fault`] if that raises an exception, with nothing changed.
    pub(super) fn interrupt(&mut self, delivery: &Delivery) -> Step {
        let done = if self.protected() { self.enter_protected(delivery) } else { self.enter_real(delivery) };
        if done.is_err()
            && !delivery.software
            && let Fault { vector: fault::TS..=fault::GP, error: Some(error), .. } = &mut self.fault
        {
            *error |= EXT;
        }
        done
    }

    /// The instruction pointer as it is saved.
    pub(super) fn saved_ip(&self) -> u64 {
        self.rip
            & match self.code_size {
                CodeSize::Bits64 => u64::MAX,
                CodeSize::Bits32 => 0xffff_ffff,
                CodeSize::Bits16 => 0xffff,
            }
    }

    /// SDM volume 3, 21.1.4.
    fn enter_real(&mut self, delivery: &Delivery) -> Step {
        let offset = u64::from(delivery.vector) * 4;
        if offset + 3 > self.system.idt.limit.into() {
            return Err(self.gp(u32::from(delivery.vector) << 3 | IDT));
        }
        let entry = self.table_address(self.system.idt.base, offset);
        let (ip, selector) = (self.load::<u16>(entry)?, self.load::<u16>(entry.wrapping_add(2))?);
        let cs = self.segment(Seg::Cs);
        let stack = self.stack();
        let pointer = self.push_all(&stack, 2, &[self.rflags(), cs.selector.into(), self.saved_ip()])?;
        self.set_stack_pointer(&stack, pointer);
        self.set_segment(Seg::Cs, Segment { selector, base: u64::from(selector) << 4, ..cs });
        self.rip = ip.into();
        self.system.rflags &= !(rflags::IF | rflags::TF | rflags::AC | rflags::RF);
        self.mode_changed();
        Ok(())
    }

    fn enter_protected(&mut self, delivery: &Delivery) -> Step {
        let long = self.long_mode();
        let gate = self.gate(delivery)?;
        let (code, cpl) = self.handler_code(gate.selector)?;
        let ip = self.checked_target(code, gate.offset)?;
        let inner = cpl < self.cpl;
        let stack = self.handler_stack(gate, cpl, inner)?;
        self.mark_accessed(code)?;

        let present = self.segment(Seg::Ss).selector;
        let flags = self.rflags() | delivery.also;
        let cs = self.segment(Seg::Cs).selector;
        let frame = [present.into(), self.rsp(), flags, cs.into(), self.saved_ip(), delivery.error.unwrap_or(0).into()];
        let first = if long || inner { 0 } else { 2 };
        let end = if delivery.error.is_some() { 6 } else { 5 };
        let pointer = self.push_all(&stack, gate.size(long), frame.get(first..end).unwrap_or(&[]))?;

        if inner {
            self.set_segment(Seg::Ss, stack.segment);
        }
        self.cpl = cpl;
        self.enter_code(code, gate.selector, ip);
        self.set_stack_pointer(&stack, pointer);
        let masked = if gate.masks_interrupts() { rflags::IF } else { 0 };
        self.system.rflags &= !(rflags::TF | rflags::NT | rflags::RF | rflags::VM | masked);
        Ok(())
    }

    /// Reads and checks the gate (SDM volume 3, 6.12.1 and 6.14.1).
    fn gate(&mut self, delivery: &Delivery) -> Result<Gate, Break> {
        let error = u32::from(delivery.vector) << 3 | IDT;
        let long = self.long_mode();
        let bytes = if long { 16 } else { 8 };
        let offset = u64::from(delivery.vector) * bytes;
        if offset + bytes - 1 > self.system.idt.limit.into() {
            return Err(self.gp(error));
        }
        let at = self.table_address(self.system.idt.base, offset);
        let (low, high) = self.as_supervisor(|cpu| {
            let low = cpu.load::<u64>(at)?;
            Ok((low, if long { cpu.load::<u64>(at.wrapping_add(8))? } else { 0 }))
        })?;
        let gate = Descriptor { raw: low, at };
        let fits = match gate.kind() {
            system::INTERRUPT_GATE | system::TRAP_GATE => true,
            system::INTERRUPT_GATE16 | system::TRAP_GATE16 => !long,
            _ => false,
        };
        if gate.is_segment() || !fits || (delivery.software && gate.dpl() < self.cpl) {
            return Err(self.gp(error));
        }
        if !gate.present() {
            return Err(self.raise(fault::NP, Some(error)));
        }
        let upper = if gate.kind() & 8 != 0 { low >> 32 & 0xffff_0000 } else { 0 };
        Ok(Gate {
            kind: gate.kind(),
            selector: (low >> 16) as u16,
            offset: low & 0xffff | upper | high << 32,
            ist: if long { (low >> 32 & 7) as u8 } else { 0 },
        })
    }

    /// The code segment of a handler, and the privilege level that it runs with.
    fn handler_code(&mut self, selector: u16) -> Result<(Descriptor, u8), Break> {
        if is_null(selector) {
            return Err(self.gp(0));
        }
        let code = self.descriptor(selector)?;
        let wide = code.long() && !code.big();
        if !code.is_code() || code.dpl() > self.cpl || (self.long_mode() && !wide) {
            return Err(self.gp(error_of(selector)));
        }
        if !code.present() {
            return Err(self.raise(fault::NP, Some(error_of(selector))));
        }
        let cpl = if code.is_conforming() { self.cpl } else { code.dpl() };
        Ok((code, cpl))
    }

    fn handler_stack(&mut self, gate: Gate, cpl: u8, inner: bool) -> Result<Stack, Break> {
        if !self.long_mode() {
            return if inner { self.inner_stack(cpl) } else { Ok(self.stack()) };
        }
        let pointer = match (gate.ist, inner) {
            (0, false) => self.rsp(),
            (0, true) => self.task_pointer(4 + u64::from(cpl) * 8)?,
            (ist, _) => self.task_pointer(28 + u64::from(ist) * 8)?,
        };
        let segment = if inner { null_segment(cpl.into()) } else { self.segment(Seg::Ss) };
        Ok(Stack { segment, flat: true, pointer: pointer & !15, cpl, error: 0 })
    }

    /// A stack pointer out of the 64-bit TSS (SDM volume 3, 7.7).
    pub(super) fn task_pointer(&mut self, offset: u64) -> Result<u64, Break> {
        let task = self.system.tr;
        if offset + 7 > task.limit.into() {
            return Err(self.raise(fault::TS, Some(error_of(task.selector))));
        }
        self.as_supervisor(|cpu| cpu.load::<u64>(task.base.wrapping_add(offset)))
    }

    /// The stack for an inner privilege level out of a 16- or 32-bit TSS (SDM volume 3, 5.8.5).
    pub(super) fn inner_stack(&mut self, cpl: u8) -> Result<Stack, Break> {
        let task = self.system.tr;
        let (size, offset) = if task.kind & 8 != 0 { (4, 4 + u64::from(cpl) * 8) } else { (2, 2 + u64::from(cpl) * 4) };
        if offset + size + 1 > task.limit.into() {
            return Err(self.raise(fault::TS, Some(error_of(task.selector))));
        }
        let at = self.table_address(task.base, offset);
        let (pointer, selector) = self.as_supervisor(|cpu| {
            let pointer = cpu.load_sized(at, size)?;
            Ok((pointer, cpu.load::<u16>(at.wrapping_add(size))?))
        })?;
        let segment = self.stack_segment(selector, cpl, false, fault::TS)?;
        Ok(Stack { segment, flat: false, pointer, cpl, error: error_of(selector) })
    }

    /// Goes on at `ip` in `code`, with CPL as it now is.
    pub(super) fn enter_code(&mut self, code: Descriptor, selector: u16, ip: u64) {
        self.set_segment(Seg::Cs, code.segment(selector & !RPL | u16::from(self.cpl)));
        self.rip = ip;
        self.mode_changed();
    }
}

/// What is delivered when delivering `first` raised `second` (SDM volume 3, table 6-5).
fn after(first: Event, second: Fault) -> Result<Fault, Shutdown> {
    let Event::Exception(first) = first else { return Ok(second) };
    let contributory = |vector| matches!(vector, fault::DE | fault::TS | fault::NP | fault::SS | fault::GP);
    let severe = contributory(second.vector) || second.vector == fault::PF;
    let double = match first.vector {
        fault::DF if severe => return Err(Shutdown),
        fault::PF => severe,
        vector => contributory(vector) && contributory(second.vector),
    };
    Ok(if double { Fault { vector: fault::DF, error: Some(0), address: 0 } } else { second })
}
