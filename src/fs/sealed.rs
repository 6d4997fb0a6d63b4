//! Mounts of the host whose content is not files but the host itself: processes, devices' settings, control groups. The
//! guest finds such a directory empty, and mounts its own there.

use std::os::fd::AsFd;

use rustix::fs::fstatfs;

/// Magic numbers (`linux/magic.h`) of file systems that are windows to the host's kernel.
const WINDOWS: &[u32] = &[
    0x9fa0,      // proc
    0x6265_6572, // sysfs
    0x0027_e0eb, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0x7363_6673, // securityfs
    0x6265_6570, // configfs
    0xcafe_4a11, // bpf
    0x6165_676c, // pstore
    0xde5e_81e4, // efivarfs
    0x6573_5543, // fusectl
    0x4249_4e4d, // binfmt_misc
    0x1cd1,      // devpts
    0x1980_0202, // mqueue
    0x6e73_6673, // nsfs
    0xf97c_ff8c, // selinuxfs
    0x0187,      // autofs
];

/// Whether the directory `fd` is such a mount.
pub(super) fn is_sealed(fd: impl AsFd) -> bool {
    // What cannot be asked cannot be listed either.
    fstatfs(fd).map_or(true, |stat| WINDOWS.contains(&(stat.f_type as u32)))
}
