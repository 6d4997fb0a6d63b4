//! The registers of a local APIC as saved state: a page of them, as software sees it in xAPIC mode (SDM volume 3, table
//! 12-1), whichever mode is on. Mode and address are in the base register, the deadline of the timer in its own, and both
//! are saved with the model-specific registers.

use std::sync::atomic::Ordering;

use super::registers::{Registers, reg};
use super::{LocalApic, NEVER};

/// Bytes that are saved: what there are registers in.
const SIZE: usize = 0x400;

impl LocalApic {
    /// All registers at guest time `now`.
    pub(in crate::engine::soft) fn save(&self, now: u64) -> Vec<u8> {
        let registers = self.lock();
        let mut page = vec![0; SIZE];
        for (number, bytes) in (0..).zip(page.chunks_exact_mut(16)) {
            let value = registers.saved(number, now).to_le_bytes();
            bytes.iter_mut().zip(value).for_each(|(to, from)| *to = from);
        }
        page
    }

    /// Sets all registers from what [`LocalApic::save`] returned, at guest time `now`; its number stays its own.
    pub(in crate::engine::soft) fn restore(&self, page: &[u8], now: u64) {
        let word = |number: u32| {
            let bytes = page.get(number as usize * 16..).and_then(|rest| rest.first_chunk());
            bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
        };
        let mut registers = self.lock();
        registers.restore(word, now);
        self.deadline.store(registers.deadline().unwrap_or(NEVER), Ordering::Release);
        self.wake(&registers);
    }
}

impl Registers {
    /// The register with this number.
    fn saved(&self, number: u32, now: u64) -> u32 {
        match number {
            reg::ICR => self.icr as u32,
            reg::ICR_HIGH => (self.icr >> 32) as u32,
            reg::DFR => self.dfr,
            _ => self.read(number, now).unwrap_or(0) as u32,
        }
    }

    fn restore(&mut self, word: impl Fn(u32) -> u32, now: u64) {
        (self.tpr, self.ldr, self.dfr) = (word(reg::TPR) & 0xff, word(reg::LDR) & 0xff00_0000, word(reg::DFR));
        (self.svr, self.esr) = (word(reg::SVR) & 0x3ff, word(reg::ESR));
        self.icr = u64::from(word(reg::ICR_HIGH)) << 32 | u64::from(word(reg::ICR));
        for (vectors, first) in [(&mut self.isr, reg::ISR), (&mut self.tmr, reg::TMR), (&mut self.irr, reg::IRR)] {
            (0..8).for_each(|index| vectors.set_word(index, word(first + index as u32)));
        }
        for (entry, number) in self.lvt.iter_mut().zip(reg::LVT_TIMER..) {
            *entry = word(number);
        }
        self.timer.set_mode(word(reg::LVT_TIMER));
        self.timer.set_divide(word(reg::DIVIDE), now);
        self.timer.restore(word(reg::INITIAL_COUNT), word(reg::CURRENT_COUNT), now);
    }
}

#[cfg(test)]
mod tests {
    use super::super::message::Delivery;
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_is_saved_comes_back() {
        let new = || LocalApic::new(3, Arc::default());
        let apic = new();
        for (offset, value) in [(0xf0, 0x1ff), (0x80, 0x20), (0xd0, 0x0400_0000), (0x320, 0x2_0041), (0x3e0, 3)] {
            apic.write_mmio(offset, &u32::to_le_bytes(value), 0);
        }
        apic.write_mmio(0x380, &1000u32.to_le_bytes(), 5000);
        apic.receive(Delivery::Fixed, 0x77, true);
        apic.receive(Delivery::Fixed, 0x55, false);
        assert_eq!(apic.accept(), Some(0x77));
        let saved = apic.save(6600);
        let other = new();
        other.restore(&saved, 100_000);
        assert_eq!(other.save(100_000), saved);
        assert_eq!(other.deadline(), Some(100_000 + 900 * 16), "what was left");
        assert_eq!((other.cr8(), other.accept()), (2, None), "77 is still served");
        other.write_mmio(0xb0, &[0; 4], 100_000);
        assert_eq!(other.accept(), Some(0x55));
        // Anything may be restored.
        other.restore(&[0xff; 100], 0);
        other.restore(&[0xff; 0x400], u64::MAX);
        other.expire(u64::MAX);
        other.save(0);
    }
}
