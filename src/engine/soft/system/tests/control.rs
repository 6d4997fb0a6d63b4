//! Control and debug registers, RFLAGS, identification.

use std::time::Instant;

use crate::engine::Exit;
use crate::engine::soft::code::op::Seg;
use crate::engine::soft::cpu::{CodeSize, Cpu, cr0, cr4, efer};
use crate::engine::soft::fault::{self, Break};
use crate::engine::soft::flags::rflags;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::system::testing::*;

/// MOV CRn, RAX (or EAX).
fn set_control(cpu: &mut Cpu, number: u8, value: u64) -> Result<(), Raised> {
    set(cpu, &[(RegAt::RAX, value)]);
    exec(cpu, &[0x0f, 0x22, 0xc0 | number << 3])
}

/// MOV RAX, CRn.
fn control(cpu: &mut Cpu, number: u8) -> u64 {
    exec(cpu, &[0x0f, 0x20, 0xc0 | number << 3]).unwrap();
    cpu.regs.get64(RegAt::RAX)
}

const REFUSED: Result<(), Raised> = Err((fault::GP, Some(0)));

#[test]
fn cr0_rules() {
    let mut cpu = long();
    let now = control(&mut cpu, 0);
    for bad in [now | 1 << 32, now & !cr0::PE, now | cr0::NW, now & !cr0::PG] {
        assert_eq!(set_control(&mut cpu, 0, bad), REFUSED, "{bad:#x}");
    }
    assert_eq!(control(&mut cpu, 0), now);
    assert_eq!(set_control(&mut cpu, 0, now & !cr0::ET | cr0::TS | 1 << 6), Ok(()));
    assert_eq!(control(&mut cpu, 0), now | cr0::TS, "ET reads as one, reserved bits as zero");
    assert_eq!(exec(&mut cpu, &[0x0f, 0x06]), Ok(()), "clts");
    assert_eq!(control(&mut cpu, 0), now);
    for bytes in [&[0x0f, 0x22, 0xc0][..], &[0x0f, 0x20, 0xd8], &[0x0f, 0x06], &[0x0f, 0x01, 0x3b], &[0x0f, 0x09]] {
        assert_eq!(exec(&mut user(), bytes), REFUSED, "{bytes:02x?}");
    }
}

#[test]
fn write_protection_counts_at_once() {
    let mut cpu = long();
    // The 2 MiB page that holds 0x5000, read-only.
    put(&mut cpu, 0x30_2000, 0x85);
    cpu.tlb.flush();
    assert_eq!(cpu.store::<u64>(0x5000, 1), Err(Break::Fault));
    cpu.rip = 0x20_8000;
    let now = control(&mut cpu, 0);
    assert_eq!(set_control(&mut cpu, 0, now & !cr0::WP), Ok(()));
    assert_eq!(cpu.store::<u64>(0x5000, 1), Ok(()));
    assert_eq!(set_control(&mut cpu, 0, now), Ok(()));
    assert_eq!(cpu.store::<u64>(0x5000, 1), Err(Break::Fault));
}

#[test]
fn from_real_mode_to_long_mode_and_back() {
    let mut cpu = real();
    let mut tables = long();
    for at in (0x30_0000..0x30_3000).step_by(8).chain((GDT..GDT + 0x80).step_by(8)) {
        let value = quad(&mut tables, at);
        put_physical(&mut cpu, at, value);
    }
    cpu.system.gdt = tables.system.gdt;
    let now = cpu.system.cr0;
    assert_eq!(set_control(&mut cpu, 0, now | cr0::PE), Ok(()));
    assert_eq!((cpu.code_size, cpu.cpl), (CodeSize::Bits16, 0));
    // jmp 0x40:0x15000 to 32-bit code
    assert_eq!(exec(&mut cpu, &[0x66, 0xea, 0, 0x50, 1, 0, 0x40, 0]), Ok(()));
    assert_eq!((cpu.code_size, cpu.rip), (CodeSize::Bits32, 0x1_5000));
    cpu.system.efer = efer::LME;
    assert_eq!(set_control(&mut cpu, 3, 0x30_0000), Ok(()));
    let protected = cpu.system.cr0;
    assert_eq!(set_control(&mut cpu, 0, protected | cr0::PG), REFUSED, "without PAE");
    assert_eq!(set_control(&mut cpu, 4, cr4::PAE), Ok(()));
    assert_eq!(set_control(&mut cpu, 0, protected | cr0::PG), Ok(()));
    assert!(cpu.long_mode() && cpu.code_size == CodeSize::Bits32, "compatibility mode");
    assert_eq!(set_control(&mut cpu, 4, 0), REFUSED, "PAE stays");
    assert_eq!(exec(&mut cpu, &[0xea, 0, 0x60, 1, 0, 8, 0]), Ok(()));
    assert_eq!((cpu.code_size, cpu.rip), (CodeSize::Bits64, 0x1_6000));
    // Back: by a far return to compatibility mode, paging off.
    cpu.regs.set64(RegAt::RSP, 0x8000 - 16);
    put(&mut cpu, 0x8000 - 16, 0x1_5000);
    put(&mut cpu, 0x8000 - 8, sel::KERNEL_CODE32.into());
    assert_eq!(exec(&mut cpu, &[0x48, 0xcb]), Ok(()));
    assert_eq!(set_control(&mut cpu, 0, protected), Ok(()));
    assert!(!cpu.long_mode() && cpu.system.efer == efer::LME);
}

fn put_physical(cpu: &mut Cpu, at: u64, value: u64) {
    let (protected, base) = (cpu.system.cr0, cpu.seg_base);
    put(cpu, at, value);
    assert_eq!((cpu.system.cr0, cpu.seg_base), (protected, base));
}

#[test]
fn cr3_and_cr4() {
    let mut cpu = long();
    assert_eq!(set_control(&mut cpu, 3, 1 << 46), REFUSED);
    assert_eq!(set_control(&mut cpu, 3, 0x30_0018), Ok(()));
    assert_eq!(control(&mut cpu, 3), 0x30_0018);
    for unknown in [1u64 << 13, 1 << 17, 1 << 63, 1] {
        assert_eq!(set_control(&mut cpu, 4, cr4::PAE | unknown), REFUSED, "{unknown:#x}");
    }
    cpu.rip = 0x20_8000;
    let all = cr4::PAE | cr4::PGE | cr4::SMEP | cr4::TSD | cr4::OSFXSR;
    assert_eq!(set_control(&mut cpu, 4, all), Ok(()));
    assert_eq!(control(&mut cpu, 4), all);
    assert_eq!(set_control(&mut cpu, 2, u64::MAX), Ok(()));
    assert_eq!(control(&mut cpu, 2), u64::MAX);
    assert_eq!(set_control(&mut cpu, 8, 16), REFUSED);
}

#[test]
fn translations_are_forgotten_when_they_must_be() {
    let move_page = |cpu: &mut Cpu, to: u64| {
        put(cpu, 0x30_2000 + 5 * 8, to << 21 | 0x87);
    };
    let mut cpu = long();
    let at = 5 << 21;
    put(&mut cpu, 3 << 21, 0x3333);
    move_page(&mut cpu, 0);
    assert_eq!(cpu.load::<u64>(at + CODE), cpu.load::<u64>(CODE));
    move_page(&mut cpu, 3);
    assert_eq!(cpu.load::<u64>(at + CODE), cpu.load::<u64>(CODE), "still cached");
    assert_eq!(set_control(&mut cpu, 3, 0x30_0000), Ok(()));
    assert_eq!(cpu.load::<u64>(at), Ok(0x3333));
    move_page(&mut cpu, 0);
    set(&mut cpu, &[(RegAt::RBX, at)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0x3b]), Ok(()), "invlpg");
    assert_ne!(cpu.load::<u64>(at), Ok(0x3333));
    set(&mut cpu, &[(RegAt::RBX, 1 << 63)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0x3b]), Ok(()), "not canonical: nothing");
    // 100,000 changes of CR3 in well under a tenth of a second even without optimisation.
    let start = Instant::now();
    (0..100_000).for_each(|_| cpu.tlb.flush());
    assert!(start.elapsed().as_millis() < 1000, "{:?}", start.elapsed());
}

#[test]
fn machine_status_word() {
    let mut cpu = legacy(0);
    set(&mut cpu, &[(RegAt::RAX, cr0::TS | cr0::MP)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0xf0]), Ok(()), "lmsw ax");
    assert_eq!(cpu.system.cr0 & 15, cr0::PE | cr0::TS | cr0::MP, "PE cannot be cleared");
    set(&mut cpu, &[(RegAt::RCX, u64::MAX)]);
    assert_eq!(exec(&mut cpu, &[0x66, 0x0f, 0x01, 0xe1]), Ok(()), "smsw cx");
    assert_eq!(cpu.regs.get64(RegAt::RCX), 0xffff_ffff_ffff_0000 | cpu.system.cr0 & 0xffff);
    assert_eq!(exec(&mut legacy(3), &[0x0f, 0x01, 0xf0]), REFUSED);
}

#[test]
fn debug_registers() {
    let mut cpu = long();
    set(&mut cpu, &[(RegAt::RAX, 0xffff_8000_0000_1000)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x23, 0xd8]), Ok(()), "mov dr3, rax");
    assert_eq!(exec(&mut cpu, &[0x0f, 0x23, 0xf0]), REFUSED, "dr6 has 32 bits");
    set(&mut cpu, &[(RegAt::RAX, 0)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x23, 0xe8]), Ok(()), "dr5 is dr7");
    assert_eq!(exec(&mut cpu, &[0x0f, 0x21, 0xfa]), Ok(()));
    assert_eq!(exec(&mut cpu, &[0x0f, 0x21, 0xd9]), Ok(()));
    assert_eq!((cpu.regs.get64(RegAt::RDX), cpu.regs.get64(RegAt::RCX)), (0x400, 0xffff_8000_0000_1000));
    cpu.system.cr4 |= cr4::DE;
    assert_eq!(exec(&mut cpu, &[0x0f, 0x23, 0xe8]), Err((fault::UD, None)));
    set(&mut cpu, &[(RegAt::RAX, 1 << 13)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x23, 0xf8]), Ok(()), "general detect");
    assert_eq!(exec(&mut cpu, &[0x0f, 0x21, 0xc0]), Err((fault::DB, None)));
    assert_ne!(cpu.system.dr6 & 1 << 13, 0);
    assert_eq!(exec(&mut user(), &[0x0f, 0x21, 0xc0]), REFUSED);
}

#[test]
fn interrupt_flag_and_shadow() {
    let (cli, sti): (&[u8], &[u8]) = (&[0xfa], &[0xfb]);
    let mut cpu = long();
    cpu.interrupt_waits = true;
    assert_eq!(exec(&mut cpu, sti), Ok(()));
    assert!(cpu.shadow && cpu.rflags() & rflags::IF != 0 && !cpu.interrupt_waits);
    cpu.shadow = false;
    assert_eq!(exec(&mut cpu, sti), Ok(()));
    assert!(!cpu.shadow, "only when IF goes from 0 to 1");
    assert_eq!(exec(&mut cpu, cli), Ok(()));
    assert_eq!(cpu.rflags() & rflags::IF, 0);
    let mut cpu = user();
    assert_eq!((exec(&mut cpu, cli), exec(&mut cpu, sti)), (REFUSED, REFUSED));
    set_iopl(&mut cpu, 3);
    assert_eq!((exec(&mut cpu, sti), exec(&mut cpu, cli)), (Ok(()), Ok(())));
    assert_eq!(exec(&mut cpu, &[0xf4]), REFUSED);
    let mut cpu = long();
    assert_eq!(exec_break(&mut cpu, &[0xf4]), Err(Break::Leave));
    assert_eq!((cpu.leave.take(), cpu.rip), (Some(Exit::Halted), CODE + 1));
}

#[test]
fn pushf_and_popf() {
    let (pushf, popf): (&[u8], &[u8]) = (&[0x9c], &[0x9d]);
    let all = 0x3f_7fd5 & !rflags::TF;
    let mut cpu = long();
    cpu.system.rflags |= rflags::RF;
    assert_eq!(exec(&mut cpu, pushf), Ok(()));
    assert_eq!((cpu.rsp(), quad(&mut cpu, STACK - 8)), (STACK - 8, 2), "RF is pushed as zero");
    put(&mut cpu, STACK - 8, all);
    assert_eq!(exec(&mut cpu, popf), Ok(()));
    let changed = rflags::STATUS | rflags::DF | rflags::NT | rflags::IF | rflags::IOPL | rflags::AC | rflags::ID;
    assert_eq!((cpu.rflags(), cpu.rsp()), (changed | 2, STACK));
    let mut cpu = user();
    put(&mut cpu, STACK - 8, all);
    cpu.regs.set64(RegAt::RSP, STACK - 8);
    assert_eq!(exec(&mut cpu, popf), Ok(()));
    assert_eq!(cpu.rflags(), changed & !(rflags::IF | rflags::IOPL) | 2);
    set_iopl(&mut cpu, 3);
    put(&mut cpu, STACK - 8, rflags::IF);
    cpu.regs.set64(RegAt::RSP, STACK - 8);
    assert_eq!(exec(&mut cpu, &[0x66, 0x9d]), Ok(()));
    assert_eq!(cpu.rflags(), rflags::IF | rflags::IOPL | rflags::AC | rflags::ID | 2, "16 bits leave the rest alone");
}

#[test]
fn access_check_flag() {
    let mut cpu = long();
    cpu.system.cr4 |= cr4::SMAP;
    cpu.mode_changed();
    cpu.rip = 0x20_8000;
    assert_eq!(cpu.load::<u64>(0x5000), Err(Break::Fault));
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0xcb]), Ok(()), "stac");
    assert_eq!(cpu.load::<u64>(0x5000), Ok(0));
    assert_eq!(exec(&mut cpu, &[0x0f, 0x01, 0xca]), Ok(()), "clac");
    assert_eq!(cpu.load::<u64>(0x5000), Err(Break::Fault));
    assert_eq!(exec(&mut user(), &[0x0f, 0x01, 0xcb]), Err((fault::UD, None)));
}

#[test]
fn identification_time_and_randomness() {
    let mut cpu = user();
    set(&mut cpu, &[(RegAt::RAX, 0xffff_ffff_0000_0001), (RegAt::RBX, u64::MAX)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0xa2]), Ok(()));
    let [eax, ebx, ..] = cpu.cpuid(1, 0);
    assert_eq!((cpu.regs.get64(RegAt::RAX), cpu.regs.get64(RegAt::RBX)), (eax.into(), ebx.into()));
    set(&mut cpu, &[(RegAt::RAX, u64::MAX), (RegAt::RDX, u64::MAX)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x31]), Ok(()));
    assert!(cpu.regs.get64(RegAt::RAX) <= u32::MAX.into() && cpu.regs.get64(RegAt::RDX) <= u32::MAX.into());
    cpu.system.cr4 |= cr4::TSD;
    for bytes in [&[0x0f, 0x31][..], &[0x0f, 0x01, 0xf9], &[0x0f, 0x32], &[0x0f, 0x30], &[0x0f, 0x33]] {
        assert_eq!(exec(&mut cpu, bytes), REFUSED, "{bytes:02x?}");
    }
    let mut numbers = std::collections::BTreeSet::new();
    for _ in 0..8 {
        assert_eq!(exec(&mut cpu, &[0x48, 0x0f, 0xc7, 0xf0]), Ok(()), "rdrand rax");
        assert_eq!(cpu.rflags() & rflags::STATUS, rflags::CF);
        numbers.insert(cpu.regs.get64(RegAt::RAX));
    }
    assert_eq!(numbers.len(), 8);
    assert_eq!(exec(&mut cpu, &[0xf3, 0x90]), Ok(()), "pause");
    let mut cpu = long();
    set(&mut cpu, &[(RegAt::RAX, 0x1_2345_6789), (RegAt::RDX, 0xab), (RegAt::RCX, 0xc000_0103)]);
    assert_eq!(exec(&mut cpu, &[0x0f, 0x30]), Ok(()), "wrmsr");
    assert_eq!(cpu.read_msr(0xc000_0103).map(|value| value as u32), Ok(0x2345_6789));
    assert_eq!(exec(&mut cpu, &[0xf3, 0x0f, 0xc7, 0xfb]), Ok(()), "rdpid rbx");
    assert_eq!(cpu.regs.get64(RegAt::RBX), 0x2345_6789);
    assert_eq!(cpu.segment(Seg::Cs).selector, sel::KERNEL_CODE);
}
