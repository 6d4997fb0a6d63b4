//! Identity page tables for the first 4 GiB, with which the boot CPU enters a 64-bit kernel (Intel SDM volume 3,
//! section 4.5). Pages of 2 MiB, because not every processor has larger ones.

const TABLE: usize = 512;
/// Bytes that [`identity_4g`] takes: one page-map level 4, one pointer table, four directories.
pub const SIZE: u64 = 6 * 4096;

const PRESENT_WRITABLE: u64 = 0x3;
const LARGE: u64 = 0x80;

/// The tables as they are in memory at guest-physical `at` (page aligned); CR3 is `at`.
pub fn identity_4g(at: u64) -> Vec<u8> {
    let table = |index: u64| (at + index * 4096) | PRESENT_WRITABLE;
    let mut entries = vec![0; 2 * TABLE];
    entries[0] = table(1);
    for (i, entry) in entries[TABLE..TABLE + 4].iter_mut().enumerate() {
        *entry = table(2 + i as u64);
    }
    entries.extend((0..4 * TABLE as u64).map(|i| i << 21 | LARGE | PRESENT_WRITABLE));
    entries.iter().flat_map(|e: &u64| e.to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(tables: &[u8], base: u64, address: u64) -> u64 {
        let entry = |table: u64, index: u64| {
            let at = (table - base + index % 512 * 8) as usize;
            u64::from_le_bytes(tables[at..at + 8].try_into().unwrap())
        };
        let mut table = base;
        for shift in [39, 30] {
            let e = entry(table, address >> shift);
            assert_eq!(e & 0x83, PRESENT_WRITABLE);
            table = e & !0xfff;
        }
        let e = entry(table, address >> 21);
        assert_eq!(e & 0x83, PRESENT_WRITABLE | LARGE);
        (e & !0x1f_ffff) + (address & 0x1f_ffff)
    }

    #[test]
    fn every_address_below_4g_is_itself() {
        let tables = identity_4g(0x9000);
        assert_eq!(tables.len() as u64, SIZE);
        for address in [0, 1, 0x1f_ffff, 0x20_0000, 0x3fff_ffff, 0x4000_0000, 0xffff_ffff] {
            assert_eq!(walk(&tables, 0x9000, address), address);
        }
        assert_eq!(tables[8..16], [0; 8], "nothing above 512 GiB");
    }
}
