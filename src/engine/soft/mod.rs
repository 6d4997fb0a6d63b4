//! The software CPU: guest code without hardware virtualisation, on any x86-64 host.
//!
//! An interpreter over decoded blocks. `code/` decodes guest code into operations and finds them again, `run.rs` executes
//! them, `exec/` holds integer instructions, `system/` what kernels use (segments, interrupts, control registers),
//! `vector/` x87 to AVX2 by native thunks, `memory/` paging and RAM, `apic/` the local APIC, `careful.rs` and
//! `trace/` runs that can be repeated and looked at. Each vCPU is one `cpu::Cpu`, owned by its thread; what vCPUs share is
//! in `shared.rs`, and other threads reach a vCPU through `attention.rs`.

mod apic;
mod attention;
mod careful;
mod clock;
mod code;
mod cpu;
mod cpuid;
mod debugger;
#[cfg(test)]
mod differential;
mod exec;
mod fault;
mod flags;
mod interrupts;
mod memory;
mod msi;
mod pvclock;
mod registers;
mod run;
mod shared;
mod system;
#[cfg(test)]
mod testing;
mod trace;
mod vcpu;
mod vector;
mod vm;
mod width;

use std::sync::Arc;

use self::vector::Thunks;
use crate::engine::{Engine, Error, Result, Vm, VmConfig};
use crate::mem::Ram;

const NAME: &str = "soft";

/// The engine `soft`.
#[derive(Debug)]
pub struct SoftEngine {
    thunks: Arc<Thunks>,
}

impl SoftEngine {
    /// Makes ready what all VMs share. Fails where the host refuses executable memory.
    pub fn open() -> Result<Self> {
        let thunks = Thunks::new().map_err(|e| Error::Unavailable(e.to_string()))?;
        Ok(Self { thunks: Arc::new(thunks) })
    }
}

impl Engine for SoftEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn create_vm(&self, memory: &Ram, config: &VmConfig) -> Result<Arc<dyn Vm>> {
        if config.deterministic.is_some() && config.cpus != 1 {
            let reason =
                "the order in which several vCPUs run is the host's: a run can be repeated with one only".into();
            return Err(Error::Unsupported { engine: NAME, reason });
        }
        Ok(Arc::new(vm::SoftVm::new(memory, config, self.thunks.clone())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{contract, guests};

    #[test]
    fn contract() {
        contract::run_all(&SoftEngine::open().unwrap());
    }

    #[test]
    fn guests() {
        guests::run_all(&SoftEngine::open().unwrap());
    }
}
