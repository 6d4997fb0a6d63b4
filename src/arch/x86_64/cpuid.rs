//! CPUID tables as plain data, and the table that a guest is shown (Intel SDM volume 2, CPUID; AMD APM volume 3,
//! appendix E).

use serde::{Deserialize, Serialize};

/// One answer of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs, reason = "register names")]
pub struct Leaf {
    /// EAX on input.
    pub leaf: u32,
    /// ECX on input; counts only if `indexed`.
    pub subleaf: u32,
    /// Whether the answer depends on ECX.
    pub indexed: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// All answers of CPUID.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuidTable(pub Vec<Leaf>);

/// Where a CPU stands: one package, one thread a core.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// APIC id of this CPU, from 0.
    pub apic_id: u32,
    /// Number of CPUs, 1 to 255.
    pub cpus: u32,
}

/// Leaf 1 ECX.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: the count of logical processors in EBX is valid.
const HTT: u32 = 1 << 28;
/// First leaf of the hypervisor's own range, and the leaf that tells frequencies (a convention of VMware's that Linux and
/// QEMU follow).
const HYPERVISOR_BASE: u32 = 0x4000_0000;
const HYPERVISOR_FREQUENCIES: u32 = 0x4000_0010;
/// The local APIC timer's bus clock under KVM, kHz.
const APIC_BUS_KHZ: u32 = 1_000_000;

impl CpuidTable {
    /// What the CPU at `topology` of a guest is shown: what the engine supports, with topology, APIC id and, if known,
    /// the TSC frequency in kHz filled in.
    pub fn for_guest(&self, topology: Topology, tsc_khz: Option<u32>) -> Self {
        let Topology { apic_id, cpus } = topology;
        let id_bits = u32::BITS - cpus.saturating_sub(1).leading_zeros();
        let mut table = self.clone();
        for leaf in &mut table.0 {
            match leaf.leaf {
                1 => {
                    leaf.ebx = leaf.ebx & 0xffff | (cpus & 0xff) << 16 | apic_id << 24;
                    leaf.ecx |= X2APIC | TSC_DEADLINE | HYPERVISOR;
                    leaf.edx = if cpus > 1 { leaf.edx | HTT } else { leaf.edx & !HTT };
                }
                // Cores a package (31:26); only the last level of cache is shared (25:14).
                4 if leaf.eax & 0x1f != 0 => {
                    let sharing = if (leaf.eax >> 5) & 7 >= 3 { (1 << id_bits) - 1 } else { 0 };
                    leaf.eax = leaf.eax & 0x3fff | sharing << 14 | ((1 << id_bits) - 1).min(0x3f) << 26;
                }
                0x8000_0001 => leaf.ecx = if cpus > 1 { leaf.ecx | 2 } else { leaf.ecx & !2 }, // CmpLegacy
                0x8000_0008 => leaf.ecx = leaf.ecx & !0xffff | id_bits << 12 | (cpus - 1) & 0xff,
                0x8000_001d if leaf.eax & 0x1f != 0 => {
                    let sharing = if (leaf.eax >> 5) & 7 >= 3 { cpus - 1 } else { 0 };
                    leaf.eax = leaf.eax & !(0xfff << 14) | sharing << 14;
                }
                0x8000_001e => (leaf.eax, leaf.ebx, leaf.ecx) = (apic_id, apic_id & 0xff, 0),
                _ => {}
            }
        }
        table.set_extended_topology(topology, id_bits);
        if let Some(khz) = tsc_khz {
            table.set_frequencies(khz);
        }
        table
    }

    /// Leaf 0Bh: level 0 is threads (one), level 1 cores, level 2 ends the list. Leaf 1Fh says the same again.
    fn set_extended_topology(&mut self, topology: Topology, id_bits: u32) {
        for number in [0xb, 0x1f] {
            if !self.0.iter().any(|leaf| leaf.leaf == number) {
                continue;
            }
            self.0.retain(|leaf| leaf.leaf != number);
            let level = |subleaf, eax, ebx, kind: u32| Leaf {
                leaf: number,
                subleaf,
                indexed: true,
                eax,
                ebx,
                ecx: subleaf | kind << 8,
                edx: topology.apic_id,
            };
            self.0.extend([level(0, 0, 1, 1), level(1, id_bits, topology.cpus, 2), level(2, 0, 0, 0)]);
        }
    }

    /// Tells the TSC frequency where guests look for it, so that they need not measure it.
    fn set_frequencies(&mut self, tsc_khz: u32) {
        self.0.retain(|leaf| leaf.leaf != HYPERVISOR_FREQUENCIES);
        let Some(base) = self.0.iter_mut().find(|leaf| leaf.leaf == HYPERVISOR_BASE) else { return };
        base.eax = base.eax.max(HYPERVISOR_FREQUENCIES);
        self.0.push(Leaf { leaf: HYPERVISOR_FREQUENCIES, eax: tsc_khz, ebx: APIC_BUS_KHZ, ..Leaf::default() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuidTable {
        let leaf = |leaf, eax, ebx, ecx, edx| Leaf { leaf, eax, ebx, ecx, edx, ..Leaf::default() };
        CpuidTable(vec![
            leaf(1, 0x00a2_0f12, 0x0704_0800, 0, HTT),
            leaf(4, 0x1c00_4121, 0, 0, 0),
            leaf(4, 0x1c00_c163, 0, 0, 0),
            leaf(0xb, 1, 2, 0x100, 9),
            leaf(0x4000_0000, 0x4000_0001, 0, 0, 0),
            leaf(0x8000_0008, 0x3030, 0, 0x703f, 0),
            leaf(0x8000_001e, 9, 0x104, 0x300, 0),
        ])
    }

    fn find(table: &CpuidTable, leaf: u32, subleaf: u32) -> Leaf {
        *table.0.iter().find(|l| l.leaf == leaf && l.subleaf == subleaf).unwrap()
    }

    #[test]
    fn topology_is_right_for_any_number_of_cpus() {
        for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (64, 6), (255, 8)] {
            let table = supported().for_guest(Topology { apic_id: cpus - 1, cpus }, None);
            let one = find(&table, 1, 0);
            assert_eq!((one.ebx >> 16 & 0xff, one.ebx >> 24), (cpus, cpus - 1));
            assert_eq!(one.ebx & 0xffff, 0x0800);
            assert_eq!(one.edx & HTT != 0, cpus > 1);
            assert_eq!(one.ecx, X2APIC | TSC_DEADLINE | HYPERVISOR);
            let (threads, cores) = (find(&table, 0xb, 0), find(&table, 0xb, 1));
            assert_eq!((threads.eax, threads.ebx, threads.ecx), (0, 1, 0x100));
            assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (bits, cpus, 0x201, cpus - 1));
            let amd = find(&table, 0x8000_0008, 0);
            assert_eq!((amd.ecx & 0xff, amd.ecx >> 12 & 15), (cpus - 1, bits));
            assert_eq!(find(&table, 0x8000_001e, 0).eax, cpus - 1);
        }
    }

    #[test]
    fn frequencies_are_told_only_when_known() {
        let topology = Topology { apic_id: 0, cpus: 1 };
        assert!(!supported().for_guest(topology, None).0.iter().any(|l| l.leaf == HYPERVISOR_FREQUENCIES));
        let table = supported().for_guest(topology, Some(2_500_000));
        assert_eq!(find(&table, HYPERVISOR_FREQUENCIES, 0).eax, 2_500_000);
        assert_eq!(find(&table, HYPERVISOR_BASE, 0).eax, HYPERVISOR_FREQUENCIES);
    }
}
