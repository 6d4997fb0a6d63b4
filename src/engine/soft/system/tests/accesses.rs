//! What accesses to memory raise beside page faults.

use crate::engine::soft::cpu::cr0;
use crate::engine::soft::fault;
use crate::engine::soft::flags::rflags;
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::system::testing::*;

/// Bits 63 to 47 differ.
const NOWHERE: u64 = 1 << 63;

#[test]
fn addresses_that_are_not_canonical() {
    let raises = |bytes: &[u8], register: RegAt| {
        let mut cpu = long();
        set(&mut cpu, &[(register, NOWHERE)]);
        exec(&mut cpu, bytes)
    };
    let (gp, ss) = (Err((fault::GP, Some(0))), Err((fault::SS, Some(0))));
    let (rbx, rbp, rsp) = (RegAt::RBX, RegAt::RBP, RegAt::RSP);
    let cases: [(&[u8], RegAt, _); 11] = [
        (&[0x8b, 0x03], rbx, gp),                   // mov eax, [rbx]
        (&[0x8b, 0x45, 0x00], rbp, ss),             // mov eax, [rbp]
        (&[0x64, 0x8b, 0x45, 0x00], rbp, gp),       // mov eax, fs:[rbp]
        (&[0x8b, 0x04, 0x2d, 0, 0, 0, 0], rbp, gp), // mov eax, [rbp * 1 + 0]
        (&[0x89, 0x04, 0x24], rsp, ss),             // mov [rsp], eax
        (&[0x50], rsp, ss),                         // push rax
        (&[0xff, 0x33], rbx, gp),                   // push qword [rbx]
        (&[0x58], rsp, ss),                         // pop rax
        (&[0xe8, 0, 0, 0, 0], rsp, ss),             // call
        (&[0xc3], rsp, ss),                         // ret
        (&[0xc9], rbp, ss),                         // leave
    ];
    for (bytes, register, expected) in cases {
        assert_eq!(raises(bytes, register), expected, "{bytes:02x?}");
    }
}

#[test]
fn programs_can_have_their_accesses_checked_for_alignment() {
    let ac = Err((fault::AC, Some(0)));
    let load = [0x8b, 0x03]; // mov eax, [rbx]
    let with = |am: bool, ac: bool, at: u64, bytes: &[u8]| {
        let mut cpu = user();
        cpu.system.cr0 |= if am { cr0::AM } else { 0 };
        cpu.set_rflags(cpu.rflags() | if ac { rflags::AC } else { 0 });
        cpu.mode_changed();
        set(&mut cpu, &[(RegAt::RBX, STACK + at), (RegAt::RDI, STACK + at), (RegAt::RCX, 2)]);
        // Twice: what was looked up is not let through.
        exec(&mut cpu, &[0x8b, 0x07]).and_then(|()| exec(&mut cpu, bytes))
    };
    assert_eq!(with(true, true, 0, &load), Ok(()));
    for at in [1, 2, 3, 0xffe] {
        assert_eq!(with(true, true, at, &load), ac, "{at}");
        assert_eq!(with(true, false, at, &load), Ok(()));
        assert_eq!(with(false, true, at, &load), Ok(()));
    }
    // mov [rbx], rax; lock inc dword [rbx + 1]; rep stosq; mov al, [rbx + 1]
    assert_eq!(with(true, true, 4, &[0x48, 0x89, 0x03]), ac);
    assert_eq!(with(true, true, 0, &[0xf0, 0xff, 0x43, 1]), ac);
    assert_eq!(with(true, true, 4, &[0xf3, 0x48, 0xab]), ac);
    assert_eq!(with(true, true, 0, &[0x8a, 0x43, 1]), Ok(()));
    let mut cpu = long();
    cpu.system.cr0 |= cr0::AM;
    cpu.set_rflags(cpu.rflags() | rflags::AC);
    set(&mut cpu, &[(RegAt::RBX, STACK + 1)]);
    assert_eq!(exec(&mut cpu, &load), Ok(()), "programs only");
}
