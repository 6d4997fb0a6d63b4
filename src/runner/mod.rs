//! Tests of kernels: `belljar test`, and the same for programs. Each test runs in a machine of its own.
//!
//! | file | what it is |
//! | --- | --- |
//! | `config` | belljar.toml: which tests there are, on which kernels and machines; which of them run |
//! | `console` | lines out of what consoles print, and what the kernel puts before its messages |
//! | `ktap` | results of cases within what a test prints, and KTAP of our own |
//! | `coverage` | which lines of the kernel ran, out of the guest |
//! | `outcome` | what came of tests: plain data that all reports are made from |
//! | `splat` | complaints of kernels: found, named, judged |
//! | `taint` | what the kernel holds against itself |
//! | `report` | reports: JUnit, JSON, KCIDB, HTML, for CI services, on the terminal |

mod all;
mod attempt;
mod backtrace;
pub mod config;
pub mod console;
mod consoles;
mod coverage;
mod judge;
mod keeper;
mod kselftest;
pub mod ktap;
mod kunit;
pub mod coverage;
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
pub mod taint;
