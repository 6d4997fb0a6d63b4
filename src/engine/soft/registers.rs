//! The general registers, addressed by byte offset, so that AL, AH, AX, EAX and RAX are one array seen differently.
//!
//! Two more slots make effective addresses uniform: one that is always zero (no base, no index) and one that holds the
//! address of the block being executed (RIP-relative operands).

// UNSAFETY: reads and writes parts of the array by byte offsets that `RegAt` keeps within it.
#![expect(unsafe_code)]

use super::width::Width;

/// Slots: 16 general registers, zero, instruction pointer of the block.
const SLOTS: usize = 18;

/// Where a register, or a part of one, starts in the file: always so that eight bytes from the register's slot exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RegAt(u8);

impl RegAt {
    /// Reads as zero; never written.
    pub(super) const ZERO: Self = Self(16 * 8);
    /// Address of the first instruction of the block being executed.
    pub(super) const BLOCK_IP: Self = Self(17 * 8);
    pub(super) const RAX: Self = Self::gpr(0);
    pub(super) const RCX: Self = Self::gpr(1);
    pub(super) const RDX: Self = Self::gpr(2);
    pub(super) const RBX: Self = Self::gpr(3);
    pub(super) const RSP: Self = Self::gpr(4);
    pub(super) const RBP: Self = Self::gpr(5);
    pub(super) const RSI: Self = Self::gpr(6);
    pub(super) const RDI: Self = Self::gpr(7);
    pub(super) const R11: Self = Self::gpr(11);
    /// AH: the second byte of RAX.
    pub(super) const AH: Self = Self::high(0);

    /// General register `number`, 0 to 15 in the order of the encoding (RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8..).
    pub(super) const fn gpr(number: u8) -> Self {
        Self((number & 15) * 8)
    }

    /// AH, CH, DH, BH for 0 to 3. Only for accesses of one byte.
    pub(super) const fn high(number: u8) -> Self {
        Self((number & 3) * 8 + 1)
    }
}

/// The register file of one CPU.
#[derive(Debug, Clone, Default)]
#[repr(C, align(64))]
pub(super) struct RegisterFile([u64; SLOTS]);

impl RegisterFile {
    /// Reads a register at the width of `T`.
    #[inline(always)]
    pub(super) fn get<T: Width>(&self, at: RegAt) -> T {
        debug_assert!(usize::from(at.0) + T::BYTES as usize <= SLOTS * 8);
        // SAFETY: `RegAt` is at most 17 * 8, or an odd offset used with one byte; so the access lies within the array.
        unsafe { std::ptr::from_ref(self).cast::<u8>().add(usize::from(at.0)).cast::<T>().read_unaligned() }
    }

    /// Writes a register: 32 bits clear the upper half, 8 and 16 bits leave the rest alone (SDM volume 1, 3.4.1.1).
    #[inline(always)]
    pub(super) fn set<T: Width>(&mut self, at: RegAt, value: T) {
        debug_assert!(at.0 < RegAt::ZERO.0);
        // SAFETY: as in `get`; a 32-bit register is at an offset of its slot, so eight bytes are there.
        unsafe {
            let to = std::ptr::from_mut(self).cast::<u8>().add(usize::from(at.0));
            if T::BYTES == 4 {
                to.cast::<u64>().write(value.to_u64());
            } else {
                to.cast::<T>().write_unaligned(value);
            }
        }
    }

    /// Reads a whole register.
    #[inline(always)]
    pub(super) fn get64(&self, at: RegAt) -> u64 {
        self.get(at)
    }

    /// Writes a whole register.
    #[inline(always)]
    pub(super) fn set64(&mut self, at: RegAt, value: u64) {
        self.set(at, value);
    }

    /// Address of the block being executed.
    #[inline(always)]
    pub(super) fn block_ip(&self) -> u64 {
        self.0[17]
    }

    /// A new block is executed.
    #[inline(always)]
    pub(super) fn set_block_ip(&mut self, ip: u64) {
        self.0[17] = ip;
    }

    /// The sixteen general registers in the order of the encoding.
    pub(super) fn general(&self) -> &[u64; 16] {
        self.0.first_chunk().unwrap_or(&[0; 16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_registers() {
        let mut file = RegisterFile::default();
        file.set64(RegAt::RAX, 0x1122_3344_5566_7788);
        assert_eq!(file.get::<u8>(RegAt::RAX), 0x88);
        assert_eq!(file.get::<u8>(RegAt::AH), 0x77);
        file.set::<u8>(RegAt::AH, 0xff);
        file.set::<u16>(RegAt::RCX, 0xffff);
        assert_eq!(file.get64(RegAt::RAX), 0x1122_3344_5566_ff88);
        file.set::<u32>(RegAt::RAX, 1);
        assert_eq!(file.get64(RegAt::RAX), 1);
        assert_eq!(file.get64(RegAt::RCX), 0xffff);
        assert_eq!(file.get64(RegAt::ZERO), 0);
    }
}
