//! The local APIC of each vCPU (SDM volume 3, chapter 12), and the bus between them.
//!
//! Its own vCPU reads and writes it, other vCPUs and the threads of devices send it messages. Whoever makes something
//! deliverable raises [`attention::INTERRUPT`]; the vCPU then calls [`LocalApic::accept`] and [`LocalApic::take_events`].

mod access;
mod bus;
mod message;
mod registers;
mod saved;
mod timer;
mod vectors;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub(super) use self::bus::ApicBus;
pub(super) use self::registers::{Effect, Mode, Refused};

use self::message::Delivery;
use self::registers::{ILLEGAL_REGISTER, Registers, reg};
use super::attention::{self, Attention};
use super::memory::walk::PHYSICAL_BITS;

/// APIC base register (12.4.4, 12.12.1).
const BASE_BOOT_CPU: u64 = 1 << 8;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
const BASE_ADDRESS: u64 = ((1 << PHYSICAL_BITS) - 1) & !0xfff;
/// Where the page of registers is at first.
const DEFAULT_ADDRESS: u64 = 0xfee0_0000;
/// No deadline.
const NEVER: u64 = u64::MAX;

/// What arrived for a vCPU beside interrupts. INIT comes first, then the start-up, then the NMI.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Events {
    /// Non-maskable interrupt.
    pub(super) nmi: bool,
    /// The vCPU resets itself (its APIC too: [`LocalApic::reset`]) and waits for a start-up.
    pub(super) init: bool,
    /// If it waits, the vCPU starts in real mode at page `.0` (CS selector is it times 100h); otherwise nothing.
    pub(super) sipi: Option<u8>,
}

/// One local APIC. All methods can be called from any thread; none blocks for long.
#[derive(Debug)]
pub(super) struct LocalApic {
    registers: Mutex<Registers>,
    attention: Arc<Attention>,
    /// The base register; written with `registers` locked.
    base: AtomicU64,
    /// When the timer interrupts; written with `registers` locked.
    deadline: AtomicU64,
}

impl LocalApic {
    /// The APIC of vCPU `id` after RESET, which reaches the vCPU through `attention`.
    pub(super) fn new(id: u32, attention: Arc<Attention>) -> Self {
        let boot = if id == 0 { BASE_BOOT_CPU } else { 0 };
        Self {
            registers: Mutex::new(Registers::new(id)),
            attention,
            base: AtomicU64::new(DEFAULT_ADDRESS | BASE_ENABLED | boot),
            deadline: AtomicU64::new(NEVER),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// After a change by which something may have become deliverable.
    fn wake(&self, registers: &Registers) {
        if registers.deliverable().is_some() {
            self.attention.raise(attention::INTERRUPT);
        }
    }

    fn publish_deadline(&self, registers: &Registers) {
        self.deadline.store(registers.deadline().unwrap_or(NEVER), Ordering::Release);
    }

    /// The interrupt that the CPU takes now: the highest pending one above the processor's priority.
    pub(super) fn accept(&self) -> Option<u8> {
        self.lock().accept()
    }

    /// Whether [`LocalApic::accept`] would return something.
    pub(super) fn ready(&self) -> bool {
        self.lock().deliverable().is_some()
    }

    /// Whether an NMI waits for [`LocalApic::take_events`].
    pub(super) fn nmi_pending(&self) -> bool {
        self.lock().nmi
    }

    /// What arrived beside interrupts since the last call.
    pub(super) fn take_events(&self) -> Events {
        let mut registers = self.lock();
        Events {
            nmi: std::mem::take(&mut registers.nmi),
            init: std::mem::take(&mut registers.init),
            sipi: registers.startup.take(),
        }
    }

    /// Guest time in nanoseconds at which the timer interrupts: then call [`LocalApic::expire`]. Cheap.
    pub(super) fn deadline(&self) -> Option<u64> {
        Some(self.deadline.load(Ordering::Acquire)).filter(|at| *at != NEVER)
    }

    /// It is guest time `now`: the timer interrupts if it is due.
    pub(super) fn expire(&self, now: u64) {
        let mut registers = self.lock();
        if registers.run_timer(now) {
            self.attention.raise(attention::INTERRUPT);
        }
        self.publish_deadline(&registers);
    }

    /// What INIT does to the APIC; start-up messages that arrived since stay.
    pub(super) fn reset(&self) {
        let mut registers = self.lock();
        registers.reset();
        self.publish_deadline(&registers);
    }

    /// A message arrives.
    fn receive(&self, delivery: Delivery, vector: u8, level: bool) {
        if self.lock().receive(delivery, vector, level) {
            self.attention.raise(attention::INTERRUPT);
        }
    }

    /// CR8: the task priority's class, 0 to 15.
    pub(super) fn cr8(&self) -> u8 {
        self.lock().tpr() >> 4
    }

    /// Writes CR8; only the low four bits count.
    pub(super) fn set_cr8(&self, class: u8) {
        let mut registers = self.lock();
        registers.set_tpr(class << 4);
        self.wake(&registers);
    }

    /// The APIC base register.
    pub(super) fn base(&self) -> u64 {
        self.base.load(Ordering::Acquire)
    }

    /// How the CPU reaches it.
    pub(super) fn mode(&self) -> Mode {
        mode_of(self.base()).unwrap_or(Mode::Disabled)
    }

    /// Whether guest-physical `at` is one of the registers in memory.
    pub(super) fn in_page(&self, at: u64) -> bool {
        let base = self.base();
        base & BASE_ADDRESS == at & !0xfff && base & (BASE_ENABLED | BASE_X2APIC) == BASE_ENABLED
    }

    /// The guest writes the APIC base register. Refused: reserved bits, and modes that cannot follow each other.
    pub(super) fn set_base(&self, value: u64) -> Result<(), Refused> {
        match (self.mode(), mode_of(value).ok_or(Refused)?) {
            (Mode::Disabled, Mode::X2Apic) | (Mode::X2Apic, Mode::XApic) => Err(Refused),
            _ => self.restore_base(value),
        }
    }

    /// Sets the APIC base register from saved state: any mode may follow any other.
    pub(super) fn restore_base(&self, value: u64) -> Result<(), Refused> {
        let mode = mode_of(value).ok_or(Refused)?;
        if value & !(BASE_ADDRESS | BASE_BOOT_CPU | BASE_X2APIC | BASE_ENABLED) != 0 {
            return Err(Refused);
        }
        let mut registers = self.lock();
        registers.set_mode(mode);
        self.base.store(value, Ordering::Release);
        self.publish_deadline(&registers);
        Ok(())
    }

    /// Reads register `index` of the MSRs from 800h at guest time `now`.
    pub(super) fn read_msr(&self, index: u32, now: u64) -> Result<u64, Refused> {
        let register = index.checked_sub(MSR_FIRST).ok_or(Refused)?;
        let mut registers = self.lock();
        if registers.mode != Mode::X2Apic {
            return Err(Refused);
        }
        self.run(&mut registers, register, now);
        registers.read(register, now)
    }

    /// Writes register `index` of the MSRs from 800h. The caller does what the effect says.
    pub(super) fn write_msr(&self, index: u32, value: u64, now: u64) -> Result<Effect, Refused> {
        let register = index.checked_sub(MSR_FIRST).ok_or(Refused)?;
        let mut registers = self.lock();
        if registers.mode != Mode::X2Apic {
            return Err(Refused);
        }
        self.write(&mut registers, register, value, now)
    }

    /// Reads from the page of registers: 32 bits at multiples of 16. Others read as zero.
    pub(super) fn read_mmio(&self, offset: u64, data: &mut [u8], now: u64) {
        let register = (offset >> 4) as u32 & 0xff;
        let mut registers = self.lock();
        self.run(&mut registers, register, now);
        let value = registers.read(register, now).unwrap_or_else(|Refused| {
            registers.error(ILLEGAL_REGISTER);
            self.wake(&registers);
            0
        });
        data.fill(0);
        let bytes = (value as u32).to_le_bytes().into_iter().skip((offset & 15) as usize);
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    /// Writes to the page of registers. Only whole registers can be written: the rest is undefined, here ignored.
    pub(super) fn write_mmio(&self, offset: u64, data: &[u8], now: u64) -> Effect {
        let Some(value) = data.first_chunk().filter(|_| offset & 15 == 0) else { return Effect::None };
        let register = (offset >> 4) as u32 & 0xff;
        let mut registers = self.lock();
        let effect = self.write(&mut registers, register, u32::from_le_bytes(*value).into(), now);
        effect.unwrap_or_else(|Refused| {
            registers.error(ILLEGAL_REGISTER);
            self.wake(&registers);
            Effect::None
        })
    }

    /// The deadline of the timer as a value of the guest's time-stamp counter; zero if there is none.
    pub(super) fn tsc_deadline(&self, now: u64) -> u64 {
        let mut registers = self.lock();
        self.run(&mut registers, reg::LVT_TIMER, now);
        registers.tsc_deadline()
    }

    /// Sets the deadline to `tsc`, which is guest time `at`; zero for none. Ignored unless the timer waits for deadlines.
    pub(super) fn set_tsc_deadline(&self, tsc: u64, at: u64) {
        let mut registers = self.lock();
        registers.set_tsc_deadline(tsc, at);
        self.publish_deadline(&registers);
    }

    fn write(&self, registers: &mut Registers, register: u32, value: u64, now: u64) -> Result<Effect, Refused> {
        self.run(registers, register, now);
        let effect = registers.write(register, value, now)?;
        // Commands only leave: all others may let something through.
        if !matches!(effect, Effect::Send(_)) {
            self.wake(registers);
        }
        if register >= reg::LVT_TIMER || register == reg::SVR {
            self.publish_deadline(registers);
        }
        Ok(effect)
    }

    /// Before an access to the timer's registers they must be as of now.
    fn run(&self, registers: &mut Registers, register: u32, now: u64) {
        if register >= reg::LVT_TIMER && registers.run_timer(now) {
            self.attention.raise(attention::INTERRUPT);
        }
    }
}

/// First MSR of x2APIC mode.
const MSR_FIRST: u32 = 0x800;

/// The mode that a value of the base register means; none if it means nothing.
fn mode_of(base: u64) -> Option<Mode> {
    match (base & BASE_ENABLED != 0, base & BASE_X2APIC != 0) {
        (false, false) => Some(Mode::Disabled),
        (true, false) => Some(Mode::XApic),
        (true, true) => Some(Mode::X2Apic),
        (false, true) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn apic(id: u32) -> (LocalApic, Arc<Attention>) {
        let attention = Arc::new(Attention::default());
        (LocalApic::new(id, attention.clone()), attention)
    }

    fn noticed(attention: &Attention) -> bool {
        attention.take(attention::INTERRUPT) != 0
    }

    const DISABLED: u64 = DEFAULT_ADDRESS;
    const XAPIC: u64 = DEFAULT_ADDRESS | BASE_ENABLED;
    const X2APIC: u64 = XAPIC | BASE_X2APIC;

    #[test]
    fn modes_follow_each_other_as_the_manual_says() {
        let allowed = [(DISABLED, XAPIC), (XAPIC, DISABLED), (XAPIC, X2APIC), (X2APIC, DISABLED)];
        for from in [DISABLED, XAPIC, X2APIC] {
            for to in [DISABLED, XAPIC, X2APIC] {
                let (apic, _) = apic(1);
                apic.restore_base(from).unwrap();
                let may = from == to || allowed.contains(&(from, to));
                assert_eq!(apic.set_base(to).is_ok(), may, "{from:#x} {to:#x}");
                assert_eq!(apic.base(), if may { to } else { from });
                assert_eq!(apic.mode(), mode_of(apic.base()).unwrap());
            }
        }
        let (apic, _) = apic(0);
        assert_eq!(apic.base(), 0xfee0_0900);
        for bad in [XAPIC | 1, XAPIC | 1 << 9, XAPIC | 1 << PHYSICAL_BITS, DISABLED | BASE_X2APIC] {
            assert_eq!(apic.set_base(bad), Err(Refused), "{bad:#x}");
        }
        assert!(apic.in_page(0xfee0_0ff0) && !apic.in_page(0xfee0_1000));
        apic.set_base(0xf000_0000 | BASE_ENABLED).unwrap();
        assert!(apic.in_page(0xf000_0000) && !apic.in_page(0xfee0_0000));
        apic.set_base(X2APIC).unwrap();
        assert!(!apic.in_page(0xfee0_0000));
    }

    #[test]
    fn the_page_has_32_bits_every_16_bytes() {
        let (apic, _) = apic(5);
        let read = |offset, len: usize| {
            let mut data = [0xee; 8];
            apic.read_mmio(offset, &mut data[..len], 0);
            u64::from_le_bytes(data)
        };
        assert_eq!(read(0x30, 4) as u32, 0x0005_0014);
        assert_eq!((read(0x32, 1) as u8, read(0x31, 2) as u16, read(0x34, 2) as u16), (5, 0x500, 0));
        assert_eq!(read(0x30, 8), 0x0005_0014);
        assert_eq!(read(0x20, 4) as u32, 5 << 24);
        assert_eq!(apic.write_mmio(0x80, &0x20_u32.to_le_bytes(), 0), Effect::None);
        assert_eq!(apic.write_mmio(0x84, &0x30_u32.to_le_bytes(), 0), Effect::None);
        assert_eq!(apic.write_mmio(0x80, &[0x30], 0), Effect::None);
        assert_eq!((read(0x80, 4) as u32, apic.cr8()), (0x20, 2));
        read(0x00, 4);
        apic.write_mmio(0x280, &[0; 4], 0);
        assert_eq!(read(0x280, 4) as u32, ILLEGAL_REGISTER);
        assert_eq!(apic.read_msr(0x803, 0), Err(Refused), "not in this mode");
        assert_eq!(apic.write_msr(0x80f, 0x1ff, 0), Err(Refused));
        for offset in 0..0x1000 {
            for len in [1, 2, 4, 8] {
                apic.write_mmio(offset, &[0xff; 8][..len], 0);
                apic.read_mmio(offset, &mut [0; 8][..len], 0);
            }
        }
    }

    #[test]
    fn the_cpu_is_told_whenever_something_becomes_deliverable() {
        let (apic, attention) = apic(0);
        apic.set_base(X2APIC).unwrap();
        apic.receive(Delivery::Fixed, 0x40, false);
        assert!(!noticed(&attention), "not enabled");
        apic.write_msr(0x80f, 0x1ff, 0).unwrap();
        apic.receive(Delivery::Fixed, 0x40, false);
        assert!(noticed(&attention) && apic.ready());
        apic.receive(Delivery::Fixed, 0x48, true);
        assert!(noticed(&attention));
        assert_eq!((apic.accept(), apic.accept(), apic.ready()), (Some(0x48), None, false));
        apic.receive(Delivery::Fixed, 0x33, false);
        assert!(!noticed(&attention), "below what is served");
        assert_eq!(apic.write_msr(0x80b, 0, 0), Ok(Effect::Ended(0x48)));
        assert!(noticed(&attention), "the end lets 40 through");
        assert_eq!((apic.accept(), apic.write_msr(0x80b, 0, 0)), (Some(0x40), Ok(Effect::None)));
        assert!(noticed(&attention));
        apic.set_cr8(3);
        assert!(!noticed(&attention) && apic.accept().is_none());
        apic.set_cr8(2);
        assert!(noticed(&attention));
        apic.set_cr8(15);
        apic.write_msr(0x808, 0x20, 0).unwrap();
        assert!(noticed(&attention) && apic.cr8() == 2);
        assert_eq!(apic.accept(), Some(0x33));
        assert_eq!(apic.take_events(), Events::default());
        apic.receive(Delivery::Init, 0, false);
        apic.receive(Delivery::Startup, 6, false);
        apic.receive(Delivery::Nmi, 0, false);
        assert!(noticed(&attention));
        assert_eq!(apic.take_events(), Events { nmi: true, init: true, sipi: Some(6) });
        assert_eq!(apic.take_events(), Events::default());
        apic.reset();
        assert_eq!((apic.read_msr(0x80f, 0), apic.mode()), (Ok(0xff), Mode::X2Apic));
    }

    #[test]
    fn deadlines_are_shown_and_met() {
        let (apic, attention) = apic(0);
        apic.set_base(X2APIC).unwrap();
        apic.write_msr(0x80f, 0x1ff, 0).unwrap();
        apic.set_tsc_deadline(700, 600);
        assert_eq!(apic.deadline(), None, "the timer does not wait for deadlines");
        apic.write_msr(0x832, 0x4_00ef, 0).unwrap();
        apic.set_tsc_deadline(700, 600);
        assert_eq!((apic.deadline(), apic.tsc_deadline(0)), (Some(600), 700));
        apic.expire(599);
        assert!(!noticed(&attention) && apic.deadline() == Some(600));
        apic.expire(600);
        assert!(noticed(&attention) && apic.deadline().is_none());
        assert_eq!((apic.tsc_deadline(600), apic.accept()), (0, Some(0xef)));
        apic.write_msr(0x80b, 0, 0).unwrap();
        apic.set_tsc_deadline(900, 800);
        assert_eq!(apic.tsc_deadline(801), 0, "reading notices that it passed");
        assert!(noticed(&attention) && apic.accept() == Some(0xef));
        apic.set_tsc_deadline(1900, 1800);
        apic.write_msr(0x80f, 0xff, 0).unwrap();
        assert_eq!(apic.deadline(), None, "disabled by software: masked");
    }
}
