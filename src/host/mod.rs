//! What the program needs of its host: the event loops, terminals, raw system calls.

pub mod event_loop;
pub mod signal;
