//! What kind of image a file holds, told by its first bytes.
//!
//! A guest can write anything into a raw image, also the header of another format. So a format is only guessed
//! where the user left it open, and then [`super::raw`] keeps the guest from making the next guess come out
//! differently.

/// Format of an image that can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's copy-on-write format, versions 2 and 3.
    Qcow2,
}

impl Format {
    /// Name as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }
}

/// Bytes that [`probe`] wants to see; fewer if the file is shorter.
pub const PROBE_LEN: usize = 512;

/// First bytes of a qcow2 image (`docs/interop/qcow2` in QEMU: magic).
pub const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// Formats that cannot be used and would be nonsense as raw disks: (name, what makes them usable, first bytes).
const FOREIGN: &[(&str, &str, &[u8])] = &[
    ("VHDX", CONVERT, b"vhdxfile"),
    ("VHD (dynamic)", CONVERT, b"conectix"),
    ("VMDK", CONVERT, b"KDMV"),
    ("VMDK", CONVERT, b"# Disk DescriptorFile"),
    ("QED", CONVERT, b"QED\0"),
    ("gzip-compressed", "gunzip -k IMAGE", b"\x1f\x8b\x08"),
    ("xz-compressed", "unxz -k IMAGE", b"\xfd7zXZ\0"),
    ("zstd-compressed", "unzstd IMAGE", b"\x28\xb5\x2f\xfd"),
];

const CONVERT: &str = "qemu-img convert -O qcow2 IMAGE NEW.qcow2";

/// VirtualBox images have their signature at offset 64.
const VDI: (usize, [u8; 4]) = (64, [0x7f, 0x10, 0xda, 0xbe]);

/// What the first bytes of a file look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probed {
    /// A format that can be used; [`Format::Raw`] for whatever is not known.
    Usable(Format),
    /// A format, by name, that cannot; and the command that makes one that can.
    Foreign(&'static str, &'static str),
}

/// Guesses the format from the first [`PROBE_LEN`] bytes.
pub fn probe(head: &[u8]) -> Probed {
    if head.starts_with(&QCOW2_MAGIC) {
        return Probed::Usable(Format::Qcow2);
    }
    if head.get(VDI.0..).is_some_and(|h| h.starts_with(&VDI.1)) {
        return Probed::Foreign("VDI", CONVERT);
    }
    match FOREIGN.iter().find(|(_, _, magic)| head.starts_with(magic)) {
        Some((name, remedy, _)) => Probed::Foreign(name, remedy),
        None => Probed::Usable(Format::Raw),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell_the_format() {
        assert_eq!(probe(b"QFI\xfb\0\0\0\x03"), Probed::Usable(Format::Qcow2));
        assert_eq!(probe(b"QFI"), Probed::Usable(Format::Raw));
        assert_eq!(probe(b""), Probed::Usable(Format::Raw));
        assert_eq!(probe(b"vhdxfile\0"), Probed::Foreign("VHDX", CONVERT));
        let mut vdi = [0; 68];
        vdi[64..].copy_from_slice(&VDI.1);
        assert_eq!(probe(&vdi), Probed::Foreign("VDI", CONVERT));
        assert_eq!(probe(&[0; 512]), Probed::Usable(Format::Raw));
    }
}
