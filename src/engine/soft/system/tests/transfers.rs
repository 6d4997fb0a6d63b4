//! Far transfers, returns and system calls.

use crate::arch::x86_64::gdt;
use crate::arch::x86_64::state::Segment;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::{CodeSize, Cpu, efer};
use crate::engine::soft::fault;
use crate::engine::soft::flags::rflags;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::system::descriptor::system;
use crate::engine::soft::system::testing::*;

/// Pushes quadwords, the first first.
fn push(cpu: &mut Cpu, values: &[u64]) {
    for value in values {
        let at = cpu.rsp() - 8;
        put(cpu, at, *value);
        cpu.regs.set64(RegAt::RSP, at);
    }
}

const IRETQ: &[u8] = &[0x48, 0xcf];
const LRETQ: &[u8] = &[0x48, 0xcb];

#[test]
fn iretq_to_a_program_and_its_flags() {
    let mut cpu = long();
    cpu.set_rflags(rflags::IF);
    let flags = rflags::CF | rflags::IF | rflags::IOPL | rflags::AC | rflags::ID | rflags::VM | rflags::RF;
    push(&mut cpu, &[sel::USER_DATA.into(), 0x1_4000, flags, sel::USER_CODE.into(), 0x1_5000]);
    assert_eq!(exec(&mut cpu, IRETQ), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl, cpu.rsp(), cpu.is_64()), (0x1_5000, 3, 0x1_4000, true));
    assert_eq!(cpu.rflags(), flags & !rflags::VM | 2, "VM is not for IA-32e mode");
    for seg in [Seg::Ds, Seg::Es, Seg::Fs, Seg::Gs] {
        assert!(cpu.segment(seg).unusable, "the kernel's segments are gone");
    }
    assert!(!cpu.segment(Seg::Ss).unusable);
}

#[test]
fn a_program_cannot_raise_its_privilege_by_iretq() {
    let mut cpu = user();
    push(
        &mut cpu,
        &[sel::USER_DATA.into(), STACK, rflags::IF | rflags::IOPL | rflags::ZF, sel::USER_CODE.into(), 0x1_5000],
    );
    assert_eq!(exec(&mut cpu, IRETQ), Ok(()));
    assert_eq!((cpu.rip, cpu.rflags()), (0x1_5000, rflags::ZF | 2), "neither IF nor IOPL");
    push(&mut cpu, &[sel::USER_DATA.into(), STACK, 2, sel::KERNEL_CODE.into(), 0x1_5000]);
    assert_eq!(exec(&mut cpu, IRETQ), Err((fault::GP, Some(sel::KERNEL_CODE.into()))));
}

#[test]
fn what_iretq_refuses() {
    let refuses = |frame: [u64; 5], vector: u8, error: u32| {
        let mut cpu = long();
        push(&mut cpu, &frame);
        let sp = cpu.rsp();
        assert_eq!(exec(&mut cpu, IRETQ), Err((vector, Some(error))), "{frame:x?}");
        assert_eq!((cpu.rsp(), cpu.cpl, cpu.rflags()), (sp, 0, 2));
    };
    let (code, data) = (u64::from(sel::USER_CODE), u64::from(sel::USER_DATA));
    refuses([data, STACK, 2, 0, CODE], fault::GP, 0);
    refuses([data, STACK, 2, code & !3, CODE], fault::GP, code as u32 & !3);
    refuses([data, STACK, 2, 0x3f0, CODE], fault::GP, 0x3f0);
    refuses([data, STACK, 2, code, 1 << 47], fault::GP, 0);
    refuses([0, STACK, 2, code, CODE], fault::GP, 0);
    refuses([3, STACK, 2, code, CODE], fault::GP, 0);
    refuses([data & !3, STACK, 2, code, CODE], fault::GP, data as u32 & !3);
    refuses([code, STACK, 2, code, CODE], fault::GP, code as u32 & !3);
    let mut cpu = long();
    cpu.system.rflags |= rflags::NT;
    push(&mut cpu, &[data, STACK, 2, code, CODE]);
    assert_eq!(exec(&mut cpu, IRETQ), Err((fault::GP, Some(0))));
}

#[test]
fn the_kernel_may_return_to_a_null_stack_segment() {
    let mut cpu = long();
    push(&mut cpu, &[0, STACK - 64, 2, sel::KERNEL_CODE.into(), 0x1_5000]);
    assert_eq!(exec(&mut cpu, IRETQ), Ok(()));
    assert_eq!((cpu.rip, cpu.rsp(), cpu.segment(Seg::Ss).unusable), (0x1_5000, STACK - 64, true));
}

#[test]
fn iretq_to_compatibility_mode() {
    let mut cpu = long();
    push(&mut cpu, &[sel::USER_DATA.into(), 0x1_4000, 2, sel::USER_CODE32.into(), 0x1_5000]);
    assert_eq!(exec(&mut cpu, IRETQ), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl, cpu.code_size, cpu.long_mode()), (0x1_5000, 3, CodeSize::Bits32, true));
    // From there by far jump to 64-bit code: jmp 0x2b:0x16000
    assert_eq!(exec(&mut cpu, &[0xea, 0, 0x60, 1, 0, 0x2b, 0]), Ok(()));
    assert_eq!((cpu.rip, cpu.code_size), (0x1_6000, CodeSize::Bits64));
}

#[test]
fn far_returns() {
    let mut cpu = long();
    push(&mut cpu, &[sel::KERNEL_CODE32.into(), 0x1_5000]);
    assert_eq!(exec(&mut cpu, LRETQ), Ok(()));
    assert_eq!((cpu.rip, cpu.rsp(), cpu.code_size, cpu.cpl), (0x1_5000, STACK, CodeSize::Bits32, 0));
    let mut cpu = long();
    push(&mut cpu, &[sel::USER_DATA.into(), 0x1_4000, 1, 2, sel::USER_CODE.into(), 0x1_5000]);
    assert_eq!(exec(&mut cpu, &[0x48, 0xca, 16, 0]), Ok(()), "lretq 16");
    assert_eq!((cpu.rip, cpu.rsp(), cpu.cpl), (0x1_5000, 0x1_4010, 3));
    let mut cpu = user();
    push(&mut cpu, &[sel::KERNEL_CODE.into(), CODE]);
    assert_eq!(exec(&mut cpu, LRETQ), Err((fault::GP, Some(sel::KERNEL_CODE.into()))));
}

#[test]
fn far_jumps_and_calls_through_memory() {
    let mut cpu = user();
    set(&mut cpu, &[(RegAt::RBX, 0x5000)]);
    put(&mut cpu, 0x5000, 0x1_5000);
    put(&mut cpu, 0x5008, sel::USER_CODE.into());
    assert_eq!(exec(&mut cpu, &[0x48, 0xff, 0x1b]), Ok(()), "call far qword");
    assert_eq!((cpu.rip, cpu.rsp()), (0x1_5000, STACK - 16));
    assert_eq!((quad(&mut cpu, STACK - 16), quad(&mut cpu, STACK - 8)), (CODE + 3, sel::USER_CODE.into()));
    assert_eq!(exec(&mut cpu, LRETQ), Ok(()));
    assert_eq!((cpu.rip, cpu.rsp()), (CODE + 3, STACK));
    for (selector, error) in [(sel::KERNEL_CODE, sel::KERNEL_CODE), (sel::USER_DATA, sel::USER_DATA & !3), (0, 0)] {
        put(&mut cpu, 0x5008, selector.into());
        assert_eq!(exec(&mut cpu, &[0x48, 0xff, 0x2b]), Err((fault::GP, Some(error.into()))), "jmp far");
    }
    put(&mut cpu, 0x5000, HOLE);
    put(&mut cpu, 0x5008, sel::USER_CODE.into());
    assert_eq!(exec(&mut cpu, &[0x48, 0xff, 0x2b]), Ok(()), "the target is not looked at");
    assert_eq!(cpu.rip, HOLE);
}

#[test]
fn a_call_gate_in_long_mode() {
    let mut cpu = user();
    describe(&mut cpu, sel::FREE, gate(system::CALL_GATE, 3, sel::KERNEL_CODE, HANDLER));
    describe(&mut cpu, sel::FREE + 8, 0);
    set(&mut cpu, &[(RegAt::RBX, 0x5000)]);
    put(&mut cpu, 0x5000, 0xdead);
    put(&mut cpu, 0x5008, (sel::FREE | 3).into());
    assert_eq!(exec(&mut cpu, &[0x48, 0xff, 0x2b]), Err((fault::GP, Some(sel::KERNEL_CODE.into()))), "no jump inwards");
    assert_eq!(exec(&mut cpu, &[0x48, 0xff, 0x1b]), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl, cpu.rsp()), (HANDLER, 0, KERNEL_STACK - 32));
    let frame: [u64; 4] = std::array::from_fn(|slot| quad(&mut cpu, KERNEL_STACK - 32 + slot as u64 * 8));
    assert_eq!(frame, [CODE + 3, sel::USER_CODE.into(), STACK, sel::USER_DATA.into()]);
    assert_eq!(exec(&mut cpu, LRETQ), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl, cpu.rsp()), (CODE + 3, 3, STACK));
}

#[test]
fn a_call_gate_copies_parameters() {
    let mut cpu = legacy(3);
    describe(&mut cpu, sel::FREE, gate(system::CALL_GATE, 3, sel::KERNEL_CODE, HANDLER) | 2 << 32);
    put(&mut cpu, STACK - 8, 0x2222_2222_1111_1111);
    cpu.regs.set64(RegAt::RSP, STACK - 8);
    // call 0x53:0
    assert_eq!(exec(&mut cpu, &[0x9a, 0, 0, 0, 0, 0x53, 0]), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl, cpu.rsp()), (HANDLER, 0, KERNEL_STACK - 24));
    let frame: [u32; 6] = std::array::from_fn(|slot| long_word(&mut cpu, KERNEL_STACK - 24 + slot as u64 * 4));
    let (code, data) = (u32::from(sel::USER_CODE32), u32::from(sel::USER_DATA));
    assert_eq!(frame, [CODE as u32 + 7, code, 0x1111_1111, 0x2222_2222, STACK as u32 - 8, data]);
    assert_eq!(exec(&mut cpu, &[0xca, 8, 0]), Ok(()), "ret far 8");
    assert_eq!((cpu.rip, cpu.cpl, cpu.rsp()), (CODE + 7, 3, STACK));
}

#[test]
fn real_mode_far_calls() {
    let mut cpu = real();
    assert_eq!(exec(&mut cpu, &[0x9a, 0x34, 0x12, 0x00, 0x20]), Ok(()), "call 2000:1234");
    assert_eq!((cpu.rip, cpu.segment(Seg::Cs).base, cpu.rsp()), (0x1234, 0x2_0000, 0x8000 - 4));
    assert_eq!(long_word(&mut cpu, 0x8000 - 4), 0x1000_0005);
    assert_eq!(exec(&mut cpu, &[0xcb]), Ok(()));
    assert_eq!((cpu.rip, cpu.segment(Seg::Cs).base, cpu.rsp()), (5, 0x1_0000, 0x8000));
    assert_eq!(exec(&mut cpu, &[0x66, 0xea, 0, 0, 1, 0, 0, 0x20]), Err((fault::GP, Some(0))), "beyond the limit");
}

#[test]
fn system_calls() {
    let mut cpu = user();
    cpu.write_msr(0xc000_0081, 0x0018_0008 << 32).unwrap();
    cpu.write_msr(0xc000_0082, HANDLER).unwrap();
    cpu.write_msr(0xc000_0084, rflags::IF | rflags::DF).unwrap();
    cpu.set_rflags(rflags::IF | rflags::DF | rflags::CF);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x05]), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl, cpu.rsp()), (HANDLER, 0, STACK));
    assert_eq!(cpu.regs.get64(RegAt::RCX), CODE + 2);
    assert_eq!(cpu.regs.get64(RegAt::R11), rflags::IF | rflags::DF | rflags::CF | 2);
    assert_eq!(cpu.rflags(), rflags::CF | 2);
    let (cs, ss) = (cpu.segment(Seg::Cs), cpu.segment(Seg::Ss));
    assert_eq!((cs.selector, cs.l, cs.dpl, ss.selector, ss.dpl), (8, true, 0, 0x10, 0));
    assert_eq!(exec(&mut cpu, &[0x48, 0x0f, 0x07]), Ok(()), "sysretq");
    assert_eq!((cpu.rip, cpu.cpl), (CODE + 2, 3));
    assert_eq!(cpu.rflags(), rflags::IF | rflags::DF | rflags::CF | 2);
    let (cs, ss) = (cpu.segment(Seg::Cs), cpu.segment(Seg::Ss));
    assert_eq!((cs.selector, cs.l, cs.dpl, ss.selector, ss.dpl), (0x2b, true, 3, 0x23, 3));
    assert_eq!(exec(&mut cpu, &[0x48, 0x0f, 0x07]), Err((fault::GP, Some(0))));
    cpu.system.efer &= !efer::SCE;
    assert_eq!(exec(&mut cpu, &[0x0f, 0x05]), Err((fault::UD, None)));
}

#[test]
fn sysret_refuses_what_is_not_canonical_and_returns_to_compatibility_mode() {
    let mut cpu = long();
    cpu.write_msr(0xc000_0081, 0x0018_0008 << 32).unwrap();
    set(&mut cpu, &[(RegAt::RCX, 1 << 47), (RegAt::R11, 2)]);
    assert_eq!(exec(&mut cpu, &[0x48, 0x0f, 0x07]), Err((fault::GP, Some(0))));
    assert_eq!(cpu.cpl, 0);
    set(&mut cpu, &[(RegAt::RCX, 0xffff_0001_5000)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x07]), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl, cpu.code_size), (0x1_5000, 3, CodeSize::Bits32));
    assert_eq!(cpu.segment(Seg::Cs).selector, 0x1b);
}

#[test]
fn sysenter_and_sysexit() {
    let mut cpu = compat();
    assert_eq!(cpu.write_msr(0x174, 0), Ok(()));
    assert_eq!(exec(&mut cpu, &[0x0f, 0x34]), Err((fault::GP, Some(0))));
    for (index, value) in [(0x174, 8), (0x175, KERNEL_STACK), (0x176, HANDLER)] {
        cpu.write_msr(index, value).unwrap();
    }
    cpu.set_rflags(rflags::IF);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x34]), Ok(()));
    assert_eq!((cpu.rip, cpu.rsp(), cpu.cpl, cpu.is_64()), (HANDLER, KERNEL_STACK, 0, true));
    assert_eq!(cpu.rflags() & rflags::IF, 0);
    set(&mut cpu, &[(RegAt::RCX, 0x1_4000), (RegAt::RDX, 0x1_5000)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x35]), Ok(()));
    assert_eq!((cpu.rip, cpu.rsp(), cpu.cpl, cpu.code_size), (0x1_5000, 0x1_4000, 3, CodeSize::Bits32));
    assert_eq!((cpu.segment(Seg::Cs).selector, cpu.segment(Seg::Ss).selector), (0x1b, 0x23));
    assert_eq!(exec(&mut cpu, &[0x0f, 0x35]), Err((fault::GP, Some(0))));
}

#[test]
fn conforming_code_keeps_the_level() {
    let mut cpu = legacy(3);
    describe(&mut cpu, sel::FREE, at_level(Segment { kind: 0xe, ..gdt::CODE32 }, 0));
    // jmp 0x50:0x15000
    assert_eq!(exec(&mut cpu, &[0xea, 0, 0x50, 1, 0, 0x50, 0]), Ok(()));
    assert_eq!((cpu.rip, cpu.cpl, cpu.segment(Seg::Cs).selector), (0x1_5000, 3, 0x53));
    assert_eq!(quad(&mut cpu, GDT + 0x50) >> 40 & 15, 0xf, "accessed");
}
