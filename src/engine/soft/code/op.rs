//! One decoded instruction: which function executes it, and its operands.

use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Step;
use crate::engine::soft::registers::RegAt;

/// Executes one instruction. Guest state is written only when nothing can fault any more.
pub(in crate::engine::soft) type Handler = fn(&mut Cpu, &Op) -> Step;

/// Segment registers by their number in encodings (SDM volume 2, table 3-1 and 3.1.1.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "register names")]
pub(in crate::engine::soft) enum Seg {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
    /// No segment counts: in 64-bit mode all but FS and GS.
    None = 6,
}

/// How an effective address is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::engine::soft) enum Addressing {
    /// 64-bit mode, 64-bit address size: segment base + base + index << scale + displacement.
    Flat,
    /// 64-bit mode, 32-bit address size.
    Flat32,
    /// Outside 64-bit mode, 32-bit address size: segment limits count.
    Segmented32,
    /// Outside 64-bit mode, 16-bit address size.
    Segmented16,
}

impl Addressing {
    /// An offset at the address size.
    pub(in crate::engine::soft) fn wrapped(self, offset: u64) -> u64 {
        match self {
            Self::Flat => offset,
            Self::Flat32 | Self::Segmented32 => offset & 0xffff_ffff,
            Self::Segmented16 => offset & 0xffff,
        }
    }
}

/// One operation of a block.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(in crate::engine::soft) struct Op {
    /// What executes it.
    pub(in crate::engine::soft) run: Handler,
    /// Immediate, sign-extended as the instruction wants it; or the target of a branch relative to the block's first
    /// instruction; or what the handler makes of it.
    pub(in crate::engine::soft) imm: u64,
    /// Displacement.
    pub(in crate::engine::soft) disp: i32,
    /// First register operand.
    pub(in crate::engine::soft) dst: RegAt,
    /// Second register operand.
    pub(in crate::engine::soft) src: RegAt,
    /// Base register, or [`RegAt::ZERO`]; [`RegAt::BLOCK_IP`] for RIP-relative operands.
    pub(in crate::engine::soft) base: RegAt,
    /// Index register, or [`RegAt::ZERO`].
    pub(in crate::engine::soft) index: RegAt,
    /// Index shift, 0 to 3.
    pub(in crate::engine::soft) scale: u8,
    /// Segment of the memory operand.
    pub(in crate::engine::soft) seg: Seg,
    /// How the address is made.
    pub(in crate::engine::soft) addressing: Addressing,
    /// Length of the instruction in bytes.
    pub(in crate::engine::soft) len: u8,
    /// Offset of the instruction's first byte from the block's.
    pub(in crate::engine::soft) at: u16,
    /// Handlers' own: a third register, a condition, an operand size.
    pub(in crate::engine::soft) extra: u8,
}

impl Op {
    /// An operation of `len` bytes at offset `at` of its block that `run` executes, without operands.
    pub(in crate::engine::soft) fn new(run: Handler, at: u16, len: u8) -> Self {
        Self {
            run,
            imm: 0,
            disp: 0,
            dst: RegAt::ZERO,
            src: RegAt::ZERO,
            base: RegAt::ZERO,
            index: RegAt::ZERO,
            scale: 0,
            seg: Seg::None,
            addressing: Addressing::Flat,
            len,
            at,
            extra: 0,
        }
    }

    /// Offset of the next instruction from the block's first byte.
    #[inline(always)]
    pub(in crate::engine::soft) fn next(&self) -> u64 {
        u64::from(self.at) + u64::from(self.len)
    }
}

const _: () = assert!(size_of::<Op>() <= 40);
