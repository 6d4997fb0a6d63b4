//! Tests of kernels: `belljar test`, and the same for programs. Each test runs in a machine of its own.
//!
//! | file | what it is |
//! | --- | --- |
//! | `console` | lines out of what consoles print, and what the kernel puts before its messages |
//! | `outcome` | what came of tests: plain data that all reports are made from |
//! | `report` | reports: JUnit, JSON, KCIDB, HTML, for CI services, on the terminal |

pub mod console;
pub mod outcome;
pub mod report;
