//! The x86-64 guest: CPU state, CPUID, boot structures.

pub mod cpuid;
pub mod msr;
pub mod state;
