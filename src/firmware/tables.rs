//! RSDP, XSDT, FADT, MADT, MCFG (ACPI section 5.2; MCFG: PCI Firmware Specification section 4.1.2) around the DSDT,
//! written into guest RAM while the machine is built and again when it resets.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::{HID_RTC, Machine, dsdt, power};
use crate::board::layout;
use crate::firmware::reset_vector;
use crate::mem::{self, Ram};

const OEM: [u8; 6] = *b"BELJAR";
const TABLE: [u8; 8] = *b"BELLJAR ";
const REVISION: u32 = 1;
/// FADT field HYPERVISOR_VENDOR_IDENTITY.
const HYPERVISOR: u64 = u64::from_le_bytes(*b"BELLJAR\0");
/// IAPC_BOOT_ARCH: no VGA, no control of link power states, no real-time clock (ACPI section 5.2.9.3).
const BOOT_NO_VGA: u16 = 1 << 2;
const BOOT_NO_ASPM: u16 = 1 << 4;
const BOOT_NO_RTC: u16 = 1 << 5;
/// DSDT revision with 64-bit integers.
const DSDT_REVISION: u8 = 2;
const MAX_CPUS: u32 = 255;
/// Tables start at multiples of this.
const ALIGN: usize = 64;

/// The tables cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More CPUs than these tables can list.
    #[error("ACPI tables can describe 1 to 255 CPUs, not {0}")]
    Cpus(u32),
    /// The tables are larger than the space for them.
    #[error("the ACPI tables take {0} bytes, more than the {space} reserved for them; use fewer devices", space = layout::ACPI_SPACE)]
    TooLarge(usize),
    /// Writing to RAM failed.
    #[error("cannot write ACPI tables into guest memory")]
    Memory(#[from] mem::Error),
}

/// Writes the tables for `machine` to [`layout::ACPI_TABLES`], and the reset vector's code; returns the address of the root pointer.
pub fn write(ram: &Ram, machine: &Machine) -> Result<u64, Error> {
    let tables = build(machine, layout::ACPI_TABLES)?;
    ram.write(layout::ACPI_TABLES, &tables)?;
    reset_vector::write(ram)?;
    Ok(layout::ACPI_TABLES)
}

/// All tables as they are in memory at `base`, the RSDP first.
fn build(machine: &Machine, base: u64) -> Result<Vec<u8>, Error> {
    if machine.cpus == 0 || machine.cpus > MAX_CPUS {
        return Err(Error::Cpus(machine.cpus));
    }
    let mut image = vec![0; Rsdp::len()];
    let mut place = |table: &dyn Aml| {
        image.resize(image.len().next_multiple_of(ALIGN), 0);
        let at = base + image.len() as u64;
        table.to_aml_bytes(&mut image);
        at
    };
    let dsdt = place(&Bytes(dsdt_table(machine)));
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    xsdt.add_entry(place(&fadt(machine, dsdt)));
    xsdt.add_entry(place(&madt(machine)));
    if let Some(host) = &machine.pci {
        let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
        mcfg.add_ecam(host.ecam, 0, 0, 0);
        xsdt.add_entry(place(&mcfg));
    }
    let xsdt = place(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    image.splice(..rsdp.len(), rsdp);
    if image.len() as u64 > layout::ACPI_SPACE {
        return Err(Error::TooLarge(image.len()));
    }
    Ok(image)
}

struct Bytes(Vec<u8>);

impl Aml for Bytes {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn dsdt_table(machine: &Machine) -> Vec<u8> {
    const HEADER: u32 = 36;
    let mut sdt = Sdt::new(*b"DSDT", HEADER, DSDT_REVISION, OEM, TABLE, REVISION);
    sdt.append_slice(&dsdt::body(machine));
    sdt.as_slice().to_vec()
}

fn fadt(machine: &Machine, dsdt: u64) -> acpi_tables::fadt::FADT {
    let register = |offset: u16| {
        let port = u64::from(layout::POWER_PORTS + offset);
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port)
    };
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION).dsdt_64(dsdt);
    for flag in [
        Flags::HwReducedAcpi,
        Flags::Wbinvd,
        Flags::ResetRegSup,
        // Set means: no such fixed button.
        Flags::PwrButton,
        Flags::SlpButton,
        Flags::Headless,
    ] {
        fadt = fadt.flag(flag);
    }
    let no_rtc = if machine.isa.iter().any(|d| d.hid == HID_RTC) { 0 } else { BOOT_NO_RTC };
    fadt.iapc_boot_arch = (BOOT_NO_VGA | BOOT_NO_ASPM | no_rtc).into();
    fadt.reset_reg = register(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.sleep_control_reg = register(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(power::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = HYPERVISOR.into();
    fadt.finalize()
}

/// No flag PCAT_COMPAT: there is no 8259.
fn madt(machine: &Machine) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(layout::LOCAL_APIC as u32));
    for id in 0..machine.cpus {
        madt.add_structure(ProcessorLocalApic::new(id as u8, id as u8, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC as u32, 0));
    madt
}

#[cfg(test)]
mod tests {
    use super::super::{IsaDevice, PciHost, VirtioMmio};
    use super::*;
    use crate::mem::Backing;

    fn full() -> Machine {
        Machine {
            cpus: 4,
            pci: Some(PciHost {
                ecam: layout::PCI_ECAM,
                mmio32: (0xc100_0000, 0xe000_0000),
                mmio64: (4 << 30, 36 << 30),
            }),
            virtio_mmio: (0..3).map(|i| VirtioMmio { base: 0xc000_0000 + i * 0x1000, gsi: 16 + i }).collect(),
            isa: vec![
                IsaDevice { hid: "PNP0501", port: 0x3f8, ports: 8, gsi: Some(4) },
                IsaDevice { hid: HID_RTC, port: 0x70, ports: 2, gsi: None },
                IsaDevice { hid: "QEMU0001", port: 0x505, ports: 1, gsi: None },
            ],
            event_gsi: 9,
        }
    }

    const BASE: usize = layout::ACPI_TABLES as usize;

    fn number(data: &[u8], at: usize, len: usize) -> usize {
        data[at..at + len].iter().rev().fold(0, |n, &b| n << 8 | usize::from(b))
    }

    fn table(image: &[u8], address: usize) -> &[u8] {
        let at = address - BASE;
        let table = &image[at..at + number(image, at + 4, 4)];
        assert_eq!(table.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0, "checksum of {:?}", &table[..4]);
        assert_eq!(&table[10..16], OEM);
        table
    }

    /// Follows the pointers as a kernel does.
    fn tables(image: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(&image[..8], b"RSD PTR ");
        for len in [20, 36] {
            assert_eq!(image[..len].iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        }
        let xsdt = table(image, number(image, 24, 8));
        let mut found: Vec<_> =
            (36..xsdt.len()).step_by(8).map(|i| table(image, number(xsdt, i, 8)).to_vec()).collect();
        let dsdt = table(image, number(&found[0], 140, 8)).to_vec();
        found.push(dsdt);
        found
    }

    #[test]
    fn a_kernel_finds_every_table() {
        let image = build(&full(), layout::ACPI_TABLES).unwrap();
        let tables = tables(&image);
        let signatures: Vec<_> = tables.iter().map(|t| String::from_utf8_lossy(&t[..4]).into_owned()).collect();
        assert_eq!(signatures, ["FACP", "APIC", "MCFG", "DSDT"]);
        let fadt = &tables[0];
        assert_eq!(number(fadt, 112, 4) & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        assert_eq!(number(fadt, 109, 2), usize::from(BOOT_NO_VGA | BOOT_NO_ASPM));
        assert_eq!((number(fadt, 116 + 4, 8), fadt[128]), (0x602, 1), "reset register and value");
        assert_eq!((number(fadt, 244 + 4, 8), number(fadt, 256 + 4, 8)), (0x600, 0x601), "sleep registers");
        let madt = &tables[1];
        assert_eq!((number(madt, 36, 4), number(madt, 40, 4)), (0xfee0_0000, 0));
        assert_eq!(madt.len(), 44 + 4 * 8 + 12);
        assert_eq!(madt[44 + 3 * 8..44 + 4 * 8], [0, 8, 3, 3, 1, 0, 0, 0]);
        let mcfg = &tables[2];
        assert_eq!((number(mcfg, 44, 8), mcfg[54], mcfg[55]), (0xe000_0000, 0, 0));
    }

    #[test]
    fn tables_say_only_what_the_machine_has() {
        let bare = Machine { cpus: 1, event_gsi: 9, ..Machine::default() };
        let image = build(&bare, layout::ACPI_TABLES).unwrap();
        let tables = tables(&image);
        assert_eq!(tables.len(), 3);
        assert_ne!(number(&tables[0], 109, 2) & usize::from(BOOT_NO_RTC), 0);
        assert!(!tables[2].windows(4).any(|w| w == b"PCI0" || w == b"I000" || w == b"V000"));
    }

    #[test]
    fn limits_are_kept() {
        for cpus in [0, 256] {
            assert!(matches!(build(&Machine { cpus, ..full() }, 0), Err(Error::Cpus(_))));
        }
        let many = vec![VirtioMmio { base: 0, gsi: 16 }; 2000];
        assert!(matches!(build(&Machine { virtio_mmio: many, ..full() }, 0), Err(Error::TooLarge(_))));
        let ram = Ram::new(&[(0, 0x1000)], Backing::Anonymous).unwrap();
        assert!(matches!(write(&ram, &full()), Err(Error::Memory(_))));
        build(&Machine { cpus: 255, ..full() }, 0).unwrap();
    }

    /// The reference compiler reads the DSDT back without a complaint, where it is installed.
    #[test]
    fn the_reference_disassembler_accepts_the_tables() {
        use std::process::Command;
        if Command::new("iasl").arg("-v").output().is_err() {
            eprintln!("\nSKIPPED: iasl is not installed (Debian package acpica-tools)");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let image = build(&full(), layout::ACPI_TABLES).unwrap();
        for table in tables(&image) {
            let name = String::from_utf8_lossy(&table[..4]).into_owned();
            std::fs::write(dir.path().join(format!("{name}.dat")), &table).unwrap();
            let run = |args: &[&str]| {
                let out = Command::new("iasl").args(args).current_dir(&dir).output().unwrap();
                let text = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
                assert!(out.status.success(), "{text}");
                text
            };
            run(&["-d", &format!("{name}.dat")]);
            let source = std::fs::read_to_string(dir.path().join(format!("{name}.dsl"))).unwrap();
            assert!(!source.contains("Invalid") && !source.contains("Error"), "{source}");
            if name == "DSDT" {
                let text = run(&["DSDT.dsl"]);
                assert!(text.contains("0 Errors, 0 Warnings"), "{text}\n{source}");
                for word in ["PNP0A08", "ACPI0013", "PNP0C0C", "LNRO0005", "_S5", "Notify", "\"QEMU0001\""] {
                    assert!(source.contains(word), "{word} in\n{source}");
                }
            }
        }
    }
}
