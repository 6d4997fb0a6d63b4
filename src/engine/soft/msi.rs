//! Interrupt messages of devices: each is delivered to the local APICs at once, on the thread that triggers it.

use std::sync::{Arc, Mutex, PoisonError};

use super::shared::Shared;
use crate::engine::Result;
use crate::irq::{MsiMessage, MsiSink, MsiVector};

/// Hands out vectors.
#[derive(Debug)]
pub(super) struct SoftMsi(Arc<Shared>);

impl SoftMsi {
    /// Messages for the CPUs of `shared`.
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    fn another(&self) -> Arc<dyn MsiVector> {
        Arc::new(SoftVector { shared: self.0.clone(), message: Mutex::default() })
    }
}

impl MsiSink for SoftMsi {
    fn vector(&self) -> Result<Arc<dyn MsiVector>> {
        Ok(self.another())
    }

    /// Pins differ in nothing: the end of an interrupt is reported for messages that say they are level-triggered, and
    /// only the I/O APIC sends those.
    fn pin(&self, _pin: u32) -> Result<Arc<dyn MsiVector>> {
        Ok(self.another())
    }
}

#[derive(Debug)]
struct SoftVector {
    shared: Arc<Shared>,
    message: Mutex<Option<MsiMessage>>,
}

impl MsiVector for SoftVector {
    fn route(&self, message: Option<MsiMessage>) -> Result<()> {
        *self.message.lock().unwrap_or_else(PoisonError::into_inner) = message;
        Ok(())
    }

    fn trigger(&self) {
        let message = *self.message.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(message) = message {
            self.shared.apics.send_from_device(message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::soft::apic::Effect;
    use crate::engine::soft::attention;
    use crate::mem::{Backing, PAGE, Ram};

    #[test]
    fn vectors_and_pins_interrupt() {
        let ram = Ram::new(&[(0, PAGE)], Backing::Anonymous).unwrap();
        let shared = Arc::new(Shared::new(&ram, 2, None));
        let (apic, told) = (shared.apics.of(1), shared.attention(1));
        apic.write_mmio(0xf0, &0x1ff_u32.to_le_bytes(), 0);
        let sink = SoftMsi::new(shared.clone());
        let (vector, pin) = (sink.vector().unwrap(), sink.pin(3).unwrap());
        vector.trigger();
        assert!(!told.any(), "no message yet");
        vector.route(Some(MsiMessage { address: 0xfee0_1000, data: 0x51 })).unwrap();
        pin.route(Some(MsiMessage { address: 0xfee0_1000, data: 0xc061 })).unwrap();
        vector.trigger();
        pin.trigger();
        assert_eq!(told.take(attention::INTERRUPT), attention::INTERRUPT);
        assert_eq!(apic.accept(), Some(0x61));
        assert_eq!(apic.write_mmio(0xb0, &[0; 4], 0), Effect::Ended(0x61));
        assert_eq!(apic.accept(), Some(0x51));
        assert_eq!(apic.write_mmio(0xb0, &[0; 4], 0), Effect::None);
        vector.route(None).unwrap();
        vector.trigger();
        assert_eq!(apic.accept(), None);
        assert!(!shared.attention(0).any());
    }
}
