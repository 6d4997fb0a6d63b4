//! All kinds of disks against a plain list of bytes, and against QEMU's tools.

use std::path::{Path, PathBuf};
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::mem::buffers::Buffers;
use crate::mem::{Backing, Ram};

/// Options for the image at `path` with nothing else said.
pub(super) fn options(path: &Path) -> DiskOptions {
    DiskOptions { path: path.into(), format: None, readonly: false, snapshot: false, direct: false }
}

/// A disk with memory of the guest's to read from and write to.
struct Bench {
    disk: Box<dyn Disk>,
    ram: Ram,
}

impl Bench {
    fn open(options: &DiskOptions) -> Self {
        Self::over(open(options).unwrap_or_else(|e| panic!("{e}")))
    }

    fn over(disk: Box<dyn Disk>) -> Self {
        Self { disk, ram: Ram::new(&[(0, 8 << 20)], Backing::Anonymous).unwrap() }
    }

    /// Buffers of uneven lengths and addresses for `len` bytes.
    fn buffers(&self, len: u64) -> Buffers {
        let mut bufs = Buffers::new(self.ram.clone());
        let (mut at, mut left) = (0x200, len);
        for piece in [4096, 512, 1536, 7, 505].into_iter().cycle() {
            if left == 0 {
                break;
            }
            let count = left.min(piece);
            bufs.push(at, count).unwrap();
            at += count + if piece == 512 { 512 } else { 0 };
            left -= count;
        }
        bufs
    }

    fn read(&mut self, at: u64, len: u64) -> io::Result<Vec<u8>> {
        let bufs = self.buffers(len);
        bufs.list().iter().for_each(|b| assert!(b.copy_from(&[0xee; 4096]) > 0));
        self.disk.read(at, bufs.list())?;
        let mut bytes = Vec::new();
        for buf in bufs.list() {
            let mut piece = vec![0; buf.len()];
            buf.copy_to(&mut piece);
            bytes.extend(piece);
        }
        Ok(bytes)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> io::Result<()> {
        let bufs = self.buffers(bytes.len() as u64);
        let mut done = 0;
        for buf in bufs.list() {
            done += buf.copy_from(&bytes[done..]);
        }
        self.disk.write(at, bufs.list())
    }
}

fn qemu_img(args: &[&str]) -> Option<String> {
    let out = match Command::new("qemu-img").args(args).output() {
        Ok(out) => out,
        Err(_) => {
            eprintln!("\nSKIPPED: no qemu-img (apt-get install qemu-utils)");
            return None;
        }
    };
    assert!(out.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    Some(String::from_utf8_lossy(&out.stdout).into())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Bytes that differ from sector to sector.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i / 512 * 31 + i % 512 + usize::from(seed)) as u8).collect()
}

/// What may be done to a disk.
#[derive(Debug, Clone)]
enum Op {
    Read(u64, u64),
    Write(u64, u64, u8),
    Zero(u64, u64, bool),
    Discard(u64, u64),
    Flush,
    Reopen,
}

/// Sectors of the disks below: not a multiple of any cluster.
const SECTORS: u64 = 3001;

fn op() -> impl Strategy<Value = Op> {
    let range = (0..SECTORS, prop_oneof![1u64..20, 1u64..600])
        .prop_map(|(at, len)| (at * SECTOR, len.min(SECTORS - at) * SECTOR));
    prop_oneof![
        4 => range.clone().prop_map(|(at, len)| Op::Read(at, len)),
        6 => (range.clone(), 1u8..255).prop_map(|((at, len), seed)| Op::Write(at, len, seed)),
        2 => (range.clone(), any::<bool>()).prop_map(|((at, len), unmap)| Op::Zero(at, len, unmap)),
        1 => range.prop_map(|(at, len)| Op::Discard(at, len)),
        1 => Just(Op::Flush),
        1 => Just(Op::Reopen),
    ]
}

/// Does `ops` to the disk of `options` and to a list; returns the list in the end. Discarded bytes are unknown until
/// they are read once.
fn compare(options: &DiskOptions, mut model: Vec<u8>, ops: &[Op]) -> Vec<u8> {
    let mut bench = Bench::open(options);
    assert_eq!(bench.disk.size(), SECTORS * SECTOR);
    for op in ops {
        match *op {
            Op::Read(at, len) => {
                let seen = bench.read(at, len).unwrap();
                assert!(seen == model[at as usize..(at + len) as usize], "{op:?} of {ops:?}");
            }
            Op::Write(at, len, seed) => {
                let bytes = pattern(len as usize, seed);
                bench.write(at, &bytes).unwrap();
                model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
            }
            Op::Zero(at, len, unmap) => {
                bench.disk.write_zeroes(at, len, unmap).unwrap();
                model[at as usize..(at + len) as usize].fill(0);
            }
            Op::Discard(at, len) => {
                bench.disk.discard(at, len).unwrap();
                let seen = bench.read(at, len).unwrap();
                model[at as usize..(at + len) as usize].copy_from_slice(&seen);
            }
            Op::Flush => bench.disk.flush().unwrap(),
            Op::Reopen if options.snapshot => {}
            Op::Reopen => {
                drop(bench);
                bench = Bench::open(options);
            }
        }
    }
    assert!(bench.read(0, SECTORS * SECTOR).unwrap() == model, "at the end of {ops:?}");
    model
}

/// A folder on a real disk, so that direct I/O means something.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(".").unwrap()
}

fn raw_image(folder: &Path, name: &str) -> (PathBuf, Vec<u8>) {
    let bytes = pattern((SECTORS * SECTOR) as usize, 3);
    let path = folder.join(name);
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn raw_disks_behave_like_a_list_of_bytes(ops in prop::collection::vec(op(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = raw_image(dir.path(), "disk.img");
        let model = compare(&options(&path), bytes, &ops);
        prop_assert!(std::fs::read(&path).unwrap() == model);
    }

    #[test]
    fn direct_disks_too(ops in prop::collection::vec(op(), 1..25)) {
        let dir = folder();
        let path = dir.path().join("disk.img");
        // With direct I/O the last block must be whole, so the image is longer than the part that is compared.
        let bytes = pattern((SECTORS * SECTOR) as usize, 3);
        std::fs::write(&path, &bytes).unwrap();
        let direct = DiskOptions { direct: true, ..options(&path) };
        match open(&direct) {
            Err(Error::Direct { .. }) => std::fs::File::options().write(true).open(&path).unwrap()
                .set_len((SECTORS * SECTOR).next_multiple_of(4096)).unwrap(),
            other => drop(other.unwrap()),
        }
        let mut bench = Bench::open(&direct);
        let mut model = bytes;
        for op in &ops {
            match *op {
                Op::Read(at, len) => {
                    let seen = bench.read(at, len).unwrap();
                    prop_assert!(seen == model[at as usize..(at + len) as usize]);
                }
                Op::Write(at, len, seed) => {
                    let bytes = pattern(len as usize, seed);
                    bench.write(at, &bytes).unwrap();
                    model[at as usize..(at + len) as usize].copy_from_slice(&bytes);
                }
                Op::Zero(at, len, unmap) => {
                    bench.disk.write_zeroes(at, len, unmap).unwrap();
                    model[at as usize..(at + len) as usize].fill(0);
                }
                _ => bench.disk.flush().unwrap(),
            }
        }
        prop_assert!(bench.read(0, SECTORS * SECTOR).unwrap() == model);
    }

    #[test]
    fn snapshots_too_and_the_image_stays(ops in prop::collection::vec(op(), 1..40)) {
        let dir = tempfile::tempdir().unwrap();
        let (path, bytes) = raw_image(dir.path(), "disk.img");
        compare(&DiskOptions { snapshot: true, ..options(&path) }, bytes.clone(), &ops);
        prop_assert!(std::fs::read(&path).unwrap() == bytes);
    }

    #[test]
    fn qcow2_disks_too_and_qemu_agrees(ops in prop::collection::vec(op(), 1..40), kind in 0usize..4) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.qcow2");
        let create = ["cluster_size=64k", "cluster_size=512", "cluster_size=2M,refcount_bits=1", "compat=0.10"][kind];
        let (base, bytes) = raw_image(dir.path(), "base.img");
        let args = ["create", "-q", "-f", "qcow2", "-o", create, "-b", "base.img", "-F", "raw", text(&path)];
        if qemu_img(&args).is_none() {
            return Ok(());
        }
        let model = compare(&options(&path), bytes.clone(), &ops);
        prop_assert!(std::fs::read(&base).unwrap() == bytes);
        qemu_img(&["check", "-q", text(&path)]);
        let flat = dir.path().join("flat");
        qemu_img(&["convert", "-O", "raw", text(&path), text(&flat)]);
        prop_assert!(std::fs::read(&flat).unwrap() == model);
    }
}

/// A small qcow2 image with data in it, made once.
fn small_qcow2() -> Option<&'static [u8]> {
    static IMAGE: std::sync::OnceLock<Option<Vec<u8>>> = std::sync::OnceLock::new();
    let make = || {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("small.qcow2");
        qemu_img(&["create", "-q", "-f", "qcow2", "-o", "cluster_size=512", text(&path), "128k"])?;
        let mut bench = Bench::open(&options(&path));
        bench.write(0, &pattern(20_480, 1)).unwrap();
        drop(bench);
        Some(std::fs::read(&path).unwrap())
    };
    IMAGE.get_or_init(make).as_deref()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Damaged tables make errors, not more: neither crashes nor endless work.
    #[test]
    fn damaged_qcow2_images_are_survived(damage in prop::collection::vec((0usize..6000, any::<u8>()), 1..8), deep in any::<bool>()) {
        let Some(good) = small_qcow2() else { return Ok(()) };
        let mut bytes = good.to_vec();
        for (at, value) in damage {
            // Most of the header decides whether it is opened at all: do not stop there every time.
            let at = if deep { at + 104 } else { at % 512 };
            bytes[at] = value;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("damaged.qcow2");
        std::fs::write(&path, &bytes).unwrap();
        let start = std::time::Instant::now();
        if let Ok(disk) = open(&options(&path)) {
            let mut bench = Bench::over(disk);
            for at in (0..bench.disk.size().min(1 << 20)).step_by(4096) {
                let len = 4096.min(bench.disk.size() - at);
                let _ = bench.read(at, len);
                let _ = bench.write(at, &pattern(len as usize, 9));
            }
            let _ = bench.disk.write_zeroes(0, 8192.min(bench.disk.size()), true);
            let _ = bench.disk.flush();
        }
        prop_assert!(start.elapsed() < std::time::Duration::from_secs(20));
    }
}

#[test]
fn chains_of_backing_files_and_internal_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let (_, mut model) = raw_image(dir.path(), "base.img");
    let at = |name: &str| dir.path().join(name);
    let create = |name: &str, base: &str, format: &str| {
        qemu_img(&["create", "-q", "-f", "qcow2", "-b", base, "-F", format, text(&at(name))]).is_some()
    };
    if !create("1.qcow2", "base.img", "raw") {
        return;
    }
    for (index, name) in ["1.qcow2", "2.qcow2", "3.qcow2"].into_iter().enumerate() {
        if index > 0 {
            assert!(create(name, &format!("{index}.qcow2"), "qcow2"));
        }
        let mut bench = Bench::open(&options(&at(name)));
        assert!(bench.read(0, SECTORS * SECTOR).unwrap() == model, "{name}");
        let bytes = pattern(70_144, index as u8 + 50);
        bench.write(index as u64 * 99_840, &bytes).unwrap();
        model[index * 99_840..][..70_144].copy_from_slice(&bytes);
    }
    qemu_img(&["snapshot", "-c", "before", text(&at("3.qcow2"))]);
    let mut bench = Bench::open(&options(&at("3.qcow2")));
    let bytes = pattern(200_192, 99);
    bench.write(150_016, &bytes).unwrap();
    let before = model.clone();
    model[150_016..][..200_192].copy_from_slice(&bytes);
    assert!(bench.read(0, SECTORS * SECTOR).unwrap() == model);
    drop(bench);
    qemu_img(&["check", "-q", text(&at("3.qcow2"))]);
    qemu_img(&["convert", "-O", "raw", "-l", "before", text(&at("3.qcow2")), text(&at("old"))]);
    assert!(std::fs::read(at("old")).unwrap() == before);

    // The chain below is locked against writers, and compressed images can be read.
    let _top = open(&options(&at("3.qcow2"))).unwrap();
    let middle = open(&options(&at("2.qcow2"))).unwrap_err().to_string();
    assert!(middle.contains("is in use"), "{middle}");
    qemu_img(&["convert", "-c", "-O", "qcow2", text(&at("old")), text(&at("small.qcow2"))]);
    let mut small = Bench::open(&DiskOptions { snapshot: true, ..options(&at("small.qcow2")) });
    assert!(small.read(0, SECTORS * SECTOR).unwrap() == before);
    small.write(512, &[1; 512]).unwrap();
    assert_eq!(small.read(0, 1024).unwrap()[512..], [1; 512]);
}

#[test]
fn qemu_and_we_respect_each_others_locks() {
    let dir = tempfile::tempdir().unwrap();
    let (path, _) = raw_image(dir.path(), "disk.img");
    let out = dir.path().join("copy");
    let copy = || Command::new("qemu-img").args(["convert", "-f", "raw", text(&path), text(&out)]).output();
    if copy().is_err() {
        eprintln!("\nSKIPPED: no qemu-img (apt-get install qemu-utils)");
        return;
    }
    let writer = open(&options(&path)).unwrap();
    assert!(!copy().unwrap().status.success(), "QEMU reads what we write to");
    drop(writer);
    let readers = open(&DiskOptions { readonly: true, ..options(&path) }).unwrap();
    assert!(copy().unwrap().status.success(), "QEMU cannot read what we read");
    let resize = Command::new("qemu-img").args(["resize", "-f", "raw", text(&path), "9M"]).output().unwrap();
    assert!(!resize.status.success(), "QEMU writes to what we read");
    drop(readers);
}

#[test]
fn images_that_cannot_be_used_say_why_and_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    let refusal = |options: &DiskOptions| {
        let text = open(options).unwrap_err().to_string();
        assert!(!text.contains('\n') && !text.is_empty(), "{text}");
        text
    };
    assert!(refusal(&options(&file("empty", b""))).contains("truncate -s"));
    assert!(refusal(&options(&file("a.vhdx", b"vhdxfile and more"))).contains("VHDX"));
    assert!(refusal(&options(&file("a.img.xz", b"\xfd7zXZ\0\0"))).contains("unxz -k"));
    let raw = file("raw", &[1; 4096]);
    let as_qcow2 = DiskOptions { format: Some(Format::Qcow2), ..options(&raw) };
    assert!(refusal(&as_qcow2).contains("does not start with the qcow2 signature"));
    for len in [4, 8, 72, 104, 512, 70_000] {
        let mut head = vec![0xff; len];
        head[..4].copy_from_slice(b"QFI\xfb");
        head.iter_mut().skip(4).take(4).zip([0, 0, 0, 3]).for_each(|(to, from)| *to = from);
        let text = refusal(&options(&file("bad.qcow2", &head)));
        assert!(text.contains("bad.qcow2"), "{text}");
    }
    if qemu_img(&["create", "-q", "-f", "qcow2", text(&dir.path().join("good.qcow2")), "1M"]).is_none() {
        return;
    }
    let good = std::fs::read(dir.path().join("good.qcow2")).unwrap();
    for (offset, value, words) in [
        (79, 1, "check -r all"),
        (79, 4, "data in another file"),
        (79, 8, "zstd"),
        (35, 1, "encrypted"),
        (7, 9, "version"),
    ] {
        let mut bytes = good.clone();
        bytes[offset] = value;
        let text = refusal(&options(&file("changed.qcow2", &bytes)));
        assert!(text.contains(words), "{text}");
    }
    let lost = dir.path().join("lost.qcow2");
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", "gone.img", "-F", "raw", text(&lost), "1M"]);
    let text_of_lost = refusal(&options(&lost));
    assert!(text_of_lost.contains("Backing file") && text_of_lost.contains("gone.img"), "{text_of_lost}");
    let remote = dir.path().join("remote.qcow2");
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", "nbd://x/y", "-F", "raw", text(&remote), "1M"]);
    assert!(refusal(&options(&remote)).contains("not a file"));
    let looped = dir.path().join("loop.qcow2");
    qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-b", "loop.qcow2", "-F", "qcow2", text(&looped), "1M"]);
    assert!(refusal(&DiskOptions { readonly: true, ..options(&looped) }).contains("loop"));
}

#[test]
fn a_guessed_raw_image_stays_one() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = raw_image(dir.path(), "disk.img");
    let mut header = pattern(4096, 1);
    header[..4].copy_from_slice(b"QFI\xfb");
    let mut bench = Bench::open(&options(&path));
    assert_eq!(bench.write(0, &header).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    bench.write(512, &header).unwrap();
    bench.write(0, &bytes[..1024]).unwrap();
    assert!(bench.read(0, 1024).unwrap() == bytes[..1024]);
    drop(bench);
    let mut told = Bench::open(&DiskOptions { format: Some(Format::Raw), ..options(&path) });
    told.write(0, &header).unwrap();
    drop(told);
    let mut told = Bench::open(&DiskOptions { format: Some(Format::Raw), ..options(&path) });
    assert!(told.read(0, 4096).unwrap() == header);
    drop(told);
    assert!(open(&options(&path)).is_err(), "this is no valid qcow2 image");
}

#[test]
fn sizes_are_right_whatever_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("disk.img");
    let file = std::fs::File::create(&path).unwrap();
    file.set_len(3 << 40).unwrap();
    for snapshot in [false, true] {
        let mut bench = Bench::open(&DiskOptions { snapshot, ..options(&path) });
        assert_eq!(bench.disk.size(), 3 << 40);
        let last = (3 << 40) - 512;
        bench.write(last, &[7; 512]).unwrap();
        assert_eq!(bench.read(last, 512).unwrap(), [7; 512]);
        for (at, len) in [(3 << 40, 512), (last, 1024), (u64::MAX - 511, 512), (100, 512), (0, 100)] {
            assert!(bench.read(at, len).is_err(), "{at} {len}");
            assert!(bench.write(at, &vec![0; len as usize]).is_err());
            assert!(bench.disk.write_zeroes(at, len, true).is_err());
            assert!(bench.disk.discard(at, len).is_err());
        }
    }
    file.set_len(1000).unwrap();
    std::fs::write(&path, [9; 1000]).unwrap();
    let mut bench = Bench::open(&options(&path));
    assert_eq!(bench.disk.size(), 1024);
    let seen = bench.read(512, 512).unwrap();
    assert!(seen[..488] == [9; 488] && seen[488..] == [0; 24]);
    bench.write(512, &[4; 512]).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1024);
    file.set_len(1 << 20).unwrap();
    bench.disk.refresh_size().unwrap();
    assert_eq!(bench.disk.size(), 1 << 20);
    file.set_len(512).unwrap();
    assert!(bench.read(4096, 512).is_err(), "the file was cut off underneath");
}

#[test]
fn read_only_disks_and_full_file_systems_answer_with_errors() {
    let dir = tempfile::tempdir().unwrap();
    let (path, bytes) = raw_image(dir.path(), "disk.img");
    let mut bench = Bench::open(&DiskOptions { readonly: true, ..options(&path) });
    assert!(bench.write(0, &[1; 512]).is_err());
    assert!(bench.disk.write_zeroes(0, 512, true).is_err());
    assert!(bench.disk.discard(0, 512).is_err());
    assert!(bench.read(0, SECTORS * SECTOR).unwrap() == bytes);

    // A file that cannot grow stands for a full file system: the snapshot's size is in it already, so use a qcow2.
    let image = dir.path().join("disk.qcow2");
    if qemu_img(&["create", "-q", "-f", "qcow2", text(&image), "64M"]).is_none() {
        return;
    }
    let sealed = rustix::fs::memfd_create("full", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::io::write(&sealed, &std::fs::read(&image).unwrap()).unwrap();
    rustix::fs::fcntl_add_seals(&sealed, rustix::fs::SealFlags::GROW).unwrap();
    use std::os::fd::AsRawFd;
    let path = PathBuf::from(format!("/proc/self/fd/{}", sealed.as_raw_fd()));
    let mut bench = Bench::open(&options(&path));
    assert!(bench.write(0, &[1; 4096]).is_err());
    assert_eq!(bench.read(0, 4096).unwrap(), [0; 4096]);
}
