//! The thread `debug`: waits for gdb, and for a guest that dies.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::Error;
use super::address::Listener;
use super::guest::{Guest, states};
use super::memory::Memory;
use super::monitor::{self, Monitor};
use super::requests::{Request, Requests};
use super::session::{self, Around, End};
use super::target::Debugged;
use crate::host::contain::contain;
use crate::machine::Control;
use crate::machine::leash::{Break, Leash};
use crate::machine::verdict::Verdict;
use crate::mem::Ram;

/// What the thread shares with whom it serves.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) leash: Arc<Leash>,
    pub(super) control: Arc<Control>,
    pub(super) requests: Requests,
    /// The machine is about to be taken apart.
    pub(super) quit: AtomicBool,
}

impl Around for Shared {
    fn wake_fd(&self) -> &OwnedFd {
        self.leash.wake_fd()
    }

    fn awake(&self) {
        self.leash.awake();
    }

    fn ended(&self) -> Option<u8> {
        let ending = self.control.ending().filter(|_| self.quit.load(Ordering::Acquire))?;
        Some(Verdict::of(ending, &self.control).exit_code())
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.take()
    }

    fn goes_on(&self) -> bool {
        !self.quit.load(Ordering::Acquire)
    }
}

/// What the thread works with.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) shared: Arc<Shared>,
    pub(super) ram: Ram,
    pub(super) engine: &'static str,
    pub(super) listeners: Vec<Listener>,
    /// Nothing runs before gdb was there.
    pub(super) waits: bool,
    /// File for a dump of a guest that died.
    pub(super) dump: Option<PathBuf>,
    /// A dead guest waits for gdb, at this address.
    pub(super) on_crash: Option<String>,
}

impl Server {
    /// All that the thread does.
    pub(super) fn run(mut self) {
        let mut waits = std::mem::take(&mut self.waits);
        while self.shared.goes_on() {
            if !waits && self.shared.leash.take_crash() {
                waits = self.crashed();
                continue;
            }
            self.dumps(waits);
            if let Some(client) = self.next_client() {
                self.serve(client);
                waits = false;
            }
        }
    }

    /// The guest has died, and its CPUs stop. Whether it is kept until gdb was there.
    fn crashed(&self) -> bool {
        let leash = &self.shared.leash;
        if let Err(e) = self.dump() {
            tracing::warn!("{}", e.with_cause());
        }
        if let Some(address) = &self.on_crash {
            tracing::warn!("the guest has died and is kept for gdb: target remote {address}");
            return true;
        }
        leash.release();
        leash.cpus().allow(None);
        false
    }

    /// All CPUs stop, and the dump is written, if there is to be one.
    fn dump(&self) -> Result<(), Error> {
        let mut guest = Guest::stop(&self.shared.leash, self.ram.clone())?;
        let Some(path) = &self.dump else { return Ok(()) };
        guest.dump(path)?;
        tracing::warn!("the guest has died: dump in {}", path.display());
        Ok(())
    }

    /// Writes the dumps that others want. A machine that does not stand still for gdb goes on after them.
    fn dumps(&self, stands: bool) {
        let requests = self.shared.requests();
        if requests.is_empty() {
            return;
        }
        let Shared { leash, control, .. } = &*self.shared;
        leash.begin_break(Break::Dump);
        leash.cpus().stop();
        let written = contain("the debugger", || {
            let memory = Memory::new(self.ram.clone());
            for request in requests {
                request.serve(&memory, states(leash), &|| self.shared.goes_on());
            }
        });
        written.unwrap_or_else(|panic| tracing::warn!("{panic}"));
        // A guest that has died meanwhile stays as it is until that was looked at.
        if !stands && !leash.holds() {
            leash.cpus().allow(None);
        }
        leash.end_break(Break::Dump);
        control.wake();
    }

    /// Waits until somebody connects, or something else is to be looked at.
    fn next_client(&self) -> Option<OwnedFd> {
        let leash = &self.shared.leash;
        let mut fds = vec![PollFd::new(leash.wake_fd(), PollFlags::IN)];
        fds.extend(self.listeners.iter().map(|listener| PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN)));
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => tracing::warn!("waiting for gdb: {e}"),
        }
        leash.awake();
        self.listeners.iter().find_map(Listener::accept)
    }

    /// Serves gdb; then the machine goes on.
    fn serve(&self, client: OwnedFd) {
        let Shared { leash, control, .. } = &*self.shared;
        leash.begin_break(Break::Debugger);
        let end = contain("the debugger", || self.session(client));
        leash.end_break(Break::Debugger);
        match end {
            Ok(Ok(End::Killed)) => monitor::end(control),
            Ok(Ok(End::Detached | End::Ended)) => {}
            Ok(Err(e)) => tracing::warn!("gdb is cut off: {}", e.with_cause()),
            Err(panic) => {
                tracing::warn!("{panic}");
                leash.release();
                leash.cpus().allow(None);
            }
        }
        control.wake();
    }

    fn session(&self, client: OwnedFd) -> Result<End, Error> {
        let guest = Guest::stop(&self.shared.leash, self.ram.clone())?;
        let monitor = Monitor { engine: self.engine, control: self.shared.control.clone(), dump: self.dump.clone() };
        let mut debugged = Debugged { guest, monitor };
        let end = session::serve(client, &mut debugged, &*self.shared);
        if !matches!(end, Ok(End::Killed)) {
            debugged.guest.let_go();
        }
        end
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody shall wait for a thread that is gone.
        self.shared.requests.close();
    }
}
