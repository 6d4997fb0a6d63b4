//! A CPU over a little RAM, for tests: 64-bit mode at privilege 0, linear addresses equal to physical ones.

use std::sync::Arc;

use super::code::features::Features;
use super::code::op::Seg;
use super::cpu::{CodeSize, Cpu, cr0, cr4, efer};
use super::shared::Shared;
use super::vector::Thunks;
use crate::arch::x86_64::state::Segment;
use crate::engine::Deterministic;
use crate::mem::{Backing, Ram};

/// RAM of the machine.
pub(super) const RAM_SIZE: u64 = 4 << 20;
/// Page tables: the first GiB in 2 MiB pages, user and supervisor, writable.
pub(super) const PAGE_TABLES: u64 = 0x30_0000;
/// Where code goes.
pub(super) const CODE: u64 = 0x1_0000;
/// Top of the stack.
pub(super) const STACK: u64 = 0x2_0000;

/// A CPU that is about to execute `code` at [`CODE`].
pub(super) fn cpu(code: &[u8]) -> Cpu {
    cpu_of(&ram(code), 1)
}

/// RAM with page tables and `code`.
pub(super) fn ram(code: &[u8]) -> Ram {
    let ram = Ram::new(&[(0, RAM_SIZE)], Backing::Anonymous).unwrap();
    let quad = |at: u64, value: u64| ram.write(at, &value.to_le_bytes()).unwrap();
    quad(PAGE_TABLES, (PAGE_TABLES + 0x1000) | 7);
    quad(PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 7);
    (0..512).for_each(|page| quad(PAGE_TABLES + 0x2000 + page * 8, page << 21 | 0x87));
    ram.write(CODE, code).unwrap();
    ram
}

/// CPU 0 of `cpus` over `ram`.
pub(super) fn cpu_of(ram: &Ram, cpus: u32) -> Cpu {
    with(Arc::new(Shared::new(ram, cpus, None)))
}

/// The only CPU over `ram`, of a run that can be repeated.
pub(super) fn deterministic(ram: &Ram, how: Deterministic) -> Cpu {
    with(Arc::new(Shared::new(ram, 1, Some(how))))
}

fn with(shared: Arc<Shared>) -> Cpu {
    let mut cpu = Cpu::new(0, shared, Arc::new(Thunks::new().unwrap()));
    cpu.features = Features::all();
    let segment =
        |kind, l| Segment { limit: u32::MAX, kind, present: true, s: true, g: true, l, db: !l, ..Segment::default() };
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        cpu.set_segment(seg, Segment { selector: 16, ..segment(3, false) });
    }
    cpu.set_segment(Seg::Cs, Segment { selector: 8, ..segment(11, true) });
    cpu.system.cr0 = cr0::PG | cr0::PE | cr0::ET | cr0::NE;
    cpu.system.cr3 = PAGE_TABLES;
    cpu.system.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT;
    cpu.system.efer = efer::LMA | efer::LME | efer::NXE | efer::SCE;
    cpu.rip = CODE;
    cpu.regs.set64(super::registers::RegAt::RSP, STACK);
    cpu.mode_changed();
    assert_eq!(cpu.code_size, CodeSize::Bits64);
    cpu
}
