//! What is known about a vCPU that cannot go on, as text for the user: one form for all engines.

use crate::arch::x86_64::state::{Registers, SystemRegisters};

/// Bytes of code shown from the instruction pointer on: the longest instruction has 15.
const CODE_BYTES: usize = 16;
const EFER_LMA: u64 = 1 << 10;

/// Registers and code bytes of vCPU `index`, after the line `what`; `byte` reads guest memory at a linear address, if it is
/// mapped.
pub(super) fn report(
    index: u32,
    what: &str,
    regs: &Registers,
    system: &SystemRegisters,
    byte: impl FnMut(u64) -> Option<u8>,
) -> String {
    let base = if system.efer & EFER_LMA != 0 && system.cs.l { 0 } else { system.cs.base };
    let linear = base.wrapping_add(regs.rip);
    // Byte by byte: the instruction may cross a page.
    let bytes: Option<Vec<u8>> = (0..CODE_BYTES as u64).map(|offset| linear.wrapping_add(offset)).map(byte).collect();
    let code = match bytes {
        Some(bytes) => bytes.iter().fold(String::from("code"), |text, byte| format!("{text} {byte:02x}")),
        None => format!("code at {linear:#x} is not mapped"),
    };
    format!("{}\n{}\n  {code}", heading(index, what), registers(regs, system))
}

/// The first line, and all there is if not even registers can be read.
pub(super) fn heading(index: u32, what: &str) -> String {
    format!("vCPU {index}: {what}")
}

fn registers(r: &Registers, s: &SystemRegisters) -> String {
    let rows = [
        [("rip", r.rip), ("rflags", r.rflags), ("rsp", r.rsp), ("rbp", r.rbp)],
        [("rax", r.rax), ("rbx", r.rbx), ("rcx", r.rcx), ("rdx", r.rdx)],
        [("rsi", r.rsi), ("rdi", r.rdi), ("r8", r.r8), ("r9", r.r9)],
        [("r10", r.r10), ("r11", r.r11), ("r12", r.r12), ("r13", r.r13)],
        [("r14", r.r14), ("r15", r.r15), ("cr0", s.cr0), ("cr2", s.cr2)],
        [("cr3", s.cr3), ("cr4", s.cr4), ("efer", s.efer), ("cs", s.cs.selector.into())],
    ];
    rows.map(|row| row.map(|(name, value)| format!("  {name:>6} {value:016x}")).concat()).join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_is_shown_where_it_is_mapped() {
        let regs = Registers { rip: 0xfff0, rax: 0xab, ..Registers::default() };
        let mut system = SystemRegisters::default();
        system.cs.base = 0xf_0000;
        let text = report(1, "triple fault", &regs, &system, |at| Some(at as u8));
        assert!(text.starts_with("vCPU 1: triple fault\n     rip 000000000000fff0"), "{text}");
        assert!(text.contains("     rax 00000000000000ab") && text.lines().count() == 8, "{text}");
        assert!(text.ends_with("\n  code f0 f1 f2 f3 f4 f5 f6 f7 f8 f9 fa fb fc fd fe ff"), "{text}");
        let text = report(0, "lost", &regs, &system, |at| (at < 0xf_ffff).then_some(0));
        assert!(text.ends_with("\n  code at 0xffff0 is not mapped"), "{text}");
    }
}
