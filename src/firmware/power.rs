//! The power registers that the ACPI tables point to: sleep control and status (ACPI section 4.8.3.7), reset
//! (4.8.3.6), and what the generic event device reads (5.6.9). Four I/O ports at [`layout::POWER_PORTS`], accessed
//! by vCPU threads; [`PowerPorts::press_power_button`] may be called by any thread.
//!
//! [`layout::POWER_PORTS`]: crate::board::layout::POWER_PORTS

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::bus::BusDevice;
use crate::devices::{GuestEvent, Notify};
use crate::irq::IrqLine;

/// Number of ports.
pub const PORTS: u16 = 4;
/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u16 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u16 = 1;
/// Offset of the reset register.
pub const RESET: u16 = 2;
/// Offset of the event register: what happened, bit by bit; reading clears it.
pub const EVENT_REGISTER: u16 = 3;

/// Value that resets the machine.
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of "soft off".
pub const SLEEP_TYPE_S5: u8 = 5;
/// Event: somebody pressed the power button.
pub const EVENT_POWER_BUTTON: u8 = 1;

const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u8 = 2;
const SLEEP_TYPE_MASK: u8 = 7;

/// The registers.
pub struct PowerPorts {
    notify: Notify,
    line: Arc<dyn IrqLine>,
    events: AtomicU8,
}

impl std::fmt::Debug for PowerPorts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PowerPorts").field("events", &self.events).finish_non_exhaustive()
    }
}

impl PowerPorts {
    /// Registers that tell `notify` what the guest wants and interrupt the guest by `line`.
    pub fn new(notify: Notify, line: Arc<dyn IrqLine>) -> Self {
        Self { notify, line, events: AtomicU8::new(0) }
    }

    /// Asks the guest to shut down in an orderly way.
    pub fn press_power_button(&self) {
        self.events.fetch_or(EVENT_POWER_BUTTON, Ordering::AcqRel);
        self.line.pulse();
    }

    /// Forgets events that the guest has not read: the machine starts anew.
    pub fn reset(&self) {
        self.events.store(0, Ordering::Release);
    }
}

impl BusDevice for PowerPorts {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // The sleep status never shows a wake-up, since the machine never sleeps.
        data.fill(0);
        if let ([first, ..], true) = (data, offset == u64::from(EVENT_REGISTER)) {
            *first = self.events.swap(0, Ordering::AcqRel);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let sleep = value & SLEEP_ENABLE != 0 && (value >> SLEEP_TYPE_SHIFT) & SLEEP_TYPE_MASK == SLEEP_TYPE_S5;
        if offset == u64::from(SLEEP_CONTROL) && sleep {
            (self.notify)(GuestEvent::PowerOff);
        } else if offset == u64::from(RESET) && value == RESET_VALUE {
            (self.notify)(GuestEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicU32;

    #[derive(Debug, Default)]
    struct Line(AtomicU32);
    impl IrqLine for Line {
        fn set_level(&self, high: bool) {
            self.0.fetch_add(high.into(), Ordering::Relaxed);
        }
    }

    #[test]
    fn guest_requests_reach_the_machine() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notify = seen.clone();
        let ports = PowerPorts::new(Arc::new(move |e| notify.lock().unwrap().push(e)), Arc::new(Line::default()));
        ports.write(0, &[5 << 2]); // without SLP_EN
        ports.write(0, &[1 << 5 | 3 << 2]); // another sleep type
        ports.write(1, &[0x34]);
        ports.write(2, &[0]);
        ports.write(0, &[]);
        assert!(seen.lock().unwrap().is_empty());
        ports.write(0, &[1 << 5 | 5 << 2]);
        ports.write(2, &[1]);
        assert_eq!(*seen.lock().unwrap(), [GuestEvent::PowerOff, GuestEvent::Reset]);
    }

    #[test]
    fn the_power_button_interrupts_once_and_reading_clears_it() {
        let line = Arc::new(Line::default());
        let ports = PowerPorts::new(Arc::new(|_| {}), line.clone());
        let read = || {
            let mut data = [0xff; 2];
            ports.read(EVENT_REGISTER.into(), &mut data);
            data
        };
        assert_eq!(read(), [0, 0]);
        ports.press_power_button();
        assert_eq!(line.0.load(Ordering::Relaxed), 1);
        assert_eq!(read(), [EVENT_POWER_BUTTON, 0]);
        assert_eq!(read(), [0, 0]);
        ports.press_power_button();
        ports.reset();
        assert_eq!(read(), [0, 0]);
    }
}
