//! Modules that do to the guest's kernel what no program in it may.

use std::path::{Path, PathBuf};

use belljar::kernel::{self, Feature};
use object::{Object, ObjectSection, ObjectSymbol, SymbolSection};

use super::{asset, scratch};

/// `cli; jmp .`: this CPU does nothing any more, and nobody can tell it to.
pub const HANG: &[u8] = &[0xfa, 0xeb, 0xfe];
/// `ud2`: an oops.
pub const OOPS: &[u8] = &[0x0f, 0x0b];
/// `push 0; push 0; lidt [rsp]; ud2`: an exception for which there is no handler, nor for that.
pub const TRIPLE_FAULT: &[u8] = &[0x6a, 0x00, 0x6a, 0x00, 0x0f, 0x01, 0x1c, 0x24, 0x0f, 0x0b];

/// Where a module's first function has its own code: after `endbr64` and the call that tracing uses.
const OWN_CODE: u64 = 9;

/// Last bytes of a module that is signed.
const SIGNED: &[u8] = b"~Module signature appended~\n";

/// A directory for a guest's `/planted`, with a module in it that does `code` when it is loaded.
pub struct Planted(tempfile::TempDir);

/// What loads the module in the guest.
pub const LOAD: &str = "/planted/busybox insmod /planted/planted.ko";

impl Planted {
    /// For the kernel asset `kernel`: its module for SquashFS, which depends on no other, with `code` at its start.
    pub fn new(kernel: &str, code: &[u8]) -> Option<Self> {
        let (path, busybox) = (asset(kernel)?, asset("busybox")?);
        let found = kernel::find(path.to_str(), None).unwrap();
        let mut module = found.modules(&[Feature::Squashfs]).unwrap().pop().unwrap().data;
        let at = start(&module, code.len() as u64);
        module[at..at + code.len()].copy_from_slice(code);
        // Debian's kernels take modules without a signature, but not with one that is wrong.
        if module.ends_with(SIGNED) {
            module.truncate(module.len() - SIGNED.len());
        }
        let dir = scratch();
        std::fs::write(dir.path().join("planted.ko"), module).unwrap();
        std::fs::copy(busybox, dir.path().join("busybox")).unwrap();
        Some(Self(dir))
    }

    /// The flag's value for `belljar run -v`.
    pub fn volume(&self) -> PathBuf {
        Path::new(&format!("{}:/planted:ro", self.0.path().display())).into()
    }
}

/// Where in a module's file `len` bytes of code can be put that will be run when it is loaded.
fn start(module: &[u8], len: u64) -> usize {
    let file = object::File::parse(module).unwrap();
    let init = file.symbols().find(|symbol| symbol.name() == Ok("init_module")).unwrap();
    let SymbolSection::Section(index) = init.section() else { panic!("init_module is nowhere") };
    let section = file.section_by_index(index).unwrap();
    let at = init.address() + OWN_CODE;
    // The kernel refuses a module in which it has to fill in what is not empty.
    let filled = section.relocations().any(|(place, _)| (at - 3..at + len).contains(&place));
    assert!(!filled && init.size() > OWN_CODE + len, "no room for code in this module");
    (section.file_range().unwrap().0 + at) as usize
}
