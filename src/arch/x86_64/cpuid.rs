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
