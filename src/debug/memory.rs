//! Guest memory as a debugger sees it: by linear addresses of one CPU, whatever the page tables allow, and without the
//! INT3 instructions that breakpoints have put there.

use std::collections::BTreeMap;

use crate::arch::x86_64::state::SystemRegisters;
use crate::arch::x86_64::walk::AddressSpace;
use crate::mem::{self, Ram};

/// The instruction that a breakpoint is where the engine needs one.
const INT3: u8 = 0xcc;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Memory {
    ram: Ram,
    /// What was at each guest-physical address that now holds [`INT3`].
    planted: BTreeMap<u64, u8>,
}

impl Memory {
    pub(super) fn new(ram: Ram) -> Self {
        Self { ram, planted: BTreeMap::new() }
    }

    pub(super) fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Pieces of one page each that `len` bytes from linear `at` are made of: guest-physical address and length. Ends
    /// before the first that is not mapped to RAM.
    fn pieces(&self, system: &SystemRegisters, at: u64, len: usize) -> Vec<(u64, usize)> {
        let space = AddressSpace::of(system);
        let (mut at, mut left, mut pieces) = (at, len, Vec::new());
        let entry = |at| {
            let mut entry = [0; 8];
            self.ram.read(at, &mut entry).ok().map(|()| u64::from_le_bytes(entry))
        };
        while left > 0 {
            let Some(place) = space.translate(at, entry) else { break };
            // A large page may lead beyond the end of a region: each 4 KiB are looked at.
            let part = left.min((place.left - 1) as usize % 4096 + 1);
            if self.ram.host_address(place.physical, part as u64).is_err() {
                break;
            }
            pieces.push((place.physical, part));
            left -= part;
            at = at.wrapping_add(part as u64);
        }
        pieces
    }

    /// Reads RAM from guest-physical `at` on.
    pub(super) fn read_physical(&self, at: u64, data: &mut [u8]) -> Result<(), mem::Error> {
        self.ram.read(at, data)?;
        for (planted, original) in self.planted.range(at..at + data.len() as u64) {
            data.iter_mut().skip((planted - at) as usize).take(1).for_each(|byte| *byte = *original);
        }
        Ok(())
    }

    /// Reads from linear `at` on; the number of bytes that can be read.
    pub(super) fn read(&self, system: &SystemRegisters, at: u64, data: &mut [u8]) -> usize {
        let mut done = 0;
        for (physical, len) in self.pieces(system, at, data.len()) {
            let Some(part) = data.get_mut(done..done + len) else { break };
            if self.read_physical(physical, part).is_err() {
                break;
            }
            done += len;
        }
        done
    }

    /// Writes all of `data` to linear `at`, or nothing if not all of it can be written.
    pub(super) fn write(&mut self, system: &SystemRegisters, at: u64, data: &[u8]) -> bool {
        let pieces = self.pieces(system, at, data.len());
        if pieces.iter().map(|(_, len)| len).sum::<usize>() < data.len() {
            return false;
        }
        let mut rest = data;
        pieces.into_iter().all(|(physical, len)| {
            let (part, after) = rest.split_at(len);
            rest = after;
            let mut bytes = part.to_vec();
            for (at, original) in self.planted.range_mut(physical..physical + len as u64) {
                if let Some(byte) = bytes.get_mut((*at - physical) as usize) {
                    *original = std::mem::replace(byte, INT3);
                }
            }
            self.ram.write(physical, &bytes).is_ok()
        })
    }

    /// Puts [`INT3`] at linear `at`; its guest-physical address, none if it is not mapped.
    pub(super) fn plant(&mut self, system: &SystemRegisters, at: u64) -> Option<u64> {
        let (physical, _) = self.pieces(system, at, 1).pop()?;
        let mut original = [0];
        self.ram.read(physical, &mut original).ok()?;
        let [original] = original;
        if !self.planted.contains_key(&physical) {
            self.ram.write(physical, &[INT3]).ok()?;
            self.planted.insert(physical, original);
        }
        Some(physical)
    }

    /// Puts back what was at guest-physical `at`, unless the guest has written something else meanwhile.
    pub(super) fn unplant(&mut self, at: u64) {
        let Some(original) = self.planted.remove(&at) else { return };
        let mut now = [0];
        if self.ram.read(at, &mut now).is_ok() && now == [INT3] {
            // It could be read just now.
            let _ = self.ram.write(at, &[original]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::paging::identity_4g;
    use crate::mem::Backing;

    fn memory() -> (Memory, SystemRegisters) {
        let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
        ram.write(0x8000, &identity_4g(0x8000)).unwrap();
        let system =
            SystemRegisters { cr0: 0x8000_0001, cr3: 0x8000, cr4: 0x20, efer: 0x500, ..SystemRegisters::default() };
        (Memory::new(ram), system)
    }

    #[test]
    fn what_is_no_ram_is_neither_read_nor_written() {
        let (mut memory, system) = memory();
        assert!(memory.write(&system, 0x2_0ffe, &[1, 2, 3, 4]));
        let mut data = [0; 4];
        assert_eq!((memory.read(&system, 0x2_0ffe, &mut data), data), (4, [1, 2, 3, 4]));
        assert!(!memory.write(&system, 0xf_fffe, &[9; 4]), "beyond the end of RAM");
        assert_eq!((memory.read(&system, 0xf_fffe, &mut data), data), (2, [0, 0, 3, 4]));
        assert_eq!(memory.read(&system, 0x1_0000_0000, &mut data), 0, "not mapped");
        assert_eq!(memory.read(&system, u64::MAX, &mut data), 0);
    }

    #[test]
    fn breakpoints_are_not_seen() {
        let (mut memory, system) = memory();
        assert!(memory.write(&system, 0x2_0000, &[0x55, 0x56]));
        assert_eq!(memory.plant(&system, 0x1_0000_0000), None);
        let at = memory.plant(&system, 0x2_0001).unwrap();
        let mut raw = [0; 2];
        memory.ram.read(0x2_0000, &mut raw).unwrap();
        assert_eq!((at, raw), (0x2_0001, [0x55, INT3]));
        assert!(memory.write(&system, 0x2_0000, &[0x65, 0x66]));
        let mut seen = [0; 2];
        memory.ram.read(0x2_0000, &mut raw).unwrap();
        memory.read(&system, 0x2_0000, &mut seen);
        assert_eq!((raw, seen), ([0x65, INT3], [0x65, 0x66]));
        memory.read_physical(0x2_0000, &mut seen).unwrap();
        assert_eq!(seen, [0x65, 0x66], "in dumps");
        memory.unplant(at);
        memory.ram.read(0x2_0000, &mut raw).unwrap();
        assert_eq!(raw, [0x65, 0x66]);
        memory.plant(&system, 0x2_0001).unwrap();
        memory.ram.write(0x2_0001, &[0x90]).unwrap();
        memory.unplant(at);
        memory.ram.read(0x2_0000, &mut raw).unwrap();
        assert_eq!(raw, [0x65, 0x90], "the guest's own code stays");
    }
}
