//! Every encoding of this directory's instructions has a handler.

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, Mnemonic, OpKind};

use crate::engine::soft::code::lower::Lowered;
use crate::engine::soft::code::op::{Addressing, Op, Seg};
use crate::engine::soft::registers::RegAt;
use crate::engine::soft::system::interrupt;
use crate::engine::soft::system::lower::lower;

fn op() -> Op {
    Op::new(interrupt::undefined, 0, 1)
}

#[test]
fn all_encodings_of_these_mnemonics_are_known() {
    use Mnemonic::*;
    let mine = [
        Lds, Les, Lfs, Lgs, Lss, Lar, Lsl, Verr, Verw, Lldt, Ltr, Sldt, Str, Sgdt, Sidt, Lgdt, Lidt, Smsw, Lmsw, Arpl,
        Retf, Iret, Iretd, Iretq, Syscall, Sysret, Sysretq, Sysenter, Sysexit, Sysexitq, Int, Int3, Into, Int1, Bound,
        Ud0, Ud1, Ud2, Swapgs, Stac, Clac, Rdfsbase, Rdgsbase, Wrfsbase, Wrgsbase, Clts, Invlpg, Invd, Wbinvd, Hlt,
        Cli, Sti, Pushf, Pushfd, Pushfq, Popf, Popfd, Popfq, Cpuid, Rdmsr, Wrmsr, Rdtsc, Rdtscp, Rdpmc, Rdpid, Rdrand,
        Rdseed, Pause, Monitor, Mwait, In, Out, Insb, Insw, Insd, Outsb, Outsw, Outsd,
    ];
    let mut seen = 0;
    for code in Code::values().filter(|code| mine.contains(&code.mnemonic())) {
        let mut insn = Instruction::default();
        insn.set_code(code);
        if code == Code::Bound_r16_m1616 || code == Code::Bound_r32_m3232 {
            insn.set_op1_kind(OpKind::Memory);
        }
        assert_ne!(lower(&insn, &mut op()), Lowered::NotMine, "{code:?}");
        seen += 1;
    }
    assert!(seen > 140, "{seen}");
}

#[test]
fn operands_are_set() {
    let decode = |bits, bytes: &'static [u8]| {
        let insn = Decoder::with_ip(bits, bytes, 0x1000, DecoderOptions::NONE).decode();
        let mut op = op();
        let lowered = lower(&insn, &mut op);
        (op, lowered)
    };
    let (op, lowered) = decode(64, &[0x41, 0x0f, 0x22, 0xdc]);
    assert_eq!((op.extra, op.src, lowered), (3, RegAt::gpr(12), Lowered::System), "mov cr3, r12");
    let (op, lowered) = decode(64, &[0x45, 0x8c, 0xe5]);
    assert_eq!((op.extra, op.dst, lowered), (4, RegAt::gpr(13), Lowered::Inside), "mov r13d, fs");
    let (op, _) = decode(32, &[0xea, 4, 3, 2, 1, 6, 5]);
    assert_eq!((op.imm, op.extra), (0x506_0102_0304, 4), "jmp 0x506:0x1020304");
    let (op, _) = decode(32, &[0xca, 0xfe, 0xff]);
    assert_eq!(op.imm, 0xfffe, "ret far 0xfffe");
    let (op, _) = decode(64, &[0x67, 0x65, 0x6e]);
    assert_eq!((op.base, op.seg, op.addressing), (RegAt::RSI, Seg::Gs, Addressing::Flat32), "outsb gs:[esi]");
    let (op, _) = decode(16, &[0x6c]);
    assert_eq!((op.base, op.seg, op.addressing), (RegAt::RDI, Seg::Es, Addressing::Segmented16), "insb es:[di]");
    let (_, lowered) = decode(64, &[0x48, 0x01, 0xc8]);
    assert_eq!(lowered, Lowered::NotMine, "add rax, rcx");
}
