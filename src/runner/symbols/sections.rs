//! Debug information of an ELF file: read, unpacked and, for modules, relocated. Nothing in the file is trusted.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use gimli::SectionId;
use object::read::{CompressionFormat, ReadCache, Relocation, RelocationTarget, SectionIndex};
use object::{Object, ObjectKind, ObjectSection, ObjectSymbol, RelocationKind, SectionKind};

/// Bytes that one section unpacks to at most.
const LIMIT: u64 = 4 << 30;
/// Between the sections of a module, which have no addresses yet.
const GAP: u64 = 1 << 16;

/// An ELF file, of which only what is needed is read.
pub(super) type Elf<'a> = object::File<'a, &'a ReadCache<&'a File>>;

/// What lines and functions are made from; the rest, such as places of variables, is large and not needed.
fn is_needed(id: SectionId) -> bool {
    use SectionId::*;
    matches!(
        id,
        DebugAbbrev
            | DebugAddr
            | DebugAranges
            | DebugInfo
            | DebugLine
            | DebugLineStr
            | DebugRanges
            | DebugRngLists
            | DebugStr
            | DebugStrOffsets
            | DebugTypes
    )
}

/// Addresses for the sections with code of a relocatable file, which all begin at 0 in it.
pub(super) fn bases(elf: &Elf<'_>) -> HashMap<SectionIndex, u64> {
    let mut next = GAP;
    let mut place = |size: u64| {
        let base = next;
        next = next.saturating_add(size).next_multiple_of(GAP).saturating_add(GAP);
        base
    };
    let code =
        elf.sections().filter(|section| elf.kind() == ObjectKind::Relocatable && section.kind() == SectionKind::Text);
    code.map(|section| (section.index(), place(section.size().min(LIMIT)))).collect()
}

/// The content of a section with debug information; nothing if there is none or if it is not needed.
pub(super) fn read(
    elf: &Elf<'_>,
    file: &File,
    id: SectionId,
    bases: &HashMap<SectionIndex, u64>,
) -> io::Result<Vec<u8>> {
    let Some(section) = elf.section_by_name(id.name()).filter(|_| is_needed(id)) else { return Ok(Vec::new()) };
    let range = section.compressed_file_range().map_err(damaged)?;
    let end = range.offset.checked_add(range.compressed_size);
    if end.is_none_or(|end| file.metadata().map_or(true, |metadata| end > metadata.len())) {
        return Err(damaged(format!("{} ends after the file", id.name())));
    }
    let mut raw = vec![0; range.compressed_size as usize];
    file.read_exact_at(&mut raw, range.offset)?;
    let mut data = match range.format {
        CompressionFormat::None => raw,
        CompressionFormat::Zlib => unpack(flate2::read::ZlibDecoder::new(raw.as_slice()))?,
        CompressionFormat::Zstandard => unpack(zstd::Decoder::with_buffer(raw.as_slice())?)?,
        _ => return Err(damaged(format!("{} is compressed in an unknown way", id.name()))),
    };
    if elf.kind() == ObjectKind::Relocatable {
        section.relocations().for_each(|(at, relocation)| {
            let _ = relocate(elf, &mut data, at, &relocation, bases);
        });
    }
    Ok(data)
}

fn unpack(source: impl Read) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    source.take(LIMIT).read_to_end(&mut data)?;
    Ok(data)
}

fn damaged(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.to_string())
}

/// Writes the address that a reference means into the debug information; none if it is of no kind that occurs there.
fn relocate(
    elf: &Elf<'_>,
    data: &mut [u8],
    at: u64,
    relocation: &Relocation,
    bases: &HashMap<SectionIndex, u64>,
) -> Option<()> {
    let RelocationTarget::Symbol(target) = relocation.target() else { return None };
    if relocation.kind() != RelocationKind::Absolute {
        return None;
    }
    let symbol = elf.symbol_by_index(target).ok()?;
    let base = symbol.section_index().and_then(|index| bases.get(&index)).copied().unwrap_or_default();
    let value = base.wrapping_add(symbol.address()).wrapping_add_signed(relocation.addend()).to_le_bytes();
    let len = usize::from(relocation.size() / 8).min(value.len());
    let at = usize::try_from(at).ok()?;
    data.get_mut(at..at.checked_add(len)?)?.copy_from_slice(value.get(..len)?);
    Some(())
}
