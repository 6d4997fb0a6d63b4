//! One vCPU: running it, and moving its state in and out.

// UNSAFETY: reads the exit information that KVM leaves in the shared `kvm_run` page.
#![expect(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_MP_STATE_HALTED, KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE,
    KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_mp_state, kvm_msr_entry, kvm_run, kvm_xcr, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{NAME, convert, crash, host};
use crate::arch::x86_64::cpuid::CpuidTable;
use crate::arch::x86_64::msr;
use crate::arch::x86_64::state::{Activity, CpuState, Registers};
use crate::engine::debug::{Debugging, Wanted};
use crate::engine::{CpuIo, Error, Exit, ExitCounters, IoAddr, Kicker, Result, Vcpu};
use crate::host::signal;
use crate::mem::Ram;

/// KVM's system event types (api.rst section 5, KVM_EXIT_SYSTEM_EVENT).
const SYSTEM_EVENT_SHUTDOWN: u32 = 1;

/// A KVM vCPU.
pub struct KvmVcpu {
    pub(super) fd: VcpuFd,
    index: u32,
    ram: Ram,
    /// What a debugger wants.
    pub(super) wanted: Wanted,
    kicker: Arc<KvmKicker>,
    counters: Arc<ExitCounters>,
    late_writes: Option<Arc<Mutex<()>>>,
}

impl KvmVcpu {
    pub(super) fn new(mut fd: VcpuFd, index: u32, ram: Ram, late_writes: Option<Arc<Mutex<()>>>) -> Result<Self> {
        if late_writes.is_some() {
            fd.map_coalesced_mmio_ring().map_err(host("map the ring of coalesced writes"))?;
        }
        let run: *mut kvm_run = fd.get_kvm_run();
        let kicker = Arc::new(KvmKicker(Mutex::new(Some(Target { run, thread: None }))));
        Ok(Self { fd, index, ram, wanted: Wanted::default(), kicker, counters: Arc::default(), late_writes })
    }

    /// String I/O is several accesses to one port: KVM hands over all elements at once.
    fn port_io(&mut self, io: &dyn CpuIo) {
        self.deliver_late_writes(io);
        let run = self.fd.get_kvm_run();
        let base: *mut kvm_run = run;
        // SAFETY: the caller saw KVM_EXIT_IO, for which KVM fills this member of the union.
        let exit = unsafe { run.__bindgen_anon_1.io };
        let (size, count) = (usize::from(exit.size), exit.count as usize);
        // SAFETY: KVM keeps `size * count` bytes at `data_offset` inside the mapped kvm_run area, and uses them only
        // while KVM_RUN executes; `self` is borrowed mutably, so nobody else makes a slice of them.
        let data =
            unsafe { std::slice::from_raw_parts_mut(base.cast::<u8>().add(exit.data_offset as usize), size * count) };
        for element in data.chunks_exact_mut(size.max(1)) {
            if u32::from(exit.direction) == kvm_bindings::KVM_EXIT_IO_IN {
                io.read(IoAddr::Port(exit.port), element);
                self.count(|c| &c.port_in);
            } else {
                io.write(IoAddr::Port(exit.port), element);
                self.count(|c| &c.port_out);
            }
        }
    }

    fn mmio(&mut self, io: &dyn CpuIo) {
        self.deliver_late_writes(io);
        // SAFETY: the caller saw KVM_EXIT_MMIO, for which KVM fills this member of the union.
        let exit = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.mmio };
        let at = IoAddr::Mmio(exit.phys_addr);
        let write = exit.is_write != 0;
        if let Some(data) = exit.data.get_mut(..exit.len as usize) {
            if write { io.write(at, data) } else { io.read(at, data) }
        }
        self.count(|c| if write { &c.mmio_write } else { &c.mmio_read });
    }

    /// Writes that KVM kept back arrive before the access for which the guest stopped.
    fn deliver_late_writes(&mut self, io: &dyn CpuIo) {
        let Some(ring) = self.late_writes.clone() else { return };
        let _taken = ring.lock().unwrap_or_else(PoisonError::into_inner);
        while let Ok(Some(late)) = self.fd.coalesced_mmio_read() {
            // SAFETY: both members of the union are a plain u32; KVM sets it to 1 for ports.
            let port = unsafe { late.__bindgen_anon_1.pio } == 1;
            let at = if port { IoAddr::Port(late.phys_addr as u16) } else { IoAddr::Mmio(late.phys_addr) };
            if let Some(data) = late.data.get(..late.len as usize) {
                io.write(at, data);
            }
        }
    }

    fn count(&self, counter: impl FnOnce(&ExitCounters) -> &AtomicU64) {
        ExitCounters::add(counter(&self.counters), 1);
    }

    fn crash(&mut self, what: &str) -> Exit {
        Exit::Crashed(crash::report(&self.fd, self.index, &self.ram, what))
    }

    /// For the probe, which runs it bare: without devices, counters and crash reports.
    pub(super) fn fd(&mut self) -> &mut VcpuFd {
        &mut self.fd
    }

    /// The calling thread is the one that a kick interrupts.
    pub(super) fn runs_here(&self) {
        self.kicker.runs_here();
    }

    /// Whether somebody kicked since the last call.
    pub(super) fn was_kicked(&self) -> bool {
        self.kicker.taken()
    }

    /// General registers alone.
    pub(super) fn registers(&self) -> Result<Registers> {
        Ok(convert::regs_from_kvm(&self.fd.get_regs().map_err(host("read registers"))?))
    }

    /// KVM's number for the internal error with which the vCPU has just stopped; 0 if it stopped otherwise.
    pub(super) fn suberror(&mut self) -> u32 {
        let run = self.fd.get_kvm_run();
        if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
            return 0;
        }
        // SAFETY: at KVM_EXIT_INTERNAL_ERROR, KVM fills this member of the union.
        unsafe { run.__bindgen_anon_1.internal.suberror }
    }

    fn internal_error(&mut self) -> Exit {
        let suberror = self.suberror();
        let meaning = match suberror {
            1 => "KVM cannot emulate an instruction",
            2 => "simultaneous exception",
            3 => "error while delivering an event",
            4 => "unexpected exit reason",
            _ => "unknown",
        };
        let hint = if crash::is_paravirtual() { crash::NO_VIRTUALISATION } else { "" };
        self.crash(&format!("KVM internal error {suberror} ({meaning}){hint}"))
    }

    fn set_msrs(&self, msrs: &[(u32, u64)]) -> Result<()> {
        if msrs.is_empty() {
            return Ok(());
        }
        let entries: Vec<_> =
            msrs.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let list = Msrs::from_entries(&entries)
            .map_err(|_| Error::Unsupported { engine: NAME, reason: "too many MSRs".into() })?;
        let done = self.fd.set_msrs(&list).map_err(host("set MSRs"))?;
        match entries.get(done) {
            None => Ok(()),
            Some(refused) => {
                let reason = format!("MSR {:#x} cannot be set to {:#x}", refused.index, refused.data);
                Err(Error::Unsupported { engine: NAME, reason })
            }
        }
    }

    /// Those of [`msr::SAVED`] that this host has; one by one, since KVM stops at the first that it does not know.
    fn msrs(&self) -> Result<Vec<(u32, u64)>> {
        let mut found = Vec::new();
        for &index in msr::SAVED {
            let mut one = Msrs::from_entries(&[kvm_msr_entry { index, ..Default::default() }])
                .map_err(|_| Error::Unsupported { engine: NAME, reason: "too many MSRs".into() })?;
            if self.fd.get_msrs(&mut one).map_err(host("read MSRs"))? == 1 {
                found.extend(one.as_slice().iter().map(|entry| (entry.index, entry.data)));
            }
        }
        Ok(found)
    }

    fn set_xsave(&self, area: &[u8]) -> Result<()> {
        let mut xsave = kvm_xsave::default();
        let room = xsave.region.len() * 4;
        if area.len() > room {
            let reason = format!("XSAVE area of {} bytes, at most {room}", area.len());
            return Err(Error::Unsupported { engine: NAME, reason });
        }
        for (word, bytes) in xsave.region.iter_mut().zip(area.chunks(4)) {
            let mut padded = [0; 4];
            padded.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
            *word = u32::from_le_bytes(padded);
        }
        // SAFETY: KVM reads at most 4096 bytes here, the size of kvm_xsave, since no dynamically enabled state
        // component (AMX) is ever requested for this process.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(host("set the XSAVE area"))
    }
}

impl Vcpu for KvmVcpu {
    fn set_state(&mut self, state: &CpuState) -> Result<()> {
        let mut sregs = self.fd.get_sregs().map_err(host("read system registers"))?;
        convert::system_to_kvm(&state.system, &mut sregs);
        self.fd.set_sregs(&sregs).map_err(host("set system registers"))?;
        self.fd.set_regs(&convert::regs_to_kvm(&state.regs)).map_err(host("set registers"))?;
        if state.xcr0 != 0 {
            let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..Default::default() };
            xcrs.xcrs[0] = kvm_xcr { xcr: 0, value: state.xcr0, ..Default::default() };
            self.fd.set_xcrs(&xcrs).map_err(host("set XCR0"))?;
        }
        if !state.xsave.is_empty() {
            self.set_xsave(&state.xsave)?;
        }
        if !state.apic.is_empty() {
            self.fd.set_lapic(&convert::apic_to_kvm(&state.apic)).map_err(host("set the local APIC"))?;
        }
        // After the APIC, whose mode the deadline of its timer depends on.
        self.set_msrs(&state.msrs)?;
        self.fd.set_debug_regs(&convert::debug_to_kvm(&state.debug)).map_err(host("set debug registers"))?;
        self.fd.set_vcpu_events(&convert::events_to_kvm(&state.events)).map_err(host("set pending events"))?;
        let mp_state = match state.activity {
            Activity::Running => KVM_MP_STATE_RUNNABLE,
            Activity::Halted => KVM_MP_STATE_HALTED,
            Activity::WaitForInit => KVM_MP_STATE_UNINITIALIZED,
            Activity::WaitForSipi => KVM_MP_STATE_INIT_RECEIVED,
        };
        self.fd.set_mp_state(kvm_mp_state { mp_state }).map_err(host("set the activity state"))
    }

    fn state(&mut self) -> Result<CpuState> {
        let xcrs = self.fd.get_xcrs().map_err(host("read XCR0"))?;
        let xsave = self.fd.get_xsave().map_err(host("read the XSAVE area"))?;
        Ok(CpuState {
            regs: self.registers()?,
            system: convert::system_from_kvm(&self.fd.get_sregs().map_err(host("read system registers"))?),
            msrs: self.msrs()?,
            xsave: xsave.region.iter().flat_map(|word| word.to_le_bytes()).collect(),
            xcr0: xcrs.xcrs.iter().find(|x| x.xcr == 0).map_or(0, |x| x.value),
            debug: convert::debug_from_kvm(&self.fd.get_debug_regs().map_err(host("read debug registers"))?),
            events: convert::events_from_kvm(&self.fd.get_vcpu_events().map_err(host("read pending events"))?),
            apic: convert::apic_from_kvm(&self.fd.get_lapic().map_err(host("read the local APIC"))?),
            activity: match self.fd.get_mp_state().map_err(host("read the activity state"))?.mp_state {
                KVM_MP_STATE_HALTED => Activity::Halted,
                KVM_MP_STATE_UNINITIALIZED => Activity::WaitForInit,
                KVM_MP_STATE_INIT_RECEIVED => Activity::WaitForSipi,
                _ => Activity::Running,
            },
        })
    }

    fn set_cpuid(&mut self, cpuid: &CpuidTable) -> Result<()> {
        self.fd.set_cpuid2(&convert::cpuid_to_kvm(cpuid)?).map_err(host("set CPUID"))
    }

    fn tsc_khz(&self) -> Option<u32> {
        self.fd.get_tsc_khz().ok().filter(|khz| *khz != 0)
    }

    fn kicker(&self) -> Arc<dyn Kicker> {
        self.kicker.clone()
    }

    fn run(&mut self, io: &dyn CpuIo) -> Result<Exit> {
        self.kicker.runs_here();
        loop {
            match self.fd.run() {
                Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => self.port_io(io),
                Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => self.mmio(io),
                Ok(VcpuExit::IoapicEoi(vector)) => {
                    io.end_of_interrupt(vector);
                    self.count(|c| &c.other);
                }
                Ok(VcpuExit::Hlt) => {
                    self.count(|c| &c.halt);
                    return Ok(Exit::Halted);
                }
                Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(SYSTEM_EVENT_SHUTDOWN, _)) => {
                    return Ok(Exit::Shutdown(crash::report(&self.fd, self.index, &self.ram, "triple fault")));
                }
                Ok(VcpuExit::SystemEvent(..)) => return Ok(Exit::Reset),
                Ok(VcpuExit::Debug(exit)) => {
                    if let Some(stop) = self.stop(&exit)? {
                        return Ok(Exit::Debug(stop));
                    }
                }
                Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::SetTpr) => self.count(|c| &c.other),
                Ok(VcpuExit::InternalError) => return Ok(self.internal_error()),
                Ok(VcpuExit::FailEntry(reason, cpu)) => {
                    let what = format!("KVM could not enter the guest (hardware reason {reason:#x}, host CPU {cpu})");
                    return Ok(self.crash(&what));
                }
                Ok(VcpuExit::MemoryFault { gpa, size, .. }) => {
                    return Ok(self.crash(&format!("no host memory for guest address {gpa:#x}+{size:#x}")));
                }
                Ok(other) => {
                    let what = format!("unexpected KVM exit: {other:?}");
                    return Ok(self.crash(&what));
                }
                Err(e) if e.errno() == libc::EINTR => {
                    self.count(|c| &c.kicked);
                    if self.kicker.taken() {
                        return Ok(Exit::Kicked);
                    }
                }
                Err(e) if e.errno() == libc::EAGAIN => self.count(|c| &c.other),
                Err(e) if matches!(e.errno(), libc::EFAULT | libc::ENOMEM) => {
                    return Ok(self.crash(&format!("the host could not provide guest memory: {}", io::Error::from(e))));
                }
                Err(e) => return Err(host("run a vCPU")(e)),
            }
        }
    }

    fn counters(&self) -> Arc<ExitCounters> {
        self.counters.clone()
    }

    fn debugging(&mut self) -> Option<&mut dyn Debugging> {
        Some(self)
    }
}

impl Drop for KvmVcpu {
    fn drop(&mut self) {
        *self.kicker.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Sets `immediate_exit` in the shared page, so that a KVM_RUN that is just about to start returns too, then interrupts
/// the thread (api.rst section 5, `immediate_exit`).
#[derive(Debug)]
struct KvmKicker(Mutex<Option<Target>>);

#[derive(Debug)]
struct Target {
    run: *mut kvm_run,
    thread: Option<signal::ThreadId>,
}

// SAFETY: `run` points into the mapping of the vCPU's file, which is valid on every thread; KvmVcpu::drop removes the
// Target before it unmaps it.
unsafe impl Send for Target {}

impl KvmKicker {
    fn runs_here(&self) {
        let mut target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(target) = target.as_mut().filter(|t| t.thread.is_none()) {
            target.thread = Some(signal::this_thread());
        }
    }

    fn set_immediate_exit(target: &Target, value: u8) -> bool {
        // SAFETY: the page is mapped (see Target); KVM and other threads access this byte at the same time, so only
        // atomic accesses are made to it.
        let flag = unsafe { AtomicU8::from_ptr(&raw mut (*target.run).immediate_exit) };
        flag.swap(value, Ordering::SeqCst) != 0
    }

    /// Whether somebody kicked since the last call.
    fn taken(&self) -> bool {
        let target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        target.as_ref().is_some_and(|target| Self::set_immediate_exit(target, 0))
    }
}

impl Kicker for KvmKicker {
    fn kick(&self) {
        let target = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(target) = target.as_ref() else { return };
        Self::set_immediate_exit(target, 1);
        if let Some(thread) = target.thread {
            signal::interrupt(thread);
        }
    }
}
