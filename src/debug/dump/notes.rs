//! The notes of a dump: registers of the CPUs, and what the kernel says of itself.

use memchr::memmem;

use crate::arch::x86_64::state::CpuState;
use crate::mem::Ram;

const NT_PRSTATUS: u32 = 1;
/// `struct elf_prstatus` of x86-64 (the kernel's include/linux/elfcore.h): its size, and where some of it is.
const PRSTATUS: usize = 336;
const PID: usize = 32;
const REGISTERS: usize = 112;

/// The kernel's note about itself (its kernel/vmcore_info.c), as it is in its memory: a header, its name, its text.
const NAME: &[u8] = b"VMCOREINFO\0";
const TEXT: &[u8] = b"OSRELEASE=";
const HEADER: u64 = 12;
/// A page, in kernels up to now.
const MAX_TEXT: u32 = 64 << 10;
/// What is searched at once.
const PIECE: usize = 1 << 20;

/// All notes.
pub(super) fn all(ram: &Ram, cpus: &[CpuState]) -> Vec<u8> {
    let registers = (1..).zip(cpus).map(|(thread, cpu)| note(b"CORE\0", NT_PRSTATUS, &prstatus(thread, cpu)));
    let kernel = vmcoreinfo(ram).map(|text| note(NAME, 0, &text));
    registers.chain(kernel).flatten().collect()
}

fn note(name: &[u8], kind: u32, text: &[u8]) -> Vec<u8> {
    let mut note = [name.len() as u32, text.len() as u32, kind].map(u32::to_le_bytes).concat();
    for part in [name, text] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

/// Thread `thread` is a CPU.
fn prstatus(thread: u32, cpu: &CpuState) -> Vec<u8> {
    let (r, s) = (&cpu.regs, &cpu.system);
    let selector = |segment: &crate::arch::x86_64::state::Segment| u64::from(segment.selector);
    let registers = [
        r.r15,
        r.r14,
        r.r13,
        r.r12,
        r.rbp,
        r.rbx,
        r.r11,
        r.r10,
        r.r9,
        r.r8,
        r.rax,
        r.rcx,
        r.rdx,
        r.rsi,
        r.rdi,
        // orig_rax: in no system call.
        u64::MAX,
        r.rip,
        selector(&s.cs),
        r.rflags,
        r.rsp,
        selector(&s.ss),
        s.fs.base,
        s.gs.base,
        selector(&s.ds),
        selector(&s.es),
        selector(&s.fs),
        selector(&s.gs),
    ];
    let mut status = vec![0; PID];
    status.extend(thread.to_le_bytes());
    status.resize(REGISTERS, 0);
    status.extend(registers.map(u64::to_le_bytes).concat());
    status.resize(PRSTATUS, 0);
    status
}

/// The text of the kernel's own note, if there is one in RAM.
fn vmcoreinfo(ram: &Ram) -> Option<Vec<u8>> {
    let mut buffer = vec![0; PIECE + NAME.len()];
    for region in ram.regions() {
        let end = region.start + region.len;
        let mut at = region.start;
        while at < end {
            let len = buffer.len().min((end - at) as usize);
            let piece = buffer.get_mut(..len)?;
            ram.read(at, piece).ok()?;
            let found = memmem::find_iter(piece, NAME).find_map(|place| text_of(ram, at + place as u64));
            if found.is_some() {
                return found;
            }
            // The name may lie across the end of the piece.
            at += PIECE as u64;
        }
    }
    None
}

/// The text of the note whose name is at guest-physical `name`, if it is one.
fn text_of(ram: &Ram, name: u64) -> Option<Vec<u8>> {
    let mut header = [0; HEADER as usize];
    ram.read(name.checked_sub(HEADER)?, &mut header).ok()?;
    let (words, _) = header.as_chunks::<4>();
    let [name_len, text_len, kind] = words.first_chunk()?.map(u32::from_le_bytes);
    if name_len as usize != NAME.len() || kind != 0 || text_len > MAX_TEXT {
        return None;
    }
    let mut text = vec![0; text_len as usize];
    ram.read(name + NAME.len().next_multiple_of(4) as u64, &mut text).ok()?;
    text.starts_with(TEXT).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::Backing;

    #[test]
    fn registers_are_where_gdb_looks_for_them() {
        let mut cpu = CpuState::default();
        (cpu.regs.rip, cpu.regs.rsp, cpu.system.cs.selector) = (0x1234, 0x5678, 0x10);
        let status = prstatus(3, &cpu);
        assert_eq!(status.len(), PRSTATUS);
        let word = |number: usize| u64::from_le_bytes(*status[REGISTERS + 8 * number..].first_chunk().unwrap());
        assert_eq!((word(16), word(17), word(19), status[PID]), (0x1234, 0x10, 0x5678, 3));
    }

    #[test]
    fn the_kernels_note_is_found_and_no_other() {
        let ram = Ram::new(&[(0, 4 << 20)], Backing::Anonymous).unwrap();
        ram.write(0x5000, NAME).unwrap();
        assert_eq!(vmcoreinfo(&ram), None);
        let text = b"OSRELEASE=6.12.1\nPAGESIZE=4096\n";
        // Its name lies across two pieces.
        let at = PIECE as u64 - HEADER - 3;
        ram.write(at, &note(NAME, 0, text)).unwrap();
        assert_eq!(vmcoreinfo(&ram).as_deref(), Some(&text[..]));
        let all = all(&ram, &[CpuState::default(), CpuState::default()]);
        assert_eq!(all.len(), 2 * (12 + 8 + PRSTATUS) + 12 + 12 + text.len().next_multiple_of(4));
        ram.write(at + 4, &u32::MAX.to_le_bytes()).unwrap();
        assert_eq!(vmcoreinfo(&ram), None);
    }
}
