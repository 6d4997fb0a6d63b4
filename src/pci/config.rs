//! Configuration space of a function: header type 0, capabilities, BARs (PCI 3.0 section 6.1).
//!
//! The bytes live on a register page; a mask says which bits the guest may write. Sizing a BAR needs no code: the
//! low bits of its address are simply not writable.

use std::ops::Range;

use crate::host::register_page::RegisterPage;

/// Registers of the header (section 6.1) and their bits.
pub mod reg {
    /// Vendor ID, device ID.
    pub const VENDOR: usize = 0x00;
    /// Command register.
    pub const COMMAND: usize = 0x04;
    /// Status register.
    pub const STATUS: usize = 0x06;
    /// Revision, then three bytes of class code.
    pub const REVISION: usize = 0x08;
    /// First of six base address registers.
    pub const BAR0: usize = 0x10;
    /// Subsystem vendor ID, subsystem ID.
    pub const SUBSYSTEM: usize = 0x2c;
    /// Offset of the first capability.
    pub const CAPABILITIES: usize = 0x34;
    /// Interrupt line: a scratch byte of the system software.
    pub const INTERRUPT_LINE: usize = 0x3c;
}

/// COMMAND: answers memory accesses; bus master; interrupt disable; the other bits that software may keep there
/// (parity, SERR#).
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 6 | 1 << 8 | 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;
/// End of the part of configuration space that has registers.
const END: usize = 256;
const FIRST_CAPABILITY: usize = 0x40;

/// What a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor and device ID.
    pub id: (u16, u16),
    /// Class, subclass, programming interface: `0x020000` is an Ethernet controller.
    pub class: u32,
    /// Revision.
    pub revision: u8,
    /// Subsystem vendor and subsystem ID.
    pub subsystem: (u16, u16),
}

/// Configuration space of one function.
#[derive(Debug)]
pub struct ConfigSpace {
    page: RegisterPage,
    writable: [u8; END],
    next: usize,
    last_link: usize,
    initial: Vec<(usize, [u8; 4])>,
}

impl ConfigSpace {
    /// A header without capabilities and BARs, on `page`, which must be zeroed.
    pub fn new(page: RegisterPage, identity: &Identity) -> Self {
        let mut space = Self {
            page,
            writable: [0; END],
            next: FIRST_CAPABILITY,
            last_link: reg::CAPABILITIES,
            initial: Vec::new(),
        };
        let pair = |(low, high): (u16, u16)| (u32::from(high) << 16 | u32::from(low)).to_le_bytes();
        space.page.store(reg::VENDOR, &pair(identity.id));
        space.page.store(reg::REVISION, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        space.page.store(reg::SUBSYSTEM, &pair(identity.subsystem));
        space.allow(reg::COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        space.allow(reg::INTERRUPT_LINE, &[0xff]);
        space
    }

    /// The bytes, for reading.
    pub fn page(&self) -> &RegisterPage {
        &self.page
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        let room = self.writable.get_mut(offset..).unwrap_or_default();
        room.iter_mut().zip(mask).for_each(|(to, from)| *to = *from);
    }

    /// Adds a capability: its ID, the bytes after the link, and which of them the guest may write. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next;
        debug_assert!(at + 2 + body.len() <= END, "too many capabilities");
        self.page.store(at, &[id, 0]);
        self.page.store(at + 2, body);
        self.allow(at + 2, writable);
        self.page.store(self.last_link, &[at as u8]);
        self.page.store(reg::STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        self.last_link = at + 1;
        self.next = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Makes BAR `index` a 32-bit memory BAR of `size` bytes (a power of two, at least 16) at `address`.
    pub fn set_bar(&mut self, index: usize, address: u32, size: u32) {
        let at = reg::BAR0 + 4 * index;
        self.page.store(at, &address.to_le_bytes());
        self.initial.push((at, address.to_le_bytes()));
        self.allow(at, &(!size.saturating_sub(1)).to_le_bytes());
    }

    /// Where BAR `index` is, if the function answers memory accesses now.
    pub fn bar(&self, index: usize) -> Option<u64> {
        let enabled = self.page.load_u16(reg::COMMAND) & COMMAND_MEMORY != 0;
        enabled.then(|| u64::from(self.page.load_u32(reg::BAR0 + 4 * index)))
    }

    /// The guest writes. Returns the range that it may have changed. Calls must not overlap in time.
    pub fn write(&self, offset: usize, data: &[u8]) -> Range<usize> {
        let end = offset.saturating_add(data.len());
        let masks = self.writable.get(offset.min(END)..end.min(END)).unwrap_or_default();
        let mut bytes = [0; 8];
        let Some(bytes) = bytes.get_mut(..masks.len().min(data.len())) else { return 0..0 };
        self.page.load(offset, bytes);
        for ((byte, mask), new) in bytes.iter_mut().zip(masks).zip(data) {
            *byte = *byte & !mask | new & mask;
        }
        self.page.store(offset, bytes);
        offset..end
    }

    /// Back to the state after power-on: whatever the guest may write is zero, but BARs are as they were placed.
    pub fn reset(&self) {
        for (offset, mask) in self.writable.iter().enumerate().filter(|(_, mask)| **mask != 0) {
            let mut byte = [0];
            self.page.load(offset, &mut byte);
            self.page.store(offset, &byte.map(|b| b & !mask));
        }
        for (at, address) in &self.initial {
            self.page.store(*at, address);
        }
    }
}

/// Whether two ranges share a byte.
pub fn touches(a: &Range<usize>, b: Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let identity = Identity { id: (0x1af4, 0x1042), class: 0x01_0000, revision: 1, subsystem: (0x1af4, 0x42) };
        ConfigSpace::new(RegisterPage::alone().unwrap(), &identity)
    }

    #[test]
    fn bars_are_sized_by_writing_ones_and_decode_when_enabled() {
        let mut space = space();
        space.set_bar(0, 0xc100_0000, 0x2000);
        assert_eq!(space.bar(0), None);
        space.write(reg::BAR0, &[0xff; 4]);
        assert_eq!(space.page().load_u32(reg::BAR0), 0xffff_e000);
        space.write(reg::BAR0 + 4, &[0xff; 4]);
        assert_eq!(space.page().load_u32(reg::BAR0 + 4), 0);
        space.write(reg::BAR0, &0xc123_4567u32.to_le_bytes());
        space.write(reg::COMMAND, &[0xff, 0xff]);
        assert_eq!(space.bar(0), Some(0xc123_4000));
        assert_eq!(space.page().load_u16(reg::COMMAND), COMMAND_WRITABLE);
        space.reset();
        assert_eq!((space.bar(0), space.page().load_u32(reg::BAR0)), (None, 0xc100_0000));
    }

    #[test]
    fn capabilities_form_a_list_and_identity_is_read_only() {
        let mut space = space();
        let first = space.add_capability(9, &[1, 2, 3], &[0, 0xff]);
        let second = space.add_capability(0x11, &[4; 10], &[]);
        let mut byte = [0];
        space.page().load(reg::CAPABILITIES, &mut byte);
        assert_eq!(usize::from(byte[0]), first);
        space.page().load(first + 1, &mut byte);
        assert_eq!((usize::from(byte[0]), second % 4), (second, 0));
        for offset in 0..300 {
            space.write(offset, &[0x5a; 8]);
        }
        assert_eq!(space.page().load_u32(reg::VENDOR), 0x1042_1af4);
        let mut body = [0; 5];
        space.page().load(first, &mut body);
        assert_eq!(body, [9, second as u8, 1, 0x5a, 3]);
        space.write(usize::MAX, &[1, 2]);
    }
}
