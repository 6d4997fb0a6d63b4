//! The thread that attends to the agent of one guest: waits for it, starts the command, waits for its end, and asks the
//! guest to power off. It tells the watching thread by [`Guest::note`], and ends when the machine does.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, poll};

use super::attendant::Attendant;
use super::channel::Channel;
use super::guest::Guest;
use crate::agent::{self, Agent, Exec, Io, Size};
use crate::host::terminal;
use crate::machine::Ending;

/// What a session shall do.
pub(super) struct Session {
    pub(super) guest: Arc<Guest>,
    pub(super) channel: Channel,
    /// None: the machine is there for other commands.
    pub(super) exec: Option<Exec>,
    pub(super) io: Io,
    pub(super) attendant: Option<Box<dyn Attendant>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("exec", &self.exec).finish_non_exhaustive()
    }
}

/// What ended a session before its command did.
enum Cut {
    /// The machine ended, and with it everything else.
    MachineEnded,
    /// The agent is gone.
    Lost(String),
    /// The guest or the host cannot do what is wanted.
    Failed(String),
}

impl From<agent::Error> for Cut {
    fn from(error: agent::Error) -> Self {
        match error {
            agent::Error::Gone(why) => Self::Lost(why),
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<io::Error> for Cut {
    fn from(error: io::Error) -> Self {
        Self::Failed(format!("cannot reach the agent in the guest: {error}"))
    }
}

impl Session {
    /// Starts the thread.
    pub(super) fn start(self) -> io::Result<JoinHandle<()>> {
        std::thread::Builder::new().name("session".into()).spawn(move || {
            let guest = self.guest.clone();
            match self.run() {
                Ok(()) | Err(Cut::MachineEnded) => {}
                Err(Cut::Lost(why)) => guest.note(|progress| progress.lost = Some((Instant::now(), why))),
                Err(Cut::Failed(why)) => guest.control().end(Ending::Failed(why)),
            }
        })
    }

    fn run(mut self) -> Result<(), Cut> {
        let guest = &self.guest;
        let stream = self.channel.connect(guest.control())?.ok_or(Cut::MachineEnded)?;
        let agent = Agent::connect(stream)?;
        let ready = agent.ready(None)?;
        guest.set_agent(agent, ready);
        let Some(exec) = &self.exec else { return Ok(()) };
        if let Some(attendant) = &mut self.attendant {
            attendant.before(guest.agent()?);
        }
        let process = guest.agent()?.exec(exec, self.io)?;
        if let Some((_, at)) = process.started(None)? {
            guest.note(|progress| progress.started = Some(at));
        }
        let over = process.as_fd().try_clone_to_owned()?;
        *guest.process() = Some(process);
        until_over(guest, over.as_fd(), exec.terminal.is_some())?;
        let Some(process) = guest.process().take() else { return Ok(()) };
        let outcome = process.wait(None);
        let first_output = process.first_output();
        guest.note(|progress| progress.first_output = first_output);
        let (ended, outcome) = (Instant::now(), outcome?);
        if let Some(attendant) = &mut self.attendant {
            attendant.after(guest.agent()?, &outcome);
        }
        guest.note(|progress| (progress.outcome, progress.over) = (Some((ended, outcome)), Some(Instant::now())));
        // A guest that cannot be asked is ended by the watching thread.
        let _ = guest.agent()?.shutdown();
        Ok(())
    }
}

/// Waits until the command has ended; tells it of the terminal's size meanwhile.
fn until_over(guest: &Guest, over: impl AsFd, on_terminal: bool) -> io::Result<()> {
    let resizes = if on_terminal { Some(terminal::resizes()?) } else { None };
    loop {
        let mut fds = vec![PollFd::new(&over, PollFlags::IN)];
        fds.extend(resizes.map(|resizes| PollFd::new(resizes, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if fds.first().is_some_and(|fd| !fd.revents().is_empty()) {
            return Ok(());
        }
        // Whoever is faster takes the notice: there is one terminal.
        let _ = resizes.map(|resizes| rustix::io::read(resizes, &mut [0; 8]));
        if let (Some(size), Some(process)) = (window_size(), guest.process().as_ref()) {
            // A command that is gone needs no size.
            let _ = process.resize(size);
        }
    }
}

/// Size of the user's terminal.
pub fn window_size() -> Option<Size> {
    let size = terminal::window_size(io::stdin()).or_else(|| terminal::window_size(io::stdout()))?;
    Some(Size { columns: size.columns, rows: size.rows })
}
