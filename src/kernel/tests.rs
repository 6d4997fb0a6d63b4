//! Finding kernels and their modules, in made-up installations.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::fixtures::*;
use super::store::{Keep, Store};
use super::*;
use crate::loader::fixtures::vmlinux;

struct Setup {
    dir: tempfile::TempDir,
    places: Places,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = |name: &str| Some(Store::at(&dir.path().join(name)));
        let places = Places {
            root: dir.path().join("host"),
            running: Some("6.1.0-running".into()),
            store: store("store"),
            unpacked: store("cache"),
        };
        Self { dir, places }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    fn find(&self, name: &str) -> Result<Kernel, String> {
        self.places.find(Some(self.path(name).to_str().unwrap()), None).map_err(|error| said(&error))
    }

    fn named(&self, name: &str) -> Result<Kernel, String> {
        self.places.find(Some(name), None).map_err(|error| said(&error))
    }

    fn default(&self) -> Result<Kernel, String> {
        self.places.find(None, None).map_err(|error| said(&error))
    }
}

/// The error with its causes.
fn said(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", said(cause)),
        None => error.to_string(),
    }
}

fn names(modules: &[Module]) -> Vec<&str> {
    modules.iter().map(|module| module.name.as_str()).collect()
}

#[test]
fn an_image_with_its_modules_and_configuration_beside_it() {
    let s = Setup::new();
    s.put("a/bzImage", bz_image());
    s.put("a/config", "CONFIG_VIRTIO_FS=m\nCONFIG_OVERLAY_FS=m\nCONFIG_TMPFS=y\n");
    s.put("a/lib/modules/6.1.0-test/kernel/fs/fuse/fuse.ko.zst", zstd(&module_of(RELEASE, "", "")));
    s.put("a/lib/modules/6.1.0-test/kernel/fs/fuse/virtiofs.ko.xz", xz(&module_of(RELEASE, "fuse", "")));
    for name in ["a/bzImage", "a"] {
        let kernel = s.find(name).unwrap();
        assert_eq!(kernel.release.as_deref(), Some(RELEASE));
        assert_eq!(kernel.support(Feature::Tmpfs), Support::BuiltIn);
        assert_eq!(kernel.support(Feature::Ext4), Support::Missing { option: "EXT4_FS" });
        assert_eq!(kernel.support(Feature::VirtioFs), Support::Modules(vec!["virtiofs".into()]));
        let modules = kernel.modules(&[Feature::VirtioFs, Feature::Tmpfs, Feature::Ext4]).unwrap();
        assert_eq!(names(&modules), ["fuse", "virtiofs"], "what is needed comes first");
        assert_eq!(modules[0].data, module_of(RELEASE, "", ""), "unpacked");
        let lacks = kernel.lacks(&[Feature::Tmpfs, Feature::VirtioFs, Feature::Ext4, Feature::Overlay]);
        assert_eq!(lacks[0].text, "this kernel has no ext4 (CONFIG_EXT4_FS)");
        assert!(lacks[1].text.contains("(CONFIG_OVERLAY_FS) in a module, and overlay.ko is not in /"), "{lacks:?}");
        assert_eq!(lacks.len(), 2);
    }
}

#[test]
fn an_elf_file_has_its_release_in_its_banner() {
    let s = Setup::new();
    let mut file = vmlinux();
    file.extend(b"Linux version 6.9.3-own (me@here) #1");
    s.put("vmlinux", &file);
    let kernel = s.find("vmlinux").unwrap();
    assert_eq!(kernel.release.as_deref(), Some("6.9.3-own"));
    assert_eq!(kernel.support(Feature::VirtioFs), Support::Unknown);
    assert!(kernel.lacks(&[Feature::VirtioFs]).is_empty());
    assert!(kernel.modules(&[Feature::VirtioFs]).unwrap().is_empty());
}

#[test]
fn installed_kernels_are_found_by_release_and_the_newest_by_itself() {
    let s = Setup::new();
    for release in ["6.2.0-1", "6.12.0-1", "6.12.0-1.old", "5.1.0"] {
        s.put(&format!("host/boot/vmlinuz-{release}"), bz_image());
    }
    s.put("host/usr/lib/modules/6.9.9-fedora/vmlinuz", bz_image());
    s.put("host/lib/modules/6.2.0-1/modules.builtin", "kernel/fs/ext4/ext4.ko\n");
    s.put("host/lib/modules/6.2.0-1/modules.dep", "kernel/fs/fuse/virtiofs.ko: kernel/fs/fuse/fuse.ko\n");
    s.put("host/lib/modules/6.2.0-1/kernel/fs/fuse/virtiofs.ko", module_of(RELEASE, "", ""));
    assert!(s.default().unwrap().image.ends_with("host/boot/vmlinuz-6.12.0-1"));
    assert!(s.named("6.9.9-fedora").unwrap().image.ends_with("6.9.9-fedora/vmlinuz"));
    let kernel = s.named("6.2.0-1").unwrap();
    assert_eq!(kernel.support(Feature::Ext4), Support::BuiltIn, "from the list of what is built in");
    assert_eq!(kernel.support(Feature::VirtioFs), Support::Modules(vec!["virtiofs".into()]));
    assert_eq!(kernel.support(Feature::Xfs), Support::Missing { option: "XFS_FS" });
    assert_eq!(kernel.support(Feature::Tmpfs), Support::Unknown, "no module, no configuration");
    assert!(s.named("6.3.0").unwrap_err().contains("No kernel 6.3.0"));
    s.put("host/boot/vmlinuz-6.1.0-running", bz_image());
    let kernel = s.default().unwrap();
    assert!(kernel.image.ends_with("vmlinuz-6.1.0-running") && kernel.origin.ends_with("the running one"));
}

#[test]
fn nothing_anywhere_says_what_to_do() {
    let s = Setup::new();
    let error = s.default().unwrap_err();
    assert!(error.contains("--kernel") && error.contains("belljar kernel add"), "{error}");
    assert!(s.places.all().is_empty());
}

/// As Ubuntu installs them. Root may read them all the same, so it does without that right here.
#[test]
fn images_that_this_user_may_not_read_are_passed_over_and_named() {
    use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};
    let s = Setup::new();
    let unreadable = s.put("host/boot/vmlinuz-6.8.0-generic", bz_image());
    fs::set_permissions(&unreadable, fs::Permissions::from_mode(0o000)).unwrap();
    let as_an_ordinary_user = || {
        let none = CapabilitySet::empty();
        set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none }).unwrap();
        assert!(
            s.default().unwrap_err().contains("vmlinuz-6.8.0-generic cannot be read by this user, which sudo chmod")
        );
        assert!(s.named("6.8.0-generic").unwrap_err().contains("Permission denied"));
        s.put("host/boot/vmlinuz-6.7.0-mine", bz_image());
        let kernel = s.default().unwrap();
        assert!(kernel.image.ends_with("vmlinuz-6.7.0-mine"));
        assert!(kernel.notices[0].contains("would change: using /"));
        assert_eq!(s.places.all().iter().filter(|(_, _, kernel)| kernel.is_err()).count(), 1);
    };
    std::thread::scope(|scope| scope.spawn(as_an_ordinary_user).join().unwrap());
}

#[test]
fn a_build_tree_needs_no_installation() {
    let s = Setup::new();
    s.put("linux/include/config/kernel.release", "6.1.0-test\n");
    assert!(s.find("linux").unwrap_err().contains("run make in it first"));
    s.put("linux/arch/x86/boot/bzImage", bz_image());
    s.put("linux/.config", "CONFIG_VIRTIO_FS=m\nCONFIG_EXT4_FS=m\n");
    s.put("linux/fs/fuse/virtiofs.ko", module_of(RELEASE, "fuse", ""));
    s.put("linux/fs/fuse/fuse.ko", module_of(RELEASE, "", ""));
    s.put("linux/kernel/test-it.ko", module_of(RELEASE, "", ""));
    // Without a list, with one as of Linux 6.2, with one of before.
    for list in ["", "fs/fuse/virtiofs.o\nfs/fuse/fuse.o\n", "kernel/fs/fuse/virtiofs.ko\nkernel/fs/fuse/fuse.ko\n"] {
        if !list.is_empty() {
            s.put("linux/modules.order", list);
        }
        for name in ["linux", "linux/arch/x86/boot/bzImage"] {
            let kernel = s.find(name).unwrap();
            let modules = kernel.modules(&[Feature::VirtioFs]).unwrap();
            assert_eq!(names(&modules), ["fuse", "virtiofs"], "{list} {name}");
            assert!(kernel.lacks(&[Feature::Ext4])[0].text.contains("ext4.ko is not in"));
        }
    }
    // `make vmlinux` leaves an older bzImage as it is.
    s.put("linux/vmlinux", vmlinux());
    let old = fs::File::options().write(true).open(s.path("linux/arch/x86/boot/bzImage")).unwrap();
    old.set_modified(std::time::UNIX_EPOCH).unwrap();
    let kernel = s.find("linux").unwrap();
    assert!(kernel.image.ends_with("linux/vmlinux"));
    assert_eq!(kernel.release.as_deref(), Some("6.1.0-test"));
}

#[test]
fn modules_come_from_where_they_are_said_to_be() {
    let s = Setup::new();
    s.put("bzImage", bz_image());
    s.put("m/lib/modules/6.1.0-test/kernel/virtio_blk.ko", module_of(RELEASE, "", ""));
    s.put("other/kernel/virtio_blk.ko", module_of("6.1.0-other", "", ""));
    s.put("empty/readme", "");
    let image = s.path("bzImage");
    let with = |name: &str| s.places.find(image.to_str(), Some(&s.path(name)));
    for name in ["m", "m/lib/modules", "m/lib/modules/6.1.0-test"] {
        let kernel = with(name).unwrap();
        assert_eq!(names(&kernel.modules(&[Feature::VirtioBlk]).unwrap()), ["virtio_blk"], "{name}");
    }
    let error = with("empty").unwrap_err().to_string();
    assert!(error.contains("empty has no modules of this kernel (6.1.0-test)"), "{error}");
    let error = with("other").unwrap().modules(&[Feature::VirtioBlk]).unwrap_err().to_string();
    assert!(error.contains("it is for kernel 6.1.0-other, and this is 6.1.0-test"), "{error}");
}

#[test]
fn dependencies_are_followed_and_mistakes_in_them_are_said() {
    let s = Setup::new();
    s.put("bzImage", bz_image());
    let put = |name: &str, content: Vec<u8>| s.put(&format!("lib/modules/6.1.0-test/kernel/{name}"), content);
    put("virtio-blk.ko", module_of(RELEASE, "virtio_ring", "softdep=pre: crc32c nothing\0"));
    put("deep/er/virtio_ring.ko", module_of(RELEASE, "", ""));
    put("crc32c_generic.ko", module_of(RELEASE, "", ""));
    put("virtio_net.ko", module_of(RELEASE, "failover", ""));
    put("vfat.ko", module_of(RELEASE, "isofs", ""));
    put("isofs.ko", module_of(RELEASE, "vfat", ""));
    put("xfs.ko", b"not a module".to_vec());
    symlink("/", s.path("lib/modules/6.1.0-test/build")).unwrap();
    symlink(".", s.path("lib/modules/6.1.0-test/kernel/loop")).unwrap();
    let kernel = s.find("bzImage").unwrap();
    let load = |feature| kernel.modules(&[feature]).map_err(|error| said(&error));
    assert_eq!(names(&load(Feature::VirtioBlk).unwrap()), ["crc32c_generic", "virtio_ring", "virtio_blk"]);
    assert_eq!(names(&kernel.modules_by_name(&["virtio-ring"]).unwrap()), ["virtio_ring"]);
    assert!(load(Feature::VirtioNet).unwrap_err().contains("Module failover, which virtio_net needs, is not in"));
    assert_eq!(names(&load(Feature::Vfat).unwrap()), ["isofs", "vfat"], "a circle ends");
    assert!(load(Feature::Xfs).unwrap_err().contains("it is no kernel module for x86-64"));
    // What is known to be built in is no module that is missing.
    s.put("lib/modules/6.1.0-test/modules.builtin", "kernel/net/core/failover.ko\n");
    let kernel = s.find("bzImage").unwrap();
    assert_eq!(names(&kernel.modules(&[Feature::VirtioNet]).unwrap()), ["virtio_net"]);
}

#[test]
fn a_chain_of_modules_has_an_end() {
    let s = Setup::new();
    s.put("bzImage", bz_image());
    for n in 0..100 {
        let content = module_of(RELEASE, &format!("m{}", n + 1), "");
        s.put(&format!("lib/modules/6.1.0-test/kernel/m{n}.ko"), content);
    }
    let error = s.find("bzImage").unwrap().modules_by_name(&["m0"]).unwrap_err();
    assert!(error.to_string().contains("too long a chain"), "{error}");
}

#[test]
fn what_is_no_kernel_is_said_to_be_none() {
    let s = Setup::new();
    s.put("text", "hello");
    s.put("dir/readme", "");
    assert!(s.find("text").unwrap_err().contains("is not a kernel for this machine"));
    assert!(s.find("dir").unwrap_err().contains("is no kernel tree"));
    assert!(s.find("none").unwrap_err().contains("Cannot read kernel"));
    assert!(s.named("").unwrap_err().contains("Cannot read kernel"));
}

#[test]
fn kernels_are_kept_listed_and_removed() {
    let s = Setup::new();
    s.put("k/bzImage", bz_image());
    s.put("k/config", "CONFIG_VIRTIO_FS=m\n");
    s.put("k/lib/modules/6.1.0-test/kernel/fs/virtiofs.ko.gz", gzip(&module_of(RELEASE, "", "")));
    s.put("k/lib/modules/6.1.0-test/modules.builtin", "kernel/fs/ext4/ext4.ko\n");
    let from = s.path("k");
    let from = [from.to_str().unwrap()];
    let keep = |name, force| s.places.keep(&from, None, Keep { name, force }).map_err(|error| said(&error));
    let (name, kernel) = keep(None, false).unwrap();
    assert_eq!(name, RELEASE);
    assert!(kernel.image.starts_with(s.path("store")));
    assert_eq!(names(&kernel.modules(&[Feature::VirtioFs]).unwrap()), ["virtiofs"]);
    assert_eq!(kernel.number_of_modules(), 1);
    assert!(keep(None, false).unwrap_err().contains("6.1.0-test is kept already"));
    keep(None, true).unwrap();
    keep(Some("mine"), false).unwrap();
    assert!(keep(Some("../x"), false).unwrap_err().contains("cannot be the name"));
    fs::remove_dir_all(s.path("k")).unwrap();
    assert_eq!(s.named("mine").unwrap().release.as_deref(), Some(RELEASE));
    assert!(s.default().unwrap().origin.starts_with("kept, from "));
    let listed: Vec<_> = s.places.all().into_iter().map(|(name, kept, kernel)| (name, kept, kernel.is_ok())).collect();
    assert_eq!(listed, [(RELEASE.to_owned(), true, true), ("mine".to_owned(), true, true)]);
    s.places.forget("mine").unwrap();
    assert!(s.places.forget("mine").is_err() && s.places.forget("..").is_err());
    let left: Vec<_> = fs::read_dir(s.path("store")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "one kernel, one lock, nothing else: {left:?}");
}

#[test]
fn a_build_tree_is_kept_as_it_would_be_installed() {
    let s = Setup::new();
    s.put("linux/include/config/kernel.release", "6.1.0-test\n");
    s.put("linux/arch/x86/boot/bzImage", bz_image());
    s.put("linux/fs/virtiofs.ko", module_of(RELEASE, "", ""));
    s.put("linux/modules.order", "fs/virtiofs.o\nfs/not-built.o\n");
    let (name, kernel) = s.places.keep(&[s.path("linux").to_str().unwrap()], None, Keep::default()).unwrap();
    assert!(s.path("store").join(name).join("lib/modules/6.1.0-test/kernel/fs/virtiofs.ko").exists());
    assert_eq!(names(&kernel.modules(&[Feature::VirtioFs]).unwrap()), ["virtiofs"]);
}

#[test]
fn many_at_once_keep_one_kernel_each() {
    let s = Setup::new();
    s.put("bzImage", bz_image());
    let from = s.path("bzImage");
    let from = [from.to_str().unwrap()];
    let kept = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| s.places.keep(&from, None, Keep::default()).is_ok())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|ok| *ok).count()
    });
    assert_eq!(kept, 1);
    assert_eq!(s.places.store.as_ref().unwrap().names(), [RELEASE]);
}

#[test]
fn what_dead_processes_left_is_swept_up() {
    let s = Setup::new();
    s.put("bzImage", bz_image());
    s.put("store/.tmp-0123/boot/vmlinuz", "half");
    s.places.keep(&[s.path("bzImage").to_str().unwrap()], None, Keep::default()).unwrap();
    assert!(!s.path("store/.tmp-0123").exists());
}

/// Images are where they were installed, or were copied from there.
#[test]
fn a_copied_image_finds_the_modules_that_are_installed() {
    let s = Setup::new();
    s.put("elsewhere/kernel", bz_image());
    s.put("host/lib/modules/6.1.0-test/kernel/virtiofs.ko", module_of(RELEASE, "", ""));
    let kernel = s.find("elsewhere/kernel").unwrap();
    assert_eq!(names(&kernel.modules(&[Feature::VirtioFs]).unwrap()), ["virtiofs"]);
    assert!(!Path::new("elsewhere").exists());
}

/// The release in an image's header is part of the paths that it is kept under.
#[test]
fn an_image_cannot_choose_where_it_is_kept() {
    let s = Setup::new();
    let mut image = bz_image();
    image[0x300..0x310].copy_from_slice(b"../../../escaped");
    s.put("bzImage", &image);
    let keep = |name| s.places.keep(&[s.path("bzImage").to_str().unwrap()], None, Keep { name, force: false });
    assert!(matches!(keep(None), Err(Error::Nameless(_))));
    let (name, kernel) = keep(Some("mine")).unwrap();
    assert!(kernel.image.starts_with(s.path("store").join(name)));
    assert_eq!(kernel.release, None, "a name is no release");
}
