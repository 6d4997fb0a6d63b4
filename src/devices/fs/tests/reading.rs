//! What a guest may do with a directory that it only reads.

use super::*;

#[test]
fn files_have_the_attributes_of_the_host() {
    let mut mount = Mount::new("");
    fs::write(mount.path("file"), "content").unwrap();
    fs::set_permissions(mount.path("file"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("/etc/shadow", mount.path("link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, mount.path("pipe"), rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let meta = fs::metadata(mount.path("file")).unwrap();
    let file = mount.lookup(ROOT, "file").unwrap();
    assert_eq!((file.valid, file.number, file.size), (1, meta.ino(), 7));
    assert_eq!((file.mode, file.links, file.mtime), (meta.mode(), 1, meta.mtime() as u64));
    assert_eq!(file.owner, (0, 0), "an ordinary user's files are root's to the guest, as root's are");
    assert_eq!(mount.lookup(ROOT, "link").unwrap().mode & 0o170_000, 0o120_000, "links are not followed");
    assert_eq!(mount.lookup(ROOT, "none"), Err(libc::ENOENT));
    let link = mount.walk("link");
    assert_eq!(mount.call(Opcode::Readlink, link, &[]).unwrap(), b"/etc/shadow");
    assert_eq!(mount.call(Opcode::Readlink, file.node, &[]), Err(libc::EINVAL));
    assert_eq!(mount.open(link, libc::O_RDONLY), Err(libc::ELOOP));
    assert_eq!(mount.open(ROOT, libc::O_RDONLY), Err(libc::EISDIR));
    let pipe = mount.walk("pipe");
    assert_eq!(mount.open(pipe, libc::O_RDONLY), Err(libc::ENXIO), "no host program waits for this pipe");
    let same = mount.getattr(file.node).unwrap();
    assert_eq!(Entry { node: file.node, valid: 1, ..same }, file);
    let bytes = mount.call(Opcode::Statx, file.node, &args![0u32, 0u32, 0u64, 0u32, 0xfffu32]).unwrap();
    assert_eq!((bytes.len(), u64_at(&bytes, 32 + 32), u64_at(&bytes, 32 + 40)), (288, meta.ino(), 7));
    let stat = mount.call(Opcode::Statfs, ROOT, &[]).unwrap();
    assert_eq!((stat.len(), u32_at(&stat, 44)), (80, 255));
}

#[test]
fn content_goes_straight_to_the_buffers() {
    let mut mount = Mount::new("");
    let content: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7 % 251) as u8).collect();
    fs::write(mount.path("file"), &content).unwrap();
    let node = mount.walk("file");
    let handle = mount.open(node, libc::O_RDONLY).unwrap();
    for (offset, size) in [(0, 1 << 20), (1 << 20, 1 << 20), (2_999_999, 10), (123, 1), (3_000_000, 5), (0, 0)] {
        let end = content.len().min(offset + size);
        assert_eq!(mount.read(handle, offset as u64, size as u32).unwrap(), content[offset..end]);
    }
    // A request of odd pieces; only as much as was asked for.
    let args = args![handle, 5u64, 5000u32, 0u32, 0u64, 0u32, 0u32];
    let header = mount.header(Opcode::Read as u32, node, args.len());
    let parts = [Part::Out(&header[..7]), Part::Out(&header[7..]), Part::Out(&args)];
    let room = [Part::In(3), Part::In(14), Part::In(4000), Part::In(4000)];
    mount.kit.add_indirect(REQUESTS, &[&parts[..], &room].concat());
    mount.kit.notify(REQUESTS);
    let used = mount.kit.wait_used(REQUESTS);
    assert_eq!((used.data.len(), &used.data[16..]), (5016, &content[5..5005]));
    assert_eq!(
        mount.call(Opcode::Lseek, node, &args![handle, 0u64, libc::SEEK_HOLE as u32, 0u32]).unwrap(),
        3_000_000u64.bytes()
    );
    assert_eq!(mount.call(Opcode::Lseek, node, &args![handle, 0u64, 0u32, 0u32]), Err(libc::EINVAL));
    mount.call(Opcode::Flush, node, &args![handle, 0u64, 0u64]).unwrap();
    mount.call(Opcode::Fsync, node, &args![handle, 1u32, 0u32]).unwrap();
    mount.release(handle).unwrap();
    assert_eq!(mount.read(handle, 0, 1), Err(libc::EBADF));
    assert_eq!(mount.release(handle), Err(libc::EBADF));
}

#[test]
fn directories_are_listed_whole_in_pieces_of_any_size() {
    let mut mount = Mount::new("");
    fs::create_dir(mount.path("dir")).unwrap();
    let mut names: Vec<String> = (0..700).map(|i| format!("{i:0w$}", w = 1 + i % 60)).collect();
    for name in &names {
        fs::write(mount.path("dir").join(name), name).unwrap();
    }
    names.extend([".".into(), "..".into()]);
    names.sort();
    let dir = mount.walk("dir");
    for (plus, room) in [(false, 8192), (false, 100), (true, 4096), (true, 300)] {
        let mut found = mount.list(dir, plus, room);
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(found.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>(), names, "plus {plus} room {room}");
        for (name, number, entry) in found.iter().filter(|(name, ..)| !name.starts_with('.')) {
            let meta = fs::metadata(mount.path("dir").join(name)).unwrap();
            assert_eq!(*number, meta.ino());
            if let Some(entry) = entry {
                assert_eq!((entry.number, entry.size), (meta.ino(), name.len() as u64));
                mount.forget(entry.node, 1);
            }
        }
    }
    let root = mount.list(ROOT, false, 8192);
    let number = |name: &str| root.iter().find(|(found, ..)| found == name).unwrap().1;
    assert_eq!(number("."), number(".."), "what is above is not for the guest");
    let handle = mount.opendir(dir).unwrap();
    let args = args![handle, 0u64, 40u32, 0u32, 0u64, 0u32, 0u32];
    assert_eq!(mount.call_with_room(Opcode::Readdirplus as u32, dir, &args, 40), Err(libc::EINVAL), "no room for one");
    mount.call(Opcode::Fsyncdir, dir, &args![handle, 0u32, 0u32]).unwrap();
    let file = mount.walk("dir/01");
    assert_eq!(mount.opendir(file), Err(libc::ENOTDIR));
}

#[test]
fn nothing_can_be_changed() {
    let mut mount = Mount::new(",mode=ro");
    fs::write(mount.path("file"), "content").unwrap();
    fs::create_dir(mount.path("dir")).unwrap();
    let (file, dir) = (mount.walk("file"), mount.walk("dir"));
    let handle = mount.open(file, libc::O_RDONLY).unwrap();
    let before = fs::metadata(mount.path("file")).unwrap();
    for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDONLY | libc::O_TRUNC] {
        assert_eq!(mount.open(file, flags), Err(libc::EROFS));
    }
    assert_eq!(mount.create(ROOT, "new", libc::O_RDWR, 0o600), Err(libc::EROFS));
    assert_eq!(mount.write(handle, 0, b"x"), Err(libc::EROFS));
    assert_eq!(mount.mkdir(ROOT, "new", 0o700), Err(libc::EROFS));
    assert_eq!(mount.unlink(ROOT, "file"), Err(libc::EROFS));
    assert_eq!(mount.rename((ROOT, "file"), (ROOT, "new"), 0), Err(libc::EROFS));
    for valid in [fattr::MODE, fattr::SIZE, fattr::UID, fattr::MTIME_NOW, fattr::SIZE | fattr::FH, 0] {
        assert_eq!(mount.setattr(file, Change { valid, handle, ..Change::default() }), Err(libc::EROFS));
    }
    let requests: &[(Opcode, u64, Vec<u8>)] = &[
        (Opcode::Rmdir, ROOT, args!["dir"]),
        (Opcode::Rename, ROOT, args![dir, "file", "new"]),
        (Opcode::Link, ROOT, args![file, "new"]),
        (Opcode::Symlink, ROOT, args!["new", "target"]),
        (Opcode::Mknod, ROOT, args![0o100_600u32, 0u32, 0u32, 0u32, "new"]),
        (Opcode::Tmpfile, ROOT, args![2u32, 0o600u32, 0u32, 0u32, "/"]),
        (Opcode::Setxattr, file, args![1u32, 0u32, "user.x", b"1".as_slice()]),
        (Opcode::Removexattr, file, args!["user.x"]),
        (Opcode::Fallocate, file, args![handle, 0u64, 100u64, 0u32, 0u32]),
        (Opcode::CopyFileRange, file, args![handle, 0u64, file, handle, 3u64, 1u64, 0u64]),
        (Opcode::Access, file, args![2u32, 0u32]),
    ];
    for (opcode, node, args) in requests {
        assert_eq!(mount.call(*opcode, *node, args), Err(libc::EROFS), "{opcode:?}");
    }
    mount.call(Opcode::Access, file, &args![4u32, 0u32]).unwrap();
    assert_eq!(mount.read(handle, 0, 100).unwrap(), b"content");
    mount.call(Opcode::Syncfs, ROOT, &args![0u64]).unwrap();
    let after = fs::metadata(mount.path("file")).unwrap();
    assert_eq!((after.ctime(), after.ctime_nsec()), (before.ctime(), before.ctime_nsec()));
    assert_eq!((after.atime(), after.atime_nsec()), (before.atime(), before.atime_nsec()), "reading leaves no trace");
    assert_eq!(fs::read_dir(mount.dir.path()).unwrap().count(), 2);
}

#[test]
fn what_the_guest_may_believe() {
    for (cache, valid, flags) in [("auto", 1, 0), ("never", 0, fopen::DIRECT_IO), ("always", 86_400, fopen::KEEP_CACHE)]
    {
        let mut mount = Mount::new(&format!(",cache={cache}"));
        fs::write(mount.path("file"), "content").unwrap();
        let file = mount.lookup(ROOT, "file").unwrap();
        assert_eq!(file.valid, valid);
        let opened = mount.call(Opcode::Open, file.node, &args![0u32, 0u32]).unwrap();
        assert_eq!(u32_at(&opened, 8) & 3, flags, "{cache}");
        match cache {
            "always" => assert_eq!(mount.lookup(ROOT, "none").map(|entry| (entry.node, entry.valid)), Ok((0, valid))),
            _ => assert_eq!(mount.lookup(ROOT, "none"), Err(libc::ENOENT)),
        }
    }
}

#[test]
fn the_guest_keeps_data_until_the_file_changes() {
    let mut mount = Mount::new("");
    let path = mount.path("file");
    let write = |text: &str| {
        fs::write(&path, text).unwrap();
        let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1000);
        fs::File::options().write(true).open(&path).unwrap().set_modified(long_ago).unwrap();
        // Its ctime must be old enough to tell later changes.
        std::thread::sleep(Duration::from_millis(60));
    };
    write("one");
    let node = mount.walk("file");
    let mut kept = || u32_at(&mount.call(Opcode::Open, node, &args![0u32, 0u32]).unwrap(), 8) & fopen::KEEP_CACHE != 0;
    assert!(!kept() && kept() && kept());
    write("two");
    assert!(!kept() && kept());
    // Just changed: it may change again unnoticed.
    fs::write(&path, "six").unwrap();
    assert!(!kept() && !kept());
}

#[test]
fn hard_links_are_one_file_and_devices_have_numbers_of_their_own() {
    let mut mount = Mount::new("");
    fs::write(mount.path("a"), "x").unwrap();
    fs::hard_link(mount.path("a"), mount.path("b")).unwrap();
    let (a, b) = (mount.lookup(ROOT, "a").unwrap(), mount.lookup(ROOT, "b").unwrap());
    assert_eq!((a.node, a.number, a.links), (b.node, b.number, 2));
    // Found as `b` now; that name goes, and the other still leads to the file.
    fs::remove_file(mount.path("b")).unwrap();
    assert_eq!(mount.getattr(a.node), Err(libc::ESTALE));
    assert_eq!(mount.lookup(ROOT, "a").unwrap().node, a.node);
    assert_eq!(mount.getattr(a.node).unwrap().links, 1);
}

#[test]
fn files_are_forgotten_when_the_guest_says_so() {
    let mut mount = Mount::new("");
    fs::create_dir_all(mount.path("a/b/c")).unwrap();
    let (a, b) = (mount.walk("a"), mount.walk("a/b"));
    let c = mount.walk("a/b/c");
    // Told three times of a, twice of b.
    mount.forget(a, 3);
    mount.forget(b, 1);
    assert!(mount.getattr(b).is_ok(), "one lookup is left");
    mount.forget(b, 1);
    assert!(mount.getattr(c).is_ok(), "and c is found by way of both");
    let args = args![2u32, 0u32, c, 1u64, a, 100u64];
    let header = mount.header(Opcode::BatchForget as u32, 0, args.len());
    mount.kit.request(0, &[&header, &args], &[]);
    for node in [a, b, c] {
        assert_eq!(mount.getattr(node), Err(libc::ESTALE));
    }
    mount.forget(ROOT, u64::MAX);
    mount.walk("a/b/c");
}

#[test]
fn a_tree_larger_than_the_limit_of_descriptors() {
    let mut mount = Mount::new("");
    let mut nodes = Vec::new();
    for i in 0..40 {
        let path = format!("d{}/e{i}/f", i % 7);
        fs::create_dir_all(mount.path(&path)).unwrap();
        fs::write(mount.path(&path).join("file"), path.as_bytes()).unwrap();
        nodes.push((mount.walk(&format!("{path}/file")), path));
    }
    for (node, path) in &nodes {
        let handle = mount.open(*node, libc::O_RDONLY).unwrap();
        assert_eq!(mount.read(handle, 0, 100).unwrap(), path.as_bytes());
        mount.release(handle).unwrap();
    }
    let open = fs::read_dir("/proc/self/fd").unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
    let open = open.filter(|path| path.starts_with(mount.dir.path())).count();
    assert!(open <= 9, "{open} descriptors, where 8 and the root are allowed");
}

#[test]
fn other_users_files_keep_their_owners() {
    if !is_root() {
        return println!("\nSKIPPED: only root has files of others");
    }
    let mut mount = Mount::new("");
    fs::write(mount.path("file"), "").unwrap();
    std::os::unix::fs::chown(mount.path("file"), Some(1234), Some(567)).unwrap();
    assert_eq!(mount.lookup(ROOT, "file").unwrap().owner, (1234, 567));
}

#[test]
fn windows_to_the_kernel_are_found_empty() {
    // Not below a scratch directory, since mounting takes root: the host's own tree.
    let spec = fs_spec("/,tag=t").unwrap();
    let limits = Limits { nodes: 1000, descriptors: 8, handles: 16 };
    let share = Share::open(Path::new("/"), false, Cache::Auto, limits).unwrap();
    let mut kit = Kit::new(Box::new(Fs::new(&spec, share)));
    kit.activate(0);
    let mut mount = Mount { dir: crate::fs::testing::scratch(), kit, unique: 0, user: (0, 0) };
    mount.init();
    let proc = mount.lookup(ROOT, "proc").unwrap();
    assert_eq!(proc.mode & 0o170_000, 0o040_000);
    assert_eq!(mount.lookup(proc.node, "self"), Err(libc::ENOENT));
    assert_eq!(mount.list(proc.node, true, 4096), []);
    assert!(mount.list(ROOT, false, 4096).iter().any(|(name, ..)| name == "proc"));
}
