//! The reset line of a keyboard controller (i8042): what `reboot=k` and small guests use to restart.
//!
//! Port 0x64 only: command 0xfe pulses the CPU's reset line, everything else is ignored. The status reads as 0,
//! "ready for a command", so that nobody waits before the reset. There is no keyboard: ACPI says so (FADT boot flags),
//! or else a kernel would wait half a second for one. Accesses come on vCPU threads.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::devices::builder::PlacedPorts;
use crate::devices::{Builder, GuestEvent, Notify};

/// Command and status port.
pub const PORT: u16 = 0x64;
/// Pulse output bit 0: reset.
const PULSE_RESET: u8 = 0xfe;

struct KeyboardReset(Notify);

/// Places the port.
pub fn place(builder: &mut Builder<'_>) {
    let device = Arc::new(KeyboardReset(builder.notify.clone()));
    let name = "keyboard-reset".into();
    builder.ports.push(PlacedPorts { name, base: PORT, len: 1, gsi: None, hid: None, device });
}

impl BusDevice for KeyboardReset {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _: u64, data: &[u8]) {
        if data.first() == Some(&PULSE_RESET) {
            (self.0)(GuestEvent::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::guest_event::tests::recorded;

    #[test]
    fn only_the_reset_command_does_anything() {
        let (notify, events) = recorded();
        let device = KeyboardReset(notify);
        let mut status = [0xff];
        device.read(0, &mut status);
        assert_eq!(status, [0]);
        (0..=0xff).for_each(|command| device.write(0, &[command]));
        device.write(0, &[]);
        assert_eq!(events(), [GuestEvent::Reset]);
    }
}
