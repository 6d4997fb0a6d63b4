//! gdb's `monitor` command.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::guest::Guest;
use crate::machine::{Control, Ending};

const HELP: &str = "\
monitor info    engine, and what each CPU does
monitor dump    write RAM and registers to the file that belljar's --dump names
monitor quit    end the machine
";

/// Answers `monitor`.
#[derive(Debug)]
pub(super) struct Monitor {
    pub(super) engine: &'static str,
    pub(super) control: Arc<Control>,
    /// The user's file, and no other: whoever reaches the port may not name files.
    pub(super) dump: Option<PathBuf>,
}

impl Monitor {
    /// Does what `command` says; the answer.
    pub(super) fn answer(&self, command: &str, guest: &mut Guest) -> String {
        match command.trim() {
            "info" => self.info(guest),
            "dump" => self.dump(guest),
            "quit" => {
                end(&self.control);
                "the machine ends\n".into()
            }
            "" | "help" => HELP.into(),
            other => format!("There is no command `{}`. There are:\n{HELP}", other.escape_debug()),
        }
    }

    /// Writes the dump, if there is to be one; what to say of it.
    pub(super) fn dump(&self, guest: &mut Guest) -> String {
        match self.dump.as_ref().map(|path| (path, guest.dump(path))) {
            None => "Start belljar with --dump FILE: that is where a dump goes.\n".into(),
            Some((path, Ok(()))) => format!("dump in {}\n", path.display()),
            Some((_, Err(e))) => format!("{}\n", e.with_cause()),
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
