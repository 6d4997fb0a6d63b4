//! A core dump of a stopped machine: an ELF file that `crash` and gdb open with the kernel's `vmlinux` (System V ABI,
//! chapter 4 and its x86-64 supplement; the kernel's Documentation/admin-guide/kdump).
//!
//! - A PT_LOAD for each region of RAM, at its physical address and at its place in the kernel's direct map.
//! - One for each other run of kernel addresses that the page tables lead to RAM: text, modules, stacks. They share the
//!   bytes of the regions.
//! - PT_NOTE: the registers of each CPU (NT_PRSTATUS), and the kernel's own VMCOREINFO, if it has one.
//!
//! Pages of zeros are holes of the file.

mod draft;
mod elf;
mod mappings;
mod notes;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

pub use self::draft::Draft;
use self::elf::{Head, Load};
use super::memory::Memory;
use crate::arch::x86_64::state::CpuState;
use crate::mem::{PAGE, Ram};

/// What is copied at once.
const PIECE: usize = 1 << 20;
const ZEROS: [u8; PAGE as usize] = [0; PAGE as usize];

/// Writes the dump of a machine with this memory and these CPUs to `path`, which appears when it is complete.
pub(super) fn write(path: &Path, memory: &Memory, cpus: &[CpuState]) -> io::Result<()> {
    let draft = Draft::new(path)?;
    write_to(draft.file(), memory, cpus, &|| true)?;
    draft.keep()
}

/// The same to a file that is empty, as long as it is `wanted`.
pub(super) fn write_to(file: &File, memory: &Memory, cpus: &[CpuState], wanted: &dyn Fn() -> bool) -> io::Result<()> {
    let ram = memory.ram();
    let notes = notes::all(ram, cpus);
    let loads = loads(ram, cpus);
    let head = Head::new(notes.len() as u64, loads.len() as u64);
    let place = |physical| head.data + offset_of(ram, physical);
    file.write_all_at(&head.bytes(&loads, place), 0)?;
    file.write_all_at(&notes, head.notes)?;
    for region in ram.regions() {
        copy(memory, (region.start, region.len), file, place(region.start), wanted)?;
    }
    // The last pages may be holes.
    file.set_len(place(u64::MAX))
}

/// Where guest-physical `at` is among all RAM: region after region.
fn offset_of(ram: &Ram, at: u64) -> u64 {
    ram.regions().map(|region| at.saturating_sub(region.start).min(region.len)).sum()
}

/// What the program headers say.
fn loads(ram: &Ram, cpus: &[CpuState]) -> Vec<Load> {
    let runs = mappings::kernel(ram, cpus);
    // Where there is no direct map yet, physical addresses alone count.
    let base = mappings::direct_map(&runs).unwrap_or(0);
    let region = |region: crate::mem::Region| Load {
        linear: base.wrapping_add(region.start),
        physical: region.start,
        len: region.len,
    };
    let regions: Vec<_> = ram.regions().map(region).collect();
    let others = runs.into_iter().filter(|run| run.linear.wrapping_sub(run.physical) != base);
    let room = elf::MAX_LOADS.saturating_sub(regions.len());
    regions.iter().copied().chain(others.take(room)).collect()
}

/// Copies RAM, `len` bytes from guest-physical `from` on, to `at` of `file`; pages of zeros are left out.
fn copy(memory: &Memory, (from, len): (u64, u64), file: &File, at: u64, wanted: &dyn Fn() -> bool) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut done = 0;
    while done < len {
        if !wanted() {
            return Err(io::Error::other("nobody wants it any more"));
        }
        let part = buffer.len().min((len - done) as usize);
        let Some(piece) = buffer.get_mut(..part) else { break };
        memory.read_physical(from + done, piece).map_err(io::Error::other)?;
        for run in data_runs(piece) {
            let place = at + done + run.start as u64;
            file.write_all_at(piece.get(run).unwrap_or_default(), place)?;
        }
        done += part as u64;
    }
    Ok(())
}

/// Runs of pages that are not all zeros.
fn data_runs(piece: &[u8]) -> Vec<Range<usize>> {
    let mut runs: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    for page in piece.chunks(ZEROS.len()) {
        if ZEROS.get(..page.len()) != Some(page) {
            match runs.last_mut().filter(|run| run.end == at) {
                Some(run) => run.end += page.len(),
                None => runs.push(at..at + page.len()),
            }
        }
        at += page.len();
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::state::SystemRegisters;
    use crate::mem::Backing;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn zeros_are_left_out() {
        let page = ZEROS.len();
        let mut piece = vec![0; 4 * page + 10];
        (piece[page], piece[3 * page - 1], piece[4 * page + 3]) = (1, 1, 1);
        assert_eq!(data_runs(&piece), [page..3 * page, 4 * page..4 * page + 10]);
    }

    #[test]
    fn a_dump_holds_ram_at_its_addresses() {
        use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
        let ram = Ram::new(&[(0, 1 << 20), (4 << 20, 8 << 20)], Backing::Anonymous).unwrap();
        // Text at ffffffff81000000h is at physical 500000h; 8 MiB direct map from ffff888000000000h on.
        let entries = [
            (0x1ff8, 0x2003),
            (0x1888, 0x4003),
            (0x2ff0, 0x3003),
            (0x3040, 0x40_0083),
            (0x4000, 0x5003),
            (0x5000, 0x83),
            (0x5008, 0x20_0083),
            (0x5010, 0x40_0083),
            (0x5018, 0x60_0083),
        ];
        for (at, entry) in entries {
            ram.write(at, &u64::to_le_bytes(entry)).unwrap();
        }
        ram.write(0x50_0000, b"text").unwrap();
        let system =
            SystemRegisters { cr0: 0x8000_0001, cr3: 0x1000, cr4: 0x20, efer: 0x500, ..SystemRegisters::default() };
        let mut cpu = CpuState { system, ..CpuState::default() };
        cpu.regs.rip = 0xffff_ffff_8110_0000;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("core");
        let memory = Memory::new(ram);
        write(&path, &memory, &[cpu.clone(), cpu]).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "no draft is left");
        let meta = path.metadata().unwrap();
        assert!(meta.len() > 9 << 20 && meta.blocks() * 512 < 1 << 20 && meta.mode() & 0o777 == 0o600);
        let data = std::fs::read(&path).unwrap();
        let file = ElfFile64::<object::LittleEndian>::parse(&*data).unwrap();
        let little = object::LittleEndian;
        assert_eq!(file.elf_header().e_type(little), object::elf::ET_CORE);
        let loads: Vec<_> = file
            .elf_program_headers()
            .iter()
            .filter(|header| header.p_type(little) == object::elf::PT_LOAD)
            .map(|header| (header.p_vaddr(little), header.p_paddr(little), header.p_filesz(little)))
            .collect();
        assert_eq!(
            loads,
            [
                (0xffff_8880_0000_0000, 0, 1 << 20),
                (0xffff_8880_0040_0000, 4 << 20, 8 << 20),
                (0xffff_ffff_8100_0000, 4 << 20, 2 << 20),
            ]
        );
        let text = file.elf_program_headers()[3].data(little, &*data).unwrap();
        assert_eq!(&text[0x10_0000..0x10_0004], b"text");
        assert!(write(&dir.path().join("none/core"), &memory, &[]).is_err());
    }
}
