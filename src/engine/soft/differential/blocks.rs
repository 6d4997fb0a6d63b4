//! Several instructions in a row: what blocks do beyond single instructions. Flags that nobody sees are not made, compares
//! and jumps may be one, and all of it must look as if it had been executed one by one.
//!
//! Sequences of integer instructions over few registers, so that each sees what the others left; most end with a conditional
//! jump.

use std::time::{Duration, Instant};

use super::case::{CODE, Case, DATA};
use super::host::{BATCH, Host};
use super::random::Random;
use super::setting;
use super::soft::Soft;

const SEQUENCES: u64 = 300_000;
const TIME: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 20 });
/// CF PF AF ZF SF OF.
const STATUS: u64 = 0x8d5;
/// RSI holds this and is never changed: the base of operands in memory.
const BASE: u64 = DATA + 0x1000;
const RSI: u8 = 6;
/// RAX, RCX, RDX, RBX, RBP, RDI.
const REGISTERS: [u8; 6] = [0, 1, 2, 3, 5, 7];
/// A jump goes so far behind its end: beyond the way back that the host has there.
const DISTANCE: u8 = 16;

/// Register to register: `modrm` with both.
fn registers(random: &mut Random) -> u8 {
    0xc0 | random.pick(&REGISTERS) << 3 | random.pick(&REGISTERS)
}

/// A register and eight bytes at [`BASE`] and a little more.
fn memory(random: &mut Random) -> [u8; 2] {
    [0x40 | random.pick(&REGISTERS) << 3 | RSI, random.below(32) as u8 * 8]
}

/// One instruction.
fn instruction(random: &mut Random) -> Vec<u8> {
    // ADD OR ADC SBB AND SUB XOR CMP, r/m with r; TEST, MOV, XCHG of registers.
    const ARITHMETIC: [u8; 8] = [0x01, 0x09, 0x11, 0x19, 0x21, 0x29, 0x31, 0x39];
    let register = random.pick(&REGISTERS);
    let wide = random.pick(&[&[0x48][..], &[], &[0x66]]);
    let single = |opcode: u8, extension: u8| [wide, &[opcode, 0xc0 | extension << 3 | register]].concat();
    match random.below(16) {
        0..5 => [wide, &[random.pick(&ARITHMETIC), registers(random)]].concat(),
        5 => [&[0x48, random.pick(&ARITHMETIC) | random.pick(&[0, 2])][..], &memory(random)].concat(),
        6 => [&[0x48, random.pick(&[0x89, 0x8b])][..], &memory(random)].concat(),
        7 => [wide, &[random.pick(&[0x85, 0x89, 0x87]), registers(random)]].concat(),
        8 => single(0xff, random.pick(&[0, 1])), // INC, DEC
        9 => single(0xf7, random.pick(&[2, 3])), // NOT, NEG
        10 => single(random.pick(&[0xd1, 0xd3]), random.pick(&[0, 1, 4, 5, 7])), // rotations and shifts by 1 and CL
        11 => [single(0xc1, random.pick(&[4, 5, 7])), vec![random.below(64) as u8]].concat(),
        12 => vec![0x0f, 0x90 | random.below(16) as u8, 0xc0 | random.below(4) as u8], // SETcc
        13 => [wide, &[0x0f, 0x40 | random.below(16) as u8, registers(random)]].concat(), // CMOVcc
        14 => vec![random.pick(&[0xf5, 0xf8, 0xf9, 0x9e])],                            // CMC, CLC, STC, SAHF
        _ => [wide, &[0x83, 0xc0 | (random.below(8) as u8 * 8) | register, random.u64() as u8]].concat(),
    }
}

fn sequence(random: &mut Random) -> Case {
    let mut bytes = Vec::new();
    loop {
        let next = instruction(random);
        if bytes.len() + next.len() > 13 {
            break;
        }
        bytes.extend(next);
        if bytes.len() > 4 && random.one_in(6) {
            break;
        }
    }
    if !random.one_in(4) {
        bytes.extend([0x70 | random.below(16) as u8, DISTANCE]);
    }
    let mut case = Case::new(&bytes);
    case.start.gpr.iter_mut().for_each(|register| *register = random.integer());
    case.start.gpr[usize::from(RSI)] = BASE;
    case.start.rip = CODE + random.below(0x800);
    case.start.rflags |= random.u64() & STATUS;
    case
}

#[test]
fn blocks_agree_with_the_host() {
    let seed = setting("BELLJAR_SEED").unwrap_or(1);
    let wanted = setting("BELLJAR_CASES").unwrap_or(SEQUENCES);
    let (mut host, mut soft, mut random) = (Host::new().unwrap(), Soft::new(), Random::new(seed));
    let (begin, mut count) = (Instant::now(), 0);
    while count < wanted && begin.elapsed() < TIME {
        let cases: Vec<_> = (0..BATCH).map(|_| sequence(&mut random)).collect();
        let outcomes = host.run(&cases).unwrap();
        for (case, host) in cases.iter().zip(&outcomes) {
            let soft = soft.run_block(case);
            let what = format!("seed {seed}: {:02x?} from {:x?}", case.code(), case.start.gpr);
            assert_eq!(soft.end, host.end, "{what}");
            let shown = |of: &super::case::Outcome| (of.state.gpr, of.state.rip, of.state.rflags & STATUS);
            assert_eq!(format!("{:x?}", shown(&soft)), format!("{:x?}", shown(host)), "{what}");
            assert!(soft.memory == host.memory, "memory: {what}");
        }
        count += cases.len() as u64;
    }
    println!("seed {seed}: {count} sequences in {:.1} s", begin.elapsed().as_secs_f64());
}
