//! The bzImage format: a setup header, code that unpacks, and a compressed ELF kernel as its payload
//! (Documentation/arch/x86/boot.rst). Nothing in the file is trusted. Called by [`super::load`].

use std::fs::File;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bootparam::{LOADED_HIGH, XLF_KERNEL_64, setup_header};
use linux_loader::loader::bzimage::BzImage as Loader;
use vm_memory::{ByteValued, GuestAddress};

use super::bytes::{u16_at, u32_at};
use super::linux::{BOOT_FLAG, HEADER_MAGIC};
use crate::board::layout;
use crate::mem::Ram;

/// Where the setup header starts in the file.
const HEADER: usize = 0x1f1;
/// Where its end is: at 0x202 and the byte at 0x201.
const JUMP: usize = 0x201;
const HEADER_END: usize = 0x202;
const SECTOR: u64 = 512;
/// What `setup_sects` = 0 means.
const DEFAULT_SETUP_SECTS: u64 = 4;
/// The first protocol that tells of a 64-bit entry.
const VERSION_XLOADFLAGS: u16 = 0x020c;
/// The 64-bit entry is here in the code.
const ENTRY_64: u64 = 0x200;
/// The setup code, which the header and the version string are in, is at most this long: 64 sectors and the boot sector.
pub const HEAD: usize = 65 * 512;
/// The version string is at most this long.
const VERSION_MAX: usize = 200;

/// Why a bzImage cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not for this machine.
    #[error("not a kernel for this machine: {0}")]
    Unsuitable(&'static str),
    /// A header field contradicts the file.
    #[error("the file is damaged or truncated: {0}")]
    Damaged(&'static str),
    /// The kernel wants memory where there is none.
    #[error("the kernel wants to be at {start:#x} to {end:#x}, which is not all RAM; give the machine more memory")]
    NoRam {
        /// First address.
        start: u64,
        /// End.
        end: u64,
    },
    /// Copying the code into RAM failed.
    #[error("cannot copy the kernel into guest memory")]
    Copy(#[source] linux_loader::loader::Error),
}

/// What the setup header of a valid file says.
#[derive(Debug, Clone, PartialEq)]
pub struct BzImage {
    /// The setup header, as the kernel wants it back.
    pub header: setup_header,
    /// The compressed kernel: offset in the file and length in bytes; none before protocol 2.08.
    pub payload: Option<(u64, u64)>,
    /// Release: the first word of the version string.
    pub version: Option<String>,
}

/// Whether a file that starts with `head` is a bzImage.
pub fn is_bzimage(head: &[u8]) -> bool {
    u32_at(head, HEADER_END) == Some(HEADER_MAGIC) && u16_at(head, 0x1fe) == Some(BOOT_FLAG)
}

/// Reads the header from `head`, the first [`HEAD`] bytes of a file of `len` bytes.
pub fn parse(head: &[u8], len: u64) -> Result<BzImage, Error> {
    let header = read_header(head).ok_or(Error::Damaged("it ends within the setup header"))?;
    let (version, flags, extended_flags) = (header.version, header.loadflags, header.xloadflags);
    if flags & LOADED_HIGH == 0 {
        return Err(Error::Unsuitable("it is a zImage, which only very old boot loaders can start"));
    }
    if version < VERSION_XLOADFLAGS || extended_flags & XLF_KERNEL_64 == 0 {
        return Err(Error::Unsuitable("it has no 64-bit entry: it is a 32-bit kernel or older than Linux 3.8"));
    }
    let code = code_offset(&header);
    if code >= len {
        return Err(Error::Damaged("it ends before the kernel's code"));
    }
    let (offset, size) = (u64::from(header.payload_offset), u64::from(header.payload_length));
    let payload = (code + offset, size);
    if size > 0 && payload.0 + size > len {
        return Err(Error::Damaged("it ends within the compressed kernel"));
    }
    let version = version_string(head, header.kernel_version);
    Ok(BzImage { header, payload: (size > 0).then_some(payload), version })
}

fn read_header(head: &[u8]) -> Option<setup_header> {
    let end = HEADER_END + usize::from(*head.get(JUMP)?);
    let bytes = head.get(HEADER..end)?;
    let mut header = setup_header::default();
    // Fields that this kernel does not have stay zero, and fields that we do not know are left out.
    header.as_mut_slice().iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    Some(header)
}

fn code_offset(header: &setup_header) -> u64 {
    let sectors = match header.setup_sects {
        0 => DEFAULT_SETUP_SECTS,
        n => n.into(),
    };
    (sectors + 1) * SECTOR
}

fn version_string(head: &[u8], offset: u16) -> Option<String> {
    let text = head.get(usize::from(offset).checked_add(0x200)?..)?;
    let word = text.split(|b| !b.is_ascii_graphic()).next()?;
    (offset != 0 && !word.is_empty() && word.len() < VERSION_MAX).then(|| String::from_utf8_lossy(word).into_owned())
}

/// Copies the code that unpacks itself into `ram`; its 64-bit entry, and the end of the memory that it works in.
pub fn place(image: &BzImage, file: &mut File, ram: &Ram) -> Result<(u64, u64), Error> {
    let start = image.header.pref_address;
    let end = start.saturating_add(image.header.init_size.into());
    let no_ram = Error::NoRam { start, end };
    if start < layout::HIGH_RAM || ram.host_address(start, end - start).is_err() {
        return Err(no_ram);
    }
    let loaded = Loader::load(ram.memory(), Some(GuestAddress(start)), file, None).map_err(Error::Copy)?;
    if loaded.kernel_end > end {
        return Err(Error::Damaged("its code is larger than the memory that it asks for"));
    }
    Ok((start + ENTRY_64, end))
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{self, Packed};
    use super::*;
    use crate::mem::Backing;

    fn sample() -> Vec<u8> {
        fixtures::bzimage(&Packed { payload: b"payload".to_vec(), ..Packed::default() })
    }

    fn parsed(file: &[u8]) -> Result<BzImage, Error> {
        parse(&file[..file.len().min(HEAD)], file.len() as u64)
    }

    #[test]
    fn the_header_is_read() {
        let file = sample();
        assert!(is_bzimage(&file));
        let image = parsed(&file).unwrap();
        let (offset, len) = image.payload.unwrap();
        assert_eq!(file[offset as usize..(offset + len) as usize], *b"payload");
        assert_eq!(image.version.as_deref(), Some("6.1.0-test"));
        assert_eq!({ image.header.init_size }, 0x20_0000);
        assert_eq!({ image.header.kernel_info_offset }, 0x1234, "the last field");
    }

    /// Linux 6.12 has more than 4 KiB of setup code before it.
    #[test]
    fn the_version_may_be_far_behind_the_header() {
        let mut file = sample();
        file[0x1f1] = 31;
        file.resize(64 * 1024, 0);
        file[0x20e..0x210].copy_from_slice(&0x3a00u16.to_le_bytes());
        file[0x3c00..0x3c0b].copy_from_slice(b"6.12.1-far ");
        assert_eq!(parsed(&file).unwrap().version.as_deref(), Some("6.12.1-far"));
    }

    #[test]
    fn fields_that_the_file_lacks_are_zero() {
        let mut file = sample();
        file[JUMP] = 0x5e; // ends before init_size
        assert_eq!({ parsed(&file).unwrap().header.init_size }, 0);
        file[JUMP] = 0xff;
        parsed(&file).unwrap();
    }

    #[test]
    fn unsuitable_and_damaged_files_are_refused() {
        let patched = |at: usize, bytes: &[u8]| {
            let mut file = sample();
            file[at..at + bytes.len()].copy_from_slice(bytes);
            parsed(&file).unwrap_err().to_string()
        };
        assert!(patched(0x211, &[0]).contains("zImage"));
        assert!(patched(0x206, &[0x0b, 2]).contains("64-bit entry"));
        assert!(patched(0x236, &[0, 0]).contains("64-bit entry"));
        assert!(patched(0x1f1, &[255]).contains("before the kernel's code"));
        assert!(patched(0x248, &[0xff; 4]).contains("within the compressed kernel"));
        assert!(patched(0x24c, &[0xff; 4]).contains("within the compressed kernel"));
        let file = sample();
        assert!(parsed(&file[..0x230]).is_err());
        assert!(!is_bzimage(&file[..0x203]) && !is_bzimage(b""));
    }

    #[test]
    fn code_that_unpacks_itself_goes_to_its_preferred_address() {
        let ram = Ram::new(&[(0, 0x40_0000)], Backing::Anonymous).unwrap();
        let bytes = sample();
        let mut file = fixtures::file(&bytes);
        let image = parsed(&bytes).unwrap();
        assert_eq!(place(&image, &mut file, &ram).unwrap(), (0x10_0200, 0x30_0000));
        let mut seen = vec![0; bytes.len() - 1024];
        ram.read(0x10_0000, &mut seen).unwrap();
        assert_eq!(seen, bytes[1024..]);
        for (address, size) in [(0x30_0000, 0x20_0000), (0, 0x20_0000), (u64::MAX - 1, 0x20_0000), (0x10_0000, 16)] {
            let mut bad = image.clone();
            bad.header.pref_address = address;
            bad.header.init_size = size;
            assert!(place(&bad, &mut file, &ram).is_err(), "{address:#x} {size:#x}");
        }
    }
}
