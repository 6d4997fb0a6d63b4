//! Executes an instruction's own bytes on the host, with all registers loaded before and stored after: another path than
//! stubs take, since neither registers nor encodings are changed.

// UNSAFETY: runs made code.
#![expect(unsafe_code)]

use iced_x86::{Code, Encoder, IcedError, Instruction, MemoryOperand, Register};

use super::super::code_memory::CodeMemory;
use super::super::state::{MXCSR_DEFAULT, VectorState};

/// All registers. Field offsets are part of the made code.
#[repr(C, align(64))]
pub(super) struct Native {
    pub(super) vector: VectorState,
    pub(super) general: [u64; 16],
    pub(super) rflags: u64,
    mxcsr: u32,
}

const VECTOR: i64 = 0;
const HIGH: i64 = 576;
const GENERAL: i64 = size_of::<VectorState>() as i64;
const RFLAGS: i64 = GENERAL + 128;
const MXCSR: i64 = RFLAGS + 8;
const _: () = assert!(
    std::mem::offset_of!(Native, general) == GENERAL as usize && std::mem::offset_of!(Native, mxcsr) == MXCSR as usize
);

impl Native {
    pub(super) fn new(vector: VectorState, general: [u64; 16], rflags: u64) -> Box<Self> {
        Box::new(Self { vector, general, rflags, mxcsr: MXCSR_DEFAULT })
    }
}

/// What is before and after the instruction.
pub(super) struct Oracle {
    before: Vec<u8>,
    after: Vec<u8>,
    memory: CodeMemory,
}

impl Oracle {
    pub(super) fn new() -> Self {
        let (before, after) = (before().unwrap(), after().unwrap());
        Self { before, after, memory: CodeMemory::new().unwrap() }
    }

    /// Executes `insn`, which may access only memory that the caller owns, and RSP not at all.
    pub(super) fn execute(&mut self, insn: &[u8], state: &mut Native) {
        let code = [&self.before[..], insn, &self.after[..]].concat();
        let place = self.memory.add(&code).unwrap_or_else(|| {
            self.memory = CodeMemory::new().unwrap();
            self.memory.add(&code).unwrap()
        });
        // SAFETY: the code keeps to the calling convention around an instruction that the caller vouches for.
        let function = unsafe { std::mem::transmute::<*mut _, unsafe extern "sysv64" fn(*mut Native)>(place.as_ptr()) };
        // SAFETY: as above.
        unsafe { function(state) };
    }
}

const SAVED: [Register; 6] = [Register::RBX, Register::RBP, Register::R12, Register::R13, Register::R14, Register::R15];

fn state(offset: i64) -> MemoryOperand {
    MemoryOperand::with_base_displ(Register::RDI, offset)
}

/// General registers but RSP and RDI, with their places.
fn general() -> impl Iterator<Item = (Register, MemoryOperand)> {
    (0..16u32)
        .filter(|number| !matches!(number, 4 | 7))
        .map(|number| (Register::RAX + number, state(GENERAL + 8 * i64::from(number))))
}

fn vectors() -> impl Iterator<Item = (Register, MemoryOperand)> {
    (0..16u32).map(|number| (Register::YMM0 + number, state(HIGH + 16 * i64::from(number))))
}

fn encode(instructions: Vec<Instruction>) -> Result<Vec<u8>, IcedError> {
    let mut encoder = Encoder::new(64);
    for insn in instructions {
        encoder.encode(&insn, 0)?;
    }
    Ok(encoder.take_buffer())
}

fn before() -> Result<Vec<u8>, IcedError> {
    let mut code = vec![];
    for register in SAVED {
        code.push(Instruction::with1(Code::Push_r64, register)?);
    }
    code.push(Instruction::with1(Code::Push_r64, Register::RDI)?);
    code.push(Instruction::with1(Code::Fxrstor64_m512byte, state(VECTOR))?);
    for (register, place) in vectors() {
        code.push(Instruction::with4(Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8, register, register, place, 1)?);
    }
    code.push(Instruction::with1(Code::Push_rm64, state(RFLAGS))?);
    code.push(Instruction::with(Code::Popfq));
    for (register, place) in general() {
        code.push(Instruction::with2(Code::Mov_r64_rm64, register, place)?);
    }
    code.push(Instruction::with2(Code::Mov_r64_rm64, Register::RDI, state(GENERAL + 56))?);
    encode(code)
}

fn after() -> Result<Vec<u8>, IcedError> {
    let top = MemoryOperand::with_base(Register::RSP);
    let mut code = vec![Instruction::with2(Code::Xchg_rm64_r64, top, Register::RDI)?];
    for (register, place) in general() {
        code.push(Instruction::with2(Code::Mov_rm64_r64, place, register)?);
    }
    code.push(Instruction::with(Code::Pushfq));
    code.push(Instruction::with1(Code::Pop_rm64, state(RFLAGS))?);
    code.push(Instruction::with1(Code::Pop_r64, Register::RAX)?);
    code.push(Instruction::with2(Code::Mov_rm64_r64, state(GENERAL + 56), Register::RAX)?);
    code.push(Instruction::with1(Code::Fxsave64_m512byte, state(VECTOR))?);
    for (register, place) in vectors() {
        code.push(Instruction::with3(Code::VEX_Vextractf128_xmmm128_ymm_imm8, place, register, 1)?);
    }
    code.push(Instruction::with(Code::VEX_Vzeroupper));
    code.push(Instruction::with(Code::Fninit));
    code.push(Instruction::with1(Code::Ldmxcsr_m32, state(MXCSR))?);
    for register in SAVED.iter().rev() {
        code.push(Instruction::with1(Code::Pop_r64, *register)?);
    }
    code.push(Instruction::with(Code::Retnq));
    encode(code)
}

/// The host's FCW.
pub(super) fn host_fcw(value: &mut u16) {
    // SAFETY: FNSTCW writes two bytes.
    unsafe { std::arch::asm!("fnstcw [{}]", in(reg) value, options(nostack, preserves_flags)) };
}
