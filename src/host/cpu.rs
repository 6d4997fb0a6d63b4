//! What the host's CPU can do (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E), as far as its own software may
//! use it.

use std::arch::is_x86_feature_detected as has;
use std::arch::x86_64::{__cpuid, __get_cpuid_max};

use crate::arch::x86_64::level::CpuLevel;

/// Extended leaf, and the bit of EBX that says that FXSAVE stores the x87 error pointers always.
const EXTENDED_LEAVES: u32 = 0x8000_0000;
const CAPACITY_LEAF: u32 = 0x8000_0008;
const SAVES_ERROR_POINTERS: u32 = 1 << 2;

/// The host's CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "names of features")]
pub struct HostCpu {
    /// The highest level all of which it has.
    pub level: CpuLevel,
    pub aes: bool,
    pub pclmulqdq: bool,
    pub rdrand: bool,
    pub rdseed: bool,
    pub adx: bool,
    pub movbe: bool,
    /// FXSAVE stores the x87 error pointers always: Intel's CPUs, and AMD's from Zen 2 on.
    pub saves_error_pointers: bool,
}

impl HostCpu {
    /// Asks the CPU that runs this.
    pub fn detect() -> Self {
        Self {
            level: level(),
            aes: has!("aes"),
            pclmulqdq: has!("pclmulqdq"),
            rdrand: has!("rdrand"),
            rdseed: has!("rdseed"),
            adx: has!("adx"),
            movbe: has!("movbe"),
            saves_error_pointers: saves_error_pointers(),
        }
    }
}

fn level() -> CpuLevel {
    let v2 = has!("sse3") && has!("ssse3") && has!("sse4.1") && has!("sse4.2") && has!("popcnt") && has!("cmpxchg16b");
    let v3 = has!("avx") && has!("avx2") && has!("fma") && has!("f16c") && has!("movbe") && has!("xsave");
    let bits = has!("bmi1") && has!("bmi2") && has!("lzcnt");
    match (v2, v3 && bits) {
        (true, true) => CpuLevel::V3,
        (true, false) => CpuLevel::V2,
        _ => CpuLevel::V1,
    }
}

fn saves_error_pointers() -> bool {
    let vendor = __cpuid(0);
    let amd = [vendor.ebx, vendor.edx, vendor.ecx].iter().flat_map(|r| r.to_le_bytes()).eq(*b"AuthenticAMD");
    let stated = || {
        __get_cpuid_max(EXTENDED_LEAVES).0 >= CAPACITY_LEAF && __cpuid(CAPACITY_LEAF).ebx & SAVES_ERROR_POINTERS != 0
    };
    !amd || stated()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's own view, where there is one.
    #[test]
    fn the_kernel_agrees() {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let Some(flags) = info.lines().find(|line| line.starts_with("flags")) else { return };
        let says = |name: &str| flags.split_whitespace().any(|flag| flag == name);
        let cpu = HostCpu::detect();
        assert_eq!((cpu.aes, cpu.pclmulqdq, cpu.movbe), (says("aes"), says("pclmulqdq"), says("movbe")));
        assert_eq!(cpu.adx, says("adx"));
        // Of some of AMD's Zen 5 it says nothing, since their RDSEED is wrong; here it only says what guests know of.
        assert!(cpu.rdseed || !says("rdseed"));
        assert_eq!(cpu.level >= CpuLevel::V2, says("sse4_2") && says("ssse3") && says("popcnt") && says("cx16"));
        assert_eq!(
            cpu.level >= CpuLevel::V3,
            says("avx2") && says("bmi2") && says("fma") && says("f16c") && says("abm")
        );
    }
}
