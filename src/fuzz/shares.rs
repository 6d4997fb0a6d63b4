//! Shared directories: a driver that asks for anything.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use super::Input;
use super::queues::device;
use crate::fs::protocol::{Opcode, REQUEST_HEADER};
use crate::virtio::kit::Kit;

/// Requests of one input.
const STEPS: usize = 64;
/// Names that mean something in the directory, and names that must mean nothing.
const NAMES: &[&str] =
    &["file", "dir", "link", "new", "pipe", ".", "..", "/", "", "dir/file", "user.x", "a name\u{e9}"];

fn header(opcode: u32, node: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend(((REQUEST_HEADER + len) as u32).to_le_bytes());
    bytes.extend(opcode.to_le_bytes());
    bytes.extend(1u64.to_le_bytes());
    bytes.extend(node.to_le_bytes());
    bytes.resize(REQUEST_HEADER, 0);
    bytes
}

/// Mounts a directory for writing and asks for what the input says.
pub(super) fn share(data: &[u8]) {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut input = Input(data);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let top = std::env::temp_dir().join(format!("belljar-fuzz-fs-{}-{number}", std::process::id()));
    let dir = top.join("shared");
    fs::create_dir_all(dir.join("dir/dir")).unwrap();
    fs::write(dir.join("file"), "content").unwrap();
    fs::write(top.join("new"), "outside").unwrap();
    std::os::unix::fs::symlink("..", dir.join("link")).unwrap();
    let text = format!("{},tag=t,mode={}", dir.display(), if input.byte() & 3 == 0 { "ro" } else { "rw" });
    let mut kit = Kit::new(device("fs", &text));
    kit.activate(0);
    let first = [7u32, 38, 1 << 17, u32::MAX >> 1].map(u32::to_le_bytes).concat();
    kit.request(1, &[&header(Opcode::Init as u32, 0, 16), &first], &[16, 64]);
    for _ in 0..STEPS {
        if input.is_empty() || kit.is_broken() {
            break;
        }
        step(&mut kit, &mut input);
    }
    drop(kit);
    let left: Vec<_> = fs::read_dir(&top).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "made outside: {left:?}");
    assert_eq!(fs::read_to_string(top.join("new")).unwrap(), "outside");
    let _ = fs::remove_dir_all(&top);
}

/// One request: small numbers, names and bytes.
fn step(kit: &mut Kit, input: &mut Input<'_>) {
    let opcode = u32::from(input.byte() % 64);
    // Writing everything that this host has not written yet takes too long.
    if opcode == Opcode::Syncfs as u32 {
        return;
    }
    let node = match input.byte() {
        255 => input.u64(),
        small => u64::from(small % 12),
    };
    let mut args = Vec::new();
    for _ in 0..input.byte() % 8 {
        match input.byte() % 8 {
            0 => args.extend(input.u64().to_le_bytes()),
            1 => args.extend(u32::from(input.byte()).to_le_bytes()),
            2 => args.extend(input.bytes(20)),
            3 | 4 => args.extend([NAMES[input.below(NAMES.len())].as_bytes(), &[0]].concat()),
            _ => args.extend(u64::from(input.byte() % 16).to_le_bytes()),
        }
    }
    let shape = input.byte();
    let room = [16, input.below(5000)];
    let room = match shape & 7 {
        0 => &[][..],
        1 => &room[..1],
        _ => &room[..],
    };
    if room.contains(&0) || kit.free_memory() < 64 << 10 {
        return;
    }
    let header = header(opcode, node, args.len());
    let out: &[&[u8]] = if args.is_empty() { &[&header] } else { &[&header, &args] };
    kit.rewind();
    kit.request(usize::from(shape >> 7), out, room);
}
