//! Kernels of a few machine instructions.

/// Where the code is.
pub const AT: u32 = 0x10_0000;

/// An ELF kernel with a PVH entry (`code` runs in 32-bit protected mode without paging).
pub fn kernel(code: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    for word in [4u32, 4, 18] {
        note.extend(word.to_le_bytes()); // XEN_ELFNOTE_PHYS32_ENTRY
    }
    note.extend(b"Xen\0");
    note.extend(AT.to_le_bytes());

    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    let mut word = |value: u64, len: usize| elf.extend(&value.to_le_bytes()[..len]);
    for (value, len) in [(2, 2), (62, 2), (1, 4), (AT.into(), 8), (64, 8), (0, 8), (0, 4), (64, 2), (56, 2), (2, 2)] {
        word(value, len);
    }
    (0..3).for_each(|_| word(0, 2));
    for (kind, offset, at, len) in [(1, 0x1000, AT.into(), code.len() as u64), (4, 0x200, 0, note.len() as u64)] {
        [kind, 7].into_iter().for_each(|value| word(value, 4));
        for value in [offset, at, at, len, len, 4096] {
            word(value, 8);
        }
    }
    elf.resize(0x200, 0);
    elf.extend(note);
    elf.resize(0x1000, 0);
    elf.extend(code);
    elf
}
