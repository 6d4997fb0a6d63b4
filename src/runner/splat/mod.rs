//! Complaints of kernels (splats) in what a console prints: found, put together from their first line to the last,
//! named so that the same fault has the same title, and judged.
//!
//! | file | what it is |
//! | --- | --- |
//! | `patterns` | how reports begin, what they are called, where they end: a table |
//! | `machinery` | functions that report a fault and are not at fault: a table |
//! | `shapes` | what the lines of a report look like |
//! | `title` | names without what differs from run to run |
//! | `report` | one report that is being printed |
//! | `scanner` | which line belongs to which report |
//! | `policy` | what a report does to its test |
//!
//! A scanner holds a bounded number of reports of bounded length, whatever a guest prints.

mod machinery;
mod patterns;
mod policy;
mod report;
#[cfg(any(test, feature = "testkit"))]
pub(crate) mod samples;
mod scanner;
mod shapes;
#[cfg(test)]
mod tests;
mod title;

pub use policy::{Ignore, Policy};
pub use scanner::Scanner;
pub(super) use shapes::certain_function;
