//! Exceptions: vectors, error codes, return addresses (SDM volume 3, chapter 6).

use iced_x86::code_asm::*;

use super::{FAULT_STACK, Program, Setup, Test, fault, page_fault, run, trap};
use crate::engine::Engine;
use crate::engine::contract::IDT;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("faults name themselves and their instruction", faults),
    ("traps return to the next instruction", traps),
    ("gates and segments that are not there", missing),
    ("a fault that cannot be delivered is a double fault", double_fault),
];

/// Nothing is mapped from here.
const NOTHING: u64 = 0x5000_0000;

fn faults(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        p.xor(ebx, ebx)?;
        p.mov(eax, 7)?;
        p.attempt(|a| a.div(rbx))?;
        p.attempt(|a| a.ud2())?;
        p.mov(rbx, 1u64 << 63)?;
        p.attempt(|a| a.mov(rcx, qword_ptr(rbx)))?;
        p.mov(rbx, NOTHING)?;
        p.attempt(|a| a.mov(rcx, qword_ptr(rbx)))?;
        p.attempt(|a| a.mov(dword_ptr(rbx + 3), ecx))?;
        p.attempt(|a| a.push(qword_ptr(rbx)))?;
        p.attempt(|a| a.jmp(rbx))?;
        p.result(0)
    });
    let there = |event| event;
    let jumped = super::Event { offset: ran.events[6].offset, ..page_fault(0x10, NOTHING) };
    let expected = [
        fault(0, 0),
        fault(6, 0),
        fault(13, 0),
        page_fault(0, NOTHING),
        page_fault(2, NOTHING + 3),
        page_fault(0, NOTHING),
        there(jumped),
    ];
    assert_eq!(ran.events, expected);
    assert_eq!(ran.results[0], 7, "RAX");
}

fn traps(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        p.observe(|a| a.int3())?;
        p.observe(|a| a.int(0x21))?;
        p.observe(|a| a.db(&[0xcd, 3]))
    });
    assert_eq!(ran.events, [trap(3, 1), trap(0x21, 2), trap(3, 2)]);
}

fn missing(engine: &dyn Engine) {
    let mut program = Program::new();
    let assemble = |p: &mut Program| {
        p.attempt(|a| a.int(0x60))?;
        p.mov(eax, 0xff8)?;
        p.attempt(|a| a.mov(ds, eax))?;
        p.mov(eax, 8)?;
        p.attempt(|a| a.mov(ss, eax))?;
        p.attempt(|a| a.mov(es, eax))?;
        p.done()
    };
    assemble(&mut program).unwrap();
    let setup = Setup::new(engine, 1, &mut program);
    // Not present, and none at all: both lie within the limit.
    setup.quad(IDT + 0x60 * 16, 0x0000_0e00_0008_0000);
    let ran = setup.run();
    assert_eq!(ran.events, [fault(11, 0x60 * 8 + 2), fault(13, 0xff8), fault(13, 8)]);
}

fn double_fault(engine: &dyn Engine) {
    let mut program = Program::new();
    let assemble = |p: &mut Program| {
        p.mov(rbx, NOTHING)?;
        p.mov(rbp, rsp)?;
        p.attempt(|a| a.mov(rcx, qword_ptr(rbx)))?;
        p.mov(rax, rsp)?;
        p.sub(rax, rbp)?;
        p.result(0)?;
        // What the frame on the other stack says about the one in use before.
        p.mov(rax, qword_ptr(FAULT_STACK - 16))?;
        p.sub(rax, rbp)?;
        p.result(1)?;
        p.done()
    };
    assemble(&mut program).unwrap();
    let setup = Setup::new(engine, 1, &mut program);
    setup.quad(IDT + 14 * 16, 0x0000_0e00_0008_0000);
    let ran = setup.run();
    assert_eq!(ran.events, [fault(8, 0)]);
    assert_eq!(ran.results[..2], [0, 0], "stack pointers");
}
