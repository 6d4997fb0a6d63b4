//! Boot parameters of the Linux 64-bit boot protocol (Documentation/arch/x86/boot.rst and zero-page.rst), written
//! into guest RAM by [`super::load`].

use linux_loader::configurator::linux::LinuxBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::bootparam::{self, boot_e820_entry, boot_params, setup_header};
use vm_memory::GuestAddress;

use super::Error;
use super::initrd::Range;
use crate::arch::x86_64::boot::MemoryRange;
use crate::board::layout;
use crate::mem::Ram;

/// `boot_flag` and `header` of a valid setup header.
pub const BOOT_FLAG: u16 = 0xaa55;
/// "HdrS".
pub const HEADER_MAGIC: u32 = 0x5372_6448;
/// A boot loader without a number of its own.
const LOADER_OTHER: u8 = 0xff;
/// Length of the command line that x86-64 kernels take (COMMAND_LINE_SIZE less the final NUL).
pub const COMMAND_LINE_MAX: u32 = 2047;

/// The setup header for a kernel that comes without one.
pub fn header_for_vmlinux() -> setup_header {
    setup_header {
        boot_flag: BOOT_FLAG,
        header: HEADER_MAGIC,
        // The first protocol with a 64-bit entry.
        version: 0x020c,
        loadflags: bootparam::LOADED_HIGH,
        initrd_addr_max: u32::MAX,
        kernel_alignment: 0x100_0000,
        xloadflags: bootparam::XLF_KERNEL_64 | bootparam::XLF_CAN_BE_LOADED_ABOVE_4G,
        cmdline_size: COMMAND_LINE_MAX,
        ..setup_header::default()
    }
}

/// What the kernel is told.
#[derive(Debug)]
pub struct Parameters<'a> {
    /// Setup header of the kernel file.
    pub header: setup_header,
    /// Memory map.
    pub memory_map: &'a [MemoryRange],
    /// Initial RAM file system.
    pub initrd: Option<Range>,
    /// Guest-physical address of the ACPI root pointer; 0: the kernel searches.
    pub rsdp: u64,
}

/// Writes `boot_params` to [`layout::BOOT_PARAMS`]; the command line is at [`layout::CMDLINE`] already.
pub fn write(ram: &Ram, parameters: &Parameters<'_>) -> Result<(), Error> {
    let mut params = boot_params { hdr: parameters.header, ..boot_params::default() };
    params.acpi_rsdp_addr = parameters.rsdp;
    params.hdr.type_of_loader = LOADER_OTHER;
    // Whoever unpacks the kernel sets this when it moved it; we do not.
    params.hdr.loadflags &= !bootparam::KASLR_FLAG;
    // Linux has no list of setup data from us, whatever the file says.
    params.hdr.setup_data = 0;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    if let Some(initrd) = parameters.initrd {
        params.hdr.ramdisk_image = initrd.start as u32;
        params.hdr.ramdisk_size = initrd.len as u32;
        params.ext_ramdisk_image = (initrd.start >> 32) as u32;
        params.ext_ramdisk_size = (initrd.len >> 32) as u32;
    } else {
        params.hdr.ramdisk_image = 0;
        params.hdr.ramdisk_size = 0;
    }
    let map = parameters.memory_map;
    if map.len() > bootparam::E820_MAX_ENTRIES_ZEROPAGE {
        return Err(Error::MemoryMap { len: map.len() });
    }
    let mut table = [boot_e820_entry::default(); bootparam::E820_MAX_ENTRIES_ZEROPAGE];
    for (entry, range) in table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr: range.start, size: range.len, r#type: range.kind as u32 };
    }
    params.e820_table = table;
    params.e820_entries = map.len() as u8;
    let params = BootParams::new(&params, GuestAddress(layout::BOOT_PARAMS));
    LinuxBootConfigurator::write_bootparams(&params, ram.memory()).map_err(Error::boot_parameters)
}
