//! Page tables: rights, accessed and dirty bits, error codes, accesses across pages (SDM volume 3, chapter 4).

use iced_x86::code_asm::*;

use super::{
    Asm, FREE, KERNEL_STACK, Program, Ran, Setup, Test, USER_CODE, USER_DATA, USER_STACK, fault, page_fault, piece,
};
use crate::engine::Engine;
use crate::engine::contract::{PAGE_TABLES, RAM_SIZE};
use crate::mem::PAGE;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("accessed and dirty bits", accessed_and_dirty),
    ("rights of supervisors", supervisor_rights),
    ("rights of users", user_rights),
    ("large pages", large_pages),
    ("accesses across two pages", across_pages),
    ("INVLPG and CR3 forget translations", stale_translations),
];

/// Linear addresses from here are this file's: one table of 4 KiB pages, one entry of 2 MiB.
const AREA: u64 = 0x4000_0000;
const DIRECTORY: u64 = FREE;
const TABLE: u64 = FREE + PAGE;
/// Frames that tests map.
const FRAME: u64 = FREE + 0x1_0000;
const PRESENT: u64 = 1;
const WRITABLE: u64 = 2;
const USER: u64 = 4;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const LARGE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 63;

/// Runs `body` with `entries` as the area's first pages.
fn run(engine: &dyn Engine, entries: &[u64], body: impl FnOnce(&mut Program) -> Asm) -> Ran {
    set_up(engine, entries, body).run()
}

fn set_up(engine: &dyn Engine, entries: &[u64], body: impl FnOnce(&mut Program) -> Asm) -> Setup {
    let mut program = Program::new();
    body(&mut program).and_then(|()| program.done()).unwrap();
    let setup = Setup::new(engine, 1, &mut program);
    setup.quad(PAGE_TABLES + PAGE + 8, DIRECTORY | PRESENT | WRITABLE | USER);
    setup.quad(DIRECTORY, TABLE | PRESENT | WRITABLE | USER);
    (0..).zip(entries).for_each(|(index, entry)| setup.quad(TABLE + 8 * index, *entry));
    setup
}

fn entry(index: u64) -> u64 {
    TABLE + 8 * index
}

fn accessed_and_dirty(engine: &dyn Engine) {
    let page = |index: u64| (FRAME + index * PAGE) | PRESENT | WRITABLE;
    let ran = run(engine, &[page(0), page(1), page(2), page(3), page(4)], |p| {
        p.mov(rbx, AREA)?;
        p.mov(rax, qword_ptr(rbx + 8))?;
        p.mov(qword_ptr(rbx + 0x1008), rax)?;
        // Read first, then written.
        p.mov(rax, qword_ptr(rbx + 0x2008))?;
        p.mov(qword_ptr(rbx + 0x2010), rax)?;
        // Written although nothing changes.
        p.lock().cmpxchg(qword_ptr(rbx + 0x3008), rbx)
    });
    assert_eq!(ran.events, []);
    let bits: Vec<_> = (0..5).map(|index| ran.quad(entry(index)) & (ACCESSED | DIRTY)).collect();
    assert_eq!(bits, [ACCESSED, ACCESSED | DIRTY, ACCESSED | DIRTY, ACCESSED | DIRTY, 0]);
    assert_eq!(ran.quad(DIRECTORY) & (ACCESSED | DIRTY), ACCESSED);
}

fn supervisor_rights(engine: &dyn Engine) {
    let entries = [FRAME | PRESENT, FRAME | PRESENT | WRITABLE | NO_EXECUTE, FRAME | PRESENT | WRITABLE | 1 << 51, 0];
    let setup = set_up(engine, &entries, |p| {
        p.mov(rbx, AREA)?;
        p.mov(rcx, AREA + PAGE)?;
        p.attempt(|a| a.mov(qword_ptr(rbx + 8), rax))?;
        p.attempt(|a| a.mov(rax, qword_ptr(rbx + 8)))?;
        // A fault in a function that was called leaves the return address on the stack.
        let mut after = p.create_label();
        p.go_on_at(after)?;
        p.mov(r14, rcx)?;
        p.call(rcx)?;
        p.set_label(&mut after)?;
        p.pop(rax)?;
        p.call(rbx)?;
        p.attempt(|a| a.mov(rax, qword_ptr(rbx + 0x2008)))?;
        p.attempt(|a| a.mov(qword_ptr(rbx + 0x3008), rax))?;
        // Without WP supervisors write everywhere.
        p.mov(rax, cr0)?;
        p.btr(rax, 16)?;
        p.mov(cr0, rax)?;
        p.xor(r15d, r15d)?;
        p.mov(dword_ptr(rbx + 16), 7)
    });
    setup.write(FRAME, &[0xc3]);
    let ran = setup.run();
    let expected = [
        page_fault(3, AREA + 8),
        page_fault(0x11, AREA + PAGE),
        page_fault(9, AREA + 0x2008),
        page_fault(2, AREA + 0x3008),
    ];
    assert_eq!(ran.events, expected);
    assert_eq!(ran.quad(FRAME + 16), 7);
}

fn user_rights(engine: &dyn Engine) {
    let user = PRESENT | WRITABLE | USER;
    // Code, data, and pages that are somebody else's or cannot be written.
    let entries =
        [FRAME | user, (FRAME + PAGE) | user, (FRAME + 2 * PAGE) | PRESENT | WRITABLE, (FRAME + PAGE) | PRESENT | USER];
    let setup = set_up(engine, &entries, |p| {
        p.push(USER_DATA as i32)?;
        p.push(USER_STACK as i32)?;
        p.push(2)?;
        p.push(USER_CODE as i32)?;
        p.push(AREA as i32)?;
        p.iretq()
    });
    let code = piece(64, AREA, |a| {
        let mut attempt = |body: &dyn Fn(&mut CodeAssembler) -> Asm| {
            let (mut here, mut after) = (a.create_label(), a.create_label());
            a.lea(r15, ptr(after))?;
            a.lea(r14, ptr(here))?;
            a.set_label(&mut here)?;
            body(a)?;
            a.set_label(&mut after)?;
            a.nop()
        };
        attempt(&|a| a.mov(ebx, (AREA + PAGE) as u32))?;
        attempt(&|a| a.mov(qword_ptr(rbx + 8), rbx))?;
        attempt(&|a| a.mov(rax, qword_ptr(rbx + 0x1008)))?;
        attempt(&|a| a.mov(qword_ptr(rbx + 0x2008), rbx))?;
        attempt(&|a| a.mov(rax, cr0))?;
        attempt(&|a| a.out(0x10, al))?;
        attempt(&|a| a.hlt())?;
        attempt(&|a| a.cli())?;
        attempt(&|a| a.int(8))?;
        a.xor(r15d, r15d)?;
        a.lea(r14, ptr(AREA))?;
        a.int(0x21)
    });
    let end = code.len() as i64;
    setup.write(FRAME, &code);
    // The way out: the last handler does not come back.
    let ran = Stop::at(setup, 0x21).run();
    let expected = [
        page_fault(5, AREA + 2 * PAGE + 8),
        page_fault(7, AREA + 3 * PAGE + 8),
        fault(13, 0),
        fault(13, 0),
        fault(13, 0),
        fault(13, 0),
        fault(13, 8 * 8 + 2),
    ];
    assert_eq!(ran.events, expected);
    assert_eq!(ran.quad(FRAME + PAGE + 8), AREA + PAGE);
    assert_eq!(ran.results[0], KERNEL_STACK - 40, "the stack of the handler");
    assert_eq!(ran.results[1] as i64, AREA as i64 + end, "the return address");
    assert_eq!(ran.results[2..4], [USER_CODE, USER_DATA]);
}

/// A handler that ends the guest, with RSP, return address, CS and SS as results.
struct Stop;

impl Stop {
    fn at(setup: Setup, vector: u64) -> Setup {
        let at = FREE + 0x8000;
        let code = piece(64, at, |a| {
            a.mov(rax, rsp)?;
            a.mov(qword_ptr(super::RESULTS), rax)?;
            for (index, offset) in [(1, 0), (2, 8), (3, 32)] {
                a.mov(rax, qword_ptr(rsp + offset))?;
                a.mov(qword_ptr(super::RESULTS + 8 * index), rax)?;
            }
            a.out(super::DONE_PORT, al)
        });
        setup.write(at, &code);
        let gate = at & 0xffff | 8 << 16 | 0xee00 << 32 | (at >> 16 & 0xffff) << 48;
        setup.quad(crate::engine::contract::IDT + vector * 16, gate);
        setup
    }
}

fn large_pages(engine: &dyn Engine) {
    let setup = set_up(engine, &[], |p| {
        p.mov(rbx, AREA + (1 << 21))?;
        p.mov(rax, qword_ptr(rbx + FRAME as i32))?;
        p.result(0)?;
        p.mov(rax, 2 * AREA)?;
        p.add(rax, FRAME as i32)?;
        p.mov(rax, qword_ptr(rax))?;
        p.result(1)?;
        // Low address bits of a large page are reserved.
        p.attempt(|a| a.mov(rax, qword_ptr(rbx + (1 << 21) + 8)))
    });
    setup.quad(DIRECTORY + 8, PRESENT | WRITABLE | LARGE);
    setup.quad(DIRECTORY + 16, PRESENT | WRITABLE | LARGE | 1 << 13);
    // A page of 1 GiB.
    setup.quad(PAGE_TABLES + PAGE + 16, PRESENT | WRITABLE | LARGE);
    setup.quad(FRAME, 0x1234);
    let ran = setup.run();
    assert_eq!(ran.results[..2], [0x1234, 0x1234]);
    assert_eq!(ran.events, [page_fault(9, AREA + (2 << 21) + 8)]);
    assert_eq!(ran.quad(DIRECTORY + 8) & (ACCESSED | DIRTY), ACCESSED);
    const { assert!(FRAME + PAGE < RAM_SIZE) };
}

fn across_pages(engine: &dyn Engine) {
    let page = |index: u64| (FRAME + index * PAGE) | PRESENT | WRITABLE;
    // The second linear page is the third frame; then a page that cannot be written, and nothing.
    let setup = set_up(engine, &[page(0), page(2), page(1) & !WRITABLE], |p| {
        p.mov(rbx, AREA)?;
        p.mov(rax, 0x1122_3344_5566_7788u64)?;
        p.mov(qword_ptr(rbx + 0xffd), rax)?;
        p.mov(rax, qword_ptr(rbx + 0xffc))?;
        p.result(0)?;
        p.attempt(|a| a.mov(qword_ptr(rbx + 0x1ffc), rax))?;
        p.attempt(|a| a.mov(rax, qword_ptr(rbx + 0x2ffc)))?;
        p.attempt(|a| a.lock().inc(qword_ptr(rbx + 0x1ffe)))?;
        p.xor(r15d, r15d)?;
        // Code too: MOV EAX, imm32; RET.
        p.mov(dword_ptr(rbx + 0xff0), 0x3344_55b8)?;
        p.mov(rcx, AREA + PAGE - 3)?;
        p.mov(dword_ptr(rcx), 0x0403_02b8)?;
        p.mov(word_ptr(rcx + 4), 0xc305u32)?;
        p.call(rcx)?;
        p.result(1)
    });
    setup.quad(FRAME + 2 * PAGE + 0xff8, 0);
    let ran = setup.run();
    assert_eq!(ran.events, [page_fault(3, AREA + 0x2000), page_fault(0, AREA + 0x3000), page_fault(3, AREA + 0x2000)]);
    assert_eq!(ran.results[0], 0x2233_4455_6677_8800);
    assert_eq!(ran.results[1], 0x0504_0302);
    assert_eq!(ran.quad(FRAME + 2 * PAGE + 0xff8), 0, "nothing of what faulted was written");
}

fn stale_translations(engine: &dyn Engine) {
    let page = |index: u64| (FRAME + index * PAGE) | PRESENT | WRITABLE;
    let setup = set_up(engine, &[page(0), page(0)], |p| {
        p.mov(rbx, AREA)?;
        p.mov(rax, qword_ptr(rbx))?;
        p.mov(rax, qword_ptr(rbx + 0x1000))?;
        for (index, flush) in [0u64, 1].into_iter().enumerate() {
            p.mov(rax, page(1 + index as u64))?;
            p.mov(qword_ptr(entry(flush)), rax)?;
        }
        p.invlpg(ptr(rbx))?;
        p.mov(rax, qword_ptr(rbx))?;
        p.result(0)?;
        p.mov(rax, cr3)?;
        p.mov(cr3, rax)?;
        p.mov(rax, qword_ptr(rbx + 0x1000))?;
        p.result(1)?;
        // Not present any more.
        p.mov(dword_ptr(entry(0)), 0)?;
        p.invlpg(ptr(rbx))?;
        p.attempt(|a| a.mov(rax, qword_ptr(rbx)))?;
        // Present again: absent pages are not cached.
        p.mov(rax, page(0))?;
        p.mov(qword_ptr(entry(0)), rax)?;
        p.mov(rax, qword_ptr(rbx))?;
        p.result(2)
    });
    (0..3).for_each(|index| setup.quad(FRAME + index * PAGE, index + 1));
    let ran = setup.run();
    assert_eq!(ran.results[..3], [2, 3, 1]);
    assert_eq!(ran.events, [page_fault(0, AREA)]);
}
