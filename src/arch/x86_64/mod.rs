//! The x86-64 guest: CPU state, CPUID, boot structures.

pub mod boot;
pub mod cpuid;
pub mod gdt;
pub mod level;
pub mod msr;
pub mod page_table;
pub mod paging;
pub mod state;
pub mod walk;
