//! Whole loads: what arrives in RAM, and what files of unknown origin can do.

use std::path::Path;

use proptest::prelude::*;

use super::fixtures::{self, FORMATS, LINUX_NOTES, Packed, load as piece, notes};
use super::*;
use crate::arch::x86_64::boot::{MemoryKind, MemoryRange};
use crate::mem::Backing;

const RAM: u64 = 8 << 20;

struct Setup {
    dir: tempfile::TempDir,
    ram: Ram,
}

impl Setup {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), ram: Ram::new(&[(0, RAM)], Backing::Anonymous).unwrap() }
    }

    fn request(&self, kernel: &[u8]) -> Boot {
        let path = self.dir.path().join("kernel");
        std::fs::write(&path, kernel).unwrap();
        request(path, cache::Policy::Off, RAM)
    }

    fn word(&self, at: u64, len: usize) -> u64 {
        let mut data = [0; 8];
        self.ram.read(at, &mut data[..len]).unwrap();
        u64::from_le_bytes(data)
    }

    fn bytes(&self, at: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.ram.read(at, &mut data).unwrap();
        data
    }
}

fn request(kernel: PathBuf, cache: cache::Policy, ram: u64) -> Boot {
    Boot {
        kernel,
        initrds: Vec::new(),
        cmdline: "console=ttyS0".into(),
        rsdp: layout::ACPI_TABLES,
        memory_map: layout::memory_map(ram),
        protocol: Protocol::Auto,
        decompress: true,
        cache,
        fresh: true,
    }
}

fn packed(format: unpack::Format) -> Vec<u8> {
    fixtures::bzimage(&Packed { payload: fixtures::pack(format, &fixtures::vmlinux()), ..Packed::default() })
}

/// Whether RAM holds the kernel of [`fixtures::vmlinux`].
fn has_vmlinux(setup: &Setup) -> bool {
    setup.bytes(0x10_4000, 5000) == [7; 5000] && setup.bytes(0x10_0000, 4) == [1, 2, 3, 4]
}

#[test]
fn vmlinux_gets_all_boot_parameters() {
    let s = Setup::new();
    let mut request = s.request(&fixtures::vmlinux());
    request.initrds = vec![Initrd::File(fixtures::file(b"archive"))];
    let loaded = load(&s.ram, &request).unwrap();
    assert!(has_vmlinux(&s));
    assert_eq!((loaded.report.kind, loaded.report.entry), (Kind::Vmlinux, 0x10_0020));
    assert_eq!(loaded.report.version.as_deref(), Some("6.12.1-test"));
    assert_eq!((loaded.state.regs.rip, loaded.state.regs.rsi), (0x10_0020, layout::BOOT_PARAMS));
    assert_eq!(loaded.state.system.cr3, layout::PAGE_TABLES);
    assert_eq!(s.word(layout::PAGE_TABLES, 8), layout::PAGE_TABLES + 0x1003);
    assert_eq!(s.word(layout::GDT + 16, 8), 0x00af_9b00_0000_ffff);
    let field = |at, len| s.word(layout::BOOT_PARAMS + at, len);
    assert_eq!(field(0x1fe, 2), 0xaa55);
    assert_eq!(field(0x202, 4), 0x5372_6448);
    assert_eq!((field(0x210, 1), field(0x211, 1)), (0xff, 1));
    assert_eq!(field(0x70, 8), layout::ACPI_TABLES);
    assert_eq!(field(0x228, 4), layout::CMDLINE);
    assert_eq!(s.bytes(layout::CMDLINE, 14), b"console=ttyS0\0");
    let initrd = loaded.report.initrd.unwrap();
    assert_eq!((field(0x218, 4), field(0x21c, 4)), (initrd.start, 7));
    assert_eq!(s.bytes(initrd.start, 7), b"archive");
    assert_eq!(field(0x1e8, 1), request.memory_map.len() as u64);
    assert_eq!((field(0x2d0, 8), field(0x2d8, 8), field(0x2e0, 4)), (0, layout::LOW_RAM_END, 1));
}

#[test]
fn every_packing_arrives_unpacked_and_the_next_start_takes_it_from_the_cache() {
    for &format in FORMATS {
        let s = Setup::new();
        let mut request = s.request(&packed(format));
        let loaded = load(&s.ram, &request).unwrap();
        assert!(has_vmlinux(&s), "{format:?}");
        let report = &loaded.report;
        assert_eq!((report.kind, report.packed, report.cached), (Kind::BzImage, Some(format), false));
        assert_eq!(report.version.as_deref(), Some("6.1.0-test"), "the file's own");
        assert_eq!(s.word(layout::BOOT_PARAMS + 0x260, 4), 0x20_0000, "init_size of the file's header");
        request.cache = cache::Policy::At(s.dir.path().join("cache"));
        assert!(!load(&Setup::new().ram, &request).unwrap().report.cached);
    }
    let s = Setup::new();
    let mut request = s.request(&packed(unpack::Format::Zstd));
    request.cache = cache::Policy::At(s.dir.path().to_owned());
    std::thread::sleep(std::time::Duration::from_millis(3100));
    assert!(!load(&Setup::new().ram, &request).unwrap().report.cached);
    let loaded = load(&s.ram, &request).unwrap();
    assert!(loaded.report.cached && has_vmlinux(&s));
}

#[test]
fn kernels_unpack_themselves_when_asked_to_or_when_the_format_is_unknown() {
    let unknown =
        fixtures::bzimage(&Packed { payload: b"\x89NEW\0\r\n\x1a\n............".to_vec(), ..Packed::default() });
    let text =
        fixtures::pack(unpack::Format::Gzip, b"not an ELF file, but long enough to have a header if it were one.");
    let not_elf = fixtures::bzimage(&Packed { payload: text, ..Packed::default() });
    for (file, decompress) in [(packed(unpack::Format::Xz), false), (unknown, true), (not_elf, true)] {
        let s = Setup::new();
        let mut request = s.request(&file);
        request.decompress = decompress;
        request.initrds = vec![Initrd::File(fixtures::file(b"archive"))];
        let loaded = load(&s.ram, &request).unwrap();
        assert_eq!((loaded.report.kind, loaded.state.regs.rip), (Kind::BzImageSelfExtracting, 0x10_0200));
        assert_eq!(s.bytes(0x10_0000, 4), [0x90; 4]);
        assert!(loaded.report.initrd.unwrap().start >= 0x30_0000, "outside of the space to unpack to");
    }
}

#[test]
fn pvh_is_used_when_asked_for_or_when_there_is_nothing_else() {
    let s = Setup::new();
    let other = fixtures::elf(
        0xffff_ffff_8010_0000,
        &[piece(0x10_0000, &[0xf4; 64], 0), notes(&[(b"Xen\0", 18, &[0x10, 0, 0x10, 0])])],
    );
    let mut request = s.request(&other);
    request.initrds = vec![Initrd::File(fixtures::file(b"module"))];
    let loaded = load(&s.ram, &request).unwrap();
    assert_eq!((loaded.report.kind, loaded.state.regs.rip), (Kind::Pvh, 0x10_0010));
    assert_eq!((loaded.state.regs.rbx, loaded.state.system.cr0), (layout::PVH_START_INFO, 0x11));
    let field = |at, len| s.word(layout::PVH_START_INFO + at, len);
    assert_eq!((field(0, 4), field(4, 4), field(12, 4)), (0x336e_c578, 1, 1));
    assert_eq!((field(24, 8), field(32, 8)), (layout::CMDLINE, layout::ACPI_TABLES));
    assert_eq!((field(48, 4), s.word(field(40, 8), 8)), (request.memory_map.len() as u64, 0));
    let initrd = loaded.report.initrd.unwrap();
    assert_eq!((s.word(field(16, 8), 8), s.word(field(16, 8) + 8, 8)), (initrd.start, 6));

    let mut linux = s.request(&fixtures::vmlinux());
    for (protocol, kind) in
        [(Protocol::Auto, Kind::Vmlinux), (Protocol::Linux, Kind::Vmlinux), (Protocol::Pvh, Kind::Pvh)]
    {
        linux.protocol = protocol;
        assert_eq!(load(&s.ram, &linux).unwrap().report.kind, kind);
    }
    let plain = fixtures::elf(0x10_0000, &[piece(0x10_0000, &[0xf4; 64], 0), notes(&LINUX_NOTES[..1])]);
    let mut request = s.request(&plain);
    assert_eq!(load(&s.ram, &request).unwrap().report.kind, Kind::Vmlinux);
    request.protocol = Protocol::Pvh;
    assert!(load(&s.ram, &request).unwrap_err().to_string().contains("no PVH entry"));
}

#[test]
fn other_files_are_called_by_their_name() {
    let s = Setup::new();
    for (content, name) in [
        (&b""[..], "empty"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"070701", "cpio"),
        (b"!<arch>\ndebian-binary", "Debian"),
        (b"QFI\xfb", "qcow2"),
        (b"MZ..", "EFI"),
        (b"hello", "something else"),
    ] {
        let error = load(&s.ram, &s.request(content)).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
    }
    let error = load(&s.ram, &request("/no/such".into(), cache::Policy::Off, RAM)).unwrap_err().to_string();
    assert_eq!(error, "Cannot read kernel /no/such");
    let error = load(&s.ram, &request("/".into(), cache::Policy::Off, RAM)).unwrap_err().to_string();
    assert!(error.contains("directory"), "{error}");
}

#[test]
fn requests_that_do_not_fit_are_refused() {
    let s = Setup::new();
    let mut request = s.request(&fixtures::vmlinux());
    request.cmdline = "x".repeat(2048);
    assert!(matches!(load(&s.ram, &request), Err(Error::Cmdline { .. })));
    request.cmdline.clear();
    request.memory_map = vec![MemoryRange { start: 0, len: 1, kind: MemoryKind::Ram }; 200];
    assert!(matches!(load(&s.ram, &request), Err(Error::MemoryMap { len: 200 })));
    request.protocol = Protocol::Pvh;
    assert!(matches!(load(&s.ram, &request), Err(Error::MemoryMap { len: 200 })));
    request.memory_map.clear();
    request.initrds = vec![Initrd::File(fixtures::file(&vec![1; 7 << 20]))];
    assert!(matches!(load(&s.ram, &request), Err(Error::Initrd(_))));
    let small = Ram::new(&[(0, 0x8000)], Backing::Anonymous).unwrap();
    assert!(load(&small, &s.request(&fixtures::vmlinux())).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Headers with random damage: no panic, and nothing but loaded pieces and boot structures in RAM.
    #[test]
    fn damaged_kernels_do_no_harm(
        which in 0..FORMATS.len() + 2,
        changes in prop::collection::vec((0..0x300usize, any::<u8>()), 1..6),
        cut in prop::option::of(0..20_000usize),
    ) {
        let mut file = match which {
            0 | 1 => fixtures::vmlinux(),
            n => packed(FORMATS[n - 2]),
        };
        for (at, value) in changes {
            file[at] = value;
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        let s = Setup::new();
        s.ram.write(0x7000, &[0xaa; 0x1000]).unwrap();
        s.ram.write(layout::ACPI_TABLES, &[0xaa; 0x1000]).unwrap();
        let request = s.request(&file);
        let loaded = load(&s.ram, &request);
        if let Ok(loaded) = loaded {
            prop_assert!(s.ram.host_address(loaded.state.regs.rip, 1).is_ok());
        }
        prop_assert_eq!(s.bytes(layout::ACPI_TABLES, 0x1000), vec![0xaa; 0x1000]);
    }

    /// Program headers with extreme numbers.
    #[test]
    fn hostile_program_headers_do_no_harm(
        fields in prop::collection::vec((0..3usize, 0..7usize, prop_oneof![
            Just(0u64), Just(u64::MAX), Just(1 << 63), 0..u64::MAX, 0..0x10_0000u64, Just(RAM), Just(RAM - 1),
        ]), 1..5),
    ) {
        let mut file = fixtures::vmlinux();
        for (header, field, value) in fields {
            let at = 64 + header * 56 + field * 8;
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        let s = Setup::new();
        let mut request = s.request(&file);
        request.fresh = false;
        let _ = load(&s.ram, &request);
        prop_assert_eq!(s.bytes(0, 0x1000), vec![0; 0x1000]);
        prop_assert_eq!(s.bytes(layout::ACPI_TABLES, 0x2_0000), vec![0; 0x2_0000]);
    }
}

/// Kernels that `scripts/assets` fetched, if they are there.
#[test]
fn debian_kernels_load() {
    let Some(assets) = cache::user_directory(|name| std::env::var_os(name)).map(|dir| dir.join("assets")) else {
        return;
    };
    for (name, release) in [("kernel-6.12-cloud", "6.12."), ("kernel-6.1-cloud", "6.1.")] {
        let dir = assets.join(name);
        if !dir.join("bzImage").exists() {
            eprintln!("\nSKIPPED: {} is missing; scripts/assets {name} fetches it", dir.display());
            continue;
        }
        load_debian(&dir, release);
    }
}

fn load_debian(dir: &Path, release: &str) {
    let ram = || Ram::new(&layout::ram_layout(256 << 20), Backing::Anonymous).unwrap();
    let cache = tempfile::tempdir().unwrap();
    // Copies, because the assets may be made anew at any time; files must settle before they are cached.
    for name in ["bzImage", "vmlinux"] {
        std::fs::copy(dir.join(name), cache.path().join(name)).unwrap();
    }
    std::thread::sleep(std::time::Duration::from_millis(3100));
    let at = |name: &str| request(cache.path().join(name), cache::Policy::At(cache.path().to_owned()), 256 << 20);
    let (first, second, plain) = (ram(), ram(), ram());
    let unpacked = load(&first, &at("bzImage")).unwrap();
    let cached = load(&second, &at("bzImage")).unwrap();
    let vmlinux = load(&plain, &at("vmlinux")).unwrap();
    assert!(!unpacked.report.cached && cached.report.cached);
    assert!(cached.report.version.as_deref().is_some_and(|v| v.starts_with(release)), "{:?}", cached.report);
    assert_eq!(vmlinux.report.kind, Kind::Vmlinux);
    assert_eq!(unpacked.state, cached.state);
    assert_eq!(unpacked.state, vmlinux.state);
    let (mut a, mut b, mut c) = (vec![0; 1 << 20], vec![0; 1 << 20], vec![0; 1 << 20]);
    for at in (1 << 20..128 << 20).step_by(1 << 20) {
        first.read(at, &mut a).unwrap();
        second.read(at, &mut b).unwrap();
        plain.read(at, &mut c).unwrap();
        assert!(a == b && b == c, "RAM differs at {at:#x}");
    }
    let mut itself = at("bzImage");
    itself.decompress = false;
    assert_eq!(load(&ram(), &itself).unwrap().report.entry, 0x100_0200);
}

/// A kernel of the size that kernels have, in every packing: the same bytes arrive in RAM as without.
#[test]
fn a_debian_kernel_in_every_packing() {
    let assets = cache::user_directory(|name| std::env::var_os(name)).map(|dir| dir.join("assets/kernel-6.12-cloud"));
    let Some(vmlinux) = assets.and_then(|dir| std::fs::read(dir.join("vmlinux")).ok()) else {
        eprintln!("\nSKIPPED: no kernel; scripts/assets kernel-6.12-cloud fetches it");
        return;
    };
    let setup = || Setup { ram: Ram::new(&layout::ram_layout(256 << 20), Backing::Anonymous).unwrap(), ..Setup::new() };
    let plain = setup();
    let mut request = plain.request(&vmlinux);
    request.memory_map = layout::memory_map(256 << 20);
    let wanted = load(&plain.ram, &request).unwrap();
    let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    for &format in FORMATS {
        let payload = fixtures::pack(format, &vmlinux);
        assert!(payload.len() < vmlinux.len(), "{format:?}");
        let init_size = (vmlinux.len() as u32).next_multiple_of(1 << 20);
        let packed = setup();
        let mut request = packed.request(&fixtures::bzimage(&Packed { payload, init_size, ..Packed::default() }));
        request.memory_map = layout::memory_map(256 << 20);
        let loaded = load(&packed.ram, &request).unwrap();
        assert_eq!((loaded.report.packed, &loaded.state), (Some(format), &wanted.state));
        for at in (1 << 20..128 << 20).step_by(1 << 20) {
            plain.ram.read(at, &mut a).unwrap();
            packed.ram.read(at, &mut b).unwrap();
            assert!(a == b, "{format:?}: RAM differs at {at:#x}");
        }
    }
}
