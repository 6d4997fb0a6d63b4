//! What is particular to a guest architecture, as plain data without engine types.

pub mod x86_64;
