//! Packages made here, sound ones and others.

use std::fs;
use std::path::PathBuf;

use super::super::fixtures::*;
use super::super::store::Store;
use super::super::{Error, Feature, Kernel, Places};

struct Setup {
    dir: tempfile::TempDir,
    places: Places,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = |name: &str| Some(Store::at(&dir.path().join(name)));
        let places =
            Places { root: dir.path().join("host"), running: None, store: store("store"), unpacked: store("cache") };
        Self { dir, places }
    }

    fn put(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn find(&self, content: &[u8]) -> Result<Kernel, Error> {
        let path = self.put("package", content);
        self.places.find(path.to_str(), None)
    }

    /// What is said of a package that cannot be used.
    fn said(&self, content: &[u8]) -> String {
        let error = self.find(content).expect_err("it should not be accepted");
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
        format!("{error}{}", cause.unwrap_or_default())
    }
}

fn files() -> Vec<u8> {
    tar(kernel_files().iter().map(|(name, content)| (name.as_str(), content.as_slice())))
}

fn payload() -> Vec<u8> {
    cpio(kernel_files().iter().map(|(name, content)| (name.as_str(), content.as_slice())))
}

fn debian(data: &[u8]) -> Vec<u8> {
    deb(&gzip(&control("linux-image-test", "kmod, linux-base (>= 4.3~)")), data)
}

/// What all packages of [`kernel_files`] must be.
fn check(kernel: &Kernel) {
    assert_eq!(kernel.release.as_deref(), Some(RELEASE));
    let modules = kernel.modules(&[Feature::VirtioFs, Feature::Tmpfs]).unwrap();
    assert_eq!(modules.iter().map(|module| &*module.name).collect::<Vec<_>>(), ["fuse", "virtiofs"]);
    assert!(kernel.origin.starts_with("package /"));
}

#[test]
fn packages_of_every_kind_are_unpacked_once() {
    let moved: Vec<_> = kernel_files()
        .into_iter()
        .map(|(name, content)| match name.strip_prefix("lib/") {
            Some(rest) => (format!("./usr/lib/{rest}"), content),
            None => (format!("./{name}"), content),
        })
        .collect();
    let usr = tar(moved.iter().map(|(name, content)| (name.as_str(), content.as_slice())));
    let packages = [
        debian(&xz(&files())),
        debian(&zstd(&usr)),
        debian(&files()),
        rpm("kernel-default", &zstd(&payload())),
        rpm("kernel-default", &xz(&payload())),
        rpm("kernel", &gzip(&payload())),
        zstd(&usr),
        files(),
    ];
    for (index, package) in packages.iter().enumerate() {
        let s = Setup::new();
        check(&s.find(package).unwrap_or_else(|error| panic!("{index}: {error}")));
        let cache = s.places.unpacked.clone().unwrap();
        let note = cache.root_of(&cache.names()[0]).join("boot");
        let before = fs::metadata(&note).unwrap().created().unwrap();
        check(&s.find_again());
        assert_eq!(fs::metadata(&note).unwrap().created().unwrap(), before);
        assert!(!cache.root_of(&cache.names()[0]).join("usr").exists(), "only what is a kernel's");
    }
}

impl Setup {
    fn find_again(&self) -> Kernel {
        self.places.find(self.dir.path().join("package").to_str(), None).unwrap()
    }
}

#[test]
fn several_packages_are_one_kernel() {
    let s = Setup::new();
    let all = kernel_files();
    let part = |wanted: &str| {
        let of = all.iter().filter(|(name, _)| name.starts_with(wanted));
        rpm(wanted, &zstd(&cpio(of.map(|(name, content)| (name.as_str(), content.as_slice())))))
    };
    let (core, modules) = (s.put("core.rpm", &part("boot")), s.put("modules.rpm", &part("lib")));
    let keep = |paths: &[&PathBuf]| {
        let paths: Vec<_> = paths.iter().map(|path| path.to_str().unwrap()).collect();
        s.places.keep(&paths, None, Default::default())
    };
    let error = keep(&[&modules]).unwrap_err().to_string();
    assert!(error.contains("it holds 2 modules only"), "{error}");
    let (name, kernel) = keep(&[&core, &modules]).unwrap();
    assert_eq!(name, RELEASE);
    assert_eq!(kernel.modules(&[Feature::VirtioFs]).unwrap().len(), 2);
    let text = s.put("text", b"hello");
    assert!(keep(&[&core, &text]).unwrap_err().to_string().contains("text is no package"));
}

#[test]
fn packages_without_a_kernel_say_what_is_wanted() {
    let s = Setup::new();
    let meta = deb(&gzip(&control("linux-image-amd64", "linux-image-6.1.0-56-amd64 (= 6.1.192-2)")), &xz(&tar([])));
    let said = s.said(&meta);
    assert!(said.contains("linux-image-amd64 only stands for linux-image-6.1.0-56-amd64"), "{said}");
    let said = s.said(&debian(&xz(&tar([("usr/bin/x", &b"x"[..])]))));
    assert!(said.contains("neither /boot/vmlinuz-RELEASE nor"), "{said}");
    let said = s.said(&rpm("bash", &zstd(&cpio([("usr/bin/bash", &b"x"[..])]))));
    assert!(said.contains("give a linux-image-* or kernel-core package"), "{said}");
}

#[test]
fn nothing_gets_out_of_its_directory() {
    let s = Setup::new();
    for name in ["../../etc/passwd", "boot/../../x", "lib/modules/6.1.0-test/../../../../x.ko"] {
        let said = s.said(&debian(&xz(&tar([(name, &b"evil"[..])]))));
        assert!(said.contains("outside of itself") && said.contains(name), "{said}");
    }
    // A link that a later file would go through, and a link in place of a kernel.
    let mut archive = tar::Builder::new(Vec::new());
    for (name, to) in [("lib/modules/6.1.0-test", "/tmp"), ("boot/vmlinuz-6.1.0-test", "/etc/passwd")] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        archive.append_link(&mut header, name, to).unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_size(4);
    archive.append_data(&mut header, "lib/modules/6.1.0-test/evil.ko", &b"evil"[..]).unwrap();
    let said = s.said(&debian(&archive.into_inner().unwrap()));
    assert!(said.contains("it holds 1 modules only"), "{said}");
    assert!(!std::path::Path::new("/tmp/evil.ko").exists());
    let store = fs::read_dir(s.dir.path().join("cache")).unwrap();
    assert_eq!(store.count(), 1, "only the lock is left");
}

#[test]
fn truncated_packages_are_refused() {
    let s = Setup::new();
    for whole in [debian(&xz(&files())), debian(&files()), rpm("kernel", &zstd(&payload())), xz(&files())] {
        for len in [whole.len() / 4, whole.len() / 2, whole.len() * 3 / 4] {
            let said = s.said(&whole[..len]);
            let known = ["damaged or truncated", "No kernel in the package", "is not a kernel"];
            assert!(known.iter().any(|text| said.contains(text)), "{said}");
        }
    }
}

#[test]
fn sizes_that_no_kernel_has_are_refused() {
    let s = Setup::new();
    let with_header = |change: fn(&mut tar::Header)| {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..23].copy_from_slice(b"boot/vmlinuz-6.1.0-test");
        header.set_size(0);
        change(&mut header);
        header.set_cksum();
        debian(&xz(&[&header.as_bytes()[..], &[0; 8192]].concat()))
    };
    let said = s.said(&with_header(|header| header.set_size(5 << 30)));
    assert!(said.contains("more than a kernel can have"), "{said}");
    let said = s.said(&with_header(|header| header.set_size(u64::MAX)));
    assert!(said.contains("Cannot unpack"), "{said}");
    for kind in [tar::EntryType::GNULongName, tar::EntryType::XHeader] {
        let mut package = tar::Header::new_gnu();
        package.set_entry_type(kind);
        package.set_size(1 << 30);
        package.set_cksum();
        let said = s.said(&debian(&xz(&[&package.as_bytes()[..], &[0; 8192]].concat())));
        assert!(said.contains("a name in it has 1073741824 bytes"), "{said}");
    }
    let mut huge = rpm("kernel", b"");
    let header = huge.windows(4).rposition(|w| w == b"\x8e\xad\xe8\x01").unwrap();
    huge[header + 8..header + 12].fill(0xff);
    assert!(s.said(&huge).contains("larger than any package's"));
    let mut member = debian(&xz(&files()));
    member[8 + 48..8 + 58].copy_from_slice(b"9999999999");
    assert!(s.said(&member).contains("damaged or truncated"));
}

/// Gigabytes of zeros compress to nothing; they are neither kept in memory nor read for ever.
#[test]
fn a_long_run_of_zeros_ends() {
    let s = Setup::new();
    let mut zeros = zstd::Encoder::new(Vec::new(), 1).unwrap();
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), 300 << 20), &mut zeros).unwrap();
    let said = s.said(&debian(&zeros.finish().unwrap()));
    assert!(said.contains("No kernel in the package"), "{said}");
}
