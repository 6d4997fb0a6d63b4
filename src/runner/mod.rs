//! Tests of kernels: `belljar test`, and the same for programs. Each test runs in a machine of its own.
//!
//! | file | what it is |
//! | --- | --- |
//! | `console` | lines out of what consoles print, and what the kernel puts before its messages |
//! | `coverage` | which lines of the kernel ran, out of the guest |
//! | `outcome` | what came of tests: plain data that all reports are made from |

pub mod console;
pub mod coverage;
pub mod outcome;
