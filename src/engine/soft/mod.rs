//! The software CPU: guest code without hardware virtualisation, on any x86-64 host.
//!
//! An interpreter over decoded blocks. `code/` decodes guest code into operations and finds them again, `run.rs` executes
//! them, `exec/` holds integer instructions, `system/` what kernels use (segments, interrupts, control registers),
//! `vector/` x87 to AVX2 by native thunks, `memory/` paging and RAM, `apic/` the local APIC. Each vCPU is one [`cpu::Cpu`],
//! owned by its thread; what vCPUs share is in `shared.rs`, and other threads reach a vCPU through `attention.rs`.

mod apic;
mod attention;
mod clock;
mod code;
mod cpu;
mod cpuid;
#[cfg(test)]
mod differential;
mod exec;
mod fault;
mod flags;
mod memory;
mod msi;
mod pvclock;
mod registers;
mod run;
mod shared;
mod system;
#[cfg(test)]
mod testing;
mod vector;
mod width;
