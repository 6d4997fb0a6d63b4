//! What is known about a vCPU that cannot go on, as text for the user.

use kvm_ioctls::VcpuFd;

use super::convert;
use crate::engine::crash;
use crate::mem::Ram;

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
    let (Ok(regs), Ok(sregs)) = (fd.get_regs(), fd.get_sregs()) else { return crash::heading(index, what) };
    let (regs, system) = (convert::regs_from_kvm(&regs), convert::system_from_kvm(&sregs));
    crash::report(index, what, &regs, &system, |linear| {
        let mut byte = 0;
        let at = fd.translate_gva(linear).ok().filter(|translation| translation.valid != 0)?;
        ram.read(at.physical_address, std::slice::from_mut(&mut byte)).ok()?;
        Some(byte)
    })
}
