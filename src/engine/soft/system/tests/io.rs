//! Ports.

use std::sync::Mutex;

use crate::engine::soft::code::op::Seg;
use crate::engine::soft::fault::{self, Break};
use crate::engine::soft::flags::rflags;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::shared::IoPointer;
use crate::engine::soft::system::testing::*;
use crate::engine::{CpuIo, IoAddr};

/// Remembers accesses; answers reads with a counter.
#[derive(Default)]
struct Ports(Mutex<Vec<(bool, u16, Vec<u8>)>>);

impl Ports {
    fn tell(&self, write: bool, at: IoAddr, data: &[u8]) -> u8 {
        let IoAddr::Port(port) = at else { panic!("{at:x?}") };
        let mut seen = self.0.lock().unwrap();
        seen.push((write, port, data.to_vec()));
        seen.len() as u8
    }

    fn seen(&self) -> Vec<(bool, u16, Vec<u8>)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

impl CpuIo for Ports {
    fn read(&self, at: IoAddr, data: &mut [u8]) {
        let number = self.tell(false, at, &vec![0; data.len()]);
        data.fill(number);
    }

    fn write(&self, at: IoAddr, data: &[u8]) {
        self.tell(true, at, data);
    }
}

#[test]
fn in_and_out_of_every_width() {
    let ports = Ports::default();
    let mut cpu = long();
    cpu.io = IoPointer::to(&ports);
    set(&mut cpu, &[(RegAt::RAX, 0x1122_3344_5566_7788), (RegAt::RDX, 0xffff_1234)]);
    for bytes in [&[0xe6, 0xf4][..], &[0x66, 0xe7, 0x80], &[0xe7, 0x80], &[0xee], &[0x66, 0xef], &[0xef]] {
        assert_eq!(exec(&mut cpu, bytes), Ok(()));
    }
    let word = vec![0x88, 0x77];
    let double = vec![0x88, 0x77, 0x66, 0x55];
    let wanted = [
        (true, 0xf4, vec![0x88]),
        (true, 0x80, word.clone()),
        (true, 0x80, double.clone()),
        (true, 0x1234, vec![0x88]),
        (true, 0x1234, word),
        (true, 0x1234, double),
    ];
    assert_eq!(ports.seen(), wanted);
    assert_eq!(exec(&mut cpu, &[0xe4, 0x60]), Ok(()));
    assert_eq!(cpu.regs.get64(RegAt::RAX), 0x1122_3344_5566_7701);
    assert_eq!(exec(&mut cpu, &[0x66, 0xed]), Ok(()));
    assert_eq!(cpu.regs.get64(RegAt::RAX), 0x1122_3344_5566_0202);
    assert_eq!(exec(&mut cpu, &[0xe5, 0x61]), Ok(()));
    assert_eq!(cpu.regs.get64(RegAt::RAX), 0x0303_0303);
    let stats = cpu.counters.stats();
    assert_eq!((stats.port_in, stats.port_out), (3, 6));
    cpu.io = IoPointer::NONE;
}

#[test]
fn programs_use_the_ports_that_the_bitmap_allows() {
    let mut cpu = user();
    let out = |cpu: &mut _, port: u64| {
        set(cpu, &[(RegAt::RDX, port)]);
        exec(cpu, &[0x66, 0xef])
    };
    let refused = Err((fault::GP, Some(0)));
    put(&mut cpu, TSS + 0x60, 0x68 << 48);
    assert_eq!(out(&mut cpu, 0x80), refused, "no bitmap within the limit");
    // The bitmap starts at 0x68; ports 0x80 to 0x82 are free.
    cpu.system.tr.limit = 0x68 + 0x20;
    for at in (0x68..0x98).step_by(8) {
        put(&mut cpu, TSS + at, u64::MAX);
    }
    put(&mut cpu, TSS + 0x68 + 0x10, !7);
    assert_eq!((out(&mut cpu, 0x80), out(&mut cpu, 0x81)), (Ok(()), Ok(())));
    assert_eq!((out(&mut cpu, 0x82), out(&mut cpu, 0x7f)), (refused, refused), "one of the two is not free");
    put(&mut cpu, TSS + 0x68 + 0x18, 0);
    assert_eq!((out(&mut cpu, 0xf8), out(&mut cpu, 0x100)), (Ok(()), refused), "the end of the bitmap");
    set_iopl(&mut cpu, 3);
    assert_eq!(out(&mut cpu, 0x100), Ok(()));
}

#[test]
fn strings_go_element_by_element() {
    let ports = Ports::default();
    let mut cpu = long();
    cpu.io = IoPointer::to(&ports);
    put(&mut cpu, 0x5000, 0x8877_6655_4433_2211);
    set(&mut cpu, &[(RegAt::RSI, 0x5000), (RegAt::RCX, 3), (RegAt::RDX, 0x3f8)]);
    assert_eq!(exec(&mut cpu, &[0xf3, 0x66, 0x6f]), Ok(()), "rep outsw");
    let wanted = [(true, 0x3f8, vec![0x11, 0x22]), (true, 0x3f8, vec![0x33, 0x44]), (true, 0x3f8, vec![0x55, 0x66])];
    assert_eq!(ports.seen(), wanted);
    assert_eq!((cpu.regs.get64(RegAt::RSI), cpu.regs.get64(RegAt::RCX)), (0x5006, 0));
    set(&mut cpu, &[(RegAt::RDI, 0x6004), (RegAt::RCX, 2)]);
    cpu.system.rflags |= rflags::DF;
    assert_eq!(exec(&mut cpu, &[0xf3, 0x6d]), Ok(()), "rep insd, downwards");
    assert_eq!((quad(&mut cpu, 0x6000), cpu.regs.get64(RegAt::RDI)), (0x0101_0101_0202_0202, 0x5ffc));
    set(&mut cpu, &[(RegAt::RCX, 0)]);
    assert_eq!(exec(&mut cpu, &[0xf3, 0x6d]), Ok(()), "none");
    assert_eq!(ports.seen().len(), 2);
    // A segment base counts for OUTS.
    let mut segment = cpu.segment(Seg::Fs);
    segment.base = 0x1000;
    cpu.set_segment(Seg::Fs, segment);
    cpu.mode_changed();
    set(&mut cpu, &[(RegAt::RSI, 0x4007)]);
    assert_eq!(exec(&mut cpu, &[0x64, 0x6e]), Ok(()), "outsb fs:[rsi]");
    assert_eq!((ports.seen(), cpu.regs.get64(RegAt::RSI)), (vec![(true, 0x3f8, vec![0x88])], 0x4006));
    cpu.io = IoPointer::NONE;
}

#[test]
fn a_fault_within_a_string_is_precise_and_reads_no_port() {
    let ports = Ports::default();
    let mut cpu = long();
    cpu.io = IoPointer::to(&ports);
    set(&mut cpu, &[(RegAt::RDI, HOLE - 2), (RegAt::RCX, 5), (RegAt::RDX, 0x60)]);
    // The page before the hole holds the page tables' 2 MiB: its end is free.
    assert_eq!(exec(&mut cpu, &[0xf3, 0x6c]), Err((fault::PF, Some(2))));
    assert_eq!((cpu.fault.address, cpu.regs.get64(RegAt::RDI), cpu.regs.get64(RegAt::RCX)), (HOLE, HOLE, 3));
    assert_eq!(ports.seen().len(), 2);
    set(&mut cpu, &[(RegAt::RSI, HOLE), (RegAt::RCX, 5)]);
    assert_eq!(exec(&mut cpu, &[0xf3, 0x6e]), Err((fault::PF, Some(0))));
    assert!(ports.seen().is_empty());
    cpu.io = IoPointer::NONE;
}

#[test]
fn strings_stop_when_the_cpu_is_wanted() {
    let ports = Ports::default();
    let mut cpu = long();
    cpu.io = IoPointer::to(&ports);
    set(&mut cpu, &[(RegAt::RSI, 0x5000), (RegAt::RCX, 3), (RegAt::RDX, 0x3f8)]);
    cpu.shared.attention(0).raise(crate::engine::soft::attention::KICK);
    assert_eq!(exec_break(&mut cpu, &[0xf3, 0x6e]), Err(Break::Again));
    assert_eq!((cpu.rip, cpu.regs.get64(RegAt::RCX), ports.seen().len()), (CODE, 2, 1));
    assert_eq!(exec_break(&mut cpu, &[0xf3, 0x6e]), Err(Break::Again));
    assert_eq!(exec_break(&mut cpu, &[0xf3, 0x6e]), Ok(()), "the last one is not repeated");
    assert_eq!((cpu.rip, cpu.regs.get64(RegAt::RCX)), (CODE + 2, 0));
    cpu.io = IoPointer::NONE;
}

#[test]
fn breakpoints_on_ports() {
    let ports = Ports::default();
    let mut cpu = long();
    cpu.io = IoPointer::to(&ports);
    set(&mut cpu, &[(RegAt::RDX, 0x81)]);
    cpu.system.breakpoints[2] = 0x80;
    // Two bytes at 80h, any access.
    cpu.system.dr7 |= 1 << 4 | 0b0110 << 24;
    cpu.breakpoints_changed();
    assert_eq!((exec(&mut cpu, &[0xee]), cpu.armed.met), (Ok(()), 0), "not without CR4.DE");
    cpu.system.cr4 |= crate::engine::soft::cpu::cr4::DE;
    cpu.breakpoints_changed();
    for (port, met) in [(0x7f, 0), (0x80, 4), (0x81, 4), (0x82, 0)] {
        set(&mut cpu, &[(RegAt::RDX, port)]);
        assert_eq!((exec(&mut cpu, &[0xee]), cpu.armed.met), (Ok(()), met), "{port:#x}");
        assert_eq!(cpu.take_met().map(|fault| fault.vector), (met != 0).then_some(fault::DB));
    }
    assert_eq!(cpu.system.dr6 & 0xf, 4);
    set(&mut cpu, &[(RegAt::RDX, 0x7f)]);
    assert_eq!((exec(&mut cpu, &[0xed]), cpu.armed.met), (Ok(()), 4), "four bytes from there");
}
