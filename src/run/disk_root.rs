//! A disk image whose file system becomes the guest's root: which file system that is, so that its module is there.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Error;
use crate::kernel::{Feature, Kernel, Support};

/// What shows a file system: where, and which bytes.
const MAGIC: [(&str, u64, &[u8]); 5] = [
    ("ext4", 0x438, b"\x53\xef"),
    ("xfs", 0, b"XFSB"),
    ("btrfs", 0x1_0040, b"_BHRfS_M"),
    ("squashfs", 0, b"hsqs"),
    ("erofs", 0x400, b"\xe2\xe1\xf5\xe0"),
];
/// A partition table instead: its signature.
const PARTITIONED: (u64, &[u8]) = (510, b"\x55\xaa");

/// A disk image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskRoot {
    pub(super) path: PathBuf,
    /// Its file system, if it can be told: what is packed (qcow2) tells nothing.
    pub(super) fstype: Option<String>,
}

impl DiskRoot {
    pub(super) fn look_at(path: &Path) -> Result<Self, Error> {
        let fail = |source| Error::Disk { path: path.into(), source };
        let file = File::open(path).map_err(fail)?;
        let has = |at: u64, magic: &[u8]| {
            let mut bytes = vec![0; magic.len()];
            file.read_exact_at(&mut bytes, at).is_ok() && bytes == magic
        };
        let found = MAGIC.iter().find(|(_, at, magic)| has(*at, magic)).map(|(name, ..)| (*name).to_string());
        if found.is_none() && has(PARTITIONED.0, PARTITIONED.1) {
            return Err(Error::Partitions(path.into()));
        }
        Ok(Self { path: path.into(), fstype: found })
    }

    /// What of the kernel is needed: the file system, or all that there may be.
    pub(super) fn features(&self, kernel: &Kernel) -> Vec<Feature> {
        let known = self.fstype.as_deref().and_then(Feature::of_filesystem);
        let any = [Feature::Ext4, Feature::Xfs, Feature::Btrfs, Feature::Squashfs, Feature::Erofs];
        match known {
            Some(feature) => vec![feature],
            None => any.into_iter().filter(|f| matches!(kernel.support(*f), Support::Modules(_))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_systems_are_told_by_their_magic() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        for (name, at, magic) in MAGIC {
            let file = File::create(&path).unwrap();
            file.set_len(1 << 20).unwrap();
            file.write_all_at(magic, at).unwrap();
            assert_eq!(DiskRoot::look_at(&path).unwrap().fstype.as_deref(), Some(name));
        }
        std::fs::write(&path, "QFI\u{fb}").unwrap();
        assert_eq!(DiskRoot::look_at(&path).unwrap().fstype, None);
        let file = File::create(&path).unwrap();
        file.write_all_at(PARTITIONED.1, PARTITIONED.0).unwrap();
        let error = DiskRoot::look_at(&path).unwrap_err().to_string();
        assert!(error.contains("partition"), "{error}");
    }
}
