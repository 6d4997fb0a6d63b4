//! Tests of kernels: `belljar test`, and the same for programs. Each test runs in a machine of its own.
//!
//! | file | what it is |
//! | --- | --- |
//! | `config` | belljar.toml: which tests there are, on which kernels and machines; which of them run |
//! | `console` | lines out of what consoles print, and what the kernel puts before its messages |
//! | `ktap` | results of cases within what a test prints, and KTAP of our own |
//! | `outcome` | what came of tests: plain data that all reports are made from |

pub mod config;
pub mod console;
pub mod ktap;
pub mod outcome;
