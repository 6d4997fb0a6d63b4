//! What a kernel module says of itself: the section `.modinfo` of its ELF file, texts `key=value` that end with a zero
//! byte (linux/include/linux/module.h). Nothing in the file is trusted.

use crate::loader::bytes::{u16_at, u32_at, u64_at};
use crate::loader::elf;

const SECTION_HEADER_SIZE: usize = 64;
const CLASS_64: u8 = 2;
const TYPE_RELOCATABLE: u16 = 1;
const MACHINE_X86_64: u16 = 62;

/// What matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModInfo {
    /// Modules that must be loaded before.
    pub depends: Vec<String>,
    /// Modules, or aliases of some, that should be loaded before if there are any.
    pub before: Vec<String>,
    /// Other names.
    pub aliases: Vec<String>,
    /// Release of the kernel that it is for: the first word of vermagic.
    pub release: Option<String>,
}

/// Reads the section; none if this is no x86-64 kernel module.
pub fn parse(module: &[u8]) -> Option<ModInfo> {
    let mut info = ModInfo::default();
    for entry in section(module, b".modinfo")?.split(|&byte| byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        let Some((key, value)) = entry.split_once('=') else { continue };
        match key {
            "depends" => info.depends.extend(names(value, ',')),
            "softdep" => info.before.extend(before(value)),
            "alias" => info.aliases.push(value.to_owned()),
            "vermagic" => info.release = value.split(' ').next().map(str::to_owned),
            _ => {}
        }
    }
    Some(info)
}

fn names(list: &str, separator: char) -> impl Iterator<Item = String> {
    list.split(separator).filter(|name| !name.is_empty()).map(str::to_owned)
}

/// The modules after `pre:`, up to `post:`.
fn before(value: &str) -> Vec<String> {
    let after = value.split("pre:").skip(1);
    after.flat_map(|part| names(part.split("post:").next().unwrap_or_default(), ' ')).collect()
}

/// The content of the section called `name`.
fn section<'a>(file: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let module = file.starts_with(elf::MAGIC)
        && file.get(4) == Some(&CLASS_64)
        && u16_at(file, 16) == Some(TYPE_RELOCATABLE)
        && u16_at(file, 18) == Some(MACHINE_X86_64);
    if !module || usize::from(u16_at(file, 58)?) != SECTION_HEADER_SIZE {
        return None;
    }
    let table = usize::try_from(u64_at(file, 40)?).ok()?;
    let (count, names) = (usize::from(u16_at(file, 60)?), usize::from(u16_at(file, 62)?));
    let table = file.get(table..table.checked_add(count * SECTION_HEADER_SIZE)?)?;
    let headers = || table.chunks_exact(SECTION_HEADER_SIZE);
    let names = content(file, headers().nth(names)?)?;
    headers().find_map(|header| {
        let called = names.get(u32_at(header, 0)? as usize..)?;
        let called = called.split(|&byte| byte == 0).next()?;
        (called == name).then(|| content(file, header))?
    })
}

fn content<'a>(file: &'a [u8], header: &[u8]) -> Option<&'a [u8]> {
    let start = usize::try_from(u64_at(header, 24)?).ok()?;
    let len = usize::try_from(u64_at(header, 32)?).ok()?;
    file.get(start..start.checked_add(len)?)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::module;
    use super::*;

    #[test]
    fn what_a_module_says_is_read() {
        let text = "license=GPL\0depends=fuse,virtio_ring\0softdep=pre: crc32c xts post: never\0alias=fs-x\0\
                    vermagic=6.12.1-test SMP preempt mod_unload \0";
        let info = parse(&module(text)).unwrap();
        assert_eq!(info.depends, ["fuse", "virtio_ring"]);
        assert_eq!(info.before, ["crc32c", "xts"]);
        assert_eq!(info.aliases, ["fs-x"]);
        assert_eq!(info.release.as_deref(), Some("6.12.1-test"));
        assert_eq!(parse(&module("depends=\0")).unwrap(), ModInfo::default());
    }

    #[test]
    fn what_is_no_module_is_none() {
        let good = module("depends=x\0");
        for len in 0..good.len() {
            // A signature or nothing may follow; what the headers speak of must be there.
            let _ = parse(&good[..len]);
        }
        assert_eq!(parse(&good[..good.len() - 64]), None);
        for at in [0, 4, 16, 18, 58] {
            let mut bad = good.clone();
            bad[at] ^= 0x40;
            assert_eq!(parse(&bad), None, "byte {at}");
        }
        let mut huge = good.clone();
        huge[40..48].fill(0xff);
        assert_eq!(parse(&huge), None);
    }
}
