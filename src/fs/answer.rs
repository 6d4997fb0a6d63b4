//! Answers: structures of the protocol, written field by field.

use std::time::Duration;

use rustix::fs::{StatVfs, Statx, StatxTimestamp};

/// The body of an answer under way.
#[derive(Debug, Default)]
pub(super) struct Body(pub(super) Vec<u8>);

/// Attributes as the guest shall see them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attributes {
    pub(super) stat: Statx,
    /// Numbers of the file, its user and its group.
    pub(super) number: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// A device number as Linux passes it around (`new_encode_dev`).
fn device_word(major: u32, minor: u32) -> u32 {
    minor & 0xff | major << 8 | (minor & !0xff) << 12
}

impl Body {
    pub(super) fn u16(&mut self, number: u16) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn u32(&mut self, number: u32) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn u64(&mut self, number: u64) -> &mut Self {
        self.0.extend(number.to_le_bytes());
        self
    }

    pub(super) fn zeros(&mut self, count: usize) -> &mut Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// `struct fuse_attr`.
    pub(super) fn attributes(&mut self, attributes: &Attributes) -> &mut Self {
        let stat = &attributes.stat;
        self.u64(attributes.number).u64(stat.stx_size).u64(stat.stx_blocks);
        let times = [stat.stx_atime, stat.stx_mtime, stat.stx_ctime];
        for time in &times {
            self.u64(time.tv_sec as u64);
        }
        for time in &times {
            self.u32(time.tv_nsec);
        }
        self.u32(stat.stx_mode.into()).u32(stat.stx_nlink).u32(attributes.uid).u32(attributes.gid);
        self.u32(device_word(stat.stx_rdev_major, stat.stx_rdev_minor)).u32(stat.stx_blksize).u32(0)
    }

    /// `struct fuse_entry_out`: the file is `node`, and name and attributes are good for `valid`.
    pub(super) fn entry(&mut self, node: u64, attributes: &Attributes, valid: Duration) -> &mut Self {
        self.u64(node).u64(0).u64(valid.as_secs()).u64(valid.as_secs());
        self.u32(valid.subsec_nanos()).u32(valid.subsec_nanos()).attributes(attributes)
    }

    /// `struct fuse_entry_out`: there is no such file.
    pub(super) fn no_entry(&mut self, valid: Duration) -> &mut Self {
        self.u64(0).u64(0).u64(valid.as_secs()).zeros(ENTRY - 24)
    }

    /// `struct fuse_attr_out`.
    pub(super) fn getattr(&mut self, attributes: &Attributes, valid: Duration) -> &mut Self {
        self.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0).attributes(attributes)
    }

    /// `struct fuse_statx_out`.
    pub(super) fn statx(&mut self, attributes: &Attributes, valid: Duration) -> &mut Self {
        let stat = &attributes.stat;
        self.u64(valid.as_secs()).u32(valid.subsec_nanos()).u32(0).zeros(16);
        // The mount is the guest's business, as are what only some file systems know.
        self.u32(stat.stx_mask & STATX_KNOWN).u32(stat.stx_blksize).zeros(8);
        self.u32(stat.stx_nlink).u32(attributes.uid).u32(attributes.gid).u16(stat.stx_mode).u16(0);
        self.u64(attributes.number).u64(stat.stx_size).u64(stat.stx_blocks).u64(0);
        for time in [stat.stx_atime, stat.stx_btime, stat.stx_ctime, stat.stx_mtime] {
            self.timestamp(time);
        }
        self.u32(stat.stx_rdev_major).u32(stat.stx_rdev_minor).zeros(8 + 14 * 8)
    }

    fn timestamp(&mut self, time: StatxTimestamp) {
        self.u64(time.tv_sec as u64).u32(time.tv_nsec).u32(0);
    }

    /// `struct fuse_kstatfs`.
    pub(super) fn statfs(&mut self, stat: &StatVfs) -> &mut Self {
        self.u64(stat.f_blocks).u64(stat.f_bfree).u64(stat.f_bavail).u64(stat.f_files).u64(stat.f_ffree);
        self.u32(stat.f_bsize as u32).u32(stat.f_namemax as u32).u32(stat.f_frsize as u32).zeros(28)
    }
}

/// Bytes of `struct fuse_entry_out`.
pub(super) const ENTRY: usize = 128;
/// `STATX_BASIC_STATS` and `STATX_BTIME`.
const STATX_KNOWN: u32 = 0xfff;
