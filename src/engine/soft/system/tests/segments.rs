//! Segment registers, descriptor tables, questions about descriptors.

use crate::arch::x86_64::gdt;
use crate::arch::x86_64::state::Segment;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::cr4;
use crate::engine::soft::fault;
use crate::engine::soft::flags::rflags;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::system::descriptor::system;
use crate::engine::soft::system::testing::*;

const MOV_DS_AX: &[u8] = &[0x8e, 0xd8];
const MOV_SS_AX: &[u8] = &[0x8e, 0xd0];

#[test]
fn data_segments_need_privilege_and_presence() {
    let mut cpu = user();
    let not_accessed = Segment { kind: 2, base: 0x12_0000, dpl: 3, ..gdt::DATA };
    describe(&mut cpu, sel::FREE, gdt::descriptor(&not_accessed));
    describe(&mut cpu, sel::FREE_TOO, at_level(Segment { present: false, ..gdt::DATA }, 3));
    let execute_only = Segment { kind: 8, ..gdt::CODE32 };
    describe(&mut cpu, sel::FREE + 8, at_level(execute_only, 3));
    let conforming = Segment { kind: 0xe, ..gdt::CODE32 };
    describe(&mut cpu, sel::FREE_TOO + 8, at_level(conforming, 0));
    for (selector, wanted) in [
        (sel::USER_DATA, Ok(())),
        (sel::KERNEL_DATA, Err((fault::GP, Some(sel::KERNEL_DATA.into())))),
        (sel::FREE_TOO, Err((fault::NP, Some(sel::FREE_TOO.into())))),
        (sel::FREE + 8, Err((fault::GP, Some((sel::FREE + 8).into())))),
        (sel::FREE_TOO + 8, Ok(())),
        (sel::TSS, Err((fault::GP, Some(sel::TSS.into())))),
        (0x7c, Err((fault::GP, Some(0x7c)))),
        (0xff8, Err((fault::GP, Some(0xff8)))),
        (sel::FREE | 3, Ok(())),
        (3, Ok(())),
    ] {
        let before = cpu.segment(Seg::Ds);
        set(&mut cpu, &[(RegAt::RAX, selector.into())]);
        assert_eq!(exec(&mut cpu, MOV_DS_AX), wanted, "{selector:#x}");
        let after = cpu.segment(Seg::Ds);
        assert_eq!(after.selector, if wanted.is_ok() { selector } else { before.selector });
    }
    assert!(cpu.segment(Seg::Ds).unusable);
    assert_eq!(quad(&mut cpu, GDT + u64::from(sel::FREE)) >> 40 & 15, 3, "accessed is set in memory");
}

#[test]
fn fs_and_gs_have_bases_and_null_clears_them() {
    let mut cpu = user();
    describe(&mut cpu, sel::FREE, at_level(Segment { base: 0x1234_5000, ..gdt::DATA }, 3));
    set(&mut cpu, &[(RegAt::RAX, (sel::FREE | 3).into())]);
    assert_eq!(exec(&mut cpu, &[0x8e, 0xe8]), Ok(()));
    assert_eq!((cpu.seg_base[Seg::Gs as usize], cpu.segment(Seg::Gs).base), (0x1234_5000, 0x1234_5000));
    assert_eq!(exec(&mut cpu, MOV_DS_AX), Ok(()));
    assert_eq!(cpu.seg_base[Seg::Ds as usize], 0, "no base in 64-bit mode");
    set(&mut cpu, &[(RegAt::RAX, 0)]);
    assert_eq!(exec(&mut cpu, &[0x8e, 0xe8]), Ok(()));
    assert_eq!(cpu.seg_base[Seg::Gs as usize], 0);
}

#[test]
fn stack_segments_have_the_present_level() {
    let mut cpu = long();
    for (selector, wanted) in [
        (sel::KERNEL_DATA, Ok(())),
        (0, Ok(())),
        (3, Err((fault::GP, Some(0)))),
        (sel::USER_DATA, Err((fault::GP, Some(u32::from(sel::USER_DATA) & !3)))),
        (sel::KERNEL_CODE, Err((fault::GP, Some(sel::KERNEL_CODE.into())))),
    ] {
        set(&mut cpu, &[(RegAt::RAX, selector.into())]);
        cpu.shadow = false;
        assert_eq!(exec(&mut cpu, MOV_SS_AX), wanted, "{selector:#x}");
        assert_eq!(cpu.shadow, wanted.is_ok(), "interrupts wait for one instruction");
    }
    let mut cpu = user();
    set(&mut cpu, &[(RegAt::RAX, 3)]);
    assert_eq!(exec(&mut cpu, MOV_SS_AX), Err((fault::GP, Some(0))), "programs have no null stack");
    describe(&mut cpu, sel::FREE, at_level(Segment { present: false, ..gdt::DATA }, 3));
    set(&mut cpu, &[(RegAt::RAX, (sel::FREE | 3).into())]);
    assert_eq!(exec(&mut cpu, MOV_SS_AX), Err((fault::SS, Some(sel::FREE.into()))));
}

#[test]
fn moves_pops_and_far_pointers() {
    let mut cpu = long();
    set(&mut cpu, &[(RegAt::RAX, u64::MAX), (RegAt::RBX, 0x5000)]);
    assert_eq!(exec(&mut cpu, &[0x8c, 0xd8]), Ok(()));
    assert_eq!(cpu.regs.get64(RegAt::RAX), u64::from(sel::KERNEL_DATA), "mov eax, ds is zero-extended");
    set(&mut cpu, &[(RegAt::RAX, u64::MAX)]);
    assert_eq!(exec(&mut cpu, &[0x66, 0x8c, 0xd8]), Ok(()));
    assert_eq!(cpu.regs.get64(RegAt::RAX), 0xffff_ffff_ffff_0000 | u64::from(sel::KERNEL_DATA));
    assert_eq!(exec(&mut cpu, &[0x8c, 0x1b]), Ok(()));
    assert_eq!(quad(&mut cpu, 0x5000), u64::from(sel::KERNEL_DATA));
    // push fs; pop gs
    cpu.set_segment(Seg::Gs, Segment::default());
    assert_eq!(exec(&mut cpu, &[0x0f, 0xa0]), Ok(()));
    assert_eq!(exec(&mut cpu, &[0x0f, 0xa9]), Ok(()));
    assert_eq!((cpu.segment(Seg::Gs).selector, cpu.rsp()), (sel::KERNEL_DATA, STACK));
    // lss rsp, [rbx]
    put(&mut cpu, 0x5000, 0x1_9000);
    put(&mut cpu, 0x5008, sel::KERNEL_DATA.into());
    assert_eq!(exec(&mut cpu, &[0x48, 0x0f, 0xb2, 0x23]), Ok(()));
    assert_eq!((cpu.rsp(), cpu.shadow), (0x1_9000, false), "only MOV and POP to SS hold interrupts back");
    put(&mut cpu, 0x5008, sel::KERNEL_CODE.into());
    assert_eq!(exec(&mut cpu, &[0x48, 0x0f, 0xb2, 0x23]), Err((fault::GP, Some(sel::KERNEL_CODE.into()))));
    assert_eq!(cpu.rsp(), 0x1_9000);
}

#[test]
fn real_mode_segments_are_shifted_selectors() {
    let mut cpu = real();
    set(&mut cpu, &[(RegAt::RAX, 0xb800)]);
    assert_eq!(exec(&mut cpu, MOV_DS_AX), Ok(()));
    let segment = cpu.segment(Seg::Ds);
    assert_eq!((segment.base, segment.limit, cpu.seg_base[Seg::Ds as usize]), (0xb_8000, 0xffff, 0xb_8000));
    for bytes in [&[0x0f, 0x00, 0xd8][..], &[0x0f, 0x00, 0xc0], &[0x0f, 0x02, 0xc0], &[0x63, 0xc0]] {
        assert_eq!(exec(&mut cpu, bytes), Err((fault::UD, None)), "{bytes:02x?}");
    }
}

#[test]
fn table_registers() {
    let mut cpu = long();
    set(&mut cpu, &[(RegAt::RBX, 0x5000)]);
    put(&mut cpu, 0x5000, 0xffff_8000_1234_5678 << 16 | 0x3ff);
    put(&mut cpu, 0x5008, 0xffff);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0x1b]), Ok(()));
    assert_eq!((cpu.system.idt.base, cpu.system.idt.limit), (0xffff_8000_1234_5678, 0x3ff));
    set(&mut cpu, &[(RegAt::RBX, 0x6000)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0x0b]), Ok(()));
    assert_eq!((quad(&mut cpu, 0x6000), quad(&mut cpu, 0x6008)), (0x8000_1234_5678_03ff, 0xffff));
    put(&mut cpu, 0x6008, 0x1234);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0x13]), Err((fault::GP, Some(0))), "lgdt of a base that is not canonical");
    assert_eq!(cpu.system.gdt.base, GDT);
    let mut cpu = user();
    set(&mut cpu, &[(RegAt::RBX, 0x6000)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0x13]), Err((fault::GP, Some(0))));
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0x03]), Ok(()), "sgdt");
    cpu.system.cr4 |= cr4::UMIP;
    for bytes in
        [&[0x0f, 0x01, 0x03][..], &[0x0f, 0x01, 0x0b], &[0x0f, 0x00, 0xc0], &[0x0f, 0x00, 0xc8], &[0x0f, 0x01, 0xe0]]
    {
        assert_eq!(exec(&mut cpu, bytes), Err((fault::GP, Some(0))), "{bytes:02x?}");
    }
    let mut cpu = legacy(0);
    put(&mut cpu, 0x5000, 0xaabb_ccdd_0077);
    set(&mut cpu, &[(RegAt::RBX, 0x5000)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0x13]), Ok(()));
    assert_eq!(cpu.system.gdt.base, 0xaabb_ccdd);
    assert_eq!(exec(&mut cpu, &[0x66, 0x0f, 0x01, 0x13]), Ok(()));
    assert_eq!(cpu.system.gdt.base, 0xbb_ccdd, "16-bit operands have 24 bits");
}

#[test]
fn task_and_local_table_registers() {
    let mut cpu = long();
    let ldt = Segment { base: 0x7000, limit: 0xff, kind: system::LDT, ..gdt::TASK };
    describe(&mut cpu, sel::FREE, gdt::descriptor(&ldt));
    describe(&mut cpu, sel::FREE + 8, 0xffff_8000);
    let task = Segment { base: 0x9000, kind: system::TSS, ..gdt::TASK };
    describe(&mut cpu, sel::FREE_TOO, gdt::descriptor(&task));
    describe(&mut cpu, sel::FREE_TOO + 8, 0);
    let lldt = |cpu: &mut _, selector: u16| {
        set(cpu, &[(RegAt::RAX, selector.into())]);
        exec(cpu, &[0x0f, 0x00, 0xd0])
    };
    let ltr = |cpu: &mut _, selector: u16| {
        set(cpu, &[(RegAt::RAX, selector.into())]);
        exec(cpu, &[0x0f, 0x00, 0xd8])
    };
    assert_eq!(lldt(&mut cpu, sel::FREE), Ok(()));
    assert_eq!((cpu.system.ldt.base, cpu.system.ldt.limit), (0xffff_8000_0000_7000, 0xff));
    assert_eq!(lldt(&mut cpu, sel::FREE_TOO), Err((fault::GP, Some(sel::FREE_TOO.into()))));
    assert_eq!(lldt(&mut cpu, 0), Ok(()));
    assert!(cpu.system.ldt.unusable);
    assert_eq!(ltr(&mut cpu, 0), Err((fault::GP, Some(0))));
    assert_eq!(ltr(&mut cpu, sel::TSS), Err((fault::GP, Some(sel::TSS.into()))), "busy");
    assert_eq!(ltr(&mut cpu, sel::FREE_TOO), Ok(()));
    assert_eq!((cpu.system.tr.base, cpu.system.tr.kind), (0x9000, system::TSS_BUSY));
    assert_eq!(quad(&mut cpu, GDT + u64::from(sel::FREE_TOO)) >> 40 & 15, u64::from(system::TSS_BUSY));
    assert_eq!(ltr(&mut cpu, sel::FREE_TOO), Err((fault::GP, Some(sel::FREE_TOO.into()))));
    assert_eq!(exec(&mut cpu, &[0x0f, 0x00, 0xc8]), Ok(()), "str eax");
    assert_eq!(cpu.regs.get64(RegAt::RAX), u64::from(sel::FREE_TOO));
    // A local descriptor is found through the LDT.
    describe(&mut cpu, sel::FREE + 8, 0);
    assert_eq!(lldt(&mut cpu, sel::FREE), Ok(()));
    put(&mut cpu, 0x7008, at_level(Segment { base: 0x1_2000, ..gdt::DATA }, 0));
    set(&mut cpu, &[(RegAt::RAX, 0xc)]);
    assert_eq!(exec(&mut cpu, &[0x8e, 0xe0]), Ok(()), "mov fs, ax");
    assert_eq!(cpu.segment(Seg::Fs).base, 0x1_2000);
    let mut cpu = user();
    assert_eq!(lldt(&mut cpu, 0), Err((fault::GP, Some(0))));
}

#[test]
fn questions_about_descriptors() {
    let mut cpu = user();
    let page = Segment { limit: 0xfff, g: false, ..gdt::DATA };
    describe(&mut cpu, sel::FREE, at_level(page, 3));
    describe(&mut cpu, sel::FREE_TOO, at_level(Segment { kind: 1, ..page }, 3));
    // lar ecx, ax; lsl ecx, ax; verr ax; verw ax
    let (lar, lsl): (&[u8], &[u8]) = (&[0x0f, 0x02, 0xc8], &[0x0f, 0x03, 0xc8]);
    let (verr, verw): (&[u8], &[u8]) = (&[0x0f, 0x00, 0xe0], &[0x0f, 0x00, 0xe8]);
    for (bytes, selector, wanted) in [
        (lar, sel::USER_DATA, Some(0x00c0_f300)),
        (lar, sel::KERNEL_DATA, None),
        (lar, sel::USER_CODE, Some(0x00a0_fb00)),
        (lar, 0, None),
        (lar, 0xff8, None),
        (lsl, sel::FREE | 3, Some(0xfff)),
        (lsl, sel::USER_DATA, Some(0xffff_ffff)),
        (lsl, sel::TSS, None),
        (verr, sel::FREE_TOO | 3, Some(7)),
        (verr, sel::KERNEL_CODE, None),
        (verw, sel::FREE_TOO | 3, None),
        (verw, sel::USER_DATA, Some(7)),
        (verw, sel::USER_CODE, None),
    ] {
        set(&mut cpu, &[(RegAt::RAX, selector.into()), (RegAt::RCX, 7)]);
        assert_eq!(exec(&mut cpu, bytes), Ok(()));
        assert_eq!(cpu.rflags() & rflags::ZF != 0, wanted.is_some(), "{bytes:02x?} {selector:#x}");
        assert_eq!(cpu.regs.get64(RegAt::RCX), wanted.unwrap_or(7), "{bytes:02x?} {selector:#x}");
    }
    let mut cpu = long();
    set(&mut cpu, &[(RegAt::RAX, sel::TSS.into())]);
    assert_eq!(exec(&mut cpu, lsl), Ok(()));
    assert_eq!(cpu.regs.get64(RegAt::RCX), 0x67);
    // arpl ax, cx
    let mut cpu = legacy(3);
    set(&mut cpu, &[(RegAt::RAX, 0x11), (RegAt::RCX, 0x22)]);
    assert_eq!(exec(&mut cpu, &[0x63, 0xc8]), Ok(()));
    assert_eq!((cpu.regs.get64(RegAt::RAX), cpu.rflags() & rflags::ZF), (0x12, rflags::ZF));
    assert_eq!(exec(&mut cpu, &[0x63, 0xc8]), Ok(()));
    assert_eq!((cpu.regs.get64(RegAt::RAX), cpu.rflags() & rflags::ZF), (0x12, 0));
}

#[test]
fn bases_of_fs_and_gs() {
    let mut cpu = user();
    set(&mut cpu, &[(RegAt::RAX, 0x7fff_1234_5678)]);
    let wrfsbase: &[u8] = &[0xf3, 0x48, 0x0f, 0xae, 0xd0];
    assert_eq!(exec(&mut cpu, wrfsbase), Err((fault::UD, None)), "CR4.FSGSBASE is off");
    cpu.system.cr4 |= cr4::FSGSBASE;
    assert_eq!(exec(&mut cpu, wrfsbase), Ok(()));
    assert_eq!(cpu.seg_base[Seg::Fs as usize], 0x7fff_1234_5678);
    assert_eq!(exec(&mut cpu, &[0xf3, 0x0f, 0xae, 0xc1]), Ok(()), "rdfsbase ecx");
    assert_eq!(cpu.regs.get64(RegAt::RCX), 0x1234_5678);
    set(&mut cpu, &[(RegAt::RAX, 1 << 63)]);
    assert_eq!(exec(&mut cpu, wrfsbase), Err((fault::GP, Some(0))));
    // swapgs
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0xf8]), Err((fault::GP, Some(0))));
    let mut cpu = long();
    cpu.write_msr(0xc000_0102, 0xffff_8888_0000_0000).unwrap();
    cpu.set_segment(Seg::Gs, Segment { base: 0x7000, ..cpu.segment(Seg::Gs) });
    cpu.mode_changed();
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0xf8]), Ok(()));
    assert_eq!(
        (cpu.segment(Seg::Gs).base, cpu.seg_base[Seg::Gs as usize]),
        (0xffff_8888_0000_0000, 0xffff_8888_0000_0000)
    );
    assert_eq!(cpu.read_msr(0xc000_0102), Ok(0x7000));
}
