//! What is known about a vCPU that cannot go on, as text for the user.

use kvm_ioctls::VcpuFd;

use super::convert;
use crate::arch::x86_64::state::{Registers, SystemRegisters};
use crate::mem::Ram;

/// Bytes of code shown from the instruction pointer on: the longest instruction has 15.
const CODE_BYTES: usize = 16;

/// Said of a crash on a host whose KVM may not be able to run this guest at all.
pub(super) const NO_VIRTUALISATION: &str = "; the host CPU shows neither VT-x nor SVM, so its KVM may run only kernels \
    made for it (PVM): use a host with hardware virtualisation";

/// Whether this host's KVM can only be the paravirtual kind: its CPU shows neither VT-x (leaf 1 ECX bit 5) nor SVM (leaf
/// 8000_0001h ECX bit 2), or the module is loaded.
pub(super) fn is_paravirtual() -> bool {
    use std::arch::x86_64::__cpuid;
    let virtualisation = __cpuid(1).ecx & 1 << 5 != 0 || __cpuid(0x8000_0001).ecx & 1 << 2 != 0;
    !virtualisation || std::path::Path::new("/sys/module/kvm_pvm").exists()
}

/// Registers and code bytes of the vCPU, after the line `what`.
pub(super) fn report(fd: &VcpuFd, index: u32, ram: &Ram, what: &str) -> String {
    let mut text = format!("vCPU {index}: {what}");
    let (Ok(regs), Ok(sregs)) = (fd.get_regs(), fd.get_sregs()) else { return text };
    let (regs, system) = (convert::regs_from_kvm(&regs), convert::system_from_kvm(&sregs));
    text.push('\n');
    text.push_str(&registers(&regs, &system));
    let linear = if system.efer & (1 << 10) != 0 { regs.rip } else { system.cs.base.wrapping_add(regs.rip) };
    match code(fd, ram, linear) {
        Some(bytes) => {
            text.push_str("\n  code");
            bytes.iter().for_each(|byte| text.push_str(&format!(" {byte:02x}")));
        }
        None => text.push_str(&format!("\n  code at {linear:#x} is not mapped")),
    }
    text
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

fn code(fd: &VcpuFd, ram: &Ram, linear: u64) -> Option<[u8; CODE_BYTES]> {
    let mut bytes = [0; CODE_BYTES];
    // Byte by byte: the instruction may cross a page.
    for (offset, byte) in bytes.iter_mut().enumerate() {
        let at = fd.translate_gva(linear.wrapping_add(offset as u64)).ok().filter(|t| t.valid != 0)?;
        ram.read(at.physical_address, std::slice::from_mut(byte)).ok()?;
    }
    Some(bytes)
}
