//! Interrupt messages, from devices (SDM volume 3, 12.11) or from other CPUs (12.6): whom they are for and what they do.
//!
//! Destinations of device messages have 8 bits; the extension to 15 (KVM's "extended destination id") is not offered,
//! since a machine has at most 255 CPUs.

use crate::irq::MsiMessage;

/// Addresses of messages start so (bits 31:20); others are plain writes to memory, which interrupt nobody.
const MSI_ADDRESS: u64 = 0xfee;
const MSI_LOGICAL: u64 = 1 << 2;
const MSI_REDIRECT: u64 = 1 << 3;
/// Both in message data and in the interrupt command register: level triggered, asserted.
const LEVEL: u32 = 1 << 15;
const ASSERT: u32 = 1 << 14;
const ICR_LOGICAL: u32 = 1 << 11;
/// Means everybody, where an id has 8 bits.
const BROADCAST_8: u32 = 0xff;

/// What a message does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) enum Delivery {
    /// Interrupts with the vector.
    Fixed,
    /// The same, at one of the destinations.
    LowestPriority,
    /// Non-maskable interrupt.
    Nmi,
    /// Reset of the CPU, which then waits.
    Init,
    /// Starts a waiting CPU at page `vector`.
    Startup,
}

impl Delivery {
    /// From the three bits of the field; none for modes that do nothing here (SMI, ExtINT, reserved).
    fn from_bits(bits: u32) -> Option<Self> {
        match bits & 7 {
            0 => Some(Self::Fixed),
            1 => Some(Self::LowestPriority),
            4 => Some(Self::Nmi),
            5 => Some(Self::Init),
            6 => Some(Self::Startup),
            _ => None,
        }
    }
}

/// Whom a message is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) enum Destination {
    /// The CPU with this APIC id.
    Physical(u32),
    /// All CPUs whose logical id matches.
    Logical(u32),
    /// The sender.
    Sender,
    /// Everybody.
    All,
    /// Everybody but the sender.
    Others,
}

/// A message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::engine::soft) struct Message {
    /// Whom it is for.
    pub(super) to: Destination,
    /// What it does.
    pub(super) delivery: Delivery,
    /// Vector, or start page.
    pub(super) vector: u8,
    /// Level triggered: its end is reported.
    pub(super) level: bool,
    /// One of several destinations is enough.
    pub(super) any: bool,
}

impl Message {
    /// What a device sends; none for what interrupts nobody.
    pub(in crate::engine::soft) fn from_device(message: MsiMessage) -> Option<Self> {
        if message.address >> 20 != MSI_ADDRESS {
            return None;
        }
        let level = message.data & LEVEL != 0;
        if level && message.data & ASSERT == 0 {
            return None;
        }
        let id = (message.address >> 12) as u32 & 0xff;
        let logical = message.address & MSI_LOGICAL != 0;
        let delivery = Delivery::from_bits(message.data >> 8)?;
        Some(Self {
            to: destination(id, logical, BROADCAST_8),
            delivery,
            vector: message.data as u8,
            level,
            any: delivery == Delivery::LowestPriority || (logical && message.address & MSI_REDIRECT != 0),
        })
    }

    /// What a write to the interrupt command register sends: `low` is its lower half, `id` the destination, of 32 bits
    /// if `x2apic`, otherwise of 8.
    pub(super) fn from_command(low: u32, id: u32, x2apic: bool) -> Option<Self> {
        let delivery = Delivery::from_bits(low >> 8)?;
        // INIT level de-assert only sets arbitration ids, which do not exist here.
        if delivery == Delivery::Init && low & LEVEL != 0 && low & ASSERT == 0 {
            return None;
        }
        let everybody = if x2apic { u32::MAX } else { BROADCAST_8 };
        let to = match low >> 18 & 3 {
            0 if x2apic && id == everybody => Destination::All,
            0 => destination(id, low & ICR_LOGICAL != 0, everybody),
            1 => Destination::Sender,
            2 => Destination::All,
            _ => Destination::Others,
        };
        let any = delivery == Delivery::LowestPriority;
        // Whatever the trigger mode says, messages between CPUs are edges (Pentium 4 and later).
        Some(Self { to, delivery, vector: low as u8, level: false, any })
    }
}

fn destination(id: u32, logical: bool, everybody: u32) -> Destination {
    match logical {
        true => Destination::Logical(id),
        false if id == everybody => Destination::All,
        false => Destination::Physical(id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(address: u64, data: u32) -> Option<Message> {
        Message::from_device(MsiMessage { address, data })
    }

    #[test]
    fn messages_of_devices() {
        let fixed =
            Message { to: Destination::Physical(2), delivery: Delivery::Fixed, vector: 0x31, level: false, any: false };
        assert_eq!(device(0xfee0_2000, 0x31), Some(fixed));
        assert_eq!(device(0xfee0_2000, 0x4031), Some(fixed), "assert means nothing for edges");
        assert_eq!(device(0xfee0_2008, 0x31), Some(fixed), "a physical destination is one anyway");
        assert_eq!(device(0xfee0_2000, 0xc031), Some(Message { level: true, ..fixed }));
        assert_eq!(device(0xfee0_2000, 0x8031), None, "level, not asserted");
        let logical = Message { to: Destination::Logical(2), ..fixed };
        assert_eq!(device(0xfee0_2004, 0x31), Some(logical));
        assert_eq!(device(0xfee0_200c, 0x31), Some(Message { any: true, ..logical }));
        let lowest = Message { delivery: Delivery::LowestPriority, any: true, ..logical };
        assert_eq!(device(0xfee0_2004, 0x131), Some(lowest));
        assert_eq!(device(0xfeef_f000, 0x31), Some(Message { to: Destination::All, ..fixed }));
        assert_eq!(device(0xfeef_f004, 0x31), Some(Message { to: Destination::Logical(0xff), ..fixed }));
        assert_eq!(device(0xfee0_2000, 0x400).map(|m| m.delivery), Some(Delivery::Nmi));
        for (address, data) in
            [(0xfed0_2000, 0x31), (0x1_fee0_2000, 0x31), (0, 0x31), (0xfee0_2000, 0x231), (0xfee0_2000, 0x731)]
        {
            assert_eq!(device(address, data), None, "{address:#x} {data:#x}");
        }
    }

    #[test]
    fn messages_between_cpus() {
        let send = |low, id| Message::from_command(low, id, true);
        let to = |low, id, x2apic| Message::from_command(low, id, x2apic).map(|message| message.to);
        let fixed = Message {
            to: Destination::Physical(300),
            delivery: Delivery::Fixed,
            vector: 0xfd,
            level: false,
            any: false,
        };
        assert_eq!(send(0xfd, 300), Some(fixed));
        assert_eq!(send(0xc0fd, 300), Some(fixed));
        assert_eq!(to(0x8fd, 0x1_0003, true), Some(Destination::Logical(0x1_0003)));
        assert_eq!(to(0xfd, u32::MAX, true), Some(Destination::All));
        assert_eq!(to(0x8fd, u32::MAX, true), Some(Destination::All));
        assert_eq!(to(0xfd, 0xff, true), Some(Destination::Physical(0xff)));
        assert_eq!(to(0xfd, 0xff, false), Some(Destination::All));
        assert_eq!(to(0x8fd, 0xff, false), Some(Destination::Logical(0xff)));
        assert_eq!(to(0x4_00fd, 7, true), Some(Destination::Sender));
        assert_eq!(to(0x8_00fd, 7, true), Some(Destination::All));
        assert_eq!(to(0xc_00fd, 7, true), Some(Destination::Others));
        assert_eq!(send(0x4500, 1).map(|m| m.delivery), Some(Delivery::Init));
        assert_eq!(send(0xc500, 1).map(|m| m.delivery), Some(Delivery::Init));
        assert_eq!(send(0x8500, 1), None, "INIT level de-assert");
        assert_eq!(send(0x4606, 1).map(|m| (m.delivery, m.vector)), Some((Delivery::Startup, 6)));
        assert_eq!(send(0x200, 1), None, "SMI");
    }
}
