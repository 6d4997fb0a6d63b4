//! Boot parameters of the PVH protocol (xen/include/public/arch-x86/hvm/start_info.h), written into guest RAM by
//! [`super::load`].

use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::GuestAddress;

use super::Error;
use super::initrd::Range;
use crate::arch::x86_64::boot::MemoryRange;
use crate::board::layout;
use crate::mem::Ram;

/// XEN_HVM_START_MAGIC_VALUE.
const MAGIC: u32 = 0x336e_c578;
/// Version with a memory map.
const VERSION: u32 = 1;
/// Where in the page the lists are.
const MODULES: u64 = layout::PVH_START_INFO + 0x80;
const MEMORY_MAP: u64 = layout::PVH_START_INFO + 0x100;
/// Entries of 24 bytes that fit into the rest of the page.
const MEMORY_MAP_MAX: usize = (0x1000 - 0x100) / 24;

/// Writes `hvm_start_info` to [`layout::PVH_START_INFO`]; the command line is at [`layout::CMDLINE`] already.
pub fn write(ram: &Ram, memory_map: &[MemoryRange], initrd: Option<Range>, rsdp: u64) -> Result<(), Error> {
    if memory_map.len() > MEMORY_MAP_MAX {
        return Err(Error::MemoryMap { len: memory_map.len() });
    }
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        nr_modules: initrd.is_some().into(),
        modlist_paddr: if initrd.is_some() { MODULES } else { 0 },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: MEMORY_MAP,
        memmap_entries: memory_map.len() as u32,
        ..hvm_start_info::default()
    };
    let mut params = BootParams::new(&info, GuestAddress(layout::PVH_START_INFO));
    let entry =
        |r: &MemoryRange| hvm_memmap_table_entry { addr: r.start, size: r.len, type_: r.kind as u32, reserved: 0 };
    params.set_sections(&memory_map.iter().map(entry).collect::<Vec<_>>(), GuestAddress(MEMORY_MAP));
    if let Some(initrd) = initrd {
        let module = hvm_modlist_entry { paddr: initrd.start, size: initrd.len, ..hvm_modlist_entry::default() };
        params.set_modules(&[module], GuestAddress(MODULES));
    }
    PvhBootConfigurator::write_bootparams(&params, ram.memory()).map_err(Error::boot_parameters)
}
