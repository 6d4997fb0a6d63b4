//! Loading kernels: finds out what a file is, puts it into guest RAM with its initial RAM file system, command line
//! and boot parameters, and says in which state the boot CPU starts. Called once per start of a machine, before
//! any vCPU runs, on the thread that builds the machine.

pub(crate) mod bytes;
pub mod bzimage;
pub mod cache;
pub mod cmdline;
mod compact;
pub mod elf;
#[cfg(any(test, feature = "testkit"))]
pub(crate) mod fixtures;
pub mod initramfs;
pub mod initrd;
mod linux;
mod lzop;
mod packed;
mod pvh;
#[cfg(test)]
mod tests;
pub mod unpack;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use linux_loader::loader::bootparam::{self, setup_header};

use crate::arch::x86_64::boot::{self, MemoryRange, Tables};
use crate::arch::x86_64::state::CpuState;
use crate::arch::x86_64::{gdt, paging};
use crate::board::layout;
use crate::mem::{self, Ram};

pub use initrd::Initrd;

/// How a kernel is entered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Linux by its 64-bit protocol, other kernels with a PVH entry by that.
    #[default]
    Auto,
    /// The Linux 64-bit protocol.
    Linux,
    /// The PVH entry.
    Pvh,
}

/// What to boot.
#[derive(Debug)]
pub struct Boot {
    /// Kernel file: a bzImage or an ELF file.
    pub kernel: PathBuf,
    /// Archives for the initial RAM file system, in order.
    pub initrds: Vec<Initrd>,
    /// Whole kernel command line.
    pub cmdline: String,
    /// Guest-physical address of the ACPI root pointer, 0 if there is none.
    pub rsdp: u64,
    /// Memory map for the kernel, in ascending order.
    pub memory_map: Vec<MemoryRange>,
    /// Entry to use.
    pub protocol: Protocol,
    /// Unpack a bzImage here, where it is quick and can be cached, instead of in the guest. The kernel is then not
    /// placed at random (KASLR).
    pub decompress: bool,
    /// Where unpacked kernels are kept.
    pub cache: cache::Policy,
    /// RAM has not been written before: its pages read as zeros. After a reset it has, and what the kernel expects
    /// to be zero is written.
    pub fresh: bool,
}

/// What kind of kernel was loaded, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// bzImage, unpacked here.
    BzImage,
    /// bzImage that unpacks itself in the guest.
    BzImageSelfExtracting,
    /// ELF file, entered by the Linux protocol.
    Vmlinux,
    /// ELF file, entered by the PVH protocol.
    Pvh,
}

/// What was loaded, for reports.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// Kind of kernel.
    pub kind: Kind,
    /// Guest-physical address of the first instruction.
    pub entry: u64,
    /// Release of the kernel, if the file says.
    pub version: Option<String>,
    /// How the kernel was packed, if it was unpacked here or earlier.
    pub packed: Option<unpack::Format>,
    /// The unpacked kernel came from the cache.
    pub cached: bool,
    /// Where the initial RAM file system is.
    pub initrd: Option<initrd::Range>,
}

/// A loaded kernel.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// State in which vCPU 0 starts. Other vCPUs need only [`boot::FIRMWARE_MSRS`].
    pub state: CpuState,
    /// What it is.
    pub report: Report,
}

/// A kernel cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel file cannot be read.
    #[error("Cannot read kernel {path}")]
    Read {
        /// File name.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The file is no kernel.
    #[error("{path} is not a kernel for this machine: it looks like {found}; give a bzImage or an x86-64 vmlinux")]
    NotAKernel {
        /// File name.
        path: PathBuf,
        /// What it seems to be.
        found: &'static str,
    },
    /// An ELF kernel cannot be loaded.
    #[error("Cannot load kernel {path}")]
    Elf {
        /// File name.
        path: PathBuf,
        /// The reason.
        source: elf::Error,
    },
    /// A bzImage cannot be loaded.
    #[error("Cannot load kernel {path}")]
    BzImage {
        /// File name.
        path: PathBuf,
        /// The reason.
        source: bzimage::Error,
    },
    /// A bzImage cannot be unpacked.
    #[error("Cannot load kernel {path}")]
    Unpack {
        /// File name.
        path: PathBuf,
        /// The reason.
        source: unpack::Error,
    },
    /// The protocol asked for does not fit the kernel.
    #[error("Cannot boot {path}: {reason}")]
    Entry {
        /// File name.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
    /// The command line is not acceptable.
    #[error("Cannot boot {path}")]
    Cmdline {
        /// File name of the kernel.
        path: PathBuf,
        /// The reason.
        source: cmdline::Error,
    },
    /// The initial RAM file system cannot be loaded.
    #[error("Cannot load the initial RAM file system")]
    Initrd(#[from] initrd::Error),
    /// More pieces of memory than the boot protocol can describe.
    #[error("The memory map has {len} entries, more than the boot protocol can hold")]
    MemoryMap {
        /// Entries.
        len: usize,
    },
    /// Boot structures do not fit into RAM.
    #[error("Cannot write boot parameters; the machine needs at least 1 MiB of memory below 4 GiB")]
    Parameters(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl Error {
    fn boot_parameters(error: linux_loader::configurator::Error) -> Self {
        Self::Parameters(Box::new(error))
    }
}

impl From<mem::Error> for Error {
    fn from(error: mem::Error) -> Self {
        Self::Parameters(Box::new(error))
    }
}

/// A kernel in guest RAM.
struct Kernel {
    report: Report,
    header: setup_header,
    end: u64,
}

/// Puts everything that `request` names into `ram`.
pub fn load(ram: &Ram, request: &Boot) -> Result<Loaded, Error> {
    let path = &request.kernel;
    let (file, head) = open(path)?;
    let mut kernel = if head.starts_with(elf::MAGIC) {
        load_elf(ram, request, &file)?
    } else {
        packed::load(ram, request, file, &head)?
    };
    let above_4g = kernel.header.xloadflags & bootparam::XLF_CAN_BE_LOADED_ABOVE_4G != 0;
    let last = if above_4g { u64::MAX } else { kernel.header.initrd_addr_max.into() };
    kernel.report.initrd = initrd::place(ram, &request.initrds, initrd::Limits { kernel_end: kernel.end, last })?;
    write_cmdline(ram, path, &request.cmdline, kernel.header.cmdline_size)?;
    let state = write_parameters(ram, request, &kernel)?;
    Ok(Loaded { state, report: kernel.report })
}

fn write_parameters(ram: &Ram, request: &Boot, kernel: &Kernel) -> Result<CpuState, Error> {
    let table: Vec<u8> = gdt::table().iter().flat_map(|e| e.to_le_bytes()).collect();
    ram.write(layout::GDT, &table)?;
    let tables = Tables { gdt: layout::GDT, page_tables: layout::PAGE_TABLES };
    let initrd = kernel.report.initrd;
    if kernel.report.kind == Kind::Pvh {
        pvh::write(ram, &request.memory_map, initrd, request.rsdp)?;
        return Ok(boot::pvh_entry(kernel.report.entry as u32, layout::PVH_START_INFO as u32, tables));
    }
    ram.write(layout::PAGE_TABLES, &paging::identity_4g(layout::PAGE_TABLES))?;
    let memory_map = &request.memory_map;
    linux::write(ram, &linux::Parameters { header: kernel.header, memory_map, initrd, rsdp: request.rsdp })?;
    Ok(boot::linux_entry(kernel.report.entry, layout::BOOT_PARAMS, tables))
}

fn write_cmdline(ram: &Ram, path: &Path, line: &str, max: u32) -> Result<(), Error> {
    let max = u64::from(max).min(layout::CMDLINE_SPACE - 1);
    cmdline::check(line, max as usize).map_err(|source| Error::Cmdline { path: path.to_owned(), source })?;
    ram.write(layout::CMDLINE, line.as_bytes())?;
    Ok(ram.write(layout::CMDLINE + line.len() as u64, &[0])?)
}

/// Loads the ELF file `file`, which `request.kernel` is or contains.
fn load_elf(ram: &Ram, request: &Boot, file: &File) -> Result<Kernel, Error> {
    let path = &request.kernel;
    let elf = |source| Error::Elf { path: path.clone(), source };
    let image = elf::parse(file).map_err(elf)?;
    let (kind, entry) =
        entry(&image, request.protocol).map_err(|reason| Error::Entry { path: path.clone(), reason })?;
    let end = elf::place(&image, file, ram, request.fresh).map_err(elf)?;
    let report = Report { kind, entry, version: image.version, packed: None, cached: false, initrd: None };
    Ok(Kernel { report, header: linux::header_for_vmlinux(), end })
}

/// Chooses the entry of an ELF kernel.
fn entry(image: &elf::Image, protocol: Protocol) -> Result<(Kind, u64), &'static str> {
    // A kernel that has a PVH entry and does not say that it is Linux cannot know Linux' boot parameters.
    let pvh = match (protocol, image.pvh) {
        (Protocol::Pvh, None) => return Err("it has no PVH entry; boot it with --entry linux or auto"),
        (Protocol::Pvh, pvh) => pvh,
        (Protocol::Auto, pvh) if !image.linux => pvh,
        _ => None,
    };
    let (kind, entry) = match pvh {
        Some(entry) => (Kind::Pvh, entry.into()),
        None => (Kind::Vmlinux, image.entry),
    };
    if image.segments.iter().any(|s| entry >= s.start && entry - s.start < s.file_len) {
        Ok((kind, entry))
    } else {
        Err("its entry is outside of what is loaded; it is not a Linux kernel and has no PVH entry")
    }
}

/// Opens a kernel without loading it: the file, and its first bytes. An error if it is none.
fn open(path: &Path) -> Result<(File, Vec<u8>), Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    if !file.metadata().map_err(read)?.is_file() {
        return Err(Error::NotAKernel { path: path.to_owned(), found: "a directory or a device" });
    }
    let head = read_head(&file).map_err(read)?;
    if head.starts_with(elf::MAGIC) || bzimage::is_bzimage(&head) {
        return Ok((file, head));
    }
    Err(Error::NotAKernel { path: path.to_owned(), found: looks_like(&head) })
}

/// The release of the kernel in the file `path`, if its headers say; an error if it is no kernel.
pub fn release(path: &Path) -> Result<Option<String>, Error> {
    let (file, head) = open(path)?;
    if head.starts_with(elf::MAGIC) {
        let image = elf::parse(&file).map_err(|source| Error::Elf { path: path.to_owned(), source })?;
        return Ok(image.version);
    }
    let len = file.metadata().map_err(|source| Error::Read { path: path.to_owned(), source })?.len();
    let image = bzimage::parse(&head, len).map_err(|source| Error::BzImage { path: path.to_owned(), source })?;
    Ok(image.version)
}

/// Whether `file` begins as ELF files do.
pub fn is_elf(file: &File) -> bool {
    let mut head = [0; elf::MAGIC.len()];
    file.read_exact_at(&mut head, 0).is_ok() && head == elf::MAGIC
}

/// The ELF file that the kernel `path` is or contains; none if it is packed in a way unknown here.
pub fn vmlinux(path: &Path, cache: &cache::Policy) -> Result<Option<File>, Error> {
    let (file, head) = open(path)?;
    if head.starts_with(elf::MAGIC) { Ok(Some(file)) } else { packed::vmlinux(path, &file, &head, cache) }
}

/// The first bytes of the file, fewer if it is shorter.
fn read_head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; bzimage::HEAD];
    let mut len = 0;
    while let Some(rest) = head.get_mut(len..).filter(|r| !r.is_empty()) {
        match file.read_at(rest, len as u64) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(len);
    Ok(head)
}

/// Names common mistakes.
fn looks_like(head: &[u8]) -> &'static str {
    let at = |offset: usize, magic: &[u8]| head.get(offset..).is_some_and(|h| h.starts_with(magic));
    match () {
        () if head.is_empty() => "an empty file",
        () if at(56, b"ARM\x64") => "a kernel for 64-bit ARM",
        () if at(48, b"RISCV") => "a kernel for RISC-V",
        () if at(0, b"\x1f\x8b") => "a gzip file",
        () if at(0, b"070701") => "a cpio archive, as initial RAM file systems are",
        () if at(0, b"!<arch>") => "an archive or a Debian package",
        () if at(0, b"QFI\xfb") => "a qcow2 disk image",
        () if at(0, b"MZ") => "a Windows or EFI program",
        () if at(510, b"\x55\xaa") => "a disk image",
        () => "something else",
    }
}
