//! The engine's VM.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use super::NAME;
use super::cpu::Cpu;
use super::cpuid;
use super::msi::SoftMsi;
use super::shared::{Doorbell, Shared};
use super::vcpu::SoftVcpu;
use super::vector::Thunks;
use crate::arch::x86_64::cpuid::CpuidTable;
use crate::engine::{Error, IoAddr, RegisterPages, Result, Vcpu, Vm, VmConfig};
use crate::host::cpu::HostCpu;
use crate::irq::MsiSink;
use crate::mem::Ram;

/// A VM whose CPUs are software.
#[derive(Debug)]
pub(super) struct SoftVm {
    shared: Arc<Shared>,
    msi: SoftMsi,
    thunks: Arc<Thunks>,
}

impl SoftVm {
    pub(super) fn new(ram: &Ram, config: &VmConfig, thunks: Arc<Thunks>) -> Self {
        let shared = Arc::new(Shared::new(ram, config.cpus, config.deterministic));
        Self { msi: SoftMsi::new(shared.clone()), shared, thunks }
    }
}

impl Vm for SoftVm {
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>> {
        if index >= self.shared.cpus() {
            let reason = format!("vCPU {index} of a VM for {}", self.shared.cpus());
            return Err(Error::Unsupported { engine: NAME, reason });
        }
        Ok(Box::new(SoftVcpu::new(Cpu::new(index, self.shared.clone(), self.thunks.clone()))))
    }

    fn msi(&self) -> &dyn MsiSink {
        &self.msi
    }

    fn doorbell(&self, at: IoAddr, value: Option<u32>, fd: &EventFd) -> Result<bool> {
        if self.shared.deterministic.is_some() {
            return Ok(false);
        }
        let fd = fd.try_clone().map_err(|source| Error::Host { engine: NAME, action: "copy an eventfd", source })?;
        self.shared.add_doorbell(Doorbell { at, value, fd });
        Ok(true)
    }

    fn remove_doorbell(&self, at: IoAddr, value: Option<u32>, _fd: &EventFd) -> Result<()> {
        self.shared.remove_doorbell(at, value);
        Ok(())
    }

    /// Writes reach devices at once: that costs no more here.
    fn coalesce(&self, _at: IoAddr, _len: u32) -> Result<bool> {
        Ok(false)
    }

    /// Reads reach devices at once: a call is cheaper than keeping register pages current.
    fn register_pages(&self) -> Option<&dyn RegisterPages> {
        None
    }

    fn supported_cpuid(&self) -> Result<CpuidTable> {
        let host = HostCpu::detect();
        Ok(cpuid::supported(host.level, &host))
    }
}
