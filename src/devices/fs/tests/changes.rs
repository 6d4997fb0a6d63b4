//! What a guest may do with a directory that it shares for writing.

use super::*;

fn rw() -> Mount {
    Mount::new(",mode=rw")
}

#[test]
fn files_are_made_written_and_read_back() {
    let mut mount = rw();
    let (entry, handle) = mount.create(ROOT, "new", libc::O_RDWR, 0o100_666).unwrap();
    assert_eq!((entry.size, entry.mode), (0, 0o100_666), "the umask is the guest's, not this process's");
    assert_eq!(mount.write(handle, 3, b"hello"), Ok(5));
    assert_eq!(fs::read(mount.path("new")).unwrap(), b"\0\0\0hello");
    assert_eq!(mount.read(handle, 0, 100).unwrap(), b"\0\0\0hello");
    // Appending goes to the end wherever that is, but a page that is written back has its place.
    fs::OpenOptions::new().append(true).open(mount.path("new")).unwrap().write_at(b"!", 0).unwrap();
    assert_eq!(mount.write_with(handle, 8, b"more", 0, libc::O_APPEND), Ok(4));
    assert_eq!(mount.write_with(handle, 0, b"abc", 1, libc::O_APPEND), Ok(3));
    assert_eq!(fs::read(mount.path("new")).unwrap(), b"abchello!more");
    mount.call(Opcode::Fsync, entry.node, &args![handle, 0u32, 0u32]).unwrap();
    mount.call(Opcode::Syncfs, ROOT, &args![0u64]).unwrap();
    mount.release(handle).unwrap();
    // Once more: it is there now.
    assert_eq!(mount.create(ROOT, "new", libc::O_RDWR | libc::O_EXCL, 0o600), Err(libc::EEXIST));
    let (again, handle) = mount.create(ROOT, "new", libc::O_WRONLY | libc::O_TRUNC, 0o600).unwrap();
    assert_eq!(again.node, entry.node);
    assert_eq!(mount.read(handle, 0, 1), Err(libc::EBADF));
    assert_eq!(fs::read(mount.path("new")).unwrap(), b"");
    let large = vec![7; 1 << 20];
    assert_eq!(mount.write(handle, 1 << 20, &large), Ok(1 << 20));
    assert_eq!(fs::metadata(mount.path("new")).unwrap().len(), 2 << 20);
}

#[test]
fn every_kind_of_file_can_be_made() {
    let mut mount = rw();
    let dir = mount.mkdir(ROOT, "dir", 0o777).unwrap();
    assert_eq!(dir.mode, 0o040_777);
    let mknod = |mode: u32, name| args![mode, 0u32, 0o22u32, 0u32, name];
    let file = Entry::parse(&mount.call(Opcode::Mknod, dir.node, &mknod(0o100_646, "file")).unwrap());
    assert_eq!((file.mode, file.size), (0o100_646, 0));
    let pipe = Entry::parse(&mount.call(Opcode::Mknod, dir.node, &mknod(0o010_600, "pipe")).unwrap());
    assert_eq!(pipe.mode, 0o010_600);
    let socket = Entry::parse(&mount.call(Opcode::Mknod, dir.node, &mknod(0o140_600, "socket")).unwrap());
    assert_eq!(socket.mode, 0o140_600);
    for mode in [0o040_700, 0o120_777, 0o170_000, 0] {
        assert_eq!(mount.call(Opcode::Mknod, dir.node, &mknod(mode, "x")), Err(libc::EINVAL), "{mode:o}");
    }
    let link = Entry::parse(&mount.call(Opcode::Symlink, dir.node, &args!["link", "../anywhere"]).unwrap());
    assert_eq!(fs::read_link(mount.path("dir/link")).unwrap().to_str(), Some("../anywhere"));
    let hard = Entry::parse(&mount.call(Opcode::Link, ROOT, &args![file.node, "hard"]).unwrap());
    assert_eq!((hard.node, hard.links), (file.node, 2));
    let hard = Entry::parse(&mount.call(Opcode::Link, ROOT, &args![link.node, "hard link"]).unwrap());
    assert_eq!(hard.node, link.node, "the link itself, not what it leads to");
    assert_eq!(fs::read_link(mount.path("hard link")).unwrap().to_str(), Some("../anywhere"));
    if is_root() {
        let device = args![0o020_600u32, (5 << 8 | 0x12 | 0x100 << 12) as u32, 0u32, 0u32, "device"];
        let device = Entry::parse(&mount.call(Opcode::Mknod, ROOT, &device).unwrap());
        assert_eq!(device.device, 5 << 8 | 0x12 | 0x100 << 12);
        assert_eq!(mount.open(device.node, libc::O_RDONLY), Err(libc::ENXIO), "it is for the guest's kernel");
    }
}

#[test]
fn attributes_are_set() {
    let mut mount = rw();
    let (file, handle) = mount.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
    let set = |mount: &mut Mount, change| mount.setattr(file.node, change).unwrap();
    let entry = set(&mut mount, Change { valid: fattr::MODE, mode: 0o104_755, ..Change::default() });
    assert_eq!(entry.mode, 0o104_755);
    let entry = set(&mut mount, Change { valid: fattr::SIZE, size: 5000, ..Change::default() });
    assert_eq!((entry.size, entry.mode), (5000, 0o104_755));
    let valid = fattr::SIZE | fattr::FH | fattr::KILL_SUIDGID;
    let entry = set(&mut mount, Change { valid, handle, size: 100, ..Change::default() });
    assert_eq!((entry.size, entry.mode), (100, 0o100_755), "set-user-ID goes");
    let valid = fattr::ATIME | fattr::MTIME;
    let entry = set(&mut mount, Change { valid, atime: (1, 2), mtime: (1_000_000_000, 4), ..Change::default() });
    assert_eq!(entry.mtime, 1_000_000_000);
    let meta = fs::metadata(mount.path("file")).unwrap();
    assert_eq!((meta.atime(), meta.atime_nsec(), meta.mtime_nsec()), (1, 2, 4));
    set(&mut mount, Change { valid: fattr::MTIME | fattr::MTIME_NOW, ..Change::default() });
    let meta = fs::metadata(mount.path("file")).unwrap();
    assert!(meta.atime() == 1 && meta.mtime() > 1_000_000_000);
    set(&mut mount, Change { valid: fattr::UID | fattr::GID, ..Change::default() });
    let symlink = Entry::parse(&mount.call(Opcode::Symlink, ROOT, &args!["link", "/etc/shadow"]).unwrap());
    mount.setattr(symlink.node, Change { valid: fattr::MTIME, mtime: (5, 0), ..Change::default() }).unwrap();
    assert_eq!(fs::symlink_metadata(mount.path("link")).unwrap().mtime(), 5, "of the link itself");
    assert!(mount.setattr(symlink.node, Change { valid: fattr::MODE, mode: 0o777, ..Change::default() }).is_err());
    assert_eq!(mount.setattr(symlink.node, Change { valid: fattr::SIZE, ..Change::default() }), Err(libc::EINVAL));
    assert_eq!(mount.setattr(ROOT, Change { valid: fattr::SIZE, ..Change::default() }), Err(libc::EISDIR));
    if is_root() {
        mount.setattr(symlink.node, Change { valid: fattr::UID, uid: 77, ..Change::default() }).unwrap();
        assert_eq!(fs::symlink_metadata(mount.path("link")).unwrap().uid(), 77);
    }
}

#[test]
fn writing_takes_set_user_id_away_when_the_guest_says_so() {
    let mut mount = rw();
    let (file, handle) = mount.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
    let mode = |mount: &mut Mount, mode| {
        mount.setattr(file.node, Change { valid: fattr::MODE, mode, ..Change::default() }).unwrap();
    };
    mode(&mut mount, 0o6777);
    if is_root() {
        mount.write(handle, 0, b"x").unwrap();
        assert_eq!(mount.getattr(file.node).unwrap().mode, 0o106_777, "the guest's root may keep it");
    }
    mount.write_with(handle, 0, b"x", 4, 0).unwrap();
    assert_eq!(mount.getattr(file.node).unwrap().mode, 0o100_777);
    mode(&mut mount, 0o4777);
    mount.call(Opcode::Open, file.node, &args![(libc::O_RDWR | libc::O_TRUNC) as u32, 1u32]).unwrap();
    assert_eq!(mount.getattr(file.node).unwrap().mode, 0o100_777);
}

#[test]
fn files_belong_to_who_made_them() {
    if !is_root() {
        return println!("\nSKIPPED: only root can make files for others");
    }
    let mut mount = rw();
    mount.user = (1234, 567);
    let dir = mount.mkdir(ROOT, "dir", 0o700).unwrap();
    let (file, _) = mount.create(dir.node, "file", libc::O_RDWR, 0o600).unwrap();
    let link = Entry::parse(&mount.call(Opcode::Symlink, dir.node, &args!["link", "x"]).unwrap());
    let pipe = mount.call(Opcode::Mknod, dir.node, &args![0o010_600u32, 0u32, 0u32, 0u32, "pipe"]).unwrap();
    let temporary = mount.call(Opcode::Tmpfile, dir.node, &args![2u32, 0o600u32, 0u32, 0u32, "/"]).unwrap();
    for entry in [dir, file, link, Entry::parse(&pipe), Entry::parse(&temporary)] {
        assert_eq!(entry.owner, (1234, 567));
    }
    // A directory with set-group-ID passes its group on.
    mount.user = (0, 0);
    let change = Change { valid: fattr::MODE | fattr::GID, mode: 0o2777, gid: 99, ..Change::default() };
    mount.setattr(dir.node, change).unwrap();
    mount.user = (1234, 567);
    assert_eq!(mount.mkdir(dir.node, "inner", 0o700).unwrap().owner, (1234, 99));
    mount.user = (0, 0);
    assert_eq!(mount.mkdir(ROOT, "roots", 0o700).unwrap().owner, (0, 0));
}

#[test]
fn names_move_and_nodes_follow() {
    let mut mount = rw();
    let (a, b) = (mount.mkdir(ROOT, "a", 0o700).unwrap(), mount.mkdir(ROOT, "b", 0o700).unwrap());
    let (file, handle) = mount.create(a.node, "file", libc::O_RDWR, 0o600).unwrap();
    mount.release(handle).unwrap();
    mount.rename((a.node, "file"), (b.node, "moved"), 0).unwrap();
    assert!(mount.getattr(file.node).is_ok() && mount.path("b/moved").exists());
    let (other, handle) = mount.create(a.node, "other", libc::O_RDWR, 0o600).unwrap();
    mount.write(handle, 0, b"other").unwrap();
    let noreplace = libc::RENAME_NOREPLACE;
    assert_eq!(mount.rename((a.node, "other"), (b.node, "moved"), noreplace), Err(libc::EEXIST));
    mount.rename((a.node, "other"), (b.node, "moved"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((mount.walk("a/other"), mount.walk("b/moved")), (file.node, other.node));
    mount.rename((b.node, "moved"), (a.node, "other"), 0).unwrap();
    assert_eq!(mount.walk("a/other"), other.node);
    assert_eq!(mount.getattr(file.node).unwrap().links, 0, "replaced, but the guest still knows it");
    assert_eq!(mount.rename((a.node, "other"), (a.node, "x"), libc::RENAME_WHITEOUT), Err(libc::EINVAL));
    assert_eq!(mount.call(Opcode::Rename, ROOT, &args![a.node, "a", "inside itself"]), Err(libc::EINVAL));
    mount.call(Opcode::Rename, ROOT, &args![b.node, "a", "a"]).unwrap();
    assert_eq!(mount.walk("b/a/other"), other.node);
    assert_eq!(mount.call(Opcode::Rmdir, ROOT, &args!["b"]), Err(libc::ENOTEMPTY));
    assert_eq!(mount.unlink(ROOT, "b"), Err(libc::EISDIR));
}

#[test]
fn removed_files_stay_usable_until_they_are_forgotten() {
    let mut mount = rw();
    let (file, handle) = mount.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
    mount.unlink(ROOT, "file").unwrap();
    assert_eq!(mount.write(handle, 0, b"still here"), Ok(10));
    let entry = mount.getattr(file.node).unwrap();
    assert_eq!((entry.size, entry.links), (10, 0));
    let again = mount.open(file.node, libc::O_RDONLY).unwrap();
    mount.forget(file.node, 1);
    assert!(mount.getattr(file.node).is_ok(), "it is open");
    mount.release(handle).unwrap();
    assert_eq!(mount.read(again, 6, 10).unwrap(), b"here");
    mount.release(again).unwrap();
    assert_eq!(mount.getattr(file.node), Err(libc::ESTALE));
    let dir = mount.mkdir(ROOT, "dir", 0o700).unwrap();
    mount.call(Opcode::Rmdir, ROOT, &args!["dir"]).unwrap();
    assert_eq!(mount.mkdir(dir.node, "x", 0o700), Err(libc::ENOENT), "the guest is in a directory that is gone");
    // A file that never had a name gets one.
    let bytes = mount.call(Opcode::Tmpfile, ROOT, &args![2u32, 0o604u32, 0u32, 0u32, "/"]).unwrap();
    let (temporary, handle) = (Entry::parse(&bytes), u64_at(&bytes, 128));
    assert_eq!(temporary.links, 0);
    mount.write(handle, 0, b"content").unwrap();
    let linked = mount.call(Opcode::Link, ROOT, &args![temporary.node, "named"]).unwrap();
    assert_eq!(Entry::parse(&linked).node, temporary.node);
    assert_eq!(fs::read(mount.path("named")).unwrap(), b"content");
    assert_eq!(fs::metadata(mount.path("named")).unwrap().mode() & 0o777, 0o604);
}

#[test]
fn holes_space_and_copies() {
    let mut mount = rw();
    let (file, handle) = mount.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
    let fallocate = |mode: i32, at: u64, len: u64| args![handle, at, len, mode as u32, 0u32];
    mount.call(Opcode::Fallocate, file.node, &fallocate(0, 0, 1 << 20)).unwrap();
    assert_eq!(mount.getattr(file.node).unwrap().size, 1 << 20);
    mount.write(handle, 0, &[1; 65536]).unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    mount.call(Opcode::Fallocate, file.node, &fallocate(punch, 0, 32768)).unwrap();
    let lseek = |at: u64, whence: i32| args![handle, at, whence as u32, 0u32];
    assert_eq!(mount.call(Opcode::Lseek, file.node, &lseek(0, libc::SEEK_DATA)).unwrap(), 32768u64.bytes());
    assert!(mount.call(Opcode::Fallocate, file.node, &fallocate(0x1000, 0, 1)).is_err());
    let (_, other) = mount.create(ROOT, "copy", libc::O_RDWR, 0o600).unwrap();
    let copied =
        mount.call(Opcode::CopyFileRange, file.node, &args![handle, 32768u64, 0u64, other, 5u64, 1000u64, 0u64]);
    assert_eq!(u32_at(&copied.unwrap(), 0), 1000);
    assert_eq!(fs::read(mount.path("copy")).unwrap(), [&[0; 5][..], &[1; 1000]].concat());
}

#[test]
fn extended_attributes_are_the_hosts() {
    let mut mount = rw();
    let (file, _) = mount.create(ROOT, "file", libc::O_RDWR, 0o600).unwrap();
    let set = |name: &str, value: &[u8], flags: i32| args![value.len() as u32, flags as u32, name, value];
    if mount.call(Opcode::Setxattr, file.node, &set("user.test", b"value", 0)) == Err(libc::EOPNOTSUPP) {
        return println!("\nSKIPPED: no extended attributes in {}", mount.dir.path().display());
    }
    let get = |size: u32, name: &str| args![size, 0u32, name];
    assert_eq!(mount.call(Opcode::Getxattr, file.node, &get(100, "user.test")).unwrap(), b"value");
    assert_eq!(mount.call(Opcode::Getxattr, file.node, &get(0, "user.test")).unwrap(), args![5u32, 0u32]);
    assert_eq!(mount.call(Opcode::Getxattr, file.node, &get(3, "user.test")), Err(libc::ERANGE));
    assert_eq!(mount.call(Opcode::Getxattr, file.node, &get(3, "user.none")), Err(libc::ENODATA));
    let exists = mount.call(Opcode::Setxattr, file.node, &set("user.test", b"other", libc::XATTR_CREATE));
    assert_eq!(exists, Err(libc::EEXIST));
    let listed = mount.call(Opcode::Listxattr, file.node, &args![1000u32, 0u32]).unwrap();
    assert!(listed.split(|&byte| byte == 0).any(|name| name == b"user.test"));
    for request in [Opcode::Setxattr, Opcode::Getxattr] {
        let args = set("system.posix_acl_access", b"xxxx", 0);
        assert_eq!(mount.call(request, file.node, &args), Err(libc::EOPNOTSUPP), "the guest would not keep to them");
    }
    mount.call(Opcode::Removexattr, file.node, &args!["user.test"]).unwrap();
    assert_eq!(mount.call(Opcode::Removexattr, file.node, &args!["user.test"]), Err(libc::ENODATA));
    let short = args![100u32, 0u32, "user.test", b"few".as_slice()];
    assert_eq!(mount.call(Opcode::Setxattr, file.node, &short), Err(libc::EINVAL));
}
