//! What is at the reset vector, where a PC has its BIOS: code that resets the machine.
//!
//! Kernels jump there in real mode when they know no better way to reboot. Linux does so on a hardware-reduced ACPI
//! machine, where it expects EFI to do it and then falls back to the BIOS.

use crate::board::layout;
use crate::firmware::power::{RESET, RESET_VALUE};
use crate::mem::{self, Ram};

/// F000:FFF0, where an x86 CPU below 1 MiB restarts (Intel SDM volume 3, section 10.1.4).
const RESET_VECTOR: u64 = 0xf_fff0;

/// Writes the code.
pub(super) fn write(ram: &Ram) -> Result<(), mem::Error> {
    let [low, high] = (layout::POWER_PORTS + RESET).to_le_bytes();
    // mov dx, PORT; mov al, RESET_VALUE; out dx, al; hlt; jmp to the hlt
    ram.write(RESET_VECTOR, &[0xba, low, high, 0xb0, RESET_VALUE, 0xee, 0xf4, 0xeb, 0xfd])
}
