//! Many instructions in a row: the guest's MXCSR is the host's meanwhile, which nothing may see.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::super::state::MXCSR_DEFAULT;
use super::{DATA, cpu_over};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{self, Break};
use crate::engine::soft::testing::{self, CODE};

/// Where numbers for the code are, and what it stores.
const NUMBERS: u64 = DATA + 0x100;

const DIVIDE_BY_ZERO: u32 = 4;
const INEXACT: u32 = 0x20;

/// Runs blocks until one faults; RBX points to 1.0, 3.0, 0.0, 2.0 as packed doubles of two, RSI to room for results.
fn run(code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Cpu {
    let mut assembler = CodeAssembler::new(64).unwrap();
    code(&mut assembler).unwrap();
    assembler.ud2().unwrap();
    let ram = testing::ram(&assembler.assemble(CODE).unwrap());
    for (place, number) in (0..).zip([1.0f64, 1.0, 3.0, 3.0, 0.0, 0.0, 2.0, 2.0]) {
        ram.write(NUMBERS + 8 * place, &number.to_bits().to_le_bytes()).unwrap();
    }
    let mut cpu = cpu_over(&ram);
    cpu.regs.set64(crate::engine::soft::registers::RegAt::RBX, NUMBERS);
    cpu.regs.set64(crate::engine::soft::registers::RegAt::RSI, DATA + 0x400);
    let attention = cpu.shared.attention(0).clone();
    let step = loop {
        match cpu.run_blocks(&attention) {
            Ok(()) => assert!(cpu.instructions < 1_000_000),
            step => break step,
        }
    };
    assert_eq!(step, Err(Break::Fault));
    cpu
}

/// MXCSR as the code has stored it at `offset` of its results.
fn stored(cpu: &mut Cpu, offset: u64) -> u32 {
    cpu.load(DATA + 0x400 + offset).unwrap()
}

#[test]
fn flags_gather_and_are_seen_by_whoever_looks() {
    let mut cpu = run(|a| {
        a.mov(ecx, 1000)?;
        a.stmxcsr(dword_ptr(rsi))?;
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.movapd(xmm1, xmmword_ptr(rbx))?;
        a.addpd(xmm1, xmmword_ptr(rbx + 0x30))?;
        a.mulsd(xmm1, xmm1)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.stmxcsr(dword_ptr(rsi + 4))?; // all was exact
        a.movapd(xmm1, xmmword_ptr(rbx))?;
        a.divsd(xmm1, qword_ptr(rbx + 0x10))?;
        a.divpd(xmm1, xmmword_ptr(rbx + 0x10))?;
        a.stmxcsr(dword_ptr(rsi + 8))?;
        a.divps(xmm2, xmm2)?; // 0 / 0
        a.fld1()?;
        a.fstp(st0)?; // the stub has MXCSR of its own
        a.fxsave(ptr(rsi + 0x40))?;
        a.ldmxcsr(dword_ptr(rsi))?;
        a.stmxcsr(dword_ptr(rsi + 12))?;
        a.addsd(xmm1, xmm1)?;
        a.stmxcsr(dword_ptr(rsi + 16))
    });
    assert_eq!([0, 4, 12, 16].map(|at| stored(&mut cpu, at)), [MXCSR_DEFAULT; 4]);
    assert_eq!(stored(&mut cpu, 8), MXCSR_DEFAULT | INEXACT);
    assert_eq!(stored(&mut cpu, 0x40 + 24), MXCSR_DEFAULT | INEXACT | 1);
    assert_eq!((cpu.vector.mxcsr(), cpu.fault.vector), (MXCSR_DEFAULT, fault::UD));
    assert_eq!(cpu.instructions, 2 + 5 * 1000 + 13);
}

#[test]
fn flags_of_before_stay_and_flags_at_the_end_are_kept() {
    let mut cpu = run(|a| {
        a.mov(dword_ptr(rsi), (MXCSR_DEFAULT | DIVIDE_BY_ZERO) as i32)?;
        a.ldmxcsr(dword_ptr(rsi))?;
        a.vbroadcastsd(ymm1, qword_ptr(rbx))?;
        a.vbroadcastsd(ymm2, qword_ptr(rbx + 0x10))?;
        a.vdivpd(ymm3, ymm1, ymm2)?;
        a.vfmadd231pd(ymm3, ymm3, ymmword_ptr(rbx + 0x20))?;
        a.vaddsd(xmm4, xmm3, qword_ptr(rbx))
    });
    assert_eq!(cpu.vector.mxcsr(), MXCSR_DEFAULT | DIVIDE_BY_ZERO | INEXACT);
    let third = 1.0f64 / 3.0;
    let number = |bytes: &[u8]| f64::from_le_bytes(bytes.first_chunk().copied().unwrap());
    let numbers: Vec<f64> = cpu.vector.ymm_bytes(3).chunks(8).map(number).collect();
    assert_eq!(numbers, [third, third, third + third * 2.0, third + third * 2.0]);
    let numbers: Vec<f64> = cpu.vector.ymm_bytes(4).chunks(8).map(number).collect();
    assert_eq!(numbers, [third + 1.0, third, 0.0, 0.0]);
    assert_eq!(stored(&mut cpu, 0), MXCSR_DEFAULT | DIVIDE_BY_ZERO);
}

#[test]
fn what_is_unmasked_in_between_is_raised_where_it_happens() {
    let mut at = 0;
    let mut cpu = run(|a| {
        a.movapd(xmm1, xmmword_ptr(rbx))?;
        a.divsd(xmm1, qword_ptr(rbx + 0x20))?;
        a.movapd(xmm1, xmmword_ptr(rbx))?;
        a.mov(dword_ptr(rsi), (MXCSR_DEFAULT & !(DIVIDE_BY_ZERO << 7)) as i32)?;
        a.ldmxcsr(dword_ptr(rsi))?;
        a.divsd(xmm1, qword_ptr(rbx + 0x30))?;
        at = a.instructions().len();
        a.divpd(xmm1, xmmword_ptr(rbx + 0x20))?;
        a.movapd(xmm1, xmm2)
    });
    assert_eq!((cpu.fault.vector, cpu.instructions), (fault::XM, at as u64));
    assert_eq!(cpu.vector.low64(1), 0.5f64.to_bits(), "nothing is written");
    assert_eq!(cpu.vector.mxcsr(), MXCSR_DEFAULT & !(DIVIDE_BY_ZERO << 7) | DIVIDE_BY_ZERO);
    let next = cpu.load::<u16>(cpu.rip).unwrap();
    assert_eq!(next, 0x0f66, "at the instruction itself");
}

/// Rounding other than the default never gets into the host's MXCSR, and afterwards all is as before.
#[test]
fn rounding_changes_back_and_forth() {
    let mut cpu = run(|a| {
        a.mov(dword_ptr(rsi), (MXCSR_DEFAULT | 0x4000) as i32)?; // up
        a.mov(dword_ptr(rsi + 4), MXCSR_DEFAULT as i32)?;
        for (register, mxcsr) in [(xmm1, 4), (xmm2, 0), (xmm3, 4)] {
            a.ldmxcsr(dword_ptr(rsi + mxcsr))?;
            a.movapd(register, xmmword_ptr(rbx))?;
            a.divpd(register, xmmword_ptr(rbx + 0x10))?;
        }
        Ok(())
    });
    let third = (1.0f64 / 3.0).to_bits();
    assert_eq!([1, 2, 3].map(|register| cpu.vector.high64(register)), [third, third + 1, third]);
    assert_eq!(cpu.vector.mxcsr(), MXCSR_DEFAULT | INEXACT);
    assert_eq!(stored(&mut cpu, 4), MXCSR_DEFAULT);
}
