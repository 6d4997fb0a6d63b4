//! The machine code of stubs. A stub loads what an instruction reads, executes the instruction as the guest's code has it but
//! for the numbers of its registers and the address of its operand, and stores what it wrote.
//!
//! Registers are normalised: operand `k` is XMM or YMM `k + 1` (0 is kept for instructions that imply it), a general register
//! is RAX, memory is at R8. So there are a few ten thousand stubs at most, whatever a guest executes. Calling convention:
//! RDI, RSI, RDX, RCX point to the XMM registers of operands 0 to 3 (to the whole area in stubs for x87 and MMX), R8 to a
//! copy of the memory operand, R9 to [`Side`]. All vector registers and the general ones that C calls may change are changed.

use iced_x86::{
    Code, Encoder, EncodingKind, Instruction, InstructionInfo, InstructionInfoFactory, MemoryOperand, Mnemonic,
    OpAccess, OpKind, Register,
};

use super::state::at;

/// What goes in and out besides vector registers. Field offsets are part of the stubs.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct Side {
    /// The general register that is an operand.
    pub(super) gpr: u64,
    /// Lengths of explicit strings.
    pub(super) rax: u64,
    pub(super) rdx: u64,
    /// Index that string instructions return.
    pub(super) rcx: u64,
    /// Status flags as in [`crate::engine::soft::flags::Flags`].
    pub(super) flags: u64,
    /// MXCSR after a stub for x87 and MMX.
    pub(super) mxcsr: u32,
}

const SIDE_GPR: i64 = 0;
const SIDE_RAX: i64 = 8;
const SIDE_RDX: i64 = 16;
const SIDE_RCX: i64 = 24;
const SIDE_FLAGS: i64 = 32;
const SIDE_MXCSR: i64 = 40;
const _: () = assert!(std::mem::offset_of!(Side, rdx) == 16 && std::mem::offset_of!(Side, rcx) == 24);
const _: () = assert!(std::mem::offset_of!(Side, flags) == 32 && std::mem::offset_of!(Side, mxcsr) == 40);

/// Function of a stub.
pub(super) type Entry = unsafe extern "sysv64" fn(*mut u8, *mut u8, *mut u8, *mut u8, *mut u8, *mut Side);

/// What an instruction does with its memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// There is none.
    None,
    /// Reads so many bytes.
    Load(u8),
    /// Writes so many bytes.
    Store(u8),
}

/// What a stub uses of [`Side`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct SideUse {
    pub(super) gpr_read: bool,
    pub(super) gpr_write: bool,
    pub(super) flags_read: bool,
    pub(super) flags_write: bool,
    /// RAX and RDX are read.
    pub(super) lengths: bool,
    /// ECX is written.
    pub(super) index: bool,
}

impl SideUse {
    /// Whether anything of [`Side`] counts.
    pub(super) fn any(self) -> bool {
        self != Self::default()
    }
}

/// What whoever calls a stub must know of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) memory: Memory,
    /// A memory operand that is not aligned to its size raises #GP(0).
    pub(super) aligned: bool,
    /// Reads and writes MXCSR.
    pub(super) float: bool,
    /// VEX-encoded.
    pub(super) vex: bool,
    pub(super) side: SideUse,
    pub(super) mnemonic: Mnemonic,
}

/// A vector register operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Slot {
    /// Register of the stub.
    host: u8,
    wide: bool,
    load: bool,
    store: bool,
}

/// A stub to be, and the registers of the instruction that asked for it.
#[derive(Debug)]
pub(super) struct Plan {
    /// The instruction that the stub executes.
    pub(super) insn: Instruction,
    pub(super) shape: Shape,
    slots: [Slot; 4],
    /// Four bits each: XMM registers of slots 0 to 3.
    pub(super) registers: u16,
    /// General register operand.
    pub(super) gpr: u8,
}

/// Registers that hold the slots' addresses.
const POINTERS: [Register; 4] = [Register::RDI, Register::RSI, Register::RDX, Register::RCX];
/// From an XMM register to the upper half of the YMM register.
const TO_HIGH: i64 = (at::YMM - at::XMM) as i64;

impl Plan {
    /// For an instruction on XMM and YMM registers; none if it has operands that stubs do not know.
    pub(super) fn vector(insn: &Instruction, info: &mut InstructionInfoFactory) -> Option<Self> {
        let mut plan = Self::new(insn)?;
        for operand in register_operands(insn) {
            let register = insn.op_register(operand);
            if register.is_xmm() || register.is_ymm() {
                let first = if register.is_ymm() { Register::YMM0 } else { Register::XMM0 };
                plan.insn.set_op_register(operand, first + (operand + 1));
            } else {
                plan.normalise_general(operand)?;
            }
        }
        // Asked of the normalised instruction: of one whose operands are one register it may say that nothing is read.
        let info = info.info(&plan.insn);
        let vex = plan.shape.vex;
        for operand in register_operands(insn) {
            let register = insn.op_register(operand);
            let (read, written) = access(info.op_access(operand));
            if register.is_gpr() {
                plan.general(register, read, written);
            } else {
                // Legacy instructions leave what they do not write as it is, which iced does not call reading.
                let load = read || (written && !vex);
                let slot = Slot { host: operand as u8 + 1, wide: register.is_ymm(), load, store: written };
                plan.set_slot(operand as usize, slot, register)?;
            }
        }
        plan.memory(info)?;
        plan.implied()?;
        Some(plan)
    }

    /// For an instruction on x87 or MMX registers, which keep their numbers.
    pub(super) fn legacy(insn: &Instruction, info: &mut InstructionInfoFactory) -> Option<Self> {
        let mut plan = Self::new(insn)?;
        let general = register_operands(insn).find(|operand| insn.op_register(*operand).is_gpr());
        if let Some(operand) = general {
            plan.normalise_general(operand)?;
        }
        let info = info.info(&plan.insn);
        if let Some(operand) = general {
            let (read, written) = access(info.op_access(operand));
            plan.general(insn.op_register(operand), read, written);
        }
        plan.memory(info)?;
        plan.shape.side.flags_read = insn.rflags_read() & STATUS != 0;
        Some(plan)
    }

    fn new(insn: &Instruction) -> Option<Self> {
        let mut normal = *insn;
        normal.set_has_rep_prefix(false);
        normal.set_has_repne_prefix(false);
        normal.set_segment_prefix(Register::None);
        for operand in 0..insn.op_count() {
            match insn.op_kind(operand) {
                OpKind::Memory => {
                    normal.set_memory_base(Register::R8);
                    normal.set_memory_index(Register::None);
                    normal.set_memory_index_scale(1);
                    normal.set_memory_displacement64(0);
                    normal.set_memory_displ_size(0);
                }
                OpKind::Register | OpKind::Immediate8 => {}
                _ => return None,
            }
        }
        let vex = insn.encoding() == EncodingKind::VEX;
        let side = SideUse { flags_write: insn.rflags_modified() & STATUS != 0, ..SideUse::default() };
        let mnemonic = insn.mnemonic();
        let memory = Memory::None;
        let shape = Shape { memory, aligned: false, float: uses_mxcsr(mnemonic), vex, side, mnemonic };
        Some(Self { insn: normal, shape, slots: [Slot::default(); 4], registers: 0, gpr: 0 })
    }

    /// What is done with the memory operand, if there is one.
    fn memory(&mut self, info: &InstructionInfo) -> Option<()> {
        let Some(operand) = (0..self.insn.op_count()).find(|operand| self.insn.op_kind(*operand) == OpKind::Memory)
        else {
            return Some(());
        };
        let size = u8::try_from(self.insn.memory_size().size()).ok().filter(|size| (1..=LARGEST).contains(size))?;
        self.shape.memory = match access(info.op_access(operand)) {
            (true, false) => Memory::Load(size),
            (false, true) => Memory::Store(size),
            _ => return None,
        };
        self.shape.aligned = needs_alignment(self.shape.mnemonic, self.shape.memory, self.shape.vex);
        Some(())
    }

    fn set_slot(&mut self, index: usize, slot: Slot, register: Register) -> Option<()> {
        *self.slots.get_mut(index)? = slot;
        self.registers |= (register.number() as u16 & 15) << (4 * index);
        Some(())
    }

    /// Makes the general register operand RAX; there is one at most.
    fn normalise_general(&mut self, operand: u32) -> Option<()> {
        let host = match self.insn.op_register(operand).size() {
            8 => Register::RAX,
            4 => Register::EAX,
            2 => Register::AX,
            _ => return None,
        };
        self.insn.set_op_register(operand, host);
        Some(())
    }

    fn general(&mut self, register: Register, read: bool, written: bool) {
        self.shape.side.gpr_read = read || register.size() == 2;
        self.shape.side.gpr_write = written;
        self.gpr = register.number() as u8;
    }

    /// Registers that are no operands but used.
    fn implied(&mut self) -> Option<()> {
        let xmm0 = |load| Slot { host: 0, wide: false, load, store: !load };
        match self.shape.mnemonic {
            Mnemonic::Blendvps | Mnemonic::Blendvpd | Mnemonic::Pblendvb | Mnemonic::Sha256rnds2 => {
                self.set_slot(3, xmm0(true), Register::XMM0)?;
            }
            Mnemonic::Pcmpistri | Mnemonic::Vpcmpistri => self.shape.side.index = true,
            Mnemonic::Pcmpestri | Mnemonic::Pcmpestri64 | Mnemonic::Vpcmpestri | Mnemonic::Vpcmpestri64 => {
                self.shape.side.index = true;
                self.shape.side.lengths = true;
            }
            Mnemonic::Pcmpistrm | Mnemonic::Vpcmpistrm => self.set_slot(3, xmm0(false), Register::XMM0)?,
            Mnemonic::Pcmpestrm | Mnemonic::Pcmpestrm64 | Mnemonic::Vpcmpestrm | Mnemonic::Vpcmpestrm64 => {
                self.set_slot(3, xmm0(false), Register::XMM0)?;
                self.shape.side.lengths = true;
            }
            _ => {}
        }
        Some(())
    }

    /// The stub's code for an instruction on XMM and YMM registers.
    pub(super) fn assemble_vector(&self) -> Option<Vec<u8>> {
        let mut code = Assembler::new();
        let vex = self.shape.vex;
        let slots = || self.slots.iter().zip(POINTERS);
        for (slot, pointer) in slots().filter(|(slot, _)| slot.load) {
            let xmm = Register::XMM0 + u32::from(slot.host);
            let load = if vex { Code::VEX_Vmovups_xmm_xmmm128 } else { Code::Movups_xmm_xmmm128 };
            code.add(Instruction::with2(load, xmm, at_offset(pointer, 0)))?;
            if slot.wide {
                let (ymm, high) = (Register::YMM0 + u32::from(slot.host), at_offset(pointer, TO_HIGH));
                code.add(Instruction::with4(Code::VEX_Vinsertf128_ymm_ymm_xmmm128_imm8, ymm, ymm, high, 1))?;
            }
        }
        self.side_in(&mut code)?;
        code.add(Ok(self.insn))?;
        // Stores of vector registers leave flags and general registers alone.
        for (slot, pointer) in slots().filter(|(slot, _)| slot.store) {
            let xmm = Register::XMM0 + u32::from(slot.host);
            let store = if vex { Code::VEX_Vmovups_xmmm128_xmm } else { Code::Movups_xmmm128_xmm };
            code.add(Instruction::with2(store, at_offset(pointer, 0), xmm))?;
            if vex {
                let (ymm, high) = (Register::YMM0 + u32::from(slot.host), at_offset(pointer, TO_HIGH));
                code.add(Instruction::with3(Code::VEX_Vextractf128_xmmm128_ymm_imm8, high, ymm, 1))?;
            }
        }
        self.side_out(&mut code)?;
        if self.slots.iter().any(|slot| slot.wide) {
            code.add(Ok(Instruction::with(Code::VEX_Vzeroupper)))?;
        }
        code.finish()
    }

    /// The stub's code for an instruction on x87 or MMX registers, XMM registers included: the whole state is loaded and
    /// stored, which does not raise what the instruction left pending.
    pub(super) fn assemble_legacy(&self) -> Option<Vec<u8>> {
        let mut code = Assembler::new();
        code.add(Instruction::with1(Code::Fxrstor64_m512byte, at_offset(Register::RDI, 0)))?;
        self.side_in(&mut code)?;
        code.add(Ok(self.insn))?;
        self.side_out(&mut code)?;
        code.add(Instruction::with1(Code::Fxsave64_m512byte, at_offset(Register::RDI, 0)))?;
        code.add(Ok(Instruction::with(Code::Fninit)))?;
        code.add(Instruction::with1(Code::Ldmxcsr_m32, at_offset(Register::R9, SIDE_MXCSR)))?;
        code.finish()
    }

    fn side_in(&self, code: &mut Assembler) -> Option<()> {
        let side = self.shape.side;
        if side.flags_read {
            code.add(Instruction::with2(Code::Mov_r16_rm16, Register::AX, at_offset(Register::R9, SIDE_FLAGS)))?;
            code.add(Ok(Instruction::with(Code::Sahf)))?;
        }
        if side.lengths {
            code.add(Instruction::with2(Code::Mov_r64_rm64, Register::RAX, at_offset(Register::R9, SIDE_RAX)))?;
            code.add(Instruction::with2(Code::Mov_r64_rm64, Register::RDX, at_offset(Register::R9, SIDE_RDX)))?;
        }
        if side.gpr_read {
            code.add(Instruction::with2(Code::Mov_r64_rm64, Register::RAX, at_offset(Register::R9, SIDE_GPR)))?;
        }
        Some(())
    }

    fn side_out(&self, code: &mut Assembler) -> Option<()> {
        let side = self.shape.side;
        if side.index {
            code.add(Instruction::with2(Code::Mov_rm64_r64, at_offset(Register::R9, SIDE_RCX), Register::RCX))?;
        }
        if side.gpr_write {
            code.add(Instruction::with2(Code::Mov_rm64_r64, at_offset(Register::R9, SIDE_GPR), Register::RAX))?;
        }
        if side.flags_write {
            code.add(Ok(Instruction::with(Code::Lahf)))?;
            code.add(Instruction::with1(Code::Seto_rm8, Register::AL))?;
            code.add(Instruction::with2(Code::Mov_rm16_r16, at_offset(Register::R9, SIDE_FLAGS), Register::AX))?;
        }
        Some(())
    }

    /// The bytes of the instruction that the stub executes: equal for instructions that share a stub.
    pub(super) fn key(&self) -> Option<[u8; 16]> {
        let mut encoder = Encoder::new(64);
        encoder.encode(&self.insn, 0).ok()?;
        let mut key = [0; 16];
        key.iter_mut().zip(encoder.take_buffer()).for_each(|(to, from)| *to = from);
        Some(key)
    }
}

/// Bytes of the largest memory operand: what FSAVE stores, rounded up.
pub(super) const LARGEST: u8 = 128;

fn register_operands(insn: &Instruction) -> impl Iterator<Item = u32> + use<> {
    let insn = *insn;
    (0..insn.op_count()).filter(move |operand| insn.op_kind(*operand) == OpKind::Register)
}

/// Status flags, as iced numbers them.
const STATUS: u32 = {
    use iced_x86::RflagsBits as Bits;
    Bits::OF | Bits::SF | Bits::ZF | Bits::AF | Bits::CF | Bits::PF
};

fn at_offset(base: Register, displacement: i64) -> MemoryOperand {
    MemoryOperand::with_base_displ(base, displacement)
}

/// (reads, writes)
fn access(access: OpAccess) -> (bool, bool) {
    match access {
        OpAccess::Read | OpAccess::CondRead => (true, false),
        OpAccess::Write => (false, true),
        OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
        OpAccess::None | OpAccess::NoMemAccess => (false, false),
    }
}

/// Whether a memory operand must be aligned to its size (SDM volume 1, 14.9; volume 2, tables 2-19 to 2-21).
fn needs_alignment(mnemonic: Mnemonic, memory: Memory, vex: bool) -> bool {
    use Mnemonic as M;
    let size = match memory {
        Memory::None => return false,
        Memory::Load(size) | Memory::Store(size) => size,
    };
    if vex {
        return matches!(
            mnemonic,
            M::Vmovaps | M::Vmovapd | M::Vmovdqa | M::Vmovntps | M::Vmovntpd | M::Vmovntdq | M::Vmovntdqa
        );
    }
    let unaligned = matches!(
        mnemonic,
        M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestri64
            | M::Pcmpestrm
            | M::Pcmpestrm64
            | M::Pcmpistri
            | M::Pcmpistrm
    );
    size == 16 && !unaligned
}

/// Whether an instruction rounds or raises floating-point exceptions by MXCSR. Those that only might are counted in, which
/// does no harm.
fn uses_mxcsr(mnemonic: Mnemonic) -> bool {
    const STEMS: [&str; 18] = [
        "Add", "Sub", "Mul", "Div", "Sqrt", "Min", "Max", "Cmp", "Comis", "Ucomis", "Cvt", "Round", "Dpp", "Hadd",
        "Hsub", "Fmadd", "Fmsub", "Fnm",
    ];
    let name = format!("{mnemonic:?}");
    let stem = name.strip_prefix('V').map(|rest| rest[..1].to_uppercase() + &rest[1..]);
    let stem = stem.as_deref().unwrap_or(&name);
    STEMS.iter().any(|known| stem.starts_with(known))
}

/// Instructions one after the other.
struct Assembler(Encoder);

impl Assembler {
    fn new() -> Self {
        Self(Encoder::new(64))
    }

    fn add(&mut self, insn: Result<Instruction, iced_x86::IcedError>) -> Option<()> {
        self.0.encode(&insn.ok()?, 0).ok().map(|_| ())
    }

    fn finish(mut self) -> Option<Vec<u8>> {
        self.add(Ok(Instruction::with(Code::Retnq)))?;
        Some(self.0.take_buffer())
    }
}
