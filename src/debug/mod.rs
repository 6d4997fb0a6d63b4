//! A debugger outside of the guest: gdb attached to a running machine, on every engine that can stop its vCPUs
//! (`engine::debug`). See docs/debug.md.
//!
//! | file | does |
//! | --- | --- |
//! | `server.rs` | the thread `debug`: waits for gdb, and for a guest that dies |
//! | `session.rs` | one connection |
//! | `target.rs`, `registers.rs`, `monitor.rs` | gdb's protocol, its view of a CPU, its `monitor` command |
//! | `dump/`, `requests.rs` | core dumps; those that other threads ask for |
//! | `guest.rs`, `memory.rs`, `points.rs` | the stopped machine, its memory by linear addresses, breakpoints |
//!
//! gdb's packets are trusted no more than other input: what is wrong with them ends the session, after which the machine
//! goes on.

mod address;
mod dump;
mod guest;
mod memory;
mod monitor;
mod points;
mod registers;
mod requests;
mod server;
mod session;
mod target;

use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

pub use self::dump::Draft;

use self::address::Listener;
use self::requests::Requests;
use self::server::{Server, Shared};
use crate::engine;
use crate::machine::Machine;
use crate::machine::cpus::NoAnswer;
use crate::machine::leash::{Break, Leash};
use crate::spec::{DebugAddress, MachineSpec};

/// A machine cannot be debugged.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Error {
    #[error("Cannot wait for gdb at {0}")]
    Listen(DebugAddress, #[source] std::io::Error),
    #[error("this engine cannot stop its CPUs for a debugger")]
    Unable,
    #[error(transparent)]
    NoCpu(#[from] NoAnswer),
    #[error(transparent)]
    Engine(#[from] engine::Error),
    #[error("what gdb said makes no sense: {0}")]
    Protocol(String),
    #[error("Cannot write the dump {}", .0.display())]
    Dump(PathBuf, #[source] std::io::Error),
    #[error(transparent)]
    File(std::io::Error),
    #[error("the machine has ended")]
    Ended,
    #[error("Cannot {0}")]
    Host(&'static str, #[source] std::io::Error),
}

impl Error {
    /// What happened and why, on one line.
    pub fn with_cause(&self) -> String {
        std::error::Error::source(self).map_or_else(|| self.to_string(), |cause| format!("{self}: {cause}"))
    }
}

/// Serves gdb as the specification says. To be dropped before the machine.
#[derive(Debug)]
pub struct Debugger {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    notices: Vec<String>,
}

impl Debugger {
    /// For `machine`, which has not been started yet; none if `spec` wants none.
    pub fn start(machine: &Machine, spec: &MachineSpec) -> Result<Option<Self>, Error> {
        let wanted = spec.gdb.is_some() || spec.gdb_on_crash.is_some() || spec.dump.is_some();
        wanted.then(|| Self::on_request(machine, spec)).transpose()
    }

    /// The same for a machine of which somebody may want a dump at any time, see [`Debugger::dumps`].
    pub fn on_request(machine: &Machine, spec: &MachineSpec) -> Result<Self, Error> {
        let listen = |address: &DebugAddress| {
            let listener = Listener::new(address).map_err(|e| Error::Listen(address.clone(), e))?;
            let name = listener.name(address);
            Ok::<_, Error>((listener, name))
        };
        let at_start = spec.gdb.as_ref().map(listen).transpose()?;
        let on_crash = spec.gdb_on_crash.as_ref().map(listen).transpose()?;
        let leash = Leash::new(machine.cpus().remote(), on_crash.is_some() || spec.dump.is_some());
        let leash = Arc::new(leash.map_err(|e| Error::Host("create an eventfd", e))?);
        let control = machine.control().clone();
        control.set_leash(leash.clone());
        if at_start.is_some() {
            leash.begin_break(Break::Debugger);
            leash.cpus().stop();
        }
        let notice = |(_, name): &(Listener, String)| format!("waiting for gdb: target remote {name}");
        let notices = at_start.iter().map(notice).collect();
        let shared = Arc::new(Shared { leash, control, requests: Requests::default(), quit: AtomicBool::new(false) });
        let server = Server {
            shared: shared.clone(),
            ram: machine.ram().clone(),
            engine: machine.engine(),
            dump: spec.dump.clone(),
            waits: at_start.is_some(),
            on_crash: on_crash.as_ref().map(|(_, name)| name.clone()),
            listeners: at_start.into_iter().chain(on_crash).map(|(listener, _)| listener).collect(),
        };
        let thread = std::thread::Builder::new().name("debug".into()).spawn(move || server.run());
        let thread = thread.map_err(|e| Error::Host("start a thread", e))?;
        Ok(Self { shared, thread: Some(thread), notices })
    }

    /// What the user is to be told before the machine starts, a line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// By what dumps of the machine can be had.
    pub fn dumps(&self) -> Dumps {
        Dumps(self.shared.clone())
    }
}

/// Writes core dumps of a machine that runs; from any thread, however long this lives.
#[derive(Debug, Clone)]
pub struct Dumps(Arc<Shared>);

impl Dumps {
    /// Writes one to `file`, which is empty. The machine stands still meanwhile, then goes on; one that stands still for
    /// gdb, or because its guest died, stays so. The dump is broken off when it is no longer `wanted`, and when the machine
    /// ends: then it is not complete.
    pub fn write(&self, file: File, wanted: impl Fn() -> bool + Send + 'static) -> Result<(), Error> {
        let answer = self.0.requests.add(file, Box::new(wanted));
        self.0.leash.wake();
        answer.recv().unwrap_or(Err(Error::Ended))
    }
}

impl Drop for Debugger {
    fn drop(&mut self) {
        self.shared.quit.store(true, Ordering::Release);
        self.shared.leash.wake();
        // A thread that panicked has said so on its own.
        self.thread.take().map(JoinHandle::join);
    }
}
