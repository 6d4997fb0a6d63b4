//! The code around an instruction on the host: `enter` loads all registers and jumps to it, `leave` stores them. Operands
//! are absolute, so that no register is needed for them, RSP included.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::case::CONTROL;

/// Offsets from [`CONTROL`].
pub const IN: u64 = 0;
pub const OUT: u64 = 0x400;
pub const HOST_RSP: u64 = 0x800;
pub const HOST_FS: u64 = 0x808;
pub const HOST_GS: u64 = 0x810;
pub const TARGET: u64 = 0x818;
pub const FAULT: u64 = 0x840;
/// The stack that flags are popped from grows down from here.
const FLAG_STACK: u64 = 0x2000;
/// Trampolines.
pub const TEXT: u64 = 0x2000;
/// The stack of signal handlers.
pub const SIGNAL_STACK: u64 = 0x8000;

// Fields of `State`.
pub const GPR: u64 = 832;
pub const RIP: u64 = GPR + 128;
pub const RFLAGS: u64 = RIP + 8;
pub const FS: u64 = RIP + 16;
pub const GS: u64 = RIP + 24;

const ORDER: [AsmRegister64; 16] = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
const SAVED: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

/// What the host can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abilities {
    /// XSAVE with AVX state.
    pub avx: bool,
    /// RDFSBASE and the like, allowed by the kernel.
    pub fsgsbase: bool,
}

/// Assembled code and where in it things are.
#[derive(Debug, Clone)]
pub struct Trampolines {
    /// Goes to [`CONTROL`] + [`TEXT`].
    pub text: Vec<u8>,
    /// `extern "C" fn()`: runs one instruction.
    pub enter: u64,
    /// Where the instruction must go afterwards.
    pub leave: u64,
}

fn at(offset: u64) -> AsmMemoryOperand {
    ptr(CONTROL + offset)
}

/// Assembles both.
pub fn assemble(abilities: Abilities) -> Result<Trampolines, IcedError> {
    let base = CONTROL + TEXT;
    let mut a = CodeAssembler::new(64)?;
    let mut leave = a.create_label();
    enter(&mut a, abilities)?;
    a.set_label(&mut leave)?;
    self::leave(&mut a, abilities)?;
    let result = a.assemble_options(base, iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
    let leave = result.label_ip(&leave)?;
    Ok(Trampolines { text: result.inner.code_buffer, enter: base, leave })
}

fn enter(a: &mut CodeAssembler, abilities: Abilities) -> Result<(), IcedError> {
    for register in SAVED {
        a.push(register)?;
    }
    a.mov(qword_ptr(at(HOST_RSP)), rsp)?;
    if abilities.fsgsbase {
        a.rdfsbase(rax)?;
        a.mov(qword_ptr(at(HOST_FS)), rax)?;
        a.rdgsbase(rax)?;
        a.mov(qword_ptr(at(HOST_GS)), rax)?;
        a.mov(rax, qword_ptr(at(IN + FS)))?;
        a.wrfsbase(rax)?;
        a.mov(rax, qword_ptr(at(IN + GS)))?;
        a.wrgsbase(rax)?;
    }
    if abilities.avx {
        a.mov(eax, 7)?;
        a.xor(edx, edx)?;
        a.xrstor64(at(IN))?;
    } else {
        a.fxrstor64(at(IN))?;
    }
    a.mov(rsp, CONTROL + FLAG_STACK)?;
    a.push(qword_ptr(at(IN + RFLAGS)))?;
    a.popfq()?;
    for (number, register) in ORDER.into_iter().enumerate() {
        a.mov(register, qword_ptr(at(IN + GPR + 8 * number as u64)))?;
    }
    a.jmp(qword_ptr(at(TARGET)))
}

fn leave(a: &mut CodeAssembler, abilities: Abilities) -> Result<(), IcedError> {
    for (number, register) in ORDER.into_iter().enumerate() {
        a.mov(qword_ptr(at(OUT + GPR + 8 * number as u64)), register)?;
    }
    a.mov(rsp, CONTROL + FLAG_STACK)?;
    a.pushfq()?;
    a.pop(qword_ptr(at(OUT + RFLAGS)))?;
    // No alignment checks, no NT, direction up.
    a.push(2)?;
    a.popfq()?;
    if abilities.fsgsbase {
        a.rdfsbase(rax)?;
        a.mov(qword_ptr(at(OUT + FS)), rax)?;
        a.rdgsbase(rax)?;
        a.mov(qword_ptr(at(OUT + GS)), rax)?;
        a.mov(rax, qword_ptr(at(HOST_FS)))?;
        a.wrfsbase(rax)?;
        a.mov(rax, qword_ptr(at(HOST_GS)))?;
        a.wrgsbase(rax)?;
    }
    if abilities.avx {
        a.mov(eax, 7)?;
        a.xor(edx, edx)?;
        a.xsave64(at(OUT))?;
        a.vzeroupper()?;
    } else {
        a.fxsave64(at(OUT))?;
    }
    // MXCSR and x87 as the ABI wants them: those of `State::new`.
    a.fninit()?;
    a.push(0x1f80)?;
    a.ldmxcsr(dword_ptr(rsp))?;
    a.mov(rsp, qword_ptr(at(HOST_RSP)))?;
    for register in SAVED.into_iter().rev() {
        a.pop(register)?;
    }
    a.ret()
}
