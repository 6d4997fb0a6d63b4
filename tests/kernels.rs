//! Kernels as distributions ship them: what they have is told right, and the modules that are found for a machine load in
//! the order in which they come. The rest is tested beside `src/kernel`, with kernels made up there.

mod common;

use std::os::fd::AsRawFd;
use std::process::Command;

use belljar::kernel::{self, FOR_A_DIRECTORY, FOR_ANY_RUN, Feature, Kernel, Support};
use belljar::loader::initramfs::Archive;
use common::{BOOT, Session};

const KERNELS: [&str; 3] = ["kernel-6.12-cloud", "kernel-6.1-cloud", "kernel-6.1"];
/// All that machines may have devices for, and what is mounted.
const WANTED: [Feature; 12] = [
    Feature::VirtioPci,
    Feature::VirtioMmio,
    Feature::VirtioBlk,
    Feature::VirtioNet,
    Feature::VirtioConsole,
    Feature::VirtioRng,
    Feature::VirtioBalloon,
    Feature::Vsock,
    Feature::VirtioFs,
    Feature::Overlay,
    Feature::Ext4,
    Feature::Pvpanic,
];

fn find(asset: &str) -> Option<Kernel> {
    let path = common::asset(asset)?;
    Some(kernel::find(path.to_str(), None).unwrap())
}

#[test]
fn debian_kernels_have_what_run_needs() {
    for name in KERNELS {
        let Some(kernel) = find(name) else { return };
        let release = kernel.release.clone().unwrap();
        assert!(release.ends_with("-amd64"), "{release}");
        assert_eq!(kernel.lacks(&[FOR_ANY_RUN, FOR_A_DIRECTORY, &WANTED].concat()), [], "{name}");
        assert_eq!(kernel.support(Feature::Tmpfs), Support::BuiltIn);
        assert!(matches!(kernel.support(Feature::VirtioBlk), Support::Modules(_)));
        let modules = kernel.modules(&WANTED).unwrap();
        let at = |name: &str| modules.iter().position(|module| module.name == name);
        assert!(at("vsock").unwrap() < at("vmw_vsock_virtio_transport_common").unwrap());
        assert!(at("vmw_vsock_virtio_transport_common").unwrap() < at("vmw_vsock_virtio_transport").unwrap());
        assert!(modules.iter().all(|module| module.data.starts_with(b"\x7fELF")));
    }
}

/// A file alone, without the configuration that is usually in it: symbols tell the same as that of the tree.
#[test]
fn symbols_tell_what_a_kernel_has() {
    let Some(tree) = find("tree-small") else { return };
    let mut vmlinux = std::fs::read(common::asset("tree-small").unwrap().join("vmlinux")).unwrap();
    let mark = b"IKCFG_ST";
    let at = vmlinux.windows(mark.len()).position(|bytes| bytes == mark).expect("CONFIG_IKCONFIG");
    vmlinux[at] = 0;
    let dir = common::scratch();
    let path = dir.path().join("vmlinux");
    std::fs::write(&path, vmlinux).unwrap();
    let alone = kernel::find(path.to_str(), None).unwrap();
    for feature in [FOR_ANY_RUN, FOR_A_DIRECTORY, &WANTED, &[Feature::Scripts, Feature::Serial, Feature::Inet]].concat()
    {
        let support = alone.support(feature);
        assert_eq!(support, tree.support(feature), "{feature:?}");
        assert!(matches!(support, Support::BuiltIn | Support::Missing { .. }), "{feature:?}: {support:?}");
    }
}

/// The kernel of which everything is a module. `guest-init` tells on the console which of them do not load.
#[test]
fn modules_load_in_the_order_in_which_they_are_found() {
    let (Some(engine), Some(kernel), Some(busybox)) = (common::engine(), find("kernel-6.1"), common::asset("busybox"))
    else {
        return;
    };
    let mut archive = Archive::in_memory().unwrap();
    archive.file("/init", 0o755, include_bytes!("../scripts/lib/guest-init")).unwrap();
    archive.file("/bin/busybox", 0o755, &std::fs::read(busybox).unwrap()).unwrap();
    archive.symlink("/bin/sh", "busybox").unwrap();
    for directory in ["dev", "proc", "sys", "tmp", "root", "mnt"] {
        archive.directory(directory, 0o755).unwrap();
    }
    let modules = kernel.modules(&WANTED).unwrap();
    for (number, module) in modules.iter().enumerate() {
        archive.file(format!("/modules/{number:03}-{}.ko", module.name), 0o644, &module.data).unwrap();
    }
    let archive = archive.finish().unwrap();
    let script =
        "sort /proc/modules | cut -d' ' -f1; grep -c virtiofs /proc/filesystems; ls -d /sys/bus/virtio/devices/*";
    let mut command = Command::new(common::belljar());
    command.args(["boot", "--engine", engine, "--rng", "--timeout", "110", "--kernel"]).arg(&kernel.image);
    command.arg("--initrd").arg(format!("/proc/{}/fd/{}", std::process::id(), archive.as_raw_fd()));
    command.args(["--append", &format!("quiet bj.cmd={}", common::base64(script.as_bytes()))]);
    let outcome = Session::start(command).finish(BOOT);
    outcome.code(0).shows("belljar-guest: status 0").shows("/sys/bus/virtio/devices/virtio0");
    assert!(!outcome.console.contains("insmod:"), "{}", outcome.console);
    for module in &modules {
        assert!(outcome.console.contains(&module.name), "{} is not loaded:\n{}", module.name, outcome.console);
    }
}
