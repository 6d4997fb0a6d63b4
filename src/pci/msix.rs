//! MSI-X (PCI 3.0 section 6.8.2): a table of messages, one per vector, each with a mask bit, and an array of pending
//! bits. The guest programs it on vCPU threads; devices trigger vectors from any thread.
//!
//! Table and pending bits lie on a register page of the device. A vector is routed in the engine only when it can
//! really be sent, since routing is slow: a driver changes the table only while the entry is masked.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine;
use crate::host::log_limit::LogLimit;
use crate::host::register_page::RegisterPage;
use crate::irq::{MsiMessage, MsiSink, MsiVector};
use crate::pci::config::ConfigSpace;

/// Capability ID.
const CAPABILITY: u8 = 0x11;
/// Bytes of a table entry: address low, address high, data, vector control.
const ENTRY: usize = 16;
/// Offset of the vector control word in an entry, and its mask bit.
const CONTROL: usize = 12;
const MASKED: u32 = 1;
/// Message control register: MSI-X enable, function mask.
const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
/// Most vectors that a table here can have.
pub const MAX_VECTORS: u16 = 64;

static ROUTE_FAILED: LogLimit = LogLimit::new();

/// Where table and pending bits are: offsets on `page`, which is at `page_offset` of BAR `bar`.
#[derive(Debug)]
pub struct Place {
    /// BAR number.
    pub bar: u8,
    /// Offset of the page in the BAR.
    pub page_offset: u32,
    /// The page.
    pub page: RegisterPage,
    /// Offset of the table on the page; 16 bytes a vector.
    pub table: usize,
    /// Offset of the pending bits on the page; 8 bytes.
    pub pending: usize,
}

/// The MSI-X state of one function.
#[derive(Debug)]
pub struct Msix {
    place: Place,
    vectors: Vec<Arc<dyn MsiVector>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    control: u16,
    pending: u64,
    routed: Vec<Option<MsiMessage>>,
}

impl Msix {
    /// `count` vectors (1 to [`MAX_VECTORS`]), all masked.
    pub fn new(count: u16, place: Place, sink: &dyn MsiSink) -> Result<Self, engine::Error> {
        let count = count.clamp(1, MAX_VECTORS);
        let vectors = (0..count).map(|_| sink.vector()).collect::<Result<Vec<_>, _>>()?;
        let state = State { routed: vec![None; vectors.len()], ..State::default() };
        let msix = Self { place, vectors, state: Mutex::new(state) };
        msix.mask_all();
        Ok(msix)
    }

    /// Number of vectors.
    pub fn count(&self) -> u16 {
        self.vectors.len() as u16
    }

    /// Adds the capability; returns the offset of its message control register.
    pub fn add_capability(&self, config: &mut ConfigSpace) -> usize {
        let locate = |offset: usize| (self.place.page_offset + offset as u32) | u32::from(self.place.bar);
        let mut body = (self.count() - 1).to_le_bytes().to_vec();
        body.extend(locate(self.place.table).to_le_bytes());
        body.extend(locate(self.place.pending).to_le_bytes());
        config.add_capability(CAPABILITY, &body, &(ENABLE | FUNCTION_MASK).to_le_bytes()) + 2
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The guest wrote the message control register.
    pub fn set_control(&self, control: u16) {
        let mut state = self.state();
        state.control = control;
        for vector in 0..self.vectors.len() {
            self.update(&mut state, vector);
        }
    }

    /// Whether MSI-X is on.
    pub fn is_enabled(&self) -> bool {
        self.state().control & ENABLE != 0
    }

    /// If `offset` on the page belongs to the table or the pending bits, the guest's write is done and true is
    /// returned.
    pub fn write(&self, offset: usize, data: &[u8]) -> bool {
        let table = self.place.table..self.place.table + self.vectors.len() * ENTRY;
        if offset >= self.place.pending && offset < self.place.pending + 8 {
            return true; // read-only
        }
        if !table.contains(&offset) {
            return false;
        }
        let mut state = self.state();
        let room = table.end - offset;
        self.place.page.store(offset, data.get(..room).unwrap_or(data));
        let first = (offset - table.start) / ENTRY;
        let last = (offset - table.start + data.len().min(room).saturating_sub(1)) / ENTRY;
        for vector in first..=last {
            self.update(&mut state, vector);
        }
        true
    }

    /// Routes what can be sent now, and sends what waited for that.
    fn update(&self, state: &mut State, vector: usize) {
        let (Some(source), Some(routed)) = (self.vectors.get(vector), state.routed.get_mut(vector)) else { return };
        if state.control & (ENABLE | FUNCTION_MASK) != ENABLE || self.is_masked(vector) {
            return;
        }
        let at = self.place.table + vector * ENTRY;
        let page = &self.place.page;
        let address = u64::from(page.load_u32(at + 4)) << 32 | u64::from(page.load_u32(at));
        let message = MsiMessage { address, data: page.load_u32(at + 8) };
        if *routed != Some(message) {
            match source.route(Some(message)) {
                Ok(()) => *routed = Some(message),
                Err(e) => {
                    if ROUTE_FAILED.allow() {
                        tracing::warn!("cannot route an interrupt message to {address:#x}: {e}");
                    }
                    return;
                }
            }
        }
        let bit = 1u64 << vector;
        if state.pending & bit != 0 {
            state.pending &= !bit;
            self.show_pending(state);
            source.trigger();
        }
    }

    fn is_masked(&self, vector: usize) -> bool {
        self.place.page.load_u32(self.place.table + vector * ENTRY + CONTROL) & MASKED != 0
    }

    fn show_pending(&self, state: &State) {
        self.place.page.store(self.place.pending, &state.pending.to_le_bytes());
    }

    /// Sends the message of `vector`, now or when it is unmasked. Dropped if MSI-X is off.
    pub fn trigger(&self, vector: u16) {
        let vector = usize::from(vector);
        let Some(source) = self.vectors.get(vector) else { return };
        let mut state = self.state();
        if state.control & ENABLE == 0 {
            return;
        }
        if state.control & FUNCTION_MASK != 0 || self.is_masked(vector) {
            state.pending |= 1 << vector;
            self.show_pending(&state);
        } else {
            source.trigger();
        }
    }

    fn mask_all(&self) {
        for vector in 0..self.vectors.len() {
            let at = self.place.table + vector * ENTRY;
            self.place.page.store(at, &[0; 8]);
            self.place.page.store(at + 8, &u64::from(MASKED).rotate_left(32).to_le_bytes());
        }
    }

    /// Back to the state after power-on: off, all vectors masked.
    pub fn reset(&self) {
        let mut state = self.state();
        state.control = 0;
        state.pending = 0;
        self.show_pending(&state);
        self.mask_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::testing::Sink;

    fn msix() -> (Msix, Sink, RegisterPage) {
        let sink = Sink::default();
        let page = RegisterPage::alone().unwrap();
        let place = Place { bar: 0, page_offset: 0, page: page.clone(), table: 0x800, pending: 0xc00 };
        (Msix::new(3, place, &sink).unwrap(), sink, page)
    }

    fn program(msix: &Msix, vector: usize, data: u32, masked: bool) {
        let at = 0x800 + vector * ENTRY;
        assert!(msix.write(at, &0xfee0_0000u64.to_le_bytes()));
        assert!(msix.write(at + 8, &data.to_le_bytes()));
        assert!(msix.write(at + 12, &u32::from(masked).to_le_bytes()));
    }

    #[test]
    fn messages_are_sent_when_enabled_and_wait_while_masked() {
        let (msix, sink, page) = msix();
        msix.trigger(0);
        program(&msix, 0, 0x41, false);
        program(&msix, 1, 0x42, true);
        msix.trigger(0);
        assert_eq!(sink.take(), []);
        msix.set_control(ENABLE | FUNCTION_MASK);
        msix.trigger(0);
        msix.trigger(1);
        assert_eq!((sink.take().len(), page.load_u32(0xc00)), (0, 3));
        msix.set_control(ENABLE);
        assert_eq!(sink.take(), [MsiMessage { address: 0xfee0_0000, data: 0x41 }]);
        assert_eq!(page.load_u32(0xc00), 2);
        program(&msix, 1, 0x52, false);
        assert_eq!(sink.take(), [MsiMessage { address: 0xfee0_0000, data: 0x52 }]);
        msix.trigger(0);
        msix.trigger(1);
        msix.trigger(77);
        assert_eq!(sink.take().len(), 2);
        assert_eq!(page.load_u32(0xc00), 0);
        // A vector that moves to another CPU: masked, changed, unmasked.
        program(&msix, 0, 0x41, true);
        msix.trigger(0);
        program(&msix, 0, 0x61, false);
        assert_eq!(sink.take(), [MsiMessage { address: 0xfee0_0000, data: 0x61 }]);
        msix.trigger(1);
        msix.reset();
        msix.trigger(1);
        assert_eq!(sink.take().len(), 1);
    }

    #[test]
    fn odd_writes_stay_inside_table_and_pending_bits() {
        let (msix, _, page) = msix();
        msix.set_control(ENABLE);
        for offset in 0..0x1000 {
            for len in 1..=8 {
                let mine = msix.write(offset, &[0xff; 8][..len]);
                assert_eq!(mine, (0x800..0x830).contains(&offset) || (0xc00..0xc08).contains(&offset), "{offset:#x}");
            }
        }
        assert_eq!((page.load_u32(0x830), page.load_u32(0x7fc), page.load_u32(0xc00)), (0, 0, 0));
    }
}
