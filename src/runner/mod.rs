//! Tests of kernels: `belljar test`, and the same for programs. Each test runs in a machine of its own.
//!
//! | file | what it is |
//! | --- | --- |
//! | `console` | lines out of what consoles print, and what the kernel puts before its messages |
//! | `outcome` | what came of tests: plain data that all reports are made from |
//! | `splat` | complaints of kernels: found, named, judged |
//! | `symbols` | places in the source for what is in traces |
//! | `taint` | what the kernel holds against itself |

pub mod console;
pub mod outcome;
pub mod splat;
pub mod symbols;
pub mod taint;
