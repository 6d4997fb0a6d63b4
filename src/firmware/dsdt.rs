//! The DSDT: devices in ACPI machine language (ACPI chapters 6, 19 and 20).

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, And, Device, EISAName, Field, FieldAccessType, FieldEntry, FieldLockRule,
    FieldUpdateRule, IO, If, Interrupt, Memory32Fixed, Method, Name, Notify, ONE, OpRegion, OpRegionSpace, Package,
    Path, ResourceTemplate, Scope, ZERO,
};

use super::power::{EVENT_POWER_BUTTON, EVENT_REGISTER, SLEEP_TYPE_S5};
use super::{IsaDevice, Machine, PciHost, VirtioMmio};
use crate::board::layout;

/// Notification of a pressed power button (ACPI section 4.8.3.1).
const NOTIFY_BUTTON: u8 = 0x80;

/// The body of the DSDT, without its header.
pub fn body(machine: &Machine) -> Vec<u8> {
    let mut devices = Vec::new();
    power_button(&mut devices);
    events(machine.event_gsi, &mut devices);
    if let Some(host) = &machine.pci {
        pci_host(host, &mut devices);
    }
    for (index, device) in machine.isa.iter().enumerate() {
        isa(index, device, &mut devices);
    }
    for (index, device) in machine.virtio_mmio.iter().enumerate() {
        virtio_mmio(index, device, &mut devices);
    }
    let mut body = Scope::raw("\\_SB_".into(), devices);
    // Only the first value counts on a hardware-reduced machine.
    let s5 = Package::new(vec![&SLEEP_TYPE_S5, &ZERO, &ZERO, &ZERO]);
    Name::new("\\_S5_".into(), &s5).to_aml_bytes(&mut body);
    body
}

/// Names are four characters: a letter and a number.
fn numbered(letter: char, index: usize) -> Path {
    Path::new(&format!("{letter}{:03X}", index & 0xfff))
}

fn name(path: &str, value: &dyn Aml) -> Name {
    Name::new(path.into(), value)
}

fn edge(gsi: u32) -> Interrupt {
    Interrupt::new(true, true, false, false, gsi)
}

fn power_button(out: &mut Vec<u8>) {
    Device::new("PWRB".into(), vec![&name("_HID", &EISAName::new("PNP0C0C"))]).to_aml_bytes(out);
}

/// The generic event device (ACPI section 5.6.9): its interrupt makes the guest read a register that says what
/// happened.
fn events(gsi: u32, out: &mut Vec<u8>) {
    let port = layout::POWER_PORTS + EVENT_REGISTER;
    let region = OpRegion::new("EVTR".into(), OpRegionSpace::SystemIO, &port, &ONE);
    let fields = vec![FieldEntry::Named(*b"EVTS", 8)];
    let field =
        Field::new("EVTR".into(), FieldAccessType::Byte, FieldLockRule::NoLock, FieldUpdateRule::WriteAsZeroes, fields);
    let events: Path = "EVTS".into();
    let button: Path = "\\_SB_.PWRB".into();
    let pressed = And::new(&ZERO, &events, &EVENT_POWER_BUTTON);
    let notify = Notify::new(&button, &NOTIFY_BUTTON);
    let handle = If::new(&pressed, vec![&notify]);
    Device::new(
        "GED_".into(),
        vec![
            &name("_HID", &"ACPI0013"),
            &name("_UID", &ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&edge(gsi)])),
            &region,
            &field,
            &Method::new("_EVT".into(), 1, true, vec![&handle]),
        ],
    )
    .to_aml_bytes(out);
}

fn pci_host(host: &PciHost, out: &mut Vec<u8>) {
    let memory = AddressSpaceCacheable::NotCacheable;
    let bus = AddressSpace::new_bus_number(0u16, 0u16);
    let low = AddressSpace::new_memory(memory, true, host.mmio32.0, host.mmio32.1.saturating_sub(1), None);
    let high = AddressSpace::new_memory(memory, true, host.mmio64.0, host.mmio64.1.saturating_sub(1), None);
    Device::new(
        "PCI0".into(),
        vec![
            &name("_HID", &EISAName::new("PNP0A08")),
            &name("_CID", &EISAName::new("PNP0A03")),
            &name("_UID", &ZERO),
            &name("_SEG", &ZERO),
            &name("_BBN", &ZERO),
            &name("_CRS", &ResourceTemplate::new(vec![&bus, &low, &high])),
        ],
    )
    .to_aml_bytes(out);
    // The PCI Firmware Specification (section 4.1.2) wants configuration space reserved by a motherboard resource.
    let ecam = Memory32Fixed::new(true, host.ecam as u32, layout::PCI_ECAM_SIZE as u32);
    let crs = ResourceTemplate::new(vec![&ecam]);
    Device::new("MBRD".into(), vec![&name("_HID", &EISAName::new("PNP0C02")), &name("_CRS", &crs)]).to_aml_bytes(out);
}

fn isa(index: usize, device: &IsaDevice, out: &mut Vec<u8>) {
    let ports = IO::new(device.port, device.port, 1, device.ports);
    let interrupt = device.gsi.map(edge);
    let mut resources: Vec<&dyn Aml> = vec![&ports];
    resources.extend(interrupt.as_ref().map(|i| i as &dyn Aml));
    let hid: Box<dyn Aml> =
        if is_eisa_id(device.hid) { Box::new(EISAName::new(device.hid)) } else { Box::new(device.hid) };
    let crs = ResourceTemplate::new(resources);
    let names = [name("_HID", &*hid), name("_UID", &index), name("_CRS", &crs)];
    Device::new(numbered('I', index), names.iter().map(|n| n as &dyn Aml).collect()).to_aml_bytes(out);
}

/// Three capital letters and four hexadecimal digits (ACPI section 19.6.36).
fn is_eisa_id(hid: &str) -> bool {
    let (letters, digits) = hid.split_at_checked(3).unwrap_or_default();
    digits.len() == 4
        && letters.bytes().all(|b| b.is_ascii_uppercase())
        && digits.bytes().all(|b| b.is_ascii_hexdigit())
}

fn virtio_mmio(index: usize, device: &VirtioMmio, out: &mut Vec<u8>) {
    let registers = Memory32Fixed::new(true, device.base, layout::VIRTIO_MMIO_STEP as u32);
    let interrupt = edge(device.gsi);
    let crs = ResourceTemplate::new(vec![&registers, &interrupt]);
    Device::new(numbered('V', index), vec![&name("_HID", &"LNRO0005"), &name("_UID", &index), &name("_CRS", &crs)])
        .to_aml_bytes(out);
}
