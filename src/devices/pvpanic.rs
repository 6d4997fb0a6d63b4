//! pvpanic: how a guest kernel tells that it panicked, even if nobody reads its console.
//!
//! One port, found by ACPI as `QEMU0001`; QEMU's docs/specs/pvpanic.rst defines it. A read tells which events the
//! device knows, a write reports one. Accesses come on vCPU threads.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::devices::builder::PlacedPorts;
use crate::devices::{Builder, GuestEvent, Notify};

/// The port.
pub const PORT: u16 = 0x505;

/// The bits of the port and what each means.
const EVENTS: [(u8, GuestEvent); 3] =
    [(1 << 0, GuestEvent::Panicked), (1 << 1, GuestEvent::CrashLoaded), (1 << 2, GuestEvent::PowerOff)];

struct Pvpanic(Notify);

/// Places the port.
pub fn place(builder: &mut Builder<'_>) {
    let device = Arc::new(Pvpanic(builder.notify.clone()));
    let hid = Some("QEMU0001");
    builder.ports.push(PlacedPorts { name: "pvpanic".into(), base: PORT, len: 1, gsi: None, hid, device });
}

impl BusDevice for Pvpanic {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(first) = data.first_mut() {
            *first = EVENTS.iter().fold(0, |all, (bit, _)| all | bit);
        }
    }

    fn write(&self, _: u64, data: &[u8]) {
        let bits = data.first().copied().unwrap_or(0);
        EVENTS.iter().filter(|(bit, _)| bits & bit != 0).for_each(|&(_, event)| (self.0)(event));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::guest_event::tests::recorded;

    #[test]
    fn known_events_are_reported_and_unknown_ones_are_not() {
        let (notify, events) = recorded();
        let device = Pvpanic(notify);
        let mut data = [0xff; 2];
        device.read(0, &mut data);
        assert_eq!(data, [7, 0]);
        for byte in [0, 1, 2, 4, 0xf8] {
            device.write(0, &[byte]);
        }
        device.write(0, &[]);
        assert_eq!(events(), [GuestEvent::Panicked, GuestEvent::CrashLoaded, GuestEvent::PowerOff]);
    }
}
