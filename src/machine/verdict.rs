//! What came of a run, as text, as JSON, and as exit code.

use serde::Serialize;

use crate::machine::control::{Control, Ending};

/// Exit code when belljar itself failed.
pub const EXIT_FAILED: u8 = 125;

/// The one result of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// The guest switched its power off.
    PoweredOff,
    /// The guest rebooted.
    Rebooted,
    /// All CPUs halted with interrupts off.
    Halted,
    /// The guest ended the run with a status through the exit port.
    Exited {
        /// What it wrote.
        status: u8,
    },
    /// The guest kernel panicked.
    Panicked {
        /// What it said, if a console showed it.
        message: Option<String>,
    },
    /// A virtual CPU cannot go on.
    CpuDied {
        /// Registers, code, where.
        report: String,
    },
    /// The command in the guest ended by itself.
    Finished {
        /// Its status.
        status: u8,
    },
    /// A signal killed the command in the guest.
    Killed {
        /// Its number.
        signal: u8,
    },
    /// There is no such command in the guest.
    NotFound {
        /// What was looked for, and where.
        reason: String,
    },
    /// The command in the guest cannot be executed.
    NotExecutable {
        /// Which, and why.
        reason: String,
    },
    /// The guest ended, but its command did not.
    NoVerdict {
        /// How it ended.
        how: String,
    },
    /// The guest agent did not answer in time.
    BootTimedOut {
        /// What the time was.
        seconds: u64,
    },
    /// Nothing was printed for too long.
    Silent {
        /// For how long.
        seconds: u64,
    },
    /// The time limit passed.
    TimedOut,
    /// The user quit.
    Quit,
    /// A signal ended the run.
    Signalled {
        /// Its number.
        signal: i32,
    },
    /// The host failed.
    Failed {
        /// How.
        reason: String,
    },
}

impl Verdict {
    /// The verdict of a machine that ended with `ending`.
    pub fn of(ending: Ending, control: &Control) -> Self {
        match ending {
            _ if Self::is_panic(&ending, control) => {
                Self::Panicked { message: control.panic_message().map(str::to_string) }
            }
            Ending::PowerOff => Self::PoweredOff,
            Ending::Reset => Self::Rebooted,
            Ending::Halted => Self::Halted,
            Ending::ExitPort(status) => Self::Exited { status },
            Ending::CpuDied(report) => Self::CpuDied { report },
            Ending::TimedOut => Self::TimedOut,
            Ending::BootTimedOut(seconds) => Self::BootTimedOut { seconds },
            Ending::Silent(seconds) => Self::Silent { seconds },
            Ending::Stopped(None) => Self::Quit,
            Ending::Stopped(Some(signal)) => Self::Signalled { signal },
            Ending::Failed(reason) => Self::Failed { reason },
        }
    }

    /// Whether the guest kernel's panic is what counts, and not how the machine ended thereafter.
    fn is_panic(ending: &Ending, control: &Control) -> bool {
        let after = matches!(
            ending,
            Ending::PowerOff
                | Ending::Reset
                | Ending::Halted
                | Ending::TimedOut
                | Ending::BootTimedOut(_)
                | Ending::Silent(_)
        );
        after && control.panicked()
    }

    /// The process's exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::PoweredOff | Self::Rebooted | Self::Halted | Self::Quit => 0,
            Self::Exited { status } | Self::Finished { status } => *status,
            Self::Killed { signal } => 128u8.saturating_add(*signal),
            Self::Panicked { .. } => 120,
            Self::CpuDied { .. } => 121,
            Self::BootTimedOut { .. } => 122,
            Self::NoVerdict { .. } => 123,
            Self::TimedOut | Self::Silent { .. } => 124,
            Self::NotExecutable { .. } => 126,
            Self::NotFound { .. } => 127,
            Self::Failed { .. } => EXIT_FAILED,
            Self::Signalled { signal } => 128u8.saturating_add(u8::try_from(*signal).unwrap_or(0)),
        }
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PoweredOff => f.write_str("the guest powered off"),
            Self::Rebooted => f.write_str("the guest rebooted"),
            Self::Halted => f.write_str("the guest halted"),
            Self::Exited { status } => write!(f, "the guest ended with status {status}"),
            Self::Panicked { message: None } => f.write_str("the guest kernel panicked"),
            Self::Panicked { message: Some(message) } => write!(f, "the guest kernel panicked: {message}"),
            Self::CpuDied { report } => write!(f, "the virtual CPU died\n{report}"),
            Self::Finished { status } => write!(f, "the command ended with status {status}"),
            Self::Killed { signal } => write!(f, "signal {signal} killed the command"),
            Self::NotFound { reason } => f.write_str(reason),
            Self::NotExecutable { reason } => write!(f, "cannot be executed in the guest: {reason}"),
            Self::NoVerdict { how } => write!(f, "{how} before its command ended"),
            Self::BootTimedOut { seconds } => {
                write!(f, "the guest did not start within {seconds} s; give it more with --boot-timeout")
            }
            Self::Silent { seconds } => write!(f, "time limit reached: the guest printed nothing for {seconds} s"),
            Self::TimedOut => f.write_str("time limit reached: the guest was still running"),
            Self::Quit => f.write_str("quit"),
            Self::Signalled { signal } => write!(f, "ended by signal {signal}"),
            Self::Failed { reason } => write!(f, "cannot go on: {reason}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::GuestEvent;

    #[test]
    fn every_ending_has_its_code() {
        let control = Control::new().unwrap();
        let code = |ending| Verdict::of(ending, &control).exit_code();
        assert_eq!([Ending::PowerOff, Ending::Reset, Ending::Halted].map(code), [0; 3]);
        assert_eq!(code(Ending::ExitPort(42)), 42);
        assert_eq!(code(Ending::CpuDied("triple fault".into())), 121);
        assert_eq!(code(Ending::TimedOut), 124);
        assert_eq!((code(Ending::BootTimedOut(60)), code(Ending::Silent(5))), (122, 124));
        assert_eq!(code(Ending::Failed("no memory".into())), 125);
        assert_eq!((code(Ending::Stopped(None)), code(Ending::Stopped(Some(15)))), (0, 143));
        control.notify()(GuestEvent::Panicked);
        assert_eq!([Ending::PowerOff, Ending::Reset, Ending::Halted, Ending::TimedOut].map(code), [120; 4]);
        assert_eq!(code(Ending::CpuDied(String::new())), 121, "a triple fault is no panic");
    }

    #[test]
    fn reports_name_the_verdict() {
        let json = |verdict: Verdict| serde_json::to_string(&verdict).unwrap();
        assert_eq!(json(Verdict::PoweredOff), r#"{"verdict":"powered-off"}"#);
        assert_eq!(json(Verdict::Exited { status: 3 }), r#"{"verdict":"exited","status":3}"#);
    }
}
