//! Tests of kernels: `belljar test`, and the same for programs. Each test runs in a machine of its own.
//!
//! | file | what it is |
//! | --- | --- |
//! | `console` | lines out of what consoles print, and what the kernel puts before its messages |
//! | `ktap` | results of cases within what a test prints, and KTAP of our own |
//! | `outcome` | what came of tests: plain data that all reports are made from |

pub mod console;
pub mod ktap;
pub mod outcome;
