//! The descriptor table that the boot CPU starts with (Intel SDM volume 3, section 3.4.5). The selectors are those
//! of the Linux boot protocol (Documentation/arch/x86/boot.rst, "64-bit boot protocol"); plain data, written by
//! the loader.

use super::state::Segment;

/// 32-bit code, for the PVH entry.
pub const CODE32: Segment = flat(0x08, 0xb, true, false);
/// 64-bit code.
pub const CODE64: Segment = flat(0x10, 0xb, false, true);
/// Data and stack.
pub const DATA: Segment = flat(0x18, 0x3, true, false);
/// A task state segment: processors insist on one though nothing uses it. Busy, 32 or 64 bits by CPU mode.
pub const TASK: Segment = Segment {
    base: 0,
    limit: 0x67,
    selector: 0x20,
    kind: 0xb,
    present: true,
    dpl: 0,
    db: false,
    s: false,
    l: false,
    g: false,
    avl: false,
    unusable: false,
};

/// Number of 8-byte entries; the task descriptor takes two.
pub const ENTRIES: usize = 6;

const fn flat(selector: u16, kind: u8, db: bool, l: bool) -> Segment {
    Segment {
        base: 0,
        limit: u32::MAX,
        selector,
        kind,
        present: true,
        dpl: 0,
        db,
        s: true,
        l,
        g: true,
        avl: false,
        unusable: false,
    }
}

/// The table as it is in memory.
pub fn table() -> [u64; ENTRIES] {
    [0, descriptor(&CODE32), descriptor(&CODE64), descriptor(&DATA), descriptor(&TASK), TASK.base >> 32]
}

/// A segment descriptor as it is in memory; the upper half of a system descriptor's base is not part of it.
pub fn descriptor(s: &Segment) -> u64 {
    let limit = u64::from(if s.g { s.limit >> 12 } else { s.limit });
    let bit = |value: bool, at: u32| u64::from(value) << at;
    (limit & 0xffff)
        | (s.base & 0xff_ffff) << 16
        | u64::from(s.kind & 0xf) << 40
        | bit(s.s, 44)
        | u64::from(s.dpl & 3) << 45
        | bit(s.present, 47)
        | (limit >> 16 & 0xf) << 48
        | bit(s.avl, 52)
        | bit(s.l, 53)
        | bit(s.db, 54)
        | bit(s.g, 55)
        | (s.base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_well_known_encoding() {
        assert_eq!(
            table(),
            [0, 0x00cf_9b00_0000_ffff, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x8b00_0000_0067, 0]
        );
        for s in [CODE32, CODE64, DATA, TASK] {
            assert_eq!(table()[usize::from(s.selector / 8)], descriptor(&s));
        }
        let placed = Segment { base: 0x1234_5678, limit: 0xf_ffff, g: false, dpl: 3, avl: true, ..DATA };
        assert_eq!(descriptor(&placed), 0x125f_f334_5678_ffff);
    }
}
