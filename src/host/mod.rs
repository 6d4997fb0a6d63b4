//! What the program needs of its host: the event loops, terminals, raw system calls.

pub mod alarm;
pub mod cgroup;
pub mod chardev;
pub mod clock;
pub mod contain;
pub mod cpu;
pub mod detach;
pub mod entropy;
pub mod escape;
pub mod event_loop;
pub mod file_lock;
pub mod footprint;
pub mod identity;
pub mod limits;
pub mod log_limit;
pub mod parts;
pub mod register_page;
pub mod seeded;
pub mod signal;
pub mod socket;
pub mod stream;
pub mod survey;
pub mod terminal;
pub mod token_bucket;
pub mod tun;
pub mod vectored;
