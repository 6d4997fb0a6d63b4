//! Tests of kernels: `belljar test`, and the same for programs. Each test runs in a machine of its own.
//!
//! | file | what it is |
//! | --- | --- |
//! | `config` | belljar.toml: which tests there are, on which kernels and machines; which of them run |
//! | `all`, `pool` | all of them, several at a time |
//! | `attempt`, `kselftest`, `kunit` | one of them: its machine, from the start to the judgement |
//! | `consoles`, `output`, `console`, `tail` | reading along what a guest prints |
//! | `ktap` | results of cases within what a test prints, and KTAP of our own |
//! | `splat`, `taint` | complaints of kernels: found, named, judged; what a kernel holds against itself |
//! | `symbols`, `backtrace` | places in the source for them |
//! | `keeper`, `coverage`, `place` | what is taken out of guests, and where it is kept |
//! | `judge` | from what was seen to a status |
//! | `outcome` | what came of tests: plain data that all reports are made from |
//! | `report` | reports: JUnit, JSON, KCIDB, HTML, for CI services, on the terminal |

mod all;
mod attempt;
mod backtrace;
pub mod config;
pub mod console;
mod consoles;
pub mod coverage;
mod judge;
mod keeper;
mod kselftest;
pub mod ktap;
mod kunit;
pub mod outcome;
mod output;
mod place;
mod pool;
pub mod report;
pub mod splat;
pub mod symbols;
mod tail;
mod taint;

pub use all::{Options, run};
pub use place::temporary;
pub use pool::Stop;
