//! The state as a whole: in and out, reset, start-up, crash reports.

use crate::arch::x86_64::boot::{Tables, linux_entry};
use crate::arch::x86_64::msr;
use crate::arch::x86_64::state::{Activity, CpuState, DescriptorTable, Registers};
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::{CodeSize, Cpu, cr0, cr4};
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::system::testing::*;

fn entry() -> CpuState {
    linux_entry(0x1_2000, 0x7000, Tables { gdt: GDT, page_tables: 0x30_0000 })
}

#[test]
fn a_state_comes_back_as_it_went_in() {
    let mut cpu = real();
    let mut state = entry();
    state.regs = Registers {
        rax: 1,
        rbx: 2,
        rcx: 3,
        rdx: 4,
        rsi: 5,
        rdi: 6,
        rsp: 7,
        rbp: 8,
        r8: 9,
        r9: 10,
        r10: 11,
        r11: 12,
        r12: 13,
        r13: 14,
        r14: 15,
        r15: 16,
        rip: 0x1_2000,
        rflags: 0x246,
    };
    state.system.fs.base = 0x7f12_3456_7000;
    state.system.idt = DescriptorTable { base: IDT, limit: 0x123 };
    state.system.cr2 = 0xdead_0000;
    state.activity = Activity::Halted;
    cpu.set_state(&state).unwrap();
    assert_eq!((cpu.code_size, cpu.cpl, cpu.rip), (CodeSize::Bits64, 0, 0x1_2000));
    assert_eq!(cpu.regs.get64(RegAt::gpr(3)), 2, "RBX is number 3");
    assert_eq!(cpu.seg_base[Seg::Fs as usize], 0x7f12_3456_7000);
    let back = cpu.state();
    assert_eq!((back.regs, back.activity), (state.regs, Activity::Halted));
    assert_eq!(back.system, state.system);
    let mut again = real();
    again.set_state(&back).unwrap();
    let without_time = |mut state: CpuState| {
        state.msrs.retain(|(index, _)| *index != msr::TSC);
        state
    };
    assert_eq!(without_time(again.state()), without_time(back));
}

#[test]
fn vector_state_and_its_header() {
    let mut cpu = real();
    let mut state = entry();
    // Only the SSE part is there: x87 and AVX are in their initial state.
    state.xsave = vec![0xaa; 4096];
    state.xsave[512..576].fill(0);
    state.xsave[512] = 2;
    state.xcr0 = 7;
    cpu.set_state(&state).unwrap();
    let area = cpu.vector.area;
    assert_eq!((area[0], area[1], area[32]), (0x7f, 0x03, 0));
    assert_eq!((area[24], area[160], area[415], area[576]), (0xaa, 0xaa, 0xaa, 0));
    let back = cpu.state();
    assert_eq!((back.xcr0, back.xsave[512], back.xsave.len()), (7, 7, 832));
    state.xsave = back.xsave.clone();
    cpu.set_state(&state).unwrap();
    assert_eq!(cpu.state().xsave, back.xsave);
    // What FXSAVE stores has no header.
    state.xsave = vec![0x55; 512];
    cpu.set_state(&state).unwrap();
    assert_eq!((cpu.vector.area[0], cpu.vector.area[32], cpu.vector.area[300]), (0x55, 0x55, 0x55));
    state.xsave = vec![1, 2, 3];
    cpu.set_state(&state).unwrap();
    assert_eq!((cpu.vector.area[0], cpu.vector.area[300]), (0x7f, 0), "too short: the initial state");
}

#[test]
fn reset_init_and_start() {
    let mut cpu = long();
    cpu.system.cr4 |= cr4::SMEP;
    cpu.vector.area[200] = 9;
    set(&mut cpu, &[(RegAt::RBX, 77)]);
    cpu.index = 1;
    cpu.system.cr0 |= cr0::CD;
    cpu.init();
    assert_eq!((cpu.vector.area[200], cpu.system.activity), (9, Activity::WaitForSipi));
    assert_eq!((cpu.system.cr0, cpu.system.cr4, cpu.system.efer), (cr0::ET | cr0::CD, 0, 0));
    let (cs, ds) = (cpu.segment(Seg::Cs), cpu.segment(Seg::Ds));
    assert_eq!((cs.selector, cs.base, cs.limit, cpu.rip), (0xf000, 0xffff_0000, 0xffff, 0xfff0));
    assert_eq!((ds.selector, ds.base, ds.limit, cpu.rflags(), cpu.code_size), (0, 0, 0xffff, 2, CodeSize::Bits16));
    assert_eq!((cpu.regs.get64(RegAt::RBX), cpu.regs.get64(RegAt::RDX)), (0, cpu.cpuid(1, 0)[0].into()));
    cpu.start(0x9a);
    let cs = cpu.segment(Seg::Cs);
    assert_eq!((cs.selector, cs.base, cpu.rip, cpu.system.activity), (0x9a00, 0x9_a000, 0, Activity::Running));
    cpu.rip = 5;
    cpu.start(0x10);
    assert_eq!(cpu.rip, 5, "a second start-up message does not count");
    cpu.reset();
    assert_eq!((cpu.vector.area[200], cpu.system.activity), (0, Activity::WaitForInit));
    assert_eq!((cpu.system.cr0, cpu.system.dr6, cpu.system.dr7), (0x6000_0010, 0xffff_0ff0, 0x400));
    cpu.index = 0;
    cpu.reset();
    assert_eq!(cpu.system.activity, Activity::Running);
}

#[test]
fn an_nmi_waits_for_the_start_of_its_cpu() {
    let mut boot = long();
    boot.write_msr(0x1b, boot.apic().base() | 1 << 10).unwrap();
    boot.write_msr(0x80f, 0x1ff).unwrap();
    let mut other = Cpu::new(1, boot.shared.clone(), boot.thunks.clone());
    other.reset();
    let attention = boot.shared.attention(1).clone();
    // The vector table of real mode.
    put(&mut boot, 2 * 4, 0x1234_5678);
    let mut send = |message: u64| {
        boot.write_msr(0x830, 1 << 32 | message).unwrap();
        assert_eq!(other.attend(&attention), None);
        (other.system.activity, other.rip)
    };
    send(0x4500); // INIT
    assert_eq!(send(0x4400).0, Activity::WaitForSipi, "an NMI does not start it");
    assert_eq!(send(0x4610), (Activity::Running, 0x5678));
    assert_eq!(other.segment(Seg::Cs).selector, 0x1234);
    assert!(other.system.nmi_blocked);
}

#[test]
fn crash_reports_show_registers_and_code() {
    let mut cpu = user();
    put(&mut cpu, CODE, 0x0807_0605_0403_0201);
    let text = cpu.crash_report("triple fault");
    assert!(text.starts_with("vCPU 0: triple fault\n     rip 0000000000010000"), "{text}");
    assert!(text.contains("  code 01 02 03 04 05 06 07 08 00"), "{text}");
    cpu.rip = HOLE - 4;
    let text = cpu.crash_report("lost");
    assert!(text.ends_with("code at 0x3ffffc is not mapped"), "{text}");
    // Not RAM: no device is asked.
    cpu.rip = 0x100_0000;
    assert!(cpu.crash_report("lost").ends_with("code at 0x1000000 is not mapped"));
}
