//! Interrupts as devices see them: a line that can be raised, or a message that can be sent.
//!
//! Engines provide messages ([`MsiSink`]); the board's I/O APIC turns lines into messages.

use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A message-signalled interrupt: where a device would write what (PCI 3.0 section 6.8; Intel SDM volume 3,
/// section 12.11 gives the layout for x86 local APICs).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MsiMessage {
    /// Address the device would write to.
    pub address: u64,
    /// Data it would write.
    pub data: u32,
}

/// Source of interrupt messages; each engine has one per VM.
pub trait MsiSink: Send + Sync + Debug {
    /// A new vector, without a message yet.
    fn vector(&self) -> Result<Arc<dyn MsiVector>, crate::engine::Error>;
    /// The vector of I/O APIC pin `pin`; the engine reports end-of-interrupt for it (see `CpuIo::end_of_interrupt`).
    fn pin(&self, pin: u32) -> Result<Arc<dyn MsiVector>, crate::engine::Error>;
}

/// One interrupt source with its message. Callable from any thread.
pub trait MsiVector: Send + Sync + Debug {
    /// Sets the message, or none: then triggers are dropped.
    fn route(&self, message: Option<MsiMessage>) -> Result<(), crate::engine::Error>;
    /// Sends the message once.
    fn trigger(&self);
}

/// An interrupt line, as an I/O APIC pin sees it.
pub trait IrqLine: Send + Sync + Debug {
    /// Drives the line. A rising edge interrupts at once if the pin is edge-triggered and unmasked.
    fn set_level(&self, high: bool);
    /// Pulses the line: what an edge-triggered device does.
    fn pulse(&self) {
        self.set_level(true);
        self.set_level(false);
    }
}
