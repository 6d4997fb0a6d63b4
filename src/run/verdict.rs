//! From the end of a machine that ran a command, and what is known of that, to the one verdict.

use std::time::Instant;

use super::guest::Progress;
use crate::agent::Outcome;
use crate::machine::verdict::Verdict;
use crate::machine::{Control, Ending};

/// The verdict. A command that ended counts before whatever ended the machine afterwards, but a kernel or CPU that died
/// counts before everything.
pub(super) fn of_run(ending: Ending, control: &Control, progress: &Progress) -> Verdict {
    let verdict = Verdict::of(ending, control);
    match (&verdict, &progress.outcome) {
        (Verdict::Panicked { .. } | Verdict::CpuDied { .. }, _) => verdict,
        (_, Some((_, outcome))) => of_command(outcome),
        _ => without_command(verdict, progress),
    }
}

/// The verdict of a command that ended like this.
pub fn of_command(outcome: &Outcome) -> Verdict {
    match outcome.clone() {
        Outcome::Exited(status) => Verdict::Finished { status },
        Outcome::Signalled(signal) => Verdict::Killed { signal },
        Outcome::NotFound(reason) => Verdict::NotFound { reason },
        Outcome::NotExecutable(reason) => Verdict::NotExecutable { reason },
        Outcome::Failed(reason) => Verdict::Failed { reason },
    }
}

fn without_command(verdict: Verdict, progress: &Progress) -> Verdict {
    let asked: Option<Instant> = progress.stopped;
    match verdict {
        Verdict::PoweredOff | Verdict::Rebooted | Verdict::Halted if asked.is_some() => {
            Verdict::Signalled { signal: libc::SIGTERM }
        }
        Verdict::PoweredOff | Verdict::Rebooted | Verdict::Halted | Verdict::Exited { .. } => {
            Verdict::NoVerdict { how: verdict.to_string() }
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::GuestEvent;

    fn code(ending: Ending, outcome: Option<Outcome>) -> u8 {
        let progress = Progress { outcome: outcome.map(|o| (Instant::now(), o)), ..Progress::default() };
        of_run(ending, &Control::new().unwrap(), &progress).exit_code()
    }

    #[test]
    fn every_end_has_one_code() {
        for (outcome, expected) in [
            (Outcome::Exited(0), 0),
            (Outcome::Exited(7), 7),
            (Outcome::Signalled(9), 137),
            (Outcome::NotFound("x".into()), 127),
            (Outcome::NotExecutable("x".into()), 126),
            (Outcome::Failed("no such user".into()), 125),
        ] {
            assert_eq!(code(Ending::PowerOff, Some(outcome)), expected);
        }
        assert_eq!(code(Ending::Stopped(Some(2)), Some(Outcome::Exited(3))), 3, "it had ended before");
        for (ending, expected) in [
            (Ending::PowerOff, 123),
            (Ending::Reset, 123),
            (Ending::Halted, 123),
            (Ending::ExitPort(0), 123),
            (Ending::CpuDied(String::new()), 121),
            (Ending::BootTimedOut(60), 122),
            (Ending::TimedOut, 124),
            (Ending::Silent(1), 124),
            (Ending::Failed(String::new()), 125),
            (Ending::Stopped(Some(15)), 143),
        ] {
            assert_eq!(code(ending.clone(), None), expected, "{ending:?}");
        }
        assert_eq!(code(Ending::CpuDied(String::new()), Some(Outcome::Exited(0))), 121);
    }

    #[test]
    fn panics_count_before_the_command_and_a_wished_end_is_none_of_the_guests() {
        let control = Control::new().unwrap();
        let done = Progress { outcome: Some((Instant::now(), Outcome::Exited(0))), ..Progress::default() };
        let stopped = Progress { stopped: Some(Instant::now()), ..Progress::default() };
        assert_eq!(of_run(Ending::PowerOff, &control, &stopped).exit_code(), 143);
        control.notify()(GuestEvent::Panicked);
        assert_eq!(of_run(Ending::Reset, &control, &done).exit_code(), 120);
    }
}
