//! Memory operands: alignment, page crossing, faults that leave everything as it was, masks, gathers.

use super::super::access::from_bytes;
use super::{DATA, Random, cpu, cpu_over, execute, fault, faults};
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::{GP, PF};
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::testing::{PAGE_TABLES, ram};
use crate::mem::Ram;

/// Linear address of the first byte that is not mapped: 2 MiB pages, of which the second is taken away.
const HOLE: u64 = 0x20_0000;

/// A CPU for which the second 2 MiB are not mapped, and its RAM.
fn with_hole() -> (Cpu, Ram) {
    let ram = ram(&[]);
    let mut cpu = cpu_over(&ram);
    ram.write(PAGE_TABLES + 0x2008, &[0; 8]).unwrap();
    cpu.vector = Random(42).state();
    (cpu, ram)
}

fn page_fault(cpu: &mut Cpu, bytes: &[u8], write: bool, address: u64) {
    let code = if write { 2 } else { 0 };
    assert_eq!(faults(cpu, bytes), (PF, Some(code)), "{bytes:02x?}");
    assert_eq!(cpu.fault.address, address, "{bytes:02x?}");
}

/// Instructions with [RBX] as operand: bytes, size, whether it must be aligned.
const LOADS: &[(&[u8], u64, bool)] = &[
    (&[0x0f, 0x28, 0x0b], 16, true),                    // movaps xmm1, [rbx]
    (&[0x0f, 0x10, 0x0b], 16, false),                   // movups
    (&[0x66, 0x0f, 0x6f, 0x0b], 16, true),              // movdqa
    (&[0xf3, 0x0f, 0x6f, 0x0b], 16, false),             // movdqu
    (&[0xf2, 0x0f, 0xf0, 0x0b], 16, false),             // lddqu
    (&[0x66, 0x0f, 0xef, 0x0b], 16, true),              // pxor
    (&[0x66, 0x0f, 0xd5, 0x0b], 16, true),              // pmullw
    (&[0x0f, 0x58, 0x0b], 16, true),                    // addps
    (&[0xf3, 0x0f, 0x58, 0x0b], 4, false),              // addss
    (&[0xf2, 0x0f, 0x58, 0x0b], 8, false),              // addsd
    (&[0xf2, 0x0f, 0x2c, 0x03], 8, false),              // cvttsd2si eax
    (&[0x66, 0x0f, 0x3a, 0x63, 0x0b, 0x0c], 16, false), // pcmpistri
    (&[0x66, 0x0f, 0x38, 0x20, 0x0b], 8, false),        // pmovsxbw
    (&[0x66, 0x0f, 0xc4, 0x0b, 0x03], 2, false),        // pinsrw
    (&[0x66, 0x0f, 0x38, 0x2a, 0x0b], 16, true),        // movntdqa
    (&[0xc5, 0xf8, 0x28, 0x0b], 16, true),              // vmovaps xmm1
    (&[0xc5, 0xfc, 0x28, 0x0b], 32, true),              // vmovaps ymm1
    (&[0xc5, 0xfe, 0x6f, 0x0b], 32, false),             // vmovdqu ymm1
    (&[0xc5, 0xf5, 0xef, 0x0b], 32, false),             // vpxor ymm1, ymm1
    (&[0xc5, 0xf5, 0xd5, 0x0b], 32, false),             // vpmullw ymm1, ymm1
    (&[0xc5, 0xf1, 0xd5, 0x0b], 16, false),             // vpmullw xmm1, xmm1
    (&[0x0f, 0x6f, 0x0b], 8, false),                    // movq mm1
    (&[0x0f, 0xfc, 0x0b], 8, false),                    // paddb mm1
    (&[0xdd, 0x03], 8, false),                          // fld qword
    (&[0xdb, 0x2b], 10, false),                         // fld tbyte
    (&[0xd9, 0x23], 28, false),                         // fldenv
    (&[0x0f, 0xae, 0x13], 4, false),                    // ldmxcsr
    (&[0x0f, 0xae, 0x0b], 512, true),                   // fxrstor
];

const STORES: &[(&[u8], u64, bool)] = &[
    (&[0x0f, 0x29, 0x0b], 16, true),                    // movaps [rbx], xmm1
    (&[0x0f, 0x11, 0x0b], 16, false),                   // movups
    (&[0x0f, 0x2b, 0x0b], 16, true),                    // movntps
    (&[0x66, 0x0f, 0xd6, 0x0b], 8, false),              // movq
    (&[0x66, 0x0f, 0x7e, 0x0b], 4, false),              // movd
    (&[0x0f, 0x17, 0x0b], 8, false),                    // movhps
    (&[0xf3, 0x0f, 0x11, 0x0b], 4, false),              // movss
    (&[0x66, 0x0f, 0x3a, 0x16, 0x0b, 0x01], 4, false),  // pextrd
    (&[0xc5, 0xfc, 0x29, 0x0b], 32, true),              // vmovaps ymm1
    (&[0xc5, 0xfe, 0x7f, 0x0b], 32, false),             // vmovdqu ymm1
    (&[0xc4, 0xe3, 0x7d, 0x39, 0x0b, 0x01], 16, false), // vextracti128
    (&[0xc4, 0xe3, 0x7d, 0x1d, 0x0b, 0x00], 16, false), // vcvtps2ph: flags of MXCSR too
    (&[0x0f, 0x7f, 0x0b], 8, false),                    // movq [rbx], mm1
    (&[0xdd, 0x1b], 8, false),                          // fstp qword
    (&[0xdb, 0x3b], 10, false),                         // fstp tbyte
    (&[0xd9, 0x33], 28, false),                         // fnstenv
    (&[0xdd, 0x33], 108, false),                        // fnsave
    (&[0x0f, 0xae, 0x1b], 4, false),                    // stmxcsr
    (&[0x0f, 0xc3, 0x03], 4, false),                    // movnti
    (&[0x0f, 0xae, 0x03], 512, true),                   // fxsave
];

#[test]
fn faults_leave_everything_as_it_was() {
    let (mut cpu, _ram) = with_hole();
    for (list, write) in [(LOADS, false), (STORES, true)] {
        for (bytes, size, aligned) in list {
            cpu.regs.set64(RegAt::RBX, HOLE);
            page_fault(&mut cpu, bytes, write, HOLE);
            // Across the edge: the address is that of the first byte that is missing, and nothing is stored before it.
            cpu.regs.set64(RegAt::RBX, HOLE - 1);
            if *aligned {
                assert_eq!(faults(&mut cpu, bytes), (GP, Some(0)), "{bytes:02x?}");
            } else {
                cpu.store::<u8>(HOLE - 1, 0x5a).unwrap();
                page_fault(&mut cpu, bytes, write, HOLE);
                assert_eq!(cpu.load::<u8>(HOLE - 1), Ok(0x5a), "{bytes:02x?}");
            }
            cpu.regs.set64(RegAt::RBX, HOLE - size);
            cpu.write_bytes(HOLE - 512, &[0; 512]).unwrap();
            if *size != 512 {
                assert_eq!(execute(&mut cpu, bytes), Ok(()), "{bytes:02x?}");
            }
            cpu.vector = Random(size + 7).state();
        }
    }
}

#[test]
fn operands_across_pages_are_whole() {
    let mut cpu = cpu();
    let data: Vec<u8> = (1..=64).collect();
    for offset in 1..32 {
        let at = DATA + 0x1000 - offset;
        cpu.regs.set64(RegAt::RBX, at);
        cpu.write_bytes(at, &data[..32]).unwrap();
        execute(&mut cpu, &[0xc5, 0xfe, 0x6f, 0x0b]).unwrap();
        assert_eq!(cpu.vector.ymm_bytes(1), data[..32]);
        execute(&mut cpu, &[0xf3, 0x0f, 0x6f, 0x13]).unwrap();
        assert_eq!(cpu.vector.ymm_bytes(2)[..16], data[..16]);
        cpu.vector.set_ymm_bytes(3, data[32..].try_into().unwrap());
        execute(&mut cpu, &[0xc5, 0xfe, 0x7f, 0x1b]).unwrap();
        let mut stored = [0; 32];
        cpu.read_bytes(at, &mut stored).unwrap();
        assert_eq!(stored, data[32..]);
        execute(&mut cpu, &[0xf3, 0x0f, 0x7f, 0x0b]).unwrap();
        cpu.read_bytes(at, &mut stored).unwrap();
        assert_eq!((&stored[..16], &stored[16..]), (&data[..16], &data[48..]));
    }
}

#[test]
fn upper_halves_stay_or_become_zero() {
    let mut cpu = cpu();
    let ones = from_bytes(&[0xff; 16]);
    let legacy: [&[u8]; 5] = [
        &[0x0f, 0x28, 0xca],
        &[0x66, 0x0f, 0xef, 0xca],
        &[0x66, 0x0f, 0xd5, 0xca],
        &[0xf2, 0x0f, 0x58, 0xca],
        &[0x66, 0x0f, 0x6e, 0xc8],
    ];
    // vmovaps, vpxor, vpmullw, vaddsd, vmovd; all to xmm1.
    let vex: [&[u8]; 5] = [
        &[0xc5, 0xf8, 0x28, 0xca],
        &[0xc5, 0xf1, 0xef, 0xca],
        &[0xc5, 0xf1, 0xd5, 0xca],
        &[0xc5, 0xf3, 0x58, 0xca],
        &[0xc5, 0xf9, 0x6e, 0xc8],
    ];
    for (list, kept) in [(legacy, true), (vex, false)] {
        for bytes in list {
            cpu.vector.set_high(1, ones);
            execute(&mut cpu, bytes).unwrap();
            assert_eq!(cpu.vector.ymm_bytes(1)[16..], [if kept { 0xff } else { 0 }; 16], "{bytes:02x?}");
        }
    }
}

#[test]
fn masked_elements_raise_nothing() {
    let (mut cpu, _ram) = with_hole();
    // Four doublewords across the edge: two are mapped.
    let start = HOLE - 8;
    cpu.regs.set64(RegAt::RBX, start);
    cpu.store::<u64>(start, 0x2222_2222_1111_1111).unwrap();
    let mut mask = [0; 32];
    (mask[3], mask[7]) = (0x80, 0x80);
    cpu.vector.set_ymm_bytes(2, &mask);
    cpu.vector.set_ymm_bytes(1, &[0x77; 32]);
    // vmaskmovps xmm1, xmm2, [rbx]
    let (load, store): (&[u8], &[u8]) = (&[0xc4, 0xe2, 0x69, 0x2c, 0x0b], &[0xc4, 0xe2, 0x69, 0x2e, 0x0b]);
    execute(&mut cpu, load).unwrap();
    let mut expected = [0; 32];
    expected[..8].copy_from_slice(&0x2222_2222_1111_1111u64.to_le_bytes());
    assert_eq!(cpu.vector.ymm_bytes(1), expected);
    cpu.vector.set_ymm_bytes(1, &[0x33; 32]);
    execute(&mut cpu, store).unwrap();
    assert_eq!(cpu.load::<u64>(start), Ok(0x3333_3333_3333_3333));
    // The third element is selected too: nothing happens at all.
    mask[11] = 0x80;
    cpu.vector.set_ymm_bytes(2, &mask);
    cpu.vector.set_ymm_bytes(1, &[0x44; 32]);
    page_fault(&mut cpu, store, true, HOLE);
    page_fault(&mut cpu, load, false, HOLE);
    assert_eq!(cpu.load::<u64>(start), Ok(0x3333_3333_3333_3333));
    // maskmovdqu xmm1, xmm2 writes to RDI: bytes 3 and 7, then byte 11 too.
    cpu.regs.set64(RegAt::RDI, start);
    page_fault(&mut cpu, &[0x66, 0x0f, 0xf7, 0xca], true, HOLE + 3);
    mask[11] = 0;
    cpu.vector.set_ymm_bytes(2, &mask);
    execute(&mut cpu, &[0x66, 0x0f, 0xf7, 0xca]).unwrap();
    assert_eq!(cpu.load::<u64>(start), Ok(0x4433_3333_4433_3333));
}

#[test]
fn gathers_start_again_where_they_stopped() {
    let (mut cpu, ram) = with_hole();
    cpu.regs.set64(RegAt::RBX, HOLE - 0x100);
    (0..64).for_each(|i| cpu.store::<u32>(HOLE - 0x100 + 4 * i, 0x100 + i as u32).unwrap());
    let indices: [i32; 8] = [1, 0, 5, 7, 64, 2, 3, 63];
    let mut bytes = [0; 32];
    bytes.chunks_exact_mut(4).zip(indices).for_each(|(to, index)| to.copy_from_slice(&index.to_le_bytes()));
    cpu.vector.set_ymm_bytes(3, &bytes);
    let mut mask = [0xff; 32];
    // The second element is not wanted.
    mask[4..8].fill(0x7f);
    cpu.vector.set_ymm_bytes(2, &mask);
    cpu.vector.set_ymm_bytes(1, &[0xee; 32]);
    // vpgatherdd ymm1, [rbx + ymm3 * 4], ymm2
    let gather = [0xc4, 0xe2, 0x6d, 0x90, 0x0c, 0x9b];
    let stopped = fault(&mut cpu, &gather);
    assert_eq!((stopped.vector, stopped.address), (PF, HOLE));
    let words = |cpu: &Cpu, register| -> Vec<u32> {
        cpu.vector
            .ymm_bytes(register)
            .chunks_exact(4)
            .map(|part| u32::from_le_bytes(part.try_into().unwrap()))
            .collect()
    };
    let old = 0xeeee_eeee;
    assert_eq!(words(&cpu, 1), [0x101, old, 0x105, 0x107, old, old, old, old]);
    assert_eq!(words(&cpu, 2), [0, 0, 0, 0, u32::MAX, u32::MAX, u32::MAX, u32::MAX]);
    // The page comes back.
    ram.write(PAGE_TABLES + 0x2008, &(HOLE | 0x87).to_le_bytes()).unwrap();
    cpu.tlb.flush();
    cpu.store::<u32>(HOLE, 0x999).unwrap();
    execute(&mut cpu, &gather).unwrap();
    assert_eq!(words(&cpu, 1), [0x101, old, 0x105, 0x107, 0x999, 0x102, 0x103, 0x13f]);
    assert_eq!(words(&cpu, 2), [0; 8]);
    // vgatherqps xmm1, [rbx + xmm3 * 4], xmm2: two elements, and zero above them.
    cpu.vector.set_ymm_bytes(2, &[0xff; 32]);
    let mut quads = [0; 32];
    (quads[0], quads[8]) = (9, 10);
    cpu.vector.set_ymm_bytes(3, &quads);
    execute(&mut cpu, &[0xc4, 0xe2, 0x69, 0x93, 0x0c, 0x9b]).unwrap();
    assert_eq!(words(&cpu, 1), [0x109, 0x10a, 0, 0, 0, 0, 0, 0]);
    // vgatherdpd ymm1, [rbx + xmm3 * 8], ymm2: four elements of eight bytes, negative index too.
    cpu.vector.set_ymm_bytes(2, &[0xff; 32]);
    cpu.regs.set64(RegAt::RBX, HOLE - 0x80);
    let mut doubles = [0; 32];
    doubles[..4].copy_from_slice(&(-16i32).to_le_bytes());
    cpu.vector.set_ymm_bytes(3, &doubles);
    execute(&mut cpu, &[0xc4, 0xe2, 0xed, 0x92, 0x0c, 0xdb]).unwrap();
    assert_eq!(words(&cpu, 1), [0x100, 0x101, 0x120, 0x121, 0x120, 0x121, 0x120, 0x121]);
    // Registers that are not distinct do not exist.
    assert_eq!(faults(&mut cpu, &[0xc4, 0xe2, 0x75, 0x90, 0x0c, 0x9b]).0, crate::engine::soft::fault::UD);
}
