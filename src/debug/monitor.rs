//! gdb's `monitor` command.

use std::fmt::Write as _;
use std::sync::Arc;

use super::guest::Guest;
use crate::machine::{Control, Ending};

const HELP: &str = "\
monitor info    engine, and what each CPU does
monitor quit    end the machine
";

/// Answers `monitor`.
#[derive(Debug)]
pub(super) struct Monitor {
    pub(super) engine: &'static str,
    pub(super) control: Arc<Control>,
}

impl Monitor {
    /// Does what `command` says; the answer.
    pub(super) fn answer(&self, command: &str, guest: &mut Guest) -> String {
        match command.trim() {
            "info" => self.info(guest),
            "quit" => {
                end(&self.control);
                "the machine ends\n".into()
            }
            "" | "help" => HELP.into(),
            other => format!("There is no command `{}`. There are:\n{HELP}", other.escape_debug()),
        }
    }

    fn info(&self, guest: &mut Guest) -> String {
        let mut text = format!("engine {}, {} CPUs\n", self.engine, guest.cpus());
        for cpu in 0..guest.cpus() {
            let _ = match guest.state(cpu) {
                Ok(state) => writeln!(
                    text,
                    "CPU {cpu}: {:?} at {:#x}, privilege {}, CR3 {:#x}",
                    state.activity,
                    state.regs.rip,
                    state.system.cs.selector & 3,
                    state.system.cr3
                ),
                Err(e) => writeln!(text, "CPU {cpu}: {e}"),
            };
        }
        text
    }
}

/// The user wants the machine to end. If its kernel has panicked, that stays the verdict.
pub(super) fn end(control: &Control) {
    control.end(if control.panicked() { Ending::Halted } else { Ending::Stopped(None) });
    control.leash().into_iter().for_each(|leash| leash.release());
}
