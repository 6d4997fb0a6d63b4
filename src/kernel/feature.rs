//! What machines want of their kernels: which option and which modules each of these things is, and whether a kernel
//! has it.

use super::Kernel;
use super::config::Setting;

/// Something that a kernel has or lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs, reason = "`row` says what each is")]
pub enum Feature {
    Initramfs,
    Devtmpfs,
    Tmpfs,
    Proc,
    Sysfs,
    Elf,
    Scripts,
    Acpi,
    Serial,
    VirtioPci,
    VirtioMmio,
    VirtioBlk,
    VirtioNet,
    VirtioConsole,
    VirtioRng,
    VirtioBalloon,
    Vsock,
    VirtioFs,
    Pvpanic,
    Overlay,
    Ext4,
    Xfs,
    Btrfs,
    Squashfs,
    Erofs,
    Iso9660,
    Vfat,
    Unix,
    Inet,
    Ipv6,
    Packet,
}

/// How the kernel's build knows a feature.
struct Row {
    /// For messages.
    about: &'static str,
    /// Option, without `CONFIG_`.
    option: &'static str,
    /// Its module; none if it cannot be one.
    module: Option<&'static str>,
    /// What is in the kernel's symbol table if it is built in, in all versions since 5.4.
    symbol: &'static str,
}

/// Whether and how a kernel has a feature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// Without further ado.
    BuiltIn,
    /// With these modules, whose own dependencies [`Kernel::modules`] knows.
    Modules(Vec<String>),
    /// By a module that is not to be found.
    NoModule {
        /// The option, without `CONFIG_`.
        option: &'static str,
        /// The module.
        module: &'static str,
    },
    /// Not at all.
    Missing {
        /// The option, without `CONFIG_`.
        option: &'static str,
    },
    /// Neither configuration nor modules nor symbols are known.
    Unknown,
}

/// What `belljar run` cannot do without, whatever root and network it is given.
pub const FOR_ANY_RUN: &[Feature] = &[
    Feature::Initramfs,
    Feature::Devtmpfs,
    Feature::Proc,
    Feature::Sysfs,
    Feature::Tmpfs,
    Feature::Elf,
    Feature::Unix,
    Feature::Acpi,
    Feature::VirtioPci,
];
/// What `belljar run` needs beside for a directory as the root, which is the default.
pub const FOR_A_DIRECTORY: &[Feature] = &[Feature::VirtioFs, Feature::Overlay];

impl Feature {
    fn row(self) -> Row {
        let row = |about, option, module, symbol| Row { about, option, module: Some(module), symbol };
        let always = |about, option, symbol| Row { about, option, module: None, symbol };
        match self {
            Self::Initramfs => always("initial RAM file systems", "BLK_DEV_INITRD", "unpack_to_rootfs"),
            Self::Devtmpfs => always("devtmpfs", "DEVTMPFS", "devtmpfsd"),
            Self::Tmpfs => always("tmpfs", "TMPFS", "shmem_fs_type"),
            Self::Proc => always("/proc", "PROC_FS", "proc_fs_type"),
            Self::Sysfs => always("/sys", "SYSFS", "sysfs_fs_type"),
            Self::Elf => always("ELF programs", "BINFMT_ELF", "elf_format"),
            Self::Scripts => row("scripts that begin with #!", "BINFMT_SCRIPT", "binfmt_script", "script_format"),
            Self::Acpi => always("ACPI", "ACPI", "acpi_bus_type"),
            Self::Serial => always("a console on the serial port", "SERIAL_8250_CONSOLE", "univ8250_console"),
            Self::VirtioPci => row("virtio over PCI", "VIRTIO_PCI", "virtio_pci", "virtio_pci_driver"),
            Self::VirtioMmio => row("virtio-mmio", "VIRTIO_MMIO", "virtio_mmio", "virtio_mmio_driver"),
            Self::VirtioBlk => row("virtio disks", "VIRTIO_BLK", "virtio_blk", "virtio_blk"),
            Self::VirtioNet => row("virtio network interfaces", "VIRTIO_NET", "virtio_net", "virtio_net_driver"),
            Self::VirtioConsole => row("virtio consoles", "VIRTIO_CONSOLE", "virtio_console", "virtio_console"),
            Self::VirtioRng => row("virtio random numbers", "HW_RANDOM_VIRTIO", "virtio_rng", "virtio_rng_driver"),
            Self::VirtioBalloon => {
                row("the virtio balloon", "VIRTIO_BALLOON", "virtio_balloon", "virtio_balloon_driver")
            }
            Self::Vsock => {
                row("virtio sockets", "VIRTIO_VSOCKETS", "vmw_vsock_virtio_transport", "virtio_vsock_driver")
            }
            Self::VirtioFs => row("virtio-fs", "VIRTIO_FS", "virtiofs", "virtio_fs_type"),
            Self::Pvpanic => row("pvpanic", "PVPANIC_MMIO", "pvpanic_mmio", "pvpanic_mmio_driver"),
            Self::Overlay => row("overlay file systems", "OVERLAY_FS", "overlay", "ovl_fs_type"),
            Self::Ext4 => row("ext4", "EXT4_FS", "ext4", "ext4_fs_type"),
            Self::Xfs => row("XFS", "XFS_FS", "xfs", "xfs_fs_type"),
            Self::Btrfs => row("Btrfs", "BTRFS_FS", "btrfs", "btrfs_fs_type"),
            Self::Squashfs => row("SquashFS", "SQUASHFS", "squashfs", "squashfs_fs_type"),
            Self::Erofs => row("EROFS", "EROFS_FS", "erofs", "erofs_fs_type"),
            Self::Iso9660 => row("ISO 9660", "ISO9660_FS", "isofs", "iso9660_fs_type"),
            Self::Vfat => row("VFAT", "VFAT_FS", "vfat", "vfat_fs_type"),
            Self::Unix => row("UNIX sockets", "UNIX", "unix", "unix_family_ops"),
            Self::Inet => always("IPv4", "INET", "inet_family_ops"),
            Self::Ipv6 => row("IPv6", "IPV6", "ipv6", "inet6_family_ops"),
            Self::Packet => row("packet sockets", "PACKET", "af_packet", "packet_family_ops"),
        }
    }

    /// The feature that mounting this type of file system needs, if it is known here.
    pub fn of_filesystem(fstype: &str) -> Option<Self> {
        Some(match fstype {
            "ext2" | "ext3" | "ext4" => Self::Ext4,
            "xfs" => Self::Xfs,
            "btrfs" => Self::Btrfs,
            "squashfs" => Self::Squashfs,
            "erofs" => Self::Erofs,
            "iso9660" => Self::Iso9660,
            "vfat" => Self::Vfat,
            "virtiofs" => Self::VirtioFs,
            "overlay" => Self::Overlay,
            "tmpfs" => Self::Tmpfs,
            _ => return None,
        })
    }

    /// Option and what it is, `virtio-fs (CONFIG_VIRTIO_FS)`.
    pub fn described(self) -> String {
        let Row { about, option, .. } = self.row();
        format!("{about} (CONFIG_{option})")
    }

    /// The option without `CONFIG_`.
    pub fn option(self) -> &'static str {
        self.row().option
    }
}

/// Something that a kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lack {
    /// What.
    pub feature: Feature,
    /// A sentence that says so, without full stop, and what helps.
    pub text: String,
}

impl Kernel {
    /// Whether and how this kernel has `feature`.
    pub fn support(&self, feature: Feature) -> Support {
        let Row { option, module, symbol, .. } = feature.row();
        let tree = self.tree();
        let found = module.filter(|name| tree.is_some_and(|tree| tree.has(name)));
        let built_in = module.is_some_and(|name| tree.is_some_and(|tree| tree.is_builtin(name)));
        match (self.config().map(|config| config.setting(option)), found, module) {
            (Some(Setting::BuiltIn), ..) => Support::BuiltIn,
            (Some(Setting::Module), Some(name), _) => Support::Modules(vec![name.to_owned()]),
            (Some(Setting::Module), None, _) if built_in => Support::BuiltIn,
            (Some(Setting::Module), None, Some(module)) => Support::NoModule { option, module },
            (Some(_), ..) => Support::Missing { option },
            (None, Some(name), _) => Support::Modules(vec![name.to_owned()]),
            (None, None, Some(_)) if built_in => Support::BuiltIn,
            // A list of what is built in is complete.
            (None, None, Some(_)) if tree.is_some_and(|tree| tree.knows_builtin()) => Support::Missing { option },
            (None, None, _) => match self.symbols().map(|symbols| symbols.has(symbol)) {
                Some(true) => Support::BuiltIn,
                Some(false) => Support::Missing { option },
                None => Support::Unknown,
            },
        }
    }

    /// Which of `needed` this kernel lacks, so that it can be said before anything is started. What is not known counts
    /// as there.
    pub fn lacks(&self, needed: &[Feature]) -> Vec<Lack> {
        needed.iter().filter_map(|&feature| Some(Lack { feature, text: self.lack(feature)? })).collect()
    }

    fn lack(&self, feature: Feature) -> Option<String> {
        let what = feature.described();
        match self.support(feature) {
            Support::BuiltIn | Support::Modules(_) | Support::Unknown => None,
            Support::Missing { .. } => Some(format!("this kernel has no {what}")),
            Support::NoModule { module, .. } => Some(match self.modules_directory() {
                Some(path) => {
                    format!("this kernel has {what} in a module, and {module}.ko is not in {}", path.display())
                }
                None => format!("this kernel has {what} in a module, and no modules are with it: give --modules DIR"),
            }),
        }
    }
}
