//! TEMPORARY
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::fault::Fault;
#[derive(Debug, Clone, Copy)]
pub(in crate::engine::soft) enum Event {
    Interrupt(u8),
    Nmi,
    Exception(Fault),
}
#[derive(Debug)]
pub(in crate::engine::soft) struct Shutdown;
impl Cpu {
    pub(in crate::engine::soft) fn deliver(&mut self, _: Event) -> Result<(), Shutdown> {
        Err(Shutdown)
    }
    pub(in crate::engine::soft) fn crash_report(&self, what: &str) -> String {
        what.into()
    }
    pub(in crate::engine::soft) fn look_at_time(&mut self) {}
    pub(in crate::engine::soft) fn take_interrupts(&mut self) -> Option<crate::engine::Exit> {
        None
    }
    pub(in crate::engine::soft) fn halt(
        &mut self,
        _: &crate::engine::soft::attention::Attention,
    ) -> Option<crate::engine::Exit> {
        None
    }
}
