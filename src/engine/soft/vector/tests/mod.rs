//! The host's CPU is the judge: see `oracle.rs`.

mod blocks;
mod encodings;
mod exceptions;
mod memory;
mod oracle;
mod states;

use super::state::{MXCSR_DEFAULT, SIZE, VectorState, at};
use crate::engine::soft::code::decode::{Target, single};
use crate::engine::soft::cpu::{Cpu, cr4};
use crate::engine::soft::fault::{Break, Fault, Step};
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::testing;
use crate::mem::Ram;

/// Where memory operands of tests are in the guest: RBX points there.
const DATA: u64 = 0x8000;

/// A CPU with all extensions switched on.
fn cpu() -> Cpu {
    cpu_over(&testing::ram(&[]))
}

/// The same over `ram`.
fn cpu_over(ram: &Ram) -> Cpu {
    let mut cpu = testing::cpu_of(ram, 1);
    cpu.system.cr4 |= cr4::OSXSAVE;
    cpu.system.xcr0 = 7;
    cpu.regs.set64(RegAt::RBX, DATA);
    cpu
}

/// Executes one instruction.
fn execute(cpu: &mut Cpu, bytes: &[u8]) -> Step {
    let mut code = [0x90; 15];
    code.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
    let thunks = cpu.thunks.clone();
    let target = Target { ip: testing::CODE, size: cpu.code_size, features: cpu.features, thunks: &thunks };
    let block = single(&code, &target);
    assert_eq!(usize::from(block.ops[0].len), bytes.len(), "{bytes:02x?}");
    cpu.regs.set_block_ip(testing::CODE);
    let step = (block.ops[0].run)(cpu, &block.ops[0]);
    cpu.vector.settle();
    step
}

/// Executes one instruction that faults.
fn fault(cpu: &mut Cpu, bytes: &[u8]) -> Fault {
    assert_eq!(execute(cpu, bytes), Err(Break::Fault), "{bytes:02x?}");
    cpu.fault
}

/// Vector and error code of the fault that one instruction raises; nothing else may change.
fn faults(cpu: &mut Cpu, bytes: &[u8]) -> (u8, Option<u32>) {
    let (regs, area, flags) = (*cpu.regs.general(), cpu.vector.area, cpu.flags);
    let fault = fault(cpu, bytes);
    assert_eq!((*cpu.regs.general(), cpu.vector.area, cpu.flags), (regs, area, flags), "{bytes:02x?}");
    (fault.vector, fault.error)
}

/// Pseudo-random numbers (xorshift), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 11) % limit
    }

    /// Eight bytes of a kind that instructions treat specially, or any.
    fn interesting(&mut self) -> u64 {
        let any = self.next();
        match self.below(12) {
            0 => 0,
            1 => u64::MAX,
            2 => f64::from(any as i16).to_bits(),
            3 => u64::from((any as i16 as f32).to_bits()) << 32 | u64::from((any as u8 as f32 / 3.0).to_bits()),
            4 => f64::NAN.to_bits() | any & 1,
            5 => 0x7ff0_0000_0000_0000,
            6 => any & 0x800f_ffff_ffff_ffff,
            7 => any & 0x807f_ffff_807f_ffff,
            8 => 0x7f80_0000_ff80_0000,
            9 => any & 0x0303_0303_0303_0303,
            _ => any,
        }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        bytes.chunks_mut(8).for_each(|part| {
            let value = self.interesting().to_le_bytes();
            part.iter_mut().zip(value).for_each(|(to, from)| *to = from);
        });
    }

    /// Vector registers, with exceptions masked; x87 registers with all kinds of numbers.
    fn state(&mut self) -> VectorState {
        let mut state = VectorState::default();
        self.fill(&mut state.area[at::XMM..at::XMM_END]);
        self.fill(&mut state.area[at::YMM..SIZE]);
        for register in 0..8 {
            let bytes = &mut state.area[at::ST + 16 * register..][..10];
            let (significand, exponent) = match self.below(8) {
                0 => (0, 0),
                1 => (1 << 63, 0x7fff),
                2 => (self.next() | 1 << 63, 0x7fff),
                3 => (self.next() >> 1, 0),
                4 => (self.next(), self.next() as u16),
                _ => (self.next() | 1 << 63, (0x3ff0 + self.below(80) as u16) | (self.next() as u16 & 0x8000)),
            };
            bytes[..8].copy_from_slice(&u64::to_le_bytes(significand));
            bytes[8..].copy_from_slice(&u16::to_le_bytes(exponent));
        }
        let flags = self.below(64) as u32;
        let control = [0, 0, 0x2000, 0x4000, 0x6000, 0x8000, 0x40, 0x8040][self.below(8) as usize];
        state.set_mxcsr(MXCSR_DEFAULT | control | flags);
        state.set_word(at::FCW, 0x7f | [0x300, 0x300, 0, 0x200, 0xc00, 0x700][self.below(6) as usize]);
        state.set_word(at::FSW, (self.next() & 0x7f3f) as u16 & 0x7f7f);
        state.area[at::TAGS] = if self.below(3) == 0 { self.next() as u8 } else { 0xff };
        state
    }
}
