//! Decodes bytes into blocks.

use std::cell::Cell;

use iced_x86::{Decoder, DecoderError, DecoderOptions, FlowControl, Instruction, OpKind};

use super::block::{Block, LONGEST, PAGE};
use super::features::Features;
use super::lower::{self, Lowered};
use super::op::Op;
use crate::engine::UNIMPLEMENTED;
use crate::engine::soft::cpu::CodeSize;
use crate::engine::soft::vector::Thunks;
use crate::engine::soft::{exec, system, vector};
use crate::host::log_limit::LogLimit;

/// Most instructions of a block: what must be executed before interrupts are looked at again.
const MOST: usize = 32;

/// Unimplemented instructions are told a few times, whoever meets them.
static UNIMPLEMENTED_LINES: LogLimit = LogLimit::new();

/// What decoding needs to know beside the bytes.
#[derive(Debug, Clone, Copy)]
pub(in crate::engine::soft) struct Target<'a> {
    /// Address of the block's first byte.
    pub(in crate::engine::soft) ip: u64,
    /// Size of the code.
    pub(in crate::engine::soft) size: CodeSize,
    /// Instructions that exist.
    pub(in crate::engine::soft) features: Features,
    /// Where the stubs of vector instructions are.
    pub(in crate::engine::soft) thunks: &'a Thunks,
}

/// The block that starts with `bytes` at `target.ip`, and its length in bytes. `bytes` ends where the page does; none if
/// the first instruction does not.
pub(in crate::engine::soft) fn block(bytes: &[u8], target: &Target<'_>) -> Option<(Block, usize)> {
    let mut decoder = decoder(bytes, target);
    let (mut ops, mut instructions) = (Vec::with_capacity(8), Vec::with_capacity(8));
    let mut how = Lowered::Inside;
    let mut end = 0;
    while how == Lowered::Inside && ops.len() < MOST && decoder.can_decode() {
        let insn = decoder.decode();
        if decoder.last_error() == DecoderError::NoMoreBytes {
            break;
        }
        let (op, lowered) = lower(&insn, target, bytes.get(end..).unwrap_or_default());
        ops.push(op);
        instructions.push(insn);
        (how, end) = (lowered, end + insn.len());
    }
    if ops.is_empty() {
        return None;
    }
    quiet_flags(&mut ops, &instructions);
    let direct = how == Lowered::Branches && stays_in_page(&instructions, target.ip, bytes.len());
    let block = Block {
        ops: ops.into_boxed_slice(),
        links: [const { Cell::new(std::ptr::null()) }; 2],
        system: how == Lowered::System,
        direct,
        falls: end < bytes.len(),
        key: 0,
    };
    Some((block, end))
}

/// A block of the one instruction that `bytes` starts with.
pub(in crate::engine::soft) fn single(bytes: &[u8; LONGEST], target: &Target<'_>) -> Block {
    let insn = decoder(bytes, target).decode();
    let (op, how) = lower(&insn, target, bytes);
    Block {
        ops: Box::new([op]),
        links: [const { Cell::new(std::ptr::null()) }; 2],
        system: how == Lowered::System,
        direct: false,
        falls: false,
        key: 0,
    }
}

fn decoder<'a>(bytes: &'a [u8], target: &Target<'_>) -> Decoder<'a> {
    let bits = match target.size {
        CodeSize::Bits16 => 16,
        CodeSize::Bits32 => 32,
        CodeSize::Bits64 => 64,
    };
    Decoder::with_ip(bits, bytes, target.ip, DecoderOptions::NONE)
}

fn lower(insn: &Instruction, target: &Target<'_>, bytes: &[u8]) -> (Op, Lowered) {
    let mut op = Op::new(exec::undefined, insn.ip().wrapping_sub(target.ip) as u16, insn.len() as u8);
    if insn.is_invalid() {
        return (op, Lowered::System);
    }
    if lower::memory(insn, &mut op, target) {
        let how = exec::lower(insn, &mut op, target);
        if how != Lowered::NotMine {
            return (op, how);
        }
        if !target.features.offer(insn) {
            return (op, Lowered::System);
        }
        let how = match system::lower::lower(insn, &mut op) {
            Lowered::NotMine => vector::lower(insn, &mut op, target.thunks),
            how => how,
        };
        if how != Lowered::NotMine {
            return (op, how);
        }
    }
    if UNIMPLEMENTED_LINES.allow() {
        let bytes = bytes.get(..insn.len()).unwrap_or_default();
        tracing::warn!("{UNIMPLEMENTED} at {:#x}: {insn} ({bytes:02x?})", insn.ip());
    }
    (op, Lowered::System)
}

fn stays_in_page(instructions: &[Instruction], ip: u64, left: usize) -> bool {
    let Some(last) = instructions.last() else { return false };
    let near = matches!(last.op0_kind(), OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64);
    let offset = last.near_branch_target().wrapping_sub(ip) as i64;
    let start = (PAGE - left) as i64;
    near && (-start..left as i64).contains(&offset)
}

/// Where the flags of an operation are overwritten before anything can see them, a handler that makes none is enough.
/// Whatever may fault or leave the block sees all flags.
fn quiet_flags(ops: &mut [Op], instructions: &[Instruction]) {
    let mut live = u32::MAX;
    for (op, insn) in ops.iter_mut().zip(instructions).rev() {
        if exec::always_sets_flags(insn) {
            let written = insn.rflags_modified();
            if written & live == 0 {
                exec::quiet(insn, op);
            }
            live &= !written;
        }
        live |= insn.rflags_read();
        if insn.flow_control() != FlowControl::Next || !exec::never_faults(insn) {
            live = u32::MAX;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);
    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    /// What is logged when `bytes` are decoded for a CPU with `features`.
    fn logged(bytes: &[u8], features: Features) -> String {
        let written = Written::default();
        let to = written.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || to.clone()).finish();
        let thunks = Thunks::new().unwrap();
        let target = Target { ip: 0, size: CodeSize::Bits64, features, thunks: &thunks };
        tracing::subscriber::with_default(subscriber, || drop(block(bytes, &target)));
        String::from_utf8(written.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn an_instruction_that_is_offered_and_not_there_is_logged() {
        // CLWB [rax], which this engine has not, and shows to nobody.
        let clwb = [0x66, 0x0f, 0xae, 0x30];
        assert!(logged(&clwb, Features::all()).contains(UNIMPLEMENTED));
        assert_eq!(logged(&clwb, Features::default()), "", "not offered");
        assert_eq!(logged(&[0x0f, 0x0b], Features::all()), "", "UD2 is meant to fail");
    }
}
