//! Every encoding that this directory executes, with registers and with memory, against the host: all opcodes of the maps
//! with every prefix that changes them, legacy and VEX.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic, OpKind, Register};

use super::super::Thunks;
use super::super::legacy::is_x87;
use super::super::state::{SIZE, at};
use super::oracle::{Native, Oracle};
use super::{DATA, Random, cpu, execute};
use crate::engine::soft::code::lower::Lowered;
use crate::engine::soft::code::op::Op;
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::flags::{Flags, rflags};
use crate::engine::soft::registers::RegAt;

const BYTES: usize = 256;

/// A buffer that RBX points to.
#[repr(align(64))]
struct Buffer([u8; BYTES]);

/// ModRM bytes, displacement included, for registers `reg` and `rm` (low three bits): register and memory form.
fn operands(reg: u8, rm: u8) -> [Vec<u8>; 2] {
    [vec![0xc0 | (reg & 7) << 3 | rm & 7], vec![0x43 | (reg & 7) << 3, 0x40]]
}

/// Legacy encodings: maps 0F, 0F38, 0F3A.
fn legacy(random: &mut Random, list: &mut Vec<Vec<u8>>) {
    for prefix in [&[][..], &[0x66], &[0xf3], &[0xf2], &[0x66, 0xf2]] {
        for map in [&[0x0f][..], &[0x0f, 0x38], &[0x0f, 0x3a]] {
            for opcode in 0..=255u8 {
                for wide in [0, 8] {
                    let (reg, rm) = (random.next() as u8 & 15, random.next() as u8 & 15);
                    let rex = 0x40 | wide | (reg >> 3) << 2;
                    for (form, modrm) in operands(reg, rm).into_iter().enumerate() {
                        // In the memory form the base is RBX.
                        let rex = if form == 0 { rex | rm >> 3 } else { rex };
                        list.push([prefix, &[rex], map, &[opcode], &modrm, &[random.next() as u8]].concat());
                    }
                    // Shifts by immediates have their operation in the ModRM byte.
                    if (0x71..=0x73).contains(&opcode) && wide == 0 && map.len() == 1 {
                        (0..8).for_each(|reg| {
                            let tail = [0x0f, opcode, 0xc0 | reg << 3 | rm & 7, random.next() as u8 & 0x3f];
                            list.push([prefix, &tail].concat());
                        });
                    }
                }
            }
        }
    }
}

/// VEX encodings with three bytes: maps 1 to 3, all pp, L, W.
fn vex(random: &mut Random, list: &mut Vec<Vec<u8>>) {
    for (map, pp, flags, opcode) in (1..4u8)
        .flat_map(|m| (0..4u8).flat_map(move |p| (0..4u8).flat_map(move |f| (0..=255u8).map(move |o| (m, p, f, o)))))
    {
        let (long, wide) = ((flags & 1) << 2, (flags & 2) << 6);
        let (reg, rm) = (random.next() as u8 & 15, random.next() as u8 & 15);
        // Some encodings have no second source and want VVVV to be ones.
        for source in [random.next() as u8 & 15, 0] {
            for (form, modrm) in operands(reg, rm).into_iter().enumerate() {
                let base = if form == 0 { rm >> 3 } else { 0 };
                let second = (!(reg >> 3) & 1) << 7 | 0x40 | (!base & 1) << 5 | map;
                let third = wide | (!source & 15) << 3 | long | pp;
                list.push([&[0xc4, second, third, opcode][..], &modrm, &[random.next() as u8]].concat());
            }
            if map == 1 && (0x71..=0x73).contains(&opcode) {
                (0..8).for_each(|operation| {
                    let third = wide | (!source & 15) << 3 | long | pp;
                    let modrm = 0xc0 | operation << 3 | rm & 7;
                    list.push(vec![0xc4, 0xe1, third, opcode, modrm, random.next() as u8 & 0x3f]);
                });
            }
        }
    }
}

/// x87: D8 to DF with every ModRM byte that has registers, and every operation in memory.
fn x87(list: &mut Vec<Vec<u8>>) {
    for opcode in 0xd8..=0xdf {
        (0..8).for_each(|reg| list.push(vec![opcode, 0x43 | reg << 3, 0x40]));
        (0xc0..=0xff).for_each(|modrm| list.push(vec![opcode, modrm]));
        (0..8).for_each(|reg| list.push(vec![0x66, opcode, 0x43 | reg << 3, 0x40]));
    }
    list.push(vec![0x9b]);
}

/// Instructions whose effect on the host is another, or that need operands of their own.
fn apart(insn: &Instruction) -> bool {
    use Mnemonic as M;
    let state = matches!(
        insn.mnemonic(),
        M::Fxsave
            | M::Fxsave64
            | M::Fxrstor
            | M::Fxrstor64
            | M::Xsave
            | M::Xsave64
            | M::Xsaveopt
            | M::Xsaveopt64
            | M::Xrstor
            | M::Xrstor64
            | M::Xgetbv
            | M::Xsetbv
            | M::Ldmxcsr
            | M::Vldmxcsr
    );
    let has = |wanted| (0..insn.op_count()).any(|i| insn.op_register(i).full_register() == wanted);
    // RBX is the base of memory operands.
    state
        || has(Register::RSP)
        || (insn.memory_base() == Register::RBX && has(Register::RBX))
        || insn.memory_index().is_xmm()
        || insn.memory_index().is_ymm()
}

/// The encodings to try, without what follows the instruction.
fn all(thunks: &Thunks, random: &mut Random) -> Vec<(Instruction, Vec<u8>)> {
    let mut list = vec![];
    legacy(random, &mut list);
    vex(random, &mut list);
    x87(&mut list);
    let decoded = list.into_iter().filter_map(|mut bytes| {
        let insn = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
        let mine = !insn.is_invalid() && super::super::lower(&insn, &mut blank(), thunks) != Lowered::NotMine;
        bytes.truncate(insn.len());
        (mine && !apart(&insn)).then_some((insn, bytes))
    });
    let mut kept: Vec<_> = decoded.collect();
    kept.sort_by(|a, b| a.1.cmp(&b.1));
    kept.dedup_by(|a, b| a.1 == b.1);
    kept
}

fn blank() -> Op {
    Op::new(|_, _| Ok(()), 0, 0)
}

/// One instruction on the software CPU and on the host, from the same state; what differs, if anything does.
fn compare(
    insn: &Instruction,
    bytes: &[u8],
    cpu: &mut Cpu,
    oracle: &mut Oracle,
    random: &mut Random,
) -> Option<String> {
    let mut buffer = Buffer([0; BYTES]);
    random.fill(&mut buffer.0);
    let mut general = [0; 16];
    general.iter_mut().for_each(|register| *register = random.interesting());
    // Registers that point to memory, if any does: MASKMOVDQU writes to RDI.
    let pointer = match insn.memory_base() {
        _ if insn.op0_kind() == OpKind::MemorySegRDI => Some(7),
        Register::RBX => Some(3),
        _ => None,
    };
    if let Some(pointer) = pointer {
        general[pointer] = DATA;
    }
    let mut vector = random.state();
    if is_x87(insn) && random.below(4) == 0 {
        // Unmasked, so that the exception is left pending; none is pending yet.
        let control = vector.word(at::FCW) & !(random.next() as u16 & 0x3f);
        vector.set_word(at::FCW, control);
        vector.set_word(at::FSW, vector.word(at::FSW) & 0x7f00);
    }
    let flags = random.next() & rflags::STATUS;
    cpu.vector = vector.clone();
    cpu.flags = Flags::from_rflags(flags);
    (0..16).for_each(|n| cpu.regs.set64(RegAt::gpr(n), general[usize::from(n)]));
    cpu.write_bytes(DATA, &buffer.0).unwrap();
    let step = execute(cpu, bytes);
    assert_eq!(step, Ok(()), "{insn} {bytes:02x?} {:?}", cpu.fault);

    let host_data = &raw mut buffer.0 as u64;
    let mut native = Native::new(vector, general, flags | 0x202);
    if let Some(pointer) = pointer {
        native.general[pointer] = host_data;
    }
    oracle.execute(bytes, &mut native);
    if let Some(pointer) = pointer {
        native.general[pointer] = DATA;
    }
    let mut memory = [0; BYTES];
    cpu.read_bytes(DATA, &mut memory).unwrap();
    native.vector.forget_pointers();
    hide_pointers(insn, &mut buffer.0, &mut memory);
    native.general[4] = cpu.regs.general()[4];
    let mine = flat(&cpu.vector.area, cpu.regs.general(), cpu.flags.to_rflags(), &memory);
    let host = flat(&native.vector.area, &native.general, native.rflags & rflags::STATUS, &buffer.0);
    if mine == host {
        return None;
    }
    let differ: Vec<_> = (0..mine.len()).filter(|i| mine[*i] != host[*i]).map(|i| (i, mine[i], host[i])).collect();
    Some(format!("{insn} {bytes:02x?}: (offset, software, host) {:x?}", &differ[..differ.len().min(12)]))
}

/// All that an instruction may change, one after the other: x87 and control words, vector registers, general registers (from
/// 2a8h), flags (328h), memory (330h).
fn flat(area: &[u8; SIZE], general: &[u64; 16], flags: u64, memory: &[u8]) -> Vec<u8> {
    let mut all = [&area[..28], &area[at::ST..at::XMM_END], &area[at::YMM..]].concat();
    all.extend(general.iter().chain([&flags]).flat_map(|value| value.to_le_bytes()));
    all.extend(memory);
    all
}

/// FNSTENV and FNSAVE store where the host executed x87 instructions; the software CPU stores zeros.
fn hide_pointers(insn: &Instruction, host: &mut [u8], mine: &mut [u8]) {
    if matches!(insn.mnemonic(), Mnemonic::Fnstenv | Mnemonic::Fnsave) {
        let fields = if matches!(insn.memory_size().size(), 14 | 94) { 0x46..0x4e } else { 0x4c..0x5a };
        assert!(mine[fields.clone()].iter().all(|byte| *byte == 0), "{insn} shows pointers");
        host[fields].fill(0);
    }
}

/// What the decoder gives to others though CPUID counts it to SSE.
fn of_others(insn: &Instruction) -> bool {
    use Mnemonic as M;
    use iced_x86::CpuidFeature as F;
    let integer = insn.cpuid_features().iter().all(|feature| matches!(feature, F::X64 | F::CMOV));
    integer
        || matches!(insn.mnemonic(), M::Crc32 | M::Lfence | M::Mfence | M::Sfence | M::Pause)
        || format!("{:?}", insn.mnemonic()).starts_with("Prefetch")
}

#[test]
fn nothing_that_is_offered_is_refused() {
    let (cpu, mut random, mut list) = (cpu(), Random(77), vec![]);
    legacy(&mut random, &mut list);
    vex(&mut random, &mut list);
    x87(&mut list);
    let mut taken = 0;
    for bytes in list {
        let insn = Decoder::new(64, &bytes, DecoderOptions::NONE).decode();
        let wanted = cpu.thunks.offer().covers(&insn) || insn.mnemonic() == Mnemonic::Wait;
        if insn.is_invalid() || !wanted || of_others(&insn) {
            continue;
        }
        assert_eq!(super::super::lower(&insn, &mut blank(), &cpu.thunks), Lowered::Inside, "{insn} {bytes:02x?}");
        taken += 1;
    }
    assert!(taken > 1000);
}

#[test]
fn every_encoding_does_what_the_host_does() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let (mut cpu, mut oracle) = (cpu(), Oracle::new());
    let thunks = cpu.thunks.clone();
    let encodings = all(&thunks, &mut random);
    let mut mnemonics: BTreeMap<String, u32> = BTreeMap::new();
    let mut failures = vec![];
    for (insn, bytes) in &encodings {
        let kind = format!("{:?}", insn.mnemonic());
        for _ in 0..6 {
            *mnemonics.entry(kind.clone()).or_default() += 1;
            if let Some(difference) = compare(insn, bytes, &mut cpu, &mut oracle, &mut random) {
                failures.push(difference);
                break;
            }
        }
    }
    let memory =
        encodings.iter().filter(|(insn, _)| (0..insn.op_count()).any(|i| insn.op_kind(i) == OpKind::Memory)).count();
    println!("{} encodings, {memory} with memory, {} mnemonics", encodings.len(), mnemonics.len());
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        encodings.len(),
        failures[..failures.len().min(20)].join("\n")
    );
    // The host may lack extensions, but not these.
    assert!(encodings.len() > 1000 && memory > 400, "{} encodings, {memory} with memory", encodings.len());
    for name in [
        "Addsd",
        "Cvtsi2sd",
        "Pshufd",
        "Fyl2x",
        "Fnsave",
        "Paddb",
        "Ucomiss",
        "Movmskpd",
        "Cvtpi2ps",
        "Maskmovdqu",
        "Wait",
    ] {
        assert!(mnemonics.contains_key(name), "{name}");
    }
}
