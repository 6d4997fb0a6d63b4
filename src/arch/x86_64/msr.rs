//! Model-specific registers (Intel SDM volume 4; AMD APM volume 2, appendix A).

/// Time-stamp counter.
pub const TSC: u32 = 0x10;
/// Miscellaneous features; bit 0 enables fast string operations.
pub const MISC_ENABLE: u32 = 0x1a0;
/// Fast string operations, bit 0 of [`MISC_ENABLE`].
pub const MISC_ENABLE_FAST_STRING: u64 = 1;
/// Default memory type of MTRRs.
pub const MTRR_DEF_TYPE: u32 = 0x2ff;
/// [`MTRR_DEF_TYPE`]: MTRRs enabled (bit 11), write-back (6).
pub const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// What makes up the state of a CPU beside its registers, in the order in which it must be restored (the deadline after
/// the counter it is compared with). Those that a host does not know are left out.
pub const SAVED: &[u32] = &[
    TSC,
    0x3b,  // TSC_ADJUST
    0x174, // SYSENTER_CS
    0x175, // SYSENTER_ESP
    0x176, // SYSENTER_EIP
    MISC_ENABLE,
    0x277, // PAT
    MTRR_DEF_TYPE,
    0x6e0,       // TSC_DEADLINE
    0xc000_0081, // STAR
    0xc000_0082, // LSTAR
    0xc000_0083, // CSTAR
    0xc000_0084, // SFMASK
    0xc000_0102, // KERNEL_GS_BASE
    0xc000_0103, // TSC_AUX
    0x4b56_4d00, // KVM wall clock
    0x4b56_4d01, // KVM system time
    0x4b56_4d02, // KVM async page fault
    0x4b56_4d03, // KVM steal time
    0x4b56_4d04, // KVM end of interrupt
    0x4b56_4d05, // KVM poll control
];
