//! belljar: virtual machines from one command.
//!
//! The modules, from the command line down to the host; each uses only those below it:
//!
//! | module | what it is |
//! | --- | --- |
//! | [`cli`] | the command line |
//! | [`runner`] | tests of kernels: plan, verdicts, reports |
//! | [`run`] | a command in a machine of its own; running machines and how to reach them |
//! | [`spec`] | what a machine shall be: flags, TOML file, library |
//! | [`debug`] | gdb attached to a machine, core dumps of it |
//! | [`agent`] | the host's side of the agent in the guest: commands, files, the end |
//! | [`machine`] | building, running, pausing and ending a machine; verdicts |
//! | [`kernel`] | finding kernels and their modules; what a kernel lacks; kept kernels |
//! | [`devices`] | every device: options, help, construction, behaviour |
//! | [`loader`] | kernels, initial file systems, boot parameters |
//! | [`firmware`] | ACPI tables, power registers |
//! | [`virtio`], [`pci`] | queues, transports, driver-side test kit; configuration space, MSI-X |
//! | [`block`] | disk images: raw, qcow2, snapshots, locks |
//! | [`net`] | networks: tap interfaces, switches, passt; captures |
//! | [`fs`] | directories of the host: a FUSE server |
//! | [`board`] | address map, I/O APIC |
//! | `arch` | guest CPU state, CPUID, boot structures: plain data |
//! | [`engine`] | the boundary between a machine and the CPU that runs it; KVM |
//! | [`bus`], [`irq`], [`mem`] | ports and registers, interrupts, guest RAM |
//! | `fuzz` | fuzz targets, for tests and `fuzz/` only |
//! | [`host`] | event loops, terminals, raw system calls |
//!
//! # Threads
//!
//! | thread | does | never |
//! | --- | --- | --- |
//! | main | builds the machine, then waits for its end, signals, the time limit | touches a device |
//! | `vcpuN` | runs guest code, answers register accesses, (de)activates virtio devices | waits for I/O |
//! | `devices` | one event loop: all device work that does not block | waits for anything but events |
//! | `debug` | serves gdb, writes core dumps | |
//! | `quota` | holds the vCPUs while they are ahead of their quota, where the kernel does not | |
//! | one for each blocking device | an event loop of its own: synchronous disk I/O, shared directories | |
//!
//! # Lock order
//!
//! A thread that holds a lock takes others only further down: a transport's state; a queue's or device's own state; the
//! I/O APIC; interrupt routes of the engine; console streams; the log. The bus is not locked while a device works. An event
//! loop never waits for a vCPU thread; a vCPU thread waits for an event loop only to take a reset device off it, and what
//! runs on loops takes no transport lock.

pub mod agent;
pub mod arch;
pub mod block;
pub mod board;
pub mod bus;
pub mod cli;
pub mod debug;
pub mod devices;
pub mod engine;
pub mod firmware;
pub mod fs;
#[cfg(any(test, feature = "testkit"))]
pub mod fuzz;
pub mod host;
pub mod irq;
pub mod kernel;
pub mod loader;
pub mod machine;
pub mod mem;
pub mod net;
pub mod pci;
pub mod run;
pub mod runner;
pub mod spec;
pub mod virtio;
