//! Made-up modules and packages for tests.

/// A kernel module with this `.modinfo` and nothing else.
pub fn module(modinfo: &str) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut file = vec![0; 64];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let info = (64, modinfo.len());
    file.extend(modinfo.as_bytes());
    let strings = (file.len(), names.len());
    file.extend(names);
    file.resize(file.len().next_multiple_of(8), 0);
    let table = file.len();
    for (name, (start, len)) in [(0u32, (0, 0)), (1, info), (10, strings)] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[24..32].copy_from_slice(&(start as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        file.extend(header);
    }
    let mut put =
        |at: usize, value: u64, size: usize| file[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    put(16, 1, 2);
    put(18, 62, 2);
    put(40, table as u64, 8);
    put(58, 64, 2);
    put(60, 3, 2);
    put(62, 2, 2);
    file
}

/// What modules of [`RELEASE`] are: with these dependencies.
pub fn module_of(release: &str, depends: &str, more: &str) -> Vec<u8> {
    module(&format!("depends={depends}\0{more}vermagic={release} SMP mod_unload \0"))
}
