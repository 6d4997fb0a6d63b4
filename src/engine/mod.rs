//! The boundary between a machine and the CPU that runs it.
//!
//! A machine is memory, devices and vCPU threads; an engine makes guest code run on them. Two engines are
//! planned behind these traits: [`kvm`], which uses the host's virtualisation extensions, and a software CPU.
//! Nothing outside an engine's own directory may depend on which one runs.
//!
//! I/O is a callback ([`CpuIo`]) made on the vCPU thread from inside [`Vcpu::run`], because a software CPU meets
//! device registers in the middle of an instruction. Only decisions return ([`Exit`]).

#[cfg(test)]
pub mod contract;
mod crash;
pub mod debug;
#[cfg(test)]
pub mod guests;
pub mod kvm;
pub mod soft;
pub mod trace;

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;
use vmm_sys_util::eventfd::EventFd;

use crate::arch::x86_64::cpuid::CpuidTable;
use crate::arch::x86_64::state::CpuState;
use crate::irq::MsiSink;
use crate::mem::Ram;
pub use trace::Trace;

/// What the log says of an instruction that an engine offers to guests and cannot execute: a mistake of the engine's, for
/// which tests look.
pub const UNIMPLEMENTED: &str = "unimplemented instruction";

/// The engine failed; never caused by what a guest does.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The engine cannot be used on this host.
    #[error("{0}")]
    Unavailable(String),
    /// A request to the engine failed.
    #[error("{engine}: cannot {action}: {source}")]
    Host {
        /// Which engine.
        engine: &'static str,
        /// What was being done.
        action: &'static str,
        /// The host's reason.
        source: std::io::Error,
    },
    /// The engine cannot do what was asked.
    #[error("{engine}: {reason}")]
    Unsupported {
        /// Which engine.
        engine: &'static str,
        /// What is not possible, and why.
        reason: String,
    },
}

/// Result of engine calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An address that guest code accesses and that is not RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IoAddr {
    /// I/O port.
    Port(u16),
    /// Guest-physical address.
    Mmio(u64),
}

/// A way to run guest code.
pub trait Engine: Send + Sync + Debug {
    /// Name as on the command line.
    fn name(&self) -> &'static str;
    /// A VM over `memory`; it keeps a clone, so that the mappings outlive it.
    fn create_vm(&self, memory: &Ram, config: &VmConfig) -> Result<Arc<dyn Vm>>;
}

/// What an engine must know before the first vCPU exists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmConfig {
    /// Number of vCPUs that will be created, 1 to 255.
    pub cpus: u32,
    /// Number of I/O APIC pins (GSIs 0 to n-1).
    pub ioapic_pins: u32,
    /// The same inputs shall give the same run: one vCPU only. Such a VM rings no doorbells itself, so that the machine
    /// can wait for its devices at each access. Engines that cannot do it refuse.
    pub deterministic: Option<Deterministic>,
}

/// What a run that can be repeated has instead of chance and the time of day. One instruction takes one nanosecond of
/// the guest's time, and a halted vCPU goes on at its next deadline at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deterministic {
    /// What random numbers are made from.
    pub seed: u64,
    /// When the guest's time begins, in seconds since 1970 (UTC).
    pub date: u64,
}

/// A virtual machine: memory and interrupt routing.
pub trait Vm: Send + Sync + Debug {
    /// A vCPU with APIC id `index`, in reset state; vCPU 0 runs at once, others wait for INIT/SIPI.
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>>;
    /// Where interrupt messages go.
    fn msi(&self) -> &dyn MsiSink;
    /// Signals `fd` whenever the guest writes to `at` (only `value`, if given), without returning to the device.
    /// False if the engine cannot: then the bus must do it.
    fn doorbell(&self, at: IoAddr, value: Option<u32>, fd: &EventFd) -> Result<bool>;
    /// Undoes [`Vm::doorbell`] with the same arguments.
    fn remove_doorbell(&self, at: IoAddr, value: Option<u32>, fd: &EventFd) -> Result<()>;
    /// Lets writes of `len` bytes to `at` arrive late, without an exit of their own: in order, and before whatever else
    /// makes the same vCPU leave guest code. For registers that only select others. False if the engine cannot.
    fn coalesce(&self, at: IoAddr, len: u32) -> Result<bool>;
    /// Engines that can serve reads of device registers from memory say how.
    fn register_pages(&self) -> Option<&dyn RegisterPages>;
    /// CPUID leaves that the engine can offer to a guest.
    fn supported_cpuid(&self) -> Result<CpuidTable>;
}

/// Device registers whose reads are plain memory: the guest reads the host's pages without leaving guest mode,
/// writes still reach the bus.
pub trait RegisterPages: Send + Sync {
    /// Shows `len` bytes of host memory from `host` at guest-physical `at`, read-only; both page aligned.
    /// The mapping ends when the returned guard is dropped; `owner` is kept alive until then.
    fn show(&self, at: u64, host: usize, len: u64, owner: Arc<dyn Send + Sync>) -> Result<Box<dyn Send + Sync>>;
}

/// One virtual CPU, owned by the thread that runs it.
pub trait Vcpu: Send {
    /// Replaces all architectural state.
    fn set_state(&mut self, state: &CpuState) -> Result<()>;
    /// All architectural state.
    fn state(&mut self) -> Result<CpuState>;
    /// Sets what CPUID answers; before the first run.
    fn set_cpuid(&mut self, cpuid: &CpuidTable) -> Result<()>;
    /// Frequency of the guest's time-stamp counter in kHz, if it is constant and known.
    fn tsc_khz(&self) -> Option<u32>;
    /// A handle by which any thread makes [`Vcpu::run`] return [`Exit::Kicked`].
    fn kicker(&self) -> Arc<dyn Kicker>;
    /// Runs guest code until a decision is needed. Call on one and the same thread.
    fn run(&mut self, io: &dyn CpuIo) -> Result<Exit>;
    /// Counts of what made guest code stop, by kind.
    fn counters(&self) -> Arc<ExitCounters>;
    /// Keeps a trace of what is executed from now on; written out when the vCPU is dropped. False: the engine cannot.
    fn trace(&mut self, _trace: Trace) -> bool {
        false
    }
    /// Stops it for a debugger, if the engine can.
    fn debugging(&mut self) -> Option<&mut dyn debug::Debugging> {
        None
    }
}

/// Interrupts a running vCPU.
pub trait Kicker: Send + Sync + Debug {
    /// Makes the current or the next `run` return [`Exit::Kicked`]. Never blocks.
    fn kick(&self);
}

/// What a running vCPU needs from the machine: the registers of devices.
pub trait CpuIo: Sync {
    /// Reads 1 to 8 bytes.
    fn read(&self, at: IoAddr, data: &mut [u8]);
    /// Writes 1 to 8 bytes.
    fn write(&self, at: IoAddr, data: &[u8]);
    /// The guest ended a level-triggered interrupt with this vector.
    fn end_of_interrupt(&self, _vector: u8) {}
}

/// Why a vCPU stopped running.
#[derive(Debug, PartialEq)]
pub enum Exit {
    /// Somebody kicked it.
    Kicked,
    /// It waits for an interrupt (only engines that do not wait themselves).
    Halted,
    /// Triple fault; what is known about it (some CPUs have forgotten their registers by then).
    Shutdown(String),
    /// The guest asked the CPU to reset.
    Reset,
    /// What its debugger wanted has come.
    Debug(debug::Stop),
    /// The engine cannot go on with this guest; registers, code bytes and why.
    Crashed(String),
}

/// Exits to user space of one vCPU, by kind; counted on its thread, read by anybody.
#[derive(Debug, Default)]
pub struct ExitCounters {
    /// Port reads.
    pub port_in: AtomicU64,
    /// Port writes.
    pub port_out: AtomicU64,
    /// Memory-mapped register reads.
    pub mmio_read: AtomicU64,
    /// Memory-mapped register writes.
    pub mmio_write: AtomicU64,
    /// Halts.
    pub halt: AtomicU64,
    /// Interrupted by a kick or signal.
    pub kicked: AtomicU64,
    /// All others.
    pub other: AtomicU64,
    /// Guest instructions executed, if the engine counts them; exact whenever `run` has returned. No exits.
    pub instructions: AtomicU64,
}

/// [`ExitCounters`] at one moment, of one or several vCPUs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "as in ExitCounters")]
pub struct ExitStats {
    pub port_in: u64,
    pub port_out: u64,
    pub mmio_read: u64,
    pub mmio_write: u64,
    pub halt: u64,
    pub kicked: u64,
    pub other: u64,
}

impl ExitCounters {
    /// Adds `n` to `counter`. Only one thread writes, so no read-modify-write cycle is needed.
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.store(counter.load(Relaxed) + n, Relaxed);
    }

    /// The counts now.
    pub fn stats(&self) -> ExitStats {
        ExitStats {
            port_in: self.port_in.load(Relaxed),
            port_out: self.port_out.load(Relaxed),
            mmio_read: self.mmio_read.load(Relaxed),
            mmio_write: self.mmio_write.load(Relaxed),
            halt: self.halt.load(Relaxed),
            kicked: self.kicked.load(Relaxed),
            other: self.other.load(Relaxed),
        }
    }
}

impl ExitStats {
    /// Exits in all.
    pub fn total(&self) -> u64 {
        self.port_in + self.port_out + self.mmio_read + self.mmio_write + self.halt + self.kicked + self.other
    }
}

impl std::ops::AddAssign for ExitStats {
    fn add_assign(&mut self, other: Self) {
        self.port_in += other.port_in;
        self.port_out += other.port_out;
        self.mmio_read += other.mmio_read;
        self.mmio_write += other.mmio_write;
        self.halt += other.halt;
        self.kicked += other.kicked;
        self.other += other.other;
    }
}
