//! Which instructions are compared, and which are not, and why.

use iced_x86::{Code, CpuidFeature, FlowControl, Instruction, Mnemonic, OpKind};

/// What is done with an instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Compared with the host.
    Compared,
    /// Belongs to an extension that CPUID does not show: #UD, whatever the host does.
    Hidden,
    /// Not compared here, for this reason.
    Left(&'static str),
}

use CpuidFeature as F;

/// What guests may use.
const SHOWN: &[CpuidFeature] = &[
    F::INTEL8086,
    F::INTEL186,
    F::INTEL286,
    F::INTEL386,
    F::INTEL486,
    F::X64,
    F::ADX,
    F::AES,
    F::AVX,
    F::AVX2,
    F::BMI1,
    F::BMI2,
    F::CLFLUSHOPT,
    F::CLFSH,
    F::CMOV,
    F::CMPXCHG16B,
    F::CPUID,
    F::CX8,
    F::F16C,
    F::FMA,
    F::FPU,
    F::FPU287,
    F::FPU387,
    F::FSGSBASE,
    F::FXSR,
    F::LZCNT,
    F::MMX,
    F::MOVBE,
    F::MSR,
    F::MULTIBYTENOP,
    F::PAUSE,
    F::PCLMULQDQ,
    F::POPCNT,
    F::PREFETCHW,
    F::RDPMC,
    F::SSE,
    F::SSE2,
    F::SSE3,
    F::SSE4_1,
    F::SSE4_2,
    F::SSSE3,
    F::TSC,
    F::XSAVE,
];

/// Extensions whose encodings are NOPs, hints or #UD on CPUs without them; and on CPUs with them, as long as nobody
/// switches them on for this process (SDM volume 1, 13.3 for MPX and chapter 17 for CET).
const HINTS: &[CpuidFeature] = &[F::CET_IBT, F::CET_SS, F::MPX, F::CLDEMOTE, F::PREFETCHWT1, F::PREFETCHITI];

const RESULT: &str = "its result is the host's own or differs from run to run";
const SEGMENTS: &str = "needs descriptor tables of its own: see the guests";
const FAR: &str = "leaves the code segment: see the guests";
const SYSTEM: &str = "enters the host's kernel";
const HYPERVISOR: &str = "may reach the hypervisor below";
const UMIP: &str = "the host's kernel may emulate it (UMIP)";
const OPTIMISED: &str = "what it writes depends on the CPU's history";
/// SDM volume 2, CALL: the prefix is ignored; APM volume 3, CALL: it means 16-bit operands.
const WIDTH: &str = "what an operand-size prefix does to near branches differs between vendors";
const TRAP: &str = "ends in a trap on purpose: see the guests";

/// Instructions that are left out.
const LEFT: &[(&str, &[Mnemonic])] = {
    use Mnemonic::*;
    &[
        (RESULT, &[Cpuid, Rdtsc, Rdtscp, Rdrand, Rdseed, Rdpmc, Rdpid, Xgetbv, Rdpru]),
        (SEGMENTS, &[Lar, Lsl, Verr, Verw, Lds, Les, Lfs, Lgs, Lss]),
        (FAR, &[Retf, Iret, Iretd, Iretq, Sysret, Sysretq, Sysexit, Sysexitq]),
        (SYSTEM, &[Syscall, Sysenter]),
        (HYPERVISOR, &[Vmcall, Vmmcall, Vmgexit, Vmrun, Monitor, Mwait, Monitorx, Mwaitx]),
        (UMIP, &[Sgdt, Sidt, Sldt, Smsw, Str]),
        (OPTIMISED, &[Xsaveopt, Xsaveopt64]),
        (TRAP, &[Int, Int1, Int3, Into]),
        ("without the extension it is WBINVD: see the guests", &[Wbnoinvd]),
        ("the vendors differ on whether they have operands, which may fault first", &[Ud0, Ud1]),
        ("Intel: NOP, AMD: #UD where the operand is a register", &[Reservednop]),
        // Loadall, UMOV and the like overlap with later instructions and exist on no 64-bit CPU.
        ("no 64-bit CPU has it", &[Loadall, Umov, Ibts, Xbts, Fsetpm, Frstpm]),
    ]
};

/// What is done with `instruction`, which was decoded from `bytes`.
pub fn scope(instruction: &Instruction, bytes: &[u8]) -> Scope {
    let mnemonic = instruction.mnemonic();
    if let Some((why, _)) = LEFT.iter().find(|(_, list)| list.contains(&mnemonic)) {
        return Scope::Left(why);
    }
    let far = matches!(instruction.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32)
        || instruction.is_jmp_far_indirect()
        || instruction.is_call_far_indirect();
    if far {
        return Scope::Left(FAR);
    }
    if branches(instruction) && has_prefix(bytes, 0x66) {
        return Scope::Left(WIDTH);
    }
    let repeats = has_prefix(bytes, 0xf2) || has_prefix(bytes, 0xf3);
    if matches!(mnemonic, Mnemonic::Loope | Mnemonic::Loopne) && repeats {
        return Scope::Left("AMD's CPUs let the prefix choose between the two, which no manual says");
    }
    // SDM volume 2, MOVSXD: of no use, reads 16 bits; AMD's CPUs read 32.
    if instruction.code() == Code::Movsxd_r16_rm16 {
        return Scope::Left("how much it reads differs between vendors");
    }
    // The decoder's mistake: XCHG with R8, which no assembler writes with a repeat prefix.
    if mnemonic == Mnemonic::Pause && bytes.iter().take(6).any(|byte| byte & 0xf1 == 0x41) {
        return Scope::Left("with REX.B it is XCHG, not PAUSE");
    }
    if instruction.op0_register().is_segment_register() && matches!(mnemonic, Mnemonic::Mov | Mnemonic::Pop) {
        return Scope::Left(SEGMENTS);
    }
    let features = instruction.cpuid_features();
    let shown = |feature: &CpuidFeature| SHOWN.contains(feature) || HINTS.contains(feature);
    if features.iter().all(shown) { Scope::Compared } else { Scope::Hidden }
}

/// Whether the next instruction may be another than the following one, by intention.
pub fn branches(instruction: &Instruction) -> bool {
    !matches!(instruction.flow_control(), FlowControl::Next | FlowControl::Exception | FlowControl::Interrupt)
}

/// Whether `prefix` stands before the opcode.
fn has_prefix(bytes: &[u8], prefix: u8) -> bool {
    let prefixes = [0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3];
    bytes.iter().take_while(|byte| prefixes.contains(byte)).any(|byte| *byte == prefix)
}

/// Status flags, as bits of RFLAGS, that `instruction` leaves undefined and in which the software CPU may therefore differ.
pub fn undefined_flags(instruction: &Instruction) -> u64 {
    const OF: u64 = 0x800;
    match instruction.mnemonic() {
        // SDM volume 2, RCL/RCR/ROL/ROR, and APM volume 3, ROL: undefined unless the count is 1. The software CPU has its
        // flags from the form with CL; Intel's CPUs leave OF alone in the form with an immediate.
        Mnemonic::Rol | Mnemonic::Ror if instruction.op1_kind() == OpKind::Immediate8 => {
            let quad = instruction.op0_register().is_gpr64() || instruction.memory_size().size() == 8;
            let count = instruction.immediate8() & if quad { 63 } else { 31 };
            if count == 1 { 0 } else { OF }
        }
        _ => 0,
    }
}
