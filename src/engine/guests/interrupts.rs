//! Interrupts between instructions: the shadow of STI and MOV SS, single-stepping, long repetitions (SDM volume 3, 6.8).

use iced_x86::code_asm::*;

use super::{Asm, Event, FREE, Program, Ran, Setup, Test, trap};
use crate::engine::Engine;
use crate::engine::contract::ENABLE_X2APIC;
use crate::mem::PAGE;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("an interrupt comes one instruction after STI", shadow_of_sti),
    ("nothing comes between MOV SS and the next instruction", shadow_of_mov_ss),
    ("POPF and IRET let interrupts in at once", popf),
    ("single steps", single_steps),
    ("an interrupt in a long repetition", repetition),
];

/// A vector whose handler ends the interrupt.
const VECTOR: u32 = 0x2a;

/// Interrupts itself, by the local APIC's register for that.
fn interrupt_self(p: &mut CodeAssembler) -> Asm {
    p.mov(ecx, 0x83f)?;
    p.mov(eax, VECTOR)?;
    p.xor(edx, edx)?;
    p.wrmsr()
}

fn run(engine: &dyn Engine, body: impl FnOnce(&mut Program) -> Asm) -> Ran {
    let mut program = Program::new();
    let start = |p: &mut Program| {
        p.db(ENABLE_X2APIC)?;
        p.xor(r15d, r15d)
    };
    start(&mut program).and_then(|()| body(&mut program)).and_then(|()| program.done()).unwrap();
    Setup::new(engine, 1, &mut program).run()
}

fn shadow_of_sti(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        interrupt_self(p)?;
        p.xor(esi, esi)?;
        p.mark()?;
        p.sti()?;
        p.inc(esi)?; // two bytes, still in the shadow
        p.inc(esi)?;
        p.cli()?;
        // With IF set already there is no shadow; and one that CLI ends lets nothing in.
        interrupt_self(p)?;
        p.mark()?;
        p.sti()?;
        p.cli()?;
        p.inc(esi)?;
        p.sti()?;
        p.nop()
    });
    assert_eq!(ran.events, [trap(VECTOR.into(), 3), trap(VECTOR.into(), 6)]);
}

fn shadow_of_mov_ss(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        p.mov(ebx, ss)?;
        interrupt_self(p)?;
        p.push(0x202)?;
        p.mark()?;
        // STI's own shadow covers MOV SS, whose shadow covers the next.
        p.sti()?;
        p.mov(ss, ebx)?;
        p.inc(esi)?;
        p.inc(esi)?;
        p.popfq()
    });
    let [event] = ran.events[..] else { panic!("{:?}", ran.events) };
    // CPUs may let the shadow of a second instruction in a row be (SDM volume 2, STI).
    assert!([3, 5].contains(&event.offset), "{event:?}");
}

fn popf(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        interrupt_self(p)?;
        p.push(0x202)?;
        p.mark()?;
        p.popfq()?;
        p.cli()?;
        interrupt_self(p)?;
        // IRETQ to the next instruction.
        let mut next = p.create_label();
        p.mov(rbx, rsp)?;
        p.push(0x10)?;
        p.push(rbx)?;
        p.push(0x202)?;
        p.push(8)?;
        p.lea(r14, ptr(next))?;
        p.push(r14)?;
        p.iretq()?;
        p.set_label(&mut next)?;
        p.cli()
    });
    assert_eq!(ran.events, [trap(VECTOR.into(), 1), trap(VECTOR.into(), 0)]);
}

fn single_steps(engine: &dyn Engine) {
    let ran = run(engine, |p| {
        p.mov(ebx, ss)?;
        p.mov(esi, FREE as u32)?;
        p.mov(edi, (FREE + PAGE) as u32)?;
        p.mov(ecx, 3)?;
        p.push(2)?;
        p.push(0x102)?;
        p.mark()?;
        p.popfq()?; // 1; no trap yet
        p.nop()?; // 2
        p.mov(ss, ebx)?; // 4: holds the trap back
        p.inc(eax)?; // 6
        p.rep().movsb()?; // 8: after every element
        p.popfq()?; // 9
        p.nop()
    });
    let offsets: Vec<_> = ran.events.iter().map(|event| event.offset).collect();
    assert_eq!(offsets, [2, 6, 6, 6, 8, 9]);
    assert!(ran.events.iter().all(|event: &Event| event.vector == 1), "{:?}", ran.events);
}

fn repetition(engine: &dyn Engine) {
    const COUNT: u32 = 20_000;
    let ran = run(engine, |p| {
        // The timer, once, soon: LVT, divide by 1, initial count.
        for (register, value) in [(0x832, VECTOR), (0x83e, 0xb), (0x838, 2_000)] {
            p.mov(ecx, register)?;
            p.mov(eax, value)?;
            p.xor(edx, edx)?;
            p.wrmsr()?;
        }
        p.mov(edi, (FREE + PAGE) as u32)?;
        p.mov(ecx, COUNT)?;
        p.mov(eax, 0xabu32)?;
        p.mark()?;
        p.sti()?;
        p.rep().stosb()?;
        p.cli()?;
        p.mov(eax, ecx)?;
        p.result(0)?;
        p.mov(rax, rdi)?;
        p.result(1)?;
        // It has come by then, or comes now.
        let mut again = p.create_label();
        p.sti()?;
        p.set_label(&mut again)?;
        p.cmp(dword_ptr(super::LOG), (super::LOG + 16) as i32)?;
        p.je(again)?;
        p.cli()
    });
    assert_eq!(ran.results[..2], [0, FREE + PAGE + u64::from(COUNT)]);
    let [event] = ran.events[..] else { panic!("{:?}", ran.events) };
    assert_eq!(event.vector, u64::from(VECTOR));
    let mut bytes = vec![0; COUNT as usize + 1];
    ran.ram.read(FREE + PAGE, &mut bytes).unwrap();
    assert!(bytes[..COUNT as usize].iter().all(|byte| *byte == 0xab));
    assert_eq!(bytes[COUNT as usize], 0);
}
