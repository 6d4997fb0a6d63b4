//! Colours on terminals.

use std::io::IsTerminal;

use crate::runner::outcome::Status;

/// Whether there are colours.
#[derive(Debug, Clone, Copy)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// No colours.
    pub const NONE: Self = Self { on: false };

    /// For standard error: colours if it is a terminal that has some, and nobody set `NO_COLOR` (no-color.org).
    pub fn of_stderr() -> Self {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let dumb = set("TERM").is_none_or(|terminal| terminal == "dumb");
        Self { on: std::io::stderr().is_terminal() && !dumb && set("NO_COLOR").is_none() }
    }

    /// Text in the colour of a status.
    pub(super) fn status(self, status: Status, text: &str) -> String {
        let colour = match status {
            Status::Pass => "32",
            Status::Skip | Status::Xfail => "36",
            Status::Fail => "31",
            Status::Timeout => "33",
            Status::Crash => "1;31",
            Status::Error => "35",
        };
        self.with(colour, text)
    }

    /// Text that stands out.
    pub(super) fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// Text that stands back.
    pub(super) fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.on { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_string() }
    }

    #[cfg(test)]
    pub(super) const ALL: Self = Self { on: true };
}
