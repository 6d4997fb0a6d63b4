//! The host's side of the agent that belljar starts in a guest (`guest/agent`): commands, their input and output, files,
//! and the end of the guest. docs/agent.md describes what the two say to each other.
//!
//! [`Agent`] is a connection over any socket: what carries it (vsock, a virtio port, a serial port) is not known here.
//! The guest is not trusted: what it sends is bounded, and a message that makes no sense ends the connection.
//!
//! # Threads
//!
//! | thread | does |
//! | --- | --- |
//! | `agent-read` | takes messages apart; never waits for anything but the guest |
//! | `agent-write` | sends what was queued |
//! | `agent-stdin`, `-stdout`, `-stderr` | of each process: wait for the user's files (`pump`) |
//!
//! When the machine ends its side of the socket is closed: every call that waits then returns [`Error::Gone`].
//!
//! Lock order: a session's state, then the queue of what is to be sent.

mod connection;
mod copy;
mod io;
mod process;
/// What both sides say: shared with the agent.
#[path = "../../guest/agent/protocol/mod.rs"]
pub mod protocol;
mod pump;
mod session;
#[cfg(test)]
mod tests;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

pub use io::{Input, Io, Output};
pub use process::Process;
pub use protocol::{
    Access, Address, Channel, Exec, Mount, Network, Outcome, Plan, Ready, Root, Size, Task, plan::PATH as PLAN_PATH,
};

use connection::Connection;
use protocol::Message;

/// The agent: a static program, to be `/init` of an initramfs that also has a [`Plan`] at [`PLAN_PATH`].
pub static PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/belljar-agent"));

/// Something went wrong between host and guest.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The connection ended: the machine was stopped, or the guest misbehaved.
    #[error("the agent in the guest is gone: {0}")]
    Gone(String),
    /// The guest could not carry out its plan; its own words.
    #[error("the guest cannot be set up: {0}")]
    Failed(String),
    /// There was no answer in time.
    #[error("the agent in the guest did not answer in time")]
    TimedOut,
    /// A command was wanted before the guest was ready.
    #[error("the guest is not ready for commands")]
    NotReady,
    /// Arguments and environment do not fit.
    #[error("the command is too long: {0} bytes with its environment, at most {limit} fit", limit = protocol::TO_GUEST)]
    TooLong(usize),
    /// A copy was not made.
    #[error("{0}")]
    Copy(String),
    /// The host refused something.
    #[error("cannot {0}: {1}")]
    Host(&'static str, Arc<std::io::Error>),
}

/// A guest's agent. Dropping it closes the connection, and a guest without its host powers off.
#[derive(Debug)]
pub struct Agent {
    connection: Arc<Connection>,
}

impl Agent {
    /// Speaks to the agent at the other end of `stream`, which need not be there yet.
    pub fn connect(stream: UnixStream) -> Result<Self, Error> {
        Ok(Self { connection: Connection::start(stream)? })
    }

    /// Waits until the guest has carried out its plan.
    pub fn ready(&self, deadline: Option<Instant>) -> Result<Ready, Error> {
        self.connection.ready(deadline)
    }

    /// Starts a command. Whether it has input is decided by `io`.
    pub fn exec(&self, exec: &Exec, io: Io) -> Result<Process, Error> {
        Process::start(&self.connection, exec, io)
    }

    /// Copies a file or tree of the host into the guest: into `to` if that is a directory, else as `to`. Belongs to root
    /// there, or to `user`.
    pub fn copy_in(&self, from: &Path, to: &Path, user: Option<&str>) -> Result<(), Error> {
        copy::into_guest(self, from, to, user)
    }

    /// Copies a file or tree of the guest to the host: into `to` if that is a directory, else as `to`.
    pub fn copy_out(&self, from: &Path, to: &Path) -> Result<(), Error> {
        copy::out_of_guest(self, from, to)
    }

    /// Asks the guest to end everything, to write back its disks and to power off. The machine's end shows that it did.
    pub fn shutdown(&self) -> Result<(), Error> {
        self.connection.send(0, Message::Shutdown)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.connection.end();
    }
}
