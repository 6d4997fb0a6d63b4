//! The KVM engine: guest code runs on the host CPU's virtualisation extensions (Linux `Documentation/virt/kvm/api.rst`).
//!
//! Local APICs, timers and the PV clock are KVM's; the I/O APIC is ours (split irqchip), so that interrupt routing is
//! one code on every engine. Nothing outside this directory may name a KVM type.

mod convert;
mod crash;
mod debugger;
mod msi;
pub mod probe;
mod vcpu;
mod vm;

use std::io;
use std::sync::{Arc, OnceLock};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};

use crate::engine::{Engine, Error, Result, Vm, VmConfig};
use crate::mem::Ram;
use probe::{Trouble, Works};

const NAME: &str = "kvm";
/// The only stable version of the API (api.rst section 4.1).
const API_VERSION: i32 = 12;

/// What this engine cannot do without (api.rst chapter 4 names them).
const REQUIRED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// The engine `kvm`.
pub struct KvmEngine {
    kvm: Kvm,
    /// Read once: on some hosts it takes half a millisecond.
    supported: OnceLock<CpuId>,
}

impl std::fmt::Debug for KvmEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KvmEngine")
    }
}

impl KvmEngine {
    /// Opens `/dev/kvm` and checks that it can do what this engine needs. That proves that VMs can be made, not that
    /// an unmodified kernel runs: [`KvmEngine::probe`] does.
    pub fn open() -> Result<Self> {
        Self::open_or_say().map_err(|trouble| Error::Unavailable(format!("{trouble}: {}", trouble.remedy())))
    }

    /// The same, with what is wrong.
    pub fn open_or_say() -> Result<Self, Trouble> {
        let kvm = Kvm::new().map_err(|e| Trouble::not_open(io::Error::from(e)))?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(Trouble::Version(version));
        }
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(Trouble::Lacks(name));
        }
        Ok(Self { kvm, supported: OnceLock::new() })
    }

    /// Finds out whether unmodified kernels run, by a small guest that uses what they use. Takes some milliseconds.
    pub fn probe(&self) -> Result<Works, Trouble> {
        probe::run(self)
    }

    /// Whether this host's KVM needs no VT-x or SVM (PVM), and so runs no unmodified kernels. Costs nothing.
    pub fn is_paravirtual() -> bool {
        crash::is_paravirtual()
    }

    fn supported(&self) -> Result<&CpuId> {
        if let Some(known) = self.supported.get() {
            return Ok(known);
        }
        let read = self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(host("read the supported CPUID"))?;
        Ok(self.supported.get_or_init(|| read))
    }

    /// Most vCPUs that a VM may have.
    pub fn max_cpus(&self) -> u32 {
        u32::try_from(self.kvm.get_max_vcpus()).unwrap_or(u32::MAX)
    }
}

impl Engine for KvmEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vm(&self, memory: &Ram, config: &VmConfig) -> Result<Arc<dyn Vm>> {
        if config.deterministic.is_some() {
            let reason = "the host's CPU cannot repeat a run instruction by instruction".into();
            return Err(Error::Unsupported { engine: NAME, reason });
        }
        if config.cpus > self.max_cpus() {
            let reason = format!("{} vCPUs asked for, this host allows {}", config.cpus, self.max_cpus());
            return Err(Error::Unsupported { engine: NAME, reason });
        }
        Ok(Arc::new(vm::KvmVm::new(self, memory, config)?))
    }
}

/// Wraps an error of an ioctl.
fn host(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |e| Error::Host { engine: NAME, action, source: io::Error::from(e) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{contract, guests};

    /// The contract on this host's KVM; where there is none the skip is printed, and counted by scripts/test.
    #[test]
    fn contract() {
        match KvmEngine::open() {
            Ok(engine) => contract::run_all(&engine),
            Err(e) => println!("\nSKIPPED engine::kvm contract: {e}"),
        }
    }

    /// Larger guests, where KVM runs instructions on the CPU rather than in its own emulator, which does not know all.
    #[test]
    fn guests() {
        let engine = match KvmEngine::open() {
            Ok(engine) => engine,
            Err(e) => return println!("\nSKIPPED engine::kvm guests: {e}"),
        };
        match probe::run(&engine) {
            Ok(_) => guests::run_all(&engine),
            Err(e) => println!("\nSKIPPED engine::kvm guests: {e}"),
        }
    }
}
