//! What the program needs of its host: the event loops, terminals, raw system calls.

pub mod event_loop;
pub mod log_limit;
pub mod signal;
pub mod vectored;
