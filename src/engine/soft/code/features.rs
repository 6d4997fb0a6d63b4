//! Which instructions the guest's CPUID offers: others do not exist for it.

use iced_x86::{CpuidFeature, Instruction};

use crate::arch::x86_64::cpuid::CpuidTable;

/// The CPUID words that name instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::engine::soft) struct Features {
    leaf_1_ecx: u32,
    leaf_1_edx: u32,
    leaf_7_ebx: u32,
    leaf_7_ecx: u32,
    leaf_d_1_eax: u32,
    extended_1_ecx: u32,
    extended_1_edx: u32,
}

impl Features {
    /// What `table` offers.
    pub(in crate::engine::soft) fn of(table: &CpuidTable) -> Self {
        let find = |leaf, subleaf| {
            table.0.iter().find(|l| l.leaf == leaf && (!l.indexed || l.subleaf == subleaf)).copied().unwrap_or_default()
        };
        Self {
            leaf_1_ecx: find(1, 0).ecx,
            leaf_1_edx: find(1, 0).edx,
            leaf_7_ebx: find(7, 0).ebx,
            leaf_7_ecx: find(7, 0).ecx,
            leaf_d_1_eax: find(0xd, 1).eax,
            extended_1_ecx: find(0x8000_0001, 0).ecx,
            extended_1_edx: find(0x8000_0001, 0).edx,
        }
    }

    /// Everything, for tests.
    #[cfg(test)]
    pub(in crate::engine::soft) fn all() -> Self {
        let all = u32::MAX;
        Self {
            leaf_1_ecx: all,
            leaf_1_edx: all,
            leaf_7_ebx: all,
            leaf_7_ecx: all,
            leaf_d_1_eax: 1,
            extended_1_ecx: all,
            extended_1_edx: all,
        }
    }

    /// Whether all that `insn` needs is there.
    pub(in crate::engine::soft) fn offer(&self, insn: &Instruction) -> bool {
        insn.cpuid_features().iter().all(|feature| self.has(*feature))
    }

    /// Whether one feature is there; those that every x86-64 CPU has always are.
    pub(in crate::engine::soft) fn has(&self, feature: CpuidFeature) -> bool {
        use CpuidFeature::*;
        let (word, bit) = match feature {
            INTEL8086 | INTEL8086_ONLY | INTEL186 | INTEL286 | INTEL286_ONLY | INTEL386 | INTEL386_ONLY | INTEL486
            | X64 | CPUID | FPU | FPU287 | FPU387 | CX8 | CMOV | MSR | TSC | MMX | FXSR | SSE | SSE2 | SYSCALL
            | PAUSE | MULTIBYTENOP | RDPMC | PREFETCHW | SMM => return true,
            SEP => (self.leaf_1_edx, 11),
            CLFSH => (self.leaf_1_edx, 19),
            SSE3 => (self.leaf_1_ecx, 0),
            PCLMULQDQ => (self.leaf_1_ecx, 1),
            MONITOR => (self.leaf_1_ecx, 3),
            SSSE3 => (self.leaf_1_ecx, 9),
            FMA => (self.leaf_1_ecx, 12),
            CMPXCHG16B => (self.leaf_1_ecx, 13),
            SSE4_1 => (self.leaf_1_ecx, 19),
            SSE4_2 => (self.leaf_1_ecx, 20),
            MOVBE => (self.leaf_1_ecx, 22),
            POPCNT => (self.leaf_1_ecx, 23),
            AES => (self.leaf_1_ecx, 25),
            XSAVE => (self.leaf_1_ecx, 26),
            AVX => (self.leaf_1_ecx, 28),
            F16C => (self.leaf_1_ecx, 29),
            RDRAND => (self.leaf_1_ecx, 30),
            FSGSBASE => (self.leaf_7_ebx, 0),
            BMI1 => (self.leaf_7_ebx, 3),
            AVX2 => (self.leaf_7_ebx, 5),
            BMI2 => (self.leaf_7_ebx, 8),
            INVPCID => (self.leaf_7_ebx, 10),
            RDSEED => (self.leaf_7_ebx, 18),
            ADX => (self.leaf_7_ebx, 19),
            SMAP => (self.leaf_7_ebx, 20),
            CLFLUSHOPT => (self.leaf_7_ebx, 23),
            CLWB => (self.leaf_7_ebx, 24),
            SHA => (self.leaf_7_ebx, 29),
            RDPID => (self.leaf_7_ecx, 22),
            XSAVEOPT => (self.leaf_d_1_eax, 0),
            XSAVEC => (self.leaf_d_1_eax, 1),
            XSAVES => (self.leaf_d_1_eax, 3),
            LZCNT => (self.extended_1_ecx, 5),
            SSE4A => (self.extended_1_ecx, 6),
            RDTSCP => (self.extended_1_edx, 27),
            _ => return false,
        };
        word >> bit & 1 != 0
    }
}
