//! Modes and privileges: real mode, 32-bit protected mode, compatibility mode, and the ways between privilege 0 and 3
//! (SDM volume 3, chapters 5, 9 and 20).

use iced_x86::code_asm::*;

use super::{
    CODE16, CODE32, DATA16, DONE_PORT, FREE, Program, RESULTS, Setup, Test, USER_CODE, USER_CODE32, USER_DATA,
    USER_STACK, piece,
};
use crate::arch::x86_64::state::{DescriptorTable, Segment};
use crate::engine::Engine;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("16-bit real mode", real_mode),
    ("32-bit protected mode, without paging", protected_mode),
    ("from real mode to 64-bit mode", all_the_way),
    ("SYSCALL and SYSRET", system_call),
    ("compatibility mode at privilege 3", compatibility),
];

const SEGMENT: u16 = 0x6000;

fn real_segment(selector: u16, kind: u8) -> Segment {
    Segment {
        base: u64::from(selector) << 4,
        limit: 0xffff,
        selector,
        kind,
        present: true,
        s: true,
        ..Segment::default()
    }
}

/// A guest that starts in real mode at `SEGMENT`:0, with `code` there.
fn in_real_mode(engine: &dyn Engine, code: &[u8]) -> Setup {
    let mut setup = Setup::new(engine, 1, &mut Program::new());
    setup.write(u64::from(SEGMENT) << 4, code);
    let (state, data) = (&mut setup.state, real_segment(SEGMENT, 3));
    state.system.cs = real_segment(SEGMENT, 11);
    (state.system.ds, state.system.es, state.system.ss) = (data, data, real_segment(0, 3));
    (state.system.fs, state.system.gs) = (data, data);
    (state.system.cr0, state.system.cr4, state.system.efer) = (0x10, 0, 0);
    state.system.idt = DescriptorTable { base: 0, limit: 0x3ff };
    (state.regs.rip, state.regs.rsp) = (0, 0x7000);
    setup
}

fn real_mode(engine: &dyn Engine) {
    // An interrupt handler behind the code: doubles AX.
    const HANDLER: u16 = 0x100;
    let code = piece(16, 0, |a| {
        a.mov(ax, 0x1234u32)?;
        a.int(0x40)?;
        a.mov(word_ptr(0x200), ax)?;
        // Addresses wrap within 16 bits, and 67 makes them wide.
        a.mov(bx, 0xfff0u32)?;
        a.mov(si, 0x212u32)?;
        a.mov(word_ptr(bx + si), 0x55aau32)?;
        a.mov(eax, dword_ptr(0x202))?;
        a.mov(ebx, 0x208u32)?;
        a.mov(dword_ptr(ebx), eax)?;
        // Far through memory and back.
        a.push(cs)?;
        a.pop(ax)?;
        a.mov(word_ptr(0x20c), ax)?;
        a.mov(ax, 0x40u32)?;
        a.mov(es, ax)?;
        a.mov(ax, es)?;
        a.mov(word_ptr(0x20e), ax)?;
        a.mov(word_ptr(di).es(), 0x7777u32)?;
        a.out(DONE_PORT, al)
    });
    let setup = in_real_mode(engine, &code);
    let base = u64::from(SEGMENT) << 4;
    setup.write(
        base + u64::from(HANDLER),
        &piece(16, HANDLER.into(), |a| {
            a.add(ax, ax)?;
            a.iret()
        }),
    );
    setup.write(4 * 0x40, &[HANDLER.to_le_bytes(), SEGMENT.to_le_bytes()].concat());
    let ran = setup.run();
    assert_eq!(ran.quad(base + 0x200), 0x55aa_2468);
    assert_eq!(ran.quad(base + 0x208) & 0xffff_ffff, 0x55aa);
    assert_eq!(ran.quad(base + 0x20c) as u32, 0x40 << 16 | u32::from(SEGMENT));
    assert_eq!(ran.quad(0x400) as u16, 0x7777);
}

fn protected_mode(engine: &dyn Engine) {
    const ENTRY: u64 = FREE;
    let code = piece(32, ENTRY, |a| {
        a.mov(eax, 0x10u32)?;
        a.mov(ds, eax)?;
        a.mov(ss, eax)?;
        a.mov(esp, 0x5_8000u32)?;
        a.mov(eax, 0x8000_0000u32)?;
        a.mov(ecx, 3)?;
        a.mul(ecx)?;
        a.mov(dword_ptr(RESULTS as u32), eax)?;
        a.mov(dword_ptr(RESULTS as u32 + 8), edx)?;
        a.push(0x1234_5678)?;
        a.pushad()?;
        a.mov(eax, dword_ptr(esp + 28))?;
        a.add(esp, 32)?;
        a.pop(ebx)?;
        a.mov(dword_ptr(RESULTS as u32 + 16), ebx)?;
        // Decimal arithmetic exists here.
        a.mov(eax, 0x19u32)?;
        a.add(al, 0x28)?;
        a.daa()?;
        a.mov(dword_ptr(RESULTS as u32 + 24), eax)?;
        a.out(DONE_PORT, al)
    });
    let mut setup = Setup::new(engine, 1, &mut Program::new());
    setup.write(ENTRY, &code);
    let system = &mut setup.state.system;
    system.cs = Segment { selector: CODE32 as u16, db: true, l: false, ..system.cs };
    (system.cr0, system.efer) = (0x11, 0);
    setup.state.regs.rip = ENTRY;
    let ran = setup.run();
    assert_eq!(ran.results[..4], [0x8000_0000, 1, 0x1234_5678, 0x47]);
}

fn all_the_way(engine: &dyn Engine) {
    const BASE: u32 = (SEGMENT as u32) << 4;
    let far = |a: &mut CodeAssembler, selector: u64, target: u32, wide: bool| {
        if wide {
            a.db(&[0x66])?;
        }
        a.db(&[0xea])?;
        a.db(&target.to_le_bytes())?;
        a.db(&(selector as u16).to_le_bytes())
    };
    // Three pieces at fixed places of one segment.
    let (in_32, in_64) = (0x80u32, 0x140u32);
    let mut code = piece(16, 0, |a| {
        a.lgdt(ptr(0x60))?;
        a.mov(eax, cr0)?;
        a.or(al, 1)?;
        a.mov(cr0, eax)?;
        far(a, CODE32, BASE + in_32, true)
    });
    code.resize(0x60, 0x90);
    code.extend(0x57u16.to_le_bytes());
    code.extend((crate::engine::contract::GDT as u32).to_le_bytes());
    code.resize(in_32 as usize, 0x90);
    code.extend(piece(32, u64::from(BASE + in_32), |a| {
        a.mov(eax, 0x10u32)?;
        a.mov(ds, eax)?;
        a.mov(eax, cr4)?;
        a.or(eax, 0x20)?;
        a.mov(cr4, eax)?;
        a.mov(eax, crate::engine::contract::PAGE_TABLES as u32)?;
        a.mov(cr3, eax)?;
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.or(eax, 0x100)?;
        a.wrmsr()?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000u32)?;
        a.mov(cr0, eax)?;
        // Compatibility mode until the jump.
        a.mov(ecx, 0xc000_0080u32)?;
        a.rdmsr()?;
        a.mov(dword_ptr(RESULTS as u32), eax)?;
        far(a, 8, BASE + in_64, false)
    }));
    assert!(code.len() <= in_64 as usize);
    code.resize(in_64 as usize, 0x90);
    code.extend(piece(64, u64::from(BASE + in_64), |a| {
        a.mov(rax, 0x1122_3344_5566_7788u64)?;
        a.mov(qword_ptr(RESULTS + 8), rax)?;
        a.out(DONE_PORT, al)
    }));
    let ran = in_real_mode(engine, &code).run();
    assert_eq!(ran.results[0] & 0x500, 0x500, "LME and LMA");
    assert_eq!(ran.results[1], 0x1122_3344_5566_7788);
    const { assert!(CODE16 + 8 == DATA16) };
}

fn system_call(engine: &dyn Engine) {
    let mut program = Program::new();
    let assemble = |p: &mut Program| {
        let (mut kernel, mut user, mut back) = (p.create_label(), p.create_label(), p.create_label());
        // STAR, LSTAR, SFMASK.
        p.mov(ecx, 0xc000_0081u32)?;
        p.xor(eax, eax)?;
        p.mov(edx, 0x1b_0008)?;
        p.wrmsr()?;
        p.inc(ecx)?;
        p.lea(rax, ptr(kernel))?;
        p.xor(edx, edx)?;
        p.wrmsr()?;
        p.mov(ecx, 0xc000_0084u32)?;
        p.mov(eax, 1)?;
        p.wrmsr()?;
        // To privilege 3 by SYSRET, too.
        p.lea(rcx, ptr(user))?;
        p.mov(r11d, 2)?;
        p.mov(rsp, USER_STACK)?;
        p.sysretq()?;
        p.set_label(&mut user)?;
        p.mov(eax, cs)?;
        p.result(0)?;
        p.mov(eax, ss)?;
        p.result(1)?;
        p.stc()?;
        p.syscall()?;
        p.set_label(&mut back)?;
        p.ud2()?;
        p.set_label(&mut kernel)?;
        p.pushfq()?;
        p.pop(rax)?;
        p.result(2)?;
        p.mov(eax, cs)?;
        p.result(3)?;
        p.mov(eax, ss)?;
        p.result(4)?;
        p.mov(rax, r11)?;
        p.result(5)?;
        p.lea(rax, ptr(back))?;
        p.sub(rax, rcx)?;
        p.result(6)?;
        p.done()
    };
    assemble(&mut program).unwrap();
    let ran = Setup::new(engine, 1, &mut program).run();
    assert_eq!(ran.events, []);
    assert_eq!(ran.results[..2], [USER_CODE, USER_DATA]);
    assert_eq!(ran.results[2] & 1, 0, "CF is masked");
    assert_eq!(ran.results[3..5], [8, 16]);
    assert_eq!(ran.results[5] & 1, 1, "R11 has the flags before");
    assert_eq!(ran.results[6], 0, "RCX has the return address");
}

fn compatibility(engine: &dyn Engine) {
    let mut program = Program::new();
    let assemble = |p: &mut Program| {
        p.push(USER_DATA as i32)?;
        p.push(USER_STACK as i32)?;
        p.push(2)?;
        p.push(USER_CODE32 as i32)?;
        p.push(FREE as i32)?;
        p.iretq()
    };
    assemble(&mut program).unwrap();
    let setup = Setup::new(engine, 1, &mut program);
    let code = piece(32, FREE, |a| {
        a.mov(eax, USER_DATA as u32)?;
        a.mov(ds, eax)?;
        // No REX prefixes here: INC and DEC of one byte.
        a.mov(eax, 5)?;
        a.db(&[0x40, 0x48, 0x40])?;
        a.mov(dword_ptr(RESULTS as u32), eax)?;
        a.mov(eax, cs)?;
        a.mov(dword_ptr(RESULTS as u32 + 8), eax)?;
        // Through the limit of 4 GiB, addresses wrap.
        a.mov(ebx, 0xffff_fff0u32)?;
        a.mov(eax, dword_ptr(ebx + RESULTS as i32 + 16))?;
        a.mov(dword_ptr(RESULTS as u32 + 16), eax)?;
        a.int(0x21)
    });
    setup.write(FREE, &code);
    let out = piece(64, FREE + 0x1000, |a| a.out(DONE_PORT, al));
    setup.write(FREE + 0x1000, &out);
    let gate = (FREE + 0x1000) & 0xffff | 8 << 16 | 0xee00 << 32 | ((FREE + 0x1000) >> 16 & 0xffff) << 48;
    setup.quad(crate::engine::contract::IDT + 0x21 * 16, gate);
    let ran = setup.run();
    assert_eq!(ran.results[..3], [6, USER_CODE32, 6]);
}
