//! Packages with kernels, kernel modules and configurations, of unknown origin.

use std::path::{Path, PathBuf};

use super::memory_file;
use crate::kernel::{self, fixtures as made, package};

/// A directory that is empty for each input.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        let name = format!("belljar-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A package of any kind: what is unpacked stays where it belongs.
pub(super) fn package(data: &[u8]) {
    let (_file, path) = memory_file(data);
    let scratch = Scratch::new();
    let into = scratch.0.join("into");
    std::fs::create_dir(&into).unwrap();
    let _ = package::fill(&[Path::new(&path)], &into);
    let beside: Vec<_> = std::fs::read_dir(&scratch.0).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(beside, ["into"]);
}

pub(super) fn packages() -> Vec<Vec<u8>> {
    let files = made::kernel_files();
    let files = || files.iter().map(|(name, content)| (name.as_str(), content.as_slice()));
    let (tar, cpio) = (made::tar(files()), made::cpio(files()));
    let control = made::gzip(&made::control("linux-image-test", "linux-image-6.1"));
    vec![
        made::deb(&control, &made::xz(&tar)),
        // Nothing hides these from what changes bytes at random.
        made::deb(&control, &tar),
        made::rpm("kernel", &cpio),
        made::rpm("kernel", &made::zstd(&cpio)),
        tar,
    ]
}

/// A module and what it says of itself.
pub(super) fn module(data: &[u8]) {
    kernel::look_at_module(data);
}

pub(super) fn modules() -> Vec<Vec<u8>> {
    vec![
        made::module_of(made::RELEASE, "virtio,virtio_ring", "softdep=pre: crc32c post: x\0alias=virtio:d*\0"),
        made::bz_image(),
    ]
}
