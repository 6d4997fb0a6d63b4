//! What comes to a vCPU from outside of its instructions: interrupts, NMI, INIT and SIPI, timers; and how it waits.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::attention::{self, Attention};
use super::cpu::Cpu;
use super::flags::rflags;
use super::system::event::Event;
use crate::arch::x86_64::state::Activity;
use crate::engine::{Exit, ExitCounters};

impl Cpu {
    /// Acts on timers and on what other threads want; the exit if the vCPU shall leave guest code.
    pub(super) fn attend(&mut self, attention: &Attention) -> Option<Exit> {
        self.look_at_time();
        self.counters.instructions.store(self.instructions, Ordering::Relaxed);
        if !attention.any() {
            return None;
        }
        if attention.take(attention::CODE | attention::MUCH_CODE) != 0 {
            self.hear_news();
        }
        if attention.take(attention::KICK) != 0 {
            ExitCounters::add(&self.counters.kicked, 1);
            return Some(Exit::Kicked);
        }
        // Nothing comes between STI or MOV SS and the instruction after it.
        if !self.shadow && !self.steps_for_debugger() && attention.take(attention::INTERRUPT) != 0 {
            return self.take_interrupts();
        }
        None
    }

    /// Waits, in HLT or before it is started, until it is to execute; the exit if the vCPU shall leave before.
    pub(super) fn wait(&mut self, attention: &Attention) -> Option<Exit> {
        ExitCounters::add(&self.counters.halt, 1);
        while self.system.activity != Activity::Running {
            if let Some(exit) = self.attend(attention) {
                return Some(exit);
            }
            if self.system.activity != Activity::Running && !self.skip_to_deadline() {
                let until = self.apic().deadline().map(|at| at.saturating_sub(self.guest_time()));
                attention.sleep(until.map(Duration::from_nanos));
            }
        }
        None
    }

    /// The APIC's timer interrupts when it is due.
    fn look_at_time(&mut self) {
        let Some(deadline) = self.apic().deadline() else { return };
        let now = self.guest_time();
        if now >= deadline {
            self.apic().expire(now);
        }
    }

    /// Takes what the local APIC has.
    fn take_interrupts(&mut self) -> Option<Exit> {
        let events = self.apic().take_events();
        if events.init {
            self.init();
            self.apic().reset();
            self.nmi_waits = false;
        }
        // A CPU that waits for its start-up blocks NMIs, and takes the last one when it has started (SDM volume 3, on the
        // activity states of VM entries, says that wait-for-SIPI blocks them; KVM keeps them too).
        self.nmi_waits |= events.nmi;
        if let Some(page) = events.sipi {
            self.start(page);
        }
        if matches!(self.system.activity, Activity::WaitForInit | Activity::WaitForSipi) {
            return None;
        }
        if self.nmi_waits && !self.system.nmi_blocked {
            self.nmi_waits = false;
            self.system.activity = Activity::Running;
            if let Some(exit) = self.raise_event(Event::Nmi) {
                return Some(exit);
            }
        }
        if self.system.rflags & rflags::IF != 0
            && let Some(vector) = self.apic().accept()
        {
            self.system.activity = Activity::Running;
            if let Some(exit) = self.raise_event(Event::Interrupt(vector)) {
                return Some(exit);
            }
        }
        // What could not be taken now is looked at when IF is set, or the NMI's handler has returned.
        self.interrupt_waits = self.apic().ready() || self.nmi_waits;
        None
    }

    /// Delivers an event; the exit if that stops the CPU.
    pub(super) fn raise_event(&mut self, event: Event) -> Option<Exit> {
        self.trace_event(event);
        match self.deliver(event) {
            Ok(()) => None,
            Err(_) => Some(Exit::Shutdown(self.crash_report("triple fault"))),
        }
    }
}
