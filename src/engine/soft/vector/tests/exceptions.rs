//! What is raised where vector instructions may not run or where the guest does not mask an exception.

use super::super::state::at;
use super::{DATA, cpu, execute, faults};
use crate::engine::soft::cpu::{Cpu, cr0, cr4};
use crate::engine::soft::fault::{MF, NM, UD, XM};
use crate::engine::soft::registers::RegAt;

const PXOR: &[u8] = &[0x66, 0x0f, 0xef, 0xca];
const ADDSD: &[u8] = &[0xf2, 0x0f, 0x58, 0xca];
const DIVSD: &[u8] = &[0xf2, 0x0f, 0x5e, 0xca];
const MULSD: &[u8] = &[0xf2, 0x0f, 0x59, 0xca];
const PSHUFD: &[u8] = &[0x66, 0x0f, 0x70, 0xca, 0x1b];
const VPXOR: &[u8] = &[0xc5, 0xf5, 0xef, 0xca];
const VPMULLW: &[u8] = &[0xc5, 0xf5, 0xd5, 0xca];
const PADDB_MM: &[u8] = &[0x0f, 0xfc, 0xca];
const FLD1: &[u8] = &[0xd9, 0xe8];
const FNSTSW_AX: &[u8] = &[0xdf, 0xe0];
const FWAIT: &[u8] = &[0x9b];
const FNCLEX: &[u8] = &[0xdb, 0xe2];
const CVTPI2PS: &[u8] = &[0x0f, 0x2a, 0xca];

/// The vector that each instruction raises, 0 for none.
fn vectors(change: fn(&mut Cpu), list: &[(&[u8], u8)]) {
    for (bytes, vector) in list {
        let mut cpu = cpu();
        change(&mut cpu);
        if *vector == 0 {
            assert_eq!(execute(&mut cpu, bytes), Ok(()), "{bytes:02x?}");
        } else {
            assert_eq!(faults(&mut cpu, bytes), (*vector, None), "{bytes:02x?}");
        }
    }
}

#[test]
fn control_registers_decide() {
    vectors(
        |cpu| cpu.system.cr0 |= cr0::TS,
        &[
            (PXOR, NM),
            (ADDSD, NM),
            (PSHUFD, NM),
            (VPXOR, NM),
            (VPMULLW, NM),
            (PADDB_MM, NM),
            (FLD1, NM),
            (FNSTSW_AX, NM),
            (FWAIT, 0),
            (CVTPI2PS, NM),
        ],
    );
    vectors(|cpu| cpu.system.cr0 |= cr0::TS | cr0::MP, &[(FWAIT, NM)]);
    vectors(
        |cpu| cpu.system.cr0 |= cr0::EM,
        &[
            (PXOR, UD),
            (ADDSD, UD),
            (PSHUFD, UD),
            (VPXOR, 0),
            (PADDB_MM, UD),
            (FLD1, NM),
            (FNSTSW_AX, NM),
            (CVTPI2PS, UD),
        ],
    );
    vectors(
        |cpu| cpu.system.cr4 &= !cr4::OSFXSR,
        &[(PXOR, UD), (ADDSD, UD), (PSHUFD, UD), (VPXOR, 0), (PADDB_MM, 0), (FLD1, 0), (CVTPI2PS, UD)],
    );
    vectors(|cpu| cpu.system.cr4 &= !cr4::OSXSAVE, &[(PXOR, 0), (VPXOR, UD), (VPMULLW, UD), (&[0xc5, 0xf8, 0x77], UD)]);
    vectors(|cpu| cpu.system.xcr0 = 3, &[(PXOR, 0), (VPXOR, UD), (VPMULLW, UD)]);
    // Both: what makes it invalid comes first.
    vectors(|cpu| (cpu.system.cr0, cpu.system.xcr0) = (cpu.system.cr0 | cr0::TS, 3), &[(VPXOR, UD), (PXOR, NM)]);
    // LOCK is allowed nowhere here.
    vectors(|_| {}, &[(&[0xf0, 0x66, 0x0f, 0xef, 0xca], UD), (&[0xf0, 0x66, 0x0f, 0xd5, 0x0b], UD)]);
}

fn doubles(cpu: &mut Cpu, first: f64, second: f64) {
    cpu.vector.set_halves(1, first.to_bits(), 0x1111);
    cpu.vector.set_halves(2, second.to_bits(), 0x2222);
}

fn result(cpu: &Cpu) -> f64 {
    f64::from_bits(cpu.vector.low64(1))
}

#[test]
fn masked_exceptions_set_flags_and_rounding_counts() {
    let mut cpu = cpu();
    doubles(&mut cpu, 1.0, 0.0);
    execute(&mut cpu, DIVSD).unwrap();
    assert_eq!((result(&cpu), cpu.vector.mxcsr()), (f64::INFINITY, 0x1f84));
    // Flags stay until they are cleared, and come from the guest's own instructions only.
    doubles(&mut cpu, 1.0, 3.0);
    execute(&mut cpu, DIVSD).unwrap();
    assert_eq!(cpu.vector.mxcsr(), 0x1fa4);
    cpu.vector.set_mxcsr(0x1f80);
    doubles(&mut cpu, 1.0, 2.0);
    execute(&mut cpu, ADDSD).unwrap();
    assert_eq!((result(&cpu), cpu.vector.mxcsr()), (3.0, 0x1f80));
    for (rounding, expected) in [(0x2000, 0x3fd5_5555_5555_5555), (0x4000, 0x3fd5_5555_5555_5556u64)] {
        cpu.vector.set_mxcsr(0x1f80 | rounding);
        doubles(&mut cpu, 1.0, 3.0);
        execute(&mut cpu, DIVSD).unwrap();
        assert_eq!((result(&cpu).to_bits(), cpu.vector.mxcsr()), (expected, 0x1fa0 | rounding));
        assert_eq!(
            (std::hint::black_box(1.0f64) / 3.0).to_bits(),
            0x3fd5_5555_5555_5555,
            "the host's rounding is as it was"
        );
    }
    // Flush to zero.
    cpu.vector.set_mxcsr(0x9f80);
    doubles(&mut cpu, f64::MIN_POSITIVE, 0.5);
    execute(&mut cpu, MULSD).unwrap();
    assert_eq!((result(&cpu), cpu.vector.mxcsr()), (0.0, 0x9fb0));
}

#[test]
fn unmasked_exceptions_are_raised_and_nothing_is_written() {
    let cases: [(&[u8], f64, f64, u32, u32); 7] = [
        (DIVSD, 1.0, 0.0, 1 << 9, 1 << 2),
        (DIVSD, 1.0, 3.0, 1 << 12, 1 << 5),
        (ADDSD, f64::INFINITY, f64::NEG_INFINITY, 1 << 7, 1),
        (MULSD, f64::MAX, 2.0, 1 << 10, 1 << 3 | 1 << 5),
        // Tiny but exact: underflow is raised only where it is unmasked.
        (MULSD, f64::MIN_POSITIVE, 0.5, 1 << 11, 1 << 4),
        (ADDSD, 5e-324, 1.0, 1 << 8, 1 << 1),
        // Found before the operation, so what would be found after it is not reported.
        (DIVSD, 5e-324, 3.0, 1 << 8, 1 << 1),
    ];
    for (bytes, first, second, unmasked, flags) in cases {
        let mut cpu = cpu();
        let mxcsr = 0x1f80 & !unmasked;
        cpu.vector.set_mxcsr(mxcsr);
        doubles(&mut cpu, first, second);
        let before = cpu.vector.ymm_bytes(1);
        assert_eq!(
            execute(&mut cpu, bytes),
            Err(crate::engine::soft::fault::Break::Fault),
            "{bytes:02x?} {first} {second}"
        );
        assert_eq!((cpu.fault.vector, cpu.fault.error), (XM, None));
        assert_eq!(
            (cpu.vector.ymm_bytes(1), cpu.vector.mxcsr()),
            (before, mxcsr | flags),
            "{bytes:02x?} {first} {second}"
        );
        // Without CR4.OSXMMEXCPT it is invalid.
        cpu.vector.set_mxcsr(mxcsr);
        cpu.system.cr4 &= !cr4::OSXMMEXCPT;
        assert!(execute(&mut cpu, bytes).is_err());
        assert_eq!(cpu.fault.vector, UD);
        // What is masked happens as usual.
        cpu.vector.set_mxcsr(0x1f80 & !unmasked);
        doubles(&mut cpu, 1.0, 2.0);
        execute(&mut cpu, ADDSD).unwrap();
        assert_eq!((result(&cpu), cpu.vector.mxcsr()), (3.0, mxcsr));
    }
    // Of comparisons and conversions too: flags and general registers stay.
    let mut cpu = cpu();
    cpu.vector.set_mxcsr(0x1f00);
    doubles(&mut cpu, f64::NAN, 1.0);
    cpu.regs.set64(RegAt::RAX, 7);
    let flags = cpu.flags;
    assert!(execute(&mut cpu, &[0x66, 0x0f, 0x2f, 0xca]).is_err());
    assert!(execute(&mut cpu, &[0xf2, 0x0f, 0x2c, 0xc1]).is_err());
    assert_eq!((cpu.fault.vector, cpu.flags, cpu.regs.get64(RegAt::RAX)), (XM, flags, 7));
}

#[test]
fn x87_exceptions_wait_for_the_next_instruction() {
    let mut cpu = cpu();
    // Zero divide unmasked: 1 / 0.
    cpu.vector.set_word(at::FCW, 0x037b);
    for bytes in [FLD1, &[0xd9, 0xee], &[0xde, 0xf9]] {
        execute(&mut cpu, bytes).unwrap();
    }
    let status = cpu.vector.word(at::FSW);
    assert_eq!(status & 0x8084, 0x8084, "ES, B and ZE");
    // What does not wait does not raise it.
    execute(&mut cpu, FNSTSW_AX).unwrap();
    assert_eq!(cpu.regs.get::<u16>(RegAt::RAX), status);
    for bytes in [FLD1, FWAIT, PADDB_MM, &[0xd9, 0x2b], &[0x0f, 0x77], CVTPI2PS] {
        assert_eq!(faults(&mut cpu, bytes), (MF, None), "{bytes:02x?}");
    }
    execute(&mut cpu, PXOR).unwrap();
    execute(&mut cpu, FNCLEX).unwrap();
    execute(&mut cpu, FWAIT).unwrap();
    assert_eq!(cpu.vector.word(at::FSW) & 0x80ff, 0);
    // An invalid store to memory writes nothing and leaves the stack; a store of the precision kind writes.
    execute(&mut cpu, &[0xdb, 0xe3]).unwrap();
    cpu.vector.set_word(at::FCW, 0x037e);
    cpu.store::<u64>(DATA, 0x1234).unwrap();
    execute(&mut cpu, &[0xdd, 0x1b]).unwrap();
    assert_eq!(cpu.load::<u64>(DATA), Ok(0x1234), "fstp of an empty register");
    assert_eq!(cpu.vector.word(at::FSW) & 0x80c1, 0x80c1);
    execute(&mut cpu, &[0xdb, 0xe3]).unwrap();
    execute(&mut cpu, &[0xd9, 0xeb]).unwrap();
    cpu.vector.set_word(at::FCW, 0x035f);
    execute(&mut cpu, &[0xdd, 0x1b]).unwrap();
    assert_eq!(cpu.load::<u64>(DATA), Ok(std::f64::consts::PI.to_bits()));
    assert_eq!(cpu.vector.word(at::FSW) & 0x80a0, 0x80a0, "and the exception is pending");
    // The host's own x87 state is clean: nothing pending is raised here.
    let mut control = 0u16;
    super::oracle::host_fcw(&mut control);
    assert_eq!(control, 0x037f);
}

#[test]
fn conversions_from_mmx_are_precise() {
    let mut cpu = cpu();
    // cvtps2pi mm1, xmm2 of a NaN with IE unmasked.
    cpu.vector.set_mxcsr(0x1f00);
    cpu.vector.set_halves(2, u64::MAX, 0);
    let before = cpu.vector.area;
    assert!(execute(&mut cpu, &[0x0f, 0x2d, 0xca]).is_err());
    assert_eq!((cpu.fault.vector, cpu.vector.mxcsr()), (XM, 0x1f01));
    // As on the host, the x87 registers have become MMX's, but no register has another value.
    cpu.vector.set_mxcsr(0x1f00);
    assert_eq!(cpu.vector.area[at::TAGS], 0xff);
    cpu.vector.area[at::TAGS] = before[at::TAGS];
    assert_eq!(cpu.vector.area, before);
    cpu.vector.set_halves(2, u64::from(2.5f32.to_bits()), 0);
    execute(&mut cpu, &[0x0f, 0x2d, 0xca]).unwrap();
    assert_eq!(cpu.vector.area[at::ST + 16], 2);
    assert_eq!((cpu.vector.mxcsr(), cpu.vector.area[at::TAGS]), (0x1f20, 0xff));
}
