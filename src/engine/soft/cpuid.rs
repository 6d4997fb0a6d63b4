//! The CPU that guests see: what CPUID answers (AMD APM volume 3, appendix E; Intel SDM volume 2, CPUID).
//!
//! It is an AMD CPU of family 19h whatever the host is, because that makes kernels do least. Linux looks for no MSRs of
//! Intel's, takes the family for unaffected by Meltdown, L1TF, MDS and TAA (no separate page tables, no buffer clearing),
//! and with automatic IBRS and the SRSO_NO, BTC_NO and TSA_NO bits uses neither retpolines nor return thunks, which this
//! CPU would pay for at every indirect branch and return. Fences after x2APIC writes are left out too. And a guest sees
//! the same CPU on every host. Features are those that are executed; what runs as an instruction of the host is shown
//! only if the host has it.

use super::apic::Mode;
use super::cpu::{Cpu, cr4};
use super::memory::walk::PHYSICAL_BITS;
use super::pvclock;
use crate::arch::x86_64::cpuid::{CpuidTable, Leaf};
use crate::arch::x86_64::level::CpuLevel;
use crate::host::cpu::HostCpu;

const VENDOR: [u32; 3] = [word(*b"Auth"), word(*b"enti"), word(*b"cAMD")];
const INTEL: [u32; 3] = [word(*b"Genu"), word(*b"ineI"), word(*b"ntel")];
const BRAND: &[u8; 48] = b"belljar software CPU\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
/// Family 19h, model 1, stepping 1.
const SIGNATURE: u32 = 0x00a0_0f11;
/// Line size of caches, as CLFLUSH counts it (bits 15:8, in units of 8 bytes).
const CLFLUSH_LINE: u32 = 8 << 8;
const LINEAR_BITS: u32 = 48;
const MAX_BASIC: u32 = 0xb;
const XSAVE_LEAF: u32 = 0xd;
const EXTENDED: u32 = 0x8000_0000;
const MAX_EXTENDED: u32 = 0x8000_0021;
const HYPERVISOR: u32 = 0x4000_0000;

/// XSAVE: legacy area and header; then the upper halves of YMM0 to YMM15.
const XSAVE_BASE: u32 = 512 + 64;
const YMM_SIZE: u32 = 256;
/// x87, SSE, AVX.
const XCR0_BITS: u32 = 7;
const XCR0_AVX: u64 = 4;

const fn word(bytes: [u8; 4]) -> u32 {
    u32::from_le_bytes(bytes)
}

/// Leaf 1, EDX: FPU DE PSE TSC MSR PAE MCE CX8 APIC SEP MTRR PGE MCA CMOV PAT CLFSH MMX FXSR SSE SSE2.
const LEAF1_EDX: u32 = bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 19, 23, 24, 25, 26]);
/// Those of them that AMD repeats in leaf 8000_0001h.
const REPEATED: u32 = bits(&[0, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 23, 24]);
/// Leaf 8000_0001h, EDX: SYSCALL, NX, 1 GiB pages, RDTSCP, LM.
const EXTENDED_EDX: u32 = bits(&[11, 20, 26, 27, 29]);
/// Leaf 8000_0001h, ECX: PREFETCHW, topology extensions.
const EXTENDED_ECX: u32 = bits(&[8, 22]);
/// Leaf 1, ECX: x2APIC, TSC-deadline timer, hypervisor.
const LEAF1_ECX: u32 = bits(&[21, 24, 31]);
/// Leaf 1, ECX for level v2: SSE3 SSSE3 CX16 SSE4.1 SSE4.2 POPCNT.
const LEAF1_ECX_V2: u32 = bits(&[0, 9, 13, 19, 20, 23]);
/// Leaf 1, ECX for level v3: FMA MOVBE XSAVE AVX F16C.
const LEAF1_ECX_V3: u32 = bits(&[12, 22, 26, 28, 29]);
const PCLMULQDQ: u32 = bits(&[1]);
const MOVBE: u32 = bits(&[22]);
const AES: u32 = bits(&[25]);
const RDRAND: u32 = bits(&[30]);
const OSXSAVE: u32 = bits(&[27]);
const APIC: u32 = bits(&[9]);
/// Leaf 7, EBX: FSGSBASE TSC_ADJUST SMEP ERMS SMAP CLFLUSHOPT.
const LEAF7_EBX: u32 = bits(&[0, 1, 7, 9, 20, 23]);
/// Leaf 7, EBX for level v3: BMI1 AVX2 BMI2.
const LEAF7_EBX_V3: u32 = bits(&[3, 5, 8]);
const RDSEED: u32 = bits(&[18]);
const ADX: u32 = bits(&[19]);
/// Leaf 7, ECX: UMIP.
const LEAF7_ECX: u32 = bits(&[2]);
/// Leaf 7, EDX: FSRM, ARCH_CAPABILITIES.
const LEAF7_EDX: u32 = bits(&[4, 29]);
const ARCH_CAPABILITIES: u32 = bits(&[29]);
/// Leaf 7, subleaf 1, EAX: fast zero-length REP MOVSB, fast short REP STOSB.
const LEAF7_1_EAX: u32 = bits(&[10, 11]);
/// Leaf 8000_0001h, ECX: LAHF in 64-bit mode, for level v2; LZCNT, for v3.
const LAHF: u32 = bits(&[0]);
const LZCNT: u32 = bits(&[5]);
/// Leaf 8000_0008h, EBX: no LMSLE, SSB_NO, BTC_NO; XSAVEERPTR.
const CAPACITY_EBX: u32 = bits(&[20, 26, 29]);
const SAVES_ERROR_POINTERS: u32 = bits(&[2]);
/// Leaf 8000_0021h, EAX: LFENCE serialises, null selectors clear the base, automatic IBRS, SRSO_NO and the same for
/// user to kernel; ECX: TSA_SQ_NO, TSA_L1_NO, and the bit that kernels of 2026 ask for beside them.
const LEAF21_EAX: u32 = bits(&[2, 6, 8, 29, 30]);
const AUTOMATIC_IBRS: u32 = bits(&[8]);
const LEAF21_ECX: u32 = bits(&[1, 2, 7]);
/// Leaf 6: the APIC timer always runs. Leaf 8000_0007h: so does the time-stamp counter, at a constant rate.
const ARAT: u32 = bits(&[2]);
const INVARIANT_TSC: u32 = bits(&[8]);

const fn bits(numbers: &[u32]) -> u32 {
    let (mut all, mut i) = (0, 0);
    while i < numbers.len() {
        all |= 1 << numbers[i];
        i += 1;
    }
    all
}

/// What can be shown to a guest: `level`, and of features beyond levels those that belong to it and that `host` has.
pub(super) fn supported(level: CpuLevel, host: &HostCpu) -> CpuidTable {
    let level = level.min(host.level);
    let from = |least: CpuLevel, bits: u32| if level >= least { bits } else { 0 };
    let if_host = |has: bool, bits: u32| if has { from(CpuLevel::V2, bits) } else { 0 };
    let ecx = LEAF1_ECX
        | from(CpuLevel::V2, LEAF1_ECX_V2)
        | from(CpuLevel::V3, LEAF1_ECX_V3)
        | if_host(host.aes, AES)
        | if_host(host.pclmulqdq, PCLMULQDQ)
        | if_host(host.movbe, MOVBE)
        | if_host(host.rdrand, RDRAND);
    let leaf7 = LEAF7_EBX | from(CpuLevel::V3, LEAF7_EBX_V3) | if_host(host.rdseed, RDSEED) | if_host(host.adx, ADX);
    let [b, d, c] = VENDOR;
    let last = if level >= CpuLevel::V3 { XSAVE_LEAF } else { MAX_BASIC };
    let mut leaves = vec![
        plain(0, [last, b, c, d]),
        plain(1, [SIGNATURE, CLFLUSH_LINE, ecx, LEAF1_EDX]),
        plain(6, [ARAT, 0, 0, 0]),
        indexed(7, 0, [1, leaf7, LEAF7_ECX, LEAF7_EDX]),
        indexed(7, 1, [LEAF7_1_EAX, 0, 0, 0]),
        indexed(0xb, 0, [0, 1, 0x100, 0]),
        indexed(0xb, 1, [0, 1, 0x201, 0]),
    ];
    if level >= CpuLevel::V3 {
        let all = XSAVE_BASE + YMM_SIZE;
        leaves.push(indexed(XSAVE_LEAF, 0, [XCR0_BITS, all, all, 0]));
        leaves.push(indexed(XSAVE_LEAF, 1, [0; 4]));
        leaves.push(indexed(XSAVE_LEAF, 2, [YMM_SIZE, XSAVE_BASE, 0, 0]));
    }
    leaves.extend(pvclock::leaves());
    let ext_ecx = EXTENDED_ECX | from(CpuLevel::V2, LAHF) | from(CpuLevel::V3, LZCNT);
    let capacity = CAPACITY_EBX | if host.saves_error_pointers { SAVES_ERROR_POINTERS } else { 0 };
    leaves.extend([
        plain(EXTENDED, [MAX_EXTENDED, b, c, d]),
        plain(EXTENDED + 1, [SIGNATURE, 0, ext_ecx, LEAF1_EDX & REPEATED | EXTENDED_EDX]),
        plain(EXTENDED + 7, [0, 0, 0, INVARIANT_TSC]),
        plain(EXTENDED + 8, [LINEAR_BITS << 8 | PHYSICAL_BITS, capacity, 0, 0]),
        plain(EXTENDED + 0x1e, [0; 4]),
        plain(EXTENDED + 0x21, [LEAF21_EAX, 0, LEAF21_ECX, 0]),
    ]);
    leaves.extend(brand());
    leaves.extend(caches());
    CpuidTable(leaves)
}

fn plain(leaf: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Leaf {
    Leaf { leaf, subleaf: 0, indexed: false, eax, ebx, ecx, edx }
}

fn indexed(leaf: u32, subleaf: u32, answer: [u32; 4]) -> Leaf {
    Leaf { subleaf, indexed: true, ..plain(leaf, answer) }
}

fn brand() -> impl Iterator<Item = Leaf> {
    let words = |chunk: &[u8]| {
        let mut answer = [0; 4];
        let four = chunk.chunks_exact(4).map(|four| four.first_chunk().map_or(0, |bytes| word(*bytes)));
        answer.iter_mut().zip(four).for_each(|(to, from)| *to = from);
        answer
    };
    BRAND.chunks_exact(16).zip(EXTENDED + 2..).map(move |(chunk, leaf)| plain(leaf, words(chunk)))
}

/// Caches as such CPUs have them: programs choose how to copy by their sizes.
fn caches() -> Vec<Leaf> {
    /// (type, level, KiB, ways)
    const CACHES: [(u32, u32, u32, u32); 4] = [(1, 1, 32, 8), (2, 1, 32, 8), (3, 2, 512, 8), (3, 3, 32768, 16)];
    const LINE: u32 = 64;
    let tlb = 0xff40_ff40;
    let mut leaves = vec![
        plain(EXTENDED + 5, [tlb, tlb, 32 << 24 | 8 << 16 | 1 << 8 | LINE, 32 << 24 | 8 << 16 | 1 << 8 | LINE]),
        plain(EXTENDED + 6, [0, 0, 512 << 16 | 6 << 12 | 1 << 8 | LINE, 64 << 18 | 8 << 12 | 1 << 8 | LINE]),
    ];
    for (subleaf, (kind, level, size, ways)) in (0..).zip(CACHES) {
        let sets = size * 1024 / LINE / ways;
        let answer = [kind | level << 5 | 1 << 8, (ways - 1) << 22 | (LINE - 1), sets - 1, 0];
        leaves.push(indexed(EXTENDED + 0x1d, subleaf, answer));
    }
    leaves
}

/// What one CPU answers.
#[derive(Debug, Clone, Default)]
pub(super) struct Cpuid {
    /// By leaf and subleaf.
    leaves: Vec<Leaf>,
    /// Leaves beyond the last answer like the last basic one.
    repeats_last: bool,
    pv_features: u32,
    arch_capabilities: bool,
    automatic_ibrs: bool,
}

impl Cpuid {
    /// Answers from `table`.
    pub(super) fn new(table: &CpuidTable) -> Self {
        let mut leaves = table.0.clone();
        leaves.sort_by_key(|leaf| (leaf.leaf, leaf.subleaf));
        let mut cpuid = Self { leaves, ..Self::default() };
        let vendor = cpuid.find(0, 0).map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx]);
        cpuid.repeats_last = vendor == Some(INTEL);
        let signature = cpuid.find(pvclock::SIGNATURE_LEAF, 0).map(|leaf| (leaf.ebx, leaf.ecx));
        if signature == Some((word(*b"KVMK"), word(*b"VMKV"))) {
            cpuid.pv_features = cpuid.find(pvclock::FEATURE_LEAF, 0).map_or(0, |leaf| leaf.eax);
        }
        cpuid.arch_capabilities = cpuid.find(7, 0).is_some_and(|leaf| leaf.edx & ARCH_CAPABILITIES != 0);
        cpuid.automatic_ibrs = cpuid.find(EXTENDED + 0x21, 0).is_some_and(|leaf| leaf.eax & AUTOMATIC_IBRS != 0);
        cpuid
    }

    /// Features of the paravirtual clock; none if there is no such leaf.
    pub(super) fn pv_features(&self) -> u32 {
        self.pv_features
    }

    /// MSR IA32_ARCH_CAPABILITIES exists.
    pub(super) fn arch_capabilities(&self) -> bool {
        self.arch_capabilities
    }

    /// EFER.AIBRSE can be set.
    pub(super) fn automatic_ibrs(&self) -> bool {
        self.automatic_ibrs
    }

    fn find(&self, leaf: u32, subleaf: u32) -> Option<&Leaf> {
        let first = self.leaves.partition_point(|l| l.leaf < leaf);
        let mut same = self.leaves.get(first..)?.iter().take_while(|l| l.leaf == leaf);
        same.find(|l| !l.indexed || l.subleaf == subleaf)
    }

    /// The answer for `leaf`; beyond the last one of its range that of the last basic leaf, or zeros.
    fn answer(&self, leaf: u32, subleaf: u32) -> Leaf {
        let range = match leaf {
            EXTENDED.. => EXTENDED,
            HYPERVISOR..0x5000_0000 => HYPERVISOR,
            _ => 0,
        };
        let last = self.find(range, 0).map_or(0, |first| first.eax);
        if (range..=last).contains(&leaf) {
            return self.find(leaf, subleaf).copied().unwrap_or_default();
        }
        let last_basic = self.find(0, 0).filter(|_| self.repeats_last).map(|first| first.eax);
        last_basic.and_then(|leaf| self.find(leaf, subleaf)).copied().unwrap_or_default()
    }
}

impl Cpu {
    /// What CPUID answers: EAX, EBX, ECX, EDX.
    pub(super) fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        let mut answer = self.cpuid.answer(leaf, subleaf);
        match leaf {
            1 => {
                answer.ebx = answer.ebx & 0x00ff_ffff | self.index << 24;
                let osxsave = if self.system.cr4 & cr4::OSXSAVE != 0 { OSXSAVE } else { 0 };
                answer.ecx = answer.ecx & !OSXSAVE | osxsave;
                if self.apic().mode() == Mode::Disabled {
                    answer.edx &= !APIC;
                }
            }
            0xb | 0x1f if answer.leaf == leaf || self.cpuid.find(leaf, 0).is_some() => {
                // Levels that do not exist still tell their number and who asks.
                answer.ecx = answer.ecx & !0xff | subleaf & 0xff;
                answer.edx = self.index;
            }
            XSAVE_LEAF if subleaf == 0 && answer.leaf == leaf => {
                answer.ebx = XSAVE_BASE + if self.system.xcr0 & XCR0_AVX != 0 { YMM_SIZE } else { 0 };
            }
            _ => {}
        }
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::cpuid::Topology;
    use crate::engine::soft::clock::TSC_KHZ;

    const BEST: HostCpu = HostCpu {
        level: CpuLevel::V3,
        aes: true,
        pclmulqdq: true,
        rdrand: true,
        rdseed: true,
        adx: true,
        movbe: true,
        saves_error_pointers: true,
    };

    fn cpuid(level: CpuLevel, host: &HostCpu) -> Cpuid {
        Cpuid::new(&supported(level, host).for_guest(Topology { apic_id: 1, cpus: 2 }, Some(TSC_KHZ)))
    }

    fn regs(cpuid: &Cpuid, leaf: u32, subleaf: u32) -> [u32; 4] {
        let answer = cpuid.answer(leaf, subleaf);
        [answer.eax, answer.ebx, answer.ecx, answer.edx]
    }

    /// Registers that are sets of features.
    const FEATURES: [(u32, u32, usize); 10] = [
        (1, 0, 2),
        (1, 0, 3),
        (7, 0, 1),
        (7, 0, 2),
        (7, 0, 3),
        (7, 1, 0),
        (0xd, 0, 0),
        (0x8000_0001, 0, 2),
        (0x8000_0001, 0, 3),
        (0x8000_0008, 0, 1),
    ];

    #[test]
    fn each_level_has_all_of_the_one_below() {
        let [v1, v2, v3] = CpuLevel::ALL.map(|level| cpuid(level, &BEST));
        for (low, high) in [(&v1, &v2), (&v2, &v3)] {
            for (leaf, subleaf, register) in FEATURES {
                let [low, high] = [low, high].map(|cpuid| regs(cpuid, leaf, subleaf)[register]);
                assert_eq!(low & !high, 0, "leaf {leaf:#x}.{subleaf} register {register}");
            }
        }
    }

    /// (level, leaf, register, bits): what the psABI asks for.
    const REQUIRED: [(CpuLevel, u32, usize, u32); 9] = [
        (CpuLevel::V1, 1, 3, 1 << 0 | 1 << 8 | 1 << 15 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26),
        (CpuLevel::V1, 0x8000_0001, 3, 1 << 11 | 1 << 29),
        (CpuLevel::V2, 1, 2, 1 << 0 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23),
        (CpuLevel::V2, 0x8000_0001, 2, 1),
        (CpuLevel::V3, 1, 2, 1 << 12 | 1 << 22 | 1 << 26 | 1 << 28 | 1 << 29),
        (CpuLevel::V3, 7, 1, 1 << 3 | 1 << 5 | 1 << 8),
        (CpuLevel::V3, 0x8000_0001, 2, 1 << 5),
        (CpuLevel::V3, 0xd, 0, 7),
        (CpuLevel::V3, 0xd, 2, 832),
    ];

    #[test]
    fn levels_have_what_they_must_and_nothing_of_higher_ones() {
        let bare =
            HostCpu { aes: false, pclmulqdq: false, rdrand: false, rdseed: false, adx: false, movbe: false, ..BEST };
        for host in [BEST, bare] {
            for level in CpuLevel::ALL {
                let table = cpuid(level, &host);
                for (needs, leaf, register, bits) in REQUIRED {
                    let shown = regs(&table, leaf, 0)[register] & bits;
                    // MOVBE is shown from v2 on where the host has it, as AES is.
                    let early = if leaf == 1 && level == CpuLevel::V2 && host.movbe { MOVBE } else { 0 };
                    let expected = if level >= needs { bits } else { bits & early };
                    assert_eq!(shown, expected, "{level} on {host:?}: leaf {leaf:#x}, register {register}");
                }
                let extras =
                    [regs(&table, 1, 0)[2] & (AES | PCLMULQDQ | RDRAND), regs(&table, 7, 0)[1] & (RDSEED | ADX)];
                let all = [AES | PCLMULQDQ | RDRAND, RDSEED | ADX];
                assert_eq!(extras, if level > CpuLevel::V1 && host.aes { all } else { [0, 0] }, "{level}");
            }
        }
        for level in CpuLevel::ALL {
            let host = HostCpu { level, ..BEST };
            assert_eq!(supported(CpuLevel::V3, &host), supported(level, &BEST), "limited by the host");
            assert_eq!(supported(level, &host).level(), level);
        }
    }

    #[test]
    fn what_is_not_executed_is_not_shown() {
        let table = cpuid(CpuLevel::V3, &BEST);
        // VME, PSE36, DS, thermal; MONITOR, VMX, SMX, PCID; HLE, MPX, RTM, AVX-512, PT, SHA; PKU, LA57; RDPID.
        assert_eq!(regs(&table, 1, 0)[3] & (1 << 1 | 1 << 17 | 1 << 21 | 1 << 22), 0);
        assert_eq!(regs(&table, 1, 0)[2] & (1 << 3 | 1 << 5 | 1 << 6 | 1 << 17 | 1 << 27), 0);
        let [_, ebx, ecx, _] = regs(&table, 7, 0);
        assert_eq!(ebx & (1 << 4 | 1 << 10 | 1 << 11 | 1 << 14 | 1 << 16 | 1 << 25 | 1 << 29), 0);
        assert_eq!(ecx, 1 << 2);
        // SVM, SSE4A, FMA4, XOP, FFXSR, 3DNow.
        let [_, _, ecx, edx] = regs(&table, 0x8000_0001, 0);
        assert_eq!((ecx & (1 << 2 | 1 << 6 | 1 << 11 | 1 << 16), edx & (1 << 25 | 3 << 30)), (0, 0));
        // XSAVEOPT, XSAVEC, XGETBV1, XSAVES.
        assert_eq!(regs(&table, 0xd, 1), [0; 4]);
        for level in [CpuLevel::V1, CpuLevel::V2] {
            assert_eq!(regs(&cpuid(level, &BEST), 0xd, 0), [0; 4]);
            assert_eq!(regs(&cpuid(level, &BEST), 0, 0)[0], 0xb);
        }
    }

    #[test]
    fn identity_and_ranges() {
        let table = cpuid(CpuLevel::V3, &BEST);
        let [max, ebx, ecx, edx] = regs(&table, 0, 0);
        let vendor: Vec<u8> = [ebx, edx, ecx].iter().flat_map(|r| r.to_le_bytes()).collect();
        assert_eq!((max, vendor.as_slice()), (0xd, &b"AuthenticAMD"[..]));
        let signature = regs(&table, 1, 0)[0];
        assert_eq!((signature >> 8 & 15) + (signature >> 20 & 0xff), 0x19);
        let brand: Vec<u8> = (2..=4).flat_map(|n| regs(&table, EXTENDED + n, 0)).flat_map(u32::to_le_bytes).collect();
        assert_eq!(brand, BRAND);
        assert_eq!(regs(&table, 0x8000_0008, 0)[0], 0x302e);
        assert_eq!(regs(&table, 0xd, 0), [7, 832, 832, 0]);
        assert_eq!(regs(&table, 0xd, 2), [256, 576, 0, 0]);
        assert_eq!(regs(&table, 0x4000_0000, 0)[0], 0x4000_0010);
        assert_eq!(regs(&table, 0x4000_0010, 0)[0], 1_000_000);
        assert_eq!(regs(&table, 1, 99), regs(&table, 1, 0), "ECX does not count");
        assert_eq!(regs(&table, 7, 2), [0; 4]);
        for leaf in [0xe, 0x8000_0022, 0x4000_0011, 0x2000_0000, u32::MAX] {
            assert_eq!(regs(&table, leaf, 0), [0; 4], "{leaf:#x}");
        }
        let caches: Vec<u32> = (0..5).map(|n| regs(&table, 0x8000_001d, n)[0] & 0xff).collect();
        assert_eq!(caches, [0x21, 0x22, 0x43, 0x63, 0]);
        assert_eq!((table.pv_features(), table.arch_capabilities(), table.automatic_ibrs()), (0x0100_000b, true, true));
    }

    #[test]
    fn other_tables_are_answered_from_too() {
        let leaf = |leaf, eax, ebx, ecx, edx| Leaf { leaf, eax, ebx, ecx, edx, ..Leaf::default() };
        let [b, d, c] = INTEL;
        let table = Cpuid::new(&CpuidTable(vec![leaf(1, 5, 6, 7, 8), leaf(0, 1, b, c, d)]));
        assert_eq!(regs(&table, 0x17, 0), [5, 6, 7, 8], "Intel: the last basic leaf");
        assert_eq!((table.pv_features(), table.arch_capabilities(), table.automatic_ibrs()), (0, false, false));
        assert_eq!(regs(&Cpuid::default(), 0, 0), [0; 4]);
    }

    #[test]
    fn some_answers_depend_on_the_cpu() {
        let mut cpu = crate::engine::soft::testing::cpu_of(&crate::engine::soft::testing::ram(&[]), 3);
        cpu.index = 2;
        cpu.cpuid = Cpuid::new(&supported(CpuLevel::V3, &BEST));
        let [_, ebx, ecx, edx] = cpu.cpuid(1, 0);
        assert_eq!((ebx >> 24, ecx & OSXSAVE, edx & APIC), (2, 0, APIC));
        cpu.system.cr4 |= cr4::OSXSAVE;
        assert_eq!(cpu.cpuid(1, 0)[2] & OSXSAVE, OSXSAVE);
        cpu.apic().set_base(0xfee0_0000).unwrap();
        assert_eq!(cpu.cpuid(1, 0)[3] & APIC, 0, "the APIC is off");
        for (xcr0, size) in [(1, 576), (3, 576), (7, 832)] {
            cpu.system.xcr0 = xcr0;
            assert_eq!(cpu.cpuid(0xd, 0), [7, size, 832, 0]);
        }
        assert_eq!(cpu.cpuid(0xd, 2), [256, 576, 0, 0]);
        assert_eq!((cpu.cpuid(0xb, 0)[3], cpu.cpuid(0xb, 7)), (2, [0, 0, 7, 2]));
        cpu.cpuid = Cpuid::new(&supported(CpuLevel::V2, &BEST));
        assert_eq!(cpu.cpuid(0xd, 0), [0; 4]);
    }
}
