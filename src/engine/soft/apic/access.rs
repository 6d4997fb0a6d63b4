//! How instructions reach the local APIC, and what follows from it outside of it.

use super::message::Destination;
use super::{Effect, LocalApic, Refused};
use crate::engine::soft::cpu::Cpu;

impl Cpu {
    /// This CPU's local APIC.
    pub(in crate::engine::soft) fn apic(&self) -> &LocalApic {
        self.shared.apics.of(self.index)
    }

    /// Reads an MSR of 800h to 8FFh. Refused: #GP.
    pub(in crate::engine::soft) fn read_apic_msr(&self, index: u32) -> Result<u64, Refused> {
        self.apic().read_msr(index, self.guest_time())
    }

    /// Writes an MSR of 800h to 8FFh. Refused: #GP.
    pub(in crate::engine::soft) fn write_apic_msr(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        let effect = self.apic().write_msr(index, value, self.guest_time())?;
        self.apic_effect(effect);
        Ok(())
    }

    /// Reads registers if guest-physical `at` is in the page of this CPU's APIC, and the APIC in xAPIC mode.
    pub(in crate::engine::soft) fn local_apic_read(&mut self, at: u64, data: &mut [u8]) -> bool {
        let apic = self.apic();
        let here = apic.in_page(at);
        if here {
            apic.read_mmio(at & 0xfff, data, self.guest_time());
        }
        here
    }

    /// Writes registers if guest-physical `at` is in the page of this CPU's APIC, and the APIC in xAPIC mode.
    pub(in crate::engine::soft) fn local_apic_write(&mut self, at: u64, data: &[u8]) -> bool {
        let apic = self.apic();
        if !apic.in_page(at) {
            return false;
        }
        let effect = apic.write_mmio(at & 0xfff, data, self.guest_time());
        self.apic_effect(effect);
        true
    }

    /// CR8: the class of the task priority, 0 to 15.
    pub(in crate::engine::soft) fn task_priority(&self) -> u64 {
        self.apic().cr8().into()
    }

    /// Writes CR8; the caller has checked that `class` is at most 15.
    pub(in crate::engine::soft) fn set_task_priority(&mut self, class: u64) {
        self.apic().set_cr8(class as u8 & 15);
    }

    fn apic_effect(&mut self, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::Send(message) => {
                if message.to != Destination::Sender {
                    self.before_ipi();
                }
                self.shared.apics.send(&message, Some(self.index));
            }
            Effect::Ended(vector) => {
                if let Some(io) = self.io.get() {
                    io.end_of_interrupt(vector);
                }
            }
        }
    }
}
