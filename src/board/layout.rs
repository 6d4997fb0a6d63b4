//! The address map of the machine: one place for every fixed guest-physical address and I/O port.
//!
//! ```text
//! 0            RAM; boot structures up to 0x9fc00, ACPI tables from 0xe0000
//! 0xc0000000   virtio-mmio devices, 4 KiB each
//! 0xc1000000   32-bit window for PCI BARs
//! 0xe0000000   PCI configuration space (ECAM), bus 0
//! 0xfec00000   I/O APIC;  0xfee00000 local APICs;  0xfffbc000 pages that KVM needs for itself
//! 0x100000000  the rest of RAM, then the 64-bit window for PCI BARs
//! ```

use crate::arch::x86_64::boot::{MemoryKind, MemoryRange};

/// The GDT that the boot CPU starts with.
pub const GDT: u64 = 0x1000;
/// `hvm_start_info` of the PVH protocol and the tables it points to; one page.
pub const PVH_START_INFO: u64 = 0x2000;
/// `boot_params` of the Linux protocol, the "zero page".
pub const BOOT_PARAMS: u64 = 0x7000;
/// Identity page tables that the boot CPU starts with; [`crate::arch::x86_64::paging::SIZE`] bytes.
pub const PAGE_TABLES: u64 = 0x9000;
/// The kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Space for the command line in bytes, its final NUL included. Far more than any kernel accepts.
pub const CMDLINE_SPACE: u64 = 0x1_0000;
/// End of the RAM below 1 MiB that a guest may use freely; a PC keeps its extended BIOS data area here.
pub const LOW_RAM_END: u64 = 0x9_fc00;
/// ACPI tables, the RSDP first.
pub const ACPI_TABLES: u64 = 0xe_0000;
/// Space for ACPI tables in bytes.
pub const ACPI_SPACE: u64 = 0x1_0000;
/// Kernels are loaded at or above this address, so that they cannot overlap any of the above.
pub const HIGH_RAM: u64 = 0x10_0000;

/// RAM that does not fit below goes to [`RAM_ABOVE_4G`].
pub const RAM_BELOW_4G_END: u64 = 0xc000_0000;
/// Start of the second piece of RAM.
pub const RAM_ABOVE_4G: u64 = 1 << 32;

/// First virtio-mmio device.
pub const VIRTIO_MMIO: u64 = 0xc000_0000;
/// Distance between, and size of, virtio-mmio devices.
pub const VIRTIO_MMIO_STEP: u64 = 0x1000;
/// End of the space for virtio-mmio devices.
pub const VIRTIO_MMIO_END: u64 = 0xc100_0000;
/// 32-bit window for PCI BARs.
pub const PCI_MMIO32: u64 = 0xc100_0000;
/// End of the 32-bit window for PCI BARs.
pub const PCI_MMIO32_END: u64 = 0xe000_0000;
/// PCI configuration space (ECAM) of bus 0.
pub const PCI_ECAM: u64 = 0xe000_0000;
/// Size of the ECAM: one bus.
pub const PCI_ECAM_SIZE: u64 = 0x10_0000;
/// Size of the 64-bit window for PCI BARs, see [`pci_mmio64`].
pub const PCI_MMIO64_SIZE: u64 = 32 << 30;
/// I/O APIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Local APIC registers.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Page table page that KVM on Intel processors needs for real mode.
pub const KVM_IDENTITY_MAP: u64 = 0xfffb_c000;
/// Three pages of task state segment that KVM on Intel processors needs for real mode.
pub const KVM_TSS: u64 = 0xfffb_d000;
/// End of [`KVM_TSS`].
pub const KVM_TSS_END: u64 = 0xfffc_0000;

/// First of the I/O ports by which the guest turns the machine off, resets it, and learns of the power button.
pub const POWER_PORTS: u16 = 0x600;

/// The pieces (guest-physical address, length in bytes) of `bytes` of RAM.
pub fn ram_layout(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(RAM_BELOW_4G_END);
    let mut pieces = vec![(0, low)];
    if bytes > low {
        pieces.push((RAM_ABOVE_4G, bytes - low));
    }
    pieces
}

/// Start and end of the 64-bit window for PCI BARs of a machine with `bytes` of RAM. It starts as low as it can,
/// because some processors have no more than 36 address bits.
pub fn pci_mmio64(bytes: u64) -> (u64, u64) {
    let ram_end = RAM_ABOVE_4G.saturating_add(bytes.saturating_sub(RAM_BELOW_4G_END));
    let start = ram_end.checked_next_multiple_of(1 << 30).unwrap_or(ram_end);
    (start, start.saturating_add(PCI_MMIO64_SIZE))
}

/// The memory map that kernels are told: all `bytes` of RAM, and what is reserved.
pub fn memory_map(bytes: u64) -> Vec<MemoryRange> {
    let range = |start, end, kind| MemoryRange { start, len: end - start, kind };
    let mut map = Vec::new();
    for (start, len) in ram_layout(bytes) {
        let end = start + len;
        if start == 0 {
            map.push(range(0, end.min(LOW_RAM_END), MemoryKind::Ram));
            map.push(range(LOW_RAM_END, 0xa_0000, MemoryKind::Reserved));
            map.push(range(ACPI_TABLES, ACPI_TABLES + ACPI_SPACE, MemoryKind::AcpiTables));
            map.push(range(ACPI_TABLES + ACPI_SPACE, HIGH_RAM, MemoryKind::Reserved));
            if end > HIGH_RAM {
                map.push(range(HIGH_RAM, end, MemoryKind::Ram));
            }
        } else {
            map.push(range(start, end, MemoryKind::Ram));
        }
    }
    // Linux uses MMCONFIG only if the range is reserved here or by ACPI.
    map.push(range(PCI_ECAM, PCI_ECAM + PCI_ECAM_SIZE, MemoryKind::Reserved));
    map.push(range(KVM_IDENTITY_MAP, KVM_TSS_END, MemoryKind::Reserved));
    map.sort_by_key(|r| r.start);
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arch::x86_64::paging;

    #[test]
    fn nothing_overlaps() {
        let mut pieces = vec![
            (GDT, 0x1000),
            (PVH_START_INFO, 0x1000),
            (BOOT_PARAMS, 0x1000),
            (PAGE_TABLES, paging::SIZE),
            (CMDLINE, CMDLINE_SPACE),
            (LOW_RAM_END, 0x400),
            (ACPI_TABLES, ACPI_SPACE),
            (HIGH_RAM, RAM_BELOW_4G_END - HIGH_RAM),
            (VIRTIO_MMIO, VIRTIO_MMIO_END - VIRTIO_MMIO),
            (PCI_MMIO32, PCI_MMIO32_END - PCI_MMIO32),
            (PCI_ECAM, PCI_ECAM_SIZE),
            (IOAPIC, 0x1000),
            (LOCAL_APIC, 0x10_0000),
            (KVM_IDENTITY_MAP, 0x1000),
            (KVM_TSS, 0x3000),
        ];
        for bytes in [1 << 30, 3 << 30, 64 << 30] {
            let (start, end) = pci_mmio64(bytes);
            let mut pieces = pieces.clone();
            pieces.push((start, end - start));
            pieces.extend(ram_layout(bytes).get(1));
            pieces.sort();
            assert!(pieces.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0), "{pieces:x?}");
        }
        pieces.sort();
    }

    #[test]
    fn memory_map_covers_ram_and_is_ordered() {
        for bytes in [2 << 20, 256 << 20, 3 << 30, (3 << 30) + 4096, 100 << 30] {
            let map = memory_map(bytes);
            assert!(map.windows(2).all(|w| w[0].start + w[0].len <= w[1].start), "{map:x?}");
            let ram: u64 = map.iter().filter(|r| r.kind == MemoryKind::Ram).map(|r| r.len).sum();
            assert_eq!(ram, bytes - (HIGH_RAM - LOW_RAM_END));
            assert_eq!(ram_layout(bytes).iter().map(|r| r.1).sum::<u64>(), bytes);
        }
        assert_eq!(ram_layout(4 << 30), [(0, 3 << 30), (4 << 30, 1 << 30)]);
    }
}
