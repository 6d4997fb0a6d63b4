//! Fuzz targets: each is a function of bytes that must not panic, hang or use memory without bound, whatever the bytes
//! are. `cargo test` runs them on a few made-up inputs; `fuzz/` puts libFuzzer behind them (`scripts/fuzz`). Compiled
//! for tests and with the feature `testkit` only.
//!
//! | file | what is fuzzed |
//! | --- | --- |
//! | `queues` | virtqueues in memory of any content; requests to every device's handler |
//! | `shares` | requests to the server of shared directories |
//! | `registers` | registers of both transports, PCI configuration space, ports, I/O APIC |
//! | `files` | kernels, initial RAM file systems, disk images |
//! | `kernels` | kernel packages and modules |
//! | `agent` | what the agent in a guest says, files that are copied out of it |
//! | `cpu` | the software CPU: bytes as guest code |
//! | `user_net` | the network of `--net user` |
//! | `texts` | device options, specification files, kernel command lines, suites of tests |
//! | `consoles` | what kernels print: complaints |
//! | `ktap` | results of tests in what a guest prints |

mod agent;
mod consoles;
mod cpu;
mod files;
mod kernels;
mod ktap;
mod queues;
mod registers;
mod shares;
mod texts;
mod user_net;

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, memfd_create};

use crate::host::event_loop::EventLoop;

/// Something that is fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Name for the command line.
    pub name: &'static str,
    /// Handles one input. Panics are findings.
    pub run: fn(&[u8]),
    /// Inputs to start from, beside random ones.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

fn none() -> Vec<Vec<u8>> {
    Vec::new()
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "queue", run: queues::memory, seeds: none },
    Target { name: "disk", run: queues::disk, seeds: none },
    Target { name: "net", run: queues::net, seeds: none },
    Target { name: "user-net", run: user_net::frames, seeds: user_net::seeds },
    Target { name: "console", run: queues::console, seeds: none },
    Target { name: "port", run: queues::port, seeds: none },
    Target { name: "rng", run: queues::rng, seeds: none },
    Target { name: "balloon", run: queues::balloon, seeds: none },
    Target { name: "vsock", run: queues::vsock, seeds: none },
    Target { name: "share", run: shares::share, seeds: none },
    Target { name: "pci", run: registers::pci, seeds: none },
    Target { name: "mmio", run: registers::mmio, seeds: none },
    Target { name: "board", run: registers::board, seeds: none },
    Target { name: "kernel", run: files::kernel, seeds: files::kernels },
    Target { name: "initrd", run: files::initrd, seeds: none },
    Target { name: "image", run: files::image, seeds: files::images },
    Target { name: "package", run: kernels::package, seeds: kernels::packages },
    Target { name: "module", run: kernels::module, seeds: kernels::modules },
    Target { name: "agent", run: agent::frames, seeds: agent::frame_seeds },
    Target { name: "copy", run: agent::files, seeds: agent::file_seeds },
    Target { name: "cpu", run: cpu::code, seeds: cpu::seeds },
    Target { name: "splat", run: consoles::splats, seeds: consoles::splat_seeds },
    Target { name: "ktap", run: ktap::output, seeds: ktap::seeds },
    Target { name: "options", run: texts::options, seeds: texts::option_seeds },
    Target { name: "spec", run: texts::spec, seeds: texts::spec_seeds },
    Target { name: "suite", run: texts::suite, seeds: texts::suite_seeds },
];

/// The target called `name`.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// The bytes of an input, taken one after another; zeros when there are no more.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn number(&mut self, len: usize) -> u64 {
        let mut number = [0; 8];
        number.iter_mut().zip(self.bytes(len.min(8))).for_each(|(to, from)| *to = *from);
        u64::from_le_bytes(number)
    }

    fn byte(&mut self) -> u8 {
        self.number(1) as u8
    }

    fn u16(&mut self) -> u16 {
        self.number(2) as u16
    }

    fn u32(&mut self) -> u32 {
        self.number(4) as u32
    }

    fn u64(&mut self) -> u64 {
        self.number(8)
    }

    /// Less than `limit`, which must not be zero.
    fn below(&mut self, limit: usize) -> usize {
        usize::from(self.u16()) % limit
    }
}

/// A file in memory, and a path by which it can be opened.
fn memory_file(content: &[u8]) -> (File, String) {
    let mut file = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(content).unwrap();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    (file, path)
}

/// One loop for all inputs: starting a thread takes longer than most of them.
fn events() -> &'static EventLoop {
    static EVENTS: OnceLock<EventLoop> = OnceLock::new();
    EVENTS.get_or_init(|| EventLoop::start("fuzz").unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    /// Enough to see that each target works and finds the coarsest mistakes.
    const TIME: Duration = Duration::from_millis(300);
    const LIMIT: Duration = Duration::from_secs(10);

    struct Random(u64);

    impl Random {
        fn next(&mut self) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 11) as usize
        }

        fn input(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
            let mut bytes = match seeds.get(self.next() % (seeds.len() + 1)) {
                Some(seed) => seed.clone(),
                // Small numbers get further than large ones.
                None => (0..self.next() % 600).map(|_| (self.next() >> (self.next() % 9)) as u8).collect(),
            };
            for _ in 0..self.next() % 6 {
                if bytes.is_empty() {
                    break;
                }
                // Headers matter more than what follows them.
                let most = if self.next().is_multiple_of(2) { bytes.len().min(600) } else { bytes.len() };
                let at = self.next() % most;
                match self.next() % 4 {
                    0 => bytes.truncate(at),
                    1 => bytes[at] = 0xff,
                    2 => bytes[at] ^= 1 << (self.next() % 8),
                    _ => bytes[at] = self.next() as u8,
                }
            }
            bytes
        }
    }

    #[test]
    fn every_target_survives_what_is_made_up_here() {
        for target in TARGETS {
            let seeds = (target.seeds)();
            seeds.iter().for_each(|seed| (target.run)(seed));
            (target.run)(&[]);
            let (begin, mut random, mut count) = (Instant::now(), Random(0x1234_5678_9abc_def1), 0);
            while begin.elapsed() < TIME {
                let (input, start) = (random.input(&seeds), Instant::now());
                (target.run)(&input);
                assert!(start.elapsed() < LIMIT, "{}: too slow on {input:x?}", target.name);
                count += 1;
            }
            println!("{}: {count} inputs", target.name);
        }
        assert!(target("queue").is_some() && target("no such").is_none());
    }
}
