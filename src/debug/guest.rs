//! The stopped machine in the hands of a debugger: registers, memory, breakpoints, and how it goes on. What gdb's protocol
//! makes of it is in `target.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::memory::Memory;
use super::points::Points;
use super::registers::Image;
use super::requests::Request;
use super::{Error, dump};
use crate::arch::x86_64::state::{Activity, CpuState};
use crate::engine::debug::{On, Stop, Wanted};
use crate::machine::leash::Leash;
use crate::mem::Ram;

/// MSRs that a debugger may change; all others go on counting and stay as they are.
const WRITTEN_MSRS: &[u32] = &[0xc000_0102];

/// How a vCPU goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    Continue,
    Step,
}

/// Why the machine has stopped, and which vCPU is to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// For the debugger.
    Stop(usize, Stop),
    /// The guest died.
    Crash(usize),
}

/// A machine that a debugger has stopped.
#[derive(Debug)]
pub(super) struct Guest {
    leash: Arc<Leash>,
    memory: Memory,
    int3: bool,
    points: Points,
    /// What is known of the state of each vCPU while it is stopped.
    states: BTreeMap<usize, CpuState>,
    /// How vCPUs go on; others do if not `alone`.
    actions: BTreeMap<usize, Action>,
    alone: bool,
    /// Not told yet.
    events: Vec<Event>,
}

impl Guest {
    /// Takes hold of the machine: all its CPUs stop.
    pub(super) fn stop(leash: &Arc<Leash>, ram: Ram) -> Result<Self, Error> {
        leash.cpus().stop();
        let int3 = leash.cpus().with(0, |vcpu| vcpu.debugging().map(|vcpu| vcpu.needs_int3()))?;
        let (states, actions) = (BTreeMap::new(), BTreeMap::new());
        let mut guest = Self {
            leash: leash.clone(),
            memory: Memory::new(ram),
            int3: int3.ok_or(Error::Unable)?,
            points: Points::default(),
            states,
            actions,
            alone: false,
            events: Vec::new(),
        };
        // That the guest died is what the debugger came for; it finds out by looking.
        guest.collect();
        guest.events.clear();
        Ok(guest)
    }

    /// Number of vCPUs.
    pub(super) fn cpus(&self) -> usize {
        self.leash.cpus().count()
    }

    /// State of vCPU `cpu`.
    pub(super) fn state(&mut self, cpu: usize) -> Result<&CpuState, Error> {
        if !self.states.contains_key(&cpu) {
            let state = self.leash.cpus().with(cpu, |vcpu| vcpu.state())??;
            self.states.insert(cpu, state);
        }
        self.states.get(&cpu).ok_or(Error::Unable)
    }

    /// Writes a core dump to `path`.
    pub(super) fn dump(&mut self, path: &Path) -> Result<(), Error> {
        let cpus = states(&self.leash)?;
        dump::write(path, &self.memory, &cpus).map_err(|e| Error::Dump(path.into(), e))
    }

    /// Writes dumps that others want, while `goes_on` says so; the debugger does not notice. `runs`: as far as it knows the
    /// machine does.
    pub(super) fn dump_for(&mut self, requests: Vec<Request>, runs: bool, goes_on: &dyn Fn() -> bool) {
        if requests.is_empty() {
            return;
        }
        self.leash.cpus().stop();
        for request in requests {
            request.serve(&self.memory, states(&self.leash), goes_on);
        }
        self.collect();
        if runs && self.events.is_empty() {
            self.go_on();
        }
    }

    /// Changes registers of vCPU `cpu`.
    pub(super) fn set_registers(&mut self, cpu: usize, image: &Image) -> Result<(), Error> {
        let mut state = self.state(cpu)?.clone();
        image.apply(&mut state);
        self.states.remove(&cpu);
        // Timers and counters have gone on.
        state.apic.clear();
        state.msrs.retain(|(index, _)| WRITTEN_MSRS.contains(index));
        Ok(self.leash.cpus().with(cpu, move |vcpu| vcpu.set_state(&state))??)
    }

    /// Reads at a linear address of vCPU `cpu`; the number of bytes that can be read.
    pub(super) fn read(&mut self, cpu: usize, at: u64, data: &mut [u8]) -> Result<usize, Error> {
        let system = self.state(cpu)?.system;
        Ok(self.memory.read(&system, at, data))
    }

    /// Writes to a linear address of vCPU `cpu`, whether the guest could or not. False if it is not in RAM.
    pub(super) fn write(&mut self, cpu: usize, at: u64, data: &[u8]) -> Result<bool, Error> {
        let system = self.state(cpu)?.system;
        Ok(self.memory.write(&system, at, data))
    }

    /// Sets a breakpoint in the address space of the vCPU that runs; false if that is not possible. One of an address that
    /// is not mapped yet takes a watchpoint where the engine needs an instruction in memory.
    pub(super) fn add_breakpoint(&mut self, at: u64) -> Result<bool, Error> {
        if !self.int3 {
            return Ok(self.points.add_breakpoint(at, None));
        }
        for cpu in 0..self.cpus() {
            let system = self.state(cpu)?.system;
            if let Some(physical) = self.memory.plant(&system, at) {
                return Ok(self.points.add_breakpoint(at, Some(physical)));
            }
        }
        Ok(self.points.add_stand_in(at))
    }

    /// Takes a breakpoint away; false if there is none.
    pub(super) fn remove_breakpoint(&mut self, at: u64) -> bool {
        match self.points.remove_breakpoint(at) {
            Some(planted) => {
                planted.into_iter().for_each(|physical| self.memory.unplant(physical));
                true
            }
            None => self.points.remove_stand_in(at),
        }
    }

    /// Sets a watchpoint; false if there are no more.
    pub(super) fn add_watchpoint(&mut self, at: u64, len: u64, on: On) -> bool {
        self.points.add_watchpoint(at, len, on)
    }

    /// Takes a watchpoint away; false if there is none.
    pub(super) fn remove_watchpoint(&mut self, at: u64, len: u64, on: On) -> bool {
        self.points.remove_watchpoint(at, len, on)
    }

    /// Forgets how vCPUs were to go on: all do.
    pub(super) fn clear_actions(&mut self) {
        self.actions.clear();
        self.alone = false;
    }

    /// vCPU `cpu` goes on so.
    pub(super) fn set_action(&mut self, cpu: usize, action: Action) {
        self.actions.insert(cpu, action);
    }

    /// Only those go on for which an action was set.
    pub(super) fn others_stay(&mut self) {
        self.alone = true;
    }

    /// Goes on, unless there is something to tell first.
    pub(super) fn resume(&mut self) -> Result<(), Error> {
        self.collect();
        let points = &self.points;
        // A breakpoint is met again if it still counts.
        let counts = |event: &Event| match event {
            Event::Stop(_, Stop::Watchpoint(watchpoint)) => {
                watchpoint.on != On::Execution && points.watches(watchpoint)
            }
            Event::Stop(..) => false,
            Event::Crash(_) => true,
        };
        self.events.retain(counts);
        if !self.events.is_empty() {
            return Ok(());
        }
        let wanted = points.wanted();
        for cpu in 0..self.cpus() {
            let step = self.actions.get(&cpu) == Some(&Action::Step);
            self.tell(cpu, Wanted { step, ..wanted.clone() })?;
        }
        self.states.clear();
        self.leash.release();
        self.go_on();
        Ok(())
    }

    /// Lets those run that shall.
    fn go_on(&self) {
        let only = self.alone.then(|| self.actions.keys().copied().collect::<BTreeSet<_>>());
        self.leash.cpus().allow(only);
    }

    fn tell(&self, cpu: usize, wanted: Wanted) -> Result<(), Error> {
        let set = self.leash.cpus().with(cpu, move |vcpu| vcpu.debugging().map(|vcpu| vcpu.set(&wanted)))?;
        Ok(set.ok_or(Error::Unable)??)
    }

    /// Stops all vCPUs because the user wants it: the one that is busy.
    pub(super) fn interrupt(&mut self) -> Result<usize, Error> {
        self.leash.cpus().stop();
        self.busy()
    }

    /// What has made the machine stop, all of whose CPUs then have. None if it still runs.
    pub(super) fn next_event(&mut self) -> Result<Option<Event>, Error> {
        self.collect();
        if self.events.is_empty() {
            return Ok(None);
        }
        self.leash.cpus().stop();
        // The others may have stopped for something meanwhile.
        self.collect();
        match self.events.remove(0) {
            Event::Crash(_) => self.busy().map(|cpu| Some(Event::Crash(cpu))),
            Event::Stop(cpu, stop) => Ok(Some(Event::Stop(cpu, self.points.known_as(stop)))),
        }
    }

    fn collect(&mut self) {
        self.events.extend(self.leash.take_stops().into_iter().map(|(cpu, stop)| Event::Stop(cpu, stop)));
        self.events.extend(self.leash.take_crash().then_some(Event::Crash(0)));
    }

    /// The first vCPU that executes something, or else the first.
    fn busy(&mut self) -> Result<usize, Error> {
        for cpu in 0..self.cpus() {
            if self.state(cpu)?.activity == Activity::Running {
                return Ok(cpu);
            }
        }
        Ok(0)
    }

    /// Lets the machine go as if nobody had been there.
    pub(super) fn let_go(&mut self) {
        self.points.clear().into_iter().for_each(|physical| self.memory.unplant(physical));
        for cpu in 0..self.cpus() {
            if let Err(e) = self.tell(cpu, Wanted::default()) {
                tracing::warn!("vCPU {cpu} still has a debugger's breakpoints: {e}");
            }
        }
        self.leash.release();
        self.leash.cpus().allow(None);
    }
}

/// States of all vCPUs.
pub(super) fn states(leash: &Leash) -> Result<Vec<CpuState>, Error> {
    (0..leash.cpus().count()).map(|cpu| Ok(leash.cpus().with(cpu, |vcpu| vcpu.state())??)).collect()
}
