//! Files of unknown origin: kernels, initial RAM file systems, disk images.

use super::{Input, memory_file};
use crate::block::{self, DiskOptions, Format, SECTOR};
use crate::board::layout;
use crate::host::vectored::IoBuf;
use crate::loader::fixtures::{self, FORMATS, Packed, pack};
use crate::loader::{self, Boot, Initrd, Protocol, cache};
use crate::mem::buffers::Buffers;
use crate::mem::{Backing, Ram};

const MEMORY: u64 = 64 << 20;

fn load(kernel: &[u8], initrds: &[&[u8]], decompress: bool, protocol: Protocol) {
    let ram = Ram::new(&layout::ram_layout(MEMORY), Backing::Anonymous).unwrap();
    let (_kernel, path) = memory_file(kernel);
    let boot = Boot {
        kernel: path.into(),
        initrds: initrds.iter().map(|content| Initrd::File(memory_file(content).0)).collect(),
        cmdline: "quiet".into(),
        rsdp: 0,
        memory_map: layout::memory_map(MEMORY),
        protocol,
        decompress,
        cache: cache::Policy::Off,
        fresh: true,
    };
    if let Ok(loaded) = loader::load(&ram, &boot) {
        assert!(loaded.report.entry < MEMORY, "the entry is not in RAM");
        let initrd = loaded.report.initrd.map_or(0, |range| range.start + range.len);
        assert!(initrd <= MEMORY);
    }
}

/// A kernel of any kind; the last byte says how to start it.
pub(super) fn kernel(data: &[u8]) {
    let how = data.last().copied().unwrap_or(0);
    let protocol = [Protocol::Auto, Protocol::Linux, Protocol::Pvh][usize::from(how) % 3];
    load(data, &[], how & 0x40 == 0, protocol);
}

pub(super) fn kernels() -> Vec<Vec<u8>> {
    let vmlinux = fixtures::vmlinux();
    let mut all: Vec<_> = FORMATS
        .iter()
        .map(|format| fixtures::bzimage(&Packed { payload: pack(*format, &vmlinux), ..Packed::default() }))
        .collect();
    all.push(vmlinux);
    all
}

/// Archives of the input's sizes beside a kernel.
pub(super) fn initrd(data: &[u8]) {
    let (first, second) = data.split_at(data.len() / 3);
    load(&fixtures::vmlinux(), &[first, second], true, Protocol::Auto);
}

/// A disk image, used according to its last bytes.
pub(super) fn image(data: &[u8]) {
    let (content, moves) = data.split_at(data.len().saturating_sub(40));
    let mut moves = Input(moves);
    let how = moves.byte();
    let (_file, path) = memory_file(content);
    let options = DiskOptions {
        path: path.into(),
        format: [None, Some(Format::Raw), Some(Format::Qcow2), None][usize::from(how & 3)],
        readonly: how & 4 != 0,
        snapshot: how & 8 != 0,
        direct: false,
    };
    let Ok(mut disk) = block::open(&options) else { return };
    let size = disk.size();
    let ram = Ram::new(&[(0, 1 << 20)], Backing::Anonymous).unwrap();
    for _ in 0..8 {
        let step = moves.byte();
        let at = u64::from(moves.u16()) * SECTOR % size.max(SECTOR);
        let len = (u64::from(step >> 4) * SECTOR).min(size.saturating_sub(at));
        let mut buffers = Buffers::new(ram.clone());
        buffers.push(0x100, len).unwrap();
        let list: &[IoBuf] = buffers.list();
        // Errors are fine. What is written must not come back different.
        match step & 7 {
            0..=2 => drop(disk.read(at, list)),
            3 | 4 => drop(disk.write(at, list)),
            5 => drop(disk.discard(at, len)),
            6 => drop(disk.write_zeroes(at, len, step & 8 != 0)),
            _ => drop(disk.flush()),
        }
    }
    assert_eq!(disk.size(), size);
}

/// qcow2 images of a few clusters (QEMU's docs/interop/qcow2): header, L1 table, L2 table, refcount table and block.
pub(super) fn images() -> Vec<Vec<u8>> {
    let image = |version: u32, cluster_bits: u32| {
        let cluster = 1usize << cluster_bits;
        let mut bytes = vec![0; 6 * cluster + 40];
        let mut put = |at: usize, value: u64, size: usize| {
            bytes[at..at + size].copy_from_slice(&value.to_be_bytes()[8 - size..]);
        };
        put(0, 0x5146_49fb, 4);
        put(4, version.into(), 4);
        put(20, cluster_bits.into(), 4);
        // One L2 table covers the whole disk of so many clusters.
        put(24, (cluster * 16) as u64, 8);
        put(36, 1, 4);
        put(40, cluster as u64, 8);
        put(48, 3 * cluster as u64, 8);
        put(56, 1, 4);
        if version == 3 {
            put(96, 4, 4);
            put(100, 104, 4);
        }
        put(cluster, 1 << 63 | (2 * cluster) as u64, 8);
        put(2 * cluster, 1 << 63 | (5 * cluster) as u64, 8);
        put(3 * cluster, 4 * cluster as u64, 8);
        (0..6).for_each(|index| put(4 * cluster + 2 * index, 1, 2));
        // Written, read, discarded, flushed.
        for (index, step) in [0x10, 0x30, 0x15, 7, 0x10].into_iter().enumerate() {
            put(6 * cluster + 1 + 3 * index, step, 1);
        }
        bytes
    };
    vec![image(2, 9), image(3, 9), image(3, 12), vec![7; 2048 + 40]]
}
