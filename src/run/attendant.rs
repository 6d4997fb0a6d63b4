//! Who does more in a guest than to run its command.

use crate::agent::{Agent, Outcome};

/// Attends to one guest, on the thread of its session. The machine's time limits go on meanwhile.
pub trait Attendant: Send {
    /// The guest is ready, its command not yet started.
    fn before(&mut self, agent: &Agent);
    /// The command has ended; the guest powers off when this returns.
    fn after(&mut self, agent: &Agent, outcome: &Outcome);
}
