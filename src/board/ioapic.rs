//! The I/O APIC (Intel 82093AA): turns interrupt lines into messages. vCPU threads program it; lines are driven from
//! any thread. It is ours on every engine; with KVM this is what the split irqchip is for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::bus::BusDevice;
use crate::engine;
use crate::host::log_limit::LogLimit;
use crate::irq::{IrqLine, MsiMessage, MsiSink, MsiVector};

/// Bytes of registers.
pub const SIZE: u64 = 0x1000;

/// Memory-mapped registers (data sheet, section 3.1): the index of a register, and a window to it.
const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
/// Indexed registers (section 3.2).
const IOAPICID: u8 = 0x00;
const IOAPICVER: u8 = 0x01;
const IOAPICARB: u8 = 0x02;
const IOREDTBL: u8 = 0x10;
const VERSION: u32 = 0x11;

/// Redirection table entry (section 3.2.4).
mod entry {
    pub const VECTOR: u64 = 0xff;
    pub const DELIVERY_MODE: u64 = 7 << 8;
    pub const LOGICAL: u64 = 1 << 11;
    pub const REMOTE_IRR: u64 = 1 << 14;
    pub const LEVEL: u64 = 1 << 15;
    pub const MASKED: u64 = 1 << 16;
    pub const READ_ONLY: u64 = 1 << 12 | REMOTE_IRR;
}

/// Message format (SDM volume 3, section 12.11).
const MSI_ADDRESS: u64 = 0xfee0_0000;
const MSI_ADDRESS_LOGICAL: u64 = 1 << 2;
const MSI_DATA_ASSERT: u32 = 1 << 14;
const MSI_DATA_LEVEL: u32 = 1 << 15;

static ROUTE_FAILED: LogLimit = LogLimit::new();

/// The I/O APIC of a machine; its pins are the machine's GSIs.
#[derive(Debug)]
pub struct IoApic {
    state: Mutex<State>,
    vectors: Vec<Arc<dyn MsiVector>>,
}

/// Everything that a snapshot needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    select: u8,
    id: u32,
    pins: Vec<Pin>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Pin {
    /// The redirection table entry.
    entry: u64,
    /// Level of the line.
    high: bool,
    /// A rising edge was not delivered yet because the entry is masked.
    edge: bool,
    /// What the vector was last routed to.
    #[serde(skip)]
    routed: Option<MsiMessage>,
}

impl IoApic {
    /// An I/O APIC with `pins` pins, all masked, that sends its messages through `sink`.
    pub fn new(pins: u32, sink: &dyn MsiSink) -> Result<Arc<Self>, engine::Error> {
        let vectors = (0..pins).map(|pin| sink.pin(pin)).collect::<Result<_, _>>()?;
        let reset = Pin { entry: entry::MASKED, high: false, edge: false, routed: None };
        let state = State { select: 0, id: 0, pins: vec![reset; pins as usize] };
        Ok(Arc::new(Self { state: Mutex::new(state), vectors }))
    }

    /// The line into `pin`.
    pub fn line(self: &Arc<Self>, pin: u32) -> Option<Arc<dyn IrqLine>> {
        let index = pin as usize;
        (index < self.vectors.len()).then(|| Arc::new(Line { ioapic: self.clone(), pin: index }) as Arc<dyn IrqLine>)
    }

    /// A CPU ended the interrupt `vector`: level-triggered lines that are still high interrupt again.
    pub fn end_of_interrupt(&self, vector: u8) {
        let mut state = self.state();
        for (pin, out) in state.pins.iter_mut().zip(&self.vectors) {
            if pin.entry & entry::LEVEL != 0 && pin.entry & entry::VECTOR == u64::from(vector) {
                pin.entry &= !entry::REMOTE_IRR;
                pin.deliver(out.as_ref());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_register(&self) -> u32 {
        let state = self.state();
        match state.select {
            IOAPICID | IOAPICARB => state.id,
            IOAPICVER => VERSION | (self.vectors.len() as u32).saturating_sub(1) << 16,
            _ => match state.selected() {
                Some((pin, high_half)) => {
                    state.pins.get(pin).map_or(u32::MAX, |pin| (pin.entry >> if high_half { 32 } else { 0 }) as u32)
                }
                None => u32::MAX,
            },
        }
    }

    fn write_register(&self, value: u32) {
        let mut state = self.state();
        if state.select == IOAPICID {
            state.id = value & 0x0f00_0000;
            return;
        }
        let Some((index, high_half)) = state.selected() else { return };
        let (Some(pin), Some(out)) = (state.pins.get_mut(index), self.vectors.get(index)) else { return };
        let value = u64::from(value);
        pin.entry = if high_half {
            pin.entry & 0xffff_ffff | value << 32
        } else {
            let kept = pin.entry & (0xffff_ffff << 32 | entry::READ_ONLY);
            kept | value & 0x1_ffff & !entry::READ_ONLY
        };
        if pin.entry & entry::LEVEL == 0 {
            pin.entry &= !entry::REMOTE_IRR;
        }
        pin.deliver(out.as_ref());
    }
}

impl State {
    /// Which redirection entry is selected, and whether its upper half.
    fn selected(&self) -> Option<(usize, bool)> {
        let offset = self.select.checked_sub(IOREDTBL)?;
        Some((usize::from(offset / 2), offset % 2 == 1))
    }
}

impl Pin {
    fn message(&self) -> MsiMessage {
        let logical = if self.entry & entry::LOGICAL != 0 { MSI_ADDRESS_LOGICAL } else { 0 };
        let trigger = if self.entry & entry::LEVEL != 0 { MSI_DATA_LEVEL | MSI_DATA_ASSERT } else { 0 };
        MsiMessage {
            address: MSI_ADDRESS | (self.entry >> 56) << 12 | logical,
            data: (self.entry & (entry::VECTOR | entry::DELIVERY_MODE)) as u32 | trigger,
        }
    }

    /// Sends the interrupt if there is one to send and the entry allows it.
    fn deliver(&mut self, out: &dyn MsiVector) {
        if self.entry & entry::MASKED != 0 {
            return;
        }
        let message = self.message();
        if self.routed != Some(message) {
            match out.route(Some(message)) {
                Ok(()) => self.routed = Some(message),
                Err(e) => {
                    if ROUTE_FAILED.allow() {
                        tracing::warn!("I/O APIC: {e}");
                    }
                    return;
                }
            }
        }
        let level = self.entry & entry::LEVEL != 0;
        let due = if level { self.high && self.entry & entry::REMOTE_IRR == 0 } else { self.edge };
        if due {
            self.edge = false;
            if level {
                self.entry |= entry::REMOTE_IRR;
            }
            out.trigger();
        }
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => u32::from(self.state().select),
            IOWIN => self.read_register(),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(to, from)| *to = from);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut bytes = [0; 4];
        bytes.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        match offset {
            IOREGSEL => self.state().select = bytes[0],
            IOWIN => self.write_register(u32::from_le_bytes(bytes)),
            _ => {}
        }
    }
}

/// One line; the pin exists.
#[derive(Debug)]
struct Line {
    ioapic: Arc<IoApic>,
    pin: usize,
}

impl IrqLine for Line {
    fn set_level(&self, high: bool) {
        let mut state = self.ioapic.state();
        let (Some(pin), Some(out)) = (state.pins.get_mut(self.pin), self.ioapic.vectors.get(self.pin)) else { return };
        pin.edge |= high && !pin.high;
        pin.high = high;
        if high {
            pin.deliver(out.as_ref());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default)]
    struct Vector(Mutex<(Option<MsiMessage>, Vec<MsiMessage>)>);
    impl MsiVector for Vector {
        fn route(&self, message: Option<MsiMessage>) -> Result<(), engine::Error> {
            self.0.lock().unwrap().0 = message;
            Ok(())
        }
        fn trigger(&self) {
            let mut inner = self.0.lock().unwrap();
            let message = inner.0.unwrap();
            inner.1.push(message);
        }
    }

    #[derive(Debug, Default)]
    struct Sink(Mutex<Vec<Arc<Vector>>>);
    impl MsiSink for Sink {
        fn vector(&self) -> Result<Arc<dyn MsiVector>, engine::Error> {
            self.pin(0)
        }
        fn pin(&self, _: u32) -> Result<Arc<dyn MsiVector>, engine::Error> {
            let vector = Arc::new(Vector::default());
            self.0.lock().unwrap().push(vector.clone());
            Ok(vector)
        }
    }

    fn ioapic() -> (Arc<IoApic>, Sink) {
        let sink = Sink::default();
        (IoApic::new(4, &sink).unwrap(), sink)
    }

    fn set(ioapic: &IoApic, register: u8, value: u32) {
        ioapic.write(IOREGSEL, &[register]);
        ioapic.write(IOWIN, &value.to_le_bytes());
    }

    fn get(ioapic: &IoApic, register: u8) -> u32 {
        ioapic.write(IOREGSEL, &[register]);
        let mut data = [0; 4];
        ioapic.read(IOWIN, &mut data);
        u32::from_le_bytes(data)
    }

    impl Sink {
        fn sent(&self, pin: usize) -> Vec<MsiMessage> {
            std::mem::take(&mut self.0.lock().unwrap()[pin].0.lock().unwrap().1)
        }
    }

    #[test]
    fn edges_become_messages_and_wait_while_masked() {
        let (ioapic, sink) = ioapic();
        let line = ioapic.line(1).unwrap();
        assert!(ioapic.line(4).is_none());
        line.pulse();
        assert_eq!(sink.sent(1), []);
        set(&ioapic, 0x13, 2 << 24);
        set(&ioapic, 0x12, 0x31);
        let message = MsiMessage { address: 0xfee0_2000, data: 0x31 };
        assert_eq!(sink.sent(1), [message], "the edge seen while masked");
        line.set_level(true);
        line.set_level(true);
        line.set_level(false);
        line.pulse();
        assert_eq!(sink.sent(1), [message; 2]);
        assert_eq!((get(&ioapic, 0x12), get(&ioapic, 0x13)), (0x31, 2 << 24));
    }

    #[test]
    fn levels_repeat_until_low() {
        let (ioapic, sink) = ioapic();
        let line = ioapic.line(3).unwrap();
        set(&ioapic, 0x16, 0x8000 | 0x0800 | 0x50);
        line.set_level(true);
        line.set_level(true);
        let message = MsiMessage { address: 0xfee0_0004, data: 0xc050 };
        assert_eq!(sink.sent(3), [message]);
        assert_eq!(get(&ioapic, 0x16) & 1 << 14, 1 << 14, "remote IRR");
        ioapic.end_of_interrupt(0x51);
        assert_eq!(sink.sent(3), []);
        ioapic.end_of_interrupt(0x50);
        assert_eq!(sink.sent(3), [message]);
        line.set_level(false);
        ioapic.end_of_interrupt(0x50);
        assert_eq!(sink.sent(3), []);
    }

    #[test]
    fn any_access_is_harmless() {
        let (ioapic, _) = ioapic();
        assert_eq!(get(&ioapic, IOAPICVER), 0x0003_0011);
        for register in 0..=255 {
            set(&ioapic, register, u32::MAX);
            get(&ioapic, register);
        }
        for offset in 0..SIZE {
            for len in 1..=8 {
                ioapic.write(offset, &[0xff; 8][..len]);
                ioapic.read(offset, &mut [0; 8][..len]);
            }
        }
    }
}
