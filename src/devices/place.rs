//! The key `to` of consoles and of ports for data: where they lead on the host.

use super::options::{Key, OptionError, Options};
use crate::host::chardev::{TARGETS, Target};

/// Of consoles.
pub(super) const OF_A_CONSOLE: Key =
    Key { name: "to", value: "stdio|stderr|file=PATH|pty|socket=PATH|null|off", about: "where it leads (stdio)" };
/// Of what carries data.
pub(super) const OF_A_PORT: Key =
    Key { name: "to", value: "file=PATH|pty|socket=PATH", about: "where it leads on the host" };

/// None: there shall be no such console.
pub(super) fn of_a_console(options: &mut Options) -> Result<Option<Target>, OptionError> {
    match options.text("to") {
        None => Ok(Some(Target::Stdio)),
        Some("off") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| options.error(format!("to={text}: say {TARGETS} or off"))),
    }
}

/// Standard input and output are for consoles, and nobody is ever connected to nowhere.
pub(super) fn of_a_port(options: &mut Options) -> Result<Target, OptionError> {
    let text = options.required("to")?;
    match text.parse() {
        Ok(Target::Stdio | Target::Stderr | Target::Null) | Err(_) => {
            Err(options.error(format!("to={text}: say file=PATH, pty or socket=PATH")))
        }
        Ok(target) => Ok(target),
    }
}
