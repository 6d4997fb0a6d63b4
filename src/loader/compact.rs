//! Makes a freshly unpacked ELF kernel fit for being kept and mapped: what is not loaded (symbols, relocations) goes,
//! and zeros at the end of a segment become part of its BSS, for which RAM needs no file pages.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::bytes::ZERO_PAGE;
use super::elf;
use crate::mem::PAGE;

/// Section headers in the ELF header: offset; entry size, number and index of names.
const SECTIONS: u64 = 40;
const SECTION_COUNTS: u64 = 58;
/// `p_filesz` in a program header.
const FILE_SIZE: u64 = 32;

/// Rewrites `file`, an ELF kernel that [`elf::parse`] accepts, as `image` shows it.
pub fn compact(file: &File, image: &elf::Image) -> io::Result<()> {
    let mut end = PAGE;
    for segment in &image.segments {
        let len = used(file, segment)?;
        file.write_all_at(&len.to_le_bytes(), segment.header + FILE_SIZE)?;
        end = end.max(segment.offset + len);
    }
    for note in &image.notes {
        end = end.max(note.end);
    }
    file.write_all_at(&[0; 8], SECTIONS)?;
    file.write_all_at(&[0; 6], SECTION_COUNTS)?;
    if file.metadata()?.len() > end {
        file.set_len(end)?;
    }
    Ok(())
}

/// Bytes of the segment up to its last page that is not all zeros. Whole pages can be mapped; a part of one would
/// have to be copied.
fn used(file: &File, segment: &elf::Segment) -> io::Result<u64> {
    let mut buffer = [0; PAGE as usize];
    let mut end = segment.file_len;
    while end > 0 {
        let start = (segment.offset + end - 1) / PAGE * PAGE;
        let start = start.max(segment.offset) - segment.offset;
        let page = buffer.get_mut(..(end - start) as usize).unwrap_or_default();
        file.read_exact_at(page, segment.offset + start)?;
        if Some(&*page) != ZERO_PAGE.get(..page.len()) {
            break;
        }
        end = start;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{self, LINUX_NOTES, load, notes};
    use super::*;

    #[test]
    fn only_what_is_loaded_stays() {
        let mut data = vec![7; 5000];
        data.resize(300_000, 0);
        let pieces = [load(0x10_0000, &[1; 100], 0), load(0x20_0000, &data, 500), notes(LINUX_NOTES)];
        let file = fixtures::file(&fixtures::elf(0x10_0000, &pieces));
        let before = elf::parse(&file).unwrap();
        compact(&file, &before).unwrap();
        let after = elf::parse(&file).unwrap();
        assert_eq!((after.entry, &after.version, after.pvh), (before.entry, &before.version, before.pvh));
        assert_eq!(after.segments[0], before.segments[0]);
        let (was, is) = (before.segments[1], after.segments[1]);
        assert_eq!((is.start, is.memory_len, is.offset), (was.start, was.memory_len, was.offset));
        assert_eq!((was.file_len, is.file_len), (300_000, 8192));

        let pieces = [load(0x10_0000, &[1; 100], 0), load(0x20_0000, &data, 500)];
        let file = fixtures::file(&fixtures::elf(0x10_0000, &pieces));
        compact(&file, &elf::parse(&file).unwrap()).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 0x2000 + 8192);
    }

    #[test]
    fn a_segment_of_zeros_needs_no_file() {
        let file =
            fixtures::file(&fixtures::elf(0x10_0000, &[load(0x10_0000, &[1], 0), load(0x20_0000, &[0; 9000], 0)]));
        compact(&file, &elf::parse(&file).unwrap()).unwrap();
        let image = elf::parse(&file).unwrap();
        assert_eq!((image.segments[1].file_len, image.segments[1].memory_len), (0, 9000));
    }
}
