//! What is known about a CPU that cannot go on, as text for the user.

use crate::engine::crash;
use crate::engine::soft::cpu::Cpu;
use crate::engine::soft::memory::walk::Access;

impl Cpu {
    /// Registers and code bytes, after the line `what`; for `Exit::Shutdown` and `Exit::Crashed`.
    pub(in crate::engine::soft) fn crash_report(&mut self, what: &str) -> String {
        let (registers, system) = (self.registers(), self.system_registers());
        let fault = self.fault;
        let text = crash::report(self.index, what, &registers, &system, |linear| self.code_byte(linear));
        self.fault = fault;
        match self.last_words() {
            words if words.is_empty() => text,
            words => format!("{text}\nthe last blocks:\n{}", words.trim_end()),
        }
    }

    /// A byte of RAM; devices are not asked.
    fn code_byte(&mut self, linear: u64) -> Option<u8> {
        let physical = self.translate(linear, Access::Read).ok()?.physical;
        self.shared.physical.page(physical)?;
        self.load::<u8>(linear).ok()
    }
}
