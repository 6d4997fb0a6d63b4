//! What CPUs do beyond single instructions, as tests: tiny guests that every engine must run with the same results. They
//! page, fault, trap, change their own code and their mode. Each says what must come out; an engine's own test module
//! calls [`run_all`].
//!
//! A guest has handlers for all exceptions, which write down what they see. See [`Program::attempt`] for how a guest goes
//! on after a fault.

mod breakpoints;
pub(super) mod debugger;
mod exceptions;
mod interrupts;
mod modes;
mod modify;
mod paging;
mod smp;

use std::arch::x86_64::__cpuid;

use iced_x86::code_asm::*;
use iced_x86::{BlockEncoderOptions, IcedError};

use super::contract::{Access, CODE, DONE, GDT, Guest, IDT, PAGE_TABLES, long_mode};
use super::{Engine, Exit};
use crate::arch::x86_64::state::{CpuState, Segment};
use crate::mem::{PAGE, Ram};

/// Vectors that have handlers.
const VECTORS: u64 = 0x30;
const TSS: u64 = 0xc000;
/// Entries of the vectors' handlers, 16 bytes each; then what they have in common.
const STUBS: u64 = 0x1_8000;
const COMMON: u64 = STUBS + VECTORS * 16;
/// Where the next event goes, and the events.
const LOG: u64 = 0x4_0000;
const EVENT: u64 = 40;
/// Numbers that guests leave for the test.
const RESULTS: u64 = 0x4_8000;
/// Top of the stack at privilege 3.
const USER_STACK: u64 = 0x5_8000;
/// Top of the stack that privilege 0 starts with, by the TSS.
const KERNEL_STACK: u64 = 0x5_c000;
/// Top of the stack of double faults.
const FAULT_STACK: u64 = 0x5_f000;
/// Free for tests: code, tables, data.
const FREE: u64 = 0x6_0000;
/// An I/O port that ends the guest.
const DONE_PORT: u32 = 0xf4;

/// Selectors. The order of the user's is what SYSRET wants.
const USER_CODE32: u64 = 0x1b;
const USER_DATA: u64 = 0x23;
const USER_CODE: u64 = 0x2b;
const TASK: u16 = 0x30;
const CODE32: u64 = 0x40;
const CODE16: u64 = 0x48;
const DATA16: u64 = 0x50;

type Test = fn(&dyn Engine);
type Asm = std::result::Result<(), IcedError>;

/// Runs every guest; panics name the one that failed.
pub fn run_all(engine: &dyn Engine) {
    let breakpoints = if can_break(engine) {
        [breakpoints::TESTS, debugger::TESTS]
    } else {
        println!(
            "kvm: NOT RUN: breakpoints, of which QEMU's emulation of SVM dies, and INT3, which it does not intercept: \
             scripts/nested --bochs"
        );
        [&[][..]; 2]
    };
    let [own, debuggers] = breakpoints;
    let files =
        [own, debuggers, exceptions::TESTS, paging::TESTS, modify::TESTS, interrupts::TESTS, modes::TESTS, smp::TESTS];
    for (name, test) in files.into_iter().flatten() {
        println!("{}: {name}", engine.name());
        test(engine);
    }
}

/// Whether breakpoints can be tried on this engine here.
fn can_break(engine: &dyn Engine) -> bool {
    engine.name() != "kvm" || !host_is_tcg()
}

/// Whether the CPU below is QEMU's (its signature in the hypervisor's leaf), as in scripts/nested. QEMU 7.2 ends with a
/// segmentation fault when KVM in its guest takes a nested guest's breakpoints away: it uses the address in DR0 to DR3
/// as a pointer. And INT3 in its nested guests is no exception that a hypervisor can intercept, as it is on AMD's CPUs
/// (APM volume 2, 15.12.4).
fn host_is_tcg() -> bool {
    const HYPERVISOR: u32 = 1 << 31;
    let leaf = __cpuid(0x4000_0000);
    __cpuid(1).ecx & HYPERVISOR != 0
        && [leaf.ebx, leaf.ecx, leaf.edx]
            == [u32::from_le_bytes(*b"TCGT"), u32::from_le_bytes(*b"CGTC"), u32::from_le_bytes(*b"GTCG")]
}

/// What a handler saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Event {
    vector: u64,
    error: u64,
    /// Return address, from the place that R14 holds.
    offset: i64,
    /// CR2 of page faults.
    address: u64,
}

/// An exception at the instruction that R14 points to.
fn fault(vector: u64, error: u64) -> Event {
    Event { vector, error, offset: 0, address: 0 }
}

fn page_fault(error: u64, address: u64) -> Event {
    Event { vector: 14, error, offset: 0, address }
}

/// An interrupt or trap, after which the guest goes on `offset` bytes behind the place that R14 points to.
fn trap(vector: u64, offset: i64) -> Event {
    Event { vector, error: 0, offset, address: 0 }
}

/// A guest's code at [`CODE`], in 64-bit mode at privilege 0.
struct Program {
    asm: CodeAssembler,
}

impl std::ops::Deref for Program {
    type Target = CodeAssembler;

    fn deref(&self) -> &CodeAssembler {
        &self.asm
    }
}

impl std::ops::DerefMut for Program {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.asm
    }
}

impl Program {
    fn new() -> Self {
        Self { asm: CodeAssembler::new(64).unwrap() }
    }

    /// Executes what `body` assembles. Events tell places from its start; after a fault the guest goes on behind it.
    fn attempt(&mut self, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
        let mut after = self.create_label();
        self.go_on_at(after)?;
        body(self)?;
        self.set_label(&mut after)?;
        self.zero_bytes()?;
        self.xor(r15d, r15d)
    }

    /// The same for what traps: the guest goes on where the handler returns to.
    fn observe(&mut self, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Asm {
        self.xor(r15d, r15d)?;
        self.mark()?;
        body(self)
    }

    /// After the next fault the guest goes on at `label`. Events tell places from here.
    fn go_on_at(&mut self, label: CodeLabel) -> Asm {
        self.lea(r15, ptr(label))?;
        self.mark()
    }

    /// Events tell places from here.
    fn mark(&mut self) -> Asm {
        let mut here = self.create_label();
        self.lea(r14, ptr(here))?;
        self.set_label(&mut here)?;
        self.zero_bytes()
    }

    /// Leaves RAX for the test, as result `index`.
    fn result(&mut self, index: u64) -> Asm {
        self.mov(qword_ptr(RESULTS + 8 * index), rax)
    }

    /// Ends the guest.
    fn done(&mut self) -> Asm {
        self.out(DONE_PORT, al)
    }

    fn bytes(&mut self) -> Vec<u8> {
        assemble(&mut self.asm, CODE)
    }
}

/// The bytes of what `asm` holds, for address `at`.
fn assemble(asm: &mut CodeAssembler, at: u64) -> Vec<u8> {
    asm.assemble_options(at, BlockEncoderOptions::NONE).unwrap().inner.code_buffer
}

/// A small piece of code for address `at`.
fn piece(bits: u32, at: u64, body: impl FnOnce(&mut CodeAssembler) -> Asm) -> Vec<u8> {
    let mut asm = CodeAssembler::new(bits).unwrap();
    body(&mut asm).unwrap();
    assemble(&mut asm, at)
}

/// What a guest did.
struct Ran {
    events: Vec<Event>,
    results: Vec<u64>,
    ram: Ram,
}

/// A guest about to run.
struct Setup {
    guest: Guest,
    state: CpuState,
    /// The CPU below may be QEMU's, as in scripts/nested.
    qemu: bool,
}

impl Setup {
    fn new(engine: &dyn Engine, cpus: u32, program: &mut Program) -> Self {
        let guest = Guest::new(engine, cpus, &program.bytes());
        let ram = &guest.ram;
        write_tables(ram);
        write_handlers(ram).unwrap();
        let mut state = long_mode();
        let system = &mut state.system;
        system.gdt.limit = 0x57;
        system.tr = Segment { base: TSS, limit: 0x67, selector: TASK, kind: 11, present: true, ..Segment::default() };
        system.cr0 |= 1 << 16; // WP
        system.efer |= 1 << 11 | 1; // NXE, SCE
        Self { guest, state, qemu: Self::is_qemu(engine) }
    }

    /// The CPU below may be QEMU's, as in scripts/nested.
    fn is_qemu(engine: &dyn Engine) -> bool {
        engine.name() == "kvm"
    }

    fn quad(&self, at: u64, value: u64) {
        self.write(at, &value.to_le_bytes());
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.guest.ram.write(at, bytes).unwrap();
    }

    fn run(self) -> Ran {
        let running = self.guest.start_with(0, &self.state);
        let (exit, _) = running.end();
        let mut ran = Ran::of(self.guest.ram);
        if self.qemu {
            ran.events.iter_mut().for_each(correct);
        }
        assert_eq!(exit, Exit::Kicked, "{:x?}", ran.events);
        let seen: Vec<_> = running.accesses.try_iter().map(|access| matches!(access, Access::Write(DONE, _))).collect();
        assert_eq!(seen, [true], "no accesses but the one that ends it");
        ran
    }
}

/// Undoes two mistakes of QEMU's CPU: reserved bits without P (SDM volume 3, 4.7), and indices of gates counted in 16 bytes
/// (6.13).
fn correct(event: &mut Event) {
    match (event.vector, event.error) {
        (14, error) if error & 8 != 0 => event.error |= 1,
        (11 | 13, error @ (0x602 | 0x82)) => event.error = ((error & !2) / 2) | 2,
        _ => (),
    }
}

fn quad_at(ram: &Ram, at: u64) -> u64 {
    let mut bytes = [0; 8];
    ram.read(at, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

impl Ran {
    fn of(ram: Ram) -> Self {
        let quad = |at| quad_at(&ram, at);
        let count = (quad(LOG).wrapping_sub(LOG + 16) / EVENT).min(100);
        let events = (0..count).map(|index| {
            let at = LOG + 16 + index * EVENT;
            let vector = quad(at);
            let address = if vector == 14 { quad(at + 24) } else { 0 };
            Event { vector, error: quad(at + 8), offset: quad(at + 16) as i64, address }
        });
        let events = events.collect();
        Self { events, results: (0..16).map(|index| quad(RESULTS + 8 * index)).collect(), ram }
    }

    fn quad(&self, at: u64) -> u64 {
        quad_at(&self.ram, at)
    }
}

/// Assembles and runs a guest that needs nothing more.
fn run(engine: &dyn Engine, body: impl FnOnce(&mut Program) -> Asm) -> Ran {
    let mut program = Program::new();
    body(&mut program).and_then(|()| program.done()).unwrap();
    Setup::new(engine, 1, &mut program).run()
}

/// GDT, IDT, TSS, and page tables that privilege 3 may use too.
fn write_tables(ram: &Ram) {
    let quad = |at: u64, value: u64| ram.write(at, &value.to_le_bytes()).unwrap();
    let segments = [
        0,
        0x00af_9b00_0000_ffff, // 8: code, 64 bits
        0x00cf_9300_0000_ffff, // 10: data
        0x00cf_fb00_0000_ffff, // 18: code of privilege 3, 32 bits
        0x00cf_f300_0000_ffff, // 20: data of privilege 3
        0x00af_fb00_0000_ffff, // 28: code of privilege 3, 64 bits
        (TSS & 0xff_ffff) << 16 | 0x67 | 0x8b << 40,
        0,
        0x00cf_9b00_0000_ffff, // 40: code, 32 bits
        0x000f_9b00_0000_ffff, // 48: code, 16 bits
        0x000f_9300_0000_ffff, // 50: data, 16 bits
    ];
    (0..).zip(segments).for_each(|(index, value)| quad(GDT + 8 * index, value));
    for vector in 0..VECTORS {
        let entry = STUBS + vector * 16;
        let (level, stack) = (if vector == 3 || vector >= 0x20 { 3 } else { 0 }, u64::from(vector == 8));
        let low = entry & 0xffff | 8 << 16 | stack << 32 | (0x8e00 | level << 13) << 32 | (entry >> 16 & 0xffff) << 48;
        quad(IDT + vector * 16, low);
        quad(IDT + vector * 16 + 8, 0);
    }
    quad(TSS + 4, KERNEL_STACK);
    quad(TSS + 0x24, FAULT_STACK);
    // No I/O permission map.
    ram.write(TSS + 0x66, &0x68u16.to_le_bytes()).unwrap();
    quad(PAGE_TABLES, (PAGE_TABLES + PAGE) | 7);
    quad(PAGE_TABLES + PAGE, (PAGE_TABLES + 2 * PAGE) | 7);
    (0..512).for_each(|page| quad(PAGE_TABLES + 2 * PAGE + 8 * page, page << 21 | 0x87));
    quad(LOG, LOG + 16);
}

fn write_handlers(ram: &Ram) -> Asm {
    for vector in 0..VECTORS {
        let has_error = matches!(vector, 8 | 10..=14 | 17);
        let code = piece(64, STUBS + vector * 16, |a| {
            if !has_error {
                a.push(0)?;
            }
            a.push(vector as i32)?;
            a.jmp(COMMON)
        });
        assert!(code.len() <= 16);
        ram.write(STUBS + vector * 16, &code).unwrap();
    }
    ram.write(COMMON, &piece(64, COMMON, common)).unwrap();
    Ok(())
}

/// Writes an event, ends an interrupt, and goes on at R15 unless that is zero.
fn common(a: &mut CodeAssembler) -> Asm {
    for register in [rax, rbx, rcx, rdx] {
        a.push(register)?;
    }
    a.mov(rbx, qword_ptr(LOG))?;
    // Vector and error code.
    for offset in [0, 8] {
        a.mov(rax, qword_ptr(rsp + 32 + offset))?;
        a.mov(qword_ptr(rbx + offset), rax)?;
    }
    a.mov(rax, qword_ptr(rsp + 48))?;
    a.sub(rax, r14)?;
    a.mov(qword_ptr(rbx + 16), rax)?;
    a.mov(rax, cr2)?;
    a.mov(qword_ptr(rbx + 24), rax)?;
    a.add(rbx, EVENT as i32)?;
    a.mov(qword_ptr(LOG), rbx)?;
    let (mut exception, mut back) = (a.create_label(), a.create_label());
    a.cmp(qword_ptr(rsp + 32), 0x20)?;
    a.jb(exception)?;
    // Only what the local APIC delivers has an end; for others this does nothing.
    a.cmp(qword_ptr(rsp + 32), 0x28)?;
    a.jb(back)?;
    a.mov(ecx, 0x80b)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.jmp(back)?;
    a.set_label(&mut exception)?;
    a.test(r15, r15)?;
    a.jz(back)?;
    a.mov(qword_ptr(rsp + 48), r15)?;
    a.set_label(&mut back)?;
    for register in [rdx, rcx, rbx, rax] {
        a.pop(register)?;
    }
    a.add(rsp, 16)?;
    a.iretq()
}
