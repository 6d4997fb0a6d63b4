//! What the vCPUs of one VM share: RAM, who decoded which page, how to reach each other.

// UNSAFETY: keeps a pointer to the machine's registers for the time of one `Vcpu::run`.
#![expect(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering, fence};

use super::apic::ApicBus;
use super::attention::{Attention, CodeNews};
use super::clock::Clock;
use super::memory::physical::Physical;
use crate::engine::{CpuIo, Deterministic, IoAddr};
use crate::mem::Ram;
use std::sync::{PoisonError, RwLock};
use vmm_sys_util::eventfd::EventFd;

/// One VM, as its vCPUs see it.
#[derive(Debug)]
pub(super) struct Shared {
    /// Keeps the mappings alive that `physical` points into.
    pub(super) ram: Ram,
    /// Guest-physical memory.
    pub(super) physical: Physical,
    /// For each page of RAM, how many vCPUs have decoded code of it.
    has_code: Box<[AtomicU8]>,
    attentions: Vec<Arc<Attention>>,
    /// The local APICs.
    pub(super) apics: ApicBus,
    /// Guest time.
    pub(super) clock: Clock,
    doorbells: RwLock<Vec<Doorbell>>,
    /// There are more vCPUs than host CPUs that this process may use.
    pub(super) crowded: bool,
    /// The run can be repeated.
    pub(super) deterministic: Option<Deterministic>,
}

/// Rings `fd` when the guest writes to `at`, only for `value` if there is one.
#[derive(Debug)]
pub(super) struct Doorbell {
    pub(super) at: IoAddr,
    pub(super) value: Option<u32>,
    pub(super) fd: EventFd,
}

impl Shared {
    pub(super) fn new(ram: &Ram, cpus: u32, deterministic: Option<Deterministic>) -> Self {
        let physical = Physical::new(ram);
        let has_code = (0..physical.pages()).map(|_| AtomicU8::new(0)).collect();
        let attentions: Vec<_> = (0..cpus).map(|_| Arc::default()).collect();
        let apics = ApicBus::new(&attentions);
        let clock = if deterministic.is_some() { Clock::Counted(AtomicU64::new(0)) } else { Clock::new() };
        let doorbells = RwLock::default();
        let crowded = std::thread::available_parallelism().is_ok_and(|host| host.get() < cpus as usize);
        Self { ram: ram.clone(), physical, has_code, attentions, apics, clock, doorbells, crowded, deterministic }
    }

    /// Number of vCPUs.
    pub(super) fn cpus(&self) -> u32 {
        self.attentions.len() as u32
    }

    /// How vCPU `index`, which must exist, is reached.
    pub(super) fn attention(&self, index: u32) -> &Arc<Attention> {
        &self.attentions[index as usize]
    }

    /// Adds a doorbell.
    pub(super) fn add_doorbell(&self, doorbell: Doorbell) {
        self.doorbells.write().unwrap_or_else(PoisonError::into_inner).push(doorbell);
    }

    /// Takes a doorbell away.
    pub(super) fn remove_doorbell(&self, at: IoAddr, value: Option<u32>) {
        let mut doorbells = self.doorbells.write().unwrap_or_else(PoisonError::into_inner);
        doorbells.retain(|bell| (bell.at, bell.value) != (at, value));
    }

    /// Whether a write went to a doorbell, which then was rung.
    pub(super) fn ring_doorbell(&self, at: IoAddr, data: &[u8]) -> bool {
        let mut bytes = [0; 8];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        let written = u64::from_le_bytes(bytes);
        let doorbells = self.doorbells.read().unwrap_or_else(PoisonError::into_inner);
        let rings = |bell: &&Doorbell| bell.at == at && bell.value.is_none_or(|value| u64::from(value) == written);
        let Some(bell) = doorbells.iter().find(rings) else { return false };
        if let Err(e) = bell.fd.write(1) {
            tracing::debug!("doorbell {at:x?}: {e}");
        }
        true
    }

    /// Whether writes to a page of RAM must be told.
    #[inline]
    pub(super) fn has_code(&self, page: u32) -> bool {
        self.has_code.get(page as usize).is_some_and(|holders| holders.load(Ordering::SeqCst) != 0)
    }

    /// `by`, who had none, is about to decode code of a page; only then may it look at what the page holds. If it is the
    /// first, the others are told to notice writes from now on, and tell that they may have written before they knew.
    pub(super) fn decodes(&self, page: u32, by: u32) {
        let Some(holders) = self.has_code.get(page as usize) else { return };
        if holders.fetch_add(1, Ordering::SeqCst) == 0 {
            self.tell_others(page, by, CodeNews { decoded: true, ..CodeNews::default() });
        }
    }

    /// One who had decoded code of a page has forgotten it.
    pub(super) fn forgets(&self, page: u32) {
        if let Some(holders) = self.has_code.get(page as usize) {
            holders.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// A page was written by `by`, who takes care of its own blocks; `known` if it has any. Who decodes later sees what was
    /// written; who did so before is told.
    pub(super) fn wrote(&self, page: u32, news: CodeNews, by: u32, known: bool) {
        fence(Ordering::SeqCst);
        let holders = self.has_code.get(page as usize).map_or(0, |holders| holders.load(Ordering::SeqCst));
        if holders > u8::from(known) {
            self.tell_others(page, by, news);
        }
    }

    fn tell_others(&self, page: u32, by: u32, news: CodeNews) {
        let others = self.attentions.iter().enumerate().filter(|(index, _)| *index != by as usize);
        others.for_each(|(_, attention)| attention.tell(page, news));
    }
}

/// The machine's registers while a vCPU runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct IoPointer(Option<*const (dyn CpuIo + 'static)>);

// SAFETY: only used on the thread that set it, within `Vcpu::run`; elsewhere it is `None`.
unsafe impl Send for IoPointer {}

impl IoPointer {
    /// None: accesses read as ones.
    pub(super) const NONE: Self = Self(None);

    /// Points to `io`; whoever calls this sets [`IoPointer::NONE`] again before `io` ends.
    pub(super) fn to(io: &dyn CpuIo) -> Self {
        let pointer: *const (dyn CpuIo + '_) = io;
        // SAFETY: only the lifetime changes; `get` hands the reference out while `io` lives, as `to` demands.
        Self(Some(unsafe { std::mem::transmute::<*const (dyn CpuIo + '_), *const (dyn CpuIo + 'static)>(pointer) }))
    }

    /// The registers, within `Vcpu::run`.
    pub(super) fn get(&self) -> Option<&dyn CpuIo> {
        // SAFETY: set by `to` at the start of `Vcpu::run` and reset at its end, so what it points to lives.
        self.0.map(|io| unsafe { &*io })
    }
}
