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
                if let Some(io) = self.machine().get() {
                    io.end_of_interrupt(vector);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use crate::engine::soft::apic::Events;
    use crate::engine::soft::attention;
    use crate::engine::soft::cpu::Cpu;
    use crate::engine::soft::shared::IoPointer;
    use crate::engine::soft::testing;
    use crate::engine::{CpuIo, IoAddr};
    use crate::irq::MsiMessage;

    const PAGE: u64 = 0xfee0_0000;

    #[derive(Debug, Default)]
    struct Io {
        ended: Mutex<Vec<u8>>,
        accesses: Mutex<Vec<IoAddr>>,
    }

    impl CpuIo for Io {
        fn read(&self, at: IoAddr, data: &mut [u8]) {
            self.accesses.lock().unwrap().push(at);
            data.fill(0x77);
        }
        fn write(&self, at: IoAddr, _: &[u8]) {
            self.accesses.lock().unwrap().push(at);
        }
        fn end_of_interrupt(&self, vector: u8) {
            self.ended.lock().unwrap().push(vector);
        }
    }

    /// CPU 0 of two without paging, so that all addresses are physical.
    fn flat() -> Cpu {
        let mut cpu = testing::cpu_of(&testing::ram(&[]), 2);
        cpu.system.cr0 &= !crate::engine::soft::cpu::cr0::PG;
        cpu
    }

    #[test]
    fn the_page_is_there_in_xapic_mode_only() {
        let (mut cpu, io) = (flat(), Io::default());
        cpu.io = IoPointer::to(&io);
        assert_eq!(cpu.load::<u32>(PAGE + 0x30).unwrap(), 0x0005_0014);
        cpu.store::<u32>(PAGE + 0x80, 0x70).unwrap();
        assert_eq!(cpu.task_priority(), 7);
        cpu.set_task_priority(3);
        assert_eq!(cpu.load::<u32>(PAGE + 0x80).unwrap(), 0x30);
        assert_eq!(*io.accesses.lock().unwrap(), []);
        assert_eq!(cpu.load::<u32>(PAGE + 0x1000).unwrap(), 0x7777_7777);
        let base = cpu.apic().base();
        cpu.write_msr(0x1b, base | 1 << 10).unwrap();
        assert_eq!(cpu.load::<u32>(PAGE + 0x30).unwrap(), 0x7777_7777);
        cpu.store::<u32>(PAGE + 0x80, 0).unwrap();
        assert_eq!(io.accesses.lock().unwrap().len(), 3);
        assert_eq!(cpu.read_msr(0x808), Ok(0x30));
        cpu.io = IoPointer::NONE;
    }

    #[test]
    fn ends_of_level_triggered_interrupts_reach_the_machine() {
        let (mut cpu, io) = (flat(), Io::default());
        cpu.io = IoPointer::to(&io);
        cpu.store::<u32>(PAGE + 0xf0, 0x1ff).unwrap();
        for data in [0xc052, 0x61] {
            cpu.shared.apics.send_from_device(MsiMessage { address: PAGE, data });
        }
        for expected in [0x61, 0x52] {
            assert_eq!(cpu.apic().accept(), Some(expected));
            cpu.store::<u32>(PAGE + 0xb0, 0).unwrap();
        }
        assert_eq!(*io.ended.lock().unwrap(), [0x52]);
        cpu.io = IoPointer::NONE;
    }

    #[test]
    fn commands_start_another_cpu() {
        let mut cpu = flat();
        cpu.store::<u32>(PAGE + 0x310, 1 << 24).unwrap();
        cpu.store::<u32>(PAGE + 0x300, 0x4500).unwrap();
        cpu.store::<u32>(PAGE + 0x300, 0x4608).unwrap();
        let other = cpu.shared.apics.of(1);
        assert_eq!(cpu.shared.attention(1).take(attention::INTERRUPT), attention::INTERRUPT);
        assert_eq!(other.take_events(), Events { nmi: false, init: true, sipi: Some(8) });
        assert!(!cpu.shared.attention(0).any());
        let base = cpu.apic().base();
        cpu.write_msr(0x1b, base | 1 << 10).unwrap();
        cpu.write_msr(0x80f, 0x1ff).unwrap();
        cpu.write_msr(0x83f, 0x99).unwrap();
        assert_eq!(cpu.apic().accept(), Some(0x99));
        assert!(cpu.write_msr(0x831, 0).is_err() && cpu.read_msr(0x80b).is_err());
    }
}
