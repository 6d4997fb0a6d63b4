//! Breakpoints of the debug registers (SDM volume 3, chapter 18).

use iced_x86::code_asm::*;

use super::{Asm, FREE, Program, Ran, Setup, Test, fault, run, trap};
use crate::engine::Engine;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("a breakpoint on writes", writes),
    ("a breakpoint on reads and writes", reads_and_writes),
    ("data breakpoints of each length", lengths),
    ("a breakpoint in a long repetition", repetition),
    ("a breakpoint on an instruction", instruction),
    ("RFLAGS.RF lifts a breakpoint for one instruction", resume),
    ("an access to debug registers is noticed", general_detect),
];

/// R/W fields of DR7.
const WRITES: u32 = 1;
const ACCESSES: u32 = 3;
/// LEN fields by length.
const LENGTHS: [(u64, u32); 4] = [(1, 0), (2, 1), (4, 3), (8, 2)];
const RF: i32 = 1 << 16;

/// DR7 with breakpoint `number` of this kind and length field, locally enabled.
fn arm(p: &mut CodeAssembler, number: u32, kind: u32, len: u32) -> Asm {
    p.mov(eax, 1 << (2 * number) | (kind | len << 2) << (16 + 4 * number))?;
    p.mov(dr7, rax)
}

/// Leaves DR6 for the test, as result `index`, and makes it what it is after RESET.
fn take_dr6(p: &mut Program, index: u64) -> Asm {
    p.mov(rax, dr6)?;
    p.result(index)?;
    p.mov(eax, 0xffff_0ff0u32)?;
    p.mov(dr6, rax)
}

/// Which breakpoints were met.
fn met(ran: &Ran, index: usize) -> u64 {
    ran.results[index] & 0xf
}

fn writes(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        p.mov(rax, FREE)?;
        p.mov(dr1, rax)?;
        arm(p, 1, WRITES, 3)?;
        p.mov(ebx, FREE as u32)?;
        p.observe(|a| a.mov(dword_ptr(rbx + 4), eax))?;
        p.observe(|a| a.mov(eax, dword_ptr(rbx)))?;
        take_dr6(p, 0)?;
        p.observe(|a| a.mov(byte_ptr(rbx + 3), al))?;
        take_dr6(p, 1)?;
        p.observe(|a| a.lock().add(dword_ptr(rbx), eax))?;
        take_dr6(p, 2)?;
        // Switched off.
        p.xor(eax, eax)?;
        p.mov(dr7, rax)?;
        p.observe(|a| a.mov(byte_ptr(rbx + 3), al))?;
        take_dr6(p, 3)
    });
    assert_eq!(ran.events, [trap(1, 3), trap(1, 3)]);
    assert_eq!([0, 1, 2, 3].map(|index| met(&ran, index)), [0, 2, 2, 0]);
}

fn reads_and_writes(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        p.mov(rax, FREE)?;
        p.mov(dr0, rax)?;
        arm(p, 0, ACCESSES, 0)?;
        p.mov(ebx, FREE as u32)?;
        p.observe(|a| a.mov(al, byte_ptr(rbx)))?;
        p.observe(|a| a.mov(byte_ptr(rbx), al))?;
        // Next to it; then across it.
        p.observe(|a| a.mov(al, byte_ptr(rbx + 1)))?;
        p.observe(|a| a.mov(rax, qword_ptr(rbx - 4)))?;
        // What ends a block traps before its target is executed.
        p.lea(rsp, ptr(rbx + 8))?;
        let mut target = p.create_label();
        p.observe(|a| a.call(target))?;
        p.set_label(&mut target)?;
        p.zero_bytes()?;
        p.mov(esp, super::KERNEL_STACK as u32 - 64)
    });
    assert_eq!(ran.events[..3], [trap(1, 2), trap(1, 2), trap(1, 4)]);
    assert_eq!(ran.events[3..], [trap(1, 5)]);
}

fn lengths(engine: &dyn Engine) {
    for (len, field) in LENGTHS {
        let ran = run(engine, |p| {
            // The low bits of the address do not count.
            p.mov(rax, FREE + 8 + (len - 1))?;
            p.mov(dr3, rax)?;
            arm(p, 3, WRITES, field)?;
            p.mov(ebx, FREE as u32)?;
            for offset in [7, 8, 8 + len as i32 - 1, 8 + len as i32] {
                p.observe(|a| a.mov(byte_ptr(rbx + offset), al))?;
            }
            take_dr6(p, 0)
        });
        assert_eq!(ran.events, [trap(1, 3); 2], "{len} bytes");
        assert_eq!(met(&ran, 0), 8);
    }
}

/// On hardware, a repetition may be told late (18.3.1.2), which QEMU's CPU does too.
fn repetition(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        p.mov(rax, FREE + 0x10)?;
        p.mov(dr0, rax)?;
        arm(p, 0, WRITES, 1)?;
        p.mov(edi, FREE as u32)?;
        p.mov(ecx, 0x100)?;
        p.observe(|a| a.rep().stosb())?;
        p.mov(rax, rcx)?;
        p.result(0)
    });
    assert_eq!(ran.results[0], 0, "it is done");
    let late = Setup::is_qemu(engine);
    assert!(late || ran.events == [trap(1, 0); 2], "{:x?}", ran.events);
}

fn instruction(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        let mut here = p.create_label();
        p.lea(rax, ptr(here))?;
        p.mov(dr2, rax)?;
        p.xor(edx, edx)?;
        arm(p, 2, 0, 0)?;
        // In the middle of a block, twice.
        for _ in 0..2 {
            p.xor(edx, edx)?;
        }
        p.attempt(|a| {
            a.nop()?;
            a.inc(edx)?;
            a.set_label(&mut here)?;
            a.inc(edx)?;
            a.inc(edx)
        })?;
        p.mov(rax, rdx)?;
        p.result(1)?;
        take_dr6(p, 0)
    });
    assert_eq!(ran.events, [super::Event { offset: 3, ..fault(1, 0) }]);
    assert_eq!((met(&ran, 0), ran.results[1]), (4, 1));
}

fn resume(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        let (mut here, mut again) = (p.create_label(), p.create_label());
        p.lea(rsi, ptr(here))?;
        p.mov(dr0, rsi)?;
        arm(p, 0, 0, 0)?;
        p.xor(edx, edx)?;
        p.mov(rbp, rsp)?;
        p.push(0x10)?;
        p.push(rbp)?;
        p.pushfq()?;
        p.or(qword_ptr(rsp), RF)?;
        p.push(8)?;
        p.push(rsi)?;
        p.attempt(|a| {
            a.iretq()?;
            a.set_label(&mut here)?;
            a.inc(edx)?;
            a.set_label(&mut again)?;
            a.jmp(here)
        })?;
        p.mov(rax, rdx)?;
        p.result(0)
    });
    assert_eq!(ran.events, [super::Event { offset: 2, ..fault(1, 0) }]);
    assert_eq!(ran.results[0], 1, "executed once, by IRET, and not from the jump");
}

fn general_detect(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        p.mov(eax, 0x2000)?;
        p.mov(dr7, rax)?;
        p.attempt(|a| a.mov(rax, dr0))?;
        p.mov(rax, dr7)?;
        p.result(1)?;
        take_dr6(p, 0)
    });
    assert_eq!(ran.events, [fault(1, 0)]);
    assert_eq!((ran.results[0] & 0x600f, ran.results[1]), (0x2000, 0x400), "BD; the handler may look");
}
