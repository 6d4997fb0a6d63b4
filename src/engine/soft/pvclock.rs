//! The paravirtual clock that Linux knows as kvmclock (Linux: Documentation/virt/kvm/x86/msr.rst, cpuid.rst): two
//! structures in guest memory tell the time of day at boot, and how the time-stamp counter becomes nanoseconds.

use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::cpu::Cpu;
use crate::arch::x86_64::cpuid::Leaf;
use crate::mem::{self, Ram};

/// First leaf of the hypervisor's range, whose registers spell "KVMKVMKVM", and the leaf with features.
pub(super) const SIGNATURE_LEAF: u32 = 0x4000_0000;
pub(super) const FEATURE_LEAF: u32 = 0x4000_0001;

/// Features, and which of them there are: the clock by its old and new MSRs, always in step with the time-stamp counter;
/// no delays between port accesses. Whatever needs hypercalls is missing.
pub(super) mod feature {
    pub(crate) const OLD_CLOCK: u32 = 1;
    pub(crate) const NO_IO_DELAY: u32 = 1 << 1;
    pub(crate) const CLOCK: u32 = 1 << 3;
    pub(crate) const STABLE: u32 = 1 << 24;
}

/// `pvclock_vcpu_time_info`: version, padding, counter, time, multiplier, shift, flags, padding.
const SYSTEM_TIME_SIZE: usize = 32;
/// One tick is one nanosecond: `(ticks << 1) * 2^31 >> 32`.
const MULTIPLIER: u32 = 1 << 31;
const SHIFT: u8 = 1;
/// All CPUs' clocks agree.
const FLAG_STABLE: u8 = 1;
/// In the MSR of the system time: the structure is kept up to date.
pub(super) const SYSTEM_TIME_ENABLED: u64 = 1;

/// The leaves that tell of it.
pub(super) fn leaves() -> [Leaf; 2] {
    let spell = |bytes: [u8; 4]| u32::from_le_bytes(bytes);
    let features = feature::OLD_CLOCK | feature::NO_IO_DELAY | feature::CLOCK | feature::STABLE;
    [
        Leaf {
            leaf: SIGNATURE_LEAF,
            eax: FEATURE_LEAF,
            ebx: spell(*b"KVMK"),
            ecx: spell(*b"VMKV"),
            edx: spell(*b"M\0\0\0"),
            ..Leaf::default()
        },
        Leaf { leaf: FEATURE_LEAF, eax: features, ..Leaf::default() },
    ]
}

/// The time of day at guest time zero, if it is `guest_time` now.
fn wall_clock(guest_time: u64) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    now.saturating_sub(Duration::from_nanos(guest_time))
}

/// Writes the time of day at guest time zero to guest-physical `at`: version, seconds, nanoseconds.
fn write_wall_clock(ram: &Ram, at: u64, zero: Duration) -> Result<(), mem::Error> {
    let mut body = [0; 8];
    body[..4].copy_from_slice(&(zero.as_secs() as u32).to_le_bytes());
    body[4..].copy_from_slice(&zero.subsec_nanos().to_le_bytes());
    write_versioned(ram, at, &body)
}

/// Writes to guest-physical `at` that it is guest time `time` when the counter is `tsc`.
fn write_system_time(ram: &Ram, at: u64, tsc: u64, time: u64) -> Result<(), mem::Error> {
    let mut body = [0; SYSTEM_TIME_SIZE - 4];
    body[4..12].copy_from_slice(&tsc.to_le_bytes());
    body[12..20].copy_from_slice(&time.to_le_bytes());
    body[20..24].copy_from_slice(&MULTIPLIER.to_le_bytes());
    (body[24], body[25]) = (SHIFT, FLAG_STABLE);
    write_versioned(ram, at, &body)
}

/// A version, odd while what follows it is being written.
fn write_versioned(ram: &Ram, at: u64, body: &[u8]) -> Result<(), mem::Error> {
    let mut version = [0; 4];
    ram.read(at, &mut version)?;
    let odd = u32::from_le_bytes(version) & !1 | 1;
    ram.write(at, &odd.to_le_bytes())?;
    fence(Ordering::SeqCst);
    ram.write(at.saturating_add(4), body)?;
    fence(Ordering::SeqCst);
    ram.write(at, &odd.wrapping_add(1).to_le_bytes())
}

impl Cpu {
    /// The guest asks for the time of day at boot.
    pub(super) fn tell_wall_clock(&self, at: u64) {
        let zero = match self.shared.deterministic {
            Some(how) => Duration::from_secs(how.date),
            None => wall_clock(self.guest_time()),
        };
        let told = write_wall_clock(&self.shared.ram, at, zero);
        log(self.index, "wall clock", at, told);
    }

    /// The guest asks for the system time, or its time-stamp counter was changed.
    pub(super) fn tell_system_time(&self) {
        let msr = self.system.msrs.system_time;
        if msr & SYSTEM_TIME_ENABLED != 0 {
            let (at, now) = (msr & !SYSTEM_TIME_ENABLED, self.guest_time());
            let tsc = now.wrapping_add(self.system.msrs.tsc_adjust);
            log(self.index, "system time", at, write_system_time(&self.shared.ram, at, tsc, now));
        }
    }
}

/// A guest that gives an address outside RAM hears nothing.
fn log(cpu: u32, what: &str, at: u64, told: Result<(), mem::Error>) {
    if let Err(e) = told {
        tracing::debug!("vCPU {cpu}: {what} at {at:#x}: {e}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mem::{Backing, PAGE};

    fn ram() -> Ram {
        Ram::new(&[(0, PAGE)], Backing::Anonymous).unwrap()
    }

    fn word(ram: &Ram, at: u64) -> u64 {
        let mut bytes = [0; 8];
        ram.read(at, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    /// What a guest makes of the structure at `at` when its counter is `tsc`, as pvclock-abi.h says.
    fn nanoseconds(ram: &Ram, at: u64, tsc: u64) -> u64 {
        let (since, time, scale) = (word(ram, at + 8), word(ram, at + 16), word(ram, at + 24));
        let shifted = u128::from(tsc - since) << (scale >> 32 & 0xff);
        time + ((shifted * u128::from(scale as u32)) >> 32) as u64
    }

    #[test]
    fn the_counter_becomes_nanoseconds() {
        let ram = ram();
        ram.write(0x100, &7_u32.to_le_bytes()).unwrap();
        write_system_time(&ram, 0x100, 5_000, 3_000).unwrap();
        assert_eq!(word(&ram, 0x100), 8, "even version, padding");
        assert_eq!(nanoseconds(&ram, 0x100, 5_000), 3_000);
        assert_eq!(nanoseconds(&ram, 0x100, 1_000_000_005_000), 1_000_000_003_000);
        assert_eq!(word(&ram, 0x118) >> 40, u64::from(FLAG_STABLE));
        assert_eq!(word(&ram, 0x120), 0, "nothing beyond");
        write_system_time(&ram, 0x100, 0, 0).unwrap();
        assert_eq!(word(&ram, 0x100), 10);
        assert!(write_system_time(&ram, PAGE - 16, 0, 0).is_err());
        assert!(write_system_time(&ram, u64::MAX - 1, 0, 0).is_err());
    }

    #[test]
    fn the_wall_clock_is_the_time_of_day_at_guest_time_zero() {
        let ram = ram();
        let second = 1_000_000_000;
        let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        write_wall_clock(&ram, 0x20, wall_clock(90 * second)).unwrap();
        let after = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64;
        let (first, last) = (word(&ram, 0x20), word(&ram, 0x28) as u32);
        assert_eq!(first as u32, 2);
        let told = (first >> 32) * second + u64::from(last) + 90 * second;
        assert!((before..=after).contains(&told), "{told}");
    }

    #[test]
    fn signature() {
        let [signature, features] = leaves();
        let name: Vec<u8> =
            [signature.ebx, signature.ecx, signature.edx].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!(name, b"KVMKVMKVM\0\0\0");
        assert_eq!((signature.eax, features.leaf, features.eax), (0x4000_0001, 0x4000_0001, 0x0100_000b));
    }
}
