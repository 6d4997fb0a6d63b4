//! Two CPUs on the same memory: locked operations, code that one changes for the other (SDM volume 3, chapter 9).

use iced_x86::code_asm::*;

use super::{Asm, FREE, Program, Setup, Test, assemble};
use crate::engine::{Engine, Exit};
use crate::mem::PAGE;

pub(super) const TESTS: &[(&str, Test)] =
    &[("two CPUs count together", counting), ("a CPU executes what another has changed", cross_modified)];

/// Where each CPU says that it is there, and a lock, and counters.
const READY: u64 = FREE;
const COUNTERS: u64 = FREE + 64;
const SECOND: u64 = FREE + PAGE;
const FUNCTION: u64 = FREE + 2 * PAGE;
const ROUNDS: u32 = 3_000;
const SPLIT: u64 = FREE + 8 * PAGE - 2;
const SPLIT_ROUNDS: u32 = 20;

/// Runs `first` and `second` on a CPU each.
fn run(
    engine: &dyn Engine,
    first: impl FnOnce(&mut Program) -> Asm,
    second: impl FnOnce(&mut Program) -> Asm,
) -> super::Ran {
    let (mut one, mut two) = (Program::new(), Program::new());
    first(&mut one).and_then(|()| one.done()).unwrap();
    second(&mut two).and_then(|()| two.done()).unwrap();
    let setup = Setup::new(engine, 2, &mut one);
    setup.write(SECOND, &assemble(&mut two.asm, SECOND));
    setup.write(FUNCTION, &[0xb8, 1, 0, 0, 0, 0xc3]);
    let mut state = setup.state.clone();
    state.regs.rip = SECOND;
    state.regs.rsp = super::USER_STACK;
    let second = setup.guest.start_with(1, &state);
    let first = setup.guest.start_with(0, &setup.state);
    assert_eq!((first.end().0, second.end().0), (Exit::Kicked, Exit::Kicked));
    super::Ran::of(setup.guest.ram)
}

fn count(p: &mut Program) -> Asm {
    p.lock().inc(dword_ptr(READY))?;
    let (mut wait, mut again) = (p.create_label(), p.create_label());
    p.set_label(&mut wait)?;
    p.pause()?;
    p.cmp(dword_ptr(READY), 2)?;
    p.jne(wait)?;
    p.mov(ecx, ROUNDS)?;
    p.set_label(&mut again)?;
    p.lock().inc(dword_ptr(COUNTERS))?;
    p.mov(eax, 3)?;
    p.lock().xadd(word_ptr(COUNTERS + 8), ax)?;
    // Without LOCK, but XCHG has it always: a lock around a counter.
    let (mut spin, mut retry) = (p.create_label(), p.create_label());
    p.set_label(&mut spin)?;
    p.mov(eax, 1)?;
    p.xchg(dword_ptr(READY + 32), eax)?;
    p.test(eax, eax)?;
    p.jnz(spin)?;
    p.inc(qword_ptr(COUNTERS + 16))?;
    p.mov(dword_ptr(READY + 32), 0)?;
    p.set_label(&mut retry)?;
    p.mov(rax, qword_ptr(COUNTERS + 24))?;
    p.lea(rbx, ptr(rax + 5))?;
    p.lock().cmpxchg(qword_ptr(COUNTERS + 24), rbx)?;
    p.jne(retry)?;
    p.lock().btc(dword_ptr(COUNTERS + 40), 3)?;
    p.dec(ecx)?;
    p.jnz(again)?;
    // Across two pages: slow on hosts that punish it.
    let mut split = p.create_label();
    p.mov(ecx, SPLIT_ROUNDS)?;
    p.set_label(&mut split)?;
    p.lock().add(dword_ptr(SPLIT), 0x101)?;
    p.dec(ecx)?;
    p.jnz(split)
}

fn counting(engine: &dyn Engine) {
    let rounds = 2 * u64::from(ROUNDS);
    let ran = run(engine, count, count);
    assert_eq!(ran.quad(SPLIT) as u32, 2 * SPLIT_ROUNDS * 0x101);
    assert_eq!(ran.quad(COUNTERS) as u32, 2 * ROUNDS);
    assert_eq!(ran.quad(COUNTERS + 8) as u16, (3 * rounds) as u16);
    assert_eq!(ran.quad(COUNTERS + 16), rounds);
    assert_eq!(ran.quad(COUNTERS + 24), 5 * rounds);
    assert_eq!(ran.quad(COUNTERS + 40), 0);
}

fn cross_modified(engine: &dyn Engine) {
    // One writes a function's result and a turn, the other calls it when it is its turn.
    const LAST: u32 = 300;
    let ran = run(
        engine,
        |p| {
            p.mov(ecx, 2)?;
            let (mut again, mut wait) = (p.create_label(), p.create_label());
            p.set_label(&mut again)?;
            p.mov(dword_ptr(FUNCTION + 1), ecx)?;
            p.mov(dword_ptr(READY), ecx)?;
            p.set_label(&mut wait)?;
            p.pause()?;
            p.cmp(dword_ptr(READY + 8), ecx)?;
            p.jne(wait)?;
            p.inc(ecx)?;
            p.cmp(ecx, LAST as i32)?;
            p.jbe(again)
        },
        |p| {
            p.mov(ecx, 2)?;
            p.xor(esi, esi)?;
            p.mov(rdi, FUNCTION)?;
            p.call(rdi)?;
            let mut again = p.create_label();
            p.set_label(&mut again)?;
            p.pause()?;
            p.cmp(dword_ptr(READY), ecx)?;
            p.jne(again)?;
            // Whoever executes changed code serialises first (SDM volume 3, 9.1.3).
            p.mov(rax, cr3)?;
            p.mov(cr3, rax)?;
            p.call(rdi)?;
            p.sub(eax, ecx)?;
            p.or(esi, eax)?;
            p.mov(dword_ptr(READY + 8), ecx)?;
            p.inc(ecx)?;
            p.cmp(ecx, LAST as i32)?;
            p.jbe(again)?;
            p.mov(eax, esi)?;
            p.result(0)
        },
    );
    assert_eq!(ran.quad(READY + 8) as u32, LAST);
    assert_eq!(ran.results[0], 0, "old code was executed");
}
