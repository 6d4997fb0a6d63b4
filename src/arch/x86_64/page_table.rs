//! The shape of page tables (SDM volume 3, chapter 4): levels of each paging mode, bits of entries, and the bits of control
//! registers that choose the mode. Plain data, for whoever walks them.

/// CR0: paging.
pub const CR0_PG: u64 = 1 << 31;
/// CR4: entries of 8 bytes outside of IA-32e mode.
pub const CR4_PAE: u64 = 1 << 5;
/// CR4: five levels in IA-32e mode.
pub const CR4_LA57: u64 = 1 << 12;
/// EFER: IA-32e mode.
pub const EFER_LMA: u64 = 1 << 10;

/// Entry: it leads somewhere.
pub const PRESENT: u64 = 1;
/// Entry: it maps a page itself, where its level may.
pub const LARGE: u64 = 1 << 7;
/// Entry: the guest-physical address.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// One level of a paging mode.
#[derive(Debug, Clone, Copy)]
pub struct Level {
    /// Lowest bit of its index in a linear address.
    pub shift: u32,
    /// How many bits the index has.
    pub index_bits: u32,
    /// Its entries may map pages themselves.
    pub large: bool,
}

const fn level(shift: u32, index_bits: u32, large: bool) -> Level {
    Level { shift, index_bits, large }
}

/// IA-32e mode with four levels.
pub const FOUR_LEVEL: &[Level] = &[level(39, 9, false), level(30, 9, true), level(21, 9, true), level(12, 9, false)];
/// IA-32e mode with five levels.
pub const FIVE_LEVEL: &[Level] =
    &[level(48, 9, false), level(39, 9, false), level(30, 9, true), level(21, 9, true), level(12, 9, false)];
/// PAE paging outside of IA-32e mode.
pub const PAE: &[Level] = &[level(30, 2, false), level(21, 9, true), level(12, 9, false)];
/// 32-bit paging.
pub const LEGACY: &[Level] = &[level(22, 10, true), level(12, 10, false)];
