//! The registers of a local APIC and what accesses to them do (SDM volume 3, 12.4 to 12.8; in x2APIC mode 12.12). Plain
//! state: `mod.rs` puts the lock around it and wakes the CPU.

use super::message::{Delivery, Message};
use super::timer::Timer;
use super::vectors::Vectors;

/// Registers by number: bits 11:4 of the offset in the page, or of the MSR from 800h.
pub(super) mod reg {
    pub(crate) const ID: u32 = 0x02;
    pub(crate) const VERSION: u32 = 0x03;
    pub(crate) const TPR: u32 = 0x08;
    pub(crate) const APR: u32 = 0x09;
    pub(crate) const PPR: u32 = 0x0a;
    pub(crate) const EOI: u32 = 0x0b;
    pub(crate) const LDR: u32 = 0x0d;
    pub(crate) const DFR: u32 = 0x0e;
    pub(crate) const SVR: u32 = 0x0f;
    pub(crate) const ISR: u32 = 0x10;
    pub(crate) const TMR: u32 = 0x18;
    pub(crate) const IRR: u32 = 0x20;
    pub(crate) const IRR_LAST: u32 = 0x27;
    pub(crate) const ESR: u32 = 0x28;
    pub(crate) const ICR: u32 = 0x30;
    pub(crate) const ICR_HIGH: u32 = 0x31;
    pub(crate) const LVT_TIMER: u32 = 0x32;
    pub(crate) const LVT_ERROR: u32 = 0x37;
    pub(crate) const INITIAL_COUNT: u32 = 0x38;
    pub(crate) const CURRENT_COUNT: u32 = 0x39;
    pub(crate) const DIVIDE: u32 = 0x3e;
    pub(crate) const SELF_IPI: u32 = 0x3f;
}

/// Integrated APIC with six entries in its local vector table; suppressing broadcasts of EOI is not offered.
const VERSION: u32 = 0x0005_0014;
const SVR_ENABLED: u32 = 1 << 8;
const SVR_RESET: u32 = 0xff;
const LVT_MASKED: u32 = 1 << 16;
/// What software may set in timer, thermal, performance, LINT0, LINT1 and error entries.
const LVT_WRITABLE: [u32; 6] = [0x7_00ff, 0x1_07ff, 0x1_07ff, 0x1_a7ff, 0x1_a7ff, 0x1_00ff];
/// Delivery status and remote IRR: read-only.
const LVT_READ_ONLY: u64 = 1 << 12 | 1 << 14;
/// Flat model, all others mean clusters.
const DFR_FLAT: u32 = 0xffff_ffff;
const ICR_LOW: u64 = 0x000c_cfff;
const ICR_STATUS: u64 = 1 << 12;
/// Vectors below are reserved for exceptions.
const FIRST_VECTOR: u8 = 16;
/// Errors (12.5.3).
const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
pub(super) const ILLEGAL_REGISTER: u32 = 1 << 7;

/// How the CPU reaches its APIC: bits 11 and 10 of the APIC base register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) enum Mode {
    /// Not at all.
    Disabled,
    /// A page of memory.
    XApic,
    /// MSRs.
    X2Apic,
}

/// No such register, or a value that it cannot have: general protection in x2APIC mode, an error in xAPIC mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) struct Refused;

/// What a write leads to outside the APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) enum Effect {
    /// Nothing.
    None,
    /// A message to other CPUs, or to this one.
    Send(Message),
    /// The level-triggered interrupt with this vector ended.
    Ended(u8),
}

/// All state but the base register.
#[derive(Debug, Clone)]
pub(super) struct Registers {
    id: u32,
    pub(super) mode: Mode,
    pub(super) tpr: u32,
    pub(super) ldr: u32,
    pub(super) dfr: u32,
    pub(super) svr: u32,
    pub(super) isr: Vectors,
    pub(super) tmr: Vectors,
    pub(super) irr: Vectors,
    pub(super) lvt: [u32; 6],
    pub(super) icr: u64,
    /// Errors as last written out, and those since.
    pub(super) esr: u32,
    errors: u32,
    pub(super) timer: Timer,
    pub(super) nmi: bool,
    pub(super) init: bool,
    pub(super) startup: Option<u8>,
}

impl Registers {
    pub(super) fn new(id: u32) -> Self {
        Self {
            id,
            mode: Mode::XApic,
            tpr: 0,
            ldr: 0,
            dfr: DFR_FLAT,
            svr: SVR_RESET,
            isr: Vectors::default(),
            tmr: Vectors::default(),
            irr: Vectors::default(),
            lvt: [LVT_MASKED; 6],
            icr: 0,
            esr: 0,
            errors: 0,
            timer: Timer::default(),
            nmi: false,
            init: false,
            startup: None,
        }
    }

    /// What RESET and INIT do (12.4.7.1, 12.12.5.1): all but id, mode, and a start-up message that came already.
    pub(super) fn reset(&mut self) {
        *self = Self { mode: self.mode, init: self.init, startup: self.startup, ..Self::new(self.id) };
    }

    /// Another mode. Disabling forgets everything; the destination register is not the same in both others.
    pub(super) fn set_mode(&mut self, mode: Mode) {
        if mode == self.mode {
            return;
        }
        if mode == Mode::Disabled {
            self.reset();
        }
        self.icr &= 0xffff_ffff;
        self.mode = mode;
    }

    fn x2apic(&self) -> bool {
        self.mode == Mode::X2Apic
    }

    pub(super) fn enabled(&self) -> bool {
        self.mode != Mode::Disabled && self.svr & SVR_ENABLED != 0
    }

    /// Processor priority (12.8.3.1).
    pub(super) fn priority(&self) -> u8 {
        let serving = self.isr.highest().unwrap_or(0);
        let tpr = self.tpr as u8;
        if tpr >> 4 >= serving >> 4 { tpr } else { serving & 0xf0 }
    }

    pub(super) fn tpr(&self) -> u8 {
        self.tpr as u8
    }

    pub(super) fn set_tpr(&mut self, value: u8) {
        self.tpr = value.into();
    }

    /// The interrupt that would be taken now.
    pub(super) fn deliverable(&self) -> Option<u8> {
        self.irr.highest().filter(|vector| self.mode != Mode::Disabled && vector >> 4 > self.priority() >> 4)
    }

    /// The CPU takes the interrupt.
    pub(super) fn accept(&mut self) -> Option<u8> {
        let vector = self.deliverable()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        Some(vector)
    }

    /// Whether a message to logical id `id` is for this CPU (12.6.2.2, 12.12.10.2).
    pub(super) fn matches(&self, id: u32) -> bool {
        let own = self.ldr();
        match self.mode {
            Mode::Disabled => false,
            Mode::X2Apic => id >> 16 == own >> 16 && id & own & 0xffff != 0,
            Mode::XApic if self.dfr == DFR_FLAT => id & own >> 24 != 0,
            Mode::XApic => id == 0xff || (id >> 4 == own >> 28 && id & own >> 24 & 0xf != 0),
        }
    }

    /// A message arrives. Whether the CPU should look.
    pub(super) fn receive(&mut self, delivery: Delivery, vector: u8, level: bool) -> bool {
        if self.mode == Mode::Disabled {
            return false;
        }
        match delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                if !self.enabled() {
                    return false;
                }
                if vector < FIRST_VECTOR {
                    self.error(RECEIVE_ILLEGAL_VECTOR);
                } else {
                    self.irr.insert(vector);
                    self.tmr.set(vector, level);
                }
                self.deliverable().is_some()
            }
            Delivery::Nmi => {
                self.nmi = true;
                true
            }
            Delivery::Init => {
                // Start-up messages from before count for nothing.
                (self.init, self.startup) = (true, None);
                true
            }
            Delivery::Startup => {
                self.startup = Some(vector);
                true
            }
        }
    }

    /// Ends the interrupt with the highest priority; its vector if it was level-triggered.
    pub(super) fn end(&mut self) -> Option<u8> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        self.tmr.contains(vector).then_some(vector)
    }

    /// Notes an error and interrupts, if it may.
    pub(super) fn error(&mut self, error: u32) {
        self.errors |= error;
        let entry = self.lvt(reg::LVT_ERROR);
        let vector = entry as u8;
        // An illegal vector here would be an error about an error.
        if entry & LVT_MASKED == 0 && self.enabled() && vector >= FIRST_VECTOR {
            self.irr.insert(vector);
            self.tmr.remove(vector);
        }
    }

    /// When the timer wants to interrupt.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.timer.at().filter(|_| self.lvt(reg::LVT_TIMER) & LVT_MASKED == 0)
    }

    /// What the timer did up to `now`. Whether the CPU should look.
    pub(super) fn run_timer(&mut self, now: u64) -> bool {
        let entry = self.lvt(reg::LVT_TIMER);
        if !self.timer.fired(now) || entry & LVT_MASKED != 0 {
            return false;
        }
        self.receive(Delivery::Fixed, entry as u8, false)
    }

    /// The deadline as a value of the guest's time-stamp counter.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.timer.tsc()
    }

    /// Sets the deadline: `tsc` is guest time `at`.
    pub(super) fn set_tsc_deadline(&mut self, tsc: u64, at: u64) {
        self.timer.set_tsc(tsc, at);
    }

    fn lvt(&self, register: u32) -> u32 {
        self.lvt.get((register - reg::LVT_TIMER) as usize).copied().unwrap_or(LVT_MASKED)
    }

    fn ldr(&self) -> u32 {
        if self.x2apic() { self.id >> 4 << 16 | 1 << (self.id & 15) } else { self.ldr }
    }

    /// Reads a register; only the interrupt command register has more than 32 bits, in x2APIC mode.
    pub(super) fn read(&self, register: u32, now: u64) -> Result<u64, Refused> {
        let x2apic = self.x2apic();
        let value = match register {
            reg::ID if x2apic => self.id,
            reg::ID => self.id << 24,
            reg::VERSION => VERSION,
            reg::TPR => self.tpr,
            reg::APR if !x2apic => self.priority().into(),
            reg::PPR => self.priority().into(),
            reg::LDR => self.ldr(),
            reg::DFR if !x2apic => self.dfr,
            reg::SVR => self.svr,
            reg::ISR..reg::TMR => self.isr.word((register - reg::ISR) as usize),
            reg::TMR..reg::IRR => self.tmr.word((register - reg::TMR) as usize),
            reg::IRR..=reg::IRR_LAST => self.irr.word((register - reg::IRR) as usize),
            reg::ESR => self.esr,
            reg::ICR if x2apic => return Ok(self.icr),
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH if !x2apic => (self.icr >> 32) as u32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.lvt(register),
            reg::INITIAL_COUNT => self.timer.initial(),
            reg::CURRENT_COUNT => self.timer.count(now),
            reg::DIVIDE => self.timer.divide(),
            // Write-only, and in xAPIC mode harmless to read.
            reg::EOI if !x2apic => 0,
            _ => return Err(Refused),
        };
        Ok(value.into())
    }

    /// Writes a register. The caller has run the timer up to `now`.
    pub(super) fn write(&mut self, register: u32, value: u64, now: u64) -> Result<Effect, Refused> {
        let x2apic = self.x2apic();
        match register {
            reg::TPR => self.tpr = self.check(value, 0xff)?,
            reg::EOI => {
                self.check(value, 0)?;
                return Ok(self.end().map_or(Effect::None, Effect::Ended));
            }
            reg::LDR if !x2apic => self.ldr = value as u32 & 0xff00_0000,
            reg::DFR if !x2apic => self.dfr = value as u32 | 0x0fff_ffff,
            reg::SVR => self.set_svr(value)?,
            reg::ESR => {
                self.check(value, 0)?;
                self.esr = std::mem::take(&mut self.errors);
            }
            reg::ICR => return self.command(value),
            reg::ICR_HIGH if !x2apic => self.icr = self.icr & 0xffff_ffff | (value & 0xff00_0000) << 32,
            reg::LVT_TIMER..=reg::LVT_ERROR => self.set_lvt(register, value)?,
            reg::INITIAL_COUNT => {
                let count = self.check(value, u32::MAX.into())?;
                self.timer.set_initial(count, now);
            }
            reg::DIVIDE => {
                let divide = self.check(value, 0xb)?;
                self.timer.set_divide(divide, now);
            }
            reg::SELF_IPI if x2apic => return self.command(0x4_0000 | u64::from(self.check(value, 0xff)?)),
            _ => return Err(Refused),
        }
        Ok(Effect::None)
    }

    /// In x2APIC mode reserved bits must be zero, in xAPIC mode they are ignored.
    fn check(&self, value: u64, allowed: u64) -> Result<u32, Refused> {
        if self.x2apic() && value & !allowed != 0 {
            return Err(Refused);
        }
        Ok((value & allowed) as u32)
    }

    fn set_svr(&mut self, value: u64) -> Result<(), Refused> {
        // Focus processor checking (bit 9) does nothing on any CPU of today.
        self.svr = self.check(value, 0x3ff)?;
        if self.svr & SVR_ENABLED == 0 {
            self.lvt.iter_mut().for_each(|entry| *entry |= LVT_MASKED);
        }
        Ok(())
    }

    fn set_lvt(&mut self, register: u32, value: u64) -> Result<(), Refused> {
        let index = (register - reg::LVT_TIMER) as usize;
        let (enabled, writable) = (self.enabled(), LVT_WRITABLE.get(index).copied().ok_or(Refused)?);
        let mut entry = self.check(value, u64::from(writable) | LVT_READ_ONLY)? & writable;
        if register == reg::LVT_TIMER && entry >> 17 & 3 == 3 {
            return Err(Refused);
        }
        if !enabled {
            entry |= LVT_MASKED;
        }
        *self.lvt.get_mut(index).ok_or(Refused)? = entry;
        if register == reg::LVT_TIMER {
            self.timer.set_mode(entry);
        }
        Ok(())
    }

    /// A write to the lower half of the interrupt command register, or in x2APIC mode to all of it.
    fn command(&mut self, value: u64) -> Result<Effect, Refused> {
        let x2apic = self.x2apic();
        let id = if x2apic {
            self.check(value, ICR_LOW | ICR_STATUS | 0xffff_ffff << 32)?;
            self.icr = value & !ICR_STATUS;
            (value >> 32) as u32
        } else {
            self.icr = self.icr & 0xffff_ffff << 32 | value & ICR_LOW;
            (self.icr >> 56) as u32
        };
        let Some(message) = Message::from_command(value as u32, id, x2apic) else { return Ok(Effect::None) };
        let vectored = matches!(message.delivery, Delivery::Fixed | Delivery::LowestPriority);
        if vectored && message.vector < FIRST_VECTOR {
            self.error(SEND_ILLEGAL_VECTOR);
            return Ok(Effect::None);
        }
        Ok(Effect::Send(message))
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Destination;
    use super::*;

    fn enabled() -> Registers {
        let mut apic = Registers::new(3);
        apic.write(reg::SVR, 0x1ff, 0).unwrap();
        apic
    }

    fn x2apic(id: u32) -> Registers {
        let mut apic = Registers::new(id);
        apic.set_mode(Mode::X2Apic);
        apic.write(reg::SVR, 0x1ff, 0).unwrap();
        apic
    }

    fn fixed(apic: &mut Registers, vector: u8) -> bool {
        apic.receive(Delivery::Fixed, vector, false)
    }

    #[test]
    fn priorities() {
        let mut apic = enabled();
        assert_eq!(apic.accept(), None);
        assert!(fixed(&mut apic, 0x41) && fixed(&mut apic, 0x52) && fixed(&mut apic, 0x45));
        assert_eq!(apic.accept(), Some(0x52));
        assert_eq!((apic.priority(), apic.accept()), (0x50, None), "4x waits for the end of 52");
        assert!(!fixed(&mut apic, 0x5f), "the same class does not interrupt");
        assert!(fixed(&mut apic, 0x60));
        assert_eq!((apic.accept(), apic.priority()), (Some(0x60), 0x60));
        assert_eq!(apic.read(reg::ISR + 3, 0), Ok(1));
        assert_eq!(apic.read(reg::ISR + 2, 0), Ok(1 << 18));
        assert_eq!(apic.read(reg::IRR + 2, 0), Ok(1 << 31 | 1 << 5 | 1 << 1));
        assert_eq!((apic.end(), apic.deliverable()), (None, None));
        assert_eq!((apic.end(), apic.accept()), (None, Some(0x5f)));
        apic.end();
        apic.set_tpr(0x45);
        assert_eq!((apic.accept(), apic.priority()), (None, 0x45), "TPR holds class 4 back");
        apic.set_tpr(0x3f);
        assert_eq!((apic.accept(), apic.priority()), (Some(0x45), 0x40));
    }

    #[test]
    fn ends_of_level_triggered_interrupts_are_reported() {
        let mut apic = enabled();
        apic.receive(Delivery::Fixed, 0x30, true);
        apic.receive(Delivery::Fixed, 0x80, false);
        assert_eq!(apic.read(reg::TMR + 1, 0), Ok(1 << 16));
        assert_eq!((apic.accept(), apic.write(reg::EOI, 0, 0)), (Some(0x80), Ok(Effect::None)));
        assert_eq!((apic.accept(), apic.write(reg::EOI, 0, 0)), (Some(0x30), Ok(Effect::Ended(0x30))));
        assert_eq!(apic.write(reg::EOI, 0, 0), Ok(Effect::None), "nothing to end");
        apic.receive(Delivery::Fixed, 0x30, false);
        assert_eq!((apic.accept(), apic.end()), (Some(0x30), None), "an edge this time");
    }

    #[test]
    fn what_is_not_enabled_receives_only_what_is_not_maskable() {
        let mut apic = Registers::new(0);
        assert!(!fixed(&mut apic, 0x40));
        assert!(apic.receive(Delivery::Nmi, 0, false) && apic.nmi);
        apic.receive(Delivery::Startup, 9, false);
        apic.receive(Delivery::Init, 0, false);
        assert_eq!((apic.init, apic.startup), (true, None), "a start-up from before INIT is void");
        apic.receive(Delivery::Startup, 7, false);
        apic.reset();
        assert_eq!((apic.init, apic.startup, apic.nmi), (true, Some(7), false));
        apic.set_mode(Mode::Disabled);
        assert!(!apic.receive(Delivery::Nmi, 0, false) && !apic.nmi);
    }

    #[test]
    fn logical_ids() {
        let mut apic = enabled();
        assert!(!apic.matches(0xff), "no id yet");
        apic.write(reg::LDR, 0x0812_3456, 0).unwrap();
        assert_eq!(apic.read(reg::LDR, 0), Ok(0x0800_0000));
        assert!(apic.matches(8) && apic.matches(0xff) && !apic.matches(0xf7));
        apic.write(reg::DFR, 0, 0).unwrap();
        apic.write(reg::LDR, 0x2400_0000, 0).unwrap();
        assert!(apic.matches(0x24) && apic.matches(0x2f) && apic.matches(0xff));
        assert!(!apic.matches(0x14) && !apic.matches(0x2b));
        let apic = x2apic(0x25);
        assert_eq!(apic.read(reg::LDR, 0), Ok(0x2_0020));
        assert!(apic.matches(0x2_0020) && apic.matches(0x2_ffff));
        assert!(!apic.matches(0x2_ffdf) && !apic.matches(0x0_0020) && !apic.matches(0xff));
    }

    #[test]
    fn commands_become_messages() {
        let mut apic = enabled();
        apic.write(reg::ICR_HIGH, 0x0512_3456, 0).unwrap();
        let Ok(Effect::Send(message)) = apic.write(reg::ICR, 0x40fd, 0) else { panic!("nothing sent") };
        assert_eq!((message.to, message.vector, message.level), (Destination::Physical(5), 0xfd, false));
        assert_eq!((apic.read(reg::ICR, 0), apic.read(reg::ICR_HIGH, 0)), (Ok(0x40fd), Ok(0x0500_0000)));
        assert_eq!(apic.write(reg::ICR, 0x0f, 0), Ok(Effect::None));
        assert_eq!(apic.read(reg::ESR, 0), Ok(0), "errors show only when written out");
        apic.write(reg::ESR, 0, 0).unwrap();
        assert_eq!(apic.read(reg::ESR, 0), Ok(u64::from(SEND_ILLEGAL_VECTOR)));
        apic.write(reg::ESR, 0, 0).unwrap();
        assert_eq!(apic.read(reg::ESR, 0), Ok(0));
        let mut apic = x2apic(1);
        let Ok(Effect::Send(message)) = apic.write(reg::ICR, 0x1_2345_0000_4641, 0) else { panic!("nothing sent") };
        assert_eq!((message.to, message.delivery), (Destination::Physical(0x1_2345), Delivery::Startup));
        assert_eq!(apic.read(reg::ICR, 0), Ok(0x1_2345_0000_4641));
        let Ok(Effect::Send(message)) = apic.write(reg::SELF_IPI, 0x77, 0) else { panic!("nothing sent") };
        assert_eq!((message.to, message.vector), (Destination::Sender, 0x77));
    }

    #[test]
    fn x2apic_mode_refuses_what_xapic_mode_ignores() {
        let (mut old, mut new) = (enabled(), x2apic(3));
        assert_eq!((old.read(reg::ID, 0), new.read(reg::ID, 0)), (Ok(3 << 24), Ok(3)));
        let cases = [
            (reg::TPR, 0x100),
            (reg::EOI, 1),
            (reg::SVR, 0x1000),
            (reg::ESR, 1),
            (reg::LVT_TIMER, 0x8_0000),
            (reg::LVT_ERROR, 0x100),
            (reg::DIVIDE, 4),
            (reg::ICR, 1 << 20 | 0x40),
        ];
        for (register, value) in cases {
            assert_eq!(new.write(register, value, 0), Err(Refused), "{register:#x}");
            assert!(old.write(register, value, 0).is_ok(), "{register:#x}");
        }
        for register in [reg::DFR, reg::ICR_HIGH, reg::LDR] {
            assert!(old.write(register, 0xff00_0000, 0).is_ok());
            assert_eq!(new.write(register, 0xff00_0000, 0), Err(Refused), "{register:#x}");
        }
        for register in [reg::APR, reg::DFR, reg::ICR_HIGH, reg::EOI, 0, 0x2f, 0x3a] {
            assert_eq!(new.read(register, 0), Err(Refused), "{register:#x}");
        }
        assert_eq!(old.write(reg::SELF_IPI, 0x40, 0), Err(Refused));
        for register in [reg::VERSION, reg::PPR, reg::ISR, reg::CURRENT_COUNT, 0x2f] {
            assert_eq!((old.write(register, 0, 0), new.write(register, 0, 0)), (Err(Refused), Err(Refused)));
        }
    }

    #[test]
    fn disabling_masks_and_errors_interrupt() {
        let mut apic = enabled();
        apic.write(reg::LVT_ERROR, 0xfe, 0).unwrap();
        apic.write(reg::LVT_TIMER, 0x2_00ef, 0).unwrap();
        assert!(fixed(&mut apic, 5));
        assert_eq!(apic.accept(), Some(0xfe));
        apic.end();
        apic.write(reg::SVR, 0xff, 0).unwrap();
        assert_eq!(apic.read(reg::LVT_TIMER, 0), Ok(0x3_00ef));
        apic.write(reg::LVT_TIMER, 0xef, 0).unwrap();
        assert_eq!(apic.read(reg::LVT_TIMER, 0), Ok(0x1_00ef), "stays masked");
    }

    #[test]
    fn the_timer_interrupts_unless_masked() {
        let mut apic = enabled();
        apic.write(reg::DIVIDE, 11, 0).unwrap();
        apic.write(reg::LVT_TIMER, 0x2_00ef, 0).unwrap();
        apic.write(reg::INITIAL_COUNT, 100, 1000).unwrap();
        assert_eq!((apic.deadline(), apic.read(reg::CURRENT_COUNT, 1040)), (Some(1100), Ok(60)));
        assert!(!apic.run_timer(1099) && apic.run_timer(1100));
        assert_eq!((apic.accept(), apic.end(), apic.deadline()), (Some(0xef), None, Some(1200)));
        apic.write(reg::LVT_TIMER, 0x3_00ef, 1150).unwrap();
        assert_eq!(apic.deadline(), None);
        assert!(!apic.run_timer(1210));
        assert_eq!(apic.accept(), None);
        apic.write(reg::LVT_TIMER, 0x2_00ef, 1210).unwrap();
        assert_eq!(apic.deadline(), Some(1300));
        apic.write(reg::LVT_TIMER, 0x4_00ee, 1210).unwrap();
        assert_eq!(apic.deadline(), None);
        apic.set_tsc_deadline(5000, 2000);
        assert_eq!((apic.deadline(), apic.tsc_deadline()), (Some(2000), 5000));
        assert!(apic.run_timer(2000));
        assert_eq!((apic.accept(), apic.tsc_deadline()), (Some(0xee), 0));
        assert_eq!(apic.write(reg::LVT_TIMER, 0x6_00ee, 2000), Err(Refused), "no such mode");
    }
}
