//! CPUs with descriptor tables over a little RAM, for the tests of this directory: linear addresses are physical ones.

use std::sync::Arc;

use crate::arch::x86_64::gdt;
use crate::arch::x86_64::level::CpuLevel;
use crate::arch::x86_64::state::{DescriptorTable, Segment};
use crate::engine::soft::code::features::Features;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::{Cpu, cr0, cr4, efer};
use crate::engine::soft::cpuid;
use crate::engine::soft::fault::Break;
use crate::engine::soft::flags::rflags;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::shared::Shared;
use crate::engine::soft::vector::Thunks;
use crate::host::cpu::HostCpu;
use crate::mem::{Backing, Ram};

const RAM_SIZE: u64 = 8 << 20;
/// Identity in 2 MiB pages for everybody, but for [`HOLE`] and [`KERNEL_ONLY`].
const PAGE_TABLES: u64 = 0x30_0000;
pub(super) const CODE: u64 = 0x1_0000;
pub(super) const STACK: u64 = 0x2_0000;
pub(super) const GDT: u64 = 0x20_0000;
pub(super) const IDT: u64 = 0x20_1000;
pub(super) const TSS: u64 = 0x20_2000;
pub(super) const KERNEL_STACK: u64 = 0x20_5000;
pub(super) const IST_STACK: u64 = 0x20_7000;
pub(super) const HANDLER: u64 = 0x1_8000;
/// Not mapped.
pub(super) const HOLE: u64 = 0x40_0000;
/// From here on, 2 MiB that only supervisors may use: GDT, IDT, TSS and their stacks.
pub(super) const KERNEL_ONLY: u64 = 0x20_0000;

/// Selectors, in the order that SYSRET wants.
pub(super) mod sel {
    pub(crate) const KERNEL_CODE: u16 = 0x08;
    pub(crate) const KERNEL_DATA: u16 = 0x10;
    pub(crate) const USER_CODE32: u16 = 0x1b;
    pub(crate) const USER_DATA: u16 = 0x23;
    pub(crate) const USER_CODE: u16 = 0x2b;
    pub(crate) const TSS: u16 = 0x30;
    pub(crate) const KERNEL_CODE32: u16 = 0x40;
    /// For tests to fill; room for 16 bytes.
    pub(crate) const FREE: u16 = 0x50;
    pub(crate) const FREE_TOO: u16 = 0x60;
}

fn bare() -> Cpu {
    let ram = Ram::new(&[(0, RAM_SIZE)], Backing::Anonymous).unwrap();
    let mut cpu = Cpu::new(0, Arc::new(Shared::new(&ram, 2, None)), Arc::new(Thunks::new().unwrap()));
    let cpuid = cpuid::supported(CpuLevel::V3, &HostCpu::detect());
    (cpu.cpuid, cpu.features) = (cpuid::Cpuid::new(&cpuid), Features::all());
    cpu.rip = CODE;
    cpu
}

/// Writes without privileges, limits, or translations that stay.
pub(super) fn put(cpu: &mut Cpu, at: u64, value: u64) {
    cpu.as_supervisor(|cpu| cpu.store(at, value)).unwrap();
}

pub(super) fn quad(cpu: &mut Cpu, at: u64) -> u64 {
    cpu.as_supervisor(|cpu| cpu.load(at)).unwrap()
}

pub(super) fn long_word(cpu: &mut Cpu, at: u64) -> u32 {
    cpu.as_supervisor(|cpu| cpu.load(at)).unwrap()
}

/// Puts a descriptor into the GDT.
pub(super) fn describe(cpu: &mut Cpu, selector: u16, raw: u64) {
    put(cpu, GDT + u64::from(selector & !7), raw);
}

/// A code or data segment at privilege level `dpl`.
pub(super) fn at_level(segment: Segment, dpl: u8) -> u64 {
    gdt::descriptor(&Segment { dpl, ..segment })
}

/// A gate of the IDT or the GDT: its first eight bytes.
pub(super) fn gate(kind: u8, dpl: u8, selector: u16, offset: u64) -> u64 {
    offset & 0xffff
        | u64::from(selector) << 16
        | u64::from(kind) << 40
        | u64::from(dpl) << 45
        | 1 << 47
        | (offset >> 16 & 0xffff) << 48
}

/// Sets a 64-bit gate to [`HANDLER`] in kernel code.
pub(super) fn handle(cpu: &mut Cpu, vector: u8, kind: u8, dpl: u8, ist: u64) {
    let at = IDT + u64::from(vector) * 16;
    put(cpu, at, gate(kind, dpl, sel::KERNEL_CODE, HANDLER) | ist << 32);
    put(cpu, at + 8, 0);
}

fn tables(cpu: &mut Cpu) {
    let sixteen_bit = Segment { db: false, ..gdt::DATA };
    for (selector, raw) in [
        (0, 0),
        (sel::KERNEL_DATA, at_level(gdt::DATA, 0)),
        (sel::USER_CODE32, at_level(gdt::CODE32, 3)),
        (sel::USER_DATA, at_level(gdt::DATA, 3)),
        (sel::USER_CODE, at_level(gdt::CODE64, 3)),
        (sel::TSS, gdt::descriptor(&Segment { base: TSS, ..gdt::TASK })),
        (sel::TSS + 8, 0),
        (sel::KERNEL_CODE32, at_level(gdt::CODE32, 0)),
        (sel::KERNEL_CODE32 + 8, at_level(sixteen_bit, 0)),
    ] {
        describe(cpu, selector, raw);
    }
    cpu.system.gdt = DescriptorTable { base: GDT, limit: 0x7f };
    cpu.system.idt = DescriptorTable { base: IDT, limit: 0xfff };
    cpu.system.tr = Segment { base: TSS, selector: sel::TSS, ..gdt::TASK };
    cpu.system.ldt.unusable = true;
}

fn segments(cpu: &mut Cpu, code: Segment, data: Segment) {
    for seg in [Seg::Es, Seg::Ss, Seg::Ds, Seg::Fs, Seg::Gs] {
        cpu.set_segment(seg, data);
    }
    cpu.set_segment(Seg::Cs, code);
    cpu.cpl = code.dpl;
    cpu.regs.set64(RegAt::RSP, STACK);
    cpu.mode_changed();
}

/// 64-bit mode at privilege level 0.
pub(super) fn long() -> Cpu {
    let mut cpu = bare();
    cpu.system.cr0 = cr0::PE | cr0::ET;
    put(&mut cpu, PAGE_TABLES, (PAGE_TABLES + 0x1000) | 7);
    put(&mut cpu, PAGE_TABLES + 0x1000, (PAGE_TABLES + 0x2000) | 7);
    for page in 0..512 {
        let rights = match page << 21 {
            HOLE => 0x80,
            KERNEL_ONLY => 0x83,
            _ => 0x87,
        };
        put(&mut cpu, PAGE_TABLES + 0x2000 + page * 8, page << 21 | rights);
    }
    cpu.system.cr0 = cr0::PG | cr0::PE | cr0::ET | cr0::NE | cr0::WP;
    cpu.system.cr3 = PAGE_TABLES;
    cpu.system.cr4 = cr4::PAE;
    cpu.system.efer = efer::LMA | efer::LME | efer::NXE | efer::SCE;
    tables(&mut cpu);
    describe(&mut cpu, sel::KERNEL_CODE, at_level(gdt::CODE64, 0));
    put(&mut cpu, TSS + 4, KERNEL_STACK);
    put(&mut cpu, TSS + 0x24, IST_STACK);
    segments(
        &mut cpu,
        Segment { selector: sel::KERNEL_CODE, ..gdt::CODE64 },
        Segment { selector: sel::KERNEL_DATA, ..gdt::DATA },
    );
    cpu
}

/// 64-bit mode at privilege level 3.
pub(super) fn user() -> Cpu {
    let mut cpu = long();
    let data = Segment { selector: sel::USER_DATA, dpl: 3, ..gdt::DATA };
    segments(&mut cpu, Segment { selector: sel::USER_CODE, dpl: 3, ..gdt::CODE64 }, data);
    cpu
}

/// Compatibility mode at privilege level 3.
pub(super) fn compat() -> Cpu {
    let mut cpu = user();
    cpu.set_segment(Seg::Cs, Segment { selector: sel::USER_CODE32, dpl: 3, ..gdt::CODE32 });
    cpu.mode_changed();
    cpu
}

/// 32-bit protected mode without paging at privilege level 0 or 3.
pub(super) fn legacy(dpl: u8) -> Cpu {
    let mut cpu = bare();
    cpu.system.cr0 = cr0::PE | cr0::ET;
    tables(&mut cpu);
    describe(&mut cpu, sel::KERNEL_CODE, at_level(gdt::CODE32, 0));
    put(&mut cpu, TSS + 4, KERNEL_STACK | u64::from(sel::KERNEL_DATA) << 32);
    let (code, data) = if dpl == 0 { (sel::KERNEL_CODE, sel::KERNEL_DATA) } else { (sel::USER_CODE32, sel::USER_DATA) };
    segments(&mut cpu, Segment { selector: code, dpl, ..gdt::CODE32 }, Segment { selector: data, dpl, ..gdt::DATA });
    cpu
}

/// Real mode.
pub(super) fn real() -> Cpu {
    let mut cpu = bare();
    cpu.reset();
    let segment = |kind| Segment { limit: 0xffff, kind, present: true, s: true, ..Segment::default() };
    segments(&mut cpu, Segment { base: 0x1_0000, selector: 0x1000, ..segment(0xb) }, segment(3));
    cpu.regs.set64(RegAt::RSP, 0x8000);
    cpu.rip = 0;
    cpu
}

/// An exception: vector and error code.
pub(super) type Raised = (u8, Option<u32>);

/// Executes the instruction `bytes` at CS:RIP; what it raises, with RIP as it was.
pub(super) fn exec(cpu: &mut Cpu, bytes: &[u8]) -> Result<(), Raised> {
    match exec_break(cpu, bytes) {
        Err(Break::Fault) => Err((cpu.fault.vector, cpu.fault.error)),
        _ => Ok(()),
    }
}

/// The same, for those who want to know how it ended.
pub(super) fn exec_break(cpu: &mut Cpu, bytes: &[u8]) -> Result<(), Break> {
    let at = if cpu.is_64() { cpu.rip } else { cpu.segment(Seg::Cs).base + cpu.rip };
    cpu.as_supervisor(|cpu| cpu.write_bytes(at, bytes)).unwrap();
    let before = cpu.rip;
    let step = cpu.step();
    if step == Err(Break::Fault) {
        assert_eq!(cpu.rip, before);
    }
    step
}

/// Sets general registers.
pub(super) fn set(cpu: &mut Cpu, values: &[(RegAt, u64)]) {
    values.iter().for_each(|(at, value)| cpu.regs.set64(*at, *value));
}

/// Sets RFLAGS.IOPL.
pub(super) fn set_iopl(cpu: &mut Cpu, level: u64) {
    cpu.system.rflags = cpu.system.rflags & !rflags::IOPL | level << 12;
}

/// What is on top of the stack.
pub(super) fn top(cpu: &mut Cpu) -> u64 {
    let at = cpu.rsp();
    quad(cpu, at)
}
