//! Tells two outcomes of a case apart, and tells the reader what differs.

use std::fmt::Write;

use iced_x86::{Formatter, Instruction, InstructionInfoFactory, IntelFormatter, Mnemonic};

use super::case::{Case, DATA, End, Outcome, WRITABLE};
use super::encoding::decode;
use super::generate::address;
use super::scope::undefined_flags;
use super::tolerance::{Tolerance, near, tolerance};
use super::tolerated::tolerated;

const NAMES: [&str; 16] =
    ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];
/// End of what Linux lets a process have.
const NOT_OURS: u64 = 0x7fff_ffff_f000;
/// Flags that instructions change at privilege 3: status, DF, NT, AC, ID.
pub const FLAGS: u64 = 0x24_4cd5;

/// What differs, one line each; nothing if the outcomes agree.
pub fn differences(case: &Case, host: &Outcome, soft: &Outcome) -> Vec<String> {
    let mut lines = Vec::new();
    let instruction = decode(if case.compat { 32 } else { 64 }, &case.bytes, case.start.rip);
    let tolerance = tolerance(&instruction, host, soft);
    if matches!(tolerance, Tolerance::All | Tolerance::Order) {
        return lines;
    }
    let near = tolerance == Tolerance::Where && near(host.end, soft.end);
    if !same_end(host.end, soft.end) && !near {
        lines.push(format!("ends: host {}, soft {}", end(host.end), end(soft.end)));
        return lines;
    }
    let (a, start) = (&host.state, &case.start);
    let b = &tolerated(tolerance, &instruction, start, a, &soft.state);
    let mut number = |name: &str, before: u64, host: u64, soft: u64| {
        if host != soft {
            lines.push(format!("{name}: was {before:#x}, host {host:#x}, soft {soft:#x}"));
        }
    };
    for (index, name) in NAMES.iter().enumerate() {
        number(name, start.gpr[index], a.gpr[index], b.gpr[index]);
    }
    number("rip", start.rip, a.rip, b.rip);
    number("fs base", start.fs, a.fs, b.fs);
    number("gs base", start.gs, a.gs, b.gs);
    let mask = FLAGS & !undefined_flags(&instruction);
    number("flags", start.rflags & mask, a.rflags & mask, b.rflags & mask);
    vectors(case, &a.vector, &b.vector, &mut lines);
    memory(case, &instruction, host, soft, &mut lines);
    lines
}

fn end(end: End) -> String {
    match end {
        End::Done => "executes it".into(),
        End::Fault { vector: 14, error, address } => format!("page fault {error:#x} at {address:#x}"),
        End::Fault { vector, error, .. } => format!("raises vector {vector} ({error:#x})"),
        End::Lost(why) => why.into(),
    }
}

fn same_end(host: End, soft: End) -> bool {
    let (End::Fault { vector: 14, error, address }, End::Fault { vector: 14, error: other, address: at }) =
        (host, soft)
    else {
        return host == soft;
    };
    // Linux does not tell user space whether a page is there that it may not have.
    let hidden = u32::from(address >= NOT_OURS);
    address == at && error | hidden == other | hidden
}

/// Compares the parts of the XSAVE area that are registers.
fn vectors(case: &Case, host: &[u8], soft: &[u8], lines: &mut Vec<String>) {
    let start = &case.start.vector;
    let mut part = |name: &str, from: usize, len: usize| {
        let range = from..from + len;
        if host[range.clone()] != soft[range.clone()] {
            let show = |bytes: &[u8]| hex(&bytes[range.clone()]);
            lines.push(format!("{name}: was {}, host {}, soft {}", show(start), show(host), show(soft)));
        }
    };
    // The last instruction and operand (FOP, FIP, FDP) are the host's, or nobody's: SDM volume 1, 8.1.8; APM volume 2, 11.4.4.
    part("fcw", 0, 2);
    part("fsw", 2, 2);
    part("tags", 4, 1);
    part("mxcsr", 24, 4);
    for number in 0..8 {
        part(&format!("r{number} of the x87 stack (st or mm)"), 32 + 16 * number, 10);
    }
    for number in 0..16 {
        part(&format!("xmm{number}"), 160 + 16 * number, 16);
        part(&format!("upper ymm{number}"), 576 + 16 * number, 16);
    }
}

/// Most significant byte first.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().rev().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes of an operand that say where the last x87 instruction was, or that nobody defines.
fn loose(mnemonic: Mnemonic, size: usize) -> &'static [(usize, usize)] {
    match mnemonic {
        // Environments: FIP, FCS, FOP, FDP, FDS (SDM volume 1, figures 8-9 to 8-12), and what is reserved beside them.
        Mnemonic::Fnstenv | Mnemonic::Fstenv | Mnemonic::Fnsave | Mnemonic::Fsave => {
            if matches!(size, 14 | 94) {
                &[(6, 14)]
            } else {
                &[(12, 28)]
            }
        }
        // MXCSR_MASK tells what a CPU has (SDM volume 1, 11.6.6): AMD's have bit 17.
        Mnemonic::Fxsave | Mnemonic::Fxsave64 => &[(6, 24), (28, 32)],
        // XSTATE_BV says what the CPU tracks (SDM volume 1, 13.6).
        Mnemonic::Xsave | Mnemonic::Xsave64 => &[(6, 24), (28, 32), (512, 513)],
        _ => &[],
    }
}

fn memory(case: &Case, instruction: &Instruction, host: &Outcome, soft: &Outcome, lines: &mut Vec<String>) {
    if host.memory == soft.memory {
        return;
    }
    let size = instruction.memory_size().size();
    let loose = loose(instruction.mnemonic(), size);
    let mut operand = None;
    if !loose.is_empty() {
        let mut info = InstructionInfoFactory::new();
        let used = info.info(instruction).used_memory().first().copied();
        operand = used.and_then(|memory| address(&memory, &case.start, 0));
    }
    let counts = |offset: &usize| {
        let Some(at) = operand else { return true };
        let within = (DATA + *offset as u64).wrapping_sub(at) as usize;
        !loose.iter().any(|(from, to)| (*from..*to).contains(&within))
    };
    let differ: Vec<_> = (0..WRITABLE).filter(|i| host.memory[*i] != soft.memory[*i]).filter(counts).collect();
    if let (Some(first), Some(last)) = (differ.first(), differ.last()) {
        let last = (*last).min(first + 31);
        let at = DATA + *first as u64;
        let show = |bytes: &[u8]| hex(&bytes[*first..=last]);
        lines.push(format!(
            "memory at {at:#x}, {} bytes: host {}, soft {}",
            differ.len(),
            show(&host.memory[..]),
            show(&soft.memory[..])
        ));
    }
}

/// A case as text: the instruction and the registers that it uses.
pub fn describe(case: &Case) -> String {
    let bits = if case.compat { 32 } else { 64 };
    let instruction = decode(bits, &case.bytes, case.start.rip);
    let mut text = String::new();
    IntelFormatter::new().format(&instruction, &mut text);
    let bytes = case.code().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, " {byte:02x}");
        text
    });
    let mut out = format!("{text}   [{bytes} ] at {:#x}, flags {:#x}", case.start.rip, case.start.rflags);
    let mut info = InstructionInfoFactory::new();
    let info = info.info(&instruction);
    for used in info.used_registers() {
        let register = used.register();
        let (full, number) = (register.full_register(), register.number());
        if full.is_gpr64() {
            let _ = write!(out, ", {} {:#x}", NAMES[full.number()], case.start.gpr[full.number()]);
        } else if register.is_vector_register() {
            let (low, high) = (160 + number * 16, 576 + number * 16);
            let vector = &case.start.vector;
            let _ = write!(out, ", ymm{number} {}_{}", hex(&vector[high..high + 16]), hex(&vector[low..low + 16]));
        }
    }
    if info.used_memory().iter().any(|memory| address(memory, &case.start, 0).is_some()) {
        let at: Vec<_> = info.used_memory().iter().filter_map(|memory| address(memory, &case.start, 0)).collect();
        let patched = &case.patched()[..case.patched().len().min(32)];
        let _ = write!(out, ", operands at {at:x?}, {:#x}: {}", DATA + u64::from(case.patch_at), hex(patched));
    }
    let vector = &case.start.vector;
    let _ = write!(out, ", mxcsr {}, fcw {}, fsw {}", hex(&vector[24..28]), hex(&vector[..2]), hex(&vector[2..4]));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(case: &Case) -> Outcome {
        Outcome { end: End::Done, state: case.start.clone(), memory: Box::new([0; WRITABLE]) }
    }

    #[test]
    fn differences_are_found_and_named() {
        let mut case = Case::new(&[0x48, 0x01, 0x03]);
        case.start.gpr[3] = DATA;
        let host = outcome(&case);
        assert_eq!(differences(&case, &host, &host), Vec::<String>::new());
        let mut soft = host.clone();
        soft.state.gpr[0] = 5;
        soft.state.rflags ^= 1;
        soft.state.vector[160] = 1;
        soft.memory[8] = 1;
        let lines = differences(&case, &host, &soft);
        assert_eq!(lines[0], "rax: was 0x0, host 0x0, soft 0x5");
        assert_eq!(lines[1], "flags: was 0x0, host 0x0, soft 0x1");
        assert!(lines[2].starts_with("xmm0: was 00000000000000000000000000000000"), "{lines:?}");
        assert_eq!(lines[3], "memory at 0x70000008, 1 bytes: host 00, soft 01");
        assert_eq!(lines.len(), 4);
        soft.end = End::Fault { vector: 14, error: 6, address: 8 };
        assert_eq!(differences(&case, &host, &soft), ["ends: host executes it, soft page fault 0x6 at 0x8"]);
        assert!(describe(&case).starts_with("add [rbx],rax   [ 48 01 03 ] at 0x68000000"), "{}", describe(&case));
    }

    #[test]
    fn what_nobody_defines_does_not_count() {
        let mut case = Case::new(&[0x0f, 0xae, 0x03]); // fxsave [rbx]
        case.start.gpr[3] = DATA + 64;
        let host = outcome(&case);
        let mut soft = host.clone();
        soft.memory[64 + 8] = 1;
        assert_eq!(differences(&case, &host, &soft).len(), 0);
        soft.memory[64 + 24] = 1;
        assert_eq!(differences(&case, &host, &soft).len(), 1);
        let fault = |error, address| End::Fault { vector: 14, error, address };
        assert!(same_end(fault(5, 1 << 63), fault(4, 1 << 63)));
        assert!(!same_end(fault(5, 8), fault(4, 8)));
    }
}
