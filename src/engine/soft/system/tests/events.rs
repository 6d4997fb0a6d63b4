//! Delivery of events, in all modes.

use crate::arch::x86_64::gdt;
use crate::arch::x86_64::state::Segment;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::{Cpu, cr0, cr4};
use crate::engine::soft::fault::{self, Fault};
use crate::engine::soft::flags::rflags;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::system::descriptor::system;
use crate::engine::soft::system::event::{Event, Shutdown};
use crate::engine::soft::system::testing::*;

fn exception(vector: u8, error: Option<u32>) -> Event {
    Event::Exception(Fault { vector, error, address: 0 })
}

/// The frame of 64-bit mode at `at`: error code, RIP, CS, RFLAGS, RSP, SS; without the first if there is none.
fn frame<const N: usize>(cpu: &mut Cpu, at: u64) -> [u64; N] {
    std::array::from_fn(|slot| quad(cpu, at + slot as u64 * 8))
}

#[test]
fn an_interrupt_of_a_program_goes_to_the_kernels_stack() {
    let mut cpu = user();
    handle(&mut cpu, 0x41, system::INTERRUPT_GATE, 0, 0);
    cpu.set_rflags(rflags::IF | rflags::TF | rflags::CF | rflags::NT);
    (cpu.shadow, cpu.rip) = (true, 0x1_2345);
    cpu.deliver(Event::Interrupt(0x41)).unwrap();
    assert_eq!((cpu.rip, cpu.cpl, cpu.rsp(), cpu.shadow), (HANDLER, 0, KERNEL_STACK - 40, false));
    let flags = rflags::IF | rflags::TF | rflags::CF | rflags::NT | 2;
    let wanted = [0x1_2345, sel::USER_CODE.into(), flags, STACK, sel::USER_DATA.into()];
    assert_eq!(frame(&mut cpu, KERNEL_STACK - 40), wanted);
    assert_eq!(cpu.rflags(), rflags::CF | 2, "IF, TF and NT are off");
    assert!(cpu.segment(Seg::Ss).unusable && cpu.segment(Seg::Ss).selector == 0);
    assert_eq!(cpu.segment(Seg::Cs).selector, sel::KERNEL_CODE);
    assert!(cpu.load::<u64>(KERNEL_STACK).is_ok(), "supervisor's translations are in force");
}

#[test]
fn an_exception_of_the_kernel_stays_on_its_stack_aligned() {
    let mut cpu = long();
    handle(&mut cpu, fault::GP, system::TRAP_GATE, 0, 0);
    cpu.set_rflags(rflags::IF);
    cpu.regs.set64(RegAt::RSP, STACK - 3);
    cpu.deliver(exception(fault::GP, Some(0x18))).unwrap();
    let top = STACK - 16;
    assert_eq!(cpu.rsp(), top - 48);
    let wanted = [0x18, CODE, sel::KERNEL_CODE.into(), rflags::IF | rflags::RF | 2, STACK - 3, sel::KERNEL_DATA.into()];
    assert_eq!(frame(&mut cpu, top - 48), wanted);
    assert_ne!(cpu.rflags() & rflags::IF, 0, "a trap gate leaves IF alone");
    assert_eq!(cpu.segment(Seg::Ss).selector, sel::KERNEL_DATA);
}

#[test]
fn interrupt_stack_table_and_blocked_nmi() {
    let mut cpu = long();
    handle(&mut cpu, fault::NMI, system::INTERRUPT_GATE, 0, 1);
    cpu.deliver(Event::Nmi).unwrap();
    assert_eq!((cpu.rsp(), cpu.system.nmi_blocked), (IST_STACK - 40, true));
    assert_eq!(exec(&mut cpu, &[0x48, 0xcf]), Ok(()));
    assert_eq!((cpu.rip, cpu.rsp(), cpu.system.nmi_blocked), (CODE, STACK, false));
    assert!(cpu.shared.attention(0).any(), "an NMI may have waited");
}

#[test]
fn a_program_in_compatibility_mode_is_interrupted() {
    let mut cpu = compat();
    handle(&mut cpu, 0x30, system::INTERRUPT_GATE, 0, 0);
    cpu.rip = 0xffff_ff00;
    cpu.deliver(Event::Interrupt(0x30)).unwrap();
    assert!(cpu.is_64() && cpu.cpl == 0);
    let wanted = [0xffff_ff00, sel::USER_CODE32.into(), 2, STACK, sel::USER_DATA.into()];
    assert_eq!(frame(&mut cpu, KERNEL_STACK - 40), wanted);
    assert_eq!(exec(&mut cpu, &[0x48, 0xcf]), Ok(()));
    assert!(!cpu.is_64() && cpu.cpl == 3 && cpu.rip == 0xffff_ff00 && cpu.rsp() == STACK);
}

#[test]
fn int_n_needs_the_gates_permission() {
    let mut cpu = user();
    handle(&mut cpu, 0x80, system::INTERRUPT_GATE, 3, 0);
    handle(&mut cpu, 0x81, system::INTERRUPT_GATE, 0, 0);
    assert_eq!(exec(&mut cpu, &[0xcd, 0x81]), Err((fault::GP, Some(0x81 << 3 | 2))), "EXT is clear");
    assert_eq!((cpu.rip, cpu.cpl), (CODE, 3));
    assert_eq!(exec(&mut cpu, &[0xcd, 0x82]), Err((fault::GP, Some(0x82 << 3 | 2))), "no gate");
    assert_eq!(exec(&mut cpu, &[0xcd, 0x80]), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl), (HANDLER, 0));
    assert_eq!(quad(&mut cpu, KERNEL_STACK - 40), CODE + 2);
    assert_eq!(quad(&mut cpu, KERNEL_STACK - 24) & rflags::RF, 0);
}

#[test]
fn int3_and_int1() {
    let mut cpu = user();
    handle(&mut cpu, fault::BP, system::INTERRUPT_GATE, 3, 0);
    handle(&mut cpu, fault::DB, system::INTERRUPT_GATE, 0, 0);
    assert_eq!(exec(&mut cpu, &[0xcc]), Ok(()));
    assert_eq!(quad(&mut cpu, KERNEL_STACK - 40), CODE + 1);
    let mut cpu = user();
    handle(&mut cpu, fault::DB, system::INTERRUPT_GATE, 0, 0);
    assert_eq!(exec(&mut cpu, &[0xf1]), Ok(()), "INT1 does not look at the privilege of the gate");
    assert_eq!((cpu.rip, quad(&mut cpu, KERNEL_STACK - 40)), (HANDLER, CODE + 1));
}

#[test]
fn page_faults_tell_their_address() {
    let mut cpu = user();
    handle(&mut cpu, fault::PF, system::INTERRUPT_GATE, 0, 0);
    let fault = Fault { vector: fault::PF, error: Some(6), address: HOLE + 8 };
    cpu.deliver(Event::Exception(fault)).unwrap();
    assert_eq!((cpu.system.cr2, quad(&mut cpu, KERNEL_STACK - 48)), (HOLE + 8, 6));
}

#[test]
fn a_bad_stack_makes_a_double_fault_and_changes_nothing_before() {
    let mut cpu = user();
    put(&mut cpu, TSS + 4, HOLE + 0x800);
    handle(&mut cpu, fault::GP, system::INTERRUPT_GATE, 0, 0);
    handle(&mut cpu, fault::DF, system::INTERRUPT_GATE, 0, 1);
    cpu.deliver(exception(fault::GP, Some(0))).unwrap();
    assert_eq!(
        (cpu.rip, cpu.rsp(), cpu.cpl),
        (HANDLER, IST_STACK - 48, 0),
        "#GP then #PF is #PF then, whose gate is missing"
    );
    let wanted = [0, CODE, sel::USER_CODE.into(), rflags::RF | 2, STACK, sel::USER_DATA.into()];
    assert_eq!(frame(&mut cpu, IST_STACK - 48), wanted);
    assert_eq!(cpu.system.cr2, HOLE + 0x800 - 8);
}

#[test]
fn half_a_frame_is_never_written() {
    let mut cpu = long();
    handle(&mut cpu, fault::UD, system::INTERRUPT_GATE, 0, 0);
    handle(&mut cpu, fault::PF, system::INTERRUPT_GATE, 0, 1);
    // The frame would reach from one page, which is there, down into the hole.
    let low = 0x60_0000;
    assert_eq!(HOLE + 0x20_0000, low);
    cpu.regs.set64(RegAt::RSP, low + 16);
    put(&mut cpu, low, 0x1111);
    put(&mut cpu, low + 8, 0x2222);
    cpu.deliver(exception(fault::UD, None)).unwrap();
    assert_eq!((quad(&mut cpu, low), quad(&mut cpu, low + 8)), (0x1111, 0x2222));
    assert_eq!((cpu.rsp(), quad(&mut cpu, IST_STACK - 48)), (IST_STACK - 48, 2), "#PF: write, supervisor");
}

#[test]
fn three_faults_stop_the_cpu() {
    let mut cpu = long();
    cpu.system.idt.limit = 0;
    let before = (cpu.rip, cpu.rsp(), cpu.rflags());
    assert_eq!(cpu.deliver(exception(fault::UD, None)), Err(Shutdown));
    assert_eq!((cpu.rip, cpu.rsp(), cpu.rflags()), before);
}

#[test]
fn an_interrupt_without_a_gate_is_a_general_protection_fault() {
    let mut cpu = long();
    handle(&mut cpu, fault::GP, system::INTERRUPT_GATE, 0, 0);
    handle(&mut cpu, fault::NP, system::INTERRUPT_GATE, 0, 0);
    cpu.deliver(Event::Interrupt(0x55)).unwrap();
    assert_eq!(top(&mut cpu), 0x55 << 3 | 3, "IDT and EXT");
    let absent = quad(&mut cpu, IDT + 13 * 16) & !(1 << 47);
    put(&mut cpu, IDT + 0x56 * 16, absent);
    cpu.deliver(Event::Interrupt(0x56)).unwrap();
    assert_eq!((top(&mut cpu), cpu.fault.vector), (0x56 << 3 | 3, fault::NP));
}

#[test]
fn handlers_must_be_64_bit_code_in_long_mode() {
    let mut cpu = long();
    handle(&mut cpu, fault::GP, system::INTERRUPT_GATE, 0, 0);
    put(&mut cpu, IDT + 0x50 * 16, gate(system::INTERRUPT_GATE, 0, sel::KERNEL_CODE32, HANDLER));
    cpu.deliver(Event::Interrupt(0x50)).unwrap();
    assert_eq!(top(&mut cpu), u64::from(sel::KERNEL_CODE32) | 1);
    put(&mut cpu, IDT + 0x51 * 16, gate(system::TASK_GATE, 0, sel::TSS, 0));
    cpu.deliver(Event::Interrupt(0x51)).unwrap();
    assert_eq!(top(&mut cpu), 0x51 << 3 | 3);
}

#[test]
fn user_pages_are_no_place_for_system_structures_under_smap() {
    let mut cpu = user();
    cpu.system.cr4 |= cr4::SMAP;
    cpu.system.rflags |= rflags::AC;
    cpu.mode_changed();
    handle(&mut cpu, 0x40, system::INTERRUPT_GATE, 0, 0);
    handle(&mut cpu, fault::PF, system::INTERRUPT_GATE, 0, 1);
    put(&mut cpu, TSS + 4, STACK);
    cpu.deliver(Event::Interrupt(0x40)).unwrap();
    assert_eq!((cpu.system.cr2, quad(&mut cpu, IST_STACK - 48)), (STACK - 8, 3), "AC is the program's");
    assert_ne!(cpu.system.rflags & rflags::AC, 0);
}

#[test]
fn real_mode_vectors() {
    let mut cpu = real();
    put(&mut cpu, 0x21 * 4, 0x2000_0123);
    cpu.set_rflags(rflags::IF | rflags::ZF);
    cpu.rip = 0x77;
    cpu.deliver(Event::Interrupt(0x21)).unwrap();
    assert_eq!((cpu.rip, cpu.segment(Seg::Cs).base, cpu.rsp()), (0x123, 0x2_0000, 0x8000 - 6));
    assert_eq!(
        quad(&mut cpu, 0x8000 - 6) & 0xffff_ffff_ffff,
        (rflags::IF | rflags::ZF | 2) << 32 | 0x1000 << 16 | 0x77
    );
    assert_eq!(cpu.rflags() & rflags::IF, 0);
    assert_eq!(exec(&mut cpu, &[0xcf]), Ok(()));
    assert_eq!((cpu.rip, cpu.segment(Seg::Cs).base, cpu.rsp()), (0x77, 0x1_0000, 0x8000));
    assert_eq!(cpu.rflags(), rflags::IF | rflags::ZF | 2);
    cpu.system.idt.limit = 0x40 * 4 - 1;
    put(&mut cpu, 8 * 4, 0x0000_0456);
    cpu.deliver(Event::Interrupt(0x40)).unwrap();
    assert_ne!(cpu.rip, 0x456, "an interrupt is benign: #GP, not a double fault");
}

#[test]
fn protected_mode_with_a_stack_of_its_own() {
    let mut cpu = legacy(3);
    put(&mut cpu, IDT + 0x80 * 8, gate(system::TRAP_GATE, 3, sel::KERNEL_CODE, HANDLER));
    cpu.set_rflags(rflags::IF);
    assert_eq!(exec(&mut cpu, &[0xcd, 0x80]), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl, cpu.rsp()), (HANDLER, 0, KERNEL_STACK - 20));
    let words: [u32; 5] = std::array::from_fn(|slot| long_word(&mut cpu, KERNEL_STACK - 20 + slot as u64 * 4));
    let code = u32::from(sel::USER_CODE32);
    assert_eq!(words, [CODE as u32 + 2, code, (rflags::IF | 2) as u32, STACK as u32, sel::USER_DATA.into()]);
    assert_eq!(cpu.segment(Seg::Ss).selector, sel::KERNEL_DATA);
    assert_eq!(exec(&mut cpu, &[0xcf]), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl, cpu.rsp()), (CODE + 2, 3, STACK));
    assert!(cpu.segment(Seg::Ds).selector == sel::USER_DATA && !cpu.segment(Seg::Ds).unusable);
}

#[test]
fn protected_mode_at_one_level_and_with_16_bit_gates() {
    let mut cpu = legacy(0);
    put(&mut cpu, IDT + 13 * 8, gate(system::INTERRUPT_GATE, 0, sel::KERNEL_CODE, HANDLER));
    put(&mut cpu, IDT + 0x20 * 8, gate(system::INTERRUPT_GATE16, 0, sel::KERNEL_CODE, 0x1_8000 | HANDLER & 0xffff));
    cpu.deliver(exception(fault::GP, Some(0x10))).unwrap();
    assert_eq!((cpu.rsp(), long_word(&mut cpu, STACK - 16)), (STACK - 16, 0x10));
    assert_eq!(long_word(&mut cpu, STACK - 12), CODE as u32);
    cpu.deliver(Event::Interrupt(0x20)).unwrap();
    assert_eq!((cpu.rip, cpu.rsp()), (0x8000, STACK - 22), "offset and values have 16 bits");
}

#[test]
fn an_inner_stack_must_be_right() {
    let check = |selector: u16, esp: u64, vector: u8, error: u32| {
        let mut cpu = legacy(3);
        put(&mut cpu, TSS + 4, esp | u64::from(selector) << 32);
        put(&mut cpu, IDT + 0x80 * 8, gate(system::TRAP_GATE, 3, sel::KERNEL_CODE, HANDLER));
        describe(&mut cpu, sel::FREE, at_level(Segment { limit: 0xfff, g: false, ..gdt::DATA }, 0));
        describe(&mut cpu, sel::FREE_TOO, at_level(Segment { present: false, ..gdt::DATA }, 0));
        assert_eq!(exec(&mut cpu, &[0xcd, 0x80]), Err((vector, Some(error))), "{selector:#x}");
        assert_eq!((cpu.rip, cpu.cpl, cpu.rsp()), (CODE, 3, STACK));
    };
    check(0, KERNEL_STACK, fault::TS, 0);
    check(sel::USER_DATA, KERNEL_STACK, fault::TS, u32::from(sel::USER_DATA) & !3);
    check(sel::KERNEL_CODE, KERNEL_STACK, fault::TS, sel::KERNEL_CODE.into());
    check(0x1f0, KERNEL_STACK, fault::TS, 0x1f0);
    check(sel::FREE, 0x1004, fault::SS, sel::FREE.into());
    check(sel::FREE_TOO, 0x1004, fault::SS, sel::FREE_TOO.into());
}

#[test]
fn into_and_bound() {
    let mut cpu = legacy(0);
    put(&mut cpu, IDT + 4 * 8, gate(system::TRAP_GATE, 3, sel::KERNEL_CODE, HANDLER));
    assert_eq!(exec(&mut cpu, &[0xce]), Ok(()));
    assert_eq!(cpu.rip, CODE + 1);
    cpu.set_rflags(rflags::OF);
    assert_eq!(exec(&mut cpu, &[0xce]), Ok(()));
    assert_eq!(cpu.rip, HANDLER);
    // bound eax, [ebx]
    put(&mut cpu, 0x5000, 7 << 32 | 0xffff_fffe);
    for (index, allowed) in [(-3i32, false), (-2, true), (7, true), (8, false)] {
        set(&mut cpu, &[(RegAt::RAX, u64::from(index as u32)), (RegAt::RBX, 0x5000)]);
        assert_eq!(exec(&mut cpu, &[0x62, 0x03]).is_ok(), allowed, "{index}");
    }
    assert_eq!(cpu.fault.vector, fault::BR);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x0b]), Err((fault::UD, None)));
    assert_ne!(cpu.system.cr0 & cr0::PE, 0);
}
