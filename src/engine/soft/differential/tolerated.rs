//! Applies a tolerance: the software CPU's registers, with what the host may have otherwise taken over from it.

use iced_x86::{Instruction, Mnemonic};

use super::case::State;
use super::compare::FLAGS;
use super::tolerance::Tolerance;

const RSI: usize = 6;
const RDI: usize = 7;

/// `soft` with everything taken over from `host` in which `tolerance` lets them differ.
pub fn tolerated(tolerance: Tolerance, instruction: &Instruction, start: &State, host: &State, soft: &State) -> State {
    let mut state = soft.clone();
    match tolerance {
        Tolerance::Flags(flags) => take_flags(&mut state, host, flags),
        Tolerance::Entered => {
            // Entering MMX mode has turned the x87 stack around.
            for range in [3..5, 32..160] {
                state.vector[range.clone()].copy_from_slice(&host.vector[range]);
            }
            take_flags(&mut state, host, 0x38);
        }
        Tolerance::Restored if (host.rflags ^ start.rflags) & FLAGS == 0 => state.rflags = host.rflags,
        Tolerance::Narrowed => {
            for index in [RSI, RDI] {
                let narrow = state.gpr[index] & u64::from(u32::MAX);
                if host.gpr[index] == narrow {
                    state.gpr[index] = narrow;
                }
            }
        }
        Tolerance::Mask => take_mask(&mut state, host, instruction),
        _ => {}
    }
    state
}

/// Takes exception flags of MXCSR over.
fn take_flags(state: &mut State, host: &State, flags: u8) {
    state.vector[24] = state.vector[24] & !flags | host.vector[24] & flags;
}

/// Takes over the elements of a gather's mask that are only wider, and what is zero above the last element, there and in the
/// destination.
fn take_mask(state: &mut State, host: &State, instruction: &Instruction) {
    use Mnemonic::*;
    let (element, index) = match instruction.mnemonic() {
        Vgatherdps | Vpgatherdd => (4, 4),
        Vgatherqps | Vpgatherqd => (4, 8),
        Vgatherdpd | Vpgatherdq => (8, 4),
        _ => (8, 8),
    };
    let (target, mask) = (instruction.op0_register(), instruction.op2_register());
    let count = (target.size() / element).min(instruction.memory_index().size() / index);
    for (register, is_mask) in [(target, false), (mask, true)] {
        for number in 0..32 / element {
            let from = place(register.number(), number * element);
            let range = from..from + element;
            let (soft, host) = (&mut state.vector[range.clone()], &host.vector[range]);
            let sign = if soft[element - 1] & 0x80 != 0 { 0xff } else { 0 };
            let wider = is_mask && host.iter().all(|byte| *byte == sign);
            let gone = number >= count && host.iter().all(|byte| *byte == 0);
            if wider || gone {
                soft.copy_from_slice(host);
            }
        }
    }
}

/// Where byte `offset` of YMM register `number` is in the XSAVE area.
fn place(number: usize, offset: usize) -> usize {
    if offset < 16 { 160 + 16 * number + offset } else { 576 + 16 * number + offset - 16 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::soft::differential::encoding::decode;

    #[test]
    fn only_what_the_tolerance_says() {
        let start = State::new();
        let nop = decode(64, &[0x90], start.rip);
        let mut host = start.clone();
        host.gpr[RDI] = 5;
        host.vector[24] ^= 0x21;
        let mut soft = start.clone();
        soft.gpr[RDI] = 7 << 32 | 5;
        soft.rflags ^= 1;
        let taken = |tolerance| tolerated(tolerance, &nop, &start, &host, &soft);
        assert_eq!(taken(Tolerance::None), soft);
        assert_eq!(taken(Tolerance::Narrowed).gpr, host.gpr);
        assert_eq!(taken(Tolerance::Narrowed).rflags, soft.rflags);
        assert_eq!(taken(Tolerance::Restored).rflags, host.rflags);
        assert_eq!(taken(Tolerance::Flags(1)).vector[24], start.vector[24] ^ 1);
        // Other flags than before, other indices than narrow ones.
        host.rflags ^= 0x10;
        host.gpr[RDI] = 6;
        let taken = |tolerance| tolerated(tolerance, &nop, &start, &host, &soft);
        assert_eq!(taken(Tolerance::Restored), soft);
        assert_eq!(taken(Tolerance::Narrowed), soft);
    }

    #[test]
    fn masks_of_gathers_may_be_wider() {
        // vpgatherdd xmm2, [r14 + xmm12], xmm0
        let instruction = decode(64, &[0xc4, 0x82, 0x79, 0x90, 0x14, 0x26], 0);
        let start = State::new();
        let (mut host, mut soft) = (start.clone(), start.clone());
        (soft.vector[163], soft.vector[164], soft.vector[576], soft.vector[576 + 32]) = (0x80, 1, 1, 1);
        host.vector[160..164].fill(0xff);
        assert_eq!(tolerated(Tolerance::Mask, &instruction, &start, &host, &soft), host);
        // A sign that is gone, and another destination.
        host.vector[160..164].fill(0);
        host.vector[192] = 1;
        let taken = tolerated(Tolerance::Mask, &instruction, &start, &host, &soft);
        assert_eq!((taken.vector[163], taken.vector[192]), (0x80, 0));
    }
}
