//! Made-up modules, kernels and packages for tests.

use std::io::Write;

use crate::loader::fixtures::{Packed, bzimage};

/// The release of [`bz_image`].
pub const RELEASE: &str = "6.1.0-test";

/// A kernel module with this `.modinfo` and nothing else.
pub fn module(modinfo: &str) -> Vec<u8> {
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut file = vec![0; 64];
    file[..8].copy_from_slice(b"\x7fELF\x02\x01\x01\0");
    let info = (64, modinfo.len());
    file.extend(modinfo.as_bytes());
    let strings = (file.len(), names.len());
    file.extend(names);
    file.resize(file.len().next_multiple_of(8), 0);
    let table = file.len();
    for (name, (start, len)) in [(0u32, (0, 0)), (1, info), (10, strings)] {
        let mut header = [0; 64];
        header[..4].copy_from_slice(&name.to_le_bytes());
        header[24..32].copy_from_slice(&(start as u64).to_le_bytes());
        header[32..40].copy_from_slice(&(len as u64).to_le_bytes());
        file.extend(header);
    }
    let mut put =
        |at: usize, value: u64, size: usize| file[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
    put(16, 1, 2);
    put(18, 62, 2);
    put(40, table as u64, 8);
    put(58, 64, 2);
    put(60, 3, 2);
    put(62, 2, 2);
    file
}

/// A module of the kernel `release` that needs others; `more` is further `.modinfo`.
pub fn module_of(release: &str, depends: &str, more: &str) -> Vec<u8> {
    module(&format!("depends={depends}\0{more}vermagic={release} SMP mod_unload \0"))
}

/// A bzImage that says that it is [`RELEASE`].
pub fn bz_image() -> Vec<u8> {
    bzimage(&Packed { payload: b"payload".to_vec(), ..Packed::default() })
}

/// A file of a package.
pub type PackedFile<'a> = (&'a str, &'a [u8]);

/// What a small kernel package has in it, below `lib` or wherever the distribution has its modules.
pub fn kernel_files() -> Vec<(String, Vec<u8>)> {
    let module = |depends| module_of(RELEASE, depends, "");
    vec![
        (format!("boot/vmlinuz-{RELEASE}"), bz_image()),
        (format!("boot/config-{RELEASE}"), b"CONFIG_VIRTIO_FS=m\nCONFIG_FUSE_FS=m\nCONFIG_TMPFS=y\n".to_vec()),
        (format!("lib/modules/{RELEASE}/kernel/fs/fuse/fuse.ko"), module("")),
        (format!("lib/modules/{RELEASE}/kernel/fs/fuse/virtiofs.ko"), module("fuse")),
        ("usr/share/doc/linux/copyright".into(), b"GPL".to_vec()),
    ]
}

/// A tar archive.
pub fn tar<'a>(files: impl IntoIterator<Item = PackedFile<'a>>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Names that the crate would refuse.
        if name.contains("..") {
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, content).unwrap();
        } else {
            builder.append_data(&mut header, name, content).unwrap();
        }
    }
    builder.into_inner().unwrap()
}

/// A Debian package with these two archives, already compressed.
pub fn deb(control: &[u8], data: &[u8]) -> Vec<u8> {
    let mut file = b"!<arch>\n".to_vec();
    for (name, content) in [("debian-binary", &b"2.0\n"[..]), ("control.tar.gz", control), ("data.tar.xz", data)] {
        file.extend(format!("{name:<16}{:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 0, 100_644, content.len()).bytes());
        file.extend(content);
        file.resize(file.len().next_multiple_of(2), b'\n');
    }
    file
}

/// A Debian package's `control.tar`.
pub fn control(name: &str, depends: &str) -> Vec<u8> {
    tar([("./control", format!("Package: {name}\nDepends: {depends}\nArchitecture: amd64\n").as_bytes())])
}

/// An RPM package around a cpio archive, already compressed.
pub fn rpm(name: &str, payload: &[u8]) -> Vec<u8> {
    let header = |entries: &[(u32, &str)]| {
        let store: Vec<u8> = entries.iter().flat_map(|(_, text)| [text.as_bytes(), b"\0"].concat()).collect();
        let mut bytes = b"\x8e\xad\xe8\x01\0\0\0\0".to_vec();
        bytes.extend((entries.len() as u32).to_be_bytes());
        bytes.extend((store.len() as u32).to_be_bytes());
        let mut at = 0;
        for (tag, text) in entries {
            for number in [*tag, 6, at, 1] {
                bytes.extend(number.to_be_bytes());
            }
            at += text.len() as u32 + 1;
        }
        bytes.extend(store);
        bytes
    };
    let mut file = b"\xed\xab\xee\xdb\x03\0".to_vec();
    file.resize(96, 0);
    file.extend(header(&[(1000, "signature")]));
    file.resize(file.len().next_multiple_of(8), 0);
    file.extend(header(&[(1000, name), (1124, "cpio")]));
    file.extend(payload);
    file
}

/// The cpio archive of an RPM package.
pub fn cpio<'a>(files: impl IntoIterator<Item = PackedFile<'a>>) -> Vec<u8> {
    let mut archive = crate::loader::initramfs::Archive::new(Vec::new());
    for (name, content) in files {
        archive.file(name, 0o644, content).unwrap();
    }
    archive.finish().unwrap()
}

/// Compressed as packages are.
pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Compressed as packages are.
pub fn xz(data: &[u8]) -> Vec<u8> {
    let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 1);
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

/// Compressed as packages are.
pub fn zstd(data: &[u8]) -> Vec<u8> {
    ::zstd::encode_all(data, 1).unwrap()
}
