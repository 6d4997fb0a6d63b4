//! Memory types (SDM volume 3, 13.11 and 13.12): MTRRs and PAT. They are kept, checked and have no effect: all of a
//! guest's memory is write-back memory of the host.

use crate::engine::soft::apic::Refused;

/// Pairs of variable-range registers.
const VARIABLE: usize = 8;
/// MTRRcap: so many pairs, fixed ranges, write combining.
const CAPABILITIES: u64 = VARIABLE as u64 | 1 << 8 | 1 << 10;
const FIRST_VARIABLE: u32 = 0x200;
const LAST_VARIABLE: u32 = FIRST_VARIABLE + 2 * VARIABLE as u32 - 1;
/// Registers of fixed ranges: 64 KiB, two of 16 KiB, eight of 4 KiB.
const FIXED: [u32; 11] = [0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f];
const MTRR_CAP: u32 = 0xfe;
const PAT: u32 = 0x277;
const DEFAULT_TYPE: u32 = 0x2ff;
/// Default type, fixed ranges enabled, all enabled.
const DEFAULT_TYPE_BITS: u64 = 0xff | 3 << 10;
/// Masks of variable ranges: valid, and the address.
const MASK_VALID: u64 = 1 << 11;
/// What PAT is after RESET: WB, WT, UC-, UC, twice.
const PAT_RESET: u64 = 0x0007_0406_0007_0406;

/// The registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::engine::soft) struct MemoryTypes {
    pat: u64,
    default_type: u64,
    variable: [u64; 2 * VARIABLE],
    fixed: [u64; FIXED.len()],
}

impl Default for MemoryTypes {
    fn default() -> Self {
        Self { pat: PAT_RESET, default_type: 0, variable: [0; 2 * VARIABLE], fixed: [0; FIXED.len()] }
    }
}

impl MemoryTypes {
    /// Reads a register; none if it is not one of these.
    pub(super) fn read(&self, index: u32) -> Option<u64> {
        match index {
            MTRR_CAP => Some(CAPABILITIES),
            PAT => Some(self.pat),
            DEFAULT_TYPE => Some(self.default_type),
            FIRST_VARIABLE..=LAST_VARIABLE => self.variable.get((index - FIRST_VARIABLE) as usize).copied(),
            _ => self.fixed.get(FIXED.iter().position(|fixed| *fixed == index)?).copied(),
        }
    }

    /// Writes a register; `address` are the bits that physical addresses have.
    pub(super) fn write(&mut self, index: u32, value: u64, address: u64) -> Result<(), Refused> {
        match index {
            PAT if types(value, is_pat_type) => self.pat = value,
            DEFAULT_TYPE if value & !DEFAULT_TYPE_BITS == 0 && is_type(value as u8) => self.default_type = value,
            FIRST_VARIABLE..=LAST_VARIABLE => {
                let mask = index % 2 == 1;
                let fits = if mask {
                    value & !(address & !0xfff | MASK_VALID) == 0
                } else {
                    value & !(address & !0xfff | 0xff) == 0 && is_type(value as u8)
                };
                let slot = self.variable.get_mut((index - FIRST_VARIABLE) as usize).filter(|_| fits);
                *slot.ok_or(Refused)? = value;
            }
            _ => {
                let position = FIXED.iter().position(|fixed| *fixed == index).ok_or(Refused)?;
                let slot = self.fixed.get_mut(position).filter(|_| types(value, is_type));
                *slot.ok_or(Refused)? = value;
            }
        }
        Ok(())
    }
}

/// UC, WC, WT, WP, WB.
fn is_type(value: u8) -> bool {
    matches!(value, 0 | 1 | 4 | 5 | 6)
}

/// PAT has UC- too.
fn is_pat_type(value: u8) -> bool {
    is_type(value) || value == 7
}

/// Whether all eight bytes are types.
fn types(value: u64, is: fn(u8) -> bool) -> bool {
    value.to_le_bytes().into_iter().all(is)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_kept_if_they_are_types() {
        let address = (1 << 46) - 1;
        let mut types = MemoryTypes::default();
        assert_eq!((types.read(0xfe), types.read(0x277)), (Some(0x508), Some(PAT_RESET)));
        let good = [
            (0x277, 0x0007_0406_0007_0106),
            (0x2ff, 0xc06),
            (0x200, 0x3fff_c000_0000 | 6),
            (0x201, 0x3fff_c000_0000 | 1 << 11),
            (0x20e, 0),
            (0x250, 0x0606_0606_0606_0606),
            (0x26f, 0x0504_0100_0000_0000),
        ];
        for (index, value) in good {
            assert_eq!(types.write(index, value, address), Ok(()), "{index:#x}");
            assert_eq!(types.read(index), Some(value), "{index:#x}");
        }
        let bad = [
            (0x277, 0x0207_0406_0007_0406),
            (0x2ff, 0xc07),
            (0x2ff, 0x1006),
            (0x200, 7),
            (0x200, 1 << 46 | 6),
            (0x201, 1 << 10),
            (0x250, 0x0606_0606_0606_0607),
            (0xfe, 0x508),
            (0x210, 0),
            (0x251, 0),
        ];
        for (index, value) in bad {
            let before = types.read(index);
            assert_eq!(types.write(index, value, address), Err(Refused), "{index:#x} {value:#x}");
            assert_eq!(types.read(index), before, "{index:#x}");
        }
        assert_eq!((types.read(0x210), types.read(0x25a)), (None, None));
    }
}
