//! The engine's vCPU: a CPU, and the handles by which others reach it. Owned by the thread that runs it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::attention::{self, Attention};
use super::clock::TSC_KHZ;
use super::code::features::Features;
use super::cpu::Cpu;
use super::cpuid::Cpuid;
use super::shared::IoPointer;
use super::trace::Tracer;
use crate::arch::x86_64::cpuid::CpuidTable;
use crate::arch::x86_64::state::CpuState;
use crate::engine::debug::Debugging;
use crate::engine::{CpuIo, Exit, ExitCounters, Kicker, Result, Trace, Vcpu};

/// A software vCPU.
pub(super) struct SoftVcpu(Box<Cpu>);

impl SoftVcpu {
    /// A CPU after RESET; all but the first wait for INIT.
    pub(super) fn new(mut cpu: Cpu) -> Self {
        cpu.reset();
        Self(Box::new(cpu))
    }
}

impl Vcpu for SoftVcpu {
    fn set_state(&mut self, state: &CpuState) -> Result<()> {
        self.0.set_state(state)
    }

    fn state(&mut self) -> Result<CpuState> {
        Ok(self.0.state())
    }

    fn set_cpuid(&mut self, cpuid: &CpuidTable) -> Result<()> {
        self.0.cpuid = Cpuid::new(cpuid);
        self.0.features = Features::of(cpuid);
        Ok(())
    }

    fn tsc_khz(&self) -> Option<u32> {
        Some(TSC_KHZ)
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        Arc::new(SoftKicker(self.0.shared.attention(self.0.index).clone()))
    }

    fn run(&mut self, io: &dyn CpuIo) -> Result<Exit> {
        self.0.io = IoPointer::to(io);
        let exit = self.0.run();
        self.0.io = IoPointer::NONE;
        self.0.counters.instructions.store(self.0.instructions, Ordering::Relaxed);
        Ok(exit)
    }

    fn counters(&self) -> Arc<ExitCounters> {
        self.0.counters.clone()
    }

    fn trace(&mut self, trace: Trace) -> bool {
        self.0.tracer = Some(Box::new(Tracer::new(trace)));
        self.0.careful = true;
        true
    }

    fn debugging(&mut self) -> Option<&mut dyn Debugging> {
        Some(&mut *self.0)
    }
}

#[derive(Debug)]
struct SoftKicker(Arc<Attention>);

impl Kicker for SoftKicker {
    fn kick(&self) {
        self.0.raise(attention::KICK);
    }
}
