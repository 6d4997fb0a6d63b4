//! belljar: virtual machines from one command.
//!
//! The modules, from the command line down to the host; each uses only those below it:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`spec`] | what a machine shall be: flags, TOML file, library |
//! | [`machine`] | building, running, pausing and ending a machine; verdicts |
//! | [`loader`] | kernels, initial file systems, boot parameters |
//! | [`firmware`] | ACPI tables, power registers |
//! | [`virtio`], [`pci`] | queues, transports, driver-side test kit; configuration space, MSI-X |
//! | [`block`] | disk images: raw, qcow2, snapshots, locks |
//! | [`net`] | networks: tap interfaces |
//! | [`board`] | address map, I/O APIC |
//! | `arch` | guest CPU state, CPUID, boot structures: plain data |
//! | [`engine`] | the boundary between a machine and the CPU that runs it; KVM |
//! | [`bus`], [`irq`], [`mem`] | ports and registers, interrupts, guest RAM |
//! | [`host`] | event loops, terminals, raw system calls |

pub mod arch;
pub mod block;
pub mod board;
pub mod bus;
pub mod cli;
pub mod devices;
pub mod engine;
pub mod firmware;
pub mod host;
pub mod irq;
pub mod loader;
pub mod machine;
pub mod mem;
pub mod net;
pub mod pci;
pub mod spec;
pub mod virtio;
