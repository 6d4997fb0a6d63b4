//! A machine: RAM, CPUs and devices put together from a specification, run, and taken apart.

mod builder;
pub mod choose;
pub mod control;
pub mod cpus;
mod first_output;
mod in_step;
pub(crate) mod leash;
mod placement;
pub mod quota;
pub mod verdict;
pub mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use sha2::{Digest, Sha256};

pub use builder::{MachineBuilder, kernel_command_line};
pub use control::{Control, Ending};

use crate::arch::x86_64::level::CpuLevel;
use crate::board::ioapic::IoApic;
use crate::bus::Bus;
use crate::devices::AttachError;
use crate::devices::balloon::BalloonHandle;
use crate::engine::{self, CpuIo, ExitStats, IoAddr};
use crate::firmware;
use crate::host::clock;
use crate::host::event_loop::{self, EventLoop};
use crate::loader;
use crate::machine::cpus::Cpus;
use crate::mem;
use crate::spec::{MachineSpec, Size, SpecError};

/// A machine cannot be made or started.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error(transparent)]
    Memory(#[from] mem::Error),
    #[error("--memory {0}: this host has {1} of memory and swap in all")]
    MoreThanTheHost(Size, Size),
    #[error("--cpu {0}: engine and host have {1} at most")]
    NoSuchCpu(CpuLevel, CpuLevel),
    #[error(transparent)]
    Device(#[from] AttachError),
    #[error(transparent)]
    Kernel(#[from] crate::kernel::Error),
    #[error(transparent)]
    Loader(#[from] loader::Error),
    #[error("The kernel command line is not usable")]
    Cmdline(#[from] loader::cmdline::Error),
    #[error("Cannot describe the machine to the guest")]
    Firmware(#[from] firmware::Error),
    #[error(transparent)]
    Pci(#[from] crate::pci::Error),
    #[error(transparent)]
    Virtio(#[from] crate::virtio::transport::Error),
    #[error(transparent)]
    EventLoop(#[from] event_loop::Error),
    #[error("Two devices claim the same addresses")]
    Bus(#[from] crate::bus::Overlap),
    #[error("Cannot write the trace {}", .0.display())]
    Trace(std::path::PathBuf, #[source] std::io::Error),
    #[error("--trace: the engine {0} keeps none; use --engine soft")]
    NoTrace(&'static str),
    #[error("The CPU quota cannot be kept")]
    Quota(#[from] quota::Error),
    #[error("Cannot {0}")]
    Host(&'static str, #[source] std::io::Error),
}

/// When a machine reached what, in nanoseconds on the monotonic clock of the host.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Timing {
    /// Building began.
    pub begin: u64,
    /// A vCPU was about to run for the first time.
    pub first_run: Option<u64>,
    /// The first byte came out of a console.
    pub first_output: Option<u64>,
    /// Exits to user space until then, all vCPUs together.
    pub exits_before_first_output: Option<u64>,
    /// The machine ended.
    pub end: u64,
}

/// A machine. Dropping it stops and takes apart everything: first the CPUs, then the consoles' last output, then the
/// event loops with the devices on them, then devices, engine and RAM.
pub struct Machine {
    cpus: Cpus,
    quota: Option<quota::Quota>,
    /// Kept for the threads they run.
    _loops: Vec<EventLoop>,
    parts: builder::Parts,
    control: Arc<Control>,
    begin: u64,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Machine").field("cpus", &self.cpus).finish_non_exhaustive()
    }
}

impl Machine {
    /// Builds the machine that `spec` describes: opens its files, loads its kernel. Its CPUs do not run yet.
    pub fn new(spec: &MachineSpec) -> Result<Self, Error> {
        Self::builder(spec).build()
    }

    /// A machine as `spec` says, to which more can be added before it is built.
    pub fn builder(spec: &MachineSpec) -> MachineBuilder<'_> {
        MachineBuilder::new(spec)
    }

    /// Lets the CPUs run.
    pub fn start(&self) {
        self.cpus.resume();
    }

    /// Stops the CPUs between two instructions, until [`Machine::start`].
    pub fn pause(&self) {
        self.cpus.pause();
    }

    /// Asks the guest to power off. A guest may ignore it.
    pub fn press_power_button(&self) {
        self.parts.power.press_power_button();
    }

    /// How the machine is told to end.
    pub fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// RAM.
    pub(crate) fn ram(&self) -> &mem::Ram {
        &self.parts.ram
    }

    /// The CPUs.
    pub fn cpus(&self) -> &Cpus {
        &self.cpus
    }

    /// Steers the memory balloon, if the machine has one.
    pub fn balloon(&self) -> Option<&BalloonHandle> {
        self.parts.balloon.as_ref()
    }

    /// The CPU quota and who keeps it, if there is one.
    pub fn cpu_quota(&self) -> Option<quota::Report> {
        self.quota.as_ref().map(quota::Quota::report)
    }

    /// Name of the engine that runs the CPUs.
    pub fn engine(&self) -> &'static str {
        self.parts.engine
    }

    /// What the user should know about the engine, on one line, if anything.
    pub fn notice(&self) -> Option<&str> {
        self.parts.notice.as_deref()
    }

    /// The kernel that was loaded.
    pub fn kernel(&self) -> &loader::Report {
        &self.parts.kernel
    }

    /// When what happened.
    pub fn timing(&self) -> Timing {
        let first_output = self.parts.first_output.seen();
        Timing {
            begin: self.begin,
            first_run: self.cpus.first_run(),
            first_output: first_output.map(|seen| seen.at),
            exits_before_first_output: first_output.map(|seen| seen.exits),
            end: clock::monotonic_nanos(),
        }
    }

    /// What devices tell of themselves, by their names (`net0`, `balloon0`).
    pub fn device_statistics(&self) -> BTreeMap<String, serde_json::Value> {
        self.parts.statistics.iter().map(|(name, read)| (name.clone(), read())).collect()
    }

    /// Guest instructions executed so far, if the engine counts them: exact when the CPUs are paused or have ended.
    pub fn instructions(&self) -> Option<u64> {
        self.cpus.instructions()
    }

    /// SHA-256 of all RAM, in hexadecimal. Pauses the CPUs.
    pub fn ram_sha256(&self) -> Result<String, Error> {
        self.pause();
        let mut hash = Sha256::new();
        let mut piece = vec![0; 1 << 20];
        for region in self.parts.ram.regions() {
            let end = region.start.saturating_add(region.len);
            let mut at = region.start;
            while at < end {
                let len = piece.len().min((end - at) as usize);
                let Some(piece) = piece.get_mut(..len) else { break };
                self.parts.ram.read(at, piece)?;
                hash.update(&*piece);
                at += len as u64;
            }
        }
        Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Exits to user space so far.
    pub fn stats(&self) -> ExitStats {
        self.cpus.stats()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.cpus.stop();
        self.parts.consoles.finish();
    }
}

/// What vCPU threads reach: the bus, and the I/O APIC for ends of interrupts.
struct MachineIo {
    bus: Arc<Bus>,
    ioapic: Arc<IoApic>,
    in_step: Option<Arc<in_step::InStep>>,
}

impl CpuIo for MachineIo {
    fn read(&self, at: IoAddr, data: &mut [u8]) {
        self.bus.read(at, data);
        tracing::trace!("read {at:x?} -> {data:02x?}");
    }

    fn write(&self, at: IoAddr, data: &[u8]) {
        tracing::trace!("write {at:x?} <- {data:02x?}");
        self.bus.write(at, data);
        self.in_step.iter().for_each(|devices| devices.settle());
    }

    fn end_of_interrupt(&self, vector: u8) {
        self.ioapic.end_of_interrupt(vector);
    }
}
