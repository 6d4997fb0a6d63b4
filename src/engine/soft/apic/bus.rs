//! Carries messages to the local APICs they are for (SDM volume 3, 12.6.2).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::LocalApic;
use super::message::{Delivery, Destination, Message};
use crate::engine::soft::attention::Attention;
use crate::irq::MsiMessage;

/// The local APICs of a VM; the APIC id of each is its index.
#[derive(Debug)]
pub(in crate::engine::soft) struct ApicBus {
    apics: Vec<LocalApic>,
    /// Where the search for one of several begins, so that equals take turns.
    turn: AtomicUsize,
}

impl ApicBus {
    /// One APIC for each vCPU, by how it is reached.
    pub(in crate::engine::soft) fn new(attentions: &[Arc<Attention>]) -> Self {
        let apics = attentions.iter().zip(0..).map(|(attention, id)| LocalApic::new(id, attention.clone())).collect();
        Self { apics, turn: AtomicUsize::new(0) }
    }

    /// The APIC of vCPU `index`, which must exist.
    pub(in crate::engine::soft) fn of(&self, index: u32) -> &LocalApic {
        &self.apics[index as usize]
    }

    /// A device sends a message. Those that interrupt nobody are dropped, as by hardware.
    pub(in crate::engine::soft) fn send_from_device(&self, message: MsiMessage) {
        match Message::from_device(message) {
            Some(decoded) => self.send(&decoded, None),
            None => tracing::debug!("interrupt message {message:x?} means nothing"),
        }
    }

    /// Delivers a message; `from` is the vCPU that sends it.
    pub(in crate::engine::soft) fn send(&self, message: &Message, from: Option<u32>) {
        if message.any {
            if let Some(apic) = self.lowest_priority(message, from) {
                apic.receive(Delivery::Fixed, message.vector, message.level);
            }
            return;
        }
        match message.to {
            // The usual case needs no search.
            Destination::Physical(id) => self.deliver(self.apics.get(id as usize), message),
            Destination::Sender => self.deliver(from.and_then(|id| self.apics.get(id as usize)), message),
            _ => self.destinations(message.to, from).for_each(|(_, apic)| self.deliver(Some(apic), message)),
        }
    }

    fn deliver(&self, apic: Option<&LocalApic>, message: &Message) {
        if let Some(apic) = apic {
            apic.receive(message.delivery, message.vector, message.level);
        }
    }

    fn destinations(&self, to: Destination, from: Option<u32>) -> impl Iterator<Item = (usize, &LocalApic)> {
        self.apics.iter().enumerate().filter(move |(index, apic)| {
            let sender = from == Some(*index as u32);
            match to {
                Destination::Physical(id) => id as usize == *index,
                Destination::Logical(id) => apic.lock().matches(id),
                Destination::Sender => sender,
                Destination::All => true,
                Destination::Others => !sender,
            }
        })
    }

    /// The enabled destination whose CPU does the least important work.
    fn lowest_priority(&self, message: &Message, from: Option<u32>) -> Option<&LocalApic> {
        let (turn, count) = (self.turn.fetch_add(1, Ordering::Relaxed), self.apics.len());
        let distance = |index: usize| (index + count - turn % count) % count;
        self.destinations(message.to, from)
            .filter_map(|(index, apic)| {
                let registers = apic.lock();
                registers.enabled().then(|| ((registers.priority() >> 4, distance(index)), apic))
            })
            .min_by_key(|(key, _)| *key)
            .map(|(_, apic)| apic)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Events, reg};
    use super::*;
    use crate::engine::soft::apic::Effect;

    struct Cpus {
        bus: ApicBus,
        attentions: Vec<Arc<Attention>>,
    }

    impl Cpus {
        /// In x2APIC mode, enabled.
        fn new(count: usize, x2apic: bool) -> Self {
            let attentions: Vec<Arc<Attention>> = (0..count).map(|_| Arc::default()).collect();
            let bus = ApicBus::new(&attentions);
            for apic in &bus.apics {
                if x2apic {
                    apic.set_base(apic.base() | 1 << 10).unwrap();
                }
                apic.lock().write(reg::SVR, 0x1ff, 0).unwrap();
            }
            Self { bus, attentions }
        }

        /// What CPU `from` writes to its command register.
        fn command(&self, from: u32, icr: u64) {
            match self.bus.of(from).write_msr(0x830, icr, 0).unwrap() {
                Effect::Send(message) => self.bus.send(&message, Some(from)),
                other => panic!("{other:?}"),
            }
        }

        fn device(&self, address: u64, data: u32) {
            self.bus.send_from_device(MsiMessage { address, data });
        }

        /// Which CPUs take which interrupt; they end it.
        fn taken(&self) -> Vec<(usize, u8)> {
            let taken = self.bus.apics.iter().enumerate().filter_map(|(index, apic)| Some((index, apic.accept()?)));
            let taken: Vec<_> = taken.collect();
            for (index, _) in &taken {
                self.bus.apics[*index].lock().end();
                assert!(self.attentions[*index].any());
            }
            taken
        }
    }

    #[test]
    fn commands_reach_whom_they_name() {
        let cpus = Cpus::new(20, true);
        cpus.command(0, 18 << 32 | 0xfd);
        assert_eq!(cpus.taken(), [(18, 0xfd)]);
        cpus.command(3, 0x4_00fc);
        assert_eq!(cpus.taken(), [(3, 0xfc)]);
        cpus.command(3, 0xc_00fb);
        let others = cpus.taken();
        assert!(others.len() == 19 && !others.contains(&(3, 0xfb)));
        cpus.command(3, 0x8_00fb);
        assert_eq!(cpus.taken().len(), 20);
        cpus.command(3, 0xffff_ffff << 32 | 0xfb);
        assert_eq!(cpus.taken().len(), 20);
        cpus.command(0, 0x1_0009 << 32 | 0x8fa);
        assert_eq!(cpus.taken(), [(16, 0xfa), (19, 0xfa)]);
        cpus.command(0, 99 << 32 | 0xfd);
        assert_eq!(cpus.taken(), []);
        cpus.command(0, 2 << 32 | 0x4500);
        cpus.command(0, 2 << 32 | 0x4606);
        assert_eq!(cpus.bus.of(2).take_events(), Events { nmi: false, init: true, sipi: Some(6) });
        cpus.command(0, 0xc_0400);
        assert!(cpus.bus.of(19).take_events().nmi && !cpus.bus.of(0).take_events().nmi);
        let Effect::Send(own) = cpus.bus.of(7).write_msr(0x83f, 0x55, 0).unwrap() else { panic!("nothing sent") };
        cpus.bus.send(&own, Some(7));
        assert_eq!(cpus.taken(), [(7, 0x55)]);
    }

    #[test]
    fn devices_reach_physical_and_logical_ids() {
        for x2apic in [false, true] {
            let cpus = Cpus::new(4, x2apic);
            cpus.device(0xfee0_2000, 0x41);
            assert_eq!(cpus.taken(), [(2, 0x41)]);
            cpus.device(0xfeef_f000, 0x42);
            assert_eq!(cpus.taken().len(), 4);
            cpus.device(0xfee0_9000, 0x42);
            cpus.device(0xfed0_2000, 0x42);
            assert_eq!(cpus.taken(), []);
            if !x2apic {
                for (index, apic) in cpus.bus.apics.iter().enumerate() {
                    apic.write_mmio(0xd0, &(1_u32 << (24 + index)).to_le_bytes(), 0);
                }
            }
            cpus.device(0xfee0_6004, 0x43);
            assert_eq!(cpus.taken(), [(1, 0x43), (2, 0x43)]);
        }
    }

    #[test]
    fn the_least_busy_takes_what_is_for_any() {
        let cpus = Cpus::new(4, true);
        for (index, class) in [(0, 5), (1, 2), (2, 3), (3, 2)] {
            cpus.bus.of(index).set_cr8(class);
        }
        let mut seen = Vec::new();
        for _ in 0..4 {
            cpus.device(0xfee0_f004, 0x161);
            cpus.device(0xfee0_f00c, 0x62);
            seen.extend(cpus.taken());
            seen.extend(cpus.taken());
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [(1, 0x61), (1, 0x62), (3, 0x61), (3, 0x62)]);
        cpus.bus.of(1).write_msr(0x80f, 0xff, 0).unwrap();
        cpus.bus.of(3).write_msr(0x80f, 0xff, 0).unwrap();
        cpus.device(0xfee0_f004, 0x163);
        assert_eq!(cpus.taken(), [(2, 0x63)]);
        cpus.device(0xfee0_a004, 0x163);
        assert_eq!(cpus.taken(), [], "nobody of these is enabled");
    }
}
