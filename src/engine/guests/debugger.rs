//! A debugger outside of the guest (`engine::debug`). What needs plain instructions alone is part of the contract.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use iced_x86::code_asm::*;

use super::super::contract::{CODE, DONE, Guest, HANDLER, IDT, LIMIT, long_mode};
use super::{Asm, FREE, Test, can_break};
use crate::engine::debug::{On, Stop, Wanted, Watchpoint};
use crate::engine::{CpuIo, Engine, Exit, IoAddr, Kicker, Vcpu};
use crate::mem::Ram;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("a debugger's breakpoints", breakpoints),
    ("a guest's own INT3 while a debugger has breakpoints", own_int3),
    ("a debugger's watchpoints", watchpoints),
];

const INT3: u8 = 0xcc;

/// Kicks the vCPU when the guest is done; reads are zeros.
struct Io(Arc<dyn Kicker>);

impl CpuIo for Io {
    fn read(&self, _: IoAddr, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, at: IoAddr, _: &[u8]) {
        if at == DONE {
            self.0.kick();
        }
    }
}

/// A vCPU with a debugger.
struct Debugged {
    vcpu: Box<dyn Vcpu>,
    ram: Ram,
    int3: bool,
    io: Io,
    /// What the guest's handler of INT3 is.
    _vm: Arc<dyn crate::engine::Vm>,
}

impl Debugged {
    fn new(engine: &dyn Engine, code: impl FnOnce(&mut CodeAssembler) -> Asm) -> Self {
        let mut assembler = CodeAssembler::new(64).unwrap();
        code(&mut assembler).unwrap();
        assembler.mov(al, 0).unwrap();
        assembler.out(0xf4, al).unwrap();
        let guest = Guest::new(engine, 1, &assembler.assemble(CODE).unwrap());
        let mut vcpu = guest.vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid(&guest.vm.supported_cpuid().unwrap()).unwrap();
        vcpu.set_state(&long_mode()).unwrap();
        let int3 = vcpu.debugging().unwrap().needs_int3();
        let io = Io(vcpu.kicker());
        Self { vcpu, ram: guest.ram, int3, io, _vm: guest.vm }
    }

    fn set(&mut self, step: bool, breakpoints: &[u64], watchpoints: &[Watchpoint]) {
        let breakpoints = Arc::new(breakpoints.iter().copied().collect());
        let wanted = Wanted { step, breakpoints, watchpoints: watchpoints.to_vec() };
        self.vcpu.debugging().unwrap().set(&wanted).unwrap();
    }

    /// Runs to the next exit; where that is.
    fn run(&mut self) -> (Exit, u64) {
        let (done, is_done): (Sender<()>, Receiver<()>) = channel();
        let kicker = self.io.0.clone();
        let watch = std::thread::spawn(move || {
            if is_done.recv_timeout(LIMIT).is_err() {
                kicker.kick();
            }
        });
        let exit = self.vcpu.run(&self.io).unwrap();
        done.send(()).unwrap();
        watch.join().unwrap();
        (exit, self.vcpu.state().unwrap().regs.rip)
    }

    fn rax(&mut self) -> u64 {
        self.vcpu.state().unwrap().regs.rax
    }

    /// Without a debugger it goes on to its end.
    fn finish(mut self) {
        self.set(false, &[], &[]);
        assert_eq!(self.run().0, Exit::Kicked);
        let debug = self.vcpu.state().unwrap().debug;
        assert_eq!((debug.breakpoints, debug.dr7), ([0; 4], 0x400), "the guest's own registers");
    }
}

pub(in crate::engine) fn steps(engine: &dyn Engine) {
    let mut guest = Debugged::new(engine, |a| {
        // Touches the pages. To Bochs 2.7, the VT-x of `scripts/nested --bochs`, it is a step when an instruction exits to
        // the hypervisor for want of a page.
        a.push(rax)?;
        a.pop(rax)?;
        a.out(0xf4, al)?;
        let mut over = a.create_label();
        a.nop()?;
        a.mov(eax, 5)?;
        a.jmp(over)?;
        a.inc(eax)?;
        a.set_label(&mut over)?;
        a.push(rax)
    });
    assert_eq!(guest.run(), (Exit::Kicked, CODE + 4));
    for rip in [5, 10, 14, 15] {
        guest.set(true, &[], &[]);
        assert_eq!(guest.run(), (Exit::Debug(Stop::Step), CODE + rip));
    }
    assert_eq!((guest.rax(), guest.vcpu.state().unwrap().regs.rflags & 0x100), (5, 0), "no trap flag is seen");
    guest.finish();
}

fn breakpoints(engine: &dyn Engine) {
    let mut guest = Debugged::new(engine, |a| {
        let mut again = a.create_label();
        a.xor(eax, eax)?;
        a.nop()?;
        a.set_label(&mut again)?;
        a.inc(eax)?;
        a.cmp(eax, 3)?;
        a.jb(again)
    });
    let (at, other) = (CODE + 3, 0xffff_ffff_8000_0000);
    let mut byte = [0];
    guest.ram.read(at, &mut byte).unwrap();
    let plant = |guest: &Debugged, on: bool| {
        if guest.int3 {
            guest.ram.write(at, if on { &[INT3] } else { &byte }).unwrap();
        }
    };
    for round in 0..3 {
        plant(&guest, true);
        guest.set(false, &[other, at], &[]);
        assert_eq!(guest.run(), (Exit::Debug(Stop::Breakpoint), at), "round {round}");
        assert_eq!(guest.rax(), round);
        assert_eq!(guest.run(), (Exit::Debug(Stop::Breakpoint), at), "it counts as long as it is there");
        plant(&guest, false);
        guest.set(true, &[], &[]);
        assert_eq!(guest.run(), (Exit::Debug(Stop::Step), at + 2));
    }
    guest.finish();
}

fn own_int3(engine: &dyn Engine) {
    let mut guest = Debugged::new(engine, |a| {
        a.xor(eax, eax)?;
        a.int3()?;
        a.nop()
    });
    // The handler: add eax, 7; iretq.
    guest.ram.write(HANDLER, &[0x83, 0xc0, 0x07, 0x48, 0xcf]).unwrap();
    let gate = [HANDLER & 0xffff | 8 << 16 | 0x8e00 << 32 | (HANDLER >> 16 & 0xffff) << 48, 0];
    guest.ram.write(IDT + 3 * 16, &gate.map(u64::to_le_bytes).concat()).unwrap();
    let at = CODE + 3;
    if guest.int3 {
        guest.ram.write(at, &[INT3]).unwrap();
    }
    guest.set(false, &[at], &[]);
    assert_eq!(guest.run(), (Exit::Debug(Stop::Breakpoint), at), "behind the guest's own");
    assert_eq!(guest.rax(), 7, "the guest's handler ran");
    if guest.int3 {
        guest.ram.write(at, &[0x90]).unwrap();
    }
    guest.finish();
}

fn watchpoints(engine: &dyn Engine) {
    let mut guest = Debugged::new(engine, |a| {
        a.mov(ebx, FREE as u32)?;
        a.mov(eax, dword_ptr(rbx))?;
        a.mov(dword_ptr(rbx + 8), eax)?;
        a.mov(byte_ptr(rbx + 3), al)?;
        a.mov(eax, dword_ptr(rbx))
    });
    let writes = Watchpoint { at: FREE, len: 4, on: On::Writes };
    let accesses = Watchpoint { at: FREE, len: 4, on: On::Accesses };
    let elsewhere = Watchpoint { at: FREE + 0x1000, len: 8, on: On::Accesses };
    guest.set(false, &[], &[elsewhere, writes]);
    assert_eq!(guest.run(), (Exit::Debug(Stop::Watchpoint(writes)), CODE + 13), "after the write of its last byte");
    guest.set(false, &[], &[elsewhere, accesses]);
    assert_eq!(guest.run(), (Exit::Debug(Stop::Watchpoint(accesses)), CODE + 15), "after a read");
    guest.finish();
}

pub(in crate::engine) fn in_a_register(engine: &dyn Engine) {
    if !can_break(engine) {
        return println!("kvm: NOT RUN: debug registers, of which QEMU's emulation of SVM dies");
    }
    let mut guest = Debugged::new(engine, |a| {
        a.nop()?;
        a.mov(eax, 5)?;
        a.nop()
    });
    let point = Watchpoint { at: CODE + 6, len: 1, on: On::Execution };
    guest.set(false, &[], &[point]);
    assert_eq!(guest.run(), (Exit::Debug(Stop::Watchpoint(point)), CODE + 6));
    assert_eq!(guest.rax(), 5);
    guest.finish();
}
