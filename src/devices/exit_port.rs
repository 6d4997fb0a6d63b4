//! A port by which a guest ends its machine with a status: for test kernels and small machine-code guests.
//!
//! A write of the byte N to port 0xf4 ends the machine with exit code N. (QEMU's `isa-debug-exit` at the same port
//! would exit with 2N+1.) Reads give 0. Accesses come on vCPU threads.

use std::sync::Arc;

use crate::bus::BusDevice;
use crate::devices::builder::PlacedPorts;
use crate::devices::{Builder, GuestEvent, Notify};

/// The port.
pub const PORT: u16 = 0xf4;
/// Guests also write words or double words; their low byte counts.
const LEN: u16 = 4;

struct ExitPort(Notify);

/// Places the port.
pub fn place(builder: &mut Builder<'_>) {
    let device = Arc::new(ExitPort(builder.notify.clone()));
    builder.ports.push(PlacedPorts { name: "exit-port".into(), base: PORT, len: LEN, gsi: None, hid: None, device });
}

impl BusDevice for ExitPort {
    fn read(&self, _: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let (0, Some(&status)) = (offset, data.first()) {
            (self.0)(GuestEvent::ExitPort(status));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::guest_event::tests::recorded;

    #[test]
    fn the_low_byte_is_the_status() {
        let (notify, events) = recorded();
        let port = ExitPort(notify);
        port.write(0, &[7]);
        port.write(0, &[0x2a, 1, 0, 0]);
        port.write(1, &[3]);
        port.write(0, &[]);
        assert_eq!(events(), [GuestEvent::ExitPort(7), GuestEvent::ExitPort(42)]);
        let mut data = [9; 4];
        port.read(0, &mut data);
        assert_eq!(data, [0; 4]);
    }
}
