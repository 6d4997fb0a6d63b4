//! The board: what is where in a machine's address space, and its I/O APIC.

pub mod ioapic;
pub mod layout;
