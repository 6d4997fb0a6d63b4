//! Which instruction-set extensions of this directory the software CPU offers: those that the host has, since the host
//! executes them. CPUID shows the same.

use std::arch::is_x86_feature_detected as host_has;

use iced_x86::{CpuidFeature, Instruction};

/// Extensions beyond x87, MMX, FXSR, SSE and SSE2, which every x86-64 CPU has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "names of the CPUID bits")]
pub(in crate::engine::soft) struct Offer {
    pub(in crate::engine::soft) sse3: bool,
    pub(in crate::engine::soft) ssse3: bool,
    pub(in crate::engine::soft) sse4_1: bool,
    pub(in crate::engine::soft) sse4_2: bool,
    pub(in crate::engine::soft) aes: bool,
    pub(in crate::engine::soft) pclmulqdq: bool,
    pub(in crate::engine::soft) sha: bool,
    /// XSAVE, XRSTOR, XGETBV, XSETBV and XSAVEOPT: these are executed without the host's help.
    pub(in crate::engine::soft) xsave: bool,
    pub(in crate::engine::soft) avx: bool,
    pub(in crate::engine::soft) avx2: bool,
    pub(in crate::engine::soft) fma: bool,
    pub(in crate::engine::soft) f16c: bool,
}

impl Offer {
    /// All that this host can execute.
    pub(in crate::engine::soft) fn of_host() -> Self {
        let avx = host_has!("avx");
        Self {
            sse3: host_has!("sse3"),
            ssse3: host_has!("ssse3"),
            sse4_1: host_has!("sse4.1"),
            sse4_2: host_has!("sse4.2"),
            aes: host_has!("aes"),
            pclmulqdq: host_has!("pclmulqdq"),
            sha: host_has!("sha"),
            xsave: true,
            avx,
            avx2: avx && host_has!("avx2"),
            fma: avx && host_has!("fma"),
            f16c: avx && host_has!("f16c"),
        }
    }

    /// Whether all that `insn` needs is offered. Extensions that other parts of the software CPU execute are not.
    pub(super) fn covers(&self, insn: &Instruction) -> bool {
        use CpuidFeature as F;
        insn.cpuid_features().iter().all(|feature| match *feature {
            F::FPU | F::FPU287 | F::FPU387 | F::CMOV | F::MMX | F::FXSR | F::SSE | F::SSE2 | F::X64 => true,
            F::SSE3 => self.sse3,
            F::SSSE3 => self.ssse3,
            F::SSE4_1 => self.sse4_1,
            F::SSE4_2 => self.sse4_2,
            F::AES => self.aes,
            F::PCLMULQDQ => self.pclmulqdq,
            F::SHA => self.sha,
            F::XSAVE | F::XSAVEOPT => self.xsave,
            F::AVX => self.avx,
            F::AVX2 => self.avx2,
            F::FMA => self.fma,
            F::F16C => self.f16c,
            _ => false,
        })
    }
}
