//! Instructions that store and load whole states, and control registers.

use super::super::area::in_use;
use super::super::state::{SIZE, VectorState, at};
use super::{DATA, Random, cpu, execute, faults};
use crate::engine::soft::cpu::{Cpu, cr0, cr4};
use crate::engine::soft::fault::{GP, NM, UD};
use crate::engine::soft::registers::RegAt;

const FXSAVE: &[u8] = &[0x0f, 0xae, 0x03];
const FXRSTOR: &[u8] = &[0x0f, 0xae, 0x0b];
const XSAVE: &[u8] = &[0x0f, 0xae, 0x23];
const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2b];
const XSAVEOPT: &[u8] = &[0x0f, 0xae, 0x33];
const XGETBV: &[u8] = &[0x0f, 0x01, 0xd0];
const XSETBV: &[u8] = &[0x0f, 0x01, 0xd1];

fn stored(cpu: &mut Cpu) -> [u8; SIZE] {
    let mut area = [0; SIZE];
    let (first, rest) = area.split_at_mut(512);
    cpu.read_bytes(DATA, first).unwrap();
    cpu.read_bytes(DATA + 512, rest).unwrap();
    area
}

fn put(cpu: &mut Cpu, area: &[u8]) {
    area.chunks(512).enumerate().for_each(|(i, part)| cpu.write_bytes(DATA + 512 * i as u64, part).unwrap());
}

fn ask(cpu: &mut Cpu, components: u64) {
    cpu.regs.set64(RegAt::RAX, components);
    cpu.regs.set64(RegAt::RDX, 0);
}

fn header(cpu: &mut Cpu) -> u64 {
    cpu.load(DATA + 512).unwrap()
}

#[test]
fn fxsave_and_fxrstor() {
    let mut cpu = cpu();
    let state = Random(5).state();
    cpu.vector = state.clone();
    cpu.vector.forget_pointers();
    put(&mut cpu, &[0xcc; SIZE]);
    execute(&mut cpu, FXSAVE).unwrap();
    let area = stored(&mut cpu);
    assert_eq!(area[..28], cpu.vector.area[..28]);
    assert_eq!(area[28..32], 0xffffu32.to_le_bytes());
    assert_eq!(area[32..416], state.area[32..416]);
    assert_eq!(area[416..], [0xcc; SIZE - 416], "not written");
    cpu.vector = VectorState::default();
    execute(&mut cpu, FXRSTOR).unwrap();
    assert_eq!(cpu.vector.area[..28], area[..28]);
    assert_eq!(cpu.vector.area[32..416], area[32..416]);
    // Reserved bits of MXCSR, alignment, CR0.
    cpu.store::<u32>(DATA + 24, 0x1_1f80).unwrap();
    assert_eq!(faults(&mut cpu, FXRSTOR), (GP, Some(0)));
    cpu.regs.set64(RegAt::RBX, DATA + 8);
    assert_eq!(faults(&mut cpu, FXSAVE), (GP, Some(0)));
    cpu.system.cr0 |= cr0::TS;
    assert_eq!(faults(&mut cpu, FXSAVE), (NM, None));
}

#[test]
fn fxrstor_settles_the_summary_of_exceptions() {
    let mut cpu = cpu();
    let mut image = VectorState::default();
    image.set_word(at::FCW, 0x037e);
    image.set_word(at::FSW, 1);
    image.area[at::POINTERS].fill(0x55);
    put(&mut cpu, &image.area);
    execute(&mut cpu, FXRSTOR).unwrap();
    assert_eq!(cpu.vector.word(at::FSW), 0x8081);
    assert!(cpu.vector.area[at::POINTERS].iter().all(|byte| *byte == 0));
    image.set_word(at::FCW, 0x037f);
    image.set_word(at::FSW, 0x8081);
    put(&mut cpu, &image.area);
    execute(&mut cpu, FXRSTOR).unwrap();
    assert_eq!(cpu.vector.word(at::FSW), 1);
}

#[test]
fn xsave_round_trip() {
    let mut cpu = cpu();
    let state = Random(99).state();
    for components in [7, 3, 4, 1, 2, 6] {
        cpu.vector = state.clone();
        put(&mut cpu, &[0; SIZE]);
        ask(&mut cpu, components);
        execute(&mut cpu, XSAVE).unwrap();
        assert_eq!(header(&mut cpu), components);
        cpu.vector = VectorState::default();
        execute(&mut cpu, XRSTOR).unwrap();
        let initial = VectorState::default();
        let from = |present: bool| if present { &state.area } else { &initial.area };
        assert_eq!(cpu.vector.area[at::ST..at::XMM], from(components & 1 != 0)[at::ST..at::XMM]);
        assert_eq!(cpu.vector.area[..at::MXCSR], from(components & 1 != 0)[..at::MXCSR]);
        assert_eq!(cpu.vector.area[at::XMM..at::XMM_END], from(components & 2 != 0)[at::XMM..at::XMM_END]);
        assert_eq!(cpu.vector.area[at::YMM..], from(components & 4 != 0)[at::YMM..]);
        assert_eq!(cpu.vector.mxcsr(), if components & 6 != 0 { state.mxcsr() } else { initial.mxcsr() });
    }
}

#[test]
fn xsave_touches_only_what_was_asked_for() {
    let mut cpu = cpu();
    cpu.vector = Random(3).state();
    put(&mut cpu, &[0xcc; SIZE]);
    cpu.store::<u64>(DATA + 512, 5).unwrap();
    ask(&mut cpu, 2);
    execute(&mut cpu, XSAVE).unwrap();
    let area = stored(&mut cpu);
    assert_eq!(header(&mut cpu), 7);
    assert!(area[..24].iter().chain(&area[32..160]).chain(&area[520..]).all(|byte| *byte == 0xcc));
    assert_eq!(area[160..416], cpu.vector.area[160..416]);
    // XSAVEOPT leaves out what is in its initial state and says so.
    cpu.vector = VectorState::default();
    cpu.vector.set_xmm(3, super::super::access::from_bytes(&[1; 16]));
    assert_eq!(in_use(&cpu.vector), 2);
    put(&mut cpu, &[0xcc; SIZE]);
    cpu.write_bytes(DATA + 512, &[0; 64]).unwrap();
    cpu.store::<u64>(DATA + 512, 7).unwrap();
    ask(&mut cpu, 7);
    execute(&mut cpu, XSAVEOPT).unwrap();
    let area = stored(&mut cpu);
    assert_eq!(header(&mut cpu), 2);
    assert!(area[32..160].iter().chain(&area[576..]).all(|byte| *byte == 0xcc));
    assert_eq!(area[160..416], cpu.vector.area[160..416]);
    // What is not present takes its initial state, whatever is in the area.
    cpu.vector = Random(4).state();
    let before = cpu.vector.area;
    ask(&mut cpu, 5);
    execute(&mut cpu, XRSTOR).unwrap();
    let initial = VectorState::default();
    assert_eq!(cpu.vector.area[at::YMM..], initial.area[at::YMM..]);
    assert_eq!(cpu.vector.area[at::ST..at::XMM], initial.area[at::ST..at::XMM]);
    assert_eq!(cpu.vector.area[at::XMM..at::XMM_END], before[at::XMM..at::XMM_END]);
}

#[test]
fn xrstor_checks_the_header() {
    let mut cpu = cpu();
    cpu.vector = Random(8).state();
    ask(&mut cpu, 7);
    for (offset, value) in [(512, 8u64), (520, 1 << 63), (520, 1), (528, 1)] {
        put(&mut cpu, &VectorState::default().area);
        cpu.store(DATA + offset, value).unwrap();
        assert_eq!(faults(&mut cpu, XRSTOR), (GP, Some(0)), "{value:x} at {offset}");
    }
    put(&mut cpu, &VectorState::default().area);
    cpu.store::<u32>(DATA + 24, 0x8000_0000).unwrap();
    assert_eq!(faults(&mut cpu, XRSTOR), (GP, Some(0)));
    ask(&mut cpu, 1);
    execute(&mut cpu, XRSTOR).unwrap();
    cpu.system.xcr0 = 3;
    cpu.store::<u64>(DATA + 512, 4).unwrap();
    assert_eq!(faults(&mut cpu, XRSTOR), (GP, Some(0)), "a component that XCR0 does not have");
    cpu.regs.set64(RegAt::RBX, DATA + 32);
    for bytes in [XSAVE, XRSTOR, XSAVEOPT] {
        assert_eq!(faults(&mut cpu, bytes), (GP, Some(0)), "alignment");
    }
    cpu.system.cr0 |= cr0::TS;
    assert_eq!(faults(&mut cpu, XSAVE), (NM, None));
    cpu.system.cr4 &= !cr4::OSXSAVE;
    assert_eq!(faults(&mut cpu, XSAVE), (UD, None));
    assert_eq!(faults(&mut cpu, XGETBV), (UD, None));
}

#[test]
fn xcr0_takes_valid_values_only() {
    let mut cpu = cpu();
    cpu.regs.set64(RegAt::RCX, 0);
    for (value, valid) in [
        (1, true),
        (3, true),
        (7, true),
        (0, false),
        (2, false),
        (5, false),
        (6, false),
        (0xf, false),
        (1 << 32 | 1, false),
    ] {
        cpu.regs.set64(RegAt::RAX, value & 0xffff_ffff);
        cpu.regs.set64(RegAt::RDX, value >> 32);
        if valid {
            execute(&mut cpu, XSETBV).unwrap();
            cpu.regs.set64(RegAt::RDX, u64::MAX);
            execute(&mut cpu, XGETBV).unwrap();
            assert_eq!((cpu.regs.get64(RegAt::RAX), cpu.regs.get64(RegAt::RDX)), (value, 0));
        } else {
            assert_eq!(faults(&mut cpu, XSETBV), (GP, Some(0)), "{value:x}");
        }
    }
    ask(&mut cpu, 7);
    cpu.cpl = 3;
    assert_eq!(faults(&mut cpu, XSETBV), (GP, Some(0)));
    cpu.cpl = 0;
    cpu.regs.set64(RegAt::RCX, 1);
    assert_eq!(faults(&mut cpu, XSETBV), (GP, Some(0)));
    assert_eq!(faults(&mut cpu, XGETBV), (GP, Some(0)));
}

#[test]
fn mxcsr_and_clearing() {
    let mut cpu = cpu();
    cpu.store::<u32>(DATA, 0xffff).unwrap();
    execute(&mut cpu, &[0x0f, 0xae, 0x13]).unwrap();
    assert_eq!(cpu.vector.mxcsr(), 0xffff);
    cpu.store::<u32>(DATA, 0x1_0000).unwrap();
    assert_eq!(faults(&mut cpu, &[0x0f, 0xae, 0x13]), (GP, Some(0)));
    assert_eq!(faults(&mut cpu, &[0xc5, 0xf8, 0xae, 0x13]), (GP, Some(0)));
    execute(&mut cpu, &[0xc5, 0xf8, 0xae, 0x1b]).unwrap();
    assert_eq!(cpu.load::<u32>(DATA), Ok(0xffff));
    cpu.vector = Random(11).state();
    let before = cpu.vector.area;
    execute(&mut cpu, &[0xc5, 0xf8, 0x77]).unwrap();
    assert_eq!(cpu.vector.area[..at::YMM], before[..at::YMM]);
    assert_eq!(cpu.vector.area[at::YMM..], [0; 256]);
    execute(&mut cpu, &[0xc5, 0xfc, 0x77]).unwrap();
    assert_eq!(cpu.vector.area[at::XMM..at::XMM_END], [0; 256]);
    assert_eq!(cpu.vector.area[..at::XMM], before[..at::XMM]);
}

#[test]
fn outside_64_bit_mode_eight_registers_are_saved() {
    use crate::engine::soft::code::op::Seg;
    let mut cpu = cpu();
    let cs = cpu.segment(Seg::Cs);
    cpu.set_segment(Seg::Cs, crate::arch::x86_64::state::Segment { l: false, db: true, ..cs });
    cpu.mode_changed();
    cpu.vector = Random(21).state();
    put(&mut cpu, &[0xcc; SIZE]);
    ask(&mut cpu, 7);
    execute(&mut cpu, XSAVE).unwrap();
    let area = stored(&mut cpu);
    assert_eq!((&area[160..288], &area[576..704]), (&cpu.vector.area[160..288], &cpu.vector.area[576..704]));
    assert!(area[288..416].iter().chain(&area[704..]).all(|byte| *byte == 0xcc));
    // Stubs and moves work there as well: addsd xmm1, [ebx]; movaps xmm2, xmm1; maskmovdqu.
    cpu.store::<u64>(DATA, 2.5f64.to_bits()).unwrap();
    cpu.vector.set_mxcsr(0x1f80);
    cpu.vector.set_halves(1, 1.0f64.to_bits(), u64::MAX);
    execute(&mut cpu, &[0xf2, 0x0f, 0x58, 0x0b]).unwrap();
    execute(&mut cpu, &[0x0f, 0x28, 0xd1]).unwrap();
    assert_eq!((cpu.vector.low64(2), cpu.vector.high64(2)), (3.5f64.to_bits(), u64::MAX));
    cpu.regs.set64(RegAt::RDI, DATA + 0x100);
    cpu.store::<u64>(DATA + 0x108, 0).unwrap();
    execute(&mut cpu, &[0x66, 0x0f, 0xf7, 0xd1]).unwrap();
    assert_eq!(cpu.load::<u64>(DATA + 0x108), Ok(u64::MAX));
}
